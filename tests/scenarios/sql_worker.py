"""A worker without HTTP: claims jobs by SQL, does each in the transaction that acknowledges it.

    sql_worker.py DSN LOG

A line is appended to LOG for each job that is begun: what somebody outside of the database would
have seen of it. Runs until it is killed.
"""

import sys
import time

import psycopg

CLAIM = "SELECT id, data FROM gateway.claim('jobs', 'workers', 1, '1 s', max_attempts => 100)"


def work(connection, log):
    """One job; false: there is none."""
    job = connection.execute(CLAIM).fetchone()
    if job is None:
        return False
    id, number = job
    log.write(f"{number} {id}\n")
    log.flush()
    try:
        with connection.transaction():
            connection.execute("INSERT INTO done (job, id) VALUES (%s, %s)", (number, id))
            connection.execute("SELECT gateway.ack(%s, 'workers', '\"done\"')", (id,))
    except psycopg.Error as error:
        if error.sqlstate != "GW409":  # it took too long, and somebody else has the job
            raise
    return True


def main(dsn, path):
    with psycopg.connect(dsn, autocommit=True) as connection, open(path, "a") as log:
        while True:
            if not work(connection, log):
                time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
