"""What a run sees is one committed state of the app, no older than what an earlier run saw; whatever the
app does meanwhile, and whatever stands between the run and its table."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading

import pytest
from conftest import ANN, BOB, CAT, DAN, Side, arguments, finish, run_in_process
from proxy import Proxy

OLD = [(ANN, "Ann Archer"), (BOB, "Bob Bowman")]
NEW = {ANN: "Ann Anders", BOB: "Bob Bowman", CAT: "Cat Cooper"}
VALUES = ", ".join("('%s', '%s')" % row for row in NEW.items())


@pytest.mark.parametrize("flags", [(), ("--incremental",)], ids=["full", "incremental"])
def test_a_run_that_waits_for_the_warehouse_does_not_wait_with_the_app_in_its_hands(world, flags):
    """It carries what the app holds when the wait is over, and holds up nobody there meanwhile."""
    world.app_has(*OLD)
    world.sync()
    with world.warehouse.locked():
        process = world.start("--json", *flags)
        world.warehouse.wait_until_a_run_waits_for_a_lock()
        world.app.sql('ALTER TABLE public."User" ALTER name TYPE varchar(100); UPDATE public."User" SET name = %s'
                      " WHERE uuid = %s; ALTER TABLE public.\"User\" ALTER name TYPE text", "Ann Anders", ANN)
    run = finish(process)
    assert (run.code, run.result["updated"], world.dimension()[ANN]) == (0, 1, "Ann Anders"), run


# A reload in one transaction of the app: the whole old table or the whole new one


RELOAD = 'TRUNCATE public."User"; INSERT INTO public."User" (uuid, name) VALUES {0}'
# How the source other.seen comes out of the app's own table, and the reload. Without it, that table is the source.
SOURCES = {
    "table": ("", RELOAD),
    "rewritten by ALTER": (
        "", RELOAD.replace("TRUNCATE", 'ALTER TABLE public."User" ALTER email TYPE varchar(200); DELETE FROM')
        + '; ALTER TABLE public."User" ALTER email TYPE text'),
    "inheritance parent": (
        "CREATE TABLE other.seen (uuid text, name text); CREATE TABLE other.child () INHERITS (other.seen);"
        'INSERT INTO other.child SELECT uuid, name FROM public."User"',
        "TRUNCATE other.child; INSERT INTO other.child VALUES {0}"),
    "view on a view": ('CREATE VIEW other.below AS SELECT uuid, name FROM public."User";'
                       "CREATE VIEW other.seen AS TABLE other.below", RELOAD),
    "materialized view": (
        'CREATE MATERIALIZED VIEW other.seen AS SELECT uuid, name FROM public."User"',
        RELOAD.replace("TRUNCATE", "DELETE FROM") + "; REFRESH MATERIALIZED VIEW other.seen"),
    "one partition": (
        "CREATE TABLE other.seen (uuid text, name text) PARTITION BY LIST (uuid);"
        "CREATE TABLE other.ann PARTITION OF other.seen FOR VALUES IN ('%s');"
        "CREATE TABLE other.rest PARTITION OF other.seen DEFAULT;"
        'INSERT INTO other.seen SELECT uuid, name FROM public."User"' % ANN,
        "TRUNCATE other.ann; DELETE FROM other.rest; INSERT INTO other.seen VALUES {0}"),
}


@pytest.mark.parametrize("make, reload", list(SOURCES.values()), ids=list(SOURCES))
def test_a_reload_is_seen_whole(world, make, reload):
    world.app.needs(make, PARTITION=11)
    world.app_has(*OLD)
    world.warehouse_has(*OLD, (DAN, "Dan Dyer"))
    grant = "; GRANT USAGE ON SCHEMA other TO app_readonly; GRANT SELECT (uuid, name) ON other.seen TO app_readonly"
    with world.app.changed("CREATE SCHEMA other; " + (make and make + grant), "DROP SCHEMA other CASCADE"):
        with world.app.holding(reload.format(VALUES)) as holder:
            process = world.start("--json", APP_TABLE="other.seen" if make else 'public."User"')
            world.app.wait_until_a_run_waits_for_a_lock()
            holder.connection.commit()
            run = finish(process)
    assert (run.code, run.counts()) == (0, "3: 1 new, 1 renamed, 1 unchanged, 1 missing"), run
    assert world.dimension() == dict(NEW, **{DAN: "Dan Dyer"})


@pytest.mark.parametrize("refresh", ["always", "never"])
def test_missing_is_right_while_others_insert_and_delete_without_end(world, refresh):
    world.app_has(*OLD, (DAN, "Dan Dyer"))
    world.warehouse_has(*OLD, (DAN, "Dan Dyer"))
    ended = threading.Event()

    def write():
        with contextlib.closing(Side(world.lab.warehouse).connection) as connection, connection.cursor() as others:
            while not ended.is_set():
                others.execute("DELETE FROM analytics.athlete_dim WHERE athlete_uuid = %s", [DAN])
                others.execute("INSERT INTO analytics.athlete_dim VALUES (%s, 'Dan Dyer', now())", [DAN])
    writer = threading.Thread(target=write)
    writer.start()
    try:
        runs = [world.sync("--dry-run", SYNC_REFRESH=refresh) for _ in range(20)]
    finally:
        ended.set()
        writer.join()
    assert {run.result["missing"] for run in runs} == {0}, runs


# Beside a writer who does all that there is


INSERT = ("INSERT INTO public.parted SELECT uuid, 'Name {n}' FROM (SELECT '00000000-0000-4000-8000-0000000000'"
          " || n AS uuid FROM generate_series(10, 69) AS n) AS everybody"
          " WHERE random() < 0.3 AND uuid NOT IN (SELECT uuid FROM public.parted)")
PART_B = "CREATE TABLE public.part_b (uuid text, name text, note text); ALTER TABLE public.parted" \
         " ATTACH PARTITION public.part_b FOR VALUES IN ('5', '6', '7', '8', '9'); "
PARTED = ("CREATE TABLE public.parted (uuid text, name text, note text) PARTITION BY LIST (substr(uuid, 36));"
          "CREATE TABLE public.part_a PARTITION OF public.parted FOR VALUES IN ('0', '1', '2', '3', '4');"
          "GRANT SELECT ON public.parted TO app_readonly; " + PART_B)
CHANGES = [
    INSERT,
    "UPDATE public.parted SET name = 'Name {n}' WHERE random() < 0.1",
    "DELETE FROM public.parted WHERE random() < 0.1",
    "TRUNCATE public.part_b; " + INSERT,
    "ALTER TABLE public.parted ALTER name TYPE text USING name || '.'",
    "ALTER TABLE public.parted DETACH PARTITION public.part_b; DROP TABLE public.part_b; " + PART_B + INSERT,
]


class Writer(threading.Thread):
    """Changes the source in one transaction after another, and remembers each state that it committed."""

    def __init__(self, side):
        super().__init__()
        self.side, self.ending, self.states = side, threading.Event(), [{}]

    def run(self):
        chance = random.Random(11)
        while not self.ending.is_set():
            self.side.sql("BEGIN; " + chance.choice(CHANGES).replace("{n}", str(len(self.states))))
            # Before the commit: a run may be quicker than we are.
            self.states.append(dict(self.side.sql("SELECT uuid, name FROM public.parted")))
            self.side.sql("COMMIT")


def test_each_run_carries_a_committed_state_never_an_older_one(world):
    if world.app.version() < 11:
        pytest.skip("PostgreSQL 11 brought ATTACH of filled partitions without a lock on all")
    writer, at, before = Writer(Side(world.lab.app)), 0, {}
    with world.app.changed(PARTED, "DROP TABLE public.parted"):
        writer.start()
        try:
            for number in range(200):
                run = run_in_process(world.script, arguments(["--json"]), world.environment(dict(
                    APP_TABLE="public.parted", SYNC_REFRESH="never" if number % 2 else "always",
                    SYNC_MAX_CHANGED_PERCENT="100")))
                after, states = world.dimension(), writer.states[:]
                fitting = [place for place in range(at, len(states)) if dict(before, **states[place]) == after]
                assert run.code == 0 and fitting, (number, at, len(states), run)
                at, before = fitting[0], after
        finally:
            writer.ending.set()
            writer.join()
            writer.side.connection.close()
    assert len(writer.states) > 100


SNAPSHOT = 'SELECT "uuid", "name"'  # not before it
GATES = [("warehouse", "login"), ("warehouse", "SELECT pg_try_advisory_xact_lock"), ("app", SNAPSHOT), ("app", "COPY"),
         ("warehouse", 'INSERT INTO "analytics"."athlete_dim"'), ("warehouse", "COMMIT")]
# The second run connects when the first has passed so many gates, and asks for the lock at so many; after
# that it is skipped, or it goes on alone.
ORDERS = ["A" * connects + "B" + "A" * (asks - connects) + "B" + "A" * (len(GATES) - asks) + "B" * (len(GATES) - 2)
          for asks in range(len(GATES) + 1) for connects in range(asks + 1)]


class Gated:
    """A run that stands still before each step of GATES, until it is let on."""

    def __init__(self, world):
        self.arrived, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.proxies = {side: Proxy(side, getattr(world.lab, side).port) for side in ("app", "warehouse")}
        self.passed, self.at = set(), None
        for proxy in self.proxies.values():
            proxy.reset(self.hold)
        self.process = world.start("--json", APP_PORT=str(self.proxies["app"].port),
                                   WH_PORT=str(self.proxies["warehouse"].port))

    def hold(self, moment):
        step = self.proxies[moment.side].steps[moment.index]
        for side, words in GATES:
            if (side, "before") == moment[::2] and step.startswith(words) and words not in self.passed:
                self.at = words
                self.passed.add(words)
                self.arrived.release()
                self.may_go_on.acquire()

    def go_on(self):
        """Let it on to its next gate, or its end. Returns whether it goes on to take the app's snapshot."""
        while not self.arrived.acquire(timeout=0.02):
            if self.process.poll() is not None:
                return False
        at, self.at = self.at, None
        self.may_go_on.release()
        while self.at is None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.02)
        return at == SNAPSHOT


@pytest.mark.parametrize("order", ORDERS)
def test_two_runs_in_every_order(world, order):
    """Each time one is let on the athlete is renamed; what is in the end is what the last snapshot saw, or later."""
    world.app_has((ANN, "Version 0"))
    runs, version, least = {name: Gated(world) for name in "AB"}, 0, 0
    for name in order:
        version += 1
        world.app.sql('UPDATE public."User" SET name = %s', "Version %d" % version)
        if runs[name].go_on():
            least = version
    results = {name: finish(gated.process) for name, gated in runs.items()}
    for proxy in [*runs["A"].proxies.values(), *runs["B"].proxies.values()]:
        proxy.__exit__()
    assert {run.code for run in results.values()} == {0}, results
    assert [len(runs[name].passed) for name, run in results.items() if run.result["result"] == "ok"][0] == len(GATES)
    assert int(world.dimension()[ANN].split()[1]) >= least, (order, results)
    assert world.sync().code == 0 and world.dimension() == {ANN: "Version %d" % version}
