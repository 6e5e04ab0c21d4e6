"""The fault checker: is anything ever lost, whatever happens?

    publishers (POST) ──┐                             ┌── subscribers, who come and go
                        ├──> gateway 1, gateway 2 ────┤   and know their last id only
    writers (SQL) ──────┘          PostgreSQL         └──
          │                            │                          │
       ledger: what was            the table               what each has seen
       acknowledged                    │                          │
          └──────────────────────── verdict ──────────────────────┘

Each fault has a world of its own: a PostgreSQL, gateways, folders, and where root is needed
for it a network namespace. At the end the table is compared with what the subscribers saw
and with what the publishers were told; every figure of the verdict must be zero.

    traffic      what is published: channels, types, and data that tell who wrote them
    ledger       what the publishers know about it
    board        what the processes of a run show each other
    wire         the bytes of a stream, cut into frames, fast
    subscribers  many streams in one process
    publishers   POSTs, repeated with their key until they are acknowledged
    writers      SQL transactions of every kind
    workers      consumers of two groups, who acknowledge, leave and forget
    world        PostgreSQL and gateways, and how they are harmed and mended
    namespace    a network and mounts of one's own
    injections   the faults, by name
    verdict      the comparison
    jobs         the same for groups
    run          one fault in its world, from begin to end
    report       the table
    naive_groups the same for groups
    naive        a small gateway that can be told to make mistakes: the checker must see them

`make check-faults` runs all; `FAULTS='gateway-killed disk-full'` chooses, FAULT_EVENTS says
how many events in all. tests/test_faults.py runs a short form.
"""
