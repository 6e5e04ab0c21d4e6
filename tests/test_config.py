"""The command line, gateway.ini and the environment: what wins, and what is refused."""

import re
import socket

import pytest

from harness.gateway import ini_text
from harness.tools import REPOSITORY


def checked(done):
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def setting(text, section, key):
    """The value as check-config prints it, in ini form."""
    current = None
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and re.match(rf"{key}\s*=", line):
            return line.partition("=")[2].strip()
    raise AssertionError(f"[{section}] {key} is not in:\n{text}")


# -- check-config -------------------------------------------------------------------------


def test_check_config_prints_every_setting(command):
    text = checked(command("check-config", settings={"stream.heartbeat": "7s"}))
    assert setting(text, "stream", "heartbeat") == "7s"
    assert setting(text, "limits", "body") == "4MiB"
    for name in ("http.listen", "http.static_dir", "http.cors_origins", "database.dsn",
                 "database.listen_dsn", "database.migrate_on_start", "events.retention",
                 "stream.retry", "stream.max_age", "stream.idle_close", "ring.bytes", "limits.connections",
                 "limits.header", "server.shards", "server.drain"):
        setting(text, *name.split("."))


def test_what_check_config_prints_is_a_configuration(command, directory):
    given = {"stream.heartbeat": "7s", "limits.body": "1MiB", "http.listen": "127.0.0.1:9000",
             "http.cors_origins": "https://a.example, https://b.example", "server.shards": "3"}
    first = checked(command("check-config", settings=given))
    path = directory / "again.ini"
    path.write_text(first)
    second = checked(command("--config", path, "check-config"))
    for name, value in given.items():
        assert setting(second, *name.split(".")) == value


SECRET = "s3cr3t-p4ss"


@pytest.mark.parametrize("setting, value, told", [
    ("http.listen", "8081", "listen"), ("http.static_dir", "/nowhere", "static_dir"),
    ("database.dsn", "hots=foo", "dsn"),
    ("database.dsn", "postgresql://app:p@ss:hunter2/rd@127.0.0.1/app", "%40"),
], ids=["address", "folder", "keyword", "password in a URI"])
def test_check_config_refuses_what_serve_would(command, setting, value, told):
    done = command("check-config", settings={setting: value})
    assert done.returncode == 2
    assert told in done.stderr and "hunter2" not in done.stderr + done.stdout


@pytest.mark.parametrize("dsn", [
    f"host=db user=u password={SECRET}", f"host=db password='{SECRET}' user=u",
    f"password = {SECRET} host=db", f"postgresql://u:{SECRET}@db/x",
    f"postgres://u:{SECRET}@a,b:5433/x?sslmode=require",
    f"postgresql:///x?password={SECRET}&user=u",
    f"host=db sslpassword={SECRET}", f"host=db password='it\\'s {SECRET}'",
])
def test_check_config_prints_no_password(command, dsn):
    done = command("check-config", settings={"database.dsn": dsn, "database.listen_dsn": dsn})
    assert SECRET not in checked(done) + done.stderr
    for name in ("DATABASE_URL", "PGSSE_DATABASE_DSN", "PGSSE_DATABASE_LISTEN_DSN"):
        done = command("check-config", settings={}, env={name: dsn})
        assert SECRET not in checked(done) + done.stderr


def test_a_password_from_a_file_or_the_environment_is_not_printed(command, directory):
    path = directory / "password"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    done = command("check-config", settings={"database.password_file": str(path)},
                   env={"PGPASSWORD": SECRET})
    assert SECRET not in checked(done) + done.stderr


def test_no_password_is_ever_logged(gateway_factory, directory):
    gateway = gateway_factory(None, {
        "database.dsn": f"host={directory} user=u password={SECRET} dbname=x",
        "database.listen_dsn": f"postgresql://u:{SECRET}@127.0.0.1:1/x", "log.level": "debug",
    }, ready=False)
    gateway.wait_log("could not connect|connection to server")
    assert gateway.get("/readyz").status == 503
    for text in (gateway.log(), gateway.get("/readyz").text, gateway.get("/metrics").text,
                 gateway.post('{"data":1}', timeout=30).text):
        assert SECRET not in text


def test_the_repositorys_own_ini_is_valid_and_says_the_defaults(command):
    """It lists every setting, and runs as it is: so it changes nothing."""
    with_ini = checked(command("--config", REPOSITORY / "gateway.ini", "check-config"))
    without = checked(command("check-config", settings={}))

    def values(text):
        return [line for line in text.splitlines() if re.match(r"\w+\s*=|\[", line)]

    assert values(with_ini) == values(without)
    ini = (REPOSITORY / "gateway.ini").read_text()
    for line in values(with_ini):
        assert re.search(rf"^[#;\s]*{re.escape(line.partition('=')[0].strip())}", ini,
                         re.MULTILINE), f"not in gateway.ini: {line}"


