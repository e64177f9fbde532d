#!/usr/bin/env python3
"""The fault matrix: break each step of a run in every way known, and look at what is left.

  python python/tests/faults.py                           the whole matrix; make test-faults
  python python/tests/faults.py --only 'app cut' --limit 20 --seed 7

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
import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from conftest import LONG_AGO, Side, World, finish
from lab import servers
from pings import PingServer
from proxy import SLOW, Proxy

SIDES = ("app", "warehouse")
OURS = "FROM pg_stat_activity WHERE usename IN ('app_readonly', 'warehouse_writer')"
MARKER = "Planted-Name"
SECRETS = (MARKER, servers.SUPERUSER_PASSWORD, servers.READER_PASSWORD, servers.WRITER_PASSWORD)
COUNTS = ("partial", "lost", "leftovers", "outside", "unpinged", "late")
SHORT_DEADLINE, LONG_DEADLINE = 5, 600  # where the run waits for its end, and where it must not
MOST_SECONDS = 45  # what no run takes whose deadline is not the point
SECONDS_AFTER_DEADLINE, SECONDS_AFTER_SIGNAL, SECONDS_FOR_LEFTOVERS = 8, 7, 30

# Of ten athletes six are known, two renamed, two new; and what is rejected, and what is repeated. The names are long,
# so that a COPY does not fit into the buffers on its way.
FILL = {"app": """
INSERT INTO public."User" (uuid, name)
SELECT %(uuid)s, %(name)s || CASE WHEN n %% 10 < 6 THEN '' ELSE ' anew' END FROM generate_series(0, 1999) AS n;
UPDATE public."User" SET name = NULL WHERE uuid = '10000000-0000-4000-8000-000000000010';
INSERT INTO public."User" (uuid, name) VALUES (NULL, 'Planted-Name without'), ('no uuid', 'Planted-Name no uuid');
INSERT INTO public."User" (uuid, name)
SELECT %(uuid)s, %(name)s || CASE WHEN n = 30 THEN ' in conflict' ELSE '' END FROM unnest('{20, 30}'::int[]) AS n;
""", "warehouse": """
CREATE TABLE public.old AS
SELECT %(uuid)s::uuid AS athlete_uuid, %(name)s AS full_name, %(long_ago)s::timestamptz AS source_synced_at
  FROM generate_series(0, 2099) AS n
 WHERE n %% 10 < 8 OR n >= 2000
"""}
FILL_WITH = {"uuid": "('10000000-0000-4000-8000-' || lpad(n::text, 12, '0'))",
             "name": "'%s ' || n || repeat('é', 1500)" % MARKER, "long_ago": "'%s'" % LONG_AGO}
FIRST_UUID = "10000000-0000-4000-8000-000000000000"
LOCK_ROW = "SELECT 1 FROM analytics.athlete_dim WHERE athlete_uuid = '%s' FOR UPDATE" % FIRST_UUID
# Each athlete of whom the app says one thing.
GOOD_NAMES = """
SELECT uuid, min(name) FROM public."User" WHERE uuid LIKE '%-%'
 GROUP BY uuid HAVING count(*) = count(name) AND min(name) = max(name)
"""
# What is aborted holds no lock and no snapshot; before PostgreSQL 17 nothing but its network ends it.
LEFTOVERS = """
SELECT concat_ws(' ', 'backend', pid, state) """ + OURS + """ AND state <> 'idle'
   AND (state <> 'idle in transaction (aborted)' OR current_setting('server_version_num')::integer >= 170000)
 UNION ALL
SELECT 'lock of ' || pid FROM pg_locks WHERE locktype = 'advisory'
 UNION ALL
