#!/usr/bin/env python3
"""The fault matrix: break each step of a run in every way known, and look at what is left.

  python python/tests/faults.py                           the whole matrix; make test-faults
  python python/tests/faults.py --only 'app cut' --limit 20 --seed 7 -v
  python python/tests/faults.py --list                    what would be done
  python python/tests/faults.py --writers 200             200 runs while others write to the app

One run is recorded through a proxy on each side; every step it took, and every moment of a step (see
proxy.py), is then a place for a fault. Nothing here waits for a time to pass: a fault is done while
the proxy holds the step's message back, or while the server is known to be at work on it.

partial    the dimension is neither the old state nor the new one, or its history says otherwise
lost       the run said ok and the dimension is old; the app was changed; or the next run does not mend it
leftovers  30 s later the servers still have a transaction, a lock or a temp table of the run
outside    exit code, last line or result are not what DESIGN promises; or a secret was printed
unpinged   a run ended, other than by SIGKILL, and its end was not told: a ping after the start's, with the exit
           code; and of a failure a row in the history, if the warehouse could be reached
late       it ended later than 8 s after the deadline, or 7 s after a signal: 5 s are for ping and history
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import psycopg2
import psycopg2.extras

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from lab import servers
from pings import PingServer
from proxy import SLOW, Moment, Proxy

SIDES = ("app", "warehouse")
ROLES = {"app": "app_readonly", "warehouse": "warehouse_writer"}
DIMENSION = "analytics.athlete_dim"
LONG_AGO = "2020-01-01 00:00:00+00"
MARKER = "Planted-Name"
SECRETS = (MARKER, servers.SUPERUSER_PASSWORD, servers.READER_PASSWORD, servers.WRITER_PASSWORD)
ATHLETES = 2000

COUNTS = ("partial", "lost", "leftovers", "outside", "unpinged", "late")

SHORT_DEADLINE = 5  # where the run waits for its end
LONG_DEADLINE = 600  # where it must not
MOST_SECONDS = 45  # what no run takes whose deadline is not the point
SECONDS_FOR_LAST_ACT = 5  # pings and history, after the run has ended; README names it
SECONDS_AFTER_DEADLINE, SECONDS_AFTER_SIGNAL = 3 + SECONDS_FOR_LAST_ACT, 2 + SECONDS_FOR_LAST_ACT
SECONDS_FOR_LEFTOVERS = 30
OVERTAKERS_DEADLINE = 5  # a run that is older, by the five seconds it has to end by itself, is ended

# What is aborted holds no lock and no snapshot; before PostgreSQL 17 nothing but its network ends it.
LEFTOVERS = """
SELECT (SELECT coalesce(string_agg(concat_ws(' ', 'backend', pid, state), ', '), '')
          FROM pg_stat_activity
         WHERE datname = current_database()
           AND usename IN ('app_readonly', 'warehouse_writer')
           AND state <> 'idle'
           AND (state <> 'idle in transaction (aborted)'
                OR current_setting('server_version_num')::integer >= 170000)),
       (SELECT coalesce(string_agg('lock of ' || pid, ', '), '')
          FROM pg_locks
         WHERE locktype = 'advisory'
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())),
       (SELECT coalesce(string_agg(relname, ', '), '') FROM pg_class WHERE relpersistence = 't'),
       (SELECT coalesce(string_agg(gid, ', '), '')
          FROM pg_prepared_xacts
         WHERE database = current_database())
