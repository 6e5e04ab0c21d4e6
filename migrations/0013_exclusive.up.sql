-- 0013_exclusive: what a gateway needs for a group with one consumer at a time.

-- The leases of these deliveries begin anew; NULL: they stay as they are, and nothing is written.
-- The ids of those that are not held any more.
CREATE FUNCTION gateway.renew(ids text[], group_names text[], lease interval)
RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_material = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    each     record;
    of_group integer;
    held     boolean;
BEGIN
    -- In the order in which everybody locks them.
    FOR each IN SELECT u.id, u.group_name, p.* FROM unnest(ids, group_names) AS u (id, group_name),
                                                    gateway.parse_delivery(u.id) p
                 ORDER BY u.group_name, p.seq
    LOOP
        -- By its key: "is open" has an index, which leads past all that is in flight.
        SELECT g.id, d.held INTO of_group, held
          FROM (SELECT v.channel FROM gateway.events v WHERE v.seq = each.seq OFFSET 0) e
          JOIN gateway.groups g ON g.channel = e.channel AND g.name = each.group_name
         CROSS JOIN LATERAL
               (SELECT v.acked_at IS NULL AND NOT v.dead
                       AND (v.attempt, v.lease) = (each.attempt, each.lease) AS held
                  FROM gateway.deliveries v
                 WHERE v.group_id = g.id AND v.seq = each.seq OFFSET 0) d;
        IF held IS NOT TRUE THEN
            RETURN NEXT each.id;
        ELSIF renew.lease IS NOT NULL THEN
            -- What is locked is about to be acknowledged, perhaps for long: the others' leases
            -- do not wait for that.
            UPDATE gateway.deliveries d
               SET due_at = greatest(d.due_at, clock_timestamp() + renew.lease)
             WHERE d.ctid = ANY (ARRAY(
                       SELECT v.ctid FROM gateway.deliveries v
                        WHERE v.group_id = of_group AND v.seq = each.seq
                          FOR NO KEY UPDATE SKIP LOCKED))
               AND (d.attempt, d.lease) = (each.attempt, each.lease);
        END IF;
    END LOOP;
END
$$;

-- Of what is in flight of this group, the thousand with the lowest numbers are due at once; how
-- many that were. A thousand is well within the time that a statement has.
CREATE FUNCTION gateway.recall(channel text, group_name text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    ids text[];
BEGIN
    ids := ARRAY(SELECT format('%s.%s.%s', d.seq, d.attempt, d.lease)
                   FROM gateway.groups g
                   JOIN gateway.deliveries d ON d.group_id = g.id
                  WHERE g.channel = recall.channel AND g.name = group_name
                    AND d.acked_at IS NULL AND NOT d.dead AND d.lease IS NOT NULL
                    AND d.due_at > clock_timestamp()
                  ORDER BY d.seq LIMIT 1000);
    PERFORM gateway.release(ids, array_fill(group_name, ARRAY[cardinality(ids)]));
    RETURN cardinality(ids);
END
$$;

REVOKE EXECUTE ON FUNCTION gateway.renew(text[], text[], interval),
    gateway.recall(text, text) FROM PUBLIC;