SELECT relname FROM pg_class WHERE relpersistence = 't'
"""
# A run has five seconds more to end by itself. From PostgreSQL 17 on, the server may have ended it before.
AT_WORK_IN_TIME = "SELECT 1 %s AND xact_start > now() - interval '%d.5 s'" % (OURS, SHORT_DEADLINE + 5)
# Before PostgreSQL 13 only what begins or ends a transaction sets the clock by a new statement_timeout.
TIMES_OUT = b"SET LOCAL statement_timeout = 100; SAVEPOINT timed_out; " + SLOW
PRIVILEGES = {
    "app": 'SELECT ON public."User" {} app_readonly',
    "warehouse": "SELECT, INSERT, UPDATE ON analytics.athlete_dim {} warehouse_writer",
}


# Where there is something to break, and what is broken there


# A moment of the recorded run (see proxy.py), its step, and which sides were connected then.
Place = namedtuple("Place", "side index when step connected")


class Fault(namedtuple("Fault", "kind side place")):
    """What breaks a run there; `side` is what is broken, "sync" the script itself."""

    def __str__(self):
        return "%s %s @ %s %d %s %s" % (self.side, self.kind, *self.place[:3], self.place.step[:50])


def matrix(places):
    """What can break at each moment, and would be noticed there or later."""
    return [Fault(kind, side, place) for number, place in enumerate(places)
            for is_possible, side, kinds in faults_at(place, [later.step for later in places[number:]])
            if is_possible for kind in kinds]


def faults_at(place, ahead):
    here, when, there = place.side, place.when, SIDES[place.side == "app"]
    at_work, is_connected = when in ("during", "mid"), there in place.connected
    writes = re.search("(^|; )(COPY|CREATE|INSERT|COMMIT)", place.step)
    # From the step that takes the lock, which is ahead no more, to COMMIT.
    has_lock = (place.step != "login" or here == "app") and not any("advisory_xact_lock" in step for step in ahead)
    will_write = here == "warehouse" and when == "before" and any(
        re.match(r'INSERT INTO "?analytics"?\."?athlete_dim\b', step) for step in ahead)
    return [
        (True, "sync", ["SIGTERM", "SIGKILL"] + ["SIGINT", "SIGHUP"] * bool(at_work and writes)),
        (True, here, ["cut", "stalled", "stopped"]),
        (place.step != "login" or when == "after", here, ["killed"]),
        (is_connected and when == "before", there, ["killed"]),
        (is_connected and when in ("mid", "end"), there, ["killed", "cut", "stalled", "stopped"]),
        (at_work or when == "login", here, ["stalled, SIGTERM"]),
        (at_work, here, ["cancelled"]),
        (at_work and writes, here, ["frozen"]),
        (when == "during", here, ["timed out", "slow"]),
        (has_lock and when in ("before", "mid", "end"), "sync", ["SIGSTOP, overtaken"]),
        (here == "app" and when in ("mid", "end"), "app", ["killed, warehouse stalled"]),
        (when in ("before", "after"), here, ["revoked"]),
        (will_write, here, ["row locked", "history locked"]),
        (will_write and any("EXPLAIN INSERT" in step for step in ahead), here, ["table locked"]),  # until it locks it
    ]


def record(lane):
    """Run once, undisturbed, and list every moment it went through."""
    places, writing = [], threading.Lock()

    def note(moment):
        with writing:
            connected = tuple(side for side in SIDES if lane.proxies[side].is_in_use())
            places.append(Place(*moment, lane.proxies[moment.side].steps[moment.index], connected))
            if moment.when == "before" and not has_no_timeouts(places[-1].step):  # while a statement is carried out
                places.append(places[-1]._replace(when="during"))

    lane.make_old_state()
    for proxy in lane.proxies.values():
        proxy.reset(note)
    run = lane.finish(lane.start(**lane.ports))
    if run.code or lane.state() != "new":
        raise RuntimeError("the undisturbed run failed: %r" % run)
    return places


def has_no_timeouts(step):
    """Whether a step comes before the run has told the server when to give up by itself, or tells it so."""
    return re.search("^login|^BEGIN|SET LOCAL statement_timeout", step) is not None


class Lane:
    """Two servers, with a state from which every kind of change is made, and a proxy before each."""

    def __init__(self, lab):
        self.sides = {side: Side(getattr(lab, side)) for side in SIDES}
        self.proxies = {side: Proxy(side, server.server.port) for side, server in self.sides.items()}
        self.ports = {"APP_PORT": str(self.proxies["app"].port), "WH_PORT": str(self.proxies["warehouse"].port)}
        self.world, self.pings = World(lab, *self.sides.values(), script=None), PingServer()
        for side in SIDES:
            self.sql(side, FILL[side] % FILL_WITH)
        self.old = dict(self.sql("warehouse", "SELECT athlete_uuid::text, full_name FROM public.old"))
        self.names = dict(self.sql("app", GOOD_NAMES))
        self.app_before = self.app_hash()

    def close(self):
        for proxy in self.proxies.values():
            proxy.__exit__()
        self.pings.close()

    def sql(self, side, statement):
        return self.sides[side].sql(statement)

    def make_old_state(self):
        self.sql("warehouse", "BEGIN; TRUNCATE analytics.athlete_dim, analytics.athlete_sync_run;"
                              "INSERT INTO analytics.athlete_dim TABLE public.old; COMMIT")

    def app_hash(self):
        return self.sides["app"].rows_hash('public."User"')

    def state(self):
        """Compare every row with the old state and the new one, in which whom the app names has a new stamp."""
        rows = self.sql("warehouse", "SELECT athlete_uuid::text, full_name, source_synced_at,"
                                     " source_synced_at <> '%s' FROM analytics.athlete_dim" % LONG_AGO)
        names = {found: name for found, name, _, _ in rows}
        stamps = {found: stamp for found, _, stamp, is_new in rows if is_new}
        if names == self.old and not stamps:
            return "old"
        is_new = names == dict(self.old, **self.names) and set(stamps) == set(self.names)
        return "new" if is_new and len(set(stamps.values())) == 1 else "partial"

    def recorded(self, result):
        return self.sides["warehouse"].value(
            "SELECT count(*) FROM analytics.athlete_sync_run WHERE result = %s", result)

    def leftovers(self):
        return ["%s: %s" % (side, what) for side in SIDES for what, in self.sql(side, LEFTOVERS)]

    def start(self, *flags, deadline=LONG_DEADLINE, **settings):
        return self.world.start(*flags, SYNC_DEADLINE=str(deadline), **settings)

    def finish(self, process):
        try:
            return finish(process, MOST_SECONDS)
        except subprocess.TimeoutExpired:  # it does not end; its code is then -9
            process.kill()
            return finish(process)


class Trial:
    """One fault, from the old state to the verdict: `wrong` says what is wrong, by one of COUNTS."""

    def __init__(self, lane, fault, verbose):
        self.lane, self.fault, self.place, self.verbose = lane, fault, fault.place, verbose
        self.kind, self.side, self.proxy = KINDS[fault.kind], lane.sides.get(fault.side), lane.proxies.get(fault.side)
        self.started, self.has_struck, self.held = threading.Event(), threading.Event(), contextlib.ExitStack()
        self.failure = self.connected = self.signalled = None
        self.wrong = {}

    def __str__(self):
        return "%s -> %s, exit %s: %s" % (self.fault, self.state, self.run.code, "; ".join(
            "%s: %s" % item for item in sorted(self.wrong.items())) + "\n" + self.run.err if self.wrong else "well")

    def send_signal(self, number):
        self.signalled = time.monotonic()
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(10)

    def kill_backends(self):
        self.side.sql("SELECT pg_terminate_backend(pid) " + OURS)
        servers.wait_until(lambda: not self.side.sql("SELECT 1 " + OURS), "the backend's end", 10)

    def start_server(self):
        self.side.server.start()
        self.side.reconnect()

    def signal_server(self, number):
        """Send a signal to the postmaster, so that nobody new appears, and then to its children."""
        postmaster = (self.side.server.data / "postmaster.pid").read_text().splitlines()[0]
        os.kill(int(postmaster), number)
        for line in subprocess.check_output(["ps", "-A", "-o", "pid=,ppid="], encoding="ascii").splitlines():
            pid, parent = line.split()
            if parent == postmaster:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), number)

    def heal(self):
        for proxy in self.lane.proxies.values():
            proxy.stalled = False
            proxy.cut()

    def freeze_and_overtake(self):
        """Stop the script, as by kill -STOP, until the next run has ended its transaction; then let it go on."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            servers.wait_until(lambda: not self.lane.sql("warehouse", AT_WORK_IN_TIME), "the run to be overdue", 30)
            overtaker = self.lane.finish(self.lane.start())
        finally:
            self.process.send_signal(signal.SIGCONT)
        if overtaker.code or "result=ok" not in overtaker.out:
            raise RuntimeError("the next run did not take the lock: %r" % overtaker)

    def cancel(self):
        for pid in self.proxy.backends():
            self.side.sql("SELECT pg_cancel_backend(%s)", pid)

    def hold(self, statement):
        """Run it in a transaction that stays open, until `held` is closed."""
        self.held.enter_context(self.side.holding(statement))

    def hold_it(self):
        self.lane.make_old_state()
        self.arm()
        began = time.monotonic()
        self.process = self.lane.start(*["-v"] * self.verbose, deadline=self.kind.deadline,
                                       SYNC_PING_URL=self.lane.pings.url, **self.lane.ports)
        self.started.set()
        self.run, self.ended = self.lane.finish(self.process), time.monotonic()
        self.blame_if(self.failure, "outside", "the fault itself failed: %s" % self.failure)
        self.blame_if(not self.has_struck.is_set(), "outside", "the run never came to this step")
        self.check_time(self.connected or began)  # Python's own start, seconds on a busy machine, is not the run's
        self.clear_up()
        self.check_state()
        if self.fault.kind != "SIGKILL":
            self.check_contract()
            self.check_told()
        self.check_next_run()
        return self

    def blame_if(self, is_so, count, what):
        if is_so:
            self.wrong[count] = "%s, %s" % (self.wrong[count], what) if count in self.wrong else what

    def arm(self):
        slow = TIMES_OUT if self.fault.kind == "timed out" else SLOW
        if self.lane.sides[self.place.side].connection.server_version < 140000:
            slow = slow.replace(b"3600", b"20")  # at work it will not notice that its client has gone
        self.lane.pings.told.clear()
        for proxy in self.lane.proxies.values():
            proxy.reset(self.strike, self.place[:3] if self.place.when == "during" else None, slow)

    def strike(self, moment):
        """Called by the proxy at every moment; what it holds back goes on when this returns."""
        self.connected = self.connected or time.monotonic()
        if moment != self.place[:3] or self.has_struck.is_set():
            return
        self.has_struck.set()
        try:
            self.started.wait()
            if moment.when == "during" and self.fault.kind != "timed out":
                servers.wait_until(self.is_at_work, "the slow statement", 10)
            self.kind.do(self)
        except Exception:
            self.failure = traceback.format_exc()

    def is_at_work(self):
        return self.lane.sides[self.place.side].sql(
            "SELECT 1 FROM pg_stat_activity WHERE query ~ 'pg_sleep[(]' AND state = 'active' AND pid = ANY(%s)",
            self.lane.proxies[self.place.side].backends())

    def check_time(self, began):
        seconds = self.ended - began
        most = self.kind.deadline + SECONDS_AFTER_DEADLINE if self.kind.waits else MOST_SECONDS
        self.blame_if(seconds > most, "late", "%.1f s" % seconds)
        after_signal = self.ended - (self.signalled or self.ended)
        self.blame_if(after_signal > SECONDS_AFTER_SIGNAL, "late", "%.1f s after the signal" % after_signal)

    def clear_up(self):
        """Look for leftovers, if it can be while the fault lasts, and undo the fault."""
        # A server that waits for COPY data minds no time-out of the run's, only its network's.
        lasts = (self.kind.waits and self.fault.kind != "frozen" and not has_no_timeouts(self.place.step)
                 and self.place.when not in ("mid", "end"))
        steps = [self.check_leftovers, lambda: self.has_struck.is_set() and self.kind.mend(self)]
        for step in steps if lasts else reversed(steps):
            step()

    def check_leftovers(self):
        with contextlib.suppress(RuntimeError):
            servers.wait_until(lambda: not self.lane.leftovers(), "nothing to be left",
                               self.ended + SECONDS_FOR_LEFTOVERS - time.monotonic())
        left = self.lane.leftovers()
        self.blame_if(left, "leftovers", "; ".join(left))
        for side in SIDES if left else ():
            self.lane.sql(side, "SELECT pg_terminate_backend(pid) " + OURS)
        servers.wait_until(lambda: not self.lane.leftovers(), "the end of what was left", 10)

    def check_state(self):
        self.state, good_runs = self.lane.state(), self.lane.recorded("ok")
        self.blame_if(self.state == "partial", "partial", "the dimension is neither old nor new")
        self.blame_if(good_runs != (self.state == "new" and self.fault.kind != "history locked"), "partial",
                      "the history has %d good runs" % good_runs)
        self.blame_if(self.run.code == 0 and self.state != "new", "lost", "ok, and the dimension is " + self.state)
        self.blame_if(self.lane.app_hash() != self.lane.app_before, "lost", "the app's table was changed")

    def check_contract(self):
        code, out, last = self.run.code, self.run.out, (self.run.err.splitlines() or [""])[-1]
        may_be_ok = self.place.when != "during"
        failure = r" ERROR (app|warehouse|sync): .+\. Next: .+\bexit code %d\b" % code
        was_written_by_it = self.state == "new" and self.fault.kind != "SIGSTOP, overtaken"
        for is_wrong, what in [
                (code != self.kind.code and (code or not may_be_ok), "exit code %s: %s" % (code, last)),
                (not re.match("result=%s mode=full .*\n$" % ("failed" if code else "ok"), out), "stdout %r" % out),
                # psycopg2 prints one itself, where the server's last word reaches libpq as a notice beside an error.
                (not self.verbose and "Traceback" in self.run.err and "utf_8_decode" not in self.run.err,
                 "a traceback"),
                (code and not re.search(failure, last), "last line %r" % last),
                (self.run.err.count(" ERROR ") != bool(code), "not told once"),
                (was_written_by_it and re.search("nothing was changed|rolled back", last), "not true: %r" % last)]:
            self.blame_if(is_wrong, "outside", what)

    def check_told(self):
        told = [path.split("/")[-1] for path, _ in self.lane.pings.told]
        self.blame_if(told != ["start", str(self.run.code)], "unpinged", "the pings were %s" % told)
        may_be_committed = self.place.step == "COMMIT"  # then the history may have its row, or get it yet
        is_cut_off = self.kind.cuts_off and "warehouse" in str(self.fault).split(" @ ")[0]
        failed = self.lane.recorded("failed")
        self.blame_if(self.run.code and not may_be_committed and not is_cut_off and failed != 1, "unpinged",
                      "the history has %d failed runs" % failed)
        says_so, is_locked = "not in the run history" in self.run.err, self.fault.kind == "history locked"
        self.blame_if(says_so and failed or is_locked and not says_so, "unpinged", "nor is that told as it is")

    def check_next_run(self):
        """Run again, undisturbed and not through the proxies."""
        run = self.lane.finish(self.lane.start("-v"))
        is_new = self.lane.state() == "new"
        self.blame_if(run.code or "result=ok" not in run.out or not is_new, "lost", "the next run: %r" % run)
        output = self.run.out + self.run.err + run.out + run.err
        self.blame_if(any(secret in output for secret in SECRETS), "outside", "a secret was printed")


