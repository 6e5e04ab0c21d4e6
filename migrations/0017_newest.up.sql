-- 0017_newest: the newest id is asked for without being planned each time.

-- The newest id that can be shown to anyone: of an event that is here, or that was here and
-- has been purged, or the beginning of this life. In PL/pgSQL, which keeps its plans: every
-- sweep that numbers something asks, and the event waits for it.
CREATE OR REPLACE FUNCTION gateway.newest_seq() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off AS $$
BEGIN
    RETURN greatest(
        (SELECT e.seq FROM gateway.events e WHERE e.seq IS NOT NULL
          ORDER BY e.seq DESC LIMIT 1),
        (SELECT max(p.seq) FROM gateway.purges p),
        (SELECT max(i.base) FROM gateway.incarnations i));
END
$$;
