-- 0016_group_limit: groups have bounds. So many of them; nobody waits for a delivery that
-- somebody else has locked; what has used up its attempts is found without a claim; who
-- removes a group tells its consumers.

-- As in 0012_acknowledge: better to give up soon and be run again.
SET LOCAL lock_timeout = '5s';


-- ---- so many of them ----

-- What is wrong with the arguments of a claim; NULL: nothing.
CREATE OR REPLACE FUNCTION gateway.check_claim(channel text, group_name text, max integer,
                                               lease interval, start text,
                                               max_attempts integer, max_bytes bigint)
RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE
        WHEN channel IS NULL THEN 'the channel is NULL'
        WHEN group_name IS NULL THEN 'the name of the group is NULL'
        WHEN (max BETWEEN 1 AND 1000) IS NOT TRUE THEN 'max is from 1 to 1000'
        WHEN (lease > '0' AND lease <= '1 day') IS NOT TRUE
            THEN 'a lease is longer than 0 and not longer than a day'
        WHEN start !~ '^(now|earliest|0|[1-9][0-9]{0,17})$'
            THEN 'start is ''now'', ''earliest'', the id of an event, or NULL'
        WHEN max_attempts NOT BETWEEN 1 AND 1000000 THEN 'max_attempts is from 1 to 1000000'
        WHEN (max_bytes > 0) IS NOT TRUE THEN 'max_bytes is larger than 0'
    END;
END
$$;

-- There may be one group more. The setting gateway.groups_max of the session says how many
-- there may be; it is 1000 unless set, and gateways set it to what stands in gateway.ini.
CREATE FUNCTION gateway.check_group_count() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most integer := coalesce(nullif(current_setting('gateway.groups_max', true), ''), '1000');
BEGIN
    IF (SELECT count(*) FROM gateway.groups) >= most THEN
        RAISE EXCEPTION USING ERRCODE = 'configuration_limit_exceeded',
            MESSAGE = format('there are %s groups already', most),
            HINT = 'Remove those that nobody needs with gateway.remove_group(), or raise '
                   '[limits] groups in gateway.ini; in SQL, gateway.groups_max.';
    END IF;
END
$$;

-- Makes a group, unless somebody else has just made it, or (GW404) `start` is NULL.
CREATE OR REPLACE FUNCTION gateway.make_group(of_channel text, group_name text, start text,
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
    IF start IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'GW404',
            MESSAGE = format('the channel %L has no group %L', of_channel, group_name);
    END IF;

    -- One at a time, until it is committed: so they are counted right.
    PERFORM pg_advisory_xact_lock(1885827955, 6);
    IF EXISTS (SELECT FROM gateway.groups g
                WHERE g.channel = of_channel AND g.name = group_name) THEN
        RETURN;
    END IF;
    PERFORM gateway.check_group_count();
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
-- Gateways are told with a NOTIFY 'gateway_removed', the channel and the name on two lines.
CREATE OR REPLACE FUNCTION gateway.remove_group(channel text, group_name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    removed integer;
BEGIN
    DELETE FROM gateway.groups g
     WHERE g.channel = remove_group.channel AND g.name = group_name
    RETURNING g.id INTO removed;
    DELETE FROM gateway.floors f WHERE f.group_id = removed;
    DELETE FROM gateway.losses l WHERE l.group_id = removed;
    IF removed IS NOT NULL THEN
        PERFORM pg_notify('gateway_removed', channel || E'\n' || group_name);
    END IF;
    RETURN removed IS NOT NULL;
END
$$;

-- How a group stands. Nothing is counted beyond `most`.
CREATE FUNCTION gateway.group_state(of_group gateway.groups, most integer, OUT lag bigint,
                                    OUT in_flight bigint, OUT due bigint, OUT dead bigint,
                                    OUT lost bigint, OUT "position" bigint,
                                    OUT oldest_unacked interval)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    new    bigint[] := gateway.new_events(of_group, most);
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
             ORDER BY d.due_at LIMIT most) o;
    SELECT count(*) INTO dead
      FROM (SELECT FROM gateway.deliveries d WHERE d.group_id = of_group.id AND d.dead
             LIMIT most) l;
    SELECT coalesce(sum(l.events), 0) INTO lost FROM gateway.losses l
     WHERE l.group_id = of_group.id;
    SELECT clock_timestamp() - e.created_at INTO oldest_unacked FROM gateway.events e
     WHERE e.seq = oldest;
END
$$;

CREATE OR REPLACE VIEW gateway.group_list AS
    SELECT g.channel, g.name, s.lag, s.in_flight, s.due, s.dead, s.lost, s."position",
           g.max_attempts, g.created_at, s.oldest_unacked
      FROM gateway.groups g, gateway.group_state(g, 10000) s;
DROP FUNCTION gateway.group_state(gateway.groups);


-- ---- nobody waits for what somebody else has locked ----
--
-- Who has a transaction open that acknowledges a delivery has its row locked, for as long as
-- he likes. Gateways handle many deliveries in one transaction, so the functions for them pass
-- such a row over, with the answer 423: for the others there is no waiting.

-- Acknowledges deliveries; for each 0, or 400, 404, 409 as in ack(), or 423. Everybody locks
-- them in the same order, so that nobody waits in a circle.
CREATE OR REPLACE FUNCTION gateway.ack_all(ids text[], group_names text[], results json[])
RETURNS integer[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    codes integer[];
    each  record;
BEGIN
    -- An acknowledgement that was answered is not lost in a crash. As durable as the session
    -- wants it, if a claim in this transaction has made it less.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', CASE
            WHEN current_setting('gateway.durable', true) IN ('remote_apply', 'remote_write')
            THEN current_setting('gateway.durable', true) ELSE 'on' END, true);
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
                 ORDER BY u.group_name, p.seq, u.place) a
          LEFT JOIN LATERAL (SELECT v.acked_at IS NULL AND NOT v.dead
                                    AND v.attempt = a.attempt
                                    AND v.lease IS NOT DISTINCT FROM a.lease AS held
                               FROM gateway.deliveries v
                              WHERE v.group_id = a.group_id AND v.seq = a.seq
                                FOR NO KEY UPDATE SKIP LOCKED) d ON true
    LOOP
        IF each.seq IS NULL OR each.group_name IS NULL THEN
            codes[each.place] := 400;
        ELSIF each.held IS NULL THEN
            codes[each.place] := gateway.missing_code(each.group_id, each.seq);
        ELSIF NOT each.held THEN
            codes[each.place] := 409;
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

