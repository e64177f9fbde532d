"""The two set-up files, run by psql as a case says, in a database of their own."""

from __future__ import annotations

import contextlib
import copy
import os
import pty
import re
import subprocess

import psycopg2
import pytest
from conftest import ANN, BOB, TABLE, database
from lab.servers import PRISMA_USER, PROJECT, SUPERUSER_PASSWORD

APP, WAREHOUSE = (str(PROJECT / "sql" / file) for file in ("app_readonly.sql", "warehouse_setup.sql"))
VARIABLE = {APP: "reader=", WAREHOUSE: "writer="}
PASSWORD = "typed by somebody"
GRANTS = """SELECT concat(table_name, ' ', string_agg(privilege_type, ' ' ORDER BY privilege_type))
              FROM information_schema.role_table_grants WHERE grantee = %s GROUP BY table_name ORDER BY 1"""


@pytest.fixture
def fresh(lab):
    """A database with the app's table, where nobody may do what was not granted; its roles go with it."""
    server = copy.copy(lab.warehouse)
    with database(lab.warehouse, "fresh"):
        server.name = "fresh"
        server.psql("-qc", PRISMA_USER, "-c", "REVOKE ALL ON SCHEMA public FROM PUBLIC")
        server.psql("-qc", "REVOKE ALL ON DATABASE fresh FROM PUBLIC")
        yield server
    server.psql("-qc", 'DROP ROLE IF EXISTS own_role, "Own Role", someone', database="postgres")


def set_up(server, path, table=None, role="own_role", user="postgres"):
    """Run a set-up file. Returns what psql prints; raises CalledProcessError."""
    return server.psql("-U", user, "-v", VARIABLE[path] + role, *["-v", "table=%s" % table] * bool(table), "-f", path)


def ask(server, question, role="postgres"):
    return server.psql("-qAt", "-c", "SET ROLE " + role, "-c", question).rstrip("\n")


def type_into_psql(server, *arguments):
    """Run psql on a terminal and type PASSWORD when it asks. Returns what is shown there, and meanwhile by ps."""
    child, terminal = pty.fork()
    if not child:
        os.execve(server.psql_command()[0], server.psql_command(*arguments), server.psql_environment())
    shown = ""
    with contextlib.suppress(OSError):  # what Linux says at the end
        for part in iter(lambda: os.read(terminal, 65536).decode(), ""):
            shown += part
            if shown.endswith(": "):
                shown += subprocess.check_output(["ps", "-A", "-ww", "-o", "args"]).decode(errors="replace")
                os.write(terminal, PASSWORD.encode() + b"\n")
    return os.waitpid(child, 0)[1], shown


@pytest.mark.parametrize("path", [APP, WAREHOUSE], ids=["app", "warehouse"])
@pytest.mark.parametrize("role", ["own_role", "Own Role"])
def test_psql_asks_for_the_password_and_nobody_else_hears_it(fresh, path, role):
    assert not re.search(r"\\(if|el|bind|gdesc)|:\{\?", open(path).read()), "psql 9.6 knows none of these"
    fresh.psql("-qc", "ALTER DATABASE fresh SET log_statement = 'all'")
    command = ["-v", VARIABLE[path] + role, "-f", path, "-c", '\\password "%s"' % role]
    code, shown = type_into_psql(fresh, "-v", "table=nowhere.at_all", *command)
    assert code != 0 and "does not exist" in shown and "Enter " not in shown, shown
    set_up(fresh, path, role=role)
    assert ask(fresh, "SELECT rolcanlogin, rolpassword FROM pg_authid WHERE rolname = '%s'" % role) == "t|"
    code, shown = type_into_psql(fresh, *command)
    logged = fresh.log.read_text()
    assert code == 0 and shown.count("Enter ") == 2 and PASSWORD not in shown + logged, shown
    assert re.search("ALTER (USER|ROLE) \"?%s\"? PASSWORD '(SCRAM|md5)" % role, logged), "it is logged, but encrypted"
    set_up(fresh, path, role=role)
    psycopg2.connect(host="127.0.0.1", port=fresh.port, dbname="fresh", user=role, password=PASSWORD).close()


OTHERS = """
CREATE SCHEMA "My App"; CREATE TABLE "My App"."we""ird" (); CREATE VIEW public.seen AS SELECT 1 AS one;
CREATE TABLE public.base (athlete_uuid UUID PRIMARY KEY, full_name TEXT, source_synced_at TIMESTAMPTZ);
CREATE VIEW public.view AS SELECT * FROM public.base;
CREATE ROLE own_role NOLOGIN CREATEDB CONNECTION LIMIT 3 PASSWORD 'x'; ALTER ROLE own_role SET work_mem = '5MB'"""
THE_ROLE = "SELECT a, s FROM pg_authid a JOIN pg_db_role_setting s ON setrole = a.oid WHERE rolname = 'own_role'"


@pytest.mark.parametrize("path, table", [
    (APP, "seen"), (APP, '"My App"."we""ird"'), (WAREHOUSE, "analytics.coach_dim"), (WAREHOUSE, "public.base"),
    (WAREHOUSE, "public.view"), (WAREHOUSE, '"My App"."Coach ""Dim"""')])
def test_another_table_and_a_role_that_was_there_which_stays_as_it_was(fresh, path, table):
    fresh.psql("-qc", OTHERS)
    before = ask(fresh, THE_ROLE)
    assert table in set_up(fresh, path, table)
    ask(fresh, "INSERT INTO %s (athlete_uuid, full_name) VALUES ('%s', 'Ann Archer')" % (table, ANN)
        if path == WAREHOUSE else "SELECT count(*) FROM " + table, "own_role")
    assert ask(fresh, THE_ROLE) == before
    assert ask(fresh, "SELECT reloptions FROM pg_class WHERE relname = 'base'") == "", "so does a table"


