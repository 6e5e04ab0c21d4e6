-- 0004_idempotency: a POST that is sent again publishes nothing again.
--
-- A request may carry keys. Each stands for a unit: some events of the request, which are
-- published once, however often, to however many gateways and at whatever moment they are
-- sent. What is known about a key is looked up, and written, under the order lock, so that
-- two requests with one key never pass each other.

-- A new column waits for every open transaction that has written an event, and whoever writes
-- or reads one meanwhile waits behind it. Better to give up soon and be run again.
SET LOCAL lock_timeout = '5s';

CREATE TABLE gateway.idempotency_keys (
    key        text COLLATE "C" PRIMARY KEY,
    digest     bytea NOT NULL,          -- of the unit's events: channel, type and data
    first_seq  bigint NOT NULL,         -- of its first event; the others follow without a hole
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE gateway.idempotency_keys IS
    'What was published under which key; a row may go when nobody will send it again.';
COMMENT ON COLUMN gateway.idempotency_keys.key IS
    'i: and the Idempotency-Key, or c:, the length of a CloudEvent''s source, its source and id.';

CREATE INDEX idempotency_keys_by_age ON gateway.idempotency_keys (created_at);

ALTER TABLE gateway.events ADD COLUMN attributes json;
COMMENT ON COLUMN gateway.events.attributes IS
    'The context attributes of a CloudEvent, as published; "data_base64": true among them if '
    'the data is a string in Base64. NULL for every other event.';

DROP FUNCTION gateway.publish_batch(text[], text[], text[]);

-- The digest of each unit's events. `units` has for each event the number of its unit, counted
-- from 1, or 0. Looks at no table: there is no need to hold the order lock meanwhile.
CREATE FUNCTION gateway.digest_units(channels text[], types text[], datas text[],
                                     units integer[]) RETURNS bytea[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    -- Lengths before the texts, so that no two events look alike.
    RETURN (
        WITH event AS MATERIALIZED (
            SELECT u.unit, u.place, sha256(convert_to(
                       concat(octet_length(u.channel), ':', u.channel,
                              octet_length(u.type), ':', u.type, u.data), 'UTF8')) AS digest
              FROM unnest(channels, types, datas, units) WITH ORDINALITY
                   AS u (channel, type, data, unit, place)
             WHERE u.unit > 0
        ), unit AS (
            SELECT e.unit, sha256(string_agg(e.digest, '' ORDER BY e.place)) AS digest
              FROM event e GROUP BY e.unit
        )
        SELECT array_agg(u.digest ORDER BY u.unit) FROM unit u
    );
END
$$;

-- For the key of each unit the seq under which the first of its events is there already, or
-- 0. Caller holds the order lock.
-- GW422: a key has been used for other events; the detail is the number of its unit.
CREATE FUNCTION gateway.find_units(keys text[], digests bytea[]) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off AS $$
DECLARE
    known    bigint[];
    conflict bigint;
BEGIN
    SELECT array_agg(coalesce(k.first_seq, 0) ORDER BY u.unit),
           min(u.unit) FILTER (WHERE k.digest <> u.digest)
      INTO known, conflict
      FROM unnest(keys, digests) WITH ORDINALITY AS u (key, digest, unit)
      LEFT JOIN gateway.idempotency_keys k ON k.key = u.key;

    IF conflict IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'GW422', DETAIL = conflict::text,
            MESSAGE = 'the key has been used for other events';
    END IF;
    RETURN known;
END
$$;

-- Notes the keys of the units that have just been inserted, from first_seq on. Caller holds
-- the order lock.
CREATE FUNCTION gateway.note_units(units integer[], keys text[], digests bytea[],
                                   known bigint[], first_seq bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_nestloop = off
SET jit = off AS $$
BEGIN
    WITH event AS (
        SELECT p.unit, note_units.first_seq + row_number() OVER (ORDER BY p.place) - 1 AS seq
          FROM unnest(units) WITH ORDINALITY AS p (unit, place)
         WHERE coalesce(known[p.unit], 0) = 0
    ), unit AS (
        SELECT e.unit::bigint AS unit, min(e.seq) AS seq
          FROM event e WHERE e.unit > 0 GROUP BY e.unit
    )
    INSERT INTO gateway.idempotency_keys (key, digest, first_seq)
    SELECT k.key, k.digest, u.seq
      FROM unit u
      JOIN unnest(keys, digests) WITH ORDINALITY AS k (key, digest, unit) USING (unit);
END
$$;

-- Inserts events already numbered, in the order given: first_seq, first_seq + 1, ... What
-- others committed before is numbered first, so that it keeps its place. `xid` tells the
-- caller whose fate to ask for (pg_xact_status) if the answer to its COMMIT is lost.
-- Must be the first statement of a READ COMMITTED transaction, committed at once.
--
-- `attributes` may be NULL as a whole. `units`, for digest_units(), and `keys` are given
-- if there is a unit; then `known` says for each unit the seq of its first event if its events
-- were there already, and are not inserted again, or 0. Each key stands in `keys` once. If
-- nothing was left to insert, first_seq and last_seq are NULL.
CREATE FUNCTION gateway.publish_batch(channels text[], types text[], datas text[],
                                      attributes text[] DEFAULT NULL,
                                      units integer[] DEFAULT NULL,
                                      keys text[] DEFAULT NULL,
                                      OUT first_seq bigint, OUT last_seq bigint,
                                      OUT xid xid8, OUT known bigint[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before_look pg_snapshot;
    digests     bytea[];
BEGIN
    IF keys IS NOT NULL THEN
        digests := gateway.digest_units(channels, types, datas, units);
    END IF;
    PERFORM gateway.lock_order();
    before_look := pg_current_snapshot();
    IF gateway.sweep_needed() THEN
        PERFORM gateway.sweep_locked(5000, false);
    ELSE
        PERFORM gateway.sweep_advance(before_look);
    END IF;
    IF keys IS NOT NULL THEN
        known := gateway.find_units(keys, digests);
    END IF;

    -- Rows that need no sweep need not wake a sweeper.
    PERFORM set_config('gateway.quiet', 'on', true);
    WITH inserted AS (
        INSERT INTO gateway.events (seq, channel, type, data, attributes)
        SELECT nextval('gateway.events_seq'), e.channel, e.type, e.data::json,
               e.attributes::json
          FROM (SELECT u.channel, u.type, u.data, u.attributes
                  FROM unnest(channels, types, datas, publish_batch.attributes, units)
                       WITH ORDINALITY AS u (channel, type, data, attributes, unit, place)
                 WHERE coalesce(known[u.unit], 0) = 0
                 ORDER BY u.place) e
        RETURNING seq
    )
    SELECT min(i.seq), max(i.seq) INTO first_seq, last_seq FROM inserted i;

    IF keys IS NOT NULL AND first_seq IS NOT NULL THEN
        PERFORM gateway.note_units(units, keys, digests, known, first_seq);
    END IF;
    PERFORM pg_notify('gateway_events', '');
    xid := pg_current_xact_id();
END
$$;

-- Forgets up to `batch` keys that are older than that; returns how many. Keys that somebody
-- else is just forgetting are passed over.
CREATE FUNCTION gateway.purge_keys(older_than interval, batch integer DEFAULT 5000)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    purged integer;
BEGIN
    DELETE FROM gateway.idempotency_keys k
     WHERE k.ctid = ANY (ARRAY(SELECT o.ctid FROM gateway.idempotency_keys o
                                WHERE o.created_at < clock_timestamp() - older_than
                                ORDER BY o.created_at LIMIT batch
                                  FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS purged = ROW_COUNT;
    RETURN purged;
END
$$;

REVOKE EXECUTE ON FUNCTION
    gateway.digest_units(text[], text[], text[], integer[]),
    gateway.find_units(text[], bytea[]),
    gateway.note_units(integer[], text[], bytea[], bigint[], bigint),
    gateway.publish_batch(text[], text[], text[], text[], integer[], text[]),
    gateway.purge_keys(interval, integer)
    FROM PUBLIC;
