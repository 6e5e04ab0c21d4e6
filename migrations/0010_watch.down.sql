-- 0010_watch: takes it back. No table is watched any more.
SET LOCAL lock_timeout = '5s'; -- a trigger is taken away when nobody uses its table

DROP FUNCTION gateway.unwatch(regclass);
DROP FUNCTION gateway.watch(regclass, text, text[], text[], boolean);
DROP FUNCTION gateway.check_choice(regclass, text, text[], text[], boolean);
DROP FUNCTION gateway.check_table(regclass);
DROP FUNCTION gateway.own_tables();
DROP FUNCTION gateway.check_owner(regclass);
DROP FUNCTION gateway.family(oid);
DROP VIEW gateway.watched;
DROP FUNCTION gateway.publish_change() CASCADE;
DROP FUNCTION gateway.read_change() CASCADE;
DROP FUNCTION gateway.truncate_is_told(oid, text);
DROP FUNCTION gateway.table_name(oid);
