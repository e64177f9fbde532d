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


# The later run reads the later app


@pytest.mark.parametrize("flags", [(), ("--incremental",)], ids=["full", "incremental"])
def test_a_run_that_waited_for_the_warehouse_carries_what_the_app_holds_then(world, flags):
    world.app_has(*OLD)
    world.sync()
    with Proxy("warehouse", world.lab.warehouse.port) as proxy:
        proxy.stall()
        late = world.start("--json", *flags, WH_PORT=str(proxy.port), SYNC_CONNECT_TIMEOUT="1",
                           SYNC_CONNECT_ATTEMPTS="20")
        read_until(late, b"attempt 1 of 20 failed")
        world.app.sql('UPDATE public."User" SET name = %s WHERE uuid = %s', "Ann Anders", ANN)
        assert world.sync().counts() == "2: 1 renamed, 1 unchanged"
        proxy.stalled = False
        run = finish(late)
    assert run.code == 0 and run.result["updated"] == 0 and "restored" not in run.err, run
    assert world.dimension() == {ANN: "Ann Anders", BOB: "Bob Bowman"}


def read_until(process, words):
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError("the run ended without: %s" % words)


def test_what_people_wrote_meanwhile_is_not_read(world):
    """One snapshot: an athlete renamed in the app while the run waits is carried with one name."""
    world.app_has((ANN, "Ann Archer"))
    world.warehouse_has((ANN, "Ann Archer"))
    with world.warehouse.locked():
        process = world.start("--json")
        world.warehouse.wait_until_a_run_waits_for_a_lock()
        world.app.sql('UPDATE public."User" SET name = %s', "Ann Baker")
    assert finish(process).counts() == "1: 1 unchanged"
    assert world.sync().counts() == "1: 1 renamed"
    assert world.dimension() == {ANN: "Ann Baker"}


# A reload in one transaction of the app: the whole old table or the whole new one


SOURCES = {
    "table": ("", "public.\"User\"", 'TRUNCATE public."User"; INSERT INTO public."User" (uuid, name) VALUES {0}'),
    "table, rewritten by ALTER": (
        "", "public.\"User\"",
        'ALTER TABLE public."User" ALTER email TYPE varchar(200); DELETE FROM public."User";'
        'INSERT INTO public."User" (uuid, name) VALUES {0}; ALTER TABLE public."User" ALTER email TYPE text'),
    "table, SELECT on columns alone": (
        'REVOKE SELECT ON public."User" FROM app_readonly;'
        'GRANT SELECT (uuid, name) ON public."User" TO app_readonly', "public.\"User\"",
        'TRUNCATE public."User"; INSERT INTO public."User" (uuid, name) VALUES {0}'),
    "inheritance parent": (
        "CREATE TABLE public.parent (uuid text, name text); CREATE TABLE public.child () INHERITS (public.parent);"
        "INSERT INTO public.child SELECT uuid, name FROM public.\"User\"", "public.parent",
        "TRUNCATE public.child; INSERT INTO public.child VALUES {0}"),
    "view": (
        'CREATE VIEW public.seen AS SELECT uuid, name FROM public."User"', "public.seen",
        'TRUNCATE public."User"; INSERT INTO public."User" (uuid, name) VALUES {0}'),
    "view on a view, SELECT on columns alone": (
        'CREATE VIEW public.below AS SELECT uuid, name FROM public."User";'
        "CREATE VIEW public.seen AS SELECT uuid, name FROM public.below", "public.seen (uuid, name)",
        'TRUNCATE public."User"; INSERT INTO public."User" (uuid, name) VALUES {0}'),
    "materialized view": (
        'CREATE MATERIALIZED VIEW public.kept AS SELECT uuid, name FROM public."User"', "public.kept",
        'DELETE FROM public."User"; INSERT INTO public."User" (uuid, name) VALUES {0};'
        "REFRESH MATERIALIZED VIEW public.kept"),
    "one partition": (
        "CREATE TABLE public.parted (uuid text, name text) PARTITION BY LIST (uuid);"
        "CREATE TABLE public.part_ann PARTITION OF public.parted FOR VALUES IN ('%s');"
        "CREATE TABLE public.part_else PARTITION OF public.parted DEFAULT;"
        'INSERT INTO public.parted SELECT uuid, name FROM public."User"' % ANN, "public.parted",
        "TRUNCATE public.part_ann; DELETE FROM public.part_else; INSERT INTO public.parted VALUES {0}"),
}
UNDO = ('DROP VIEW IF EXISTS public.seen, public.below; DROP MATERIALIZED VIEW IF EXISTS public.kept;'
        "DROP TABLE IF EXISTS public.child, public.parent, public.parted;"
        'REVOKE SELECT (uuid, name) ON public."User" FROM app_readonly;'
        'GRANT SELECT ON public."User" TO app_readonly')


