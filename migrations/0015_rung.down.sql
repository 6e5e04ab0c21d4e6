-- 0015_rung: takes it back: the bell does not say for what it rings again.

-- Tells the gateway that sleeps, if one does, that there is something to number. PostgreSQL
-- cannot PREPARE a transaction that has notified: one that will be prepared begins with
-- SET LOCAL gateway.quiet = on, and its rows are found within a second by themselves.
-- Without a search path of its own, which would cost more than the rest.
CREATE OR REPLACE FUNCTION gateway.ring_sweeper() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_catalog.pg_try_advisory_xact_lock_shared(1885827955, 3) THEN
        PERFORM pg_catalog.pg_notify('gateway_wake', '');
    END IF;
    RETURN NULL;
END
$$;

DROP FUNCTION gateway.last_inserted();
