"""The service behind the form of a guest book: what visitors POST to the channel `signatures`
becomes a row, in the transaction that acknowledges it; the result is the row's id.

    signing_service.py DSN

Runs until it is killed.
"""

import sys
import time

import psycopg

CLAIM = "SELECT id, data->>'name', data->>'words' FROM gateway.claim('signatures', 'book')"
SIGN = "INSERT INTO guests (name, words) VALUES (%s, %s) RETURNING to_json(id)"


def sign(connection):
    """One signature; false: there is none."""
    signature = connection.execute(CLAIM).fetchone()
    if signature is None:
        return False
    delivery, name, words = signature
    with connection.transaction():
        row = connection.execute(SIGN, (name, words)).fetchone()[0]
        connection.execute("SELECT gateway.ack(%s, 'book', %s)", (delivery, str(row)))
    return True


def main(dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            if not sign(connection):
                time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
