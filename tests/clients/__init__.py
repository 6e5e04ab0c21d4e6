"""Other people's clients, each cut off in the middle of bursts: `make check-clients`.

    relay       the way between a client and the gateways, which breaks where it is told to
    recording   what one client handed out, as it tells it line by line
    clients     how each client is started, and which version it is
    curl_loop   a client made of curl, started anew with the last id
    by_hand     a client made of the tests' own strict reader
    world       PostgreSQL, two gateways, publishers; nginx or haproxy in front
    verdict     what a client got, held against the table
    burst       the long test: ten thousand events, and every way to cut
    proof       that the check finds what it is to find
    manners     small ones: full gateways, heartbeats, checkpoints
    report      the tables

Every client is a program of its own that writes one JSON text a line: {"open": true},
{"error": text} or {"event": [id, type, data]}.
"""
