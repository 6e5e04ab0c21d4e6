-- 0003_resume: how a subscriber that comes back with an id gets what it missed, from the
-- table; and how it is known when that is not possible.
--
-- An id is good to go on from when every event after it is still here. It is not when
--   it is newer than everything there is           (made up, or from another database)
--   it lies between two lives of the table         (given by a primary that was lost)
--   something after it has been deleted            (gateway.purges)
-- The first two are the ids of events that do not exist any more.

-- Where the life before ended: the numbers from there to `base` were never given, or were
-- given to events that are lost.
ALTER TABLE gateway.incarnations ADD COLUMN previous_end bigint NOT NULL DEFAULT 0;
UPDATE gateway.incarnations i SET previous_end = greatest(
    (SELECT e.seq FROM gateway.events e WHERE e.seq <= i.base ORDER BY e.seq DESC LIMIT 1),
    (SELECT max(o.base) FROM gateway.incarnations o WHERE o.base < i.base), 0);
ALTER TABLE gateway.incarnations ALTER COLUMN previous_end DROP DEFAULT;

-- The newest id that can be shown to anyone: of an event that is here, or that was here and
-- has been purged, or the beginning of this life.
CREATE FUNCTION gateway.newest_seq() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off AS $$
    SELECT greatest(
        (SELECT e.seq FROM gateway.events e WHERE e.seq IS NOT NULL
          ORDER BY e.seq DESC LIMIT 1),
        (SELECT max(p.seq) FROM gateway.purges p),
        (SELECT max(i.base) FROM gateway.incarnations i))
$$;

