-- 0011_groups: consumer groups. Each event of a channel goes to one consumer of a group, for
-- the time of a lease; it is acknowledged, or it goes to another.
--
--     gateway.events      ... 41  42  43  44  45  46          of one channel
--                               |           |
--                        begins_after    position             of one group
--     gateway.deliveries       42  43  44                     a row for each that was handed out
--
-- An event is to be handed out if its seq is above the position, which is the newest delivery
-- of the group: in the order of seq everything below it has been handed out, because whoever
-- sees a seq sees all smaller ones. Only events with a number are there for a group.
--
-- A delivery is open until it is acknowledged or dead. An open one is due at the end of its
-- lease, or when it was given back; then the next claim hands it out again, as its next
-- attempt, under a new lease. Its id, '<seq>.<attempt>.<lease>', is known to its holder alone,
-- and good for as long as it has not been handed to somebody else.
--
-- Always true:
--   - claims of one group come one after the other: they hold the lock of its row in
--     gateway.groups until they are committed. Claims that find nothing take no lock, and
--     write nothing.
--   - who acknowledges holds the lock of his delivery alone, and keeps nobody from claiming,
--     however long his transaction is open.
--   - every row that says what happened is written by the transaction that did it. A claim
--     that is lost in a crash is handed out again, with a new lease.
--
-- What a role needs:
--   worker    USAGE ON SCHEMA gateway, EXECUTE on claim, ack, nack, and result if it asks.
--             These four run with the rights of their owner (SECURITY DEFINER): with rights
--             on the tables a worker could acknowledge for others, and move a group where it
--             likes; so it can do what the functions do. Nobody may call them unless the
--             operator says so.
--   gateway   as ever: owner of the schema, or ALL on its tables and sequences, and EXECUTE
--             on its functions

CREATE TABLE gateway.groups (
    id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel      text COLLATE "C" NOT NULL,
    name         text COLLATE "C" NOT NULL,
    begins_after bigint NOT NULL,      -- what came up to here is none of the group's
    max_attempts integer NOT NULL DEFAULT 5,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),

    UNIQUE (channel, name),
    -- There must be room for '.dead' behind it.
    CONSTRAINT channel_length CHECK (octet_length(channel) BETWEEN 1 AND 250),
    CONSTRAINT channel_characters CHECK (channel !~ '[\x01-\x1f\x7f-\x9f]|\*$'),
    CONSTRAINT name_length CHECK (octet_length(name) BETWEEN 1 AND 255),
    CONSTRAINT name_characters CHECK (name !~ '[\x01-\x1f\x7f-\x9f]|\*$'),
    CONSTRAINT max_attempts_range CHECK (max_attempts BETWEEN 1 AND 1000000)
);

-- No reference to gateway.groups: that would be a lock on the group's row for each delivery,
-- and a group with a million deliveries could not be removed in a moment.
CREATE TABLE gateway.deliveries (
    group_id integer NOT NULL,
    seq      bigint NOT NULL,
    attempt  integer NOT NULL,
    lease    text COLLATE "C",         -- NULL: its holder has given it back
    due_at   timestamptz NOT NULL,     -- while it is open: when it is handed out again
    reason   text,                     -- why the last attempt ended without an acknowledgement
    acked_at timestamptz,
    dead     boolean NOT NULL DEFAULT false,
    result   json,

    PRIMARY KEY (group_id, seq),
    CONSTRAINT result_length CHECK (octet_length(result::text) <= 1048576)
);
COMMENT ON TABLE gateway.deliveries IS
    'What was handed out to which group; a row goes with its event.';

CREATE INDEX deliveries_open ON gateway.deliveries (group_id, due_at)
    WHERE acked_at IS NULL AND NOT dead;
CREATE INDEX deliveries_dead ON gateway.deliveries (group_id, seq) WHERE dead;

