-- Who:    a superuser or owner of the app database, once; running it again is safe.
-- Where:  psql -h <app_host> -U postgres -d <app_db> -f sql/app_readonly.sql
-- What:   the role app_readonly, which may read public."User" and nothing else.
--
-- Its password is CHANGE_ME unless you add  -v app_password='...'  to the command, or set it later:
--   ALTER ROLE app_readonly WITH PASSWORD 'your_secure_password';
-- Running this again without -v leaves the password as it is.

\set ON_ERROR_STOP on
\set QUIET on
-- A variable that was not given stays ':app_password', which is how the block below knows.
\set app_password :app_password
SELECT set_config('athlete_sync.password', :'app_password', false) AS "app_readonly:" \g /dev/null

BEGIN;

DO $$
DECLARE
    given TEXT := nullif(current_setting('athlete_sync.password'), ':app_password');
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'app_readonly') THEN
        EXECUTE format('CREATE ROLE app_readonly LOGIN PASSWORD %L', coalesce(given, 'CHANGE_ME'));
    ELSIF given IS NOT NULL THEN
        EXECUTE format('ALTER ROLE app_readonly LOGIN PASSWORD %L', given);
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO app_readonly', current_database());
END
$$;

-- Before PostgreSQL 15 everybody may create tables in public; this role shall not, and nobody else
-- is touched by saying so here.
ALTER ROLE app_readonly SET default_transaction_read_only = on;

GRANT USAGE ON SCHEMA public TO app_readonly;
GRANT SELECT ON TABLE public."User" TO app_readonly;

COMMIT;

\echo app_readonly may read public."User".
