-- 0010_watch: triggers that publish what changes in a table.
--
-- A watched table has two triggers for its rows, which take turns, row by row:
--
--   GatewayWatch_1_read      read_change()     writes the row as JSON, with the rights of
--                                              whoever changes it
--   GatewayWatch_2_publish   publish_change()  puts that into gateway.events, with the rights
--                                              of the gateway's schema
--
-- Not one, because both would then need the second one's rights, and the first runs code of
-- strangers: row_to_json() calls the function of a cast to json, which whoever made a type may
-- have made for it. So nothing is done with the gateway's rights but the INSERT, and writers
-- need no right on anything here. What goes from the first to the second stands in a setting
-- of the transaction; it is no more than the owner of the table could say by changing a row.
--
-- Who may publish what where: whoever has USAGE on this schema and owns a table (not a temporary
-- one, which anybody may make), or may put triggers on it, can publish its changes to any
-- channel, but only with these four types and with the true name of the table. Where that is
-- too much, EXECUTE on publish_change() can be taken away from PUBLIC and granted to few.
--
-- Everything about a watch stands in its triggers: they belong to the table, and so go with it
-- into a dump of the application's schema alone, follow it when it is renamed, and are given by
-- PostgreSQL to each partition. Statement triggers with transition tables would cost less for
-- many rows, but do not see a row written to a partition or a child by its own name, and do not
-- say which of the new rows was which of the old.
--
-- Triggers fire in the order of their names, and these stand before those in small letters: a row
-- comes before what other triggers do about it.

-- The table as its channel and its events name it: without quotes, and without the schema if
-- that is where tables go of which none was named: public, or the schema of a role's own name,
-- which for a role called gateway is this one.
CREATE FUNCTION gateway.table_name(relation oid) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN n.nspname IN ('public', 'gateway') THEN '' ELSE n.nspname || '.' END
           || c.relname
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
$$;

-- Arguments: 'old' or '', for whether an UPDATE tells the old row, too; then the chosen columns,
-- none for all. Leaves the new and the old row in the setting gateway.change, with a control
-- character between them, which JSON does not have; or '' if there is nothing to tell.
-- Runs as the writer, who may have no right on this schema: calls nothing in it. Its settings
-- make the text that of the row, whatever the session has set.
CREATE FUNCTION gateway.read_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO, MDY'
SET intervalstyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1
SET lc_monetary = 'C' AS $$
DECLARE
    change  text;
    new_row text;
    old_row text;
BEGIN
    -- Bytes are compared: not every type has an equality, and 1.0 is told from 1.00.
    IF TG_OP = 'UPDATE' AND OLD *= NEW THEN
        change := '';
    ELSIF TG_NARGS = 1 THEN
        change := CASE WHEN TG_OP = 'DELETE' THEN 'null' ELSE row_to_json(NEW)::text END
                  || E'\x01'
                  || CASE WHEN TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND TG_ARGV[0] = 'old'
                          THEN row_to_json(OLD)::text ELSE 'null' END;
    ELSE
        SELECT '{' || string_agg(m.member, ',' ORDER BY m.place) FILTER (WHERE m.new) || '}',
               '{' || string_agg(m.member, ',' ORDER BY m.place) FILTER (WHERE NOT m.new) || '}'
          INTO new_row, old_row
          FROM (SELECT true, to_json(n.key) || ':' || n.value, n.place, n.key
                  FROM json_each(row_to_json(NEW)) WITH ORDINALITY n (key, value, place)
                UNION ALL
                SELECT false, to_json(o.key) || ':' || o.value, o.place, o.key
                  FROM json_each(row_to_json(OLD)) WITH ORDINALITY o (key, value, place)
               ) m (new, member, place, key)
         WHERE m.key = ANY (TG_ARGV[1:]);
        change := CASE WHEN TG_OP = 'UPDATE' AND new_row IS NOT DISTINCT FROM old_row THEN ''
                       ELSE CASE WHEN TG_OP = 'DELETE' THEN 'null' ELSE coalesce(new_row, '{}') END
                            || E'\x01'
                            || CASE WHEN TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND TG_ARGV[0] = 'old'
                                    THEN coalesce(old_row, '{}') ELSE 'null' END END;
    END IF;

    change := set_config('gateway.change', change, true);
    RETURN NULL;
END
$$;

-- Argument: the channel. Publishes what read_change() has read, or a TRUNCATE, and leaves
-- nothing of it in the setting: the writer may not be allowed to read the row.
CREATE FUNCTION gateway.publish_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change  text;
    cleared text;
