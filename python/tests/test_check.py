"""--check says how a run would end, and what to type: each case is a set-up that is looked at, run, and mended."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import subprocess

import pytest
from conftest import ANN, BOB, CAT, HOLD_THE_LOCK, Side, arguments, database, finish, run_in_process, trigger
from lab.servers import PRISMA_USER, PROJECT, READER_PASSWORD, WRITER_PASSWORD, program_of, wait_until

SETUP = {"app": "app_readonly.sql", "warehouse": "warehouse_setup.sql"}
ROLES = {"app": ("app_readonly", READER_PASSWORD), "warehouse": ("warehouse_writer", WRITER_PASSWORD)}
ROWS = {"app": "INSERT INTO public.\"User\" VALUES ('%s', 'Ann Archer'), ('%s', 'Bob Bowman'), ('%s', 'Cat Cooper')" % (
    ANN, BOB, CAT), "warehouse": "INSERT INTO analytics.athlete_dim VALUES ('%s', 'Ann Before', '2020-01-01')" % ANN}
ROLE_AS_NEW = "ALTER ROLE {0} LOGIN NOSUPERUSER NOBYPASSRLS VALID UNTIL 'infinity' PASSWORD $${1}$$"


@pytest.fixture
def site(world):
    """The world with a database of its own on each side, whose name has to be quoted in SQL and in a shell."""
    with contextlib.ExitStack() as stack:
        for name, file in SETUP.items():
            side = getattr(world, name)
            server = copy.copy(side.server)
            server.name = stack.enter_context(database(side.server, '"%s to check"' % name)).strip('"')
            server.psql("-qc", PRISMA_USER, "-f", str(PROJECT / "sql" / file), "-c", ROWS[name])
            setattr(world, name, Side(server))
            stack.callback(getattr(world, name).connection.close)
            stack.callback(side.sql, ROLE_AS_NEW.format(*ROLES[name]))
        yield world


def run(site, *flags, **settings):
    environment = dict(APP_DB="app to check", WH_DB="warehouse to check", SYNC_CONNECT_ATTEMPTS="1")
    run = run_in_process(site.script, arguments(flags), site.environment(dict(environment, **settings)))
    assert READER_PASSWORD not in run.out + run.err and WRITER_PASSWORD not in run.out + run.err
    return run


def check(site, *flags, **settings):
    """--check, which changes nothing: what it writes and takes back leaves traces in the dimension, but no row."""
    is_there = site.warehouse.value("SELECT to_regclass(%s)", DIM)

    def state():
        return site.app.snapshot(), site.warehouse.snapshot(leaving_out=[DIM]), site.warehouse.sql(
            "SELECT dim::text FROM %s AS dim ORDER BY 1" % DIM if is_there else "SELECT 1")
    before = state()
    looked = run(site, "--check", *flags, **settings)
    assert state() == before, "it changed a database"
    assert looked.out.splitlines()[-1] == ("Not ready" if looked.code else "Ready") and not looked.err, looked
    return looked


def paste(side, said):
    """Run the set-up command that is named, or else the SQL: of two ways the last one that is SQL."""
    server, command = side.server, re.search(r"psql -h .*?\.sql", said)
    path = os.path.dirname(program_of(server.bindir, "psql")) + os.pathsep + os.environ["PATH"]
    if command:
        subprocess.run(command.group(), shell=True, cwd=str(PROJECT), check=True, stdout=subprocess.DEVNULL,
                       env=dict(server.psql_environment(), PATH=path))
    else:
        ways = said.split(" (exit")[0].split("; or")
        ways = [re.search(r"\b(ALTER|CREATE|GRANT|REVOKE) .*;", way + ";") for way in ways]
        server.psql("-q", stdin=[way.group() for way in ways if way][-1])


U, DIM, RUN = 'public."User"', "analytics.athlete_dim", "analytics.athlete_sync_run"
PASTE = True  # what is printed mends it
MEDDLE = trigger("BEFORE INSERT OR UPDATE", "NEW.full_name := 'x'; RETURN NEW;")[0]
CASES = [  # what is planted on which side, or a setting; exit code, and words that --check says
    *[case for side, prefix in (("app", "APP"), ("warehouse", "WH")) for case in (
        (side, 'REVOKE CONNECT ON DATABASE "%s to check" FROM {role}, PUBLIC' % side, 2, "may not connect", PASTE),
        (side, {prefix + "_PORT": "1"}, 2, "nothing listens there"),
        (side, {prefix + "_TABLE": "nowhere.athlete"}, 3, "does not exist"))],
    ("app", "REVOKE SELECT ON %s FROM {role}" % U, 3, "privilege is missing", PASTE),
    ("app", "ALTER TABLE %s ALTER uuid TYPE INTEGER USING 7" % U, 3, "every row was rejected: 3 uuid is not a uuid"),
    ("app", "ALTER TABLE %s ENABLE ROW LEVEL SECURITY" % U, 3, "row-level security", PASTE),
    ("app", "INSERT INTO %s VALUES ('x', ''), ('%s', NULL)" % (U, ANN), 0, "rows rejected"),
    ("app", "TRUNCATE %s" % U, 0, "is empty"),
    ("app", "GRANT DELETE ON %s TO {role}" % U, 0, "may write", PASTE),
    ("app", "ALTER ROLE {role} SUPERUSER", 0, "may write"),
    ("warehouse", 'REVOKE TEMPORARY ON DATABASE "warehouse to check" FROM {role}, PUBLIC', 3, "privilege", PASTE),
    *[("warehouse", "REVOKE %s ON %s FROM {role}" % (privilege, DIM), 3, "privilege", PASTE)
      for privilege in ("SELECT", "INSERT", "UPDATE")],
    ("warehouse", "DROP SCHEMA analytics CASCADE", 3, "does not exist", PASTE),
    ("warehouse", "ALTER TABLE %s ALTER athlete_uuid TYPE TEXT" % DIM, 3, "needs athlete_uuid uuid"),
    ("warehouse", "ALTER TABLE %s ADD CHECK (full_name <> 'Cat Cooper')" % DIM, 3, "constraint refuses"),
    ("warehouse", MEDDLE, 3, "the proof failed"),
    ("warehouse", MEDDLE.replace("NEW.full_name := 'x';", ""), 0, "Ready"),
    ("warehouse", "DROP TABLE %s CASCADE" % RUN, 0, "run history", PASTE),
    ("warehouse", "DROP TABLE analytics.athlete_rename", 0, "former names", PASTE),
    ("warehouse", "REVOKE INSERT ON %s FROM {role}" % RUN, 0, "run history", PASTE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "%s: %s" % (case[0], str(case[1]).strip()[:60]))
def test_check_says_how_the_run_ends_and_what_it_prints_mends_it(site, case):
    name, plant, code, words, mends = (case + (False,))[:5]
    side, settings = getattr(site, name), plant if isinstance(plant, dict) else {}
    side.sql("SELECT 1" if settings else plant.replace("{role}", ROLES[name][0]))
    looked = check(site, **settings)
    assert looked.code == code and words in looked.out, looked
    if mends:
        paste(side, next(line for line in looked.out.splitlines() if words in line))
        again = check(site)
        assert again.code == 0 and words not in again.out, again
    wait_until(lambda: not site.warehouse.sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"), "a closed connection")
    ran = run(site, **(dict() if mends else settings))
    assert ran.code == (0 if mends else code), ran


def test_all_is_well_in_two_lines(site):
    for _ in range(2):
        looked = check(site)
        assert looked.code == 0 and len(looked.out.splitlines()) == 2 and "missing=0" in looked.out, looked
        assert run(site, "--check", "-q").out == "" and json.loads(run(site, "--json").out)["exit_code"] == 0
    failed = run(site, "--check", "--json", APP_UUID_COLUMN="name")
    assert json.loads(failed.out)["exit_code"] == 3 and json.loads(failed.out)["message"] in failed.err, failed


@pytest.mark.parametrize("settings, code, words", [
    (dict(APP_PORT="1", WH_PASSWORD="wrong"), 2, ["app: nothing listens there", "warehouse: the login was refused"]),
    (dict(APP_HOST=None, SYNC_REFRESH="daily", SYNC_PING_URL="secret"), 1, ["APP_HOST", "SYNC_REFRESH", "PING_URL"]),
    (dict(APP_TABLE="public.\u9078\u624b"), 3, ["does not exist"])], ids=["both sides", "settings", "cp1252 lacks it"])
def test_all_that_is_wrong_is_said_at_once_and_to_a_file_of_windows_too(site, settings, code, words):
    process = site.start("--check", SYNC_CONNECT_ATTEMPTS="1", PYTHONIOENCODING="cp1252", **settings)
    out, err = (text.decode("cp1252") for text in process.communicate(timeout=60))
    assert process.returncode == code and out.splitlines()[-1] == "Not ready" and not err, out + err
    assert not [one for one in words if one not in out] and "secret" not in out, out


def test_neither_a_run_nor_a_lock_holds_it_for_ever(site):
    with site.warehouse.holding(HOLD_THE_LOCK):
        looked = check(site)
        assert looked.code == 0 and "result=skipped" in looked.out, looked
    with site.app.locked('public."User"'):
        looked = finish(site.start("--check", APP_DB="app to check", WH_DB="warehouse to check", SYNC_DEADLINE="1"))
    assert looked.code == 2 and "deadline" in looked.out and looked.out.endswith("Not ready\n"), looked


def test_a_warehouse_that_lacks_names(site):
    with database(site.warehouse.server, "latin1", "LATIN1"):
        site.warehouse.server.psql("-f", str(PROJECT / "sql" / SETUP["warehouse"]), database="latin1")
        looked = run(site, "--check", WH_DB="latin1")
    assert looked.code == 0 and "warehouse: the encoding is LATIN1" in looked.out, looked
