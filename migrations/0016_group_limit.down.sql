-- 0016_group_limit: takes it back; groups, and what was delivered to them, stay.
SET LOCAL lock_timeout = '5s'; -- as on the way up
DROP FUNCTION gateway.bury_used_up(integer);
DROP INDEX gateway.deliveries_again;

CREATE OR REPLACE FUNCTION gateway.claim_due(of_group gateway.groups, due_from timestamptz,
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

CREATE OR REPLACE FUNCTION gateway.fitting(seqs bigint[], max_bytes bigint, at_least_one boolean,
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
    PERFORM gateway.release(ids, array_fill(group_name, ARRAY[cardinality(ids)]));
    RETURN cardinality(ids);
END
$$;

DROP FUNCTION gateway.release(text[], text[]);
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

CREATE OR REPLACE FUNCTION gateway.nack(id text, group_name text, delay interval DEFAULT '0',
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

CREATE OR REPLACE FUNCTION gateway.lock_held(of_seq bigint, of_attempt integer, of_lease text,
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

CREATE OR REPLACE FUNCTION gateway.ack(id text, group_name text, result json DEFAULT NULL) RETURNS void
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
DROP FUNCTION gateway.await_delivery(text, text);
DROP FUNCTION gateway.missing_code(integer, bigint);

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

CREATE OR REPLACE VIEW gateway.group_list AS
    SELECT g.channel, g.name, s.lag, s.in_flight, s.due, s.dead, s.lost, s."position",
           g.max_attempts, g.created_at, s.oldest_unacked
      FROM gateway.groups g, gateway.group_state(g) s;
DROP FUNCTION gateway.group_state(gateway.groups, integer);

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
    RETURN removed IS NOT NULL;
END
$$;

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

CREATE OR REPLACE FUNCTION gateway.check_claim(channel text, group_name text, max integer,
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
DROP FUNCTION gateway.check_group_count();

REVOKE EXECUTE ON FUNCTION
    gateway.release(text[], text[]), gateway.group_state(gateway.groups) FROM PUBLIC;
