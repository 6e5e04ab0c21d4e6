-- 0004_idempotency: takes back all of it. The keys, and the attributes of CloudEvents, are gone.
SET LOCAL lock_timeout = '5s'; -- as on the way up

DROP FUNCTION gateway.purge_keys(interval, integer);
DROP FUNCTION gateway.publish_batch(text[], text[], text[], text[], integer[], text[]);
DROP FUNCTION gateway.note_units(integer[], text[], bytea[], bigint[], bigint);
DROP FUNCTION gateway.find_units(text[], bytea[]);
DROP FUNCTION gateway.digest_units(text[], text[], text[], integer[]);
DROP TABLE gateway.idempotency_keys;
ALTER TABLE gateway.events DROP COLUMN attributes;

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

REVOKE EXECUTE ON FUNCTION gateway.publish_batch(text[], text[], text[]) FROM PUBLIC;
