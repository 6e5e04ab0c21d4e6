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
--             These four run with the rights of their owner (SECURITY DEFINER), because a
--             worker with the tables in its hands could read every channel and acknowledge
--             for others; with the functions it can do what they do. Nobody may call them
--             unless the operator says so.
--   gateway   as ever: owner of the schema, or ALL on its tables and sequences, and EXECUTE
--             on its functions

-- The locks below wait for every open transaction that has written an event, and whoever
-- writes one meanwhile waits behind them. Better to give up soon and be run again.
SET LOCAL lock_timeout = '5s';

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

-- No open delivery of the group is due before this. An old snapshot somewhere in the database
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

-- Events that were deleted before they had been acknowledged.
CREATE TABLE gateway.losses (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_id integer NOT NULL,
    events   bigint NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp()
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

CREATE FUNCTION gateway.group_floor(of_group integer) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce((SELECT f.due_from FROM gateway.floors f WHERE f.group_id = of_group
                      ORDER BY f.due_from DESC LIMIT 1), '-infinity');
END
$$;

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
            CASE start WHEN 'earliest' THEN 0 ELSE coalesce(gateway.newest_seq(), 0) END,
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
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
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
        DELETE FROM gateway.floors f WHERE f.group_id = of_group AND f.due_from = raise_floor.due_from;
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
        WHEN (start IN ('now', 'earliest')) IS NOT TRUE THEN 'start is ''now'' or ''earliest'''
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
-- To be committed at once: until then nobody else can claim for this group. Whether its caller
-- waits for the disk is for the caller to say (synchronous_commit): a claim that is lost in a
-- crash has not happened, and its events are handed out again.
CREATE FUNCTION gateway.claim(channel text, group_name text, max integer DEFAULT 1,
                              lease interval DEFAULT '30 s', start text DEFAULT 'now',
                              max_attempts integer DEFAULT NULL,
                              max_bytes bigint DEFAULT 1048576)
RETURNS SETOF gateway.claimed
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET lock_timeout = '10s' SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    wrong      text := gateway.check_claim(channel, group_name, max, lease, start,
                                           max_attempts, max_bytes);
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

        due_from := gateway.group_floor(this_group.id);
        is_due := EXISTS (SELECT FROM gateway.deliveries d
                           WHERE d.group_id = this_group.id
                             AND d.acked_at IS NULL AND NOT d.dead
                             AND d.due_at >= due_from AND d.due_at <= clock_timestamp());
        IF NOT is_due AND gateway.new_events(this_group, 1) = '{}' THEN
            RETURN;
        END IF;

        SELECT g.* INTO this_group FROM gateway.groups g WHERE g.id = this_group.id
           FOR NO KEY UPDATE;
        EXIT WHEN FOUND; -- else it was removed meanwhile
    END LOOP;

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


-- ---- taking back ----

-- The parts of a delivery's id; NULLs: it is none.
CREATE FUNCTION gateway.parse_delivery(id text, OUT seq bigint, OUT attempt integer,
                                       OUT lease text)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parts text[] := regexp_match(id, '^([1-9][0-9]{0,18})\.([1-9][0-9]{0,8})\.([0-9a-z]{12})$');
BEGIN
    IF parts[1]::numeric <= 9223372036854775807 THEN
        seq := parts[1];
        attempt := parts[2];
        lease := parts[3];
    END IF;
END
$$;

-- What became of one delivery, for those who handle one: 0, or an exception.
CREATE FUNCTION gateway.raise_code(code integer, id text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF code = 404 THEN
        RAISE EXCEPTION USING ERRCODE = 'GW404',
            MESSAGE = format('%s was not delivered to this group, or is not kept any more', id);
    ELSIF code = 409 THEN
        RAISE EXCEPTION USING ERRCODE = 'GW409', MESSAGE = format(
            '%s is not held any more: it is acknowledged, given back or delivered again', id);
    ELSIF code = 400 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('not the id of a delivery: %L', left(id, 100)),
            HINT = 'It looks like 42.1.k3f90a2b7c1d, and is what claim() returned.';
    END IF;
END
$$;

-- Acknowledges deliveries: for each 0, or 404, 409, 400 as above. Everybody locks them in the
-- same order, so that nobody waits in a circle.
CREATE FUNCTION gateway.ack_all(ids text[], group_names text[], results json[])
RETURNS integer[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    codes integer[];
    each  record;
BEGIN
    -- An acknowledgement that was answered is not lost in a crash.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;

    FOR each IN
        SELECT a.*, d.held
          FROM (SELECT u.place, u.group_name, p.*, g.id AS group_id
                  FROM unnest(ids, group_names) WITH ORDINALITY AS u (id, group_name, place)
                 CROSS JOIN gateway.parse_delivery(u.id) p
                  LEFT JOIN LATERAL (SELECT v.channel FROM gateway.events v
                                      WHERE v.seq = p.seq OFFSET 0) e ON true
                  LEFT JOIN LATERAL (SELECT v.id FROM gateway.groups v
                                      WHERE v.channel = e.channel AND v.name = u.group_name
                                     OFFSET 0) g ON true
                 ORDER BY g.id, p.seq, u.place) a
          LEFT JOIN LATERAL (SELECT (v.attempt, v.lease) = (a.attempt, a.lease)
                                    AND v.acked_at IS NULL AND NOT v.dead AS held
                               FROM gateway.deliveries v
                              WHERE v.group_id = a.group_id AND v.seq = a.seq
                                FOR NO KEY UPDATE) d ON true
    LOOP
        IF each.seq IS NULL OR each.group_name IS NULL THEN
            codes[each.place] := 400;
        ELSIF each.held IS NOT TRUE THEN
            codes[each.place] := CASE WHEN each.held IS NULL THEN 404 ELSE 409 END;
        ELSE
            -- Asked for twice at once, it is done once.
            UPDATE gateway.deliveries d
               SET acked_at = clock_timestamp(), result = results[each.place], reason = NULL
             WHERE d.group_id = each.group_id AND d.seq = each.seq
               AND coalesce(d.acked_at) IS NULL; -- and not "is open", which has an index
            codes[each.place] := CASE WHEN FOUND THEN 0 ELSE 409 END;
            PERFORM pg_notify('gateway_acks', w.seq || ' ' || w.group_name)
               FROM gateway.waits w
              WHERE w.seq = each.seq AND w.group_name = each.group_name;
        END IF;
    END LOOP;
    RETURN coalesce(codes, '{}');
END
$$;

-- Acknowledges a delivery: it is done, and nobody will have it again. May be part of a
-- transaction that does the work itself: then both are done, or none.
-- GW404: that event was never delivered to that group (or is not kept any more).
-- GW409: it is not held any more: delivered to another, acknowledged, given back or dead. What
-- is merely over its time, and nobody else has got yet, is still held.
CREATE FUNCTION gateway.ack(id text, group_name text, result json DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF octet_length(result::text) > 1048576 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a result has at most 1 MiB';
    END IF;
    PERFORM gateway.raise_code((gateway.ack_all(ARRAY[id], ARRAY[group_name],
                                                ARRAY[result]))[1], id);
END
$$;

-- The text as JSON; not good if it is none that can be kept.
CREATE FUNCTION gateway.as_result(value text, OUT result json, OUT good boolean)
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    result := value;
    good := octet_length(value) <= 1048576;
EXCEPTION WHEN data_exception THEN
    good := false;
END
$$;

-- Acknowledges many, in one transaction: for each 0, or 400, 404, 409.
CREATE FUNCTION gateway.ack_many(ids text[], group_names text[], results text[])
RETURNS integer[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    checked json[];
    asked   text[];
BEGIN
    SELECT array_agg(r.result ORDER BY u.place),
           array_agg(CASE WHEN r.good IS NOT FALSE THEN u.id END -- NULL is answered 400
                     ORDER BY u.place)
      INTO checked, asked
      FROM unnest(ids, results) WITH ORDINALITY AS u (id, result, place),
           gateway.as_result(u.result) r;
    RETURN gateway.ack_all(asked, group_names, checked);
END
$$;

-- Finds a delivery that its holder gives back, and locks its row; 0, 404 or 409. What is about
-- to be due sooner than its lease says is not missed by a claim that raises the floor.
CREATE FUNCTION gateway.lock_held(of_seq bigint, of_attempt integer, of_lease text,
                                  group_name text, OUT code integer, OUT group_id integer,
                                  OUT channel text, OUT max_attempts integer,
                                  OUT due_from timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held boolean;
BEGIN
    SELECT e.channel INTO channel FROM gateway.events e WHERE e.seq = of_seq;
    SELECT g.id, g.max_attempts INTO group_id, max_attempts FROM gateway.groups g
     WHERE g.channel = lock_held.channel AND g.name = group_name;
    PERFORM pg_advisory_xact_lock_shared(1885827956, group_id);
    SELECT d.acked_at IS NULL AND NOT d.dead AND (d.attempt, d.lease) = (of_attempt, of_lease)
      INTO held
      FROM gateway.deliveries d
     WHERE d.group_id = lock_held.group_id AND d.seq = of_seq
       FOR NO KEY UPDATE;
    code := CASE WHEN NOT FOUND THEN 404 WHEN held THEN 0 ELSE 409 END;
    due_from := gateway.group_floor(group_id);
END
$$;

-- Gives one delivery back: 0, or 400, 404, 409.
CREATE FUNCTION gateway.nack_one(id text, group_name text, delay interval, reason text)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    given record;
    held  record;
BEGIN
    given := gateway.parse_delivery(id);
    IF given.seq IS NULL OR group_name IS NULL OR octet_length(reason) > 1024
       OR (delay >= '0' AND delay <= '30 days') IS NOT TRUE THEN
        RETURN 400;
    END IF;
    held := gateway.lock_held(given.seq, given.attempt, given.lease, group_name);
    IF held.code <> 0 THEN
        RETURN held.code;
    END IF;

    UPDATE gateway.deliveries d
       SET lease = NULL, reason = coalesce(nack_one.reason, 'no reason given'),
           due_at = greatest(clock_timestamp(), held.due_from) + delay
     WHERE d.group_id = held.group_id AND d.seq = given.seq;
    IF given.attempt >= held.max_attempts THEN
        PERFORM gateway.bury(held.group_id, ARRAY[given.seq]);
    ELSIF delay = '0' THEN
        PERFORM pg_notify('gateway_due', held.channel);
    END IF;
    RETURN 0;
END
$$;

-- Gives a delivery back: it is due again after the delay, or dead if this was its last attempt.
-- GW404, GW409: as ack().
CREATE FUNCTION gateway.nack(id text, group_name text, delay interval DEFAULT '0',
                             reason text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (delay >= '0' AND delay <= '30 days') IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a delay is from 0 to 30 days';
    END IF;
    IF octet_length(reason) > 1024 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a reason has at most 1024 bytes';
    END IF;
    PERFORM gateway.raise_code(gateway.nack_one(id, group_name, delay, reason), id);
END
$$;

-- Gives many back, in one transaction: for each 0, or 400, 404, 409.
CREATE FUNCTION gateway.nack_many(ids text[], group_names text[], delays interval[],
                                  reasons text[]) RETURNS integer[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    codes integer[];
    each  record;
BEGIN
    -- In the order in which everybody locks them.
    FOR each IN SELECT u.* FROM unnest(ids, group_names, delays, reasons) WITH ORDINALITY
                                AS u (id, group_name, delay, reason, place),
                                gateway.parse_delivery(u.id) p
                 ORDER BY u.group_name, p.seq
    LOOP
        codes[each.place] := gateway.nack_one(each.id, each.group_name, each.delay,
                                              each.reason);
    END LOOP;
    RETURN coalesce(codes, '{}');
END
$$;

-- The connection of a consumer has ended: what it held is due at once, and counts as an
-- attempt. What it had worked off it may still acknowledge, until somebody else gets it. What
-- it does not hold any more is passed by.
CREATE FUNCTION gateway.release(ids text[], group_names text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    each record;
    held record;
BEGIN
    FOR each IN SELECT u.group_name, p.* FROM unnest(ids, group_names) AS u (id, group_name),
                                              gateway.parse_delivery(u.id) p
                 ORDER BY u.group_name, p.seq
    LOOP
        held := gateway.lock_held(each.seq, each.attempt, each.lease, each.group_name);
        IF held.code = 0 THEN
            UPDATE gateway.deliveries d
               SET reason = 'consumer left',
                   due_at = greatest(clock_timestamp(), held.due_from)
             WHERE d.group_id = held.group_id AND d.seq = each.seq;
            PERFORM pg_notify('gateway_due', held.channel);
        END IF;
    END LOOP;
END
$$;


-- ---- looking ----

-- What became of an event in a group: waiting, delivered, acknowledged or dead. No row: there
-- is no such event or group, or the event is none of the group's.
CREATE FUNCTION gateway.result(seq bigint, group_name text)
RETURNS TABLE (state text, result json, attempt integer, acked_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN QUERY
    SELECT CASE WHEN d.seq IS NULL THEN 'waiting' WHEN d.acked_at IS NOT NULL THEN 'acknowledged'
                WHEN d.dead THEN 'dead' ELSE 'delivered' END,
           d.result, d.attempt, d.acked_at
      FROM (SELECT v.seq, v.channel FROM gateway.events v WHERE v.seq = result.seq OFFSET 0) e
      JOIN gateway.groups g ON g.channel = e.channel AND g.name = group_name
      LEFT JOIN LATERAL (SELECT * FROM gateway.deliveries v
                          WHERE v.group_id = g.id AND v.seq = e.seq OFFSET 0) d ON true
     WHERE d.seq IS NOT NULL OR e.seq > gateway.group_position(g);
END
$$;

-- How a group stands. Nothing is counted beyond 10 000.
CREATE FUNCTION gateway.group_state(of_group gateway.groups, OUT lag bigint,
                                    OUT in_flight bigint, OUT due bigint, OUT dead bigint,
                                    OUT lost bigint, OUT "position" bigint,
                                    OUT oldest_unacked interval)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    new    bigint[] := gateway.new_events(of_group, 10000);
    oldest bigint;
BEGIN
    "position" := gateway.group_position(of_group);
    lag := cardinality(new);
    SELECT count(*) FILTER (WHERE o.due_at > clock_timestamp()),
           count(*) FILTER (WHERE o.due_at <= clock_timestamp()), least(min(o.seq), new[1])
      INTO in_flight, due, oldest
      FROM (SELECT d.seq, d.due_at FROM gateway.deliveries d
             WHERE d.group_id = of_group.id AND d.acked_at IS NULL AND NOT d.dead
               AND d.due_at >= gateway.group_floor(of_group.id)
             ORDER BY d.due_at LIMIT 10000) o;
    SELECT count(*) INTO dead
      FROM (SELECT FROM gateway.deliveries d WHERE d.group_id = of_group.id AND d.dead
             LIMIT 10000) l;
    SELECT coalesce(sum(l.events), 0) INTO lost FROM gateway.losses l
     WHERE l.group_id = of_group.id;
    SELECT clock_timestamp() - e.created_at INTO oldest_unacked FROM gateway.events e
     WHERE e.seq = oldest;
END
$$;

CREATE VIEW gateway.group_list AS
    SELECT g.channel, g.name, s.lag, s.in_flight, s.due, s.dead, s.lost, s."position",
           g.max_attempts, g.created_at, s.oldest_unacked
      FROM gateway.groups g, gateway.group_state(g) s;
COMMENT ON VIEW gateway.group_list IS
    'The groups: events not handed out yet (lag), handed out and not acknowledged (in_flight), '
    'waiting to be handed out again (due), given up (dead), deleted before they were '
    'acknowledged (lost). Nothing is counted beyond 10 000.';


-- ---- retention ----

-- Counts what is deleted, by whomever, before it was handed out; what was handed out and not
-- acknowledged is counted when its delivery goes. SECURITY DEFINER: as note_delete.
CREATE FUNCTION gateway.note_loss() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM gateway.groups) THEN
        INSERT INTO gateway.losses (group_id, events)
        SELECT r.id, count(*)
          FROM (SELECT r.id, r.channel, gateway.group_position(r) AS "position"
                  FROM gateway.groups r
                 WHERE r.channel IN (SELECT o.channel FROM gone o)) r
          JOIN gone o ON o.channel = r.channel AND o.seq > r."position"
         GROUP BY r.id;
    END IF;
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION gateway.note_loss() FROM PUBLIC;
CREATE TRIGGER note_loss AFTER DELETE ON gateway.events
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    EXECUTE FUNCTION gateway.note_loss();
-- ALWAYS: also in sessions that replay what others did (session_replication_role).
ALTER TABLE gateway.events ENABLE ALWAYS TRIGGER note_loss;

-- Deletes one batch of deliveries that nobody can ask for any more: of each group those above
-- `after_seq` whose events are gone, lowest numbers first, and all of groups that are gone.
-- The newest of a group stays: it is the group's position. What somebody has locked is passed
-- over, and found the next time. Returns as gateway.purge() does; forgets also those who have
-- waited for longer than `older_than`.
CREATE FUNCTION gateway.purge_deliveries(older_than interval, batch integer,
                                         after_seq bigint DEFAULT 0,
                                         OUT purged integer, OUT last_seq bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    oldest bigint := gateway.oldest_seq();
BEGIN
    IF NOT pg_try_advisory_xact_lock(1885827955, 2) THEN
        RETURN;
    END IF;

    WITH RECURSIVE known (id) AS ( -- the groups that have a delivery, one look for each
        (SELECT d.group_id FROM gateway.deliveries d ORDER BY d.group_id, d.seq LIMIT 1)
        UNION ALL
        SELECT (SELECT d.group_id FROM gateway.deliveries d WHERE d.group_id > k.id
                 ORDER BY d.group_id, d.seq LIMIT 1)
          FROM known k WHERE k.id IS NOT NULL
    ), bounds AS MATERIALIZED (
        SELECT k.id, CASE WHEN EXISTS (SELECT FROM gateway.groups g WHERE g.id = k.id)
                          THEN least(oldest, (SELECT d.seq FROM gateway.deliveries d
                                               WHERE d.group_id = k.id
                                               ORDER BY d.seq DESC LIMIT 1) - 1)
                          ELSE 9223372036854775807 END AS through
          FROM known k WHERE k.id IS NOT NULL
    ), old AS MATERIALIZED (
        SELECT o.place, o.seq
          FROM bounds b CROSS JOIN LATERAL
               (SELECT d.ctid AS place, d.seq FROM gateway.deliveries d
                 WHERE d.group_id = b.id AND d.seq > after_seq AND d.seq <= b.through
                 ORDER BY d.seq LIMIT batch) o
         ORDER BY o.seq FETCH FIRST (batch) ROWS WITH TIES
    ), free AS MATERIALIZED (
        SELECT d.ctid AS place FROM old o, gateway.deliveries d
         WHERE d.ctid = o.place FOR UPDATE OF d SKIP LOCKED
    ), gone AS (
        DELETE FROM gateway.deliveries d USING free f WHERE d.ctid = f.place
        RETURNING d.group_id, d.seq, d.acked_at IS NULL AND NOT d.dead AS was_open
    ), lost AS (
        INSERT INTO gateway.losses (group_id, events)
        SELECT g.group_id, count(*) FROM gone g
         WHERE g.was_open AND EXISTS (SELECT FROM gateway.groups r WHERE r.id = g.group_id)
         GROUP BY g.group_id
    )
    SELECT count(*), max(g.seq) INTO purged, last_seq FROM gone g;

    DELETE FROM gateway.waits w
     WHERE w.id = ANY (ARRAY(SELECT o.id FROM gateway.waits o
                              WHERE o.created_at < clock_timestamp() - older_than
                              LIMIT batch FOR UPDATE SKIP LOCKED));
END
$$;

REVOKE EXECUTE ON FUNCTION
    gateway.group_position(gateway.groups), gateway.group_floor(integer),
    gateway.make_group(text, text, text, integer), gateway.remove_group(text, text),
    gateway.fitting(bigint[], bigint, boolean), gateway.delivery_places(integer, bigint[]),
    gateway.bury(integer, bigint[]),
    gateway.claim_due(gateway.groups, timestamptz, timestamptz, integer, bigint),
    gateway.raise_floor(integer, timestamptz, timestamptz),
    gateway.claim(text, text, integer, interval, text, integer, bigint),
    gateway.new_events(gateway.groups, integer),
    gateway.check_claim(text, text, integer, interval, text, integer, bigint),
    gateway.parse_delivery(text), gateway.raise_code(integer, text),
    gateway.ack_all(text[], text[], json[]), gateway.ack(text, text, json),
    gateway.as_result(text), gateway.ack_many(text[], text[], text[]),
    gateway.lock_held(bigint, integer, text, text),
    gateway.nack_one(text, text, interval, text), gateway.nack(text, text, interval, text),
    gateway.nack_many(text[], text[], interval[], text[]), gateway.release(text[], text[]),
    gateway.result(bigint, text), gateway.group_state(gateway.groups),
    gateway.purge_deliveries(interval, integer, bigint)
    FROM PUBLIC;