-- Where the open deliveries of a group begin. An old snapshot somewhere in the database
-- keeps the entries of deliveries_open that were acknowledged long ago; claims begin their look
-- above them. Only the newest row counts: rows are added, about one a second, and deleted,
-- never updated, since a row that is updated all day is slower to find each time.
--
-- Who makes a delivery due sooner than its lease says (nack, release) holds the advisory lock
-- (1885827956, id of the group), shared, until that can be seen. A claim moves the floor only
-- if it could have had that lock alone: then all of them are seen, and those to come are due
-- later than its look. Nobody waits for it but for moments.
CREATE TABLE gateway.floors (
    group_id integer,
    due_from timestamptz,
    PRIMARY KEY (group_id, due_from)
);

-- Events that were deleted before they had been acknowledged: their sum counts. Rows are added,
-- so that nobody who deletes waits for another, and put together by retention.
CREATE TABLE gateway.losses (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_id integer NOT NULL,
    events   bigint NOT NULL
);
CREATE INDEX losses_by_group ON gateway.losses (group_id);

-- Who waits for the acknowledgement of an event: a gateway with a POST that is not answered
-- yet. It is told by a NOTIFY 'gateway_acks' with '<seq> <group>', if its row can be seen when
-- the acknowledgement is made; so the row is written in the transaction that publishes the
-- event, or the waiter looks at gateway.result() again.
CREATE TABLE gateway.waits (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    seq        bigint NOT NULL,
    group_name text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX waits_by_event ON gateway.waits (seq, group_name);

-- The tables of 0010_watch that cannot be watched, and these.
CREATE OR REPLACE FUNCTION gateway.own_tables() RETURNS name[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT '{deliveries,events,floors,groups,idempotency_keys,incarnations,losses,migrations,'
           'purges,sweeps,waits}'::name[]
$$;

-- What a claim returns.
CREATE TYPE gateway.claimed AS (
    id         text,        -- of the delivery: '<seq>.<attempt>.<lease>'
    seq        bigint,
    attempt    integer,     -- 1 the first time
    channel    text,
    type       text,
    data       json,
    created_at timestamptz
);


-- ---- groups ----

-- How far the group has been handed out.
CREATE FUNCTION gateway.group_position(of_group gateway.groups) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN greatest(of_group.begins_after,
                    (SELECT d.seq FROM gateway.deliveries d WHERE d.group_id = of_group.id
                      ORDER BY d.seq DESC LIMIT 1));
END
$$;

-- No open delivery of the group is due before this.
CREATE FUNCTION gateway.group_floor(of_group integer) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce((SELECT f.due_from FROM gateway.floors f WHERE f.group_id = of_group
                      ORDER BY f.due_from DESC LIMIT 1), '-infinity');
END
$$;

-- Makes a group, unless somebody else has just made it.
CREATE FUNCTION gateway.make_group(of_channel text, group_name text, start text,
                                   max_attempts integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made gateway.groups;
BEGIN
    IF octet_length(of_channel) NOT BETWEEN 1 AND 250
       OR of_channel ~ '[\x01-\x1f\x7f-\x9f]|\*$' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE =
            'the channel of a group is 1 to 250 bytes without control characters, and no '
            'prefix with * behind it';
    END IF;
    IF octet_length(group_name) NOT BETWEEN 1 AND 255
       OR group_name ~ '[\x01-\x1f\x7f-\x9f]|\*$' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE =
            'the name of a group is 1 to 255 bytes without control characters, and does not '
            'end in *';
    END IF;

    INSERT INTO gateway.groups (channel, name, begins_after, max_attempts)
    VALUES (of_channel, group_name,
            CASE start WHEN 'earliest' THEN 0 WHEN 'now' THEN coalesce(gateway.newest_seq(), 0)
                       ELSE least(start::bigint, coalesce(gateway.newest_seq(), 0)) END,
            coalesce(make_group.max_attempts, 5))
    ON CONFLICT DO NOTHING
    RETURNING * INTO made;
    IF made.id IS NOT NULL THEN
        INSERT INTO gateway.floors (group_id, due_from) VALUES (made.id, made.created_at);
    END IF;
END
$$;

-- Removes a group; false: there was none. Its deliveries go with the next look of retention.
CREATE FUNCTION gateway.remove_group(channel text, group_name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    removed integer;
BEGIN
    DELETE FROM gateway.groups g
     WHERE g.channel = remove_group.channel AND g.name = group_name
    RETURNING g.id INTO removed;
    DELETE FROM gateway.floors f WHERE f.group_id = removed;
    DELETE FROM gateway.losses l WHERE l.group_id = removed;
    RETURN removed IS NOT NULL;
END
$$;


-- ---- handing out ----

-- The next events that the group has not been handed, at most `max`, in a short range of
-- events_by_channel: written so that the planner has no other way.
CREATE FUNCTION gateway.new_events(of_group gateway.groups, max integer) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    after bigint := gateway.group_position(of_group);
BEGIN
    RETURN ARRAY(
        SELECT e.seq FROM gateway.events e
         WHERE e.seq IS NOT NULL AND (e.channel, e.seq) > (of_group.channel, after)
           AND (e.channel, e.seq) <= (of_group.channel, 9223372036854775807)
         ORDER BY e.channel, e.seq LIMIT max);
END
$$;

-- The longest beginning of `seqs` whose data is not over `max_bytes`, and at least one if
-- `at_least_one`; and what is left of max_bytes.
CREATE FUNCTION gateway.fitting(seqs bigint[], max_bytes bigint, at_least_one boolean,
                                OUT fit bigint[], OUT bytes_left bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT coalesce(array_agg(w.seq ORDER BY w.seq), '{}'),
           max_bytes - coalesce(max(w.bytes), 0)
      INTO fit, bytes_left
      FROM (SELECT s.seq, sum(octet_length(e.data::text)) OVER (ORDER BY s.seq) AS bytes
              FROM unnest(seqs) AS s (seq) CROSS JOIN LATERAL
                   (SELECT v.data FROM gateway.events v WHERE v.seq = s.seq OFFSET 0) e) w
     WHERE w.bytes <= max_bytes OR at_least_one AND w.seq = seqs[1];
END
$$;

-- Where the rows of these deliveries of one group are.
CREATE FUNCTION gateway.delivery_places(of_group integer, seqs bigint[]) RETURNS tid[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ARRAY(
        SELECT d.place FROM unnest(seqs) AS u (seq) CROSS JOIN LATERAL
               (SELECT v.ctid AS place FROM gateway.deliveries v
                 WHERE v.group_id = of_group AND v.seq = u.seq OFFSET 0) d);
END
$$;

-- These open deliveries of one group, whose rows the caller has locked, are not handed out any
-- more. Each event is published on '<channel>.dead', with the reason; or it is gone itself, and
-- counts as lost.
CREATE FUNCTION gateway.bury(of_group integer, seqs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lost   integer;
    client text := current_setting('gateway.client_id', true);
BEGIN
    DELETE FROM gateway.deliveries d
     WHERE d.ctid = ANY (gateway.delivery_places(of_group, seqs))
       AND NOT EXISTS (SELECT FROM gateway.events e WHERE e.seq = d.seq);
    GET DIAGNOSTICS lost = ROW_COUNT;
    IF lost > 0 THEN
        INSERT INTO gateway.losses (group_id, events) VALUES (of_group, lost);
    END IF;

    -- An event that leaves no room for the rest is told without its data. The message is
    -- nobody's own: who happens to claim is told of it like everybody.
    PERFORM set_config('gateway.client_id', '', true);
    WITH dead AS (
        UPDATE gateway.deliveries d
           SET dead = true, lease = NULL, reason = coalesce(d.reason, 'lease over')
         WHERE d.ctid = ANY (gateway.delivery_places(of_group, seqs))
        RETURNING d.seq, d.attempt, d.reason
    )
    INSERT INTO gateway.events (channel, type, data)
    SELECT g.channel || '.dead', 'dead', json_build_object(
               'id', d.seq::text, 'channel', g.channel, 'group', g.name, 'type', e.type,
               'attempts', d.attempt, 'reason', d.reason, 'data',
               CASE WHEN octet_length(e.data::text) <= 67000000 THEN e.data END)
      FROM gateway.groups g CROSS JOIN dead d CROSS JOIN LATERAL
           (SELECT v.type, v.data FROM gateway.events v WHERE v.seq = d.seq OFFSET 0) e
     WHERE g.id = of_group
     ORDER BY d.seq;
    PERFORM set_config('gateway.client_id', coalesce(client, ''), true);

    PERFORM pg_notify('gateway_acks', w.seq || ' ' || w.group_name)
       FROM gateway.groups g CROSS JOIN unnest(seqs) AS u (seq)
       JOIN gateway.waits w ON w.seq = u.seq AND w.group_name = g.name
      WHERE g.id = of_group;
END
$$;

-- What was due at the `moment`: the lowest numbers, at most `max`, among the thousand that have
-- been due the longest, as many as their data fits. Those among them that have used up their
-- attempts are buried, a hundred at a time. All rows are locked before. What somebody else has
-- locked is passed over: he is about to acknowledge it, or to give it back.
CREATE FUNCTION gateway.claim_due(of_group gateway.groups, due_from timestamptz,
                                  moment timestamptz, max integer, max_bytes bigint,
                                  OUT due bigint[], OUT bytes_left bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    used_up bigint[];
BEGIN
    WITH near AS MATERIALIZED (
        SELECT d.ctid AS place, d.seq, d.attempt < of_group.max_attempts AS again
          FROM gateway.deliveries d
         WHERE d.group_id = of_group.id AND d.acked_at IS NULL AND NOT d.dead
           AND d.due_at >= due_from AND d.due_at <= moment
         ORDER BY d.due_at LIMIT 1000
    ), locked_due AS MATERIALIZED (
        SELECT d.seq FROM (SELECT * FROM near n WHERE n.again ORDER BY n.seq) n,
                          gateway.deliveries d
         WHERE d.ctid = n.place AND d.acked_at IS NULL AND NOT d.dead AND d.due_at <= moment
         ORDER BY n.seq LIMIT max FOR NO KEY UPDATE OF d SKIP LOCKED
    ), locked_used_up AS MATERIALIZED (
        SELECT d.seq FROM (SELECT * FROM near n WHERE NOT n.again ORDER BY n.seq) n,
                          gateway.deliveries d
         WHERE d.ctid = n.place AND d.acked_at IS NULL AND NOT d.dead AND d.due_at <= moment
         ORDER BY n.seq LIMIT 100 FOR NO KEY UPDATE OF d SKIP LOCKED
    )
    SELECT ARRAY(SELECT l.seq FROM locked_due l ORDER BY l.seq),
           ARRAY(SELECT l.seq FROM locked_used_up l ORDER BY l.seq)
      INTO due, used_up;

    -- What is not there any more cannot be handed out.
    used_up := used_up || ARRAY(
        SELECT u.seq FROM unnest(due) AS u (seq)
         WHERE NOT EXISTS (SELECT FROM gateway.events e WHERE e.seq = u.seq));
    due := ARRAY(SELECT u.seq FROM unnest(due) AS u (seq) WHERE u.seq <> ALL (used_up));
    IF used_up <> '{}' THEN
        PERFORM gateway.bury(of_group.id, used_up);
    END IF;
    SELECT f.fit, f.bytes_left INTO due, bytes_left
      FROM gateway.fitting(due, max_bytes, true) f;
END
$$;

-- The caller is claiming, has looked at what is due from `due_from` to `moment`, and has
-- handed it out: where the next look begins.
CREATE FUNCTION gateway.raise_floor(of_group integer, due_from timestamptz,
                                    moment timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    raised timestamptz;
BEGIN
    -- With a snapshot of its own time only: one that is older does not see what was made due.
    IF current_setting('transaction_isolation') <> 'read committed'
       OR NOT pg_try_advisory_lock(1885827956, of_group) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_unlock(1885827956, of_group);

    SELECT least(min(d.due_at), moment) INTO raised FROM gateway.deliveries d
     WHERE d.group_id = of_group AND d.acked_at IS NULL AND NOT d.dead
       AND d.due_at >= due_from AND d.due_at <= moment;
    IF raised > due_from THEN
        DELETE FROM gateway.floors f
         WHERE f.group_id = of_group AND f.due_from = raise_floor.due_from;
        INSERT INTO gateway.floors (group_id, due_from) VALUES (of_group, raised);
    END IF;
END
$$;

-- What is wrong with the arguments of a claim; NULL: nothing.
CREATE FUNCTION gateway.check_claim(channel text, group_name text, max integer,
                                    lease interval, start text, max_attempts integer,
                                    max_bytes bigint) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE
        WHEN channel IS NULL THEN 'the channel is NULL'
        WHEN group_name IS NULL THEN 'the name of the group is NULL'
        WHEN (max BETWEEN 1 AND 1000) IS NOT TRUE THEN 'max is from 1 to 1000'
        WHEN (lease > '0' AND lease <= '1 day') IS NOT TRUE
            THEN 'a lease is longer than 0 and not longer than a day'
        WHEN (start ~ '^(now|earliest|0|[1-9][0-9]{0,17})$') IS NOT TRUE
            THEN 'start is ''now'', ''earliest'' or the id of an event'
        WHEN max_attempts NOT BETWEEN 1 AND 1000000 THEN 'max_attempts is from 1 to 1000000'
        WHEN (max_bytes > 0) IS NOT TRUE THEN 'max_bytes is larger than 0'
    END;
END
$$;

-- Hands out up to `max` events of the channel to the caller, for as long as the `lease`: first
-- what is due again, lowest number first, then what is new, in order; at least one if there is
-- any, and then as many as their data fits into `max_bytes`. What has used up its attempts is
-- published on '<channel>.dead' instead.
--
-- A group that is not there is made: it begins with what is numbered from now on, or with the
-- 'earliest' that is kept, and its events are handed out `max_attempts` times, 5 unless given.
-- Given to a group that is there, max_attempts is changed.
--
-- To be committed at once: until then nobody else can claim for this group. For their sake its
-- commit does not wait for the disk, either, if nothing was written before it: a claim that is
-- lost in a crash has not happened, and its events are handed out again. An acknowledgement in
-- the same transaction takes that back.
CREATE FUNCTION gateway.claim(channel text, group_name text, max integer DEFAULT 1,
                              lease interval DEFAULT '30 s', start text DEFAULT 'now',
                              max_attempts integer DEFAULT NULL,
                              max_bytes bigint DEFAULT 1048576)
RETURNS SETOF gateway.claimed
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    wrong      text := gateway.check_claim(channel, group_name, max, lease, start,
                                           max_attempts, max_bytes);
    alone      boolean := pg_current_xact_id_if_assigned() IS NULL;
    this_group gateway.groups;
    due_from   timestamptz;
    moment     timestamptz;
    is_due     boolean;
    due        bigint[] := '{}';
    new        bigint[] := '{}';
    bytes_left bigint := max_bytes;
    token      text;
BEGIN
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = wrong;
    END IF;

    LOOP
        SELECT g.* INTO this_group FROM gateway.groups g
         WHERE g.channel = claim.channel AND g.name = group_name;
        IF NOT FOUND THEN
            PERFORM gateway.make_group(channel, group_name, start, max_attempts);
            CONTINUE;
        END IF;
        IF max_attempts <> this_group.max_attempts THEN
            UPDATE gateway.groups g SET max_attempts = claim.max_attempts
             WHERE g.id = this_group.id;
        END IF;

        moment := clock_timestamp();
        due_from := gateway.group_floor(this_group.id);
        is_due := EXISTS (SELECT FROM gateway.deliveries d
                           WHERE d.group_id = this_group.id
                             AND d.acked_at IS NULL AND NOT d.dead
                             AND d.due_at >= due_from AND d.due_at <= moment);
        IF NOT is_due AND gateway.new_events(this_group, 1) = '{}' THEN
            RETURN;
        END IF;

        SELECT g.* INTO this_group FROM gateway.groups g WHERE g.id = this_group.id
           FOR NO KEY UPDATE;
        EXIT WHEN FOUND; -- else it was removed meanwhile
    END LOOP;

    IF alone AND current_setting('synchronous_commit') <> 'off' THEN
        PERFORM set_config('gateway.durable', current_setting('synchronous_commit'), true),
                set_config('synchronous_commit', 'off', true);
    END IF;
    due_from := gateway.group_floor(this_group.id);
    moment := greatest(clock_timestamp(), due_from);
    token := left(replace(gen_random_uuid()::text, '-', ''), 12);
    IF is_due THEN
        SELECT c.due, c.bytes_left INTO due, bytes_left
          FROM gateway.claim_due(this_group, due_from, moment, max, max_bytes) c;
        UPDATE gateway.deliveries d
           SET attempt = d.attempt + 1, lease = token, due_at = moment + claim.lease,
               reason = NULL
         WHERE d.ctid = ANY (gateway.delivery_places(this_group.id, due));
    END IF;
    IF cardinality(due) < max AND bytes_left > 0 THEN
        new := gateway.new_events(this_group, max - cardinality(due));
        IF cardinality(due || new) > 1 THEN -- one alone is handed out, whatever it weighs
            SELECT f.fit INTO new FROM gateway.fitting(new, bytes_left, due = '{}') f;
        END IF;
        -- Nobody else is at it. A claim with an older snapshot is told so here (40001).
        INSERT INTO gateway.deliveries (group_id, seq, attempt, lease, due_at)
        SELECT this_group.id, n.seq, 1, token, moment + claim.lease FROM unnest(new) AS n (seq)
        ON CONFLICT DO NOTHING;
    END IF;
    IF due_from < moment - interval '1 s' THEN
        PERFORM gateway.raise_floor(this_group.id, due_from, moment);
    END IF;

    RETURN QUERY
    SELECT format('%s.%s.%s', h.seq, d.attempt, token), h.seq, d.attempt, e.channel, e.type,
           e.data, e.created_at
      FROM unnest(due || new) WITH ORDINALITY AS h (seq, place) CROSS JOIN LATERAL
           (SELECT v.attempt FROM gateway.deliveries v
             WHERE v.group_id = this_group.id AND v.seq = h.seq OFFSET 0) d CROSS JOIN LATERAL
           (SELECT * FROM gateway.events v WHERE v.seq = h.seq OFFSET 0) e
     ORDER BY h.place;
END
$$;

REVOKE EXECUTE ON FUNCTION
    gateway.group_position(gateway.groups), gateway.group_floor(integer),
    gateway.make_group(text, text, text, integer), gateway.remove_group(text, text),
    gateway.new_events(gateway.groups, integer), gateway.fitting(bigint[], bigint, boolean),
    gateway.delivery_places(integer, bigint[]), gateway.bury(integer, bigint[]),
    gateway.claim_due(gateway.groups, timestamptz, timestamptz, integer, bigint),
    gateway.raise_floor(integer, timestamptz, timestamptz),
    gateway.check_claim(text, text, integer, interval, text, integer, bigint),
    gateway.claim(text, text, integer, interval, text, integer, bigint)
    FROM PUBLIC;
