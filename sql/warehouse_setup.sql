-- What:   the role that the sync writes as, the dimension, the run history with its health view, the renames.
-- Where:  psql -h <warehouse_host> -U postgres -d <warehouse_db> -f sql/warehouse_setup.sql
--         To all of it may be added:  -v writer_password='...'  -v writer=another_role
--         and, for one more dimension,  -v table=analytics.coach_dim  (WH_TABLE names it).
-- Who:    a superuser; or the database's owner, with CREATEROLE if the role is to be made. Once, and again after
--         an update of the sync: rows stay, columns that a newer version needs are added, and the role keeps
--         its password unless it is given another.

\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;

-- The role's password: change it here, or give it with -v writer_password=. Left as it is, no password is set,
-- and nobody can log in until somebody has typed  \password warehouse_writer  in psql.
\set password_here 'CHANGE_ME'

-- A variable that was not given stays ':writer', which is how these lines know.
\set table :table
\set writer :writer
\set writer_password :writer_password
SELECT CASE :'table' WHEN ':table' THEN 'analytics.athlete_dim' ELSE :'table' END AS table \gset
SELECT set_config('athlete_sync.table', :'table', false),
       set_config('athlete_sync.writer',
                  CASE :'writer' WHEN ':writer' THEN 'warehouse_writer' ELSE :'writer' END, false),
       set_config('athlete_sync.password',
                  CASE WHEN :'writer_password' <> ':writer_password' THEN :'writer_password'
                       WHEN :'password_here' <> 'CHANGE' || '_ME' THEN :'password_here'
                       ELSE '' END, false),
       set_config('athlete_sync.hint', '', false) \gset

BEGIN;

-- Made only where it is not there: CREATE ... IF NOT EXISTS asks for the right to create even then.
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'analytics') THEN
        CREATE SCHEMA analytics;
    END IF;
END
$$;

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
-- A history of an older version gets the columns that it lacks, filled as shown.
CREATE TABLE IF NOT EXISTS analytics.athlete_sync_run (run_id BIGSERIAL PRIMARY KEY);

DO $$
DECLARE
    wanted RECORD;
BEGIN
    FOR wanted IN SELECT * FROM (VALUES
        ('target',         'TEXT NOT NULL',        'analytics.athlete_dim'),
        ('started_at',     'TIMESTAMPTZ NOT NULL', '-infinity'),
        ('finished_at',    'TIMESTAMPTZ NOT NULL', '-infinity'),
        ('mode',           'TEXT NOT NULL',        'full'),
        ('result',         'TEXT NOT NULL',        'failed'),
        ('exit_code',      'INTEGER NOT NULL',     '4'),
        ('source_rows',    'BIGINT',               NULL),
        ('inserted',       'BIGINT',               NULL),
        ('updated',        'BIGINT',               NULL),
        ('unchanged',      'BIGINT',               NULL),
        ('missing',        'BIGINT',               NULL),
        ('rejected',       'BIGINT',               NULL),
        ('repeated',       'BIGINT',               NULL),
        ('rejects',        'JSONB NOT NULL',       '[]'),
        ('message',        'TEXT',                 NULL),
        ('host',           'TEXT',                 NULL),
        ('version',        'TEXT NOT NULL',        'not known'),
        ('max_age',        'INTERVAL NOT NULL',    '2 days'),
        ('app_position',   'BIGINT',               NULL),
        ('app_source',     'TEXT',                 NULL),
        ('app_is_unique',  'BOOLEAN',              NULL),
        ('dimension_rows', 'BIGINT',               NULL)) AS columns (name, type, filled)
         WHERE name NOT IN (SELECT attname
                              FROM pg_attribute
                             WHERE attrelid = 'analytics.athlete_sync_run'::regclass
                               AND NOT attisdropped)
    LOOP
        EXECUTE format('ALTER TABLE analytics.athlete_sync_run ADD COLUMN %I %s DEFAULT %L',
                       wanted.name, wanted.type, wanted.filled);
        EXECUTE format('ALTER TABLE analytics.athlete_sync_run ALTER COLUMN %I DROP DEFAULT', wanted.name);
    END LOOP;