@pytest.mark.parametrize("make, source, reload", list(SOURCES.values()), ids=list(SOURCES))
def test_a_reload_is_seen_whole(world, make, source, reload):
    if "PARTITION" in make and world.app.connection.server_version < 110000:
        pytest.skip("PostgreSQL 11 brought default partitions")
    table, _, columns = source.partition(" ")
    world.app_has(*OLD)
    world.warehouse_has(*OLD, (DAN, "Dan Dyer"))
    with world.app.changed(make or "SELECT 1", UNDO):
        world.app.sql("GRANT SELECT %s ON %s TO app_readonly" % (columns, table) if make and table != 'public."User"'
                      else "SELECT 1")
        with world.app.holding(reload.format(VALUES)) as holder:
            process = world.start("--json", APP_TABLE=table)
            world.app.wait_until_a_run_waits_for_a_lock()
            holder.connection.commit()
            run = finish(process)
    assert (run.code, run.counts()) == (0, "3: 1 new, 1 renamed, 1 unchanged, 1 missing"), run
    assert world.dimension() == dict(NEW, **{DAN: "Dan Dyer"})


def test_a_foreign_table_cannot_be_locked_and_the_log_says_so(world):
    make = ("CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
            "CREATE FOREIGN TABLE public.far (uuid text, name text) SERVER files"
            " OPTIONS (filename '%s', format 'csv');"
            "CREATE VIEW public.seen AS SELECT uuid, name FROM public.far;"
            "GRANT SELECT ON public.far, public.seen TO app_readonly")
    path = world.lab.app.folder / "far.csv"
    path.write_text("%s,Ann Archer\n" % ANN)
    with world.app.changed(make % path, "DROP EXTENSION file_fdw CASCADE"):
        for source in ("public.far", "public.seen"):
            run = world.sync(APP_TABLE=source)
            assert run.code == 0 and run.err.count("far cannot be locked where its rows are") == 1, run
    assert world.dimension() == {ANN: "Ann Archer"}


# One moment for all counts


def test_missing_is_right_though_others_write_to_the_dimension_meanwhile(world):
    """An incremental run that falls back to a full one, beside somebody who deletes from the dimension."""
    if world.app.connection.server_version < 90600:
        pytest.skip("incremental needs PostgreSQL 9.6")
    others = Side(world.lab.warehouse)
    with world.app.changed('ALTER TABLE public."User" ADD CONSTRAINT one_athlete UNIQUE (uuid)',
                           'ALTER TABLE public."User" DROP CONSTRAINT one_athlete'):
        world.app_has(*OLD)
        world.warehouse_has((CAT, "Cat Cooper"), (DAN, "Dan Dyer"))
        world.sync()
        world.app_has((ANN.upper().replace("-", ""), "Ann Archer"))
        with Proxy("app", world.lab.app.port) as proxy:
            proxy.reset(lambda moment: others.sql("DELETE FROM analytics.athlete_dim WHERE full_name LIKE %s", "%D%")
                        if moment.when == "end" else None)
            run = finish(world.start("--json", "--incremental", APP_PORT=str(proxy.port)))
    others.connection.close()
    assert (run.code, run.result["mode"]) == (0, "full"), run
    assert run.counts() == "3: 2 unchanged, 1 missing, 1 repeated", run


