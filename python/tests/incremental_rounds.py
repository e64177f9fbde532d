#!/usr/bin/env python3
"""Random rounds of writing to the app, each followed by an incremental run that must miss nothing.

  python python/tests/incremental_rounds.py --rounds 500             a few minutes
  python python/tests/incremental_rounds.py --rounds 50 --seed 7 -v

After each run the dimension is compared with the app's own table, and a full --dry-run must find
nothing to insert or update. Several writers keep their transactions open over several runs and commit
late, some without waiting for the disk; now and then one of the app's backends crashes, or the app is read
from a standby, switched to a promoted one, or restored from a dump.
Exits with 1 if there was a difference.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import psycopg2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lab import servers
from standby import standby_of

OPTIONS = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_prepared_transactions": "20"}
ATHLETES, MOST_WRITERS, MOST_PREPARED = 200, 6, 5
ROUNDS_OF_A_CYCLE, STANDBY_FROM, STANDBY_STOPS, PROMOTED, RESTORED = 120, 20, 50, 60, 100
CRASHES = (5, 10, 15, 55, 70, 80, 90, 110)


def load_script() -> Any:
    specification = importlib.util.spec_from_file_location("sync_athletes_from_app", str(servers.SCRIPT))
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look there
    specification.loader.exec_module(module)
    return module


def connect(server: servers.Server) -> Any:
    connection = psycopg2.connect(
        host="127.0.0.1", port=server.port, dbname=server.name, user="postgres",
        password=servers.SUPERUSER_PASSWORD, options="-c lock_timeout=20s -c statement_timeout=60s")
    connection.autocommit = True  # BEGIN and PREPARE TRANSACTION are said in so many words
    return connection


def sql(connection: Any, statement: str, *values: Any) -> List[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


# What a transaction does. Rows that another one holds are left to it.


class Writer:
    """A session of the app, in a transaction that may stay open over several runs."""

    def __init__(self, server: servers.Server, chance: random.Random, gone: List[str]):
        self.connection, self.chance, self.gone = connect(server), chance, gone
        self.deleted: List[str] = []
        self.run("BEGIN")
        if chance.random() < 0.5:
            self.run("SELECT txid_current()")  # an old number, though it writes later
        if chance.random() < 0.3:
            self.run("SET LOCAL synchronous_commit = off")  # a crash may lose it

    def run(self, statement: str, *values: Any) -> List[Any]:
        return sql(self.connection, statement, *values)

    def pick(self, most: int) -> List[str]:
        return [found for found, in self.run(
            'SELECT uuid FROM public."User" ORDER BY md5(uuid || %s) LIMIT %s FOR UPDATE SKIP LOCKED',
            str(self.chance.random()), self.chance.randint(1, most))]

    def name(self) -> str:
        return "Name %d" % self.chance.getrandbits(40)

    def new_uuid(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128)))

    def rename(self) -> None:
        self.run('UPDATE public."User" SET name = %s WHERE uuid = ANY (%s)', self.name(), self.pick(5))

    def rename_and_stamp(self) -> None:
        self.run('UPDATE public."User" SET name = %s, "updatedAt" = now() WHERE uuid = ANY (%s)',
                 self.name(), self.pick(5))

    def touch(self) -> None:
        self.run('UPDATE public."User" SET email = %s WHERE uuid = ANY (%s)', self.name(), self.pick(5))

    def forget_name(self) -> None:
        self.run('UPDATE public."User" SET name = NULL WHERE uuid = ANY (%s)', self.pick(1))

    def change_uuid(self) -> None:
        before = self.pick(1)
        self.run('UPDATE public."User" SET uuid = %s WHERE uuid = ANY (%s)', self.new_uuid(), before)
        self.deleted += before

    def insert(self) -> None:
        for _ in range(self.chance.randint(1, 5)):
            self.run('INSERT INTO public."User" (uuid, name) VALUES (%s, %s)', self.new_uuid(), self.name())

    def insert_again(self) -> None:
        if self.gone:
            again = self.gone.pop(self.chance.randrange(len(self.gone)))
            self.run('INSERT INTO public."User" (uuid, name) VALUES (%s, %s)', again, self.name())

    def delete(self) -> None:
        found = self.pick(3)
        self.run('DELETE FROM public."User" WHERE uuid = ANY (%s)', found)
        self.deleted += found

    def delete_and_insert(self) -> None:
        for found in self.pick(2):
            self.run('DELETE FROM public."User" WHERE uuid = %s', found)
            self.run('INSERT INTO public."User" (uuid, name) VALUES (%s, %s)', found, self.name())

    def savepoints(self) -> None:
        outer = list(self.deleted)
        self.run("SAVEPOINT outer_one")
        self.chance.choice(SIMPLE)(self)
        inner = list(self.deleted)
        self.run("SAVEPOINT inner_one")
        self.chance.choice(SIMPLE)(self)
        end = self.chance.choice(("RELEASE inner_one", "ROLLBACK TO inner_one", "SELECT 1"))
        self.run(end)
        if end == "ROLLBACK TO inner_one":
            self.deleted = inner
        if self.chance.random() < 0.3:
            self.run("ROLLBACK TO outer_one")
            self.deleted = outer

    def many_savepoints(self) -> None:
        """More than a backend keeps at hand, which is 64."""
        for found in self.pick(80):
            self.run("SAVEPOINT one")
            self.run('UPDATE public."User" SET name = %s WHERE uuid = %s', self.name(), found)
            self.run("RELEASE one")

    def exception_block(self) -> None:
        found = self.pick(2)
        self.run("""
            DO $$
            BEGIN
                BEGIN
                    UPDATE public."User" SET name = '%(taken_back)s' WHERE uuid = ANY ('{%(found)s}');
                    RAISE division_by_zero;
                EXCEPTION WHEN division_by_zero THEN
                    UPDATE public."User" SET name = '%(stays)s' WHERE uuid = ANY ('{%(found)s}');
                END;
                BEGIN
                    UPDATE public."User" SET email = 'x' WHERE uuid = ANY ('{%(found)s}');
                EXCEPTION WHEN others THEN RAISE;
                END;
            END
            $$""" % {"found": ",".join(found), "taken_back": self.name(), "stays": self.name()})

    def act(self) -> None:
        self.chance.choice(ACTIONS)(self)

    def end(self, how: str) -> None:
        self.run(how)
        self.connection.close()
        if how == "COMMIT":
            self.gone += self.deleted


SIMPLE = [Writer.rename, Writer.rename_and_stamp, Writer.touch, Writer.insert, Writer.delete,
          Writer.delete_and_insert]
ACTIONS: List[Callable[[Writer], None]] = SIMPLE * 2 + [
    Writer.insert_again, Writer.forget_name, Writer.change_uuid, Writer.savepoints, Writer.many_savepoints,
    Writer.exception_block]

# What needs the table for itself, or would wait for whoever writes to it.
UPKEEP = [
    'VACUUM FREEZE public."User"',
    'VACUUM FULL public."User"',
    'VACUUM (FULL, FREEZE) public."User"',
    'CLUSTER public."User" USING one_athlete',
    'REINDEX TABLE public."User"',
    'BEGIN; CREATE TEMP TABLE kept ON COMMIT DROP AS TABLE public."User"; TRUNCATE public."User";'
    ' INSERT INTO public."User" SELECT * FROM kept; COMMIT',
    'BEGIN; CREATE TEMP TABLE kept ON COMMIT DROP AS TABLE public."User"; DELETE FROM public."User";'
    ' INSERT INTO public."User" SELECT * FROM kept; COMMIT',
    'ALTER TABLE public."User" ALTER name TYPE varchar(100)',
    "ALTER TABLE public.\"User\" ALTER name TYPE text USING name || '.'",
    'ALTER TABLE public."User" ALTER uuid TYPE uuid USING uuid::uuid;'
    ' ALTER TABLE public."User" ALTER uuid TYPE text',
]


def dump_and_restore(server: servers.Server) -> None:
    """Make the app's database anew from its own dump, while nobody is connected to it."""
    dump = subprocess.run(
        [servers.program_of(server.bindir, "pg_dump"), "-h", "127.0.0.1", "-p", str(server.port), "-U",
         "postgres", "app"], env=server.psql_environment(), stdout=subprocess.PIPE, check=True,
        encoding="utf-8").stdout
    for statement in ("DROP DATABASE app", "CREATE DATABASE app"):
        server.psql("-qc", statement, database="postgres")
    # A newer pg_dump sets what a server before PostgreSQL 17 does not know; 0 is its default.
    server.psql("-q", stdin=dump.replace("SET transaction_timeout = 0;\n", ""))