END
$$;

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
    SELECT max(finished_at) AS finished_at,
           max(finished_at) FILTER (WHERE mode = 'full') AS full_finished_at
      FROM run
     WHERE result = 'ok'
), last AS (
    SELECT *
      FROM run
     WHERE result <> 'skipped'
     ORDER BY run_id DESC
     LIMIT 1
)
SELECT CASE WHEN last.result IS NULL                               THEN 'never ran'
            WHEN last.result <> 'ok'                               THEN 'failing'
            WHEN success.full_finished_at >= now() - last.max_age  THEN 'healthy'
            ELSE 'stale' END                                       AS verdict,
       success.finished_at                                   AS last_success,
       now() - success.finished_at                           AS last_success_age,
       last.result                                           AS last_result,
       last.duration                                         AS last_duration,
       (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY duration)
          FROM (SELECT duration FROM run
                 WHERE result = 'ok'
                 ORDER BY run_id DESC
                 LIMIT 20) AS recent)                        AS usual_duration,
       success.full_finished_at                              AS last_full_success
  FROM success
  LEFT JOIN last ON true;

COMMENT ON VIEW analytics.athlete_sync_health IS 'One row: is the athlete sync well? The verdict is that of make status, which goes by full runs; usual_duration is the median of the last 20 good runs.';

-- A row a rename, written before the old name is lost. It serves to find an athlete by a former name, and to
-- take a run back (python/docs/monitoring.md). Renames can be deleted at any time; the sync never reads them.
CREATE TABLE IF NOT EXISTS analytics.athlete_rename (
    run_id       BIGINT NOT NULL,
    athlete_uuid UUID NOT NULL,
    old_name     TEXT,
    new_name     TEXT,
    renamed_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, athlete_uuid)
);
CREATE INDEX IF NOT EXISTS athlete_rename_athlete_uuid ON analytics.athlete_rename (athlete_uuid);

COMMENT ON TABLE  analytics.athlete_rename IS 'One row for each name that the athlete sync has overwritten.';
COMMENT ON COLUMN analytics.athlete_rename.run_id IS 'The run in analytics.athlete_sync_run that did it.';

DO $$
DECLARE
    dimension REGCLASS := current_setting('athlete_sync.table');
    writer    TEXT := current_setting('athlete_sync.writer');
    password  TEXT := nullif(current_setting('athlete_sync.password'), '');
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = writer) THEN
        EXECUTE format('CREATE ROLE %I LOGIN', writer);
        PERFORM set_config('athlete_sync.hint', format(
            E'It has no password yet, so nobody can log in as it. In psql, type:  \\password %I', writer), false);
    END IF;
    IF password IS NOT NULL THEN
        EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L', writer, password);
        PERFORM set_config('athlete_sync.hint', '', false);
    END IF;

    -- All the sync needs. TEMPORARY is for its staging table; it creates nothing that stays.
    IF NOT has_database_privilege(writer, current_database(), 'CONNECT')
       OR NOT has_database_privilege(writer, current_database(), 'TEMPORARY') THEN
        EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO %I', current_database(), writer);
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA analytics TO %I', writer);
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %I',
                   (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = dimension), writer);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON TABLE %s TO %I', dimension, writer);
    EXECUTE format('GRANT SELECT, INSERT ON TABLE analytics.athlete_sync_run TO %I', writer);
    EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I',
                   pg_get_serial_sequence('analytics.athlete_sync_run', 'run_id'), writer);
    EXECUTE format('GRANT INSERT ON TABLE analytics.athlete_rename TO %I', writer);
    EXECUTE format('GRANT SELECT ON TABLE analytics.athlete_sync_health TO %I', writer);
END
$$;

COMMIT;

SELECT format('%s in the database %s is ready for %s.', current_setting('athlete_sync.table'),
              current_database(), current_setting('athlete_sync.writer'))
       || coalesce(E'\n' || nullif(current_setting('athlete_sync.hint'), ''), '') AS done \gset
\echo :done
