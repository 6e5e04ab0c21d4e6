-- 0003_resume: takes it back; the events stay.
DROP FUNCTION gateway.recent_after(integer, bigint);
DROP FUNCTION gateway.newest_after(text, text, integer, integer);
DROP FUNCTION gateway.oldest_seq();
DROP FUNCTION gateway.replay_page(text, bigint, integer, integer, integer);
DROP FUNCTION gateway.horizon(bigint);
DROP FUNCTION gateway.has_seen(bigint);

CREATE OR REPLACE FUNCTION gateway.begin_incarnation(new_identity text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    new_base bigint;
BEGIN
    SELECT ((last_value >> 40) + 1) << 40 INTO new_base FROM gateway.events_seq;
    PERFORM setval('gateway.events_seq', new_base);
    INSERT INTO gateway.incarnations (base, identity) VALUES (new_base, new_identity);

    -- '3' is the first ordinary transaction number: finished in every snapshot.
    UPDATE gateway.events SET xid = '3' WHERE seq IS NULL;
    DELETE FROM gateway.sweeps;
    INSERT INTO gateway.sweeps (step, done) VALUES (1, '1:1:');
END
$$;

DROP FUNCTION gateway.newest_seq();
ALTER TABLE gateway.incarnations DROP COLUMN previous_end;