BEGIN
    IF TG_TABLE_SCHEMA ^@ 'pg_temp_' THEN
        RAISE EXCEPTION 'a temporary table cannot be watched'
            USING ERRCODE = 'wrong_object_type', HINT = 'Drop the trigger.';
    ELSIF TG_OP = 'TRUNCATE' THEN
        change := CASE WHEN gateway.truncate_is_told(TG_RELID, TG_ARGV[0]) THEN ''
                       ELSE E'null\x01null' END;
    ELSE
        change := current_setting('gateway.change', true);
        cleared := set_config('gateway.change', '', true);
    END IF;

    -- Each of the two rows is made sure to be one JSON value, and not the end of this object.
    IF change <> '' THEN
        change := '{"table":'
            || to_json(CASE WHEN TG_OP <> 'TRUNCATE' AND pg_partition_root(TG_RELID) <> TG_RELID
                            THEN gateway.table_name(pg_partition_root(TG_RELID))
                            WHEN TG_TABLE_SCHEMA IN ('public', 'gateway') THEN TG_TABLE_NAME::text
                            ELSE TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME END)
            || ',"op":"' || lower(TG_OP)
            || '","new":' || split_part(change, E'\x01', 1)::json
            || ',"old":' || split_part(change, E'\x01', 2)::json || '}';
        IF octet_length(change) > 67108864 THEN -- as the table says, but without showing the row
            RAISE EXCEPTION 'a change of % is over 64 MiB and cannot be published', TG_RELID::regclass
                USING ERRCODE = 'program_limit_exceeded',
                      HINT = 'Watch it without its large columns: columns => ''{...}''.';
        END IF;
        INSERT INTO gateway.events (channel, type, data)
        VALUES (TG_ARGV[0], lower(TG_OP), change::json);
    END IF;
    RETURN NULL;
END
$$;

-- TRUNCATE of a partitioned table fires its own trigger first and then those of its partitions.
-- Was the last thing that this transaction published that a table above this one is empty?
CREATE FUNCTION gateway.truncate_is_told(partition oid, channel text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM (SELECT e.channel, e.type, e.data FROM gateway.events e
                      WHERE e.seq IS NULL AND e.xid = pg_current_xact_id_if_assigned()
                      ORDER BY e.id DESC LIMIT 1) last
         WHERE last.type = 'truncate' AND last.channel = truncate_is_told.channel
           AND last.data->>'table' IN (SELECT gateway.table_name(a.relid)
                                         FROM pg_partition_ancestors(partition) a
                                        WHERE a.relid <> partition))
$$;

-- Every watch: the tables that were named to watch(), and the children they had.
CREATE VIEW gateway.watched AS
WITH triggers AS (
    SELECT t.tgrelid AS relation, t.tgtype AS bits, t.tgfoid AS function,
           ARRAY(SELECT convert_from(decode(a.argument, 'escape'), getdatabaseencoding())
                   FROM unnest(string_to_array(encode(t.tgargs, 'escape'), '\000'))
                        WITH ORDINALITY a (argument, place)
                  WHERE a.place <= t.tgnargs ORDER BY a.place) AS arguments
      FROM pg_trigger t
     WHERE t.tgparentid = 0 AND t.tgfoid IN ('gateway.read_change()'::regprocedure,
                                             'gateway.publish_change()'::regprocedure)
)
SELECT p.relation::regclass AS "table",
       min(p.arguments[1]) AS channel,
       nullif(min(r.arguments[2:]), '{}') AS columns,
       array_remove(ARRAY[
           CASE WHEN bit_or(p.bits) & 4 <> 0 THEN 'insert' END,
           CASE WHEN bit_or(p.bits) & 16 <> 0 THEN 'update' END,
           CASE WHEN bit_or(p.bits) & 8 <> 0 THEN 'delete' END,
           CASE WHEN bit_or(p.bits) & 32 <> 0 THEN 'truncate' END], NULL) AS operations,
       min(r.arguments[1]) IS NOT DISTINCT FROM 'old' AS old
  FROM triggers p
  LEFT JOIN triggers r ON r.relation = p.relation
                      AND r.function = 'gateway.read_change()'::regprocedure
 WHERE p.function = 'gateway.publish_change()'::regprocedure
   -- Not the trigger for TRUNCATE that belongs to the watch of a table above.
   AND NOT EXISTS (SELECT FROM pg_partition_ancestors(p.relation) a
                     JOIN triggers w ON w.relation = a.relid WHERE a.relid <> p.relation)
 GROUP BY p.relation;

