-- 0001_events: takes back all of it. The events are gone.
DROP TABLE gateway.events, gateway.incarnations, gateway.sweeps;
DROP SEQUENCE gateway.events_seq;
DROP FUNCTION gateway.publish(text, json, text);
DROP FUNCTION gateway.publish_batch(text[], text[], text[]);
DROP FUNCTION gateway.sweep(integer, boolean);
DROP FUNCTION gateway.sweep_locked(integer, boolean);
DROP FUNCTION gateway.sweep_advance(pg_snapshot);
DROP FUNCTION gateway.sweep_has_stragglers();
DROP FUNCTION gateway.sweep_needed();
DROP FUNCTION gateway.lock_order();
DROP FUNCTION gateway.begin_incarnation(text);
DROP FUNCTION gateway.identity();
DROP FUNCTION gateway.ring_sweeper();
