"""The two set-up files, run by psql as the role that a case names, in databases of their own."""

from __future__ import annotations

import subprocess

import psycopg2
import pytest
from conftest import ANN, BOB, database
from lab.servers import PRISMA_USER, PROJECT, SUPERUSER_PASSWORD

APP = str(PROJECT / "sql" / "app_readonly.sql")
WAREHOUSE = str(PROJECT / "sql" / "warehouse_setup.sql")
PASSWORD = "it's $ecret"


@pytest.fixture
def fresh(lab):
    """A database of its own on the warehouse's server, with the app's table; its roles go with it."""
    server = lab.warehouse
    with database(server, "fresh"):
        server.psql("-qc", PRISMA_USER, database="fresh")
        yield server
    for role in ("own_reader", "own_writer", "someone"):  # the last may have made the others
        server.psql("-qc", "DROP ROLE IF EXISTS " + role, database="postgres")


def set_up(server, path, *variables, role=None, database="fresh"):
    """Run a set-up file. Returns what psql prints; raises CalledProcessError."""
    command = server.psql_command("-f", path, *[word for value in variables for word in ("-v", value)],
                                  database=database)
    if role:
        command[command.index("postgres")] = role
    return subprocess.run(command, env=dict(server.psql_environment(), PGPASSWORD=SUPERUSER_PASSWORD),
                          check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8").stdout


def can_log_in(server, role, password):
    try:
        psycopg2.connect(host="127.0.0.1", port=server.port, dbname="fresh", user=role, password=password).close()
    except psycopg2.OperationalError:
        return False
    return True


FILES = {"app": (APP, "reader=own_reader", "app_password=", "own_reader", "app_readonly"),
         "warehouse": (WAREHOUSE, "writer=own_writer", "writer_password=", "own_writer", "warehouse_writer")}


@pytest.mark.parametrize("path, name, password, role, _", list(FILES.values()), ids=list(FILES))
def test_no_role_is_left_with_a_known_password(fresh, path, name, password, role, _):
    said = set_up(fresh, path, name)
    assert said.splitlines()[-1].endswith("type:  \\password " + role), said
    assert fresh.psql("-qAtc", "SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = '%s'" % role) == "t\n"
    assert not can_log_in(fresh, role, "CHANGE_ME") and not can_log_in(fresh, role, "")
    assert len(set_up(fresh, path, name, password + PASSWORD).splitlines()) == 1
    assert can_log_in(fresh, role, PASSWORD)
    set_up(fresh, path, name)
    assert can_log_in(fresh, role, PASSWORD), "running it again keeps the password"


@pytest.mark.parametrize("path, name, _, role, __", list(FILES.values()), ids=list(FILES))
def test_a_password_written_into_the_file_is_set_on_later_runs_too(fresh, tmp_path, path, name, _, role, __):
    set_up(fresh, path, name)
    edited = tmp_path / "edited.sql"
    with open(path, encoding="utf-8") as file:  # as a user would by search and replace: everywhere
        edited.write_text(file.read().replace("CHANGE_ME", "from \\the file"), encoding="utf-8")
    assert len(set_up(fresh, str(edited), name).splitlines()) == 1
    assert can_log_in(fresh, role, "from \\the file")


def test_one_closing_line_names_role_table_and_database(fresh):
    assert set_up(fresh, APP, "reader=own_reader", "app_password=x") == \
        'own_reader may read public."User" in the database fresh.\n'
    assert set_up(fresh, WAREHOUSE, "writer=own_writer", "writer_password=x") == \
        "analytics.athlete_dim in the database fresh is ready for own_writer.\n"


@pytest.mark.parametrize("source", ['public."Coach"', "public.seen", '"My App"."we""ird"'])
def test_another_source(fresh, source):
    fresh.psql("-qc", 'CREATE SCHEMA "My App"; CREATE VIEW public.seen AS SELECT 1 AS one;'
                      'CREATE TABLE public."Coach" (); CREATE TABLE "My App"."we""ird" ()', database="fresh")
    set_up(fresh, APP, "reader=own_reader", "table=" + source, "app_password=x")
    assert fresh.psql("-qAtc", "SET ROLE own_reader; SELECT count(*) FROM " + source, database="fresh") != ""


def test_the_wrong_database_is_left_as_it_is(fresh):
    with pytest.raises(subprocess.CalledProcessError) as failure:
        set_up(fresh, APP, "reader=own_reader", database="postgres")
    assert 'there is no table public."User" in the database postgres' in failure.value.stderr
    assert "with -h and -d" in failure.value.stderr
    assert fresh.psql("-qAtc", "SELECT 1 FROM pg_roles WHERE rolname = 'own_reader'") == ""


# Who may


MAKE_SOMEONE = "CREATE ROLE someone LOGIN %s PASSWORD '" + SUPERUSER_PASSWORD + "'"
OWN_ALL = 'ALTER DATABASE fresh OWNER TO someone; ALTER TABLE public."User" OWNER TO someone;' \
          "ALTER SCHEMA public OWNER TO someone"


def test_the_owner_with_createrole_can_do_it_all(fresh):
    fresh.psql("-qc", MAKE_SOMEONE % "CREATEROLE", "-c", OWN_ALL, database="fresh")
    set_up(fresh, APP, "reader=own_reader", "app_password=" + PASSWORD, role="someone")
    set_up(fresh, WAREHOUSE, "writer=own_writer", "writer_password=" + PASSWORD, role="someone")
    assert can_log_in(fresh, "own_reader", PASSWORD) and can_log_in(fresh, "own_writer", PASSWORD)
    fresh.psql("-qc", "DROP OWNED BY own_reader, own_writer; REASSIGN OWNED BY someone TO postgres",
               database="fresh")


def test_a_mere_owner_can_grant_to_roles_that_are_there(fresh):
    fresh.psql("-qc", MAKE_SOMEONE % "", "-c", OWN_ALL, "-c", "CREATE ROLE own_reader", "-c",
               "CREATE ROLE own_writer", database="fresh")
    said = set_up(fresh, APP, "reader=own_reader", role="someone")
    assert said.splitlines()[1:] == [
        "Left to a superuser:  ALTER ROLE own_reader SET default_transaction_read_only = on;"]
    fresh.psql("-qc", said.splitlines()[1].split(":")[1])
    assert len(set_up(fresh, APP, "reader=own_reader", role="someone").splitlines()) == 1
    assert len(set_up(fresh, WAREHOUSE, "writer=own_writer", role="someone").splitlines()) == 1
    fresh.psql("-qc", "REASSIGN OWNED BY someone TO postgres", database="fresh")


# What is there already


def test_setup_run_again_keeps_every_row(world, lab):
    world.app_has((ANN, "Ann Archer"))
    world.warehouse_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
    world.sync()
    before = world.warehouse.snapshot()
    lab.warehouse.psql("-f", WAREHOUSE)
    lab.app.psql("-f", APP)
    assert world.warehouse.snapshot() == before
    assert world.sync().code == 0, "without -v the passwords stay"


def test_setup_leaves_a_dimension_made_by_hand_as_it_is(world, lab):
    with database(lab.warehouse, "by_hand"):
        lab.warehouse.psql("-q", database="by_hand", stdin="""
        CREATE SCHEMA analytics;
        CREATE TABLE analytics.athlete_dim (athlete_uuid UUID PRIMARY KEY, full_name TEXT NOT NULL,
                                            source_synced_at TIMESTAMPTZ NOT NULL DEFAULT NOW(), club TEXT);
        INSERT INTO analytics.athlete_dim VALUES ('%s', 'Ann Archer', '2020-01-01', 'Rowing');
        GRANT USAGE ON SCHEMA analytics TO warehouse_writer;
        GRANT SELECT, INSERT, UPDATE ON analytics.athlete_dim TO warehouse_writer""" % ANN)
        world.app_has((ANN, "Ann Baker"), (BOB, "Bob Bowman"))
        run = world.run("--json", "--dry-run", WH_DB="by_hand")
        assert (run.code, run.counts()) == (0, "2: 1 new, 1 renamed"), run
        read = ("-qAtc", "SELECT full_name, source_synced_at < '2021-01-01', club"
                         " FROM analytics.athlete_dim ORDER BY 1")
        lab.warehouse.psql("-f", WAREHOUSE, database="by_hand")
        assert lab.warehouse.psql(*read, database="by_hand") == "Ann Archer|t|Rowing\n"
        run = world.run("--json", WH_DB="by_hand")
        assert (run.code, run.counts()) == (0, "2: 1 new, 1 renamed"), run
        assert lab.warehouse.psql(*read, database="by_hand") == "Ann Baker|f|Rowing\nBob Bowman|f|\n"
        assert "warehouse_setup.sql" not in run.err


def test_a_history_of_an_older_shape_gets_what_it_lacks(fresh):
    fresh.psql("-qc", "CREATE SCHEMA analytics; CREATE TABLE analytics.athlete_sync_run ("
                      "run_id BIGSERIAL PRIMARY KEY, started_at TIMESTAMPTZ NOT NULL, finished_at TIMESTAMPTZ NOT NULL,"
                      "result TEXT NOT NULL, note TEXT);"
                      "INSERT INTO analytics.athlete_sync_run VALUES (1, now(), now(), 'ok', 'kept')",
               database="fresh")
    set_up(fresh, WAREHOUSE, "writer=own_writer", "writer_password=x")
    set_up(fresh, WAREHOUSE, "writer=own_writer")
    assert fresh.psql("-qAtc", "SELECT target, result, note, max_age FROM analytics.athlete_sync_run",
                      database="fresh") == "analytics.athlete_dim|ok|kept|2 days\n"
    assert fresh.psql("-qAtc", "SELECT verdict FROM analytics.athlete_sync_health", database="fresh") == "healthy\n"


# Health goes by full runs


@pytest.mark.parametrize("runs, verdict", [
    ([], "never ran"),
    ([("full", "ok", "1 hour")], "healthy"),
    ([("full", "ok", "10 days"), ("incremental", "ok", "1 minute")], "stale"),
    ([("incremental", "ok", "1 minute")], "stale"),
    ([("full", "ok", "1 hour"), ("incremental", "failed", "1 minute")], "failing"),
    ([("full", "ok", "1 hour"), ("full", "skipped", "1 minute")], "healthy"),
], ids=str)
def test_the_view_and_the_status_say_the_same(world, runs, verdict):
    for mode, result, ago in runs:
        world.warehouse.sql(
            "INSERT INTO analytics.athlete_sync_run (target, started_at, finished_at, mode, result, exit_code,"
            " rejects, version, max_age) VALUES ('analytics.athlete_dim', now() - %s::interval,"
            " now() - %s::interval, %s, %s, 0, '[]', '1', '2 days')", ago, ago, mode, result)
    assert world.warehouse.value("SELECT verdict FROM analytics.athlete_sync_health") == verdict
    assert world.run("--status").out.startswith(verdict + ":")


# What the roles may do


def test_the_app_role_cannot_write(world):
    world.app_has((ANN, "Ann Archer"))
    world.app.check_that_it_refuses(
        "app_readonly", 'DELETE FROM public."User"', 'UPDATE public."User" SET name = name',
        'INSERT INTO public."User" DEFAULT VALUES', 'TRUNCATE public."User"')


def test_the_writer_may_do_no_more_than_the_sync_needs(world):
    assert world.warehouse.sql("""
        SELECT table_schema || '.' || table_name, string_agg(privilege_type, ' ' ORDER BY privilege_type)
          FROM information_schema.role_table_grants
         WHERE grantee = 'warehouse_writer' GROUP BY 1 ORDER BY 1""") == [
        ("analytics.athlete_dim", "INSERT SELECT UPDATE"),
        ("analytics.athlete_rename", "INSERT"),
        ("analytics.athlete_sync_health", "SELECT"),
        ("analytics.athlete_sync_run", "INSERT SELECT"),
    ]
    world.warehouse.check_that_it_refuses(
        "warehouse_writer", "CREATE TABLE analytics.mine ()", "DELETE FROM analytics.athlete_dim",
        "TRUNCATE analytics.athlete_dim", "SELECT * FROM public.bystander")


def test_the_writer_may_only_add_renames(world):
    with world.warehouse.holding("SET SESSION AUTHORIZATION warehouse_writer") as writer:
        writer.sql("INSERT INTO analytics.athlete_rename VALUES (1, %s, 'Ann Archer', 'Ann Baker', now())", ANN)
    world.warehouse.check_that_it_refuses(
        "warehouse_writer", "DELETE FROM analytics.athlete_rename", "SELECT * FROM analytics.athlete_rename",
        "UPDATE analytics.athlete_rename SET old_name = ''", "TRUNCATE analytics.athlete_rename")


# What would go wrong in silence, or stop half-way


def refused(server, path, *variables, role=None):
    """What psql prints where a set-up file refuses."""
    with pytest.raises(subprocess.CalledProcessError) as failure:
        set_up(server, path, *variables, role=role)
    return failure.value.stderr


@pytest.mark.parametrize("reader", ["postgres", "someone"])
def test_the_apps_own_role_is_not_made_read_only(fresh, reader):
    fresh.psql("-qc", MAKE_SOMEONE % "", "-c", OWN_ALL, database="fresh")
    said = refused(fresh, APP, "reader=" + reader)
    assert "%s is a superuser or owns" % reader in said and "-v reader=" in said
    assert fresh.psql("-qAtc", "SELECT 1 FROM pg_db_role_setting JOIN pg_roles ON pg_roles.oid = setrole"
                               " WHERE rolname = '%s'" % reader) == ""


def test_who_may_not_grant_is_told_and_nothing_is_changed(fresh):
    fresh.psql("-qc", MAKE_SOMEONE % "CREATEROLE", "-c", 'GRANT SELECT ON public."User" TO someone', database="fresh")
    said = refused(fresh, APP, "reader=own_reader", role="someone")
    assert "someone may not grant all that own_reader needs" in said
    assert 'GRANT SELECT ON TABLE public."User" TO own_reader;' in said
    assert fresh.psql("-qAtc", "SELECT 1 FROM pg_roles WHERE rolname = 'own_reader'") == ""


@pytest.mark.parametrize("path, name, _, role, __", list(FILES.values()), ids=list(FILES))
def test_who_may_not_make_the_role_is_told_who_may(fresh, path, name, _, role, __):
    fresh.psql("-qc", MAKE_SOMEONE % "", "-c", OWN_ALL, database="fresh")
    said = refused(fresh, path, name, role="someone")
    assert "CREATE ROLE %s LOGIN;" % role in said and "CREATEROLE" in said, said
    fresh.psql("-qc", "CREATE ROLE %s LOGIN" % role)
    set_up(fresh, path, name, role="someone")


def test_grants_outlive_a_later_revoke_from_everybody(fresh):
    set_up(fresh, APP, "reader=own_reader", "app_password=" + PASSWORD)
    fresh.psql("-qc", "REVOKE ALL ON DATABASE fresh FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC",
               database="fresh")
    assert can_log_in(fresh, "own_reader", PASSWORD)
    assert fresh.psql("-qAtc", 'SET ROLE own_reader; SELECT count(*) FROM public."User"', database="fresh") == "0\n"


def test_a_dimension_that_is_a_view_or_has_its_own_comment_stays_as_it_is(fresh):
    fresh.psql("-qc", "CREATE SCHEMA dw; CREATE TABLE dw.base (athlete_uuid UUID PRIMARY KEY, full_name TEXT,"
                      " source_synced_at TIMESTAMPTZ) WITH (fillfactor = 80); COMMENT ON TABLE dw.base IS 'mine';"
                      "CREATE VIEW dw.seen AS SELECT * FROM dw.base", database="fresh")
    for table in ("dw.seen", "dw.base"):
        set_up(fresh, WAREHOUSE, "writer=own_writer", "table=" + table)
        assert fresh.psql("-qAtc", "SELECT has_table_privilege('own_writer', '%s', 'INSERT')" % table,
                          database="fresh") == "t\n"
    assert fresh.psql("-qAtc", "SELECT reloptions, obj_description(oid) FROM pg_class WHERE relname = 'base'",
                      database="fresh") == "{fillfactor=80}|mine\n"


def test_owning_the_tables_is_enough_without_a_right_to_create(fresh):
    set_up(fresh, WAREHOUSE, "writer=own_writer")
    fresh.psql("-qc", MAKE_SOMEONE % "", "-c", """DO $$ DECLARE name REGCLASS; BEGIN
        FOR name IN SELECT oid FROM pg_class WHERE relnamespace = 'analytics'::regnamespace AND relkind IN ('r', 'v')
        LOOP EXECUTE format('ALTER TABLE %s OWNER TO someone', name); END LOOP; END $$;
        CREATE SCHEMA dw; GRANT USAGE ON SCHEMA dw TO someone, own_writer;
        GRANT USAGE, CREATE ON SCHEMA analytics TO someone;
        CREATE TABLE dw.dim (athlete_uuid UUID PRIMARY KEY, full_name TEXT, source_synced_at TIMESTAMPTZ);
        ALTER TABLE dw.dim OWNER TO someone""", database="fresh")
    set_up(fresh, WAREHOUSE, "writer=own_writer", "table=dw.dim", role="someone")
    fresh.psql("-qc", "REVOKE USAGE ON SCHEMA dw FROM own_writer", database="fresh")
    assert "GRANT USAGE ON SCHEMA dw TO own_writer;" in refused(
        fresh, WAREHOUSE, "writer=own_writer", "table=dw.dim", role="someone")


def test_a_health_view_of_another_shape_is_made_anew(fresh):
    fresh.psql("-qc", "CREATE SCHEMA analytics; CREATE VIEW analytics.athlete_sync_health AS SELECT 1 AS well",
               database="fresh")
    set_up(fresh, WAREHOUSE, "writer=own_writer")
    assert fresh.psql("-qAtc", "SELECT verdict FROM analytics.athlete_sync_health", database="fresh") == "never ran\n"


def test_renames_outlive_a_history_that_begins_anew(fresh):
    set_up(fresh, WAREHOUSE, "writer=own_writer")
    rename = "INSERT INTO analytics.athlete_rename VALUES (1, '%s', 'A', 'B')" % ANN
    fresh.psql("-qc", rename, "-qc", rename, database="fresh")


@pytest.mark.parametrize("path, name", [(APP, "reader=own_reader"), (WAREHOUSE, "writer=own_writer")])
def test_a_role_that_has_no_password_is_named_again(fresh, path, name):
    assert set_up(fresh, path, name) == set_up(fresh, path, name)