COMMENT ON VIEW gateway.watched IS
    'The tables whose changes are published: see gateway.watch() and gateway.unwatch().';
GRANT SELECT ON gateway.watched TO PUBLIC;

-- This table, its partitions and the tables that inherit from it.
CREATE FUNCTION gateway.family(head oid) RETURNS TABLE (relation oid, kind "char", part boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE members AS (
        SELECT head AS relation
        UNION
        SELECT i.inhrelid FROM members m JOIN pg_inherits i ON i.inhparent = m.relation
    )
    SELECT c.oid, c.relkind, c.relispartition FROM members m JOIN pg_class c ON c.oid = m.relation
     ORDER BY c.oid <> head, c.oid
$$;

-- Raises an error unless the caller may watch this table, or end its watch.
CREATE FUNCTION gateway.check_owner(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = relation);
BEGIN
    IF owner IS NULL THEN
        RAISE EXCEPTION 'there is no table %', coalesce(relation::text, 'NULL')
            USING ERRCODE = 'undefined_table',
                  HINT = 'Name a table, with its schema if that is not in the search path.';
    ELSIF NOT pg_has_role(owner, 'USAGE') THEN
        RAISE EXCEPTION 'must be owner of table %', relation
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('Let its owner do it: %s.', pg_get_userbyid(owner));
    END IF;
END
$$;

-- The tables that publishing itself writes to. A migration that adds one adds it here, too.
CREATE FUNCTION gateway.own_tables() RETURNS name[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT '{events,idempotency_keys,incarnations,migrations,purges,sweeps}'::name[]
$$;

CREATE FUNCTION gateway.check_table(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    class   pg_class;
    watched oid;
BEGIN
    SELECT c.* INTO class FROM pg_class c WHERE c.oid = relation;
    IF class.relnamespace = 'pg_catalog'::regnamespace
       OR class.relnamespace = 'gateway'::regnamespace
          AND class.relname = ANY (gateway.own_tables()) THEN
        RAISE EXCEPTION '% is not a table of an application', relation
            USING ERRCODE = 'wrong_object_type',
                  HINT = 'The gateway''s own tables, and PostgreSQL''s, cannot be watched.';
    ELSIF class.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '% is not a table', relation
            USING ERRCODE = 'wrong_object_type',
                  HINT = 'Views and foreign tables change without a trigger being told: watch'
                         ' the tables behind them.';
    ELSIF class.relpersistence = 't' THEN
        RAISE EXCEPTION '% is a temporary table', relation
            USING ERRCODE = 'wrong_object_type',
                  HINT = 'Only its own session sees it: use gateway.publish() there.';
    END IF;

    SELECT t.tgrelid INTO watched FROM gateway.family(relation) f JOIN pg_trigger t
                                   ON t.tgrelid = f.relation
     WHERE t.tgfoid IN ('gateway.read_change()'::regprocedure,
                        'gateway.publish_change()'::regprocedure) LIMIT 1;
    IF watched IS NOT NULL THEN
        RAISE EXCEPTION '% is watched already', watched::regclass
            USING ERRCODE = 'duplicate_object',
                  HINT = 'SELECT * FROM gateway.watched shows how. One table has one watch, which'
                         ' gateway.unwatch() ends.';
    END IF;
END
$$;

CREATE FUNCTION gateway.check_choice(relation regclass, channel text, columns text[],
                                     operations text[], old boolean) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong text;
BEGIN
    IF octet_length(channel) NOT BETWEEN 1 AND 255
       OR channel ~ '[\x01-\x1f\x7f-\x9f]|\*$' THEN
        RAISE EXCEPTION 'no name for a channel: %', quote_literal(channel)
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'A channel is 1 to 255 bytes without control characters, and does not end'
                         ' in *. Give another one: channel => ''...''.';
    END IF;

    SELECT coalesce(quote_ident(c.name), 'NULL') INTO wrong FROM unnest(columns) c (name)
     WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = relation
                          AND a.attname = c.name AND a.attnum > 0 AND NOT a.attisdropped);
    IF FOUND OR cardinality(columns) = 0 THEN
        RAISE EXCEPTION '% has no column %', relation, coalesce(wrong, 'in an empty list')
            USING ERRCODE = 'undefined_column',
                  HINT = 'Names of columns are written as they are, without quotes. NULL chooses'
                         ' all of them.';
    END IF;

    SELECT coalesce(quote_literal(o.name), 'NULL') INTO wrong FROM unnest(operations) o (name)
     WHERE coalesce(o.name NOT IN ('insert', 'update', 'delete', 'truncate'), true);
    IF FOUND OR coalesce(cardinality(operations), 0) = 0 THEN
        RAISE EXCEPTION 'no operation: %', coalesce(wrong, 'an empty list')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'There are insert, update, delete and truncate.';
    ELSIF old IS NULL THEN
        RAISE EXCEPTION 'old is NULL'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It is true or false.';
    END IF;
END
$$;

-- Publishes what changes in a table from now on, at the commit of whoever changes it, as
-- {"table","op","new","old"} with the type insert, update, delete or truncate. Returns the
-- channel, which is the table's name (see table_name) unless given.
--
--   columns      only these are told; an UPDATE that changes none of them is left out
--   operations   only these are published
--   old          false: an UPDATE does not tell the old row
--
-- Takes ownership of the table, and waits for those who write to it just now.
CREATE FUNCTION gateway.watch("table" regclass, channel text DEFAULT NULL,
                              columns text[] DEFAULT NULL,
                              operations text[] DEFAULT '{insert,update,delete,truncate}',
                              old boolean DEFAULT true) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    into_channel text := coalesce(channel, gateway.table_name("table"));
    row_events   text := array_to_string(array_remove(operations, 'truncate'), ' OR ');
    read_how     text := quote_literal(CASE WHEN old THEN 'old' ELSE '' END)
                         || coalesce((SELECT string_agg(', ' || quote_literal(c.name), '')
                                        FROM unnest(columns) c (name)), '');
    member       record;
BEGIN
    PERFORM gateway.check_owner("table"), gateway.check_table("table"),
            gateway.check_choice("table", into_channel, columns, operations, old);

    FOR member IN SELECT f.relation::regclass AS name, f.kind, f.part AND f.relation <> "table"
                         AS part FROM gateway.family("table") f WHERE f.kind IN ('r', 'p')
    LOOP
        PERFORM gateway.check_owner(member.name);
        IF row_events <> '' AND NOT member.part THEN -- partitions get these by themselves
            EXECUTE format('CREATE TRIGGER "GatewayWatch_1_read" AFTER %s ON %s FOR EACH ROW'
                           ' EXECUTE FUNCTION gateway.read_change(%s)',
                           row_events, member.name, read_how);
            EXECUTE format('CREATE TRIGGER "GatewayWatch_2_publish" AFTER %s ON %s FOR EACH ROW'
                           ' EXECUTE FUNCTION gateway.publish_change(%L)',
                           row_events, member.name, into_channel);
            -- ALWAYS: also in sessions that replay what others did (session_replication_role).
            EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER "GatewayWatch_1_read",'
                           ' ENABLE ALWAYS TRIGGER "GatewayWatch_2_publish"', member.name);
        END IF;
        IF 'truncate' = ANY (operations) THEN
            EXECUTE format('CREATE TRIGGER "GatewayWatch_truncate" AFTER TRUNCATE ON %s'
                           ' EXECUTE FUNCTION gateway.publish_change(%L)',
                           member.name, into_channel);
            EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER "GatewayWatch_truncate"',
                           member.name);
        END IF;
    END LOOP;
    RETURN into_channel;
END
$$;

-- Ends the watch of a table, of its partitions and of the tables that inherit from it.
CREATE FUNCTION gateway.unwatch("table" regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member record;
BEGIN
    PERFORM gateway.check_owner("table");
    IF NOT EXISTS (SELECT FROM gateway.watched w WHERE w."table" = unwatch."table") THEN
        RAISE EXCEPTION '% is not watched', "table"
            USING ERRCODE = 'undefined_object',
                  HINT = 'SELECT * FROM gateway.watched shows which tables are. A partition of a'
                         ' watched table is watched with it.';
    END IF;

    FOR member IN SELECT t.tgname AS trigger, t.tgrelid::regclass AS name
                    FROM gateway.family("table") f JOIN pg_trigger t ON t.tgrelid = f.relation
                   WHERE t.tgparentid = 0
                     AND t.tgfoid IN ('gateway.read_change()'::regprocedure,
                                      'gateway.publish_change()'::regprocedure)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', member.trigger, member.name);
    END LOOP;
END
$$;

REVOKE EXECUTE ON FUNCTION gateway.truncate_is_told(oid, text) FROM PUBLIC;
