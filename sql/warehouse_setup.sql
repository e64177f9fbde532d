-- The warehouse's side: the dimension, the run history with its health view, and the role that the sync writes as.
-- As a superuser, or as the database's owner with CREATEROLE:
--
--   psql -h <warehouse_host> -U postgres -d <warehouse_db> -f sql/warehouse_setup.sql -c '\password warehouse_writer'
--
-- psql asks for the new password and sends it encrypted. Running it again is safe: rows and password stay.
-- For another role, or one more dimension:  -v writer=coach_writer -v table=analytics.coach_dim

\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;  -- no notices for what is there already
-- A variable that was not given stays ':writer', which is how this line knows.
\set writer :writer
\set table :table
SELECT CASE :'writer' WHEN ':writer' THEN 'warehouse_writer' ELSE :'writer' END AS writer,
       CASE :'table' WHEN ':table' THEN 'analytics.athlete_dim' ELSE :'table' END AS table \gset

BEGIN;

CREATE SCHEMA IF NOT EXISTS analytics;

-- Half of each page stays free, so that an update is a HOT update, which does not touch the index; an index on
-- source_synced_at would undo that. Measured in python/docs/performance.md. A table that is there already stays as it
-- is; for its new pages:  ALTER TABLE analytics.athlete_dim SET (fillfactor = 50);
CREATE TABLE IF NOT EXISTS :table (
    athlete_uuid     UUID PRIMARY KEY,
    full_name        TEXT NOT NULL,
    source_synced_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
) WITH (fillfactor = 50);

-- One row a run, failures included. To keep a year of them:
--   DELETE FROM analytics.athlete_sync_run WHERE finished_at < now() - interval '1 year';
CREATE TABLE IF NOT EXISTS analytics.athlete_sync_run (
    run_id         BIGSERIAL PRIMARY KEY,
    target         TEXT NOT NULL,         -- the dimension
    started_at     TIMESTAMPTZ NOT NULL,
    finished_at    TIMESTAMPTZ NOT NULL,
    mode           TEXT NOT NULL,         -- full or incremental
    result         TEXT NOT NULL,         -- ok, skipped or failed
    exit_code      INTEGER NOT NULL,
    source_rows    BIGINT,                -- counts are NULL where they are not known
    inserted       BIGINT,
    updated        BIGINT,
    unchanged      BIGINT,
    missing        BIGINT,                -- athletes of the dimension that the app no longer has
    rejected       BIGINT,
    repeated       BIGINT,
    rejects        JSONB NOT NULL,        -- at most 100: the uuid as found, and the reason
    message        TEXT,
    host           TEXT,
    version        TEXT NOT NULL,
    max_age        INTERVAL NOT NULL,     -- SYNC_MAX_AGE: an older last full success is stale
    app_position   BIGINT,                -- for --incremental: a transaction number of the app,
    app_source     TEXT,                  --   of this server, table and columns
    app_is_unique  BOOLEAN,               --   whether no two rows can be one athlete
    dimension_rows BIGINT,                --   and how many athletes the run left
    app_next       BIGINT,                -- to refuse an older state of the app: its next transaction number
    app_timeline   INTEGER,               --   on this timeline
    app_lineage    TEXT                   --   of this system identifier, database and table
);

-- A history of an older version lacks some columns. PostgreSQL 9.5 has no ADD COLUMN IF NOT EXISTS.
SELECT 'ALTER TABLE analytics.athlete_sync_run ADD COLUMN ' || wanted
  FROM pg_catalog.unnest(ARRAY['app_next BIGINT', 'app_timeline INTEGER', 'app_lineage TEXT']) AS wanted
 WHERE NOT EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = 'analytics.athlete_sync_run'::regclass::oid
                      AND attname::text = split_part(wanted, ' ', 1)) \gexec

-- One row a dimension: is its sync well? make status reads it. usual_duration is the median of the last 30 days'
-- successes of the same mode. An incremental run that read no row cannot tell whether the app is empty.
CREATE OR REPLACE VIEW analytics.athlete_sync_health AS
WITH last AS (
    SELECT DISTINCT ON (target) target, mode, result, started_at, finished_at, max_age
      FROM analytics.athlete_sync_run
     WHERE result <> 'skipped'
     ORDER BY target, run_id DESC
)
SELECT CASE WHEN last.result <> 'ok'                                THEN 'failing'
            WHEN success.found_app_empty                            THEN 'app is empty'
            WHEN success.last_full_success >= now() - last.max_age  THEN 'healthy'
            ELSE 'stale' END                                        AS verdict,
       success.last_success,
       now() - success.last_success        AS last_success_age,
       last.result                         AS last_result,
       last.finished_at - last.started_at  AS last_duration,
       success.usual_duration,
       success.last_full_success,
       last.target
  FROM last, LATERAL (
    SELECT max(finished_at)                               AS last_success,
           max(finished_at) FILTER (WHERE mode = 'full')  AS last_full_success,
           (pg_catalog.array_agg(source_rows = 0 AND missing > 0 ORDER BY run_id DESC)
               FILTER (WHERE mode = 'full' OR source_rows > 0))[1] AS found_app_empty,
           percentile_cont(0.5::float8) WITHIN GROUP (ORDER BY finished_at - started_at)
               FILTER (WHERE mode = last.mode AND finished_at > now() - interval '30 days') AS usual_duration
      FROM analytics.athlete_sync_run
     WHERE target = last.target AND result = 'ok') AS success;

-- One row a rename, kept before the old name is lost: to find an athlete by a former name, and to take a run back
-- (python/docs/monitoring.md). The sync never reads it; rows may be deleted at any time.
CREATE TABLE IF NOT EXISTS analytics.athlete_rename (
    run_id       BIGINT NOT NULL,
    athlete_uuid UUID NOT NULL,
    old_name     TEXT,
    new_name     TEXT,
    renamed_at   TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS athlete_rename_run_id ON analytics.athlete_rename (run_id);
CREATE INDEX IF NOT EXISTS athlete_rename_athlete_uuid ON analytics.athlete_rename (athlete_uuid);

-- It cannot log in until it has a password. It may not read, change or delete renames, nor change a run.
SELECT pg_catalog.format('CREATE ROLE %I LOGIN', :'writer')
 WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = :'writer') \gexec
SELECT relnamespace::regnamespace AS schema FROM pg_class WHERE oid = :'table'::regclass::oid \gset

GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO :"writer";
GRANT USAGE ON SCHEMA analytics, :schema TO :"writer";
GRANT SELECT, INSERT, UPDATE ON TABLE :table TO :"writer";
GRANT SELECT, INSERT ON TABLE analytics.athlete_sync_run TO :"writer";
GRANT USAGE ON SEQUENCE analytics.athlete_sync_run_run_id_seq TO :"writer";
GRANT INSERT ON TABLE analytics.athlete_rename TO :"writer";
GRANT SELECT ON TABLE analytics.athlete_sync_health TO :"writer";

COMMIT;
SELECT CASE WHEN bool_and(has_table_privilege(:'writer', :'table', privilege)) THEN 'is' ELSE 'is NOT' END AS is
  FROM pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege \gset
\echo :table in the database :DBNAME :is ready for :writer.
