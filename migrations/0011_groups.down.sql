-- 0011_groups: takes it back, with all groups and what was delivered to them; the events stay.
DROP FUNCTION gateway.claim(text, text, integer, interval, text, integer, bigint);
DROP FUNCTION gateway.check_claim(text, text, integer, interval, text, integer, bigint);
DROP FUNCTION gateway.raise_floor(integer, timestamptz, timestamptz);
DROP FUNCTION gateway.claim_due(gateway.groups, timestamptz, timestamptz, integer, bigint);
DROP FUNCTION gateway.bury(integer, bigint[]);
DROP FUNCTION gateway.delivery_places(integer, bigint[]);
DROP FUNCTION gateway.fitting(bigint[], bigint, boolean);
DROP FUNCTION gateway.new_events(gateway.groups, integer);
DROP FUNCTION gateway.remove_group(text, text);
DROP FUNCTION gateway.make_group(text, text, text, integer);
DROP FUNCTION gateway.group_floor(integer);
DROP FUNCTION gateway.group_position(gateway.groups);
DROP TYPE gateway.claimed;
CREATE OR REPLACE FUNCTION gateway.own_tables() RETURNS name[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT '{events,idempotency_keys,incarnations,migrations,purges,sweeps}'::name[]
$$;
DROP TABLE gateway.waits;
DROP TABLE gateway.losses;
DROP TABLE gateway.floors;
DROP TABLE gateway.deliveries;
DROP TABLE gateway.groups;
