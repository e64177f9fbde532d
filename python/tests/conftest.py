"""Two real servers for the whole session, empty tables for each test, and `world`, in whose words a
test reads as four lines: rows in the app, rows in the warehouse before, what is run, what is left.

Every run made through `world` is also held to what must be true of all runs: the app is byte for byte
what it was, nothing in the warehouse changed but the dimension and the history, the numbers add up, and
neither a password nor an athlete's name was printed.
"""

from __future__ import annotations

import contextlib
import importlib.util
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

import psycopg2
import psycopg2.extras
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lab import servers
from lab.servers import PROJECT, READER_PASSWORD, SCRIPT, SUPERUSER_PASSWORD, WRITER_PASSWORD, wait_until

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
    options = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
    with servers.two_servers(**options) as two_servers:
        two_servers.set_up()
        two_servers.warehouse.psql("-qc", "CREATE TABLE public.bystander AS SELECT 1 AS one")
        yield two_servers


@pytest.fixture(scope="session")
def sides(lab):
    app, warehouse = Side(lab.app), Side(lab.warehouse)
    yield app, warehouse
    app.connection.close()
    warehouse.connection.close()


def empty(app, warehouse):
    app.sql('TRUNCATE public."User"')
    warehouse.sql("TRUNCATE %s, %s, %s RESTART IDENTITY" % (TABLE["warehouse"], HISTORY, RENAMES))


@pytest.fixture(autouse=True)
def world(lab, sides, script):
    app, warehouse = sides
    empty(app, warehouse)
    world = World(lab, app, warehouse, script)
    yield world
    for process in world.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def script():
    return load_script()


def load_script():
    """The program as a module: for calling main(), and for its tables."""
    specification = importlib.util.spec_from_file_location("sync_athletes_from_app", str(SCRIPT))
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look there
    specification.loader.exec_module(module)
    return module


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
            host="127.0.0.1", port=self.server.port, dbname=self.server.name, user="postgres",
            password=SUPERUSER_PASSWORD, options="-c lock_timeout=20s -c statement_timeout=60s")
        self.connection.autocommit = True

    def sql(self, statement, *values):
        """Run a statement; return its rows, if it has any."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else None

    def value(self, statement, *values):
        return self.sql(statement, *values)[0][0]

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
        try:
            for statement in statements:
                holder.sql(statement)
            yield holder
        finally:
            holder.connection.close()

    def locked(self, table=None, mode="ACCESS EXCLUSIVE"):
        """The side's table, or another one, is locked meanwhile: a run that comes to it waits there."""
        return self.holding("LOCK TABLE %s IN %s MODE" % (table or TABLE[self.server.name], mode))

    def check_that_it_refuses(self, role, *statements):
        with self.holding("SET SESSION AUTHORIZATION " + role) as session:
            for statement in statements:
                session.sql("SAVEPOINT before")
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    session.sql(statement)
                session.sql("ROLLBACK TO before")

    def wait_until_a_run_waits_for_a_lock(self):
        wait_until(lambda: self.sql("SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)"
                                    " WHERE NOT granted AND usename IN ('app_readonly', 'warehouse_writer')"))

    def snapshot(self, leaving_out=()):
        """Everything a run could change: relations and grants, and each table's rows with their versions."""
        relations = self.sql("""
            SELECT c.oid::regclass::text, c.relkind::text, c.relacl::text, c.relowner::regrole::text
              FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
             ORDER BY 1""")
        rows = {name: self.rows_hash(name) for name, kind, _, _ in relations
                if kind in "rp" and name not in leaving_out}
        return relations, rows

    def rows_hash(self, table):
        return self.value("SELECT md5(string_agg(concat(ctid, xmin, xmax, t::text), ',' ORDER BY ctid))"
                          " FROM %s t" % table)