"""

Dimension = Dict[str, Tuple[str, str]]  # uuid: name, source_synced_at


# What there is to break


class Kind(NamedTuple):
    """A way to break a run. `do` breaks it, `mend` comes once the run has ended."""

    do: Callable[["Trial"], None]
    codes: Set[int]
    mend: Callable[["Trial"], None] = lambda trial: None
    waits: bool = False  # the run can end only by its deadline
    stops_server: bool = False  # nobody else may use the servers meanwhile
    cuts_off_warehouse: bool = False  # where that is the side, the history cannot be reached until it is mended
    loses_history: bool = False  # the run is right, and says that it is not in the history
    slow: bytes = SLOW


class Fault(NamedTuple):
    kind: str
    side: str  # which is broken; "sync" for the script itself
    moment: Moment
    step: str
    refresh: str

    def __str__(self) -> str:
        return "%s %s @ %s %d %s %s%s" % (
            self.side, self.kind, self.moment.side, self.moment.index, self.moment.when, self.step[:50],
            "" if self.refresh == "always" else " (SYNC_REFRESH=%s)" % self.refresh)


def kill_backends(trial: "Trial") -> None:
    ours = ("FROM pg_stat_activity WHERE datname = current_database() AND usename = '%s'"
            % ROLES[trial.fault.side])
    trial.sql("SELECT pg_terminate_backend(pid) " + ours)
    servers.wait_until(lambda: not trial.sql("SELECT 1 " + ours), "the backend's end", 10)


def stop_server(trial: "Trial") -> None:
    trial.lane.server(trial.fault.side).stop("immediate")


def start_server(trial: "Trial") -> None:
    trial.lane.server(trial.fault.side).start()
    trial.lane.reconnect(trial.fault.side)


def freeze_server(trial: "Trial") -> None:
    signal_server(trial.lane.server(trial.fault.side), signal.SIGSTOP)


def thaw_server(trial: "Trial") -> None:
    signal_server(trial.lane.server(trial.fault.side), signal.SIGCONT)


def signal_server(server: servers.Server, number: int) -> None:
    """Send a signal to the postmaster, so that nobody new appears, and then to its children."""
    postmaster = int((server.data / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, number)
    processes = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid="], encoding="ascii")
    for line in processes.splitlines():
        pid, parent = map(int, line.split())
        if parent == postmaster:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def cut(trial: "Trial") -> None:
    trial.proxy().cut()


def stall(trial: "Trial") -> None:
    trial.proxy().stall()


def heal(trial: "Trial") -> None:
    trial.proxy().stalled = False
    trial.proxy().cut()


def kill_app_and_stall_warehouse(trial: "Trial") -> None:
    kill_backends(trial)
    trial.lane.proxies["warehouse"].stall()


def heal_warehouse(trial: "Trial") -> None:
    trial.lane.proxies["warehouse"].reset()


def stall_and_terminate(trial: "Trial") -> None:
    stall(trial)
    trial.send_signal(signal.SIGTERM)


def send(number: int) -> Callable[["Trial"], None]:
    return lambda trial: trial.send_signal(number)


def kill_script(trial: "Trial") -> None:
    trial.send_signal(signal.SIGKILL)
    trial.process.wait(10)


def freeze_and_overtake(trial: "Trial") -> None:
    """Stop the script, as by kill -STOP, until the next run has ended its transaction; then let it go on."""
    trial.process.send_signal(signal.SIGSTOP)
    try:
        servers.wait_until(lambda: trial.lane.sql("warehouse", OVERDUE), "the run to be overdue", 30)
        overtaker = trial.lane.finish(trial.lane.start({}, OVERTAKERS_DEADLINE, SYNC_REFRESH=trial.fault.refresh))
    finally:
        trial.process.send_signal(signal.SIGCONT)
    if overtaker.code or "older than SYNC_DEADLINE and is ended" not in overtaker.err:
        raise RuntimeError("the next run did not take the lock:\n" + overtaker.err)


OVERDUE = """
SELECT 1
  FROM pg_stat_activity
 WHERE datname = current_database()
   AND application_name = 'sync_athletes'
   AND xact_start < clock_timestamp() - interval '%d.5 s'
""" % (OVERTAKERS_DEADLINE + 5)


def hold_history(trial: "Trial") -> None:
    trial.lane.hold("LOCK TABLE analytics.athlete_sync_run IN ACCESS EXCLUSIVE MODE NOWAIT")


def cancel(trial: "Trial") -> None:
    for pid in trial.proxy().backends():
        trial.sql("SELECT pg_cancel_backend(%d)" % pid)


def leave_it(trial: "Trial") -> None:
    """Slow is fault enough."""


def hold_table(trial: "Trial") -> None:
    """Take the strongest lock that the run's own has left free."""
    try:
        trial.lane.hold("LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT" % DIMENSION)
    except psycopg2.errors.LockNotAvailable:
        trial.lane.hold("LOCK TABLE %s IN EXCLUSIVE MODE NOWAIT" % DIMENSION)


def hold_row(trial: "Trial") -> None:
    trial.lane.hold("SELECT 1 FROM %s WHERE athlete_uuid = '%s' FOR UPDATE NOWAIT"
                    % (DIMENSION, athlete_uuid(0)))


def let_go(trial: "Trial") -> None:
    trial.lane.holder.rollback()


def limit_temp_files(trial: "Trial") -> None:
    set_temp_file_limit(trial, "0")


def allow_temp_files(trial: "Trial") -> None:
    set_temp_file_limit(trial, "-1")


def set_temp_file_limit(trial: "Trial", limit: str) -> None:
    trial.sql("ALTER SYSTEM SET temp_file_limit = '%s'" % limit)
    trial.sql("SELECT pg_reload_conf()")
    servers.wait_until(lambda: trial.sql("SHOW temp_file_limit")[0][0] == limit, "the new limit", 10)


REVOKE = {
    "app": 'REVOKE SELECT ON public."User" FROM app_readonly',
    "warehouse": "REVOKE SELECT, INSERT, UPDATE ON analytics.athlete_dim FROM warehouse_writer;"
                 "REVOKE TEMPORARY ON DATABASE {database} FROM warehouse_writer, PUBLIC",
}
GRANT = {
    "app": 'GRANT SELECT ON public."User" TO app_readonly',
    "warehouse": "GRANT SELECT, INSERT, UPDATE ON analytics.athlete_dim TO warehouse_writer;"
                 "GRANT TEMPORARY ON DATABASE {database} TO warehouse_writer, PUBLIC",
}


def revoke(trial: "Trial") -> None:
    trial.sql(REVOKE[trial.fault.side].format(database=trial.lane.databases[trial.fault.side]))


