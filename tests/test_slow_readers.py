"""A reader that takes nothing slows nobody, costs little, and is let go in the end."""

import json

from harness.waiting import SLOWNESS, scaled

MIB = 1024 * 1024


def flood(gateway, fast, megabytes):
    """Publishes that much; after each megabyte the fast reader must have all of it."""
    piece = json.dumps("x" * (64 * 1024 - 2))
    body = "[" + ",".join('{"channel":"c","data":%s}' % piece for _ in range(16)) + "]"
    for _ in range(megabytes):
        answer = gateway.post(body, timeout=scaled(20))
        assert answer.status == 201, repr(answer)
        for event in fast.take(16, timeout=scaled(20)):
            assert len(event.data) == 64 * 1024


def test_readers_that_never_read_slow_nobody_and_cost_little(pg, gateway_factory):
    gateway = gateway_factory(pg, {"ring.bytes": "8MiB", "stream.idle_close": "5min",
                                   "stream.heartbeat": "1s"})
    stuck = [gateway.subscribe("c", receive_buffer=4096, http10=number % 2 == 1)
             for number in range(6)]
    try:
        with gateway.subscribe("c") as fast:
            fast.keep_wire = False
            flood(gateway, fast, 10)  # the ring and the buffers are full from here on
            before = gateway.rss_bytes()
            flood(gateway, fast, 40)
            grown = gateway.rss_bytes() - before
            # If each kept what it has not read, it would be 240 MiB. Sanitizers keep
            # freed memory for a while, and shadow what there is.
            assert grown < 24 * MIB * max(1, SLOWNESS), f"{grown / MIB:.0f} MiB more"
            assert gateway.metric("pgsse_streams") == 7
            with gateway.subscribe("other") as newcomer:
                gateway.publish("other", "1")
                assert newcomer.next_event().data == "1"
    finally:
        for stream in stuck:
            stream.close()
    gateway.wait_metric("pgsse_streams", 0)


def test_a_reader_that_takes_nothing_for_long_is_closed(pg, gateway_factory):
    gateway = gateway_factory(pg, {"stream.idle_close": "1s", "stream.heartbeat": "200ms"})
    with gateway.subscribe("c") as fast, gateway.subscribe("c", receive_buffer=4096) as stuck:
        with gateway.subscribe("c", receive_buffer=4096, http10=True) as stuck_old:
            gateway.wait_metric("pgsse_streams", 3)
            flood(gateway, fast, 12)
            gateway.wait_metric("pgsse_streams", 1)
            assert gateway.metric("pgsse_streams_idle_closed_total") == 2
            for stream in (stuck, stuck_old):
                stream.wait_end()
        gateway.publish("c", "1")
        assert fast.next_event().data == "1"


def test_a_quiet_stream_is_not_taken_for_a_stuck_one(pg, gateway_factory):
    gateway = gateway_factory(pg, {"stream.idle_close": "300ms", "stream.heartbeat": "100ms"})
    with gateway.subscribe("c") as stream:
        for _ in range(15):
            stream.next_comment()
        gateway.publish("c", "1")
        assert stream.next_event().data == "1"


def test_a_reader_that_pauses_gets_everything_once_it_reads_again(pg, gateway_factory):
    """As much as the sockets' buffers do not take, and less than the ring holds."""
    gateway = gateway_factory(pg, {"ring.bytes": "64MiB"})
    with gateway.subscribe("c") as fast:
        with gateway.subscribe("c", receive_buffer=4096) as pausing, \
             gateway.subscribe("c", receive_buffer=4096, http10=True) as pausing_old:
            flood(gateway, fast, 16)
            for stream in (pausing, pausing_old):
                events = stream.take(256)
                assert all(len(event.data) == 64 * 1024 for event in events)
                assert len({event.id for event in events}) == 256
            gateway.publish("c", '"end"')
            assert pausing.next_event().data == pausing_old.next_event().data == '"end"'
