"""What the black-box tests stand on: a room for each party they talk to.

    waiting    deadlines, and waiting for a condition instead of for a time
    tools      the programs of the machine that tests need, found by name
    postgres   a private PostgreSQL: start, crash, freeze, databases of a test's own
    gateway    one pg-sse-gateway process: its ini, its log, its end
    raw_http   HTTP by the byte, for what no client library would send
    sse        a strict reader of event streams
    groups     consumers of a group, and what they say
    people     somebody at psql, somebody with curl, and programs that are killed
"""