class Run:
    """What a run left behind: its exit code and what it printed."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def result(self):
        """The result line, as a dictionary."""
        line = self.out.splitlines()[-1]
        if line.startswith("{"):
            return json.loads(line)
        return dict(word.split("=", 1) for word in line.split())

    @property
    def error(self):
        """The one line in which a failure ends."""
        return self.err.rstrip("\n").splitlines()[-1]

    def counts(self):
        """Such as "3: 2 new, 1 repeated": rows in the app, then every other count that is not 0."""
        words = [("inserted", "new"), ("updated", "renamed"), ("unchanged", "unchanged"),
                 ("missing", "missing"), ("rejected", "rejected"), ("repeated", "repeated")]
        result = self.result
        return "%s: %s" % (result["source"], ", ".join(
            "%s %s" % (result[key], word) for key, word in words if result[key] != 0) or "nothing")

    def __repr__(self):
        return "exit code %s\nstdout: %s\nstderr: %s" % (self.code, self.out, self.err)


class World:
    def __init__(self, lab, app, warehouse, script):
        self.lab, self.app, self.warehouse, self.script = lab, app, warehouse, script
        self.started = []

    # Rows before

    def app_has(self, *rows):
        with self.app.connection.cursor() as cursor:
            psycopg2.extras.execute_values(
                cursor, 'INSERT INTO public."User" (uuid, name, email) VALUES %s',
                [(uuid, name, "%d@example.org" % number) for number, (uuid, name) in enumerate(rows)])

    def warehouse_has(self, *rows, synced_at=LONG_AGO):
        with self.warehouse.connection.cursor() as cursor:
            psycopg2.extras.execute_values(
                cursor, "INSERT INTO analytics.athlete_dim VALUES %s",
                [(uuid, name, synced_at) for uuid, name in rows])

    # What is run

    def sync(self, *flags, **settings):
        """Run main() in this process with --json. For what a row becomes; a tenth of a subprocess's time."""
        with self.held_to_the_rules(flags, settings) as runs:
            runs.append(run_in_process(self.script, arguments(("--json",) + flags),
                                       self.environment(settings)))
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
        chosen = self.lab.environment(**settings)
        return {name: value for name, value in chosen.items() if value is not None}

    # Rows after

    def dimension(self):
        """What the dimension holds, as {uuid: name}."""
        return dict(self.warehouse.sql("SELECT athlete_uuid::text, full_name FROM analytics.athlete_dim"))

    def rows(self):
        """Every column of every row of the dimension."""
        return self.warehouse.sql("SELECT * FROM analytics.athlete_dim ORDER BY athlete_uuid")

    def stamped(self):
        """The athletes whose source_synced_at is no longer LONG_AGO."""
        return {uuid for uuid, in self.warehouse.sql(
            "SELECT athlete_uuid::text FROM analytics.athlete_dim WHERE source_synced_at <> %s", LONG_AGO)}

    def history(self):
        """The rows of the run history as dictionaries, oldest first."""
        with self.warehouse.connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            cursor.execute("SELECT * FROM analytics.athlete_sync_run ORDER BY run_id")
            return [dict(row) for row in cursor.fetchall()]

    def ends(self):
        """How each run of the history ended, oldest first, such as "failed 2"."""
        return ["%(result)s %(exit_code)d" % row for row in self.history()]

    # True of every run

    @contextlib.contextmanager
    def held_to_the_rules(self, flags, settings):
        try:
            table = self.warehouse.value("SELECT to_regclass(%s)::text",
                                         settings.get("WH_TABLE") or "analytics.athlete_dim")
        except psycopg2.errors.InvalidName:  # before PostgreSQL 16; since then it is NULL
            table = None
        app_before = self.app.snapshot()
        warehouse_before = self.warehouse.snapshot(leaving_out=(table, HISTORY, RENAMES))
        runs = []
        yield runs
        assert self.app.snapshot() == app_before, "the app was changed"
        assert self.warehouse.snapshot(leaving_out=(table, HISTORY, RENAMES)) == warehouse_before, \
            "something else in the warehouse was changed"
        for run in runs:
            self.check_numbers(run, flags)
            self.check_secrets(run, flags, settings)

    def check_numbers(self, run, flags):
        if not run.out.strip().startswith("{"):
            return
        known = run.result
        assert (list(known), known["exit_code"]) == (RESULT_KEYS + ["changes"] * ("--diff" in flags), run.code)
        if known["result"] != "ok":
            return
        assert known["source"] == sum(known[key] for key in (
            "inserted", "updated", "unchanged", "rejected", "repeated")), run

    def check_secrets(self, run, flags, settings):
        """Names of athletes are printed where --diff asks for them, on stdout, and nowhere else."""
        secrets = {READER_PASSWORD, WRITER_PASSWORD, *(settings.get(p + "_PASSWORD") for p in ("APP", "WH"))}
        names = {name for side, query in ((self.app, 'SELECT name FROM public."User"'),
                                          (self.warehouse, "SELECT full_name FROM analytics.athlete_dim"))
                 for name, in side.sql(query) if len(name or "") > 5}
        nameless = run.err + self.history_text() + ("" if "--diff" in flags else run.out)
        for secret in secrets - {None, ""}:
            assert secret not in run.out + run.err, "printed: %r" % secret
        for name in names:
            assert name not in nameless, "printed or kept: %r" % name

    def history_text(self):
        if not self.warehouse.value("SELECT to_regclass(%s)", HISTORY):
            return ""
        return self.warehouse.value("SELECT coalesce(string_agg(run::text, ' '), '') FROM %s AS run" % HISTORY)

    def renames(self):
        """What was overwritten, oldest first."""
        return self.warehouse.sql("SELECT run_id, athlete_uuid::text, old_name, new_name"
                                  "  FROM analytics.athlete_rename ORDER BY run_id, athlete_uuid")


