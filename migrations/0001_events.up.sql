-- 0001_events: the table of events, and the one order they come out in.
--
-- Invariant. A seq is assigned only by a transaction that holds the order lock until its
-- commit is visible. So when seq N can be seen, every smaller seq that will ever exist can
-- be seen too, and "WHERE seq > N ORDER BY seq" is an exact resume, for everyone.
--
-- There are two assigners, both called by gateways, each in a transaction of its own:
--   publish_batch   inserts rows already numbered (POST /events)
--   sweep           numbers rows that applications inserted themselves, after their commit
-- An application's transaction takes no lock of ours, may stay open for as long as it
-- likes, and holds up nobody.
--
-- What a role needs:
--   application   USAGE ON SCHEMA gateway, INSERT (channel, type, data) ON gateway.events
--   gateway       owner of the schema, or: USAGE, ALL on its tables and sequences, and
--                 EXECUTE on its functions

CREATE TABLE gateway.events (
    seq        bigint,
    id         bigint GENERATED ALWAYS AS IDENTITY,
    xid        xid8 NOT NULL DEFAULT pg_current_xact_id(),
    channel    text COLLATE "C" NOT NULL DEFAULT 'events',
    type       text COLLATE "C" NOT NULL DEFAULT 'message',
    data       json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT seq_positive CHECK (seq > 0),
    CONSTRAINT created_at_finite CHECK (isfinite(created_at)),
    CONSTRAINT channel_length CHECK (octet_length(channel) BETWEEN 1 AND 255),
    CONSTRAINT channel_characters CHECK (channel !~ '[\x01-\x1f\x7f-\x9f]|\*$'),
    CONSTRAINT type_length CHECK (octet_length(type) BETWEEN 1 AND 255),
    CONSTRAINT type_characters CHECK (type !~ '[\x01-\x1f\x7f-\x9f]'),
    -- The gateway says these two things itself.
    CONSTRAINT type_reserved CHECK (type NOT IN ('gap', 'checkpoint')),
    CONSTRAINT data_length CHECK (octet_length(data::text) <= 67108864)
);

COMMENT ON TABLE gateway.events IS
    'INSERT (channel, type, data) publishes an event at the commit of the transaction.';
COMMENT ON COLUMN gateway.events.seq IS
    'Place in the one order, which is the id in streams; NULL until numbered.';
COMMENT ON COLUMN gateway.events.id IS
    'Order of insertion, which is not the order of commits: never a place to resume from.';
COMMENT ON COLUMN gateway.events.xid IS
    'The transaction that inserted the row: how a sweep finds what was committed since.';

CREATE UNIQUE INDEX events_by_seq ON gateway.events (seq) WHERE seq IS NOT NULL;
CREATE INDEX events_by_channel ON gateway.events (channel, seq) WHERE seq IS NOT NULL;
CREATE INDEX events_unnumbered ON gateway.events (xid, id) WHERE seq IS NULL;

-- CACHE must stay 1: a session that kept numbers back would hand them out too late.
CREATE SEQUENCE gateway.events_seq AS bigint CACHE 1;

-- One row for each life of this table. A promoted standby, a restored dump, a cloned
-- database: none of them may hand out numbers again that its predecessor gave to clients
-- and lost. So a new life begins with the next block of 2^40 numbers.
CREATE TABLE gateway.incarnations (
    base     bigint PRIMARY KEY,   -- every seq of this life is larger
    identity text NOT NULL,        -- gateway.identity() in this life
    began_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What has been numbered: every transaction that `done` shows as finished. `target` is the
-- snapshot that the batches under way are working towards. Only the newest row counts. A
-- new row for each step, read from the end of the index, because an old snapshot somewhere
-- in the database keeps dead rows from being removed, and a row updated a thousand times a
-- second would then be slower to find each time.
CREATE TABLE gateway.sweeps (
    step   bigint PRIMARY KEY,
    done   pg_snapshot NOT NULL,
    target pg_snapshot
);


-- Which cluster, on which timeline, which database and which table in it: changes with a
-- promotion or a point-in-time recovery (timeline), with a dump restored elsewhere or a
-- pg_upgrade (system identifier), with a database cloned (database) and with a dump restored
-- in place (table).
CREATE FUNCTION gateway.identity() RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%s/%s/%s/%s', (SELECT system_identifier FROM pg_control_system()),
                  left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
                  (SELECT oid FROM pg_database WHERE datname = current_database()),
                  'gateway.events'::regclass::oid)