@pytest.mark.parametrize("refresh", ["always", "never"])
def test_missing_is_right_while_others_insert_and_delete_without_end(world, refresh):
    world.app_has(*OLD)
    world.warehouse_has(*OLD, (DAN, "Dan Dyer"))
    ending = threading.Event()

    def write():
        others = Side(world.lab.warehouse)
        while not ending.is_set():
            others.sql("DELETE FROM analytics.athlete_dim WHERE athlete_uuid = %s", DAN)
            others.sql("INSERT INTO analytics.athlete_dim VALUES (%s, 'Dan Dyer', now())", DAN)
        others.connection.close()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        runs = [world.sync("--dry-run", SYNC_REFRESH=refresh) for _ in range(20)]
    finally:
        ending.set()
        writer.join()
    assert {run.result["missing"] for run in runs} <= {0, 1}, runs


# Beside a writer who does all that there is


RUNS = 200
PARTED = """
CREATE TABLE public.parted (uuid text, name text, note text) PARTITION BY LIST (substr(uuid, 36));
CREATE TABLE public.part_a PARTITION OF public.parted FOR VALUES IN ('0', '1', '2', '3', '4');
CREATE TABLE public.part_b PARTITION OF public.parted FOR VALUES IN ('5', '6', '7', '8', '9');
GRANT SELECT ON public.parted TO app_readonly;
"""
FIVE_TO_NINE = "FOR VALUES IN ('5', '6', '7', '8', '9')"


class Writer(threading.Thread):
    """Changes the source in one transaction after another, and remembers each state that it committed."""

    def __init__(self, side):
        super().__init__()
        self.side, self.chance, self.ending = side, random.Random(11), threading.Event()
        self.state, self.states, self.failure = {}, [{}], None

    def run(self):
        try:
            while not self.ending.is_set():
                change = self.chance.choice([self.rename, self.delete, self.insert, self.reload, self.rewrite,
                                             self.swap_partitions])
                self.state = dict(self.state)
                statements = change()
                self.states.append(self.state)  # before the commit: a run may be quicker than we are
                self.side.sql("BEGIN; %s; COMMIT" % "; ".join(statements))
        except Exception as failure:
            self.failure = failure

    def athletes(self, most):
        return self.chance.sample(ATHLETES, self.chance.randint(1, most))

    def put(self, athlete):
        self.state[athlete] = "Name %d" % len(self.states)
        return "INSERT INTO public.parted VALUES ('%s', '%s')" % (athlete, self.state[athlete])

    def rename(self):
        known = [athlete for athlete in self.athletes(10) if athlete in self.state]
        self.state.update(dict.fromkeys(known, "Name %d" % len(self.states)))
        return ["UPDATE public.parted SET name = 'Name %d' WHERE uuid = ANY ('{%s}')"
                % (len(self.states), ",".join(known))]

    def delete(self):
        gone = self.athletes(3)
        self.state = {athlete: name for athlete, name in self.state.items() if athlete not in gone}
        return ["DELETE FROM public.parted WHERE uuid = ANY ('{%s}')" % ",".join(gone)]

    def insert(self):
        return [self.put(athlete) for athlete in self.athletes(10) if athlete not in self.state] or ["SELECT 1"]

    def reload(self):
        kept = {athlete: name for athlete, name in self.state.items() if athlete[-1] < "5"}
        reloaded = [athlete for athlete in self.athletes(20) if athlete[-1] >= "5"]
        self.state = kept
        return ["TRUNCATE public.part_b"] + [self.put(athlete) for athlete in reloaded]

    def rewrite(self):
        self.state = {athlete: name + "." for athlete, name in self.state.items()}
        return ["ALTER TABLE public.parted ALTER name TYPE text USING name || '.'"]

    def swap_partitions(self):
        self.state = {athlete: name for athlete, name in self.state.items() if athlete[-1] < "5"}
        return ["ALTER TABLE public.parted DETACH PARTITION public.part_b", "DROP TABLE public.part_b",
                "CREATE TABLE public.part_b (uuid text, name text, note text)",
                "ALTER TABLE public.parted ATTACH PARTITION public.part_b " + FIVE_TO_NINE,
                ] + [self.put(athlete) for athlete in self.athletes(20) if athlete[-1] >= "5"]


