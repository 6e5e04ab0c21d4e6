-- 0002_retention: old events are deleted in small batches, and what is gone is known.
--
-- Invariant. Where a numbered row of gateway.events was ever deleted, the newest row of
-- gateway.purges is at least its seq. So from an id that is at least max(seq) of
-- gateway.purges on everything is there, and below it nobody can be sure any more. Rows
-- that went and the row that says so become visible with the same commit.

-- The locks below wait for every open transaction that has written an event, and whoever
-- writes one meanwhile waits behind them. Better to give up soon and be run again.
SET LOCAL lock_timeout = '5s';

-- Only the newest row counts. Rows are added and deleted, never updated, so that of two who
-- delete events at the same time neither waits for the other.
CREATE TABLE gateway.purges (
    seq       bigint PRIMARY KEY,   -- every id below can no longer be resumed from exactly
    purged_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE gateway.purges IS
    'max(seq) is the lowest id from which every event is still there.';

-- Notes what a DELETE has taken away, whoever deletes. SECURITY DEFINER: a role with no
-- other right than to delete events must not be able to do it unnoticed, and needs no right
-- to write into gateway.purges for it. The search path is fixed, so that the caller's
-- cannot lead to other tables and operators.
CREATE FUNCTION gateway.note_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A row without a number was in no stream, and nobody can have its id.
    INSERT INTO gateway.purges (seq)
    SELECT max(g.seq) FROM gone g HAVING max(g.seq) IS NOT NULL
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

-- The same for TRUNCATE, which tells nobody what was there: all that was ever numbered.
-- Asking the sequence, not the table, because a transaction with an old snapshot does not
-- see the newest rows that it takes away.
CREATE FUNCTION gateway.note_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO gateway.purges (seq)
    SELECT max(n.seq) FROM (
        SELECT s.last_value AS seq FROM gateway.events_seq s WHERE s.is_called
        UNION ALL SELECT max(i.base) FROM gateway.incarnations i
        UNION ALL SELECT max(p.seq) FROM gateway.purges p) n
    HAVING max(n.seq) > 0
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

-- Whoever may call these could hang them on a table of his own, and have every id called
-- too old.
REVOKE EXECUTE ON FUNCTION gateway.note_delete(), gateway.note_truncate() FROM PUBLIC;

CREATE TRIGGER note_delete AFTER DELETE ON gateway.events
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    EXECUTE FUNCTION gateway.note_delete();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON gateway.events FOR EACH STATEMENT
    EXECUTE FUNCTION gateway.note_truncate();
-- ALWAYS: also in sessions that replay what others did (session_replication_role).
ALTER TABLE gateway.events ENABLE ALWAYS TRIGGER note_delete,
    ENABLE ALWAYS TRIGGER note_truncate;

-- Nobody noted what was deleted before. Above the highest number that is missing everything
-- is there; a number that was given in vain looks the same, and does no harm.
WITH given AS (
    SELECT s.last_value AS newest FROM gateway.events_seq s WHERE s.is_called
), there AS (
    SELECT 0 AS seq UNION ALL SELECT e.seq FROM gateway.events e WHERE e.seq IS NOT NULL
), pairs AS (
    SELECT t.seq, lead(t.seq, 1, given.newest + 1) OVER (ORDER BY t.seq) AS next
      FROM there t, given
)
INSERT INTO gateway.purges (seq)
SELECT max(p.next) - 1 FROM pairs p WHERE p.next > p.seq + 1 HAVING max(p.next) IS NOT NULL;

-- Deletes one batch of the oldest events: of those numbered above `after_seq` the lowest
-- numbers, at most `batch`, up to the first that is not older than `older_than`. Returns how
-- many, and the highest of them; when it was a full batch, the caller comes again with
-- `last_seq` as the next `after_seq`, so as not to step over the index entries of the rows
-- just deleted, which an old snapshot somewhere in the database may keep.
--
-- One at a time: `purged` is NULL while somebody else is at it. This is not the order lock:
-- numbering and publishing never wait for a purge.
--
-- What somebody has locked ends the batch, too. It is not waited for, because that somebody
-- may be in no hurry; nor passed over, because what is left must have no holes: so the rows
-- are locked before they are deleted, as far as they can be had. An event without a number
-- is not touched: it has not been published yet.
-- Must be the only statement of its transaction, which is READ COMMITTED.
CREATE FUNCTION gateway.purge(older_than interval, batch integer, after_seq bigint DEFAULT 0,
                              OUT purged integer, OUT last_seq bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    young timestamptz := clock_timestamp() - older_than;
BEGIN
    IF NOT pg_try_advisory_xact_lock(1885827955, 2) THEN
        RETURN;
    END IF;

    WITH oldest AS MATERIALIZED (
        SELECT e.ctid AS place, e.seq, e.created_at < young AS is_old
          FROM gateway.events e WHERE e.seq > after_seq ORDER BY e.seq LIMIT batch
    ), free AS MATERIALIZED (
        SELECT o.place, o.seq FROM oldest o, gateway.events e
         WHERE o.is_old AND e.ctid = o.place FOR UPDATE OF e SKIP LOCKED
    ), kept AS MATERIALIZED (
        SELECT min(o.seq) AS first_seq FROM oldest o
         WHERE o.seq NOT IN (SELECT f.seq FROM free f)
    ), gone AS (
        DELETE FROM gateway.events e USING free f, kept k
         WHERE e.ctid = f.place AND (f.seq < k.first_seq OR k.first_seq IS NULL)
        RETURNING e.seq
    )
    SELECT count(*), max(g.seq) INTO purged, last_seq FROM gone g;

    DELETE FROM gateway.purges p WHERE p.seq < (SELECT max(m.seq) FROM gateway.purges m);
END
$$;

REVOKE EXECUTE ON FUNCTION gateway.purge(interval, integer, bigint) FROM PUBLIC;
