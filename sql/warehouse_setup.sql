-- Who:    a superuser or owner of the warehouse database, once and after an update of the sync;
--         running it again is safe, and an athlete_dim that exists keeps its rows.
-- Where:  psql -h <warehouse_host> -U postgres -d <warehouse_db> -f sql/warehouse_setup.sql
-- What:   the role the sync works as, the dimension, the run history, the health view, the grants.
--
-- The role is warehouse_writer unless you add  -v writer=...  to the command, its password CHANGE_ME
-- unless you add  -v writer_password='...'  or set it later:
--   ALTER ROLE warehouse_writer WITH PASSWORD 'your_secure_password';
-- Running this again without -v writer_password leaves the password as it is.
--
-- The dimension is analytics.athlete_dim unless you add  -v table=...  with its schema, say
-- -v table=analytics.coach_dim: one more command for one more dimension (WH_TABLE names it).

\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;
-- A variable that was not given stays ':writer', which is how these lines and the blocks below know.
\set table :table
\set writer :writer
\set writer_password :writer_password
SELECT CASE :'table' WHEN ':table' THEN 'analytics.athlete_dim' ELSE :'table' END AS table \gset
SELECT set_config('athlete_sync.table', :'table', false),
       set_config('athlete_sync.writer',
                  CASE :'writer' WHEN ':writer' THEN 'warehouse_writer' ELSE :'writer' END, false),
       set_config('athlete_sync.password', :'writer_password', false) \g /dev/null

BEGIN;

CREATE SCHEMA IF NOT EXISTS analytics;

CREATE TABLE IF NOT EXISTS :table (
    athlete_uuid     UUID PRIMARY KEY,
    full_name        TEXT NOT NULL,
    source_synced_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);

-- Half of each page is left free, so that a new version of a row fits beside the old one: a HOT update,
-- which leaves the index alone. 1,000,000 athletes, each rerun stamping all of them:
--   fillfactor    HOT    WAL a rerun    table and index after three reruns
--           50   99 %         136 MB    187 MB
--           70   60 %         191 MB    229 MB
--           90   18 %         276 MB    218 MB
--          100    0 %         314 MB    210 MB
-- For the same reason there is no index on source_synced_at: it would make every update a cold one.
DO $$
DECLARE
    dimension REGCLASS := current_setting('athlete_sync.table');
BEGIN
    -- A partitioned table has no pages of its own; give its partitions the same.
    IF (SELECT relkind FROM pg_class WHERE oid = dimension) = 'r' THEN
        EXECUTE format('ALTER TABLE %s SET (fillfactor = 50)', dimension);
    END IF;
END
$$;

COMMENT ON TABLE  :table IS 'Identity, carried here from the app by make sync. Never deleted from.';
COMMENT ON COLUMN :table.athlete_uuid IS 'The app''s uuid of the athlete.';
COMMENT ON COLUMN :table.full_name IS 'The athlete''s name, byte for byte as the app holds it.';
COMMENT ON COLUMN :table.source_synced_at IS 'Last run that stamped this athlete; see SYNC_REFRESH.';

-- A row a run. To keep a year of them:
--   DELETE FROM analytics.athlete_sync_run WHERE finished_at < now() - interval '1 year';
CREATE TABLE IF NOT EXISTS analytics.athlete_sync_run (
    run_id         BIGSERIAL PRIMARY KEY,
    target         TEXT NOT NULL,
    started_at     TIMESTAMPTZ NOT NULL,
    finished_at    TIMESTAMPTZ NOT NULL,
    mode           TEXT NOT NULL,
    result         TEXT NOT NULL,
    exit_code      INTEGER NOT NULL,
    source_rows    BIGINT,
    inserted       BIGINT,
    updated        BIGINT,
    unchanged      BIGINT,
    missing        BIGINT,
    rejected       BIGINT,
    repeated       BIGINT,
    rejects        JSONB NOT NULL,
    message        TEXT,
    host           TEXT,
    version        TEXT NOT NULL,
    max_age        INTERVAL NOT NULL,
    app_position   BIGINT,
    app_source     TEXT,
    app_is_unique  BOOLEAN,
    dimension_rows BIGINT
);