ATHLETES = ["%08d-0000-4000-8000-%012d" % (number % 7, number) for number in range(60)]


def test_each_run_carries_a_committed_state_never_an_older_one(world):
    if world.app.connection.server_version < 110000:
        pytest.skip("PostgreSQL 11 brought ATTACH of filled partitions without a lock on all")
    side, at, before = Side(world.lab.app), 0, {}
    with world.app.changed(PARTED, "DROP TABLE public.parted"):
        writer = Writer(side)
        writer.start()
        try:
            for number in range(RUNS):
                run = run_beside(world, "never" if number % 2 else "always")
                after, states = world.dimension(), writer.states[:]
                fitting = [place for place in range(at, len(states)) if dict(before, **states[place]) == after]
                assert run.code == 0 and fitting, (number, at, len(states), run)
                at, before = fitting[0], after
        finally:
            writer.ending.set()
            writer.join()
            side.connection.close()
    assert writer.failure is None and len(writer.states) > RUNS / 2


def run_beside(world, refresh):
    """As world.sync(), which would find that the app was changed meanwhile."""
    return run_in_process(world.script, arguments(("--json",)), world.environment(dict(
        APP_TABLE="public.parted", SYNC_REFRESH=refresh, SYNC_MAX_UPDATED_PERCENT="100")))


# Two runs, in every order


GATES = [("warehouse", "login"), ("warehouse", "SELECT pg_try_advisory_xact_lock"),
         ("warehouse", "CREATE TEMP TABLE"), ("app", "LOCK TABLE"), ("app", "COPY"),
         ("warehouse", 'INSERT INTO "analytics"."athlete_dim"'),
         ("warehouse", "INSERT INTO analytics.athlete_sync_run"), ("warehouse", "COMMIT")]
# The second run connects when the first has passed so many gates, and asks for the lock at so many; after
# that it is skipped, or it goes on alone.
ORDERS = ["A" * connects + "B" + "A" * (asks - connects) + "B" + "A" * (len(GATES) - asks) + "B" * (len(GATES) - 2)
          for asks in range(len(GATES) + 1) for connects in range(asks + 1)]


class Gated:
    """A run that stands still before each step of GATES, until it is let on."""

    def __init__(self, world):
        self.arrived, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.proxies = {side: Proxy(side, getattr(world.lab, side).port) for side in ("app", "warehouse")}
        self.passed = set()
        for proxy in self.proxies.values():
            proxy.reset(self.hold)
        self.process = world.start("--json", APP_PORT=str(self.proxies["app"].port),
                                   WH_PORT=str(self.proxies["warehouse"].port))
        self.at = None

    def hold(self, moment):
        step = self.proxies[moment.side].steps[moment.index]
        for side, words in GATES:
            if (side, "before") == (moment.side, moment.when) and step.startswith(words) \
                    and words not in self.passed:
                self.passed.add(words)
                self.at = words
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
        return at == "LOCK TABLE"

    def finish(self):
        run = finish(self.process)
        for proxy in self.proxies.values():
            proxy.__exit__()
        return run


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
    assert len(order) == 2 * len(GATES)
    results = {name: gated.finish() for name, gated in runs.items()}
    assert {run.code for run in results.values()} == {0}, results
    assert "ok" in {run.result["result"] for run in results.values()}
    assert int(world.dimension()[ANN].split()[1]) >= least, (order, results)
    assert world.sync().code == 0 and world.dimension() == {ANN: "Version %d" % version}