def grant(trial: "Trial") -> None:
    trial.sql(GRANT[trial.fault.side].format(database=trial.lane.databases[trial.fault.side]))


# Before PostgreSQL 13 only what begins or ends a transaction sets the clock by a new statement_timeout.
KINDS = {
    "killed": Kind(kill_backends, {2}),
    "stopped": Kind(stop_server, {2}, start_server, stops_server=True, cuts_off_warehouse=True),
    "frozen": Kind(freeze_server, {2}, thaw_server, waits=True, stops_server=True, cuts_off_warehouse=True),
    "cut": Kind(cut, {2}),
    "stalled": Kind(stall, {2}, heal, waits=True, cuts_off_warehouse=True),
    "killed, warehouse stalled": Kind(kill_app_and_stall_warehouse, {2}, heal_warehouse, waits=True,
                                      cuts_off_warehouse=True),
    "stalled, SIGTERM": Kind(stall_and_terminate, {4}, heal, cuts_off_warehouse=True),
    "SIGTERM": Kind(send(signal.SIGTERM), {4}),
    "SIGINT": Kind(send(signal.SIGINT), {4}),
    "SIGHUP": Kind(send(signal.SIGHUP), {4}),
    "SIGKILL": Kind(kill_script, {-9}),
    "SIGSTOP, overtaken": Kind(freeze_and_overtake, {2}),
    "cancelled": Kind(cancel, {3}),
    "timed out": Kind(leave_it, {3}, slow=b"SET LOCAL statement_timeout = 100; SAVEPOINT timed_out; " + SLOW),
    "slow": Kind(leave_it, {2}, waits=True),
    "table locked": Kind(hold_table, {2}, let_go, waits=True),
    "row locked": Kind(hold_row, {2}, let_go, waits=True),
    "history locked": Kind(hold_history, {0}, let_go, loses_history=True),
    "revoked": Kind(revoke, {3}, grant),
    "temp files limited": Kind(limit_temp_files, {3}, allow_temp_files, stops_server=True),
}


# Where there is something to break


class Place(NamedTuple):
    """A moment of the recorded run, and which sides were connected then."""

    moment: Moment
    step: str
    connected: Tuple[str, ...]
    refresh: str


def matrix(places: List[Place]) -> List[Fault]:
    return [Fault(kind, side, place.moment, place.step, place.refresh)
            for place in places for kind, side in faults_at(place, places)]


def faults_at(place: Place, places: List[Place]) -> Iterator[Tuple[str, str]]:
    """What can break at a moment, and would be noticed there or later."""
    here, when = place.moment.side, place.moment.when
    there = SIDES[1 - SIDES.index(here)]
    ahead = [later for later in places[places.index(place):] if later.refresh == place.refresh]
    yield "SIGTERM", "sync"
    yield "SIGKILL", "sync"
    for kind in ("cut", "stalled", "stopped"):
        yield kind, here
    if place.step != "login" or when == "after":
        yield "killed", here
    if there in place.connected and when == "before":
        yield "killed", there
    if there in place.connected and when in ("mid", "end"):
        for kind in ("killed", "cut", "stalled", "stopped"):
            yield kind, there
    if when in ("login", "during", "mid"):
        yield "stalled, SIGTERM", here
    if when in ("during", "mid"):
        yield "SIGHUP", "sync"
        yield "cancelled", here
        if re.match("COPY|CREATE|INSERT|COMMIT", place.step):
            yield "SIGINT", "sync"
            yield "frozen", here
    if when == "during":
        yield "timed out", here
        yield "slow", here
    if has_the_lock(place, ahead) and when in ("before", "mid", "end"):
        yield "SIGSTOP, overtaken", "sync"
    if here == "app" and when in ("mid", "end"):
        yield "killed, warehouse stalled", "app"
    if when in ("before", "after"):
        yield "revoked", here
        if here == "warehouse":
            yield "temp files limited", here
            if when == "before" and any(is_upsert(later.step) for later in ahead):
                yield "table locked", here
                yield "row locked", here
                yield "history locked", here


def has_the_lock(place: Place, ahead: List[Place]) -> bool:
    """Whether the run holds its lock: from the step that takes it, which is ahead no more, to its COMMIT."""
    return (place.step != "login" or place.moment.side == "app") and not any(
        "advisory_xact_lock" in later.step for later in ahead)


def is_upsert(step: str) -> bool:
    return re.match(r'INSERT INTO "?analytics"?\."?athlete_dim\b', step) is not None


def record_all(lane: "Lane") -> List[Place]:
    """Every moment of a run that stamps all athletes, and of the steps in which others do it differently."""
    always = record(lane, "always")
    known = {place.step for place in always}
    return always + [place for place in record(lane, "never")
                     if place.step not in known and re.match("CREATE|INSERT", place.step)]


