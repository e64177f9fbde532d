-- What:   the role that the sync reads the app as. It may read public."User", and nothing else.
-- Where:  psql -h <app_host> -U postgres -d <app_db> -f sql/app_readonly.sql
--         Options:  -v app_password='...'  -v reader=another_role  -v table='public."Coach"'
-- Who:    a superuser; or the owner of the table, with CREATEROLE if the role is not there yet.
-- Running it again is safe: it keeps the password unless it is given another.

\set ON_ERROR_STOP on
\set QUIET on
\set SHOW_CONTEXT never
SET client_min_messages = error;  -- no warnings for GRANTs without effect: the blocks below check them

-- A variable that was not given stays ':reader', which is how these lines know.
\set reader :reader
\set table :table
\set app_password :app_password
SELECT set_config('athlete_sync.reader', CASE :'reader' WHEN ':reader' THEN 'app_readonly' ELSE :'reader' END, false),
       set_config('athlete_sync.table', CASE :'table' WHEN ':table' THEN 'public."User"' ELSE :'table' END, false),
       -- The password: change it here, or give it with -v app_password=. Left as it is, no password is set, and
       -- nobody can log in until somebody has typed  \password app_readonly  in psql.
       set_config('athlete_sync.password',
                  CASE :'app_password' WHEN ':app_password' THEN 'CHANGE_ME' ELSE :'app_password' END, false),
       set_config('athlete_sync.hint', '', false) \gset

BEGIN;

DO $$
DECLARE
    reader   TEXT := current_setting('athlete_sync.reader');
    source   TEXT := current_setting('athlete_sync.table');
    password TEXT := nullif(nullif(current_setting('athlete_sync.password'), 'CHANGE' || '_ME'), '');
    schema_  REGNAMESPACE;
    owner    OID;
    has_none BOOLEAN;
    grants   TEXT;
BEGIN
    BEGIN
        SELECT relnamespace, relowner INTO schema_, owner FROM pg_class WHERE oid = source::regclass;
    EXCEPTION WHEN undefined_table OR invalid_schema_name THEN
        RAISE EXCEPTION 'there is no table % in the database %', source, current_database()
              USING HINT = 'Name the app''s database with -h and -d, or its table with -v table=...';
    END;
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = reader AND pg_has_role(oid, owner, 'MEMBER')) THEN
        RAISE EXCEPTION '% is a superuser or owns %, and would be made read-only', reader, source
              USING HINT = 'Choose a role for the sync alone: -v reader=...';
    END IF;

    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = reader) THEN
        IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
            RAISE EXCEPTION 'there is no role %, and % may not make it', reader, current_user
                  USING HINT = format('As a superuser or a role with CREATEROLE:  CREATE ROLE %I LOGIN;  '
                                      'Then run this again.', reader);
        END IF;
        EXECUTE format('CREATE ROLE %I LOGIN', reader);
        has_none := true;
    ELSIF has_table_privilege('pg_authid', 'SELECT') THEN
        has_none := (SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = reader);
    END IF;
    IF password IS NOT NULL THEN
        EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L', reader, password);
    ELSIF has_none THEN
        PERFORM set_config('athlete_sync.hint', current_setting('athlete_sync.hint') || format(
            E'\n%1$I has no password yet. In psql, type:  \\password %1$I', reader), false);
    END IF;

    -- Before PostgreSQL 15 everybody may create tables in public. So this role is read-only; others stay as they are.
    BEGIN
        EXECUTE format('ALTER ROLE %I SET default_transaction_read_only = on', reader);
    EXCEPTION WHEN insufficient_privilege THEN
        IF NOT EXISTS (SELECT 1 FROM pg_db_role_setting WHERE setrole = quote_ident(reader)::regrole AND setdatabase = 0
                          AND 'default_transaction_read_only=on' = ANY (setconfig)) THEN
            PERFORM set_config('athlete_sync.hint', current_setting('athlete_sync.hint') || format(
                E'\nLeft to a superuser:  ALTER ROLE %I SET default_transaction_read_only = on;', reader), false);
        END IF;
    END;

    grants := format('GRANT CONNECT ON DATABASE %2$I TO %1$I; GRANT USAGE ON SCHEMA %3$s TO %1$I; '
                     'GRANT SELECT ON TABLE %4$s TO %1$I;', reader, current_database(), schema_, source);
    BEGIN
        EXECUTE grants;
    EXCEPTION WHEN insufficient_privilege THEN NULL;
    END;
    IF NOT (has_database_privilege(reader, current_database(), 'CONNECT')
            AND has_schema_privilege(reader, schema_::oid, 'USAGE') AND has_table_privilege(reader, source, 'SELECT')) THEN
        RAISE EXCEPTION '% may not grant all that % needs', current_user, reader
              USING HINT = 'Run this as the owner of each, or as a superuser; or have them type:  ' || grants;
    END IF;
END
$$;

COMMIT;

SELECT format('%s may read %s in the database %s.', current_setting('athlete_sync.reader'),
              current_setting('athlete_sync.table'), current_database())
       || current_setting('athlete_sync.hint') AS done \gset
\echo :done
