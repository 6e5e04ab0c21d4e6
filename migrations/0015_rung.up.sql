-- 0015_rung: the bell says for which rows it rings.
--
-- A notification of `gateway_wake` carries the id of the last row of its transaction. A gateway
-- that relays those of applications, too, hears both in the order of their commits. So it can
-- put each of them behind the rows it was rung for before, and before those it is rung for after
-- it, although rows get their numbers later.
--
--   (1885827955, 5)  Shared, of a session: a gateway relays in the order of the commits, and
--                    needs every ring. The one on duty lies down, and does not get up.

-- The id of the last row that this transaction has inserted, and that waits for its number.
-- NULL if they are gone again.
CREATE FUNCTION gateway.last_inserted() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    RETURN (SELECT e.id FROM gateway.events e
             WHERE e.xid = pg_current_xact_id() AND e.seq IS NULL ORDER BY e.id DESC LIMIT 1);
END
$$;

-- Tells the gateway that sleeps, if one does, that there is something to number. PostgreSQL
-- cannot PREPARE a transaction that has notified: one that will be prepared begins with
-- SET LOCAL gateway.quiet = on, and its rows are found within a second by themselves.
-- Without a search path of its own, which would cost more than the rest, and with the rights of
-- the schema's owner, because whoever inserts need not be able to read: so nothing in it may
-- be looked for along the caller's path, and no operator either.
--
-- Rows can still follow, where triggers do not wait for the commit or other ones insert at the
-- commit: they ring once more.
CREATE OR REPLACE FUNCTION gateway.ring_sweeper() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF NOT pg_catalog.pg_try_advisory_xact_lock_shared(1885827955, 3) THEN
        PERFORM pg_catalog.set_config('gateway.bell', 'off', true),
                pg_catalog.pg_notify('gateway_wake', gateway.last_inserted()::pg_catalog.text);
    END IF;
    RETURN NULL;
END
$$;

REVOKE EXECUTE ON FUNCTION gateway.last_inserted() FROM PUBLIC;