# -- what wins ----------------------------------------------------------------------------


def test_the_environment_wins_over_the_ini(command):
    text = checked(command("check-config", settings={"stream.heartbeat": "7s"},
                           env={"PGSSE_STREAM_HEARTBEAT": "9s",
                                "PGSSE_LIMITS_BODY": "2MiB"}))
    assert setting(text, "stream", "heartbeat") == "9s"
    assert setting(text, "limits", "body") == "2MiB"


def test_database_url_is_the_dsn_unless_one_is_set(command):
    url = {"DATABASE_URL": "postgresql://from-url/x"}
    assert "from-url" in setting(checked(command("check-config", settings={}, env=url)),
                                 "database", "dsn")
    text = checked(command("check-config", settings={"database.dsn": "host=from-ini"}, env=url))
    assert "from-ini" in setting(text, "database", "dsn")


def test_database_url_is_enough_to_serve(pg, gateway_factory):
    gateway = gateway_factory(None, env={"DATABASE_URL": f"postgresql:///{pg.name}"
                                         f"?host={pg.cluster.home}&user=gateway"})
    assert gateway.publish("c", "1")


def test_libpqs_own_variables_are_enough_to_serve(pg, gateway_factory):
    gateway = gateway_factory(None, env={"PGHOST": str(pg.cluster.home), "PGUSER": "gateway",
                                         "PGDATABASE": pg.name})
    assert gateway.publish("c", "1")


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("text, line, word", [
    ("[stream]\nheartbeat = 1s\n\nheartbeet = 2s\n", 4, "heartbeet"),
    ("# a comment\n[steam]\nheartbeat = 1s\n", (2, 3), "steam"),
    ("[http]\nlisten = 127.0.0.1:0\n[stream]\nheartbeat = soon\n", 4, "soon"),
    ("[stream]\nheartbeat = 5 parsecs\n", 2, "heartbeat"),
    ("[stream]\nheartbeat = -1s\n", 2, "heartbeat"),
    ("[stream]\nheartbeat = 99999999999999999999999s\n", 2, "heartbeat"),
    ("[events]\nretention = 200ms\n", 2, "0, or a duration from 1s to 3650d"),
    ("[limits]\nbody = big\n", 2, "body"),
    ("[limits]\nbody = 1KB\n", 2, "body"),
    ("[limits]\nconnections = 0\n", 2, "connections"),
    ("[limits]\nconnections = 3.5\n", 2, "connections"),
    ("[server]\nshards = many\n", 2, "shards"),
    ("[database]\nmigrate_on_start = perhaps\n", 2, "perhaps"),
    ("[stream]\nthis is no setting\n", 2, ""),
    ("[stream\nheartbeat = 1s\n", 1, ""),
    ("heartbeat = 1s\n", 1, ""),
])
@pytest.mark.parametrize("what", ["check-config", "serve"])
def test_a_wrong_line_is_named_and_refused(command, directory, text, line, word, what):
    path = directory / "wrong.ini"
    path.write_text(text)
    done = command("--config", path, what)
    assert done.returncode == 2, done.stderr
    lines = line if isinstance(line, tuple) else (line,)
    assert any(f"wrong.ini:{number}" in done.stderr for number in lines), done.stderr
    assert word in done.stderr


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", ":x", "[::1",
                                    "127.0.0.1:80x", "unix:"])
def test_a_wrong_address_is_refused(command, listen):
    done = command("serve", settings={"http.listen": listen, "database.dsn": "host=/nowhere"})
    assert done.returncode == 2, done.stderr
    assert "listen" in done.stderr


def test_a_wrong_variable_is_refused(command):
    done = command("check-config", settings={}, env={"PGSSE_STREAM_HEARTBEAT": "soon"})
    assert done.returncode == 2 and "PGSSE_STREAM_HEARTBEAT" in done.stderr
    done = command("check-config", settings={}, env={"PGSSE_STREAM_HEARTBEET": "1s"})
    assert done.returncode == 2 and "PGSSE_STREAM_HEARTBEET" in done.stderr


def test_a_missing_file_is_named(command, directory):
    done = command("--config", directory / "nowhere.ini", "check-config")
    assert done.returncode == 2
    assert "nowhere.ini" in done.stderr


