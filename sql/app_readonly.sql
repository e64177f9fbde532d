-- What:   the role that the sync reads the app as. It may read public."User", and nothing else.
-- Where:  psql -h <app_host> -U postgres -d <app_db> -f sql/app_readonly.sql
--         To all of it may be added:  -v app_password='...'  -v reader=another_role  -v table='public."Coach"'
-- Who:    a superuser; or a role with CREATEROLE that owns the table and its schema. Where the role is there
--         already, the table's owner will do: what only others may change is then named, and left alone.
-- Running it again is safe: it keeps the password unless it is given another.

\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;

-- The role's password: change it here, or give it with -v app_password=. Left as it is, no password is set,
-- and nobody can log in until somebody has typed  \password app_readonly  in psql.
\set password_here 'CHANGE_ME'

-- A variable that was not given stays ':reader', which is how these lines know.
\set reader :reader
\set table :table
\set app_password :app_password
SELECT set_config('athlete_sync.reader', CASE :'reader' WHEN ':reader' THEN 'app_readonly' ELSE :'reader' END, false),
       set_config('athlete_sync.table', CASE :'table' WHEN ':table' THEN 'public."User"' ELSE :'table' END, false),
       set_config('athlete_sync.password',
                  CASE WHEN :'app_password' <> ':app_password' THEN :'app_password'
                       WHEN :'password_here' <> 'CHANGE' || '_ME' THEN :'password_here'
                       ELSE '' END, false),
       set_config('athlete_sync.hint', '', false) \gset

BEGIN;

DO $$
DECLARE
    reader   TEXT := current_setting('athlete_sync.reader');
    source   TEXT := current_setting('athlete_sync.table');
    password TEXT := nullif(current_setting('athlete_sync.password'), '');
    schema_  REGNAMESPACE;
BEGIN
    BEGIN
        schema_ := (SELECT relnamespace FROM pg_class WHERE oid = source::regclass);
    EXCEPTION WHEN undefined_table OR invalid_schema_name THEN
        RAISE EXCEPTION 'there is no table % in the database %', source, current_database()
              USING HINT = 'Name the app''s database with -h and -d, or its table with -v table=...';
    END;

    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = reader) THEN
        EXECUTE format('CREATE ROLE %I LOGIN', reader);
        PERFORM set_config('athlete_sync.hint', format(
            E'It has no password yet, so nobody can log in as it. In psql, type:  \\password %I', reader), false);
    END IF;
    IF password IS NOT NULL THEN
        EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L', reader, password);
        PERFORM set_config('athlete_sync.hint', '', false);
    END IF;

    -- Before PostgreSQL 15 everybody may create tables in public. This role shall not, and nobody else is
    -- touched by saying so here.
    BEGIN
        EXECUTE format('ALTER ROLE %I SET default_transaction_read_only = on', reader);
    EXCEPTION WHEN insufficient_privilege THEN
        PERFORM set_config('athlete_sync.hint', format(
            'Left to a superuser:  ALTER ROLE %I SET default_transaction_read_only = on;', reader), false);
    END;

    IF NOT has_database_privilege(reader, current_database(), 'CONNECT') THEN
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), reader);
    END IF;
    IF NOT has_schema_privilege(reader, schema_, 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO %I', schema_, reader);
    END IF;
    EXECUTE format('GRANT SELECT ON TABLE %s TO %I', source, reader);
END
$$;

COMMIT;

SELECT format('%s may read %s in the database %s.', current_setting('athlete_sync.reader'),
              current_setting('athlete_sync.table'), current_database())
       || coalesce(E'\n' || nullif(current_setting('athlete_sync.hint'), ''), '') AS done \gset
\echo :done
