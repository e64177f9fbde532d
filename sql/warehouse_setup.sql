-- What:   the role that the sync writes as, the dimension, the run history with its health view, the renames.
-- Where:  psql -h <warehouse_host> -U postgres -d <warehouse_db> -f sql/warehouse_setup.sql
--         Options:  -v writer_password='...'  -v writer=another_role
--         and, for one more dimension,  -v table=analytics.coach_dim  (WH_TABLE names it).
-- Who:    a superuser; or the owner of the database, with CREATEROLE if the role is not there yet.
-- Once, and again after each upgrade: rows and the password stay, missing columns are added.

\set ON_ERROR_STOP on
\set QUIET on
\set SHOW_CONTEXT never
SET client_min_messages = error;  -- no warnings for GRANTs without effect: the blocks below check them

-- A variable that was not given stays ':writer', which is how these lines know.
\set table :table
\set writer :writer
\set writer_password :writer_password
SELECT CASE :'table' WHEN ':table' THEN 'analytics.athlete_dim' ELSE :'table' END AS table \gset
SELECT set_config('athlete_sync.table', :'table', false),
       set_config('athlete_sync.writer',
                  CASE :'writer' WHEN ':writer' THEN 'warehouse_writer' ELSE :'writer' END, false),
       -- The password: change it here, or give it with -v writer_password=. Left as it is, no password is set, and
       -- nobody can log in until somebody has typed  \password warehouse_writer  in psql.
       set_config('athlete_sync.password',
                  CASE :'writer_password' WHEN ':writer_password' THEN 'CHANGE_ME' ELSE :'writer_password' END, false),
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

-- Half of each page stays free, so that an update is a HOT update, which does not touch the index.
-- Measured with 1,000,000 athletes, all of them updated in each rerun:
--   fillfactor    HOT    WAL a rerun    table and index after three reruns
--           50   99 %         136 MB    187 MB
--           70   60 %         191 MB    229 MB
--           90   18 %         276 MB    218 MB
--          100    0 %         314 MB    210 MB
-- For the same reason there is no index on source_synced_at: it would make every update a cold one.
DO $$
DECLARE
    dimension TEXT := current_setting('athlete_sync.table');
BEGIN
    PERFORM dimension::regclass;  -- one that is there already keeps what it has, be it a table or a view
EXCEPTION WHEN undefined_table THEN
    EXECUTE format($make$
        CREATE TABLE %1$s (
            athlete_uuid     UUID PRIMARY KEY,
            full_name        TEXT NOT NULL,
            source_synced_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
        ) WITH (fillfactor = 50);
        COMMENT ON TABLE  %1$s IS 'Athletes, copied here from the app. The sync never deletes any.';
        COMMENT ON COLUMN %1$s.athlete_uuid IS 'The app''s uuid of the athlete.';
        COMMENT ON COLUMN %1$s.full_name IS 'The athlete''s name, byte for byte as the app holds it.';
        COMMENT ON COLUMN %1$s.source_synced_at IS 'When a run last wrote this athlete; see SYNC_REFRESH.';
        $make$, dimension);
END
$$;

-- A table that is there already gets fillfactor 50 for its new pages; set it on partitions yourself.
DO $$
DECLARE
    dimension REGCLASS := current_setting('athlete_sync.table');
BEGIN
    IF (SELECT relkind = 'r' AND coalesce(array_to_string(reloptions, ' '), '') !~ 'fillfactor'
          FROM pg_class WHERE oid = dimension) THEN
        EXECUTE format('ALTER TABLE %s SET (fillfactor = 50)', dimension);
    END IF;
END
$$;

-- A row a run. To keep a year of them:
--   DELETE FROM analytics.athlete_sync_run WHERE finished_at < now() - interval '1 year';
-- A history of an older version gets the columns that it lacks, filled as shown.
DO $$
DECLARE
    wanted RECORD;
BEGIN
    IF to_regclass('analytics.athlete_sync_run') IS NULL THEN
        CREATE TABLE analytics.athlete_sync_run (run_id BIGSERIAL PRIMARY KEY);
    END IF;
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
COMMENT ON COLUMN analytics.athlete_sync_run.app_position IS 'A transaction number of the app: --incremental reads the rows from there on.';
COMMENT ON COLUMN analytics.athlete_sync_run.app_source IS 'The server, database, table and columns that app_position belongs to.';
COMMENT ON COLUMN analytics.athlete_sync_run.app_is_unique IS 'Whether the app''s own index rules out two rows for one athlete.';
COMMENT ON COLUMN analytics.athlete_sync_run.dimension_rows IS 'Athletes in the dimension after the run; if there are fewer later, the next run is full.';
COMMENT ON COLUMN analytics.athlete_sync_run.max_age IS 'SYNC_MAX_AGE of that run: if the last full success is older, it is stale.';

DO $do$
DECLARE
    health TEXT := $view$
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
  LEFT JOIN last ON true
$view$;
BEGIN
    EXECUTE health;
