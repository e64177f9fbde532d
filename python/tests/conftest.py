"""Two real servers for the whole session, empty tables for each test, and `world`, in whose words a test reads as four
lines: rows in the app, rows in the warehouse before, what is run, what is left.

Every run made through `world` is held to more: the app is byte for byte what it was, nothing in the warehouse changed
but the dimension and the history, the numbers add up, and neither a password nor an athlete's name was printed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import psycopg2
import psycopg2.extras
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lab.servers import PROJECT, READER_PASSWORD, SCRIPT, WRITER_PASSWORD, servers_to_test_on, wait_until

HISTORY, RENAMES = "analytics.athlete_sync_run", "analytics.athlete_rename"
TABLE = {"app": 'public."User"', "warehouse": "analytics.athlete_dim"}
HOLD_THE_LOCK = "SELECT pg_advisory_xact_lock(1096043596, 'analytics.athlete_dim'::regclass::oid::integer)"
LONG_AGO = "2020-01-01 00:00:00+00"
RESULT_KEYS = ("result exit_code mode dry_run source inserted updated unchanged missing rejected repeated "
               "seconds rejects message").split()
NO_SETTINGS = tempfile.NamedTemporaryFile(suffix=".env")  # empty, and nobody else may read it
RUN_MAY_TAKE = 60  # seconds; a run that takes longer is stuck, and the test shall say so
ANN, BOB, CAT, DAN = ("00000000-0000-4000-8000-00000000000" + last for last in "abcd")


def pytest_configure(config):
    # A thread of the script that dies is a defect, even where the run goes on to its end.
    config.addinivalue_line("filterwarnings", "error::pytest.PytestUnhandledThreadExceptionWarning")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a suite started by nohup would hand its own on
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def lab():
    with servers_to_test_on(fsync="off", synchronous_commit="off", full_page_writes="off", autovacuum="off") as lab:
        lab.set_up()
        lab.warehouse.psql("-qc", "CREATE TABLE public.bystander AS SELECT 1 AS one")
        yield lab


@pytest.fixture(scope="session")
def sides(lab):
    return Side(lab.app), Side(lab.warehouse)


def empty(app, warehouse):
    app.sql('TRUNCATE public."User"')
    warehouse.sql("TRUNCATE %s, %s, %s RESTART IDENTITY" % (TABLE["warehouse"], HISTORY, RENAMES))


@pytest.fixture(autouse=True)
def world(lab, sides, script):
    empty(*sides)
    world = World(lab, *sides, script)
    yield world
    for process in world.started:
        process.kill()  # if it has not ended
        process.wait()


def load_script():
    """The program as a module: for calling main(), and for its tables."""
    sys.path.append(str(SCRIPT.parent))
    return importlib.import_module(SCRIPT.stem)


script = pytest.fixture(scope="session", name="script")(load_script)


def trigger(when, body, table=TABLE["warehouse"], deferred=False):
    """SQL that makes a trigger in the warehouse, and SQL that takes it away: for Side.changed()."""
    return """
        CREATE FUNCTION analytics.meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN %s END $$;
        CREATE %s TRIGGER "Meddle" %s ON %s %s FOR EACH ROW EXECUTE PROCEDURE analytics.meddle()""" % (
        body, "CONSTRAINT" if deferred else "", when, table, "DEFERRABLE INITIALLY DEFERRED" if deferred else ""), \
        "DROP FUNCTION analytics.meddle() CASCADE"


@contextlib.contextmanager
def database(server, name, encoding="UTF8"):
    server.psql("-qc", "CREATE DATABASE %s ENCODING '%s' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
                % (name, encoding), database="postgres")
    try:
        yield name
    finally:
        server.psql("-qc", "DROP DATABASE " + name, database="postgres")


class Side:
    """The superuser's view of one database."""

    def __init__(self, server):
        self.server, self.connection = server, None
        self.reconnect()

    def reconnect(self):
        self.connection = psycopg2.connect(
            host="127.0.0.1", port=self.server.port, dbname=self.server.name, user=self.server.superuser,
            password=self.server.password, options="-c lock_timeout=20s -c statement_timeout=60s")
        self.connection.autocommit = True

    def sql(self, statement, *values):
        """Run a statement; return its rows, if it has any."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else None

    def value(self, statement, *values):
        return self.sql(statement, *values)[0][0]

    def version(self):
        return self.connection.server_version // 10000

    def needs(self, statements, **since):
        """Skip the test where the statements have a word that only a later PostgreSQL knows."""
        for word, version in since.items():
            if word in statements and self.version() < version:
                pytest.skip("PostgreSQL %d brought this %s" % (version, word))

    @contextlib.contextmanager
    def changed(self, change, undo):
        """What a test breaks in a database is mended after it, come what may."""
        self.sql(change)
        try:
            yield
        finally:
            self.sql(undo)

    @contextlib.contextmanager
    def holding(self, *statements):
        """Run statements in a transaction that stays open meanwhile: to hold a lock."""
        holder = Side(self.server)
        holder.connection.autocommit = False
        with contextlib.closing(holder.connection):
            for statement in statements:
                holder.sql(statement)
            yield holder

    def locked(self, table=None, mode="ACCESS EXCLUSIVE"):
        """The side's table, or another one, is locked meanwhile: a run that comes to it waits there."""
        return self.holding("LOCK TABLE %s IN %s MODE" % (table or TABLE[self.server.name], mode))

    def check_that_it_refuses(self, role, statement):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege), self.holding(
                "SET SESSION AUTHORIZATION " + role, statement):
            pass

    def wait_until_a_run_waits_for_a_lock(self):
        wait_until(lambda: self.sql("SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)"
                                    " WHERE NOT granted AND usename IN ('app_readonly', 'warehouse_writer')"))

    def snapshot(self, leaving_out=()):
        """Everything a run could change: relations and grants, and each table's rows with their versions."""
        relations = self.sql("""
            SELECT oid::regclass::text, relkind::text, relacl::text, relowner::regrole::text FROM pg_class
             WHERE relnamespace::regnamespace::text !~ '^(pg_|information_schema)' ORDER BY 1""")
        return relations, {name: self.rows_hash(name) for name, kind, _, _ in relations
                           if kind in "rp" and name not in leaving_out}

    def rows_hash(self, table):
        return self.value("SELECT md5(string_agg(concat(ctid, xmin, xmax, t), ',' ORDER BY ctid)) FROM %s t" % table)