def record(lane: "Lane", refresh: str) -> List[Place]:
    """Run once, undisturbed, and list every moment it went through."""
    places = []  # type: List[Place]
    writing = threading.Lock()

    def note(moment: Moment) -> None:
        with writing:
            connected = tuple(side for side in SIDES if lane.proxies[side].is_in_use())
            step = lane.proxies[moment.side].steps[moment.index]
            places.append(Place(moment, step, connected, refresh))

    lane.make_old_state()
    for proxy in lane.proxies.values():
        proxy.reset(note)
    done = lane.finish(lane.start(lane.ports(), LONG_DEADLINE, SYNC_REFRESH=refresh))
    if done.code or lane.state(refresh) != "new":
        raise RuntimeError("the undisturbed run failed:\n%s" % done.err)
    return [place for found in places for place in with_during(found)]


def with_during(place: Place) -> List[Place]:
    """While a statement is carried out: from where the run has set its own time-outs."""
    if place.moment.when != "before" or has_no_timeouts(place.step):
        return [place]
    return [place, place._replace(moment=place.moment._replace(when="during"))]


def has_no_timeouts(step: str) -> bool:
    """Whether a step comes before the run has told the server when to give up by itself."""
    return re.match("login|BEGIN|SET |SAVEPOINT before_watch|SELECT .*set_config", step) is not None


# What is broken: databases of our own, with a state from which every kind of change is made


def athlete_uuid(number: int) -> str:
    return str(uuid.UUID(int=0x10000000000040008000000000000000 + number))


def known_name(number: int) -> str:
    """Long, so that a COPY does not fit into the buffers on its way."""
    return "%s %d %s" % (MARKER, number, "é" * 1500)


def app_rows() -> List[Tuple[Optional[str], Optional[str]]]:
    """Of ten athletes six are known, two renamed, two new; and what is rejected, and what is repeated."""
    rows = []  # type: List[Tuple[Optional[str], Optional[str]]]
    for number in range(ATHLETES):
        rows.append((athlete_uuid(number), known_name(number) + ("" if number % 10 < 6 else " anew")))
    rows += [(None, MARKER + " without"), ("no uuid", MARKER + " no uuid"), (athlete_uuid(10), None)]
    rows += [rows[20], (rows[30][0], MARKER + " in conflict")]
    rows[10] = rows[0]
    return rows


def old_dimension() -> Dict[str, str]:
    known = {athlete_uuid(number): known_name(number) for number in range(ATHLETES) if number % 10 < 8}
    known.update({athlete_uuid(ATHLETES + number): "%s gone %d" % (MARKER, number) for number in range(100)})
    return known


def good_names() -> Dict[str, str]:
    """What the app says of each athlete of whom it says one thing."""
    names = collections.defaultdict(set)  # type: Dict[Optional[str], Set[Optional[str]]]
    for found, name in app_rows():
        names[found].add(name)
    return {str(found): str(name) for found, (name, *others) in names.items()
            if found not in (None, "no uuid") and name is not None and not others}


class Done(NamedTuple):
    """A run that has ended."""

    code: int
    out: str
    err: str
    seconds: float
    ended: float