EXCEPTION WHEN invalid_table_definition THEN
    DROP VIEW analytics.athlete_sync_health;
    EXECUTE health;
    PERFORM set_config('athlete_sync.hint', E'\nThe view analytics.athlete_sync_health was of another shape and is '
                       'made anew: grant it again to those who read it.', false);
END
$do$;

COMMENT ON VIEW analytics.athlete_sync_health IS 'One row: is the athlete sync well? The verdict is that of make status, which goes by full runs; usual_duration is the median of the last 20 successes.';

-- A row a rename, written before the old name is lost. It serves to find an athlete by a former name, and to
-- take a run back (python/docs/monitoring.md). Renames can be deleted at any time; the sync never reads them.
-- No key: if the history is made anew, run_id begins at 1 again.
DO $$
BEGIN
    IF to_regclass('analytics.athlete_rename') IS NULL THEN
        CREATE TABLE analytics.athlete_rename (
            run_id       BIGINT NOT NULL,
            athlete_uuid UUID NOT NULL,
            old_name     TEXT,
            new_name     TEXT,
            renamed_at   TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        CREATE INDEX athlete_rename_run_id ON analytics.athlete_rename (run_id);
        CREATE INDEX athlete_rename_athlete_uuid ON analytics.athlete_rename (athlete_uuid);
    END IF;
END
$$;

COMMENT ON TABLE  analytics.athlete_rename IS 'One row for each name that the athlete sync has overwritten.';
COMMENT ON COLUMN analytics.athlete_rename.run_id IS 'The run in analytics.athlete_sync_run that did it.';

DO $$
DECLARE
    dimension REGCLASS := current_setting('athlete_sync.table');
    schema_   REGNAMESPACE := (SELECT relnamespace FROM pg_class WHERE oid = dimension);
    writer    TEXT := current_setting('athlete_sync.writer');
    password  TEXT := nullif(nullif(current_setting('athlete_sync.password'), 'CHANGE' || '_ME'), '');
    has_none  BOOLEAN;
    grants    TEXT;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = writer) THEN
        IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
            RAISE EXCEPTION 'there is no role %, and % may not make it', writer, current_user
                  USING HINT = format('As a superuser or a role with CREATEROLE:  CREATE ROLE %I LOGIN;  '
                                      'Then run this again.', writer);
        END IF;
        EXECUTE format('CREATE ROLE %I LOGIN', writer);
        has_none := true;
    ELSIF has_table_privilege('pg_authid', 'SELECT') THEN
        has_none := (SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = writer);
    END IF;
    IF password IS NOT NULL THEN
        EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L', writer, password);
    ELSIF has_none THEN
        PERFORM set_config('athlete_sync.hint', current_setting('athlete_sync.hint') || format(
            E'\n%1$I has no password yet. In psql, type:  \\password %1$I', writer), false);
    END IF;

    -- All the sync needs. TEMPORARY is for its staging table; it creates nothing that stays. It may not read,
    -- change or delete renames, so that whoever has its password cannot rewrite what was.
    EXECUTE format('GRANT SELECT, INSERT ON TABLE analytics.athlete_sync_run TO %I', writer);
    EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I',
                   pg_get_serial_sequence('analytics.athlete_sync_run', 'run_id'), writer);
    EXECUTE format('GRANT INSERT ON TABLE analytics.athlete_rename TO %I', writer);
    EXECUTE format('GRANT SELECT ON TABLE analytics.athlete_sync_health TO %I', writer);
    grants := format('GRANT CONNECT, TEMPORARY ON DATABASE %2$I TO %1$I; GRANT USAGE ON SCHEMA analytics TO %1$I; '
                     'GRANT USAGE ON SCHEMA %3$s TO %1$I; GRANT SELECT, INSERT, UPDATE ON TABLE %4$s TO %1$I;',
                     writer, current_database(), schema_, dimension);
    BEGIN
        EXECUTE grants;
    EXCEPTION WHEN insufficient_privilege THEN NULL;
    END;
    IF NOT (has_database_privilege(writer, current_database(), 'CONNECT')
            AND has_database_privilege(writer, current_database(), 'TEMPORARY')
            AND has_schema_privilege(writer, 'analytics', 'USAGE') AND has_schema_privilege(writer, schema_::oid, 'USAGE')
            AND has_table_privilege(writer, dimension, 'SELECT') AND has_table_privilege(writer, dimension, 'INSERT')
            AND has_table_privilege(writer, dimension, 'UPDATE')) THEN
        RAISE EXCEPTION '% may not grant all that % needs', current_user, writer
              USING HINT = 'Run this as the owner of each, or as a superuser; or have them type:  ' || grants;
    END IF;
END
$$;

COMMIT;

SELECT format('%s in the database %s is ready for %s.', current_setting('athlete_sync.table'),
              current_database(), current_setting('athlete_sync.writer'))
       || current_setting('athlete_sync.hint') AS done \gset
\echo :done