-- A delivery that could not be locked: 423, because somebody else has it; or 404.
CREATE FUNCTION gateway.missing_code(of_group integer, of_seq bigint) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN CASE WHEN EXISTS (SELECT FROM gateway.deliveries d
                              WHERE d.group_id = of_group AND d.seq = of_seq)
                THEN 423 ELSE 404 END;
END
$$;

-- Waits until nobody else has the delivery locked, and locks it.
CREATE FUNCTION gateway.await_delivery(id text, group_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off AS $$
DECLARE
    given    record;
    of_group integer;
BEGIN
    given := gateway.parse_delivery(id);
    SELECT g.id INTO of_group FROM gateway.events e JOIN gateway.groups g USING (channel)
     WHERE e.seq = given.seq AND g.name = group_name;
    PERFORM FROM gateway.deliveries d WHERE d.group_id = of_group AND d.seq = given.seq
        FOR NO KEY UPDATE;
END
$$;

-- Acknowledges a delivery: it is done, and nobody will have it again. May be part of a
-- transaction that does the work itself: then both are done, or none.
-- GW404: that event was never delivered to that group (or is not kept any more).
-- GW409: it is not held any more: delivered to another, acknowledged, given back or dead. What
-- is merely over its time, and nobody else has got yet, is still held.
CREATE OR REPLACE FUNCTION gateway.ack(id text, group_name text, result json DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    code integer;
BEGIN
    IF octet_length(result::text) > 1048576 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a result has at most 1 MiB';
    END IF;
    LOOP
        code := (gateway.ack_all(ARRAY[id], ARRAY[group_name], ARRAY[result]))[1];
        EXIT WHEN code <> 423;
        PERFORM gateway.await_delivery(id, group_name);
    END LOOP;
    PERFORM gateway.raise_code(code, id);
END
$$;

-- Finds a delivery that its holder gives back, and locks its row; 0, 404, 409 or 423. What is
-- about to be due sooner than its lease says is not missed by a claim that raises the floor.
CREATE OR REPLACE FUNCTION gateway.lock_held(of_seq bigint, of_attempt integer, of_lease text,
                                             group_name text, OUT code integer,
                                             OUT group_id integer, OUT channel text,
                                             OUT max_attempts integer, OUT due_from timestamptz)
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
       FOR NO KEY UPDATE SKIP LOCKED;
    code := CASE WHEN NOT FOUND THEN gateway.missing_code(group_id, of_seq)
                 WHEN held THEN 0 ELSE 409 END;
    due_from := gateway.group_floor(group_id);
END
$$;

-- Gives a delivery back: it is due again after the delay, or dead if this was its last attempt.
-- GW404, GW409: as ack().
CREATE OR REPLACE FUNCTION gateway.nack(id text, group_name text, delay interval DEFAULT '0',
                                        reason text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    code integer;
BEGIN
    IF (delay >= '0' AND delay <= '30 days') IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a delay is from 0 to 30 days';
    END IF;
    IF octet_length(reason) > 1024 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a reason has at most 1024 bytes';
    END IF;
    LOOP
        code := gateway.nack_one(id, group_name, delay, reason);
        EXIT WHEN code <> 423;
        PERFORM gateway.await_delivery(id, group_name);
    END LOOP;
    PERFORM gateway.raise_code(code, id);
END
$$;

-- The connection of a consumer has ended: what it held is due at once, and counts as an
-- attempt. What it had worked off it may still acknowledge, until somebody else gets it. What
-- it does not hold any more is passed by; what somebody else has locked is returned.
DROP FUNCTION gateway.release(text[], text[]);
CREATE FUNCTION gateway.release(ids text[], group_names text[])
RETURNS TABLE (id text, group_name text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    each record;
    held record;
BEGIN
    FOR each IN SELECT u.*, p.* FROM unnest(ids, group_names) AS u (id, group_name),
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
        ELSIF held.code = 423 THEN
            id := each.id;
            group_name := each.group_name;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

-- Of what is in flight of this group, the thousand with the lowest numbers are due at once; how
-- many that were. A thousand is well within the time that a statement has. All of them, or none:
-- what somebody is about to acknowledge may come back, and is not to come behind the others.
CREATE OR REPLACE FUNCTION gateway.recall(channel text, group_name text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    ids text[];
BEGIN
    ids := ARRAY(SELECT format('%s.%s.%s', d.seq, d.attempt, d.lease)
                   FROM gateway.groups g
                   JOIN gateway.deliveries d ON d.group_id = g.id
                  WHERE g.channel = recall.channel AND g.name = group_name
                    AND d.acked_at IS NULL AND NOT d.dead AND d.lease IS NOT NULL
                    AND d.due_at > clock_timestamp()
                  ORDER BY d.seq LIMIT 1000);
    IF EXISTS (SELECT FROM gateway.release(ids, array_fill(group_name,
                                                           ARRAY[cardinality(ids)]))) THEN
        RAISE EXCEPTION USING ERRCODE = 'lock_not_available', MESSAGE =
            'an open transaction has acknowledged a delivery of the group';
    END IF;
    RETURN cardinality(ids);
END
$$;


-- ---- what has used up its attempts ----

-- A claim finds them where it looks for what is due. In a group that nobody claims from they
-- are found by this index; what is delivered once and acknowledged is never in it.
CREATE INDEX deliveries_again ON gateway.deliveries (group_id, attempt, due_at)
    WHERE acked_at IS NULL AND NOT dead AND attempt > 1;

-- The longest beginning of `seqs` (which rise) whose data is not over `max_bytes`, and at least
-- one if `at_least_one`; and what is left of max_bytes. What is gone weighs nothing. What is too
-- heavy as it is stored, compressed, is not read.
CREATE OR REPLACE FUNCTION gateway.fitting(seqs bigint[], max_bytes bigint,
                                           at_least_one boolean, OUT fit bigint[],
                                           OUT bytes_left bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT coalesce(array_agg(w.seq ORDER BY w.seq), '{}'),
           max_bytes - coalesce(max(w.bytes), 0)
      INTO fit, bytes_left
      FROM (SELECT r.seq, sum(coalesce(octet_length(r.data::text), 0))
                              OVER (ORDER BY r.seq) AS bytes
              FROM (SELECT s.seq, e.data, sum(coalesce(pg_column_size(e.data) - 4, 0))
                                              OVER (ORDER BY s.seq) AS stored
                      FROM unnest(seqs) AS s (seq) LEFT JOIN LATERAL
                           (SELECT v.data FROM gateway.events v WHERE v.seq = s.seq OFFSET 0) e
                        ON true) r
             WHERE r.stored <= max_bytes OR r.seq = seqs[1]) w
     WHERE w.bytes <= max_bytes OR at_least_one AND w.seq = seqs[1];
END
$$;

-- What was due at the `moment`: the lowest numbers, at most `max`, among the thousand that have
-- been due the longest, as many as their data fits. Those among them that have used up their
-- attempts are buried, a hundred at a time, or 4 MiB, since each is written once more. All rows
-- are locked before. What somebody else has locked is passed over: he is about to acknowledge
-- it, or to give it back. But with `gateway.in_order` on, for the holder of an exclusive group,
-- it ends what is claimed: after later ones it would come in the wrong order.
CREATE OR REPLACE FUNCTION gateway.claim_due(of_group gateway.groups, due_from timestamptz,
                                             moment timestamptz, max integer,
                                             max_bytes bigint, OUT due bigint[],
                                             OUT bytes_left bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    used_up bigint[];
    passed  bigint; -- the first of those that somebody else has locked
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
    IF current_setting('gateway.in_order', true) = 'on' THEN
        SELECT min(d.seq) INTO passed FROM gateway.deliveries d
         WHERE d.group_id = of_group.id AND d.acked_at IS NULL AND NOT d.dead
           AND d.due_at >= due_from AND d.due_at <= moment
           AND d.attempt < of_group.max_attempts AND d.seq <> ALL (due)
           AND (cardinality(due) < max OR d.seq < due[cardinality(due)]);
        due := ARRAY(SELECT u.seq FROM unnest(due) AS u (seq)
                      WHERE passed IS NULL OR u.seq < passed);
    END IF;
    SELECT f.fit INTO used_up FROM gateway.fitting(used_up, 4194304, true) f;

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
    IF passed IS NOT NULL THEN
        bytes_left := 0; -- nor anything new
    END IF;
END
$$;

-- Buries what has used up its attempts, as the next claim would, some `batch` of them, or 4 MiB;
-- how many that were. One at a time: NULL while somebody else is at it.
CREATE FUNCTION gateway.bury_used_up(batch integer) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    moment     timestamptz := clock_timestamp();
    buried     integer := 0;
    bytes_left bigint := 4194304;
    each       record;
    locked     bigint[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(1885827955, 7) THEN
        RETURN NULL;
    END IF;
    -- At most a hundred of each group, so that a look at all groups costs little; and in any
    -- order, so that none has to wait for another with much that is heavy.
    FOR each IN
        SELECT * FROM (
            SELECT g.id, g.max_attempts, u.seqs
              FROM gateway.groups g CROSS JOIN LATERAL
                   (SELECT ARRAY(SELECT d.seq FROM gateway.deliveries d
                                  WHERE d.group_id = g.id AND d.acked_at IS NULL AND NOT d.dead
                                    AND d.attempt > 1 AND d.attempt >= g.max_attempts
                                    AND d.due_at <= moment
                                  ORDER BY d.attempt, d.due_at LIMIT 100) AS seqs OFFSET 0) u
             WHERE g.max_attempts > 1
             UNION ALL
            SELECT g.id, g.max_attempts, u.seqs
              FROM gateway.groups g CROSS JOIN LATERAL
                   (SELECT ARRAY(SELECT d.seq FROM gateway.deliveries d
                                  WHERE d.group_id = g.id AND d.acked_at IS NULL AND NOT d.dead
                                    AND d.due_at >= gateway.group_floor(g.id)
                                    AND d.due_at <= moment
                                  ORDER BY d.due_at LIMIT 100) AS seqs OFFSET 0) u
             WHERE g.max_attempts = 1) found
         WHERE found.seqs <> '{}' ORDER BY random()
    LOOP
        locked := ARRAY(
            SELECT d.seq FROM gateway.deliveries d
             WHERE d.ctid = ANY (gateway.delivery_places(each.id, each.seqs))
               AND d.acked_at IS NULL AND NOT d.dead AND d.attempt >= each.max_attempts
               AND d.due_at <= moment
             ORDER BY d.seq FOR NO KEY UPDATE SKIP LOCKED);
        SELECT f.fit, f.bytes_left INTO locked, bytes_left
          FROM gateway.fitting(locked, bytes_left, buried = 0) f;
        PERFORM gateway.bury(each.id, locked);
        buried := buried + cardinality(locked);
        EXIT WHEN buried >= batch OR bytes_left <= 0;
    END LOOP;
    RETURN buried;
END
$$;

REVOKE EXECUTE ON FUNCTION
    gateway.check_group_count(), gateway.group_state(gateway.groups, integer),
    gateway.missing_code(integer, bigint), gateway.await_delivery(text, text),
    gateway.release(text[], text[]), gateway.bury_used_up(integer)
    FROM PUBLIC;