OWNS_ALL = """ALTER DATABASE fresh OWNER TO someone; ALTER SCHEMA public OWNER TO someone;
              ALTER TABLE public."User" OWNER TO someone"""
MAY_NOT_GRANT = """GRANT CREATE, CONNECT ON DATABASE fresh TO someone; GRANT USAGE ON SCHEMA public TO someone;
                   CREATE SCHEMA analytics AUTHORIZATION someone; CREATE TABLE analytics.athlete_dim ();
                   GRANT SELECT ON public."User", analytics.athlete_dim TO someone"""
DENIED = "permission denied"


@pytest.mark.parametrize("role, rights, app_says, warehouse_says", [
    ("CREATEROLE", OWNS_ALL, "own_role may read", "is ready for"),
    ("NOCREATEROLE", OWNS_ALL, DENIED, DENIED),
    ("CREATEROLE", "GRANT CONNECT ON DATABASE fresh TO someone", DENIED, DENIED),
    ("CREATEROLE", MAY_NOT_GRANT, "own_role may NOT read", "is NOT ready for"),
], ids=["owns all", "may make no role", "owns nothing", "may not grant"])
def test_who_may(fresh, role, rights, app_says, warehouse_says):
    fresh.psql("-qc", "CREATE ROLE someone LOGIN %s PASSWORD '%s'" % (role, SUPERUSER_PASSWORD), "-c", rights)
    for path, expected in ((APP, app_says), (WAREHOUSE, warehouse_says)):
        try:
            assert expected in set_up(fresh, path, user="someone")
        except subprocess.CalledProcessError as failure:
            assert expected in failure.stderr, failure.stderr
        assert (ask(fresh, "SELECT 1 FROM pg_roles WHERE rolname = 'own_role'") == "") == (expected == DENIED)
    fresh.psql("-qc", "REASSIGN OWNED BY someone TO postgres; DROP OWNED BY someone")


# What version 1.0.0's file made, and what others have added since.
OLD_WAREHOUSE = """
CREATE SCHEMA analytics CREATE TABLE athlete_dim (
    athlete_uuid UUID PRIMARY KEY, full_name TEXT, source_synced_at TIMESTAMPTZ, club TEXT);
CREATE TABLE analytics.athlete_sync_run (run_id BIGSERIAL PRIMARY KEY, target TEXT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL, finished_at TIMESTAMPTZ NOT NULL, mode TEXT NOT NULL, result TEXT NOT NULL,
    exit_code INTEGER NOT NULL, source_rows BIGINT, inserted BIGINT, updated BIGINT, unchanged BIGINT, missing BIGINT,
    rejected BIGINT, repeated BIGINT, rejects JSONB NOT NULL, message TEXT, host TEXT, version TEXT NOT NULL,
    max_age INTERVAL NOT NULL, app_position BIGINT, app_source TEXT, app_is_unique BOOLEAN, dimension_rows BIGINT);
CREATE VIEW analytics.athlete_sync_health AS SELECT text '' AS verdict, now() AS last_success,
    interval '0' AS last_success_age, text '' AS last_result, interval '0' AS last_duration,
    interval '0' AS usual_duration, now() AS last_full_success;
INSERT INTO analytics.athlete_dim VALUES ('{0}', 'Ann Archer', '2020-01-01', 'Rowing');
INSERT INTO analytics.athlete_sync_run (target, started_at, finished_at, mode, result, exit_code, rejects, version,
    max_age) VALUES ('analytics.athlete_dim', now(), now(), 'full', 'ok', 0, '[]', '1.0.0', '2 days');
CREATE ROLE someone; GRANT USAGE ON SCHEMA analytics TO someone;
GRANT SELECT ON analytics.athlete_sync_health TO someone""".format(ANN)
KEPT = "SELECT kept, run_id, version, rolpassword FROM analytics.athlete_dim AS kept, analytics.athlete_sync_run," \
       " pg_authid WHERE rolname = 'warehouse_writer'"


def test_over_a_warehouse_of_the_old_files_all_is_kept(fresh, world):
    fresh.psql("-qc", OLD_WAREHOUSE)
    before = ask(fresh, KEPT)
    fresh.psql("-f", WAREHOUSE)
    assert ask(fresh, KEPT) == before
    assert "healthy" in ask(fresh, "SELECT * FROM analytics.athlete_sync_health", "someone")
    world.app_has((ANN, "Ann Baker"), (BOB, "Bob Bowman"))
    run = world.sync(WH_DB="fresh")
    assert (run.code, run.counts(), "setup.sql" in run.err) == (0, "2: 1 new, 1 renamed", False), run
    assert ask(fresh, "SELECT full_name, club FROM analytics.athlete_dim ORDER BY 1") == "Ann Baker|Rowing\nBob Bowman|"


def test_run_again_nothing_changes_and_the_roles_may_do_no_more_than_a_run_needs(world):
    for side, path, role, grants in (
            (world.app, APP, "app_readonly", ["User SELECT"]),
            (world.warehouse, WAREHOUSE, "warehouse_writer", [
                "athlete_dim INSERT SELECT UPDATE", "athlete_rename INSERT", "athlete_sync_health SELECT",
                "athlete_sync_run INSERT SELECT"])):
        before = side.snapshot()
        side.server.psql("-f", path)
        assert side.snapshot() == before
        assert [grant for grant, in side.sql(GRANTS, role)] == grants
        side.check_that_it_refuses(role, "DELETE FROM " + TABLE[side.server.name])
    world.warehouse.check_that_it_refuses("warehouse_writer", "CREATE TABLE analytics.mine ()")
    assert world.app.sql("SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'app_readonly'::regrole") == [
        (["default_transaction_read_only=on"],)]