COMMENT ON TABLE  analytics.athlete_sync_run IS 'One row for each run of the athlete sync, failures included; dry runs leave none.';
COMMENT ON COLUMN analytics.athlete_sync_run.target IS 'The dimension this run wrote.';
COMMENT ON COLUMN analytics.athlete_sync_run.missing IS 'Athletes of the dimension that the app no longer has; NULL where the run could not know.';
COMMENT ON COLUMN analytics.athlete_sync_run.rejects IS 'At most 100 rejected rows: uuid as found, and the reason.';
COMMENT ON COLUMN analytics.athlete_sync_run.app_position IS 'The app''s oldest open transaction as this run saw it: --incremental takes up there.';
COMMENT ON COLUMN analytics.athlete_sync_run.app_source IS 'The server, database, table and columns that app_position belongs to.';
COMMENT ON COLUMN analytics.athlete_sync_run.app_is_unique IS 'Whether the app''s own index rules out two rows for one athlete.';
COMMENT ON COLUMN analytics.athlete_sync_run.dimension_rows IS 'Athletes in the dimension afterwards; fewer later on make the next incremental run a full one.';
COMMENT ON COLUMN analytics.athlete_sync_run.max_age IS 'SYNC_MAX_AGE of that run: the view below calls an older last success stale.';

CREATE OR REPLACE VIEW analytics.athlete_sync_health AS
WITH run AS (
    SELECT *, finished_at - started_at AS duration
      FROM analytics.athlete_sync_run
     WHERE target = 'analytics.athlete_dim'
), success AS (
    SELECT max(finished_at) AS finished_at
      FROM run
     WHERE result = 'ok'
), last AS (
    SELECT *
      FROM run
     WHERE result <> 'skipped'
     ORDER BY run_id DESC
     LIMIT 1
)
SELECT CASE WHEN last.result IS NULL                         THEN 'never ran'
            WHEN last.result <> 'ok'                         THEN 'failing'
            WHEN success.finished_at < now() - last.max_age  THEN 'stale'
            ELSE 'healthy' END                               AS verdict,
       success.finished_at                                   AS last_success,
       now() - success.finished_at                           AS last_success_age,
       last.result                                           AS last_result,
       last.duration                                         AS last_duration,
       (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY duration)
          FROM (SELECT duration FROM run
                 WHERE result = 'ok'
                 ORDER BY run_id DESC
                 LIMIT 20) AS recent)                        AS usual_duration
  FROM success
  LEFT JOIN last ON true;

COMMENT ON VIEW analytics.athlete_sync_health IS 'One row: is the athlete sync well? The verdict is that of make status; usual_duration is the median of the last 20 good runs.';

DO $$
DECLARE
    dimension REGCLASS := current_setting('athlete_sync.table');
    writer TEXT := current_setting('athlete_sync.writer');
    given  TEXT := nullif(current_setting('athlete_sync.password'), ':writer_password');
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = writer) THEN
        EXECUTE format('CREATE ROLE %I LOGIN PASSWORD %L', writer, coalesce(given, 'CHANGE_ME'));
    ELSIF given IS NOT NULL THEN
        EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L', writer, given);
    END IF;
    -- All the sync needs. TEMP is for its staging table; it creates nothing that stays.
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO %I', current_database(), writer);
    EXECUTE format('GRANT USAGE ON SCHEMA analytics TO %I', writer);
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %I',
                   (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = dimension), writer);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON TABLE %s TO %I', dimension, writer);
    EXECUTE format('GRANT SELECT, INSERT ON TABLE analytics.athlete_sync_run TO %I', writer);
    EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I',
                   pg_get_serial_sequence('analytics.athlete_sync_run', 'run_id'), writer);
    EXECUTE format('GRANT SELECT ON TABLE analytics.athlete_sync_health TO %I', writer);
END
$$;

COMMIT;

SELECT current_setting('athlete_sync.table') || ' is ready for '
       || current_setting('athlete_sync.writer') || '.' AS ready \gset
\echo :ready
