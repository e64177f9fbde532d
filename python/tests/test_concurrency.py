"""Many at once: runs that are started together, and runs while others write to the app's table."""

from __future__ import annotations

import re
import time

import faults
import pytest
from conftest import ANN, BOB, RUN_MAY_TAKE, finish

RUNS = 20


def test_of_twenty_runs_started_at_once_one_writes_and_the_others_skip(world):
    world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"))
    world.warehouse_has((ANN, "Ann Before"))
    with world.warehouse.holding("LOCK TABLE analytics.athlete_dim IN EXCLUSIVE MODE"):
        processes = [world.start() for _ in range(RUNS)]
        running = wait_for_all_but_one(processes)  # which cannot end while the table is locked
        backend, since = world.warehouse.sql(
            "SELECT pid, extract(year FROM xact_start)::integer"
            "  FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted")[0]
    runs = {process: finish(process) for process in processes}
    winner = runs.pop(running)
    holder = r"warehouse: .*\b%d\b.*\b127\.0\.0\.1\b.*since .*%d-" % (backend, since)
    assert (winner.code, winner.result["result"]) == (0, "ok"), winner
    for run in runs.values():
        assert (run.code, run.result["result"]) == (0, "skipped"), run
        assert float(run.result["seconds"]) < 3, run
        assert re.search(holder, run.err), run
    assert world.dimension() == {ANN: "Ann Anders", BOB: "Bob Borg"}
    assert [row["result"] for row in world.history()].count("ok") == 1


def wait_for_all_but_one(processes):
    until = time.monotonic() + RUN_MAY_TAKE
    while True:
        running = [process for process in processes if process.poll() is None]
        if len(running) == 1:
            return running[0]
        assert running, "none of the runs was kept from ending: none wrote to the locked table"
        assert time.monotonic() < until, "%d runs neither wrote nor skipped" % len(running)
        time.sleep(0.05)


@pytest.fixture
def lane(lab):
    with faults.Lane(lab, "writers") as lane:
        yield lane


def test_among_writers_with_open_transactions_the_last_run_leaves_no_difference(lane):
    assert faults.run_among_writers(lane, 4) == []


def test_differences_are_noticed(lane):
    lane.make_old_state()
    assert faults.differences(lane) == sum(lane.old.get(found) != name for found, name in lane.names.items())
