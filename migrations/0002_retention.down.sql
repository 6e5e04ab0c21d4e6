-- 0002_retention: takes it back. What was deleted stays deleted, and is noted no longer.
SET LOCAL lock_timeout = '5s'; -- as on the way up
DROP TRIGGER note_delete ON gateway.events;
DROP TRIGGER note_truncate ON gateway.events;
DROP FUNCTION gateway.purge(interval, integer, bigint);
DROP FUNCTION gateway.note_delete();
DROP FUNCTION gateway.note_truncate();
DROP TABLE gateway.purges;