-- As before, and notes where the life before ended.
CREATE OR REPLACE FUNCTION gateway.begin_incarnation(new_identity text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    new_base bigint;
BEGIN
    SELECT ((last_value >> 40) + 1) << 40 INTO new_base FROM gateway.events_seq;
    PERFORM setval('gateway.events_seq', new_base);
    INSERT INTO gateway.incarnations (base, identity, previous_end)
    VALUES (new_base, new_identity, coalesce(gateway.newest_seq(), 0));

    -- '3' is the first ordinary transaction number: finished in every snapshot.
    UPDATE gateway.events SET xid = '3' WHERE seq IS NULL;
    DELETE FROM gateway.sweeps;
    INSERT INTO gateway.sweeps (step, done) VALUES (1, '1:1:');
END
$$;

-- A gateway has seen an event with this number. If there is none so high, this database has
-- gone back in time without a trace (a disk's snapshot was restored), and begins a new life:
-- numbers that were seen are not given again.
CREATE FUNCTION gateway.has_seen(seen bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM gateway.lock_order();
    IF seen > gateway.newest_seq() THEN
        PERFORM setval('gateway.events_seq', greatest(seen, s.last_value))
           FROM gateway.events_seq s;
        PERFORM gateway.begin_incarnation(gateway.identity());
    END IF;
END
$$;

-- After which id the oldest event begins that is kept.
CREATE FUNCTION gateway.oldest_seq() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    SELECT coalesce((SELECT e.seq - 1 FROM gateway.events e WHERE e.seq IS NOT NULL
                      ORDER BY e.seq LIMIT 1), gateway.newest_seq())
$$;

-- What a reader must know of the whole table to judge an id, as of the caller's snapshot.
-- `oldest`: after it all begins that is kept; 0 if nothing after `after` was deleted.
-- `lost`: pairs of numbers, "from to from to ...": no id between them, without the two, is
-- of this database any more; only pairs that end above `after`.
CREATE FUNCTION gateway.horizon(after bigint, OUT newest bigint, OUT purged bigint,
                                OUT oldest bigint, OUT lost text, OUT standby boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT gateway.newest_seq(), gone.seq,
           CASE WHEN after < gone.seq THEN gateway.oldest_seq() ELSE 0 END,
           coalesce((SELECT string_agg(i.previous_end || ' ' || i.base, ' ' ORDER BY i.base)
                       FROM gateway.incarnations i WHERE i.base > after), ''),
           pg_is_in_recovery()
      FROM (SELECT coalesce(max(p.seq), 0) AS seq FROM gateway.purges p) gone
$$;

-- A page: the numbers of the next events after an id, on the channels that the patterns
-- name, one a line: a name, or a prefix with '*' behind it. All of them up to `through` are
-- in it. The caller fetches the rows themselves in the same statement, and so from the same
-- snapshot.
--
-- Names are looked up one by one, each in its own short range of events_by_channel. (Asked
-- for all at once, or in another order, the planner walks events_by_seq for a rare channel
-- from one end to the other.) A prefix may stand for any number of channels, so prefixes
-- walk events_by_seq, but only a stretch of it at a time.
--
-- Data is weighed as it is stored: compressed it may be more, by a hundred times at the most.
CREATE FUNCTION gateway.replay_page(patterns text, after bigint, max_rows integer,
                                    max_bytes integer, max_stretch integer,
                                    OUT seqs bigint[], OUT through bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
SET max_parallel_workers_per_gather = 0 AS $$
DECLARE
    names    text[] := ARRAY(SELECT DISTINCT p FROM unnest(string_to_array(patterns, E'\n')) p
                              WHERE p NOT LIKE '%*');
    prefixes text[] := ARRAY(SELECT left(p, -1) FROM unnest(string_to_array(patterns, E'\n')) p
                              WHERE p LIKE '%*');
    fitting  integer;
BEGIN
    through := gateway.newest_seq();
    IF cardinality(prefixes) = 0 THEN
        seqs := ARRAY(
            SELECT k.seq
              FROM unnest(names) AS c (name) CROSS JOIN LATERAL
                   (SELECT e.seq FROM gateway.events e
                     WHERE e.seq IS NOT NULL
                       AND (e.channel, e.seq) > (c.name, after)
                       AND (e.channel, e.seq) <= (c.name, through)
                     ORDER BY e.channel, e.seq LIMIT max_rows) k
             ORDER BY k.seq LIMIT max_rows);
    ELSE
        seqs := ARRAY(
            SELECT e.seq
              FROM (SELECT s.seq, s.channel FROM gateway.events s WHERE s.seq > after
                     ORDER BY s.seq LIMIT max_stretch) e
             WHERE e.channel = ANY (names) OR e.channel ^@ ANY (prefixes)
             ORDER BY e.seq LIMIT max_rows);
        IF cardinality(seqs) < max_rows THEN
            through := coalesce(
                (SELECT s.seq FROM gateway.events s WHERE s.seq > after
                  ORDER BY s.seq OFFSET max_stretch - 1 LIMIT 1), through);
        END IF;
    END IF;
    IF cardinality(seqs) >= max_rows THEN
        through := seqs[max_rows];
    END IF;

    SELECT count(*) INTO fitting
      FROM (SELECT sum(pg_column_size(e.data)) OVER (ORDER BY e.seq) AS bytes
              FROM unnest(seqs) AS s (seq), gateway.events e WHERE e.seq = s.seq) w
     WHERE w.bytes <= max_bytes;
    IF fitting < cardinality(seqs) THEN
        seqs := seqs[1:greatest(fitting, 1)]; -- one that is larger comes alone
        through := seqs[cardinality(seqs)];
    END IF;
END
$$;

-- After which id the newest `wanted` events begin on these channels, of these types (one a
-- line; empty: all). A type is looked for among the newest `max_stretch` events of these
-- channels, as many of each; a prefix among as many of the database.
CREATE FUNCTION gateway.newest_after(patterns text, types text, wanted integer,
                                     max_stretch integer) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
SET max_parallel_workers_per_gather = 0 AS $$
DECLARE
    names    text[] := ARRAY(SELECT DISTINCT p FROM unnest(string_to_array(patterns, E'\n')) p
                              WHERE p NOT LIKE '%*');
    prefixes text[] := ARRAY(SELECT left(p, -1) FROM unnest(string_to_array(patterns, E'\n')) p
                              WHERE p LIKE '%*');
    kinds    text[] := string_to_array(types, E'\n');
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
                      FROM (SELECT e.seq, e.type FROM gateway.events e
                             WHERE e.seq IS NOT NULL
                               AND (e.channel, e.seq) > (c.name, 0::bigint)
                               AND (e.channel, e.seq) <= (c.name, newest)
                             ORDER BY e.channel DESC, e.seq DESC LIMIT each_stretch) s
                     WHERE kinds = '{}' OR s.type = ANY (kinds)
                     ORDER BY s.seq DESC LIMIT wanted) k
             ORDER BY k.seq DESC LIMIT wanted) n;
    ELSE
        SELECT min(n.seq) INTO found FROM (
            SELECT e.seq
              FROM (SELECT s.seq, s.channel, s.type FROM gateway.events s
                     WHERE s.seq IS NOT NULL
                     ORDER BY s.seq DESC LIMIT max_stretch) e
             WHERE (e.channel = ANY (names) OR e.channel ^@ ANY (prefixes))
               AND (kinds = '{}' OR e.type = ANY (kinds))
             ORDER BY e.seq DESC LIMIT wanted) n;
    END IF;
    RETURN coalesce(found - 1, newest);
END
$$;

-- Where a gateway that starts begins to fill its memory: after this id come at most `max_rows`
-- events of at most `max_bytes`, all of this life, and all that there ever were.
CREATE FUNCTION gateway.recent_after(max_rows integer, max_bytes bigint) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    SELECT coalesce(min(w.seq) - 1, gateway.newest_seq())
      FROM (SELECT n.seq, sum(n.bytes) OVER (ORDER BY n.seq DESC) AS bytes
              FROM (SELECT e.seq, 200 + pg_column_size(e.data) AS bytes
                      FROM gateway.events e
                     WHERE e.seq > greatest(
                               (SELECT max(i.base) FROM gateway.incarnations i),
                               (SELECT max(p.seq) FROM gateway.purges p))
                     ORDER BY e.seq DESC LIMIT max_rows) n) w
     WHERE w.bytes <= max_bytes
$$;

REVOKE EXECUTE ON FUNCTION gateway.newest_seq(), gateway.has_seen(bigint),
    gateway.horizon(bigint), gateway.replay_page(text, bigint, integer, integer, integer),
    gateway.oldest_seq(), gateway.newest_after(text, text, integer, integer),
    gateway.recent_after(integer, bigint)
    FROM PUBLIC;