class Rounds:
    def __init__(self, lab: servers.Lab, chance: random.Random, script: Any, verbose: bool = False):
        self.lab, self.chance, self.script, self.verbose = lab, chance, script, verbose
        self.app, self.warehouse = connect(lab.app), connect(lab.warehouse)
        self.writers: List[Writer] = []
        self.prepared: Dict[str, List[str]] = {}
        self.gone: List[str] = []
        self.expected: Dict[str, str] = {}
        self.standby: Optional[servers.Server] = None
        self.reading_standby = False
        self.standbys = contextlib.ExitStack()
        self.rounds = self.differences = self.prepared_ever = 0
        self.modes = {"incremental": 0, "full": 0}
        self.done: List[str] = []

    def set_up(self) -> None:
        sql(self.app, 'ALTER TABLE public."User" ADD CONSTRAINT one_athlete UNIQUE (uuid)')
        sql(self.app, 'INSERT INTO public."User" (uuid, name)'
                      " SELECT md5(n::text)::uuid::text, 'Athlete ' || n FROM generate_series(1, %s) AS n",
            ATHLETES)
        first = self.run()
        assert first["mode"] == "full" and first["inserted"] == ATHLETES, first
        self.expected.update(self.in_app())

    # One round

    def round(self) -> None:
        self.rounds += 1
        self.done = []
        self.hold_event(self.rounds % ROUNDS_OF_A_CYCLE)
        for _ in range(self.chance.randint(0, 5)):
            self.write_something()
        if self.chance.random() < 0.1:
            self.upkeep()
        self.run_something_else()
        self.modes[self.run("--incremental")["mode"]] += 1
        self.compare()

    def write_something(self) -> None:
        dice = self.chance.random()
        if len(self.writers) < MOST_WRITERS and (dice < 0.35 or not self.writers):
            self.writers.append(Writer(self.lab.app, self.chance, self.gone))
        writer = self.chance.choice(self.writers)
        if dice < 0.75:
            writer.act()
        elif dice < 0.9:
            self.end_writer(writer)
        elif len(self.prepared) < MOST_PREPARED:
            self.prepare(writer)
        if self.prepared and self.chance.random() < 0.15:
            self.end_prepared(self.chance.choice(sorted(self.prepared)))

    def end_writer(self, writer: Writer) -> None:
        self.writers.remove(writer)
        how = self.chance.choice(("COMMIT", "COMMIT", "COMMIT", "ROLLBACK"))
        writer.end(how)
        self.done.append(how)

    def prepare(self, writer: Writer) -> None:
        self.writers.remove(writer)
        self.prepared_ever += 1
        name = "prepared_%05d" % self.prepared_ever
        writer.end("PREPARE TRANSACTION '%s'" % name)
        self.prepared[name] = writer.deleted
        self.done.append("PREPARE")

    def end_prepared(self, name: str) -> None:
        deleted = self.prepared.pop(name)
        how = self.chance.choice(("COMMIT", "COMMIT", "ROLLBACK"))
        sql(self.app, "%s PREPARED '%s'" % (how, name))
        self.gone += deleted if how == "COMMIT" else []
        self.done.append(how + " PREPARED")

    def end_all(self) -> None:
        for writer in list(self.writers):
            self.end_writer(writer)
        for name in sorted(self.prepared):
            self.end_prepared(name)

    def upkeep(self) -> None:
        statement = self.chance.choice(UPKEEP)
        if not statement.startswith("VACUUM FREEZE"):
            self.end_all()
        self.done.append(statement)
        for part in [statement] if statement.startswith("BEGIN") else statement.split("; "):
            sql(self.app, part)

    def run_something_else(self) -> None:
        """Only a success counts: what was dry, or failed, must not move the place to take up from."""
        dice = self.chance.random()
        if dice < 0.05:
            self.run("--incremental", "--dry-run")
        elif dice < 0.1:
            failed = self.run("--incremental", code=3, APP_NAME_COLUMN="nowhere")
            assert failed["result"] == "failed", failed
        elif dice < 0.12:
            self.run()
            self.expected.update(self.in_app())

    # The runs, in this process: 0.5 s faster each

    def run(self, *flags: str, code: int = 0, **settings: str) -> Dict[str, Any]:
        if self.reading_standby:
            self.catch_up()
            settings["APP_PORT"] = str(self.standby.port)
        environment = self.lab.environment(
            SYNC_MAX_UPDATED_PERCENT="100", SYNC_REFRESH=self.chance.choice(("always", "never", "12h")),
            **settings)
        out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
        logging.getLogger().handlers[:] = []
        try:
            os.environ.clear()
            os.environ.update(environment)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                ended = self.script.main(["--json", "--env-file", os.devnull] + list(flags))
        finally:
            os.environ.clear()
            os.environ.update(before)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        result = json.loads(out.getvalue().splitlines()[-1])
        assert ended == code, err.getvalue()
        self.done.append("run %s %s: %s source=%s" % (" ".join(flags), result["result"], result["mode"],
                                                      result["source"]))
        reasons = [line.split("incremental: ")[1] for line in err.getvalue().splitlines()
                   if "full, not incremental: " in line]
        self.done += reasons
        return result

    def in_app(self) -> Dict[str, str]:
        return dict(sql(self.app, 'SELECT uuid, name FROM public."User" WHERE name IS NOT NULL'))

    def compare(self) -> None:
        """Who is gone from the app, or has lost the name there, stays as last seen."""
        self.expected.update(self.in_app())
        found = dict(sql(self.warehouse, "SELECT athlete_uuid::text, full_name FROM analytics.athlete_dim"))
        full = self.run("--dry-run")
        if self.verbose:
            print(self.rounds, self.done, flush=True)
        if found != self.expected or (full["inserted"], full["updated"]) != (0, 0):
            self.differences += 1
            wrong = sorted(set(found.items()) ^ set(self.expected.items()))
            print("round %d differs: %s; full: %s; %s" % (self.rounds, wrong[:6], full, self.done),
                  file=sys.stderr, flush=True)
            self.run()  # so that the next round counts only what it missed itself
        assert len(self.expected) > ATHLETES // 2

    # What befalls whole servers

    def hold_event(self, place: int) -> None:
        events = {STANDBY_FROM: self.read_from_standby, STANDBY_STOPS: self.stop_standby,
                  PROMOTED: self.promote_standby, RESTORED: self.restore_from_dump}
        events.update(dict.fromkeys(CRASHES, self.kill_a_backend))
        if place in events:
            events[place]()
            self.done.append(events[place].__name__)

    def read_from_standby(self) -> None:
        self.end_all()  # no standby opens while a transaction has more than 64 savepoints
        self.standby = self.standbys.enter_context(standby_of(self.lab.app, "app%d" % self.rounds))
        self.reading_standby = True

    def catch_up(self) -> None:
        sql(self.app, "COMMENT ON SCHEMA public IS 'caught up'")  # its commit flushes what others left unflushed
        written = sql(self.app, "SELECT pg_current_wal_flush_lsn()::text")[0][0]
        with contextlib.closing(connect(self.standby)) as standby:
            servers.wait_until(lambda: sql(standby, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written)[0][0],
                               "the standby to catch up")

    def stop_standby(self) -> None:
        """From here on the standby lacks what the app commits."""
        self.end_all()
        sql(self.app, "CHECKPOINT")
        self.catch_up()
        with contextlib.closing(connect(self.standby)) as standby:
            sql(standby, "CHECKPOINT")  # it will open from here, where nothing is under way
        self.reading_standby = False
        self.standby.stop("fast")

    def promote_standby(self) -> None:
        for writer in self.writers:
            writer.connection.close()
        self.app.close()
        self.lab.app.stop()
        self.standby.start()
        self.standby.control("pg_ctl", "-D", self.standby.data, "-w", "promote")
        self.switch_to(self.standby)
        self.standby = None

    def restore_from_dump(self) -> None:
        self.end_all()
        self.app.close()
        server = self.lab.app
        dump_and_restore(server)
        self.switch_to(server)

    def kill_a_backend(self) -> None:
        """The server starts anew what is left of it: what was not flushed is lost, numbers and rows."""
        victim = connect(self.lab.app)
        os.kill(sql(victim, "SELECT pg_backend_pid()")[0][0], signal.SIGKILL)
        servers.wait_until(self.is_thrown_out, "the server to notice")  # until then it still lets people in
        for connection in [victim] + [writer.connection for writer in self.writers]:
            connection.close()
        servers.wait_until(self.is_back, "the server to come back")
        self.writers, back = [], {uuid for uuid, in sql(self.app, 'SELECT uuid FROM public."User"')}
        self.gone[:] = [uuid for uuid in self.gone if uuid not in back]

    def is_thrown_out(self) -> bool:
        try:
            sql(self.app, "SELECT 1")
        except psycopg2.Error:
            return True
        return False

    def is_back(self) -> bool:
        try:
            self.app = connect(self.lab.app)
        except psycopg2.OperationalError:
            return False
        return True

    def switch_to(self, server: servers.Server) -> None:
        """Transactions that were open are over; those that were prepared here are to be ended."""
        self.lab.app = server
        self.app = connect(server)
        self.writers = []
        self.prepared = {name: [] for name, in sql(self.app, "SELECT gid FROM pg_prepared_xacts")}
        self.gone[:] = []

    def close(self) -> None:
        for connection in [writer.connection for writer in self.writers] + [self.app, self.warehouse]:
            connection.close()
        self.standbys.close()

    def summary(self) -> str:
        return "rounds=%d differences=%d incremental=%d full=%d" % (
            self.rounds, self.differences, self.modes["incremental"], self.modes["full"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("-v", "--verbose", action="store_true", help="say what each round did")
    options = parser.parse_args()
    with servers.two_servers(**OPTIONS) as lab:
        lab.set_up()
        rounds = Rounds(lab, random.Random(options.seed), load_script(), options.verbose)
        original = lab.app
        try:
            rounds.set_up()
            for _ in range(options.rounds):
                rounds.round()
        finally:
            rounds.close()
            lab.app = original
    print(rounds.summary())
    return 1 if rounds.differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