class Run:
    """What a run left behind: its exit code and what it printed."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def result(self):
        """The result line, as a dictionary."""
        line = self.out.splitlines()[-1]
        return json.loads(line) if line.startswith("{") else dict(word.split("=", 1) for word in line.split())

    @property
    def error(self):
        """The one line in which a failure ends."""
        return self.err.rstrip("\n").splitlines()[-1]

    def counts(self):
        """Such as "3: 2 new, 1 repeated": rows in the app, then every other count that is not 0."""
        result, words = self.result, {"inserted": "new", "updated": "renamed"}
        counted = ["%s %s" % (result[key], words.get(key, key)) for key in RESULT_KEYS[5:11] if result[key] != 0]
        return "%s: %s" % (result["source"], ", ".join(counted) or "nothing")

    def __repr__(self):
        return "exit code %s\nstdout: %s\nstderr: %s" % (self.code, self.out, self.err)


class World:
    def __init__(self, lab, app, warehouse, script):
        self.lab, self.app, self.warehouse, self.script = lab, app, warehouse, script
        self.started = []

    def app_has(self, *rows):
        psycopg2.extras.execute_values(
            self.app.connection.cursor(), 'INSERT INTO public."User" (uuid, name, email) VALUES %s',
            [(uuid, name, "%d@example.org" % number) for number, (uuid, name) in enumerate(rows)])

    def warehouse_has(self, *rows, synced_at=LONG_AGO):
        psycopg2.extras.execute_values(
            self.warehouse.connection.cursor(), "INSERT INTO analytics.athlete_dim VALUES %s",
            [(uuid, name, synced_at) for uuid, name in rows])

    def sync(self, *flags, **settings):
        """Run main() in this process with --json. For what a row becomes; a tenth of a subprocess's time."""
        with self.held_to_the_rules(flags, settings) as runs:
            runs.append(run_in_process(self.script, arguments(("--json",) + flags), self.environment(settings)))
        return runs[0]

    def run(self, *flags, **settings):
        """Run the script as a scheduler does: a subprocess, started elsewhere than in the project."""
        with self.held_to_the_rules(flags, settings) as runs:
            runs.append(finish(self.start(*flags, **settings)))
        return runs[0]

    def start(self, *flags, command=(sys.executable, str(SCRIPT)), env_file=NO_SETTINGS.name,
              stderr=subprocess.PIPE, **settings):
        """Start the script and return the process; end it with finish(). It is killed when the test ends."""
        process = subprocess.Popen(
            list(command) + arguments(flags, env_file), env=self.environment(settings), cwd=os.sep,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
        self.started.append(process)
        return process

    def environment(self, settings):
        """The lab's settings, and those given here; one given as None is not set."""
        return {name: value for name, value in self.lab.environment(**settings).items() if value is not None}

    def dimension(self):
        """What the dimension holds, as {uuid: name}."""
        return dict(self.warehouse.sql("SELECT athlete_uuid::text, full_name FROM analytics.athlete_dim"))

    def rows(self):
        return self.warehouse.sql("SELECT * FROM analytics.athlete_dim ORDER BY athlete_uuid")

    def stamped(self):
        """The athletes whose source_synced_at is no longer LONG_AGO."""
        return {uuid for uuid, in self.warehouse.sql(
            "SELECT athlete_uuid::text FROM analytics.athlete_dim WHERE source_synced_at <> %s", LONG_AGO)}

    def history(self):
        """The rows of the run history as dictionaries, oldest first."""
        cursor = self.warehouse.connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor)
        cursor.execute("SELECT * FROM analytics.athlete_sync_run ORDER BY run_id")
        return [dict(row) for row in cursor]

    def ends(self):
        """How each run of the history ended, oldest first, such as "failed 2"."""
        return ["%(result)s %(exit_code)d" % row for row in self.history()]

    @contextlib.contextmanager
    def held_to_the_rules(self, flags, settings):
        table = None
        with contextlib.suppress(psycopg2.errors.InvalidName):  # before PostgreSQL 16; since then it is NULL
            table = self.warehouse.value("SELECT to_regclass(%s)::text", settings.get("WH_TABLE") or TABLE["warehouse"])
        may_change, runs = {self.app: (), self.warehouse: (table, HISTORY, RENAMES)}, []
        before = [side.snapshot(tables) for side, tables in may_change.items()]
        yield runs
        assert [side.snapshot(tables) for side, tables in may_change.items()] == before
        for run in runs:
            self.check_numbers(run, flags)
            self.check_secrets(run, flags, settings)

    def check_numbers(self, run, flags):
        if run.out.startswith("{") and "--status" not in flags:
            known = run.result
            assert (list(known), known["exit_code"]) == (RESULT_KEYS + ["changes"] * ("--diff" in flags), run.code)
            assert known["result"] != "ok" or known["source"] == sum(known[key] for key in (
                "inserted", "updated", "unchanged", "rejected", "repeated")), run

    def check_secrets(self, run, flags, settings):
        """Names of athletes are printed where --diff asks for them, on stdout, and nowhere else."""
        names = self.app.sql('SELECT name FROM public."User"')
        names += self.warehouse.sql("SELECT full_name FROM analytics.athlete_dim")
        is_kept = self.warehouse.value("SELECT to_regclass(%s)", HISTORY)
        kept = self.warehouse.sql("SELECT run::text FROM %s AS run" % HISTORY) if is_kept else []
        nameless = " ".join([run.err, *(row for row, in kept), "" if "--diff" in flags else run.out])
        for secret in (READER_PASSWORD, WRITER_PASSWORD, settings.get("APP_PASSWORD"), settings.get("WH_PASSWORD")):
            assert not secret or secret not in run.out + run.err, "printed: %r" % secret
        for name, in names:
            assert len(name or "") <= 5 or name not in nameless, "printed or kept: %r" % name

    def renames(self):
        """What was overwritten, oldest first."""
        return self.warehouse.sql(
            "SELECT run_id, athlete_uuid::text, old_name, new_name FROM %s ORDER BY 1, 2" % RENAMES)