$$;

-- Begins a new life: a new block of numbers, and every row still without one is taken up
-- again, since the transaction numbers in it are another cluster's. Caller holds the lock.
CREATE FUNCTION gateway.begin_incarnation(new_identity text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    new_base bigint;
BEGIN
    SELECT ((last_value >> 40) + 1) << 40 INTO new_base FROM gateway.events_seq;
    PERFORM setval('gateway.events_seq', new_base);
    INSERT INTO gateway.incarnations (base, identity) VALUES (new_base, new_identity);

    -- '3' is the first ordinary transaction number: finished in every snapshot.
    UPDATE gateway.events SET xid = '3' WHERE seq IS NULL;
    DELETE FROM gateway.sweeps;
    INSERT INTO gateway.sweeps (step, done) VALUES (1, '1:1:');
END
$$;

-- Takes the order lock until the end of the transaction.
CREATE FUNCTION gateway.lock_order() RETURNS void
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

-- May anything be waiting for a number? Cheap, and takes no lock: two looks at an index
-- that holds nothing but rows without a number. Rows of transactions still open are passed
-- by, because `done` shows them as running.
CREATE FUNCTION gateway.sweep_needed() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now_snapshot pg_snapshot := pg_current_snapshot();
    done_before  pg_snapshot;
    was_running  xid8[];
BEGIN
    SELECT s.done INTO done_before FROM gateway.sweeps s ORDER BY s.step DESC LIMIT 1;
    IF EXISTS (SELECT FROM gateway.events e
               WHERE e.seq IS NULL AND e.xid >= pg_snapshot_xmax(done_before)) THEN
        RETURN true;
    END IF;

    was_running := ARRAY(SELECT x FROM pg_snapshot_xip(done_before) x
                         WHERE pg_visible_in_snapshot(x, now_snapshot));
    RETURN cardinality(was_running) > 0
       AND EXISTS (SELECT FROM gateway.events e
                   WHERE e.seq IS NULL AND e.xid = ANY (was_running));
END
$$;

-- Nothing waits for a number: says so, in order that the rows of a transaction which has
-- begun since, and stays open, are looked at once and then passed by. Caller holds the order
-- lock and has called sweep_needed(); the snapshot must be older than that look.
CREATE FUNCTION gateway.sweep_advance(looked pg_snapshot) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    this_step bigint;
BEGIN
    INSERT INTO gateway.sweeps (step, done)
    SELECT max(s.step) + 1, looked FROM gateway.sweeps s
    RETURNING step - 1 INTO this_step;
    DELETE FROM gateway.sweeps s WHERE s.step <= this_step;
END
$$;

-- Numbers up to `batch` committed rows; returns how many. Caller holds the order lock, in
-- a READ COMMITTED transaction that has inserted no row without a number.
--
-- A transaction has finished since the last sweep if it began after it (its number is at
-- least xmax of `done`) or was running then (it is in xip of `done`): two short ranges of
-- an index, however many rows an open transaction holds. A row that somebody has locked is
-- passed over rather than waited for; `stragglers` finds it later.
CREATE FUNCTION gateway.sweep_locked(batch integer, stragglers boolean) RETURNS integer
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
CREATE FUNCTION gateway.sweep_has_stragglers() RETURNS boolean
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

-- Numbers up to `batch` rows that applications have committed; returns how many, so that
-- the caller comes again at once when it was a full batch. Costs next to nothing when
-- there is none. `thorough` looks for stragglers, too, and notes how far it has come even
-- if there is nothing to number; now and then is enough.
-- Must be the only statement of its transaction, which is READ COMMITTED.
CREATE FUNCTION gateway.sweep(batch integer DEFAULT 5000, thorough boolean DEFAULT false)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before_look pg_snapshot;
    stragglers  boolean := thorough AND gateway.sweep_has_stragglers();
    numbered    integer;
BEGIN
    IF NOT thorough AND NOT gateway.sweep_needed() THEN
        RETURN 0;
    END IF;

    PERFORM gateway.lock_order();
    before_look := pg_current_snapshot();
    IF NOT stragglers AND NOT gateway.sweep_needed() THEN
        PERFORM gateway.sweep_advance(before_look);
        RETURN 0;
    END IF;
    numbered := gateway.sweep_locked(batch, stragglers);
    IF numbered > 0 THEN
        PERFORM pg_notify('gateway_events', '');
    END IF;
    RETURN numbered;
END
$$;

-- Inserts events already numbered, in the order given: first_seq, first_seq + 1, ... What
-- others committed before is numbered first, so that it keeps its place. `xid` tells the
-- caller whose fate to ask for (pg_xact_status) if the answer to its COMMIT is lost.
-- Must be the first statement of a READ COMMITTED transaction, committed at once.
CREATE FUNCTION gateway.publish_batch(channels text[], types text[], datas text[],
                                      OUT first_seq bigint, OUT last_seq bigint,
                                      OUT xid xid8)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before_look pg_snapshot;
BEGIN
    PERFORM gateway.lock_order();
    before_look := pg_current_snapshot();
    IF gateway.sweep_needed() THEN
        PERFORM gateway.sweep_locked(5000, false);
    ELSE
        PERFORM gateway.sweep_advance(before_look);
    END IF;

    -- Rows that need no sweep need not wake a sweeper.
    PERFORM set_config('gateway.quiet', 'on', true);
    WITH inserted AS (
        INSERT INTO gateway.events (seq, channel, type, data)
        SELECT nextval('gateway.events_seq'), e.channel, e.type, e.data::json
          FROM (SELECT u.channel, u.type, u.data
                  FROM unnest(channels, types, datas) WITH ORDINALITY
                       AS u (channel, type, data, place)
                 ORDER BY u.place) e
        RETURNING seq
    )
    SELECT min(i.seq), max(i.seq) INTO first_seq, last_seq FROM inserted i;

    PERFORM pg_notify('gateway_events', '');
    xid := pg_current_xact_id();
END
$$;

-- Publishes one event at the commit of the caller's transaction: the same as an INSERT.
CREATE FUNCTION gateway.publish(channel text, data json, type text DEFAULT 'message')
RETURNS void
LANGUAGE sql AS $$
    INSERT INTO gateway.events (channel, type, data) VALUES (channel, type, data)
$$;

-- Tells the gateways, at the commit, that there is something to number. PostgreSQL cannot
-- PREPARE a transaction that has notified: one that will be prepared begins with
-- SET LOCAL gateway.quiet = on, and its rows are found within a second by themselves.
CREATE FUNCTION gateway.ring_sweeper() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('gateway_wake', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER ring_sweeper AFTER INSERT ON gateway.events FOR EACH STATEMENT
    WHEN (current_setting('gateway.quiet', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION gateway.ring_sweeper();
-- ALWAYS: also in sessions that replay what others did (session_replication_role).
ALTER TABLE gateway.events ENABLE ALWAYS TRIGGER ring_sweeper;

INSERT INTO gateway.incarnations (base, identity) VALUES (0, gateway.identity());
INSERT INTO gateway.sweeps (step, done) VALUES (1, '1:1:');

-- Anyone may publish whom the operator lets; only gateways number.
REVOKE EXECUTE ON FUNCTION gateway.begin_incarnation(text), gateway.lock_order(),
    gateway.sweep_needed(), gateway.sweep_has_stragglers(),
    gateway.sweep_advance(pg_snapshot),
    gateway.sweep_locked(integer, boolean),
    gateway.sweep(integer, boolean), gateway.publish_batch(text[], text[], text[])
    FROM PUBLIC;
