-- 0013_exclusive: what a gateway needs for a group with one consumer at a time.

-- The leases of these deliveries begin anew; NULL: they stay as they are. The ids of those that
-- are not held any more.
CREATE FUNCTION gateway.renew(ids text[], group_names text[], lease interval)
RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    each record;
BEGIN
    -- In the order in which everybody locks them.
    FOR each IN SELECT u.id, u.group_name, p.* FROM unnest(ids, group_names) AS u (id, group_name),
                                                    gateway.parse_delivery(u.id) p
                 ORDER BY u.group_name, p.seq
    LOOP
        UPDATE gateway.deliveries d
           SET due_at = CASE WHEN renew.lease IS NULL THEN d.due_at
                             ELSE greatest(d.due_at, clock_timestamp() + renew.lease) END
          FROM gateway.events e, gateway.groups g
         WHERE e.seq = each.seq AND g.channel = e.channel AND g.name = each.group_name
           AND d.group_id = g.id AND d.seq = each.seq
           AND d.acked_at IS NULL AND NOT d.dead
           AND (d.attempt, d.lease) = (each.attempt, each.lease);
        IF NOT FOUND THEN
            RETURN NEXT each.id;
        END IF;
    END LOOP;
END
$$;

-- All that is in flight of this group is due at once; how many that were.
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
                    AND d.due_at > clock_timestamp());
    PERFORM gateway.release(ids, array_fill(group_name, ARRAY[cardinality(ids)]));
    RETURN cardinality(ids);
END
$$;

REVOKE EXECUTE ON FUNCTION gateway.renew(text[], text[], interval),
    gateway.recall(text, text) FROM PUBLIC;
