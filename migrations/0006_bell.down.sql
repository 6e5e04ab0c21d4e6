-- 0006_bell: takes it back: every INSERT rings again.
SET LOCAL lock_timeout = '5s';

DROP TRIGGER ring_sweeper ON gateway.events;

CREATE OR REPLACE FUNCTION gateway.ring_sweeper() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('gateway_wake', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER ring_sweeper AFTER INSERT ON gateway.events FOR EACH STATEMENT
    WHEN (current_setting('gateway.quiet', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION gateway.ring_sweeper();
ALTER TABLE gateway.events ENABLE ALWAYS TRIGGER ring_sweeper;

CREATE OR REPLACE FUNCTION gateway.identity() RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%s/%s/%s/%s', (SELECT system_identifier FROM pg_control_system()),
                  left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
                  (SELECT oid FROM pg_database WHERE datname = current_database()),
                  'gateway.events'::regclass::oid)
$$;
