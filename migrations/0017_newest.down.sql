-- 0017_newest: takes it back.

-- The newest id that can be shown to anyone: of an event that is here, or that was here and
-- has been purged, or the beginning of this life.
CREATE OR REPLACE FUNCTION gateway.newest_seq() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off AS $$
    SELECT greatest(
        (SELECT e.seq FROM gateway.events e WHERE e.seq IS NOT NULL
          ORDER BY e.seq DESC LIMIT 1),
        (SELECT max(p.seq) FROM gateway.purges p),
        (SELECT max(i.base) FROM gateway.incarnations i))
$$;