@contextlib.contextmanager
def empty_world(lab, script):
    """The world of tests, on a lab of its own."""
    app, warehouse = Side(lab.app), Side(lab.warehouse)
    empty(app, warehouse)
    try:
        yield World(lab, app, warehouse, script)
    finally:
        app.connection.close()
        warehouse.connection.close()


def arguments(flags, env_file=NO_SETTINGS.name):
    """The command line. A developer's own .env may name real databases, which no test may ever reach."""
    return (["--env-file", env_file] if env_file and "--env-file" not in flags else []) + list(flags)


def in_env_file(text):
    """A value as .env.example says that it is written."""
    return "'%s'" % text.replace("\\", "\\\\").replace("'", "\\'")


def project_in(folder):
    """A copy of the project as far as a run needs it: the script, two folders down."""
    script = folder / SCRIPT.relative_to(PROJECT)
    script.parent.mkdir(parents=True)
    shutil.copy(str(SCRIPT), str(script))
    return folder


def run_in(project, world, *flags, **settings):
    """Run the project's copy, which finds its own .env."""
    command = [sys.executable, str(project / SCRIPT.relative_to(PROJECT))]
    return finish(world.start(*flags, command=command, env_file=None, **settings))


def finish(process, timeout=RUN_MAY_TAKE):
    """Wait for a run that was started, and return what it left behind."""
    out, err = process.communicate(timeout=timeout)
    return Run(process.returncode, out.decode("utf-8"), err.decode("utf-8"))


def run_in_process(script, arguments, environment):
    """Call main() and put everything back that it sets for a whole process."""
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level, outer = root.handlers[:], root.level, dict(os.environ)
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        root.handlers[:] = []  # pytest's own, with which the script's would not be made
        os.environ.clear()
        os.environ.update(environment)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = script.main(arguments)
    finally:
        os.environ.clear()
        os.environ.update(outer)
        root.handlers[:] = handlers
        root.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)
    return Run(code, out.getvalue(), err.getvalue())