class Lane:
    """A database on each server, a proxy before each, and one fault at a time."""

    def __init__(self, lab: servers.Lab, name: str):
        self.lab = lab
        self.databases = {side: "fault_%s_%s" % (side, name) for side in SIDES}
        self.proxies = {side: Proxy(side, self.server(side).port) for side in SIDES}
        self.pings = PingServer()
        self.admin = {}  # type: Dict[str, Any]
        self.old, self.names = old_dimension(), good_names()

    def __enter__(self) -> "Lane":
        for side in SIDES:
            server, database = self.server(side), self.databases[side]
            server.psql("-qc", 'CREATE DATABASE "%s"' % database, database="postgres")
            # Whatever is sorted or hashed spills, so that a limit on temp files is met.
            server.psql("-qc", "ALTER DATABASE %s SET work_mem = '64kB'" % database, database="postgres")
            if side == "app":
                server.psql("-qc", servers.PRISMA_USER, database=database)
            script = {"app": "app_readonly.sql", "warehouse": "warehouse_setup.sql"}[side]
            server.psql("-f", str(servers.PROJECT / "sql" / script), database=database)
            self.reconnect(side)
        self.holder = self.connect("warehouse")
        self.fill()
        return self

    def __exit__(self, *_: Any) -> None:
        for proxy in self.proxies.values():
            proxy.__exit__()
        self.pings.close()
        self.holder.close()
        for side in SIDES:
            self.admin[side].close()
            self.server(side).psql("-qc", 'DROP DATABASE "%s"' % self.databases[side], database="postgres")

    def server(self, side: str) -> servers.Server:
        return getattr(self.lab, side)

    def connect(self, side: str) -> Any:
        return psycopg2.connect(host="127.0.0.1", port=self.server(side).port, dbname=self.databases[side],
                                user="postgres", password=servers.SUPERUSER_PASSWORD,
                                options="-c statement_timeout=60s")

    def reconnect(self, side: str) -> None:
        self.admin[side] = self.connect(side)
        self.admin[side].autocommit = True
        if side == "warehouse":
            self.holder = self.connect(side)

    def sql(self, side: str, statement: str) -> List[Any]:
        with self.admin[side].cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def hold(self, statement: str) -> None:
        """Run a statement in a transaction that stays open, until holder.rollback()."""
        self.holder.rollback()
        with self.holder.cursor() as cursor:
            cursor.execute(statement)

    def fill(self) -> None:
        self.sql("warehouse", "CREATE SCHEMA fault CREATE TABLE old (LIKE analytics.athlete_dim)")
        with self.admin["app"].cursor() as cursor:
            psycopg2.extras.execute_values(
                cursor, 'INSERT INTO public."User" (uuid, name) VALUES %s', app_rows(), page_size=10000)
        with self.admin["warehouse"].cursor() as cursor:
            psycopg2.extras.execute_values(
                cursor, "INSERT INTO fault.old VALUES %s",
                [(found, name, LONG_AGO) for found, name in self.old.items()], page_size=10000)
        self.app_before = self.app_hash()

    def make_old_state(self) -> None:
        self.sql("warehouse", "BEGIN; TRUNCATE analytics.athlete_dim, analytics.athlete_sync_run;"
                              "INSERT INTO analytics.athlete_dim SELECT * FROM fault.old; COMMIT")
        self.old_stamp = self.sql("warehouse", "SELECT max(source_synced_at) FROM fault.old")[0][0]

    def app_hash(self) -> str:
        return self.sql("app", "SELECT md5(string_agg(concat(ctid, xmin, xmax, t::text), ',' ORDER BY ctid))"
                               ' FROM public."User" t')[0][0]

    def state(self, refresh: str) -> str:
        """Compare every row with the old state and the new one."""
        rows = self.sql("warehouse",
                        "SELECT athlete_uuid::text, full_name, source_synced_at FROM " + DIMENSION)
        names = {found: name for found, name, _ in rows}
        stamped = {found for found, _, stamp in rows if stamp != self.old_stamp}
        stamps = {stamp for _, _, stamp in rows} - {self.old_stamp}
        if names == self.old and not stamped:
            return "old"
        to_stamp = {found for found, name in self.names.items()
                    if refresh == "always" or self.old.get(found) != name}
        if names == dict(self.old, **self.names) and stamped == to_stamp and len(stamps) == 1:
            return "new"
        return "partial"

    def recorded(self, result: str) -> int:
        return self.sql("warehouse", "SELECT count(*) FROM analytics.athlete_sync_run WHERE result = '%s'"
                        % result)[0][0]

    def told(self) -> List[str]:
        return [path.split("/")[-1] for path, _ in self.pings.told]

    def leftovers(self) -> List[str]:
        return ["%s: %s" % (side, what) for side in SIDES for what in self.sql(side, LEFTOVERS)[0] if what]

    def ports(self) -> Dict[str, str]:
        return {"APP_PORT": str(self.proxies["app"].port), "WH_PORT": str(self.proxies["warehouse"].port)}

    def start(self, ports: Dict[str, str], deadline: int, *flags: str, **settings: str) -> subprocess.Popen:
        environment = self.lab.environment(
            APP_DB=self.databases["app"], WH_DB=self.databases["warehouse"],
            SYNC_DEADLINE=str(deadline), **dict(ports, **settings))
        # A developer's own .env may name real databases.
        command = [sys.executable, str(servers.SCRIPT), "--env-file", os.devnull] + list(flags)
        process = subprocess.Popen(command, env=environment, cwd=os.sep, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.started = time.monotonic()  # type: ignore[attr-defined]
        return process

    def finish(self, process: subprocess.Popen, timeout: float = MOST_SECONDS) -> Done:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += b"\nkilled by the test: it did not end\n"
        ended = time.monotonic()
        return Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"),
                    ended - process.started, ended)  # type: ignore[attr-defined]


# One fault, from the old state to the verdict


class Verdict(NamedTuple):
    fault: Fault
    state: str
    wrong: Dict[str, str]  # by one of COUNTS: what exactly
    done: Done
    output: str

    def __str__(self) -> str:
        wrong = "; ".join("%s: %s" % item for item in sorted(self.wrong.items())) or "well"
        return "%s -> %s, exit %s in %.1f s: %s" % (
            self.fault, self.state, self.done.code, self.done.seconds, wrong)


