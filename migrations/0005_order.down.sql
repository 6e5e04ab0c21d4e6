-- 0005_order: takes it back: the functions are those of 0001_events again.
-- Numbers up to `batch` committed rows; returns how many. Caller holds the order lock, in
-- a READ COMMITTED transaction that has inserted no row without a number.
--
-- A transaction has finished since the last sweep if it began after it (its number is at
-- least xmax of `done`) or was running then (it is in xip of `done`): two short ranges of
-- an index, however many rows an open transaction holds. A row that somebody has locked is
-- passed over rather than waited for; `stragglers` finds it later.
CREATE OR REPLACE FUNCTION gateway.sweep_locked(batch integer, stragglers boolean) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off AS $$
DECLARE
    this_step    bigint;
    done_before  pg_snapshot;
    done_now     pg_snapshot;
    was_running  xid8[];
    numbered     integer;
BEGIN
    SELECT s.step, s.done, coalesce(s.target, pg_current_snapshot())
      INTO STRICT this_step, done_before, done_now
      FROM gateway.sweeps s ORDER BY s.step DESC LIMIT 1;
    was_running := ARRAY(SELECT x FROM pg_snapshot_xip(done_before) x
                         WHERE pg_visible_in_snapshot(x, done_now));

    WITH waiting AS MATERIALIZED (
        SELECT e.ctid AS place, e.id FROM gateway.events e
         WHERE e.seq IS NULL AND e.xid >= pg_snapshot_xmax(done_before)
           AND e.xid < pg_snapshot_xmax(done_now)
           AND pg_visible_in_snapshot(e.xid, done_now)
        UNION ALL
        SELECT e.ctid, e.id FROM gateway.events e
         WHERE e.seq IS NULL AND e.xid = ANY (was_running)
        UNION ALL
        SELECT e.ctid, e.id FROM gateway.events e
         WHERE stragglers AND e.seq IS NULL
           AND (e.xid < pg_snapshot_xmax(done_before)
                AND pg_visible_in_snapshot(e.xid, done_before)
                OR e.xid >= pg_snapshot_xmax(done_now))
    ), next AS MATERIALIZED (
        SELECT w.place, w.id FROM waiting w ORDER BY w.id LIMIT batch
    ), free AS MATERIALIZED (
        SELECT e.ctid AS place, e.id FROM next, gateway.events e
         WHERE e.ctid = next.place FOR NO KEY UPDATE OF e SKIP LOCKED
    ), given AS MATERIALIZED (
        SELECT f.place, nextval('gateway.events_seq') AS seq
          FROM (SELECT place FROM free ORDER BY id) f
    ), done AS (
        UPDATE gateway.events e SET seq = given.seq FROM given WHERE e.ctid = given.place
        RETURNING 1
    )
    -- All that was looked at counts, so that locked rows do not look like the last batch.
    SELECT (SELECT count(*) FROM next) INTO numbered FROM (SELECT count(*) FROM done) d;

    IF numbered < batch THEN
        INSERT INTO gateway.sweeps (step, done) VALUES (this_step + 1, done_now);
    ELSE
        INSERT INTO gateway.sweeps (step, done, target)
        VALUES (this_step + 1, done_before, done_now);
    END IF;
    DELETE FROM gateway.sweeps s WHERE s.step <= this_step;
    RETURN numbered;
END
$$;

-- Are there rows that the snapshots do not explain: locked when they were looked at, or
-- copied in with transaction numbers of their own? Takes no lock, because it may have to
-- step over many dead entries of the index while an old snapshot somewhere keeps them.
CREATE OR REPLACE FUNCTION gateway.sweep_has_stragglers() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now_snapshot pg_snapshot := pg_current_snapshot();
    done_before  pg_snapshot;
BEGIN
    SELECT s.done INTO done_before FROM gateway.sweeps s ORDER BY s.step DESC LIMIT 1;
    RETURN EXISTS (SELECT FROM gateway.events e
                   WHERE e.seq IS NULL AND e.xid < pg_snapshot_xmax(done_before)
                     AND pg_visible_in_snapshot(e.xid, done_before))
        OR EXISTS (SELECT FROM gateway.events e
                   WHERE e.seq IS NULL AND e.xid >= pg_snapshot_xmax(now_snapshot));
END
$$;

-- Takes the order lock until the end of the transaction.
CREATE OR REPLACE FUNCTION gateway.lock_order() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known text;
    here  text := gateway.identity();
BEGIN
    PERFORM pg_advisory_xact_lock(1885827955, 1);

    -- An id that was seen, lost in a crash and given again would break every resume: a
    -- number must be durable before anyone can see it.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;

    SELECT i.identity INTO known FROM gateway.incarnations i ORDER BY i.base DESC LIMIT 1;
    IF known IS DISTINCT FROM here THEN
        PERFORM gateway.begin_incarnation(here);
    END IF;
END
$$;

DROP FUNCTION gateway.leap_ahead();
