"""A listener for many channels: a game in which everything that concerns a player is NOTIFYed on
a channel of his own, as psql does it here.

What people write for it: one connection that LISTENs to all channels of all their users,
counts who wants which, quotes names, keeps the order, connects again and LISTENs again, and
hopes that nothing came meanwhile. Here it is a stream for each player, on whichever gateway he
comes to.
"""

import json

import pytest

from conftest import TEMPLATE
from harness.people import Curl, Psql
from harness.sse import Stream

PLAYERS = 40
GAPS = 'pgsse_streams_gaps_total{reason="relay"}'


def channels_of(player):
    """His own, that of his team, with a name that nobody should have to quote by hand, and
    everybody's."""
    return [f"user_{player}", f'Team "{player // 10}"', "lobby"]


class Game:
    def __init__(self, pg, gateways):
        self.psql = Psql(pg.dsn)
        self.gateways = gateways
        self.players = {}

    def comes(self, player):
        gateway = self.gateways[player % len(self.gateways)]
        stream = gateway.subscribe(*channels_of(player))
        self.players[player] = stream
        return stream.wait_checkpoint()

    def goes(self, player):
        self.players.pop(player).close()

    def plays(self, name, payloads):
        """Everybody hears it on each of his channels, in the order of the commits."""
        teams = sorted({player // 10 for player in self.players})
        script = []
        for payload in payloads:
            script += [f"NOTIFY user_{player}, '{name} {payload} user';" for player in self.players]
            script += [f"""NOTIFY "Team ""{team}""\", '{name} {payload} team';""" for team in teams]
            script += [f"NOTIFY lobby, '{name} {payload} lobby';",
                       f"SELECT gateway.publish('lobby', '\"{name} {payload} stored\"');"]
        self.psql("\n".join(script))
        wanted = [f"{name} {payload} {what}" for payload in payloads
                  for what in ("user", "team", "lobby", "stored")]
        for player, stream in self.players.items():
            seen = [event.data.strip('"') for event in stream.take(len(wanted))]
            assert sorted(seen) == sorted(wanted), player
            # An event that was inserted a moment later may be a little early.
            assert [data for data in seen if "stored" not in data] == [
                data for data in wanted if "stored" not in data], player
            assert [data for data in seen if "stored" in data] == [
                data for data in wanted if "stored" in data], player

    def is_told(self):
        """Each player, of each of his channels, that something may be missing."""
        for player, stream in self.players.items():
            gaps = stream.take(3)
            assert {event.type for event in gaps} == {"gap"}, (player, gaps)
            told = [json.loads(event.data) for event in gaps]
            assert {gap["reason"] for gap in told} == {"relay"}
            assert sorted(gap["channel"] for gap in told) == sorted(channels_of(player))


@pytest.fixture
def game(postgres, gateway_factory):
    pg = postgres.create_database(template=TEMPLATE)
    settings = {"channels.relay": "user_*, Team *, lobby"}
    game = Game(pg, [gateway_factory(pg, settings), gateway_factory(pg, settings)])
    yield game
    for player in [*game.players]:
        game.goes(player)
    pg.close()


def test_many_channels_through_a_restart_of_the_database(game, postgres):
    for player in range(PLAYERS):
        game.comes(player)
    # 20 players on each gateway, each with one of his own; four teams; the lobby.
    for gateway in game.gateways:
        assert gateway.metric("pgsse_relay_channels") == 20 + 4 + 1
    game.plays("hello", range(3))

    with Curl(game.gateways[0].url + "/events?relay=lobby") as onlooker:
        onlooker.until("event: checkpoint")
        # Channels come and go while it runs.
        for player in range(0, PLAYERS, 4):
            game.goes(player)
        for player in range(100, 120):
            game.comes(player)
        game.plays("new faces", range(2))
        onlooker.until("data: new faces 1 lobby")

        # What no handler was written for harms nobody: it comes as it is.
        game.psql("NOTIFY user_1, ''; NOTIFY user_1, '{not JSON'; NOTIFY nobody_listens, 'x';")
        assert [event.data for event in game.players[1].take(2)] == ["", "{not JSON"]
        game.plays("unharmed", range(1))

        # The database falls over, and comes back.
        postgres.crash()
        assert [stream.pending() for stream in game.players.values()] == [[]] * len(game.players)
        postgres.start()
        for gateway in game.gateways:
            gateway.wait_ready()
        game.is_told()
        for gateway in game.gateways:
            assert gateway.metric("pgsse_relay_channels") >= 25
        game.plays("back", range(3))
        lines = onlooker.until("data: back 2 lobby")
        assert "event: gap" in lines

    # Somebody new hears as well as those who were there.
    game.comes(200)
    game.plays("the end", range(1))


def test_who_was_cut_off_goes_on_with_the_events_and_is_not_told_twice(game):
    """The player's own connection breaks: the events are exact, and what was notified meanwhile
    is known to be gone, because he was."""
    stream = game.comes(1)
    game.psql("SELECT gateway.publish('user_1', '1'); NOTIFY user_1, 'one';")
    assert [event.data for event in stream.take(2)] == ["1", "one"]
    last = stream.last_id
    game.goes(1)
    game.psql("SELECT gateway.publish('user_1', '2'); NOTIFY user_1, 'unheard';"
              "SELECT gateway.publish('user_1', '3');")
    # He comes back to the other gateway.
    with Stream(game.gateways[0].address, channels_of(1), last_event_id=last) as again:
        assert [event.data for event in again.take(2)] == ["2", "3"]
        again.wait_checkpoint()
        game.psql("NOTIFY user_1, 'heard'; SELECT gateway.publish('user_1', '4');")
        assert sorted(event.data for event in again.take(2)) == ["4", "heard"]
    assert sum(gateway.metric(GAPS) for gateway in game.gateways) == 0