class Trial:
    def __init__(self, lane: Lane, fault: Fault, verbose: bool):
        self.lane, self.fault, self.kind, self.verbose = lane, fault, KINDS[fault.kind], verbose
        self.started, self.has_struck = threading.Event(), threading.Event()
        self.failure = None  # type: Optional[str]
        self.connected = None  # type: Optional[float]
        self.signalled = None  # type: Optional[float]
        self.wrong = {}  # type: Dict[str, str]

    # What a fault can use

    def sql(self, statement: str) -> List[Any]:
        return self.lane.sql(self.fault.side, statement)

    def proxy(self) -> Proxy:
        return self.lane.proxies[self.fault.side]

    def send_signal(self, number: int) -> None:
        self.signalled = time.monotonic()
        self.process.send_signal(number)

    # The trial

    def run(self) -> Verdict:
        self.lane.make_old_state()
        self.arm()
        deadline = SHORT_DEADLINE if self.kind.waits else LONG_DEADLINE
        flags = ["-v"] if self.verbose else []
        self.lane.pings.told.clear()
        self.process = self.lane.start(self.lane.ports(), deadline, *flags, SYNC_REFRESH=self.fault.refresh,
                                       SYNC_PING_URL=self.lane.pings.url)
        self.started.set()
        done = self.lane.finish(self.process)
        self.check_strike()
        self.check_time(done, deadline)
        self.clear_up(done)
        state = self.check_state(done)
        self.check_contract(done, state)
        self.check_told(done, state)
        output = done.out + done.err + self.check_next_run()
        if any(secret in output for secret in SECRETS):
            self.blame("outside", "a secret was printed")
        return Verdict(self.fault, state, self.wrong, done, output)

    def blame(self, count: str, what: str) -> None:
        self.wrong[count] = "%s, %s" % (self.wrong[count], what) if count in self.wrong else what

    def arm(self) -> None:
        moment, slow = self.fault.moment, self.kind.slow
        if self.lane.admin[moment.side].server_version < 140000:
            slow = slow.replace(b"3600", b"20")  # at work it will not notice that its client has gone
        for side, proxy in self.lane.proxies.items():
            here = side == moment.side
            proxy.reset(self.strike, moment if here and moment.when == "during" else None, slow)

    def strike(self, moment: Moment) -> None:
        """Called by the proxy at every moment; what it holds back goes on when this returns."""
        self.connected = self.connected or time.monotonic()
        if moment != self.fault.moment or self.has_struck.is_set():
            return
        self.has_struck.set()
        try:
            self.started.wait()
            if moment.when == "during" and self.fault.kind != "timed out":
                servers.wait_until(self.is_at_work, "the slow statement", 10)
            self.kind.do(self)
        except Exception:
            self.failure = traceback.format_exc()

    def is_at_work(self) -> bool:
        side = self.fault.moment.side
        pids = self.lane.proxies[side].backends()
        return bool(self.lane.sql(side, "SELECT 1 FROM pg_stat_activity WHERE query ~ 'pg_sleep[(]'"
                                        " AND state = 'active' AND pid IN (%s)"
                                        % ", ".join(map(str, pids or [0]))))

    def check_strike(self) -> None:
        if self.failure:
            self.blame("outside", "the fault itself failed:\n" + self.failure)
        elif not self.has_struck.is_set():
            self.blame("outside", "the run never came to this step")

    def check_time(self, done: Done, deadline: int) -> None:
        # Python's own start, seconds on a busy machine, is not the run's.
        seconds = done.ended - self.connected if self.connected else done.seconds
        if seconds > (deadline + SECONDS_AFTER_DEADLINE if self.kind.waits else MOST_SECONDS):
            self.blame("late", "%.1f s" % seconds)
        if self.signalled and done.ended - self.signalled > SECONDS_AFTER_SIGNAL:
            self.blame("late", "%.1f s after the signal" % (done.ended - self.signalled))

    def clear_up(self, done: Done) -> None:
        """Look for leftovers, if it can be while the fault lasts, and undo the fault."""
        # A server that waits for COPY data minds no time-out of the run's, only its network's.
        lasts = (self.kind.waits and not self.kind.stops_server and not has_no_timeouts(self.fault.step)
                 and self.fault.moment.when not in ("mid", "end"))
        steps = [lambda: self.check_leftovers(done), lambda: self.kind.mend(self)]
        for step in steps if lasts else reversed(steps):
            step()

    def check_leftovers(self, done: Done) -> None:
        with contextlib.suppress(RuntimeError):
            servers.wait_until(lambda: not self.lane.leftovers(), "nothing to be left",
                               done.ended + SECONDS_FOR_LEFTOVERS - time.monotonic())
        left = self.lane.leftovers()
        if left:
            self.blame("leftovers", "; ".join(left))
            for side in SIDES:
                self.lane.sql(side, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                                    " WHERE datname = current_database() AND usename = '%s'" % ROLES[side])
            servers.wait_until(lambda: not self.lane.leftovers(), "the end of what was left", 10)

    def check_state(self, done: Done) -> str:
        state = self.lane.state(self.fault.refresh)
        if state == "partial":
            self.blame("partial", "the dimension is neither old nor new")
        good_runs = self.lane.recorded("ok")
        if good_runs != (state == "new" and not self.kind.loses_history):
            self.blame("partial", "the history has %d good runs" % good_runs)
        if done.code == 0 and state != "new":
            self.blame("lost", "it said ok and the dimension is %s" % state)
        if self.lane.app_hash() != self.lane.app_before:
            self.blame("lost", "the app's table was changed")
        return state

    def check_contract(self, done: Done, state: str) -> None:
        if self.fault.kind == "SIGKILL":
            return
        lines = done.err.splitlines() or [""]
        result = (done.out.splitlines() or [""])[-1]
        if done.code not in self.kind.codes and (done.code or self.fault.moment.when == "during"):
            self.blame("outside", "exit code %s: %s" % (done.code, lines[-1]))
        if not result.startswith("result=%s mode=full " % ("failed" if done.code else "ok")):
            self.blame("outside", "result line %r" % result)
        if len(done.out.splitlines()) != 1:
            self.blame("outside", "%d lines on stdout" % len(done.out.splitlines()))
        if "Traceback" in done.err and not self.verbose:
            self.blame("outside", "a traceback")
        if done.code and not re.search(
                r" ERROR (app|warehouse|sync): .+\. Next: .+\bexit code %d\b" % done.code, lines[-1]):
            self.blame("outside", "last line %r" % lines[-1])
        is_its_own = self.fault.kind != "SIGSTOP, overtaken"
        if is_its_own and state == "new" and re.search("nothing was changed|rolled back", lines[-1]):
            self.blame("outside", "not true: %r" % lines[-1])

    def check_told(self, done: Done, state: str) -> None:
        if self.fault.kind == "SIGKILL":
            return
        if self.lane.told() != ["start", str(done.code)]:
            self.blame("unpinged", "the pings were %s" % self.lane.told())
        may_be_committed = self.fault.step == "COMMIT"  # then the history may have its row, or get it yet
        cut_off = self.kind.cuts_off_warehouse and "warehouse" in str(self.fault).split(" @ ")[0]
        if done.code and not may_be_committed and not cut_off and self.lane.recorded("failed") != 1:
            self.blame("unpinged", "the history has %d failed runs" % self.lane.recorded("failed"))
        if self.kind.loses_history and "this run is not in the run history" not in done.err:
            self.blame("unpinged", "it does not say that the history lacks it")

    def check_next_run(self) -> str:
        """Run again, undisturbed and not through the proxies. Returns its output."""
        done = self.lane.finish(self.lane.start({}, LONG_DEADLINE, "-v"))
        if done.code or "result=ok" not in done.out or self.lane.state("always") != "new":
            self.blame("lost", "the next run: exit %d, %s: %s" % (
                done.code, self.lane.state("always"), (done.err.splitlines() or [""])[-1]))
        return done.out + done.err


