-- 0008_doorbell: the doorbell says how far it rings.
--
-- A notification of `gateway_events` carries the newest number that its transaction has given.
-- Notifications come in the order of their commits. So a gateway that relays those of
-- applications, too, can put each in its place among the events: behind what was rung for
-- before it, and before what is rung for after it.

-- Numbers up to `batch` rows that applications have committed; returns how many, so that
-- the caller comes again at once when it was a full batch. Costs next to nothing when
-- there is none. `thorough` looks for stragglers, too, and notes how far it has come even
-- if there is nothing to number; now and then is enough.
-- Must be the only statement of its transaction, which is READ COMMITTED.
CREATE OR REPLACE FUNCTION gateway.sweep(batch integer DEFAULT 5000,
                                         thorough boolean DEFAULT false)
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
        PERFORM pg_notify('gateway_events', gateway.newest_seq()::text);
    END IF;
    RETURN numbered;
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
CREATE OR REPLACE FUNCTION gateway.publish_batch(channels text[], types text[], datas text[],
                                                 attributes text[] DEFAULT NULL,
                                                 units integer[] DEFAULT NULL,
                                                 keys text[] DEFAULT NULL,
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
        INSERT INTO gateway.events (seq, id, channel, type, data, attributes)
        OVERRIDING SYSTEM VALUE
        SELECT publish_batch.first_seq - 1 + row_number() OVER (ORDER BY e.place), 0,
               e.channel, e.type, e.data::json, e.attributes::json
          FROM unnest(channels, types, datas, publish_batch.attributes, units)
               WITH ORDINALITY AS e (channel, type, data, attributes, unit, place)
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
