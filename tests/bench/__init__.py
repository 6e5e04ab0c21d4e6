"""How fast is it, beside the limit of the machine and beside what one would take instead?

                       ┌── bare      a program that only sends: the limit
    load ── POST ──────┤── gateway   with everything switched on, on a real PostgreSQL
         └─ subscribes ┤── nchan     nginx with Nchan
                       └── node      a plain server with `pg`, as most people would write it

Everything runs on one machine and shares its cores, so the figure that counts is the CPU
time a server takes for each delivered message, not how many it delivers in a second. The
servers of one row take turns, within one round; what is compared is compared within one
round, and the table shows the median of those ratios.

    knobs     how long it is measured, and on what WAL, as the environment says
    machine   what it all runs on: CPU, kernel, versions; and which cores are whose
    programs  the programs in C beside this file, run and listened to
    servers   who is measured: started, asked for its CPU time, stopped
    rounds    servers take turns under the same load
    row       what a row of the table is
    rows      all of them: rows_load (servers under load), rows_groups, rows_cores, and rows_alone
              (everything else)
    figures   one line of the table: a figure, what it has to reach, and whether it did
    scale     several gateways on one machine: what each costs the others and the database
    paper     one million subscribers, computed from what was measured
    where     where the time of a server goes: perf (python3 -m bench.where)
    table     the table, and the file for machines

`make bench BENCH_ROWS=list` says which rows there are.
"""