# Many faults


def try_all(lanes: List[Lane], faults: List[Fault],
            tell: Callable[[Verdict], None] = lambda verdict: None) -> List[Verdict]:
    """Try every fault, a thread a lane. Those that stop a server go to the last one, alone on its servers."""
    alone, shared = queue.Queue(), queue.Queue()  # type: ignore[var-annotated]
    for number, fault in enumerate(faults):
        (alone if KINDS[fault.kind].stops_server else shared).put((number, fault))
    verdicts, problems = [], []  # type: List[Verdict], List[str]

    def work(lane: Lane, queues: List[Any]) -> None:
        try:
            for number, fault in (item for one in queues for item in iter_queue(one)):
                verdict = Trial(lane, fault, verbose=bool(number % 2)).run()
                if set(verdict.wrong) == {"late"}:  # a busy machine may be, once
                    verdict = Trial(lane, fault, verbose=bool(number % 2)).run()
                verdicts.append(verdict)
                tell(verdict)
        except Exception:
            problems.append(traceback.format_exc())

    workers = [threading.Thread(target=work, args=(lane, [alone, shared] if lane is lanes[-1] else [shared]))
               for lane in lanes]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    finally:  # interrupted: what has begun is brought to its end, or its servers could not be stopped
        collections.deque(itertools.chain(iter_queue(alone), iter_queue(shared)), maxlen=0)
        for worker in workers:
            worker.join()
    if problems:
        raise RuntimeError("\n".join(problems))
    return verdicts


def iter_queue(items: Any) -> Iterator[Any]:
    while True:
        try:
            yield items.get_nowait()
        except queue.Empty:
            return


def summary(verdicts: List[Verdict]) -> Dict[str, int]:
    counts = {"faults": len(verdicts)}
    for state in ("old", "new"):
        counts[state] = sum(verdict.state == state for verdict in verdicts)
    for count in COUNTS:
        counts[count] = sum(count in verdict.wrong for verdict in verdicts)
    return counts


def is_clean(counts: Dict[str, int]) -> bool:
    return not any(counts[count] for count in COUNTS)


@contextlib.contextmanager
def fault_lanes(shared: int, lab: Optional[servers.Lab] = None) -> Iterator[List[Lane]]:
    """`shared` lanes on two servers, and one more on two of its own."""
    with contextlib.ExitStack() as stack:
        labs = [lab or stack.enter_context(new_lab()), stack.enter_context(new_lab())]
        names = ["%d" % number for number in range(shared)]
        yield ([stack.enter_context(Lane(labs[0], name)) for name in names]
               + [stack.enter_context(Lane(labs[1], "alone"))])


@contextlib.contextmanager
def new_lab() -> Iterator[servers.Lab]:
    with servers.two_servers(fsync="off", autovacuum="off") as lab:
        lab.set_up()
        yield lab


# Runs among writers


