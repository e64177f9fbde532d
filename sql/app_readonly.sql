-- The role that the sync reads the app as. As a superuser, or as the table's owner with CREATEROLE:
--
--   psql -h <app_host> -U postgres -d <app_db> -f sql/app_readonly.sql -c '\password app_readonly'
--
-- psql asks for the new password and sends it encrypted. Running it again is safe.
-- For another role or table:  -v reader=coach_reader -v table='public."Coach"'

\set ON_ERROR_STOP on
\set QUIET on
-- A variable that was not given stays ':reader', which is how this line knows.
\set reader :reader
\set table :table
SELECT CASE :'reader' WHEN ':reader' THEN 'app_readonly' ELSE :'reader' END AS reader,
       CASE :'table' WHEN ':table' THEN 'public."User"' ELSE :'table' END AS table \gset
SELECT relnamespace::regnamespace AS schema FROM pg_class WHERE oid = :'table'::regclass::oid \gset

BEGIN;

-- No login before it has a password; read-only, because before PostgreSQL 15 everybody may create tables in public.
SELECT pg_catalog.format(statement, :'reader')
  FROM pg_catalog.unnest(ARRAY['CREATE ROLE %I LOGIN',
                               'ALTER ROLE %I SET default_transaction_read_only = on']) AS statement
 WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = :'reader') \gexec

GRANT CONNECT ON DATABASE :"DBNAME" TO :"reader";
GRANT USAGE ON SCHEMA :schema TO :"reader";
GRANT SELECT ON TABLE :table TO :"reader";

COMMIT;
-- A GRANT by somebody who may not grant is no error, but a warning; and everybody may have the right already.
SELECT CASE WHEN has_table_privilege(:'reader', :'table', 'SELECT')
             AND has_schema_privilege(:'reader', :'schema'::regnamespace::oid, 'USAGE')
             AND has_database_privilege(:'reader', :'DBNAME', 'CONNECT') THEN 'may' ELSE 'may NOT' END AS may \gset
\echo :reader :may read :table in the database :DBNAME.
