-- 0009_client: an event knows who published it, so that a subscriber can do without its own.
--
-- Who that is, it says itself: a name that means something to those who share it, and is no
-- permission. POST /events brings it in a header, SQL in the setting gateway.client_id, which an
-- application needs no right for: the column's default reads it, in every way of inserting.

-- The locks below wait for every open transaction that has written an event, and whoever
-- writes one meanwhile waits behind them. Better to give up soon and be run again.
SET LOCAL lock_timeout = '5s';

-- The default comes after the column: nobody published what is there already.
ALTER TABLE gateway.events ADD COLUMN client text COLLATE "C";
ALTER TABLE gateway.events
    ALTER COLUMN client SET DEFAULT nullif(current_setting('gateway.client_id', true), ''),
    -- NOT VALID: there is no client yet in any row, and no need to read them all.
    ADD CONSTRAINT client_length CHECK (octet_length(client) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT client_characters CHECK (client !~ '[\x01-\x1f\x7f-\x9f]') NOT VALID;
COMMENT ON COLUMN gateway.events.client IS
    'Who published it, as it called itself (SET gateway.client_id): for exclude_client, and in no '
    'stream.';

DROP FUNCTION gateway.publish_batch(text[], text[], text[], text[], integer[], text[]);

-- Inserts events already numbered, in the order given: first_seq, first_seq + 1, ... What
-- others committed before is numbered first, so that it keeps its place. `xid` tells the
-- caller whose fate to ask for (pg_xact_status) if the answer to its COMMIT is lost.
-- Must be the first statement of a READ COMMITTED transaction, committed at once.
--
-- `attributes` and `clients` may be NULL as a whole. `units`, for digest_units(), and `keys`
-- are given if there is a unit; then `known` says for each unit the seq of its first event if its
-- events were there already, and are not inserted again, or 0, whichever client they are from.
-- Each key stands in `keys` once. If nothing was left to insert, first_seq and last_seq are NULL.
CREATE FUNCTION gateway.publish_batch(channels text[], types text[], datas text[],
                                      attributes text[] DEFAULT NULL,
                                      units integer[] DEFAULT NULL,
                                      keys text[] DEFAULT NULL,
                                      clients text[] DEFAULT NULL,
                                      OUT first_seq bigint, OUT last_seq bigint,
                                      OUT xid xid8, OUT known bigint[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before_look pg_snapshot;
    digests     bytea[];
    fresh       bigint := cardinality(channels); -- how many there are to insert
    inserted    bigint;
BEGIN
    -- The server's share of the gateway's deadlines, until the end of the transaction: a
    -- gateway that froze here, or lost its network, would otherwise hold the order lock, and
    -- so every other gateway, until the server's own keepalives notice. Not
    -- statement_timeout: that would also cut short a COMMIT's wait for a synchronous standby,
    -- which PostgreSQL then reports as done.
    PERFORM set_config('lock_timeout', '10s', true),
            set_config('idle_in_transaction_session_timeout', '10s', true);

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
        SELECT count(*) INTO fresh FROM unnest(units) u (unit)
         WHERE coalesce(known[u.unit], 0) = 0;
    END IF;

    -- Nobody else takes a number meanwhile: the order lock is ours.
    IF fresh > 0 THEN
        first_seq := nextval('gateway.events_seq');
        last_seq := setval('gateway.events_seq', first_seq + fresh - 1);
        INSERT INTO gateway.events (seq, id, channel, type, data, attributes, client)
        OVERRIDING SYSTEM VALUE
        SELECT publish_batch.first_seq - 1 + row_number() OVER (ORDER BY e.place), 0,
               e.channel, e.type, e.data::json, e.attributes::json, e.client
          FROM unnest(channels, types, datas, publish_batch.attributes, units, clients)
               WITH ORDINALITY AS e (channel, type, data, attributes, unit, client, place)
         WHERE coalesce(known[e.unit], 0) = 0;
        -- What is not there is not answered as published: a trigger, or a rule, can leave out
        -- a row without a word.
        GET DIAGNOSTICS inserted = ROW_COUNT;
        IF inserted <> fresh THEN
            RAISE EXCEPTION 'the table gateway.events did not take the event: a trigger or '
                            'rule on it left it out';
        END IF;
    END IF;

    IF keys IS NOT NULL AND fresh > 0 THEN
        PERFORM gateway.note_units(units, keys, digests, known, first_seq);
    END IF;
    PERFORM pg_notify('gateway_events', coalesce(last_seq, gateway.newest_seq())::text);
    xid := pg_current_xact_id();
END
$$;

DROP FUNCTION gateway.newest_after(text, text, integer, integer);

-- After which id the newest `wanted` events begin on these channels, of these types (one a
-- line; empty: all), without those of the `excluded` clients (one a line). A type, or another
-- client's event, is looked for among the newest `max_stretch` events of these channels, as many
-- of each; a prefix among as many of the database.
CREATE FUNCTION gateway.newest_after(patterns text, types text, wanted integer,
                                     max_stretch integer, excluded text DEFAULT '')
RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
SET max_parallel_workers_per_gather = 0 AS $$
DECLARE
    names    text[] := ARRAY(SELECT DISTINCT p FROM unnest(string_to_array(patterns, E'\n')) p
                              WHERE p NOT LIKE '%*');
    prefixes text[] := ARRAY(SELECT left(p, -1) FROM unnest(string_to_array(patterns, E'\n')) p
                              WHERE p LIKE '%*');
    kinds    text[] := string_to_array(types, E'\n');
    own      text[] := string_to_array(excluded, E'\n');
    newest   bigint := gateway.newest_seq();
    found    bigint;
    -- However many channels: so many rows in all.
    each_stretch bigint := greatest(max_stretch / greatest(cardinality(names), 1), wanted);
BEGIN
    IF cardinality(prefixes) = 0 THEN
        SELECT min(n.seq) INTO found FROM (
            SELECT k.seq
              FROM unnest(names) AS c (name) CROSS JOIN LATERAL
                   (SELECT s.seq
                      FROM (SELECT e.seq, e.type, e.client FROM gateway.events e
                             WHERE e.seq IS NOT NULL
                               AND (e.channel, e.seq) > (c.name, 0::bigint)
                               AND (e.channel, e.seq) <= (c.name, newest)
                             ORDER BY e.channel DESC, e.seq DESC LIMIT each_stretch) s
                     WHERE (kinds = '{}' OR s.type = ANY (kinds))
                       AND (s.client = ANY (own)) IS NOT TRUE
                     ORDER BY s.seq DESC LIMIT wanted) k
             ORDER BY k.seq DESC LIMIT wanted) n;
    ELSE
        SELECT min(n.seq) INTO found FROM (
            SELECT e.seq
              FROM (SELECT s.seq, s.channel, s.type, s.client FROM gateway.events s
                     WHERE s.seq IS NOT NULL
                     ORDER BY s.seq DESC LIMIT max_stretch) e
             WHERE (e.channel = ANY (names) OR e.channel ^@ ANY (prefixes))
               AND (kinds = '{}' OR e.type = ANY (kinds))
               AND (e.client = ANY (own)) IS NOT TRUE
             ORDER BY e.seq DESC LIMIT wanted) n;
    END IF;
    RETURN coalesce(found - 1, newest);
END
$$;

REVOKE EXECUTE ON FUNCTION
    gateway.publish_batch(text[], text[], text[], text[], integer[], text[], text[]),
    gateway.newest_after(text, text, integer, integer, text)
    FROM PUBLIC;