class Writers:
    """Sessions that change the app's table without end; one in two keeps its changes open across runs."""

    def __init__(self, lane: Lane, count: int = 4):
        self.lane, self.runs, self.ending = lane, 0, threading.Event()
        self.changes, self.problems = 0, []  # type: int, List[str]
        self.threads = [threading.Thread(target=self.write, args=(number,)) for number in range(count)]

    def __enter__(self) -> "Writers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join()

    def write(self, number: int) -> None:
        try:
            connection, chance = self.lane.connect("app"), random.Random(number)
            with contextlib.closing(connection):
                while not self.ending.is_set():
                    with connection.cursor() as cursor:
                        self.change(cursor, chance, number)
                    if number % 2:
                        self.stay_open(self.runs + 2)
                    (connection.rollback if chance.random() < 0.2 else connection.commit)()
                    self.changes += 1
                    self.ending.wait(0.01)
        except Exception:
            self.problems.append(traceback.format_exc())

    def stay_open(self, until_runs: int) -> None:
        while self.runs < until_runs and not self.ending.wait(0.02):
            pass

    def change(self, cursor: Any, chance: random.Random, number: int) -> None:
        """Each writer has athletes of its own, so that none waits for another's open transaction."""
        athlete = athlete_uuid(100000 * (number + 1) + chance.randrange(200))
        cursor.execute('DELETE FROM public."User" WHERE uuid = %s', (athlete,))
        if chance.random() < 0.8:
            cursor.execute('INSERT INTO public."User" (uuid, name) VALUES (%s, %s)',
                           (athlete, "%s %d" % (MARKER, chance.randrange(10 ** 6))))


def differences(lane: Lane) -> int:
    """How many athletes, of whom the app says one thing, the dimension has otherwise or not at all."""
    said = collections.defaultdict(set)  # type: Dict[str, Set[str]]
    for found, name in lane.sql("app", 'SELECT uuid, name FROM public."User" WHERE uuid LIKE \'%-%\''):
        said[found].add(name)
    known = dict(lane.sql("warehouse", "SELECT athlete_uuid::text, full_name FROM " + DIMENSION))
    return sum(names != {known.get(found)} for found, names in said.items()
               if len(names) == 1 and None not in names)


def run_among_writers(lane: Lane, runs: int) -> List[str]:
    """Sync again and again while others write, then once more. Returns what went wrong."""
    wrong = []
    lane.make_old_state()
    with Writers(lane) as writers:
        for _ in range(runs):
            wrong += wrong_of(lane)
            writers.runs += 1
    wrong += wrong_of(lane) + writers.problems
    if differences(lane):
        wrong.append("%d differences after the last run" % differences(lane))
    if writers.changes < runs:
        wrong.append("the writers made only %d changes" % writers.changes)
    return wrong


def wrong_of(lane: Lane) -> List[str]:
    # A slow machine may see many renamed between two runs; that is no accident here.
    done = lane.finish(lane.start({}, LONG_DEADLINE, SYNC_MAX_UPDATED_PERCENT="100"))
    if any(secret in done.out + done.err for secret in SECRETS):
        return ["a secret was printed"]
    return [] if done.code == 0 and "result=ok" in done.out else ["exit %d: %s" % (done.code, done.err)]


# Command line


def main() -> int:
    options = read_command_line()
    began = time.monotonic()
    with fault_lanes(options.lanes) as lanes:
        if options.writers:
            wrong = run_among_writers(lanes[0], options.writers)
            print("\n".join(wrong + ["runs=%d wrong=%d" % (options.writers + 1, len(wrong))]))
            return 1 if wrong else 0
        faults = chosen(matrix(record_all(lanes[0])), options)
        if options.list:
            print("\n".join(map(str, faults)))
            return 0
        verdicts = try_all(lanes, faults, lambda verdict: tell(verdict, options.verbose))
    counts = summary(verdicts)
    print("%d bytes of output searched for %d secrets, %.0f s" % (
        sum(len(verdict.output) for verdict in verdicts), len(SECRETS), time.monotonic() - began))
    print(" ".join("%s=%d" % item for item in counts.items()))
    return 0 if verdicts and is_clean(counts) else 1


def read_command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="only faults whose title has this in it")
    parser.add_argument("--limit", type=int, help="at most so many, chosen by chance")
    parser.add_argument("--seed", type=int, default=0, help="of that chance")
    parser.add_argument("--lanes", type=int, default=4, help="how many at a time, and one that stops servers")
    parser.add_argument("--list", action="store_true", help="list the faults; try none")
    parser.add_argument("--writers", type=int, metavar="RUNS", help="instead: so many runs among writers")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for every fault")
    return parser.parse_args()


def chosen(faults: List[Fault], options: argparse.Namespace) -> List[Fault]:
    faults = [fault for fault in faults if options.only.lower() in str(fault).lower()]
    random.Random(options.seed).shuffle(faults)
    return faults[:options.limit]


def tell(verdict: Verdict, verbose: bool) -> None:
    lines = [str(verdict)] if verbose or verdict.wrong else []
    lines += ["    " + line for line in verdict.done.err.splitlines() if verdict.wrong]
    sys.stdout.write("".join(line + "\n" for line in lines))  # at once; print() would mix with other lanes'
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
