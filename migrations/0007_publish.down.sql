-- 0007_publish: takes it back: the function is that of 0004_idempotency again.
COMMENT ON COLUMN gateway.events.id IS
    'Order of insertion, which is not the order of commits: never a place to resume from.';

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
