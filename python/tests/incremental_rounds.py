#!/usr/bin/env python3
"""Random rounds of writing to the app, each followed by an incremental run that must miss nothing.

  python python/tests/incremental_rounds.py --rounds 500             a few minutes
  python python/tests/incremental_rounds.py --rounds 50 --seed 7

After each run the dimension is compared with the app's own table, and a full --dry-run must find
nothing to insert or update. Several writers keep their transactions open over several runs and commit
late, some without waiting for the disk; now and then one of the app's backends crashes, or the app is read
from a standby, switched to a promoted one, or restored from a copy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
from pathlib import Path

import psycopg2

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from conftest import Side, empty_world, load_script
from lab import servers
from standby import standby_of

OPTIONS = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_prepared_transactions": "20"}
ATHLETES, MOST_WRITERS, MOST_PREPARED = 200, 6, 5
# What befalls whole servers, before which of 120 rounds. After each but save, a run must be full.
CYCLE = dict.fromkeys((5, 10, 15, 55, 70, 80, 90, 110), "crash")
CYCLE.update({20: "read_from_standby", 50: "stop_standby", 60: "promote_standby", 95: "save", 100: "restore"})
UNIQUE = 'CREATE UNIQUE INDEX IF NOT EXISTS one_athlete ON public."User" (uuid)'

# What a transaction does, and to how many athletes at most; those that another one holds are left to it.
SIMPLE = [
    (5, "UPDATE {t} SET name = {name} WHERE uuid = ANY ({some})"),
    (5, "UPDATE {t} SET email = {name} WHERE uuid = ANY ({some})"),
    (0, "INSERT INTO {t} (uuid, name) SELECT md5({name} || n)::uuid::text, {name} FROM generate_series(1, 4) AS n"),
    (3, "DELETE FROM {t} WHERE uuid = ANY ({some})"),
    (2, "DELETE FROM {t} WHERE uuid = ANY ({some}); INSERT INTO {t} (uuid, name) SELECT unnest({some}), {name}"),
]
ACTIONS = SIMPLE * 2 + [
    (1, "UPDATE {t} SET name = NULL WHERE uuid = ANY ({some})"),
    (1, "UPDATE {t} SET uuid = md5({name})::uuid::text WHERE uuid = ANY ({some})"),
    (2, "DO $$ BEGIN BEGIN UPDATE {t} SET name = 'taken back' WHERE uuid = ANY ({some}); RAISE division_by_zero;"
        " EXCEPTION WHEN division_by_zero THEN UPDATE {t} SET name = {name} WHERE uuid = ANY ({some}); END; END $$"),
    # More subtransactions than a backend keeps at hand, which is 64.
    (80, "DO $$ DECLARE one text; BEGIN FOREACH one IN ARRAY {some} LOOP BEGIN UPDATE {t} SET name = {name} || one"
         " WHERE uuid = one; EXCEPTION WHEN division_by_zero THEN RAISE; END; END LOOP; END $$"),
]


class Writer:
    """A session of the app, in a transaction that may stay open over several runs."""

    def __init__(self, server, chance):
        self.side, self.chance = Side(server), chance
        self.side.sql("BEGIN")  # said in so many words, as PREPARE TRANSACTION is
        if chance.random() < 0.5:
            self.side.sql("SELECT txid_current()")  # an old number, though it writes later
        if chance.random() < 0.3:
            self.side.sql("SET LOCAL synchronous_commit = off")  # a crash may lose it

    def act(self):
        if self.chance.random() < 0.9:
            return self.change(ACTIONS)
        self.side.sql("SAVEPOINT outer_one")
        self.change(SIMPLE)
        self.side.sql("SAVEPOINT inner_one")
        self.change(SIMPLE)
        self.side.sql(self.chance.choice(("RELEASE inner_one", "ROLLBACK TO inner_one", "SELECT 1")))
        self.side.sql(self.chance.choice(("ROLLBACK TO outer_one", "SELECT 1", "SELECT 1")))

    def change(self, actions):
        most, statement = self.chance.choice(actions)
        some = self.side.sql('SELECT uuid FROM public."User" ORDER BY md5(uuid || %s) LIMIT %s FOR UPDATE SKIP LOCKED',
                             str(self.chance.random()), self.chance.randint(min(1, most), most))
        self.side.sql(statement.format(t='public."User"', name="'Name %d'" % self.chance.getrandbits(40),
                                       some="'{%s}'::text[]" % ",".join(athlete for athlete, in some)))


# What needs the table for itself, or would wait for whoever writes to it.
UPKEEP = [
    'VACUUM FREEZE public."User"',
    'VACUUM (FULL, FREEZE) public."User"',
    'CLUSTER public."User" USING one_athlete',
    'BEGIN; CREATE TEMP TABLE kept ON COMMIT DROP AS TABLE public."User"; TRUNCATE public."User";'
    ' INSERT INTO public."User" SELECT * FROM kept; COMMIT',
    'ALTER TABLE public."User" ALTER name TYPE varchar(100)',
    "ALTER TABLE public.\"User\" ALTER name TYPE text USING name || '.'",
    'ALTER TABLE public."User" ALTER uuid TYPE uuid USING uuid::uuid; ALTER TABLE public."User" ALTER uuid TYPE text',
]


def answers(ask, *values):
    try:
        ask(*values)
        return True
    except psycopg2.Error:
        return False


class Rounds:
    def __init__(self, world, chance, cycle, standbys):
        self.world, self.chance, self.cycle, self.standbys = world, chance, cycle, standbys
        self.writers, self.prepared, self.expected, self.done = [], [], {}, []
        self.standby, self.reading_standby = None, False
        self.rounds, self.differences, self.modes = 0, 0, {"incremental": 0, "full": 0}
        self.sql(UNIQUE)
        world.app_has(*(("00000000-0000-4000-8000-%012d" % n, "Athlete %d" % n) for n in range(ATHLETES)))
        assert self.run()["inserted"] == ATHLETES
        self.expected.update(self.in_app())

    def sql(self, statement, *values):
        return self.world.app.sql(statement, *values)

    def round(self):
        self.rounds, self.done = self.rounds + 1, []
        event = self.cycle.get(self.rounds % 120, "run_something_else")
        getattr(self, event)()
        self.done.append(event)
        for _ in range(self.chance.randint(0, 5)):
            self.write_something()
        if self.chance.random() < 0.1:
            self.upkeep()
        self.modes[self.run("--incremental")["mode"]] += 1
        self.compare()

    def write_something(self):
        dice = self.chance.random()
        if len(self.writers) < MOST_WRITERS and (dice < 0.35 or not self.writers):
            self.writers.append(Writer(self.world.app.server, self.chance))
        writer = self.chance.choice(self.writers)
        if dice < 0.75:
            writer.act()
        elif dice < 0.9:
            self.end_writer(writer)
        elif len(self.prepared) < MOST_PREPARED:
            self.prepared.append("prepared_%d" % self.chance.getrandbits(60))
            self.end_writer(writer, "PREPARE TRANSACTION '%s'" % self.prepared[-1])
        if self.prepared and self.chance.random() < 0.15:
            self.end_prepared(self.chance.choice(self.prepared))

    def end_writer(self, writer, how=None):
        how = how or self.chance.choice(("COMMIT", "COMMIT", "COMMIT", "ROLLBACK"))
        self.writers.remove(writer)
        writer.side.sql(how)
        writer.side.connection.close()
        self.done.append(how)

    def end_prepared(self, name):
        self.prepared.remove(name)
        self.done.append("%s PREPARED '%s'" % (self.chance.choice(("COMMIT", "COMMIT", "ROLLBACK")), name))
        self.sql(self.done[-1])

    def end_all(self):
        for writer in list(self.writers):
            self.end_writer(writer)
        for name in list(self.prepared):
            self.end_prepared(name)

    def upkeep(self):
        statement = self.chance.choice(UPKEEP)
        if not statement.startswith("VACUUM FREEZE"):
            self.end_all()
            for gone in sorted(set(self.expected) - set(self.in_app()))[:3]:
                self.sql('INSERT INTO public."User" (uuid, name) VALUES (%s, \'Back\') ON CONFLICT DO NOTHING', gone)
        self.done.append(statement)
        self.sql(statement)

    def run_something_else(self):
        """Only a success counts: what was dry, or failed, must not move the place to take up from."""
        dice = self.chance.random()
        if dice < 0.05:
            self.run("--incremental", "--dry-run")
        elif dice < 0.1:
            self.run("--incremental", code=3, APP_NAME_COLUMN="nowhere")
        elif dice < 0.12:
            self.run()
            self.expected.update(self.in_app())

    def run(self, *flags, code=0, **settings):
        if self.reading_standby:
            self.catch_up()
            settings["APP_PORT"] = str(self.standby.port)
        run = self.world.sync(*flags, SYNC_MAX_CHANGED_PERCENT="100",
                              SYNC_REFRESH=self.chance.choice(("always", "never", "12h")), **settings)
        assert run.code == code, run
        self.done.append("run %s: %s" % (" ".join(flags), run.out.strip()))
        self.done += [line for line in run.err.splitlines() if "full, not incremental: " in line]
        return run.result

    def in_app(self):
        return dict(self.sql('SELECT uuid::text, name FROM public."User" WHERE name IS NOT NULL'))

    def compare(self):
        """Who is gone from the app, or has lost the name there, stays as last seen."""
        self.expected.update(self.in_app())
        found, full = self.world.dimension(), self.run("--dry-run")
        if found != self.expected or (full["inserted"], full["updated"]) != (0, 0):
            self.differences += 1
            wrong = sorted(set(found.items()) ^ set(self.expected.items()))
            print("round %d differs: %s; full: %s; %s" % (self.rounds, wrong[:6], full, self.done), file=sys.stderr)
            self.run()  # so that the next round counts only what it missed itself
        assert len(self.expected) > ATHLETES // 2

    # What befalls whole servers

    def read_from_standby(self):
        self.end_all()  # no standby opens while a transaction has more than 64 savepoints
        self.standby = self.standbys.enter_context(standby_of(self.world.app.server, "app%d" % self.rounds))
        self.reading_standby = True

    def catch_up(self):
        self.sql("COMMENT ON SCHEMA public IS 'caught up'")  # its commit flushes what others left unflushed
        written = self.world.app.value("SELECT pg_current_wal_flush_lsn()::text")
        standby = Side(self.standby)
        servers.wait_until(lambda: standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written))
        standby.connection.close()

    def stop_standby(self):
        """From here on the standby lacks what the app commits."""
        self.end_all()
        self.sql("CHECKPOINT")
        self.catch_up()
        self.standby.psql("-qc", "CHECKPOINT")  # it will open from here, where nothing is under way
        self.reading_standby = False
        self.standby.stop("fast")

    def promote_standby(self):
        self.world.lab.app.stop()
        self.standby.start()
        self.standby.control("pg_ctl", "-D", self.standby.data, "-w", "promote")
        self.world.lab.app = self.world.app.server = self.standby
        self.begin_again()

    def save(self):
        self.as_a_whole("CREATE DATABASE saved TEMPLATE app")

    def restore(self):
        self.as_a_whole("DROP DATABASE app", "ALTER DATABASE saved RENAME TO app")

    def as_a_whole(self, *statements):
        """Treat the app's database so while nobody is connected to it."""
        self.end_all()
        self.world.app.connection.close()
        for statement in statements:
            self.world.app.server.psql("-qc", statement, database="postgres")
        self.begin_again()

    def crash(self):
        """What was not flushed is lost, numbers and rows; an app that lives soon gives as many out again."""
        victim = Side(self.world.app.server)
        os.kill(victim.value("SELECT pg_backend_pid()"), signal.SIGKILL)
        # Until then it still lets people in, and throws them out again.
        servers.wait_until(lambda: not answers(self.sql, "SELECT 1"), "the server to notice")
        servers.wait_until(lambda: answers(self.world.app.reconnect), "the server to come back")
        self.begin_again()
        for _ in range(50):
            self.sql("SELECT txid_current()")

    def begin_again(self):
        """Transactions that were open are over; those that were prepared are to be ended."""
        for writer in self.writers:
            writer.side.connection.close()
        self.writers = []
        self.world.app.connection.close()
        self.world.app.reconnect()
        self.prepared = [name for name, in self.sql("SELECT gid FROM pg_prepared_xacts ORDER BY gid")]

    def summary(self):
        return "rounds=%d differences=%d incremental=%d full=%d" % (self.rounds, self.differences, *self.modes.values())


def play(count, seed, cycle=CYCLE):
    with servers.two_servers(**OPTIONS) as lab, contextlib.ExitStack() as standbys:
        lab.set_up()
        with empty_world(lab, load_script()) as world:
            rounds = Rounds(world, random.Random(seed), cycle, standbys)
            for _ in range(count):
                rounds.round()
            return rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=6)
    options = parser.parse_args()
    played = play(options.rounds, options.seed)
    print(played.summary())
    return 1 if played.differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