def nothing(_):
    """Slow is fault enough; and most faults are over with the run."""


# A way to break a run: what it does; the exit code it may end with, beside 0; what mends it, once the run has ended.
# One that `waits` can end only by its deadline. If it `cuts_off` the warehouse, the history is out of reach until then.
Kind = namedtuple("Kind", "do code mend waits deadline cuts_off", defaults=(nothing, False, LONG_DEADLINE, False))
WAITS = dict(waits=True, deadline=SHORT_DEADLINE)
KINDS = {
    "killed": Kind(Trial.kill_backends, 2),
    "stopped": Kind(lambda it: it.side.server.stop("immediate"), 2, Trial.start_server, cuts_off=True),
    "frozen": Kind(lambda it: it.signal_server(signal.SIGSTOP), 2,
                   lambda it: it.signal_server(signal.SIGCONT), **WAITS, cuts_off=True),
    "cut": Kind(lambda it: it.proxy.cut(), 2),
    "stalled": Kind(lambda it: it.proxy.stall(), 2, Trial.heal, **WAITS, cuts_off=True),
    "killed, warehouse stalled": Kind(
        lambda it: [it.kill_backends(), it.lane.proxies["warehouse"].stall()], 2, Trial.heal, **WAITS, cuts_off=True),
    "stalled, SIGTERM": Kind(
        lambda it: [it.proxy.stall(), it.send_signal(signal.SIGTERM)], 4, Trial.heal, cuts_off=True),
    "SIGTERM": Kind(lambda it: it.send_signal(signal.SIGTERM), 4),
    "SIGINT": Kind(lambda it: it.send_signal(signal.SIGINT), 4),
    "SIGHUP": Kind(lambda it: it.send_signal(signal.SIGHUP), 4),
    "SIGKILL": Kind(lambda it: it.send_signal(signal.SIGKILL), -9),
    "SIGSTOP, overtaken": Kind(Trial.freeze_and_overtake, 2, deadline=SHORT_DEADLINE),
    "cancelled": Kind(Trial.cancel, 3),
    "timed out": Kind(nothing, 3),
    "slow": Kind(nothing, 2, **WAITS),
    "table locked": Kind(lambda it: it.hold("LOCK TABLE analytics.athlete_dim IN EXCLUSIVE MODE NOWAIT"), 2,
                         lambda it: it.held.close(), **WAITS),
    "row locked": Kind(lambda it: it.hold(LOCK_ROW), 2, lambda it: it.held.close(), **WAITS),
    "history locked": Kind(lambda it: it.hold("LOCK TABLE analytics.athlete_sync_run IN EXCLUSIVE MODE NOWAIT"), 0,
                           lambda it: it.held.close()),
    "revoked": Kind(lambda it: it.side.sql("REVOKE " + PRIVILEGES[it.fault.side].format("FROM")), 3,
                    lambda it: it.side.sql("GRANT " + PRIVILEGES[it.fault.side].format("TO"))),
}