@contextlib.contextmanager
def empty_world(lab, script):
    """The world of tests, on a lab of its own."""
    app, warehouse = Side(lab.app), Side(lab.warehouse)
    empty(app, warehouse)
    with contextlib.closing(app.connection), contextlib.closing(warehouse.connection):
        yield World(lab, app, warehouse, script)


def arguments(flags, env_file=NO_SETTINGS.name):
    """The command line. A developer's own .env may name real databases, which no test may ever reach."""
    return (["--env-file", env_file] if env_file and "--env-file" not in flags else []) + list(flags)


def in_env_file(text):
    """A value as .env.example says that it is written."""
    return "'%s'" % text.replace("\\", "\\\\").replace("'", "\\'")


def project_in(folder):
    """A copy of the project as far as a run needs it: the script, two folders down."""
    place = folder / SCRIPT.parent.relative_to(PROJECT)
    shutil.copytree(str(SCRIPT.parent), str(place), ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_in(project, world, *flags, **settings):
    """Run the project's copy, which finds its own .env."""
    copy = str(project / SCRIPT.relative_to(PROJECT))
    return finish(world.start(*flags, command=[sys.executable, copy], env_file=None, **settings))


def finish(process, timeout=RUN_MAY_TAKE):
    """Wait for a run that was started, and return what it left behind."""
    out, err = process.communicate(timeout=timeout)
    return Run(process.returncode, as_text(out), as_text(err))


def as_text(output):
    """A Windows program, under Wine, ends its lines with two characters, and may write in its code page."""
    try:
        text = output.decode("utf-8")
    except UnicodeDecodeError:
        text = output.decode("cp1252")
    return text.replace("\r\n", "\n")


def run_in_process(script, arguments, environment):
    """Call main() and put everything back that it sets for a whole process."""
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    level, signals = root.level, {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # With pytest's own handlers the script's would not be made.
        with mock.patch.dict(os.environ, environment, clear=True), mock.patch.object(root, "handlers", []):
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = script.main(arguments)
    finally:
        root.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)
    return Run(code, out.getvalue(), err.getvalue())
