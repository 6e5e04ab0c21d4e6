-- 0014_encoding: what has no place in UTF-8 does not get in.
--
-- Gateways read in UTF-8. In a database of another encoding there can be bytes that have no
-- place in it, or, in SQL_ASCII, that mean nothing; one row with them could never be read, nor
-- anything behind it. So whoever brings them is refused; where all is UTF-8 this costs nothing.
CREATE FUNCTION gateway.check_encoding() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM convert_to(NEW.channel, 'UTF8'), convert_to(NEW.type, 'UTF8'),
            convert_to(NEW.data::text, 'UTF8'), convert_to(NEW.client, 'UTF8');
    RETURN NEW;
END
$$;

DO $$
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        CREATE TRIGGER check_encoding BEFORE INSERT OR UPDATE OF channel, type, data, client
            ON gateway.events FOR EACH ROW EXECUTE FUNCTION gateway.check_encoding();
        ALTER TABLE gateway.events ENABLE ALWAYS TRIGGER check_encoding;
    END IF;
END
$$;