# Many faults


def try_all(lanes, faults, tell=lambda trial: None):
    """Try every fault, as many at a time as there are lanes. Interrupted, it brings to its end what has begun."""
    free = list(lanes)

    def try_one(fault, verbose):
        lane = free.pop()
        trial = Trial(lane, fault, verbose).hold_it()
        if set(trial.wrong) == {"late"}:  # a busy machine may be, once
            trial = Trial(lane, fault, verbose).hold_it()
        free.append(lane)
        tell(trial)
        return trial

    with ThreadPoolExecutor(len(lanes)) as pool:
        return list(pool.map(try_one, faults, itertools.cycle((False, True))))


@contextlib.contextmanager
def fault_lanes(count):
    """Each on servers of its own, because a fault may stop them."""
    with contextlib.ExitStack() as stack:
        labs = [stack.enter_context(servers.two_servers(fsync="off", autovacuum="off")) for _ in range(count)]
        for lab in labs:
            lab.set_up()
        yield [stack.enter_context(contextlib.closing(Lane(lab))) for lab in labs]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="only faults whose title has this in it")
    parser.add_argument("--limit", type=int, help="at most so many, chosen by chance")
    parser.add_argument("--seed", type=int, default=0, help="of that chance")
    options = parser.parse_args()
    with fault_lanes(3) as lanes:
        faults = [fault for fault in matrix(record(lanes[0])) if options.only.lower() in str(fault).lower()]
        random.Random(options.seed).shuffle(faults)
        # At once; print() would mix with other lanes'.
        trials = try_all(lanes, faults[:options.limit], lambda trial: sys.stdout.write("%s\n" % trial))
    counts = [("faults", len(trials))] + [(state, sum(trial.state == state for trial in trials))
                                          for state in ("old", "new")]
    counts += [(count, sum(count in trial.wrong for trial in trials)) for count in COUNTS]
    print(" ".join("%s=%d" % item for item in counts))
    return not trials or any(trial.wrong for trial in trials)


if __name__ == "__main__":
    raise SystemExit(main())
