-- 0006_bell: writers ring only for a gateway that sleeps.
--
-- A NOTIFY takes a lock over the whole database cluster until its transaction is durable, so
-- that transactions which notify are committed one after the other. While rows flow, one
-- gateway polls, and nobody need ring. The bell is an advisory lock, held by nobody but
-- sessions and transactions that live: there is nothing to be put right after a crash, a
-- failover or a restored dump.
--
--   (1885827955, 3)  the bell. Exclusive, of a session: a gateway sleeps; ring.
--                    Shared, of a transaction: it has been told that it need not ring.
--   (1885827955, 4)  the duty. Exclusive, of a session: the one gateway that polls or sleeps.
--                    The others look once a second, and one of them takes the duty over when
--                    its session has ended.
--
-- No wake-up is lost. A transaction asks for the bell, shared, when its rows are inserted and
-- its commit has begun. If it gets it, it keeps it until its rows can be seen; so a gateway
-- that gets the bell, exclusive, and looks once more after that, sees them. If it does not get
-- it, it notifies. Nobody waits for the bell: a gateway that does not get it polls on.
--
-- A gateway that is killed leaves a bell that need not be rung, and no gateway that sleeps.

-- The locks below wait for every open transaction that has written an event, and whoever
-- writes one meanwhile waits behind them. Better to give up soon and be run again.
SET LOCAL lock_timeout = '5s';

DROP TRIGGER ring_sweeper ON gateway.events;

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

-- At the commit, so that a transaction which stays open for an hour keeps no gateway from
-- sleeping, and rings when it is needed and not an hour earlier. Once in a transaction,
-- however many rows it inserts: `gateway.bell` is on from the first of them to its end, or
-- until a savepoint before that row is gone back to.
CREATE CONSTRAINT TRIGGER ring_sweeper AFTER INSERT ON gateway.events
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.seq IS NULL
          AND current_setting('gateway.quiet', true) IS DISTINCT FROM 'on'
          AND current_setting('gateway.bell', true) IS DISTINCT FROM 'on'
          AND set_config('gateway.bell', 'on', true) = 'on')
    EXECUTE FUNCTION gateway.ring_sweeper();
-- ALWAYS: also in sessions that replay what others did (session_replication_role).
ALTER TABLE gateway.events ENABLE ALWAYS TRIGGER ring_sweeper;

-- As before. In PL/pgSQL, which keeps its plans: every sweep and every batch asks.
CREATE OR REPLACE FUNCTION gateway.identity() RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN format('%s/%s/%s/%s', (SELECT c.system_identifier FROM pg_control_system() c),
                  left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
                  (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()),
                  'gateway.events'::regclass::oid);
END
$$;