def test_a_dsn_that_libpq_cannot_read_is_told_without_its_password(command):
    done = command("migrate", "status", settings={"database.dsn": f"hots=db password={SECRET}"})
    assert done.returncode in (1, 2)
    assert "connection string" in done.stderr and SECRET not in done.stderr


# -- addresses ----------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told(pg, command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = command("serve", settings={"http.listen": address, "database.dsn": pg.dsn})
    assert done.returncode == 1, done.stderr
    assert address in done.stderr and "in use" in done.stderr


def test_a_second_gateway_on_the_same_port_is_refused(pg, gateway, command):
    done = command("serve", settings={"http.listen": f"127.0.0.1:{gateway.port}",
                                      "database.dsn": pg.dsn})
    assert done.returncode == 1, done.stderr
    assert "in use" in done.stderr
    gateway.answers()


def test_it_listens_on_several_addresses(pg, gateway_factory, directory):
    path = directory / "http.sock"
    gateway = gateway_factory(pg, {"http.listen": f"127.0.0.1:0, [::1]:0, unix:{path}"})
    gateway.answers()
    port6 = int(gateway.wait_log(r"listening on (?:http://)?\[::1\]:([0-9]+)")[1])
    with gateway.subscribe("c") as stream:
        for address in (gateway.address, ("::1", port6), str(path)):
            first, gateway.address = gateway.address, address
            gateway.publish("c", "1")
            with gateway.subscribe("c") as other:
                gateway.publish("c", "2")
                other.until(lambda event: event.data == "2")
            gateway.address = first
        assert [event.data for event in stream.take(6)] == ["1", "2"] * 3
    gateway.stop()
    assert not path.exists(), "the socket is taken away"


def test_a_unix_socket_left_behind_is_taken_over(pg, gateway_factory, directory):
    path = directory / "http.sock"
    first = gateway_factory(pg, {"http.listen": f"127.0.0.1:0,unix:{path}"})
    first.kill()
    assert path.exists()
    second = gateway_factory(pg, {"http.listen": f"127.0.0.1:0,unix:{path}"})
    second.address = str(path)
    second.answers()


# -- the command line ---------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(command, option):
    done = command(option)
    assert done.returncode == 0
    for word in ("serve", "migrate", "up", "down", "status", "check-config", "healthcheck",
                 "--config", "--version", "--help"):
        assert word in done.stdout


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_is_one_line(command, option):
    done = command(option)
    assert done.returncode == 0
    assert re.search(r"pg-sse-gateway [0-9]+\.[0-9]+", done.stdout.splitlines()[0])


@pytest.mark.parametrize("arguments, word", [
    (["sevre"], "sevre"), (["--verbos"], "verbos"), (["serve", "now"], "now"), (["-x"], "x"),
    (["check-config", "please"], "please"), (["--config"], "config"), (["migrate", "up", "x"], "x"),
])
def test_a_wrong_command_line_is_a_usage_error(command, arguments, word):
    done = command(*arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert word in done.stderr and done.stdout == ""
    assert "--help" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words, name", [("serve", "PGSSE_HTTP_LISTEN"),
                                         ("check-config", "PGSSE_HTTP_LISTEN")])
def test_a_value_that_no_room_takes_is_told_with_where_it_stands(command, words, name):
    done = command(words, settings={}, env={name: "nowhere"})
    assert done.returncode == 2
    assert f"{name}: [http] listen: 'nowhere'" in done.stderr
    done = command(words, settings={"http.listen": "elsewhere"})
    assert re.search(r"gateway\.ini:[0-9]+: \[http\] listen: 'elsewhere'", done.stderr)


@pytest.mark.parametrize("dsn, meant", [
    ("postgresql:///app?sslmod=disable", "sslmode"), ("hots=/tmp", "host"),
    ("host=h passwrd=s3cret", "password"), ("postgresql:///app?s3cret=1", None)])
def test_a_misspelt_word_of_the_dsn_is_told_by_what_is_meant(command, dsn, meant):
    done = command("check-config", settings={}, env={"DATABASE_URL": dsn})
    assert done.returncode == 2
    assert "DATABASE_URL: [database] dsn: " in done.stderr and "s3cret" not in done.stderr
    assert (f'(is "{meant}" meant?)' in done.stderr) if meant else "meant" not in done.stderr


def test_the_ini_text_of_the_harness_is_what_it_should_be():
    assert ini_text({"a.b": "1", "c.d": "2", "a.e": "3"}) == "[a]\nb = 1\ne = 3\n\n[c]\nd = 2\n"
