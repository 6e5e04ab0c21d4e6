-- 0012_acknowledge: what becomes of a delivery, and of a group.
--
-- A delivery's id, '<seq>.<attempt>.<lease>', says who holds it: it is good until the delivery
-- has been acknowledged, given back or handed to another. The event leads to its channel, the
-- channel and the group's name to the group.
--
-- Always true: a delivery is acknowledged once. Whoever acknowledges, gives back or hands out
-- locks its row first, and looks at it after that.

-- The locks below wait for every open transaction that has written an event, and whoever
-- writes one meanwhile waits behind them. Better to give up soon and be run again.
SET LOCAL lock_timeout = '5s';


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

-- For those who handle one delivery: every answer but 0 as an exception.
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

-- Acknowledges deliveries; for each 0, or 400, 404, 409 as above. Everybody locks them in the
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
        SELECT g.id, count(*)
          FROM (SELECT DISTINCT o.channel FROM gone o) c
          JOIN gateway.groups g ON g.channel = c.channel
         CROSS JOIN gateway.group_position(g) AS p (seq)
          JOIN gone o ON o.channel = g.channel AND o.seq > p.seq
         GROUP BY g.id;
    END IF;
    RETURN NULL;
END
$$;
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

    -- One sum for each group, and none for a group that is gone.
    WITH parts AS (
        DELETE FROM gateway.losses l
         WHERE l.id = ANY (ARRAY(
                   SELECT o.id FROM gateway.losses o
                    WHERE EXISTS (SELECT FROM gateway.losses n
                                   WHERE n.group_id = o.group_id AND n.id <> o.id)
                    ORDER BY o.id LIMIT batch FOR UPDATE SKIP LOCKED))
        RETURNING l.group_id, l.events
    )
    INSERT INTO gateway.losses (group_id, events)
    SELECT p.group_id, sum(p.events) FROM parts p
     WHERE EXISTS (SELECT FROM gateway.groups g WHERE g.id = p.group_id)
     GROUP BY p.group_id;

    DELETE FROM gateway.waits w
     WHERE w.id = ANY (ARRAY(SELECT o.id FROM gateway.waits o
                              WHERE o.created_at < clock_timestamp() - older_than
                              LIMIT batch FOR UPDATE SKIP LOCKED));
END
$$;

REVOKE EXECUTE ON FUNCTION
    gateway.parse_delivery(text), gateway.raise_code(integer, text),
    gateway.ack_all(text[], text[], json[]), gateway.ack(text, text, json),
    gateway.as_result(text), gateway.ack_many(text[], text[], text[]),
    gateway.lock_held(bigint, integer, text, text),
    gateway.nack_one(text, text, interval, text), gateway.nack(text, text, interval, text),
    gateway.nack_many(text[], text[], interval[], text[]), gateway.release(text[], text[]),
    gateway.result(bigint, text), gateway.group_state(gateway.groups),
    gateway.note_loss(), gateway.purge_deliveries(interval, integer, bigint)
    FROM PUBLIC;
