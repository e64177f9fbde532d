"""A fixed selection of the fault matrix (see faults.py; make test-faults tries all of it).

Each row: at which step of which side, at which of its moments, the state in which the dimension must be then, and
what breaks. Everything else is the same for all: code and last line as DESIGN says, in time, nothing left on the
servers, no secret printed, and the next run mends it.
"""

from __future__ import annotations

import collections
import re

import faults
import pytest

SELECTION = [(step, when, state, fault) for step, when, state, broken in [
    ("app login", "login", "new", ["app cut"]),  # it tries again
    ("app login", "before", "old", ["app stopped"]),
    ("warehouse login", "before", "new", ["warehouse cut"]),
    ("warehouse login", "after", "old", ["warehouse stalled"]),
    ("warehouse login", "login", "old", ["sync SIGTERM"]),
    ("app ^COPY", "before", "old", ["app killed", "app revoked"]),
    ("app ^COPY", "mid", "old", ["app killed", "app stopped", "app cut", "app stalled", "app cancelled",
                                  "app killed, warehouse stalled", "sync SIGKILL"]),
    ("app ^COPY", "during", "old", ["app timed out"]),
    ("warehouse advisory_xact_lock", "after", "old", ["sync SIGKILL"]),
    ("warehouse CREATE TEMP TABLE", "before", "old", ["warehouse revoked"]),
    ("warehouse FROM STDIN", "mid", "old", ["warehouse killed", "warehouse cut", "warehouse stalled",
                                            "warehouse cancelled", "app cut"]),
    ("warehouse FROM STDIN", "mid", "new", ["sync SIGSTOP, overtaken"]),
    ("warehouse FROM STDIN", "end", "old", ["warehouse stopped"]),
    ("warehouse EXPLAIN INSERT", "before", "old", ["warehouse table locked"]),
    ('warehouse ^INSERT INTO "analytics"', "before", "old", ["warehouse row locked", "warehouse revoked"]),
    ('warehouse ^INSERT INTO "analytics"', "before", "new", ["warehouse history locked"]),
    ('warehouse ^INSERT INTO "analytics"', "during", "old", [
        "warehouse killed", "warehouse stopped", "warehouse frozen", "warehouse cut", "warehouse stalled",
        "warehouse stalled, SIGTERM", "warehouse cancelled", "warehouse slow", "sync SIGTERM", "sync SIGINT",
        "sync SIGKILL"]),
    ("warehouse athlete_sync_run", "after", "old", ["warehouse killed"]),
    ("warehouse COMMIT", "before", "old", ["warehouse cut"]),
    ("warehouse COMMIT", "before", "new", ["sync SIGKILL"]),  # the COMMIT is on its way
    ("warehouse COMMIT", "during", "old", ["warehouse cancelled", "warehouse slow", "sync SIGTERM"]),
    ("warehouse COMMIT", "after", "new", ["warehouse killed", "warehouse stopped", "warehouse cut",
                                          "warehouse stalled", "sync SIGTERM"]),
] for fault in broken]


def title(row):
    return "%s @ %s %s" % (row[3], row[0], row[1])


@pytest.fixture(scope="module")
def lanes():
    with faults.fault_lanes(4) as lanes:
        yield lanes


@pytest.fixture(scope="module")
def places(lanes):
    return faults.record(lanes[0])


@pytest.fixture(scope="module")
def trials(lanes, places):
    """By title; all are tried at once, because most of them wait."""
    return dict(zip(map(title, SELECTION), faults.try_all(lanes, [find(places, *row) for row in SELECTION])))


def find(places, at, when, _, broken):
    """The fault of the matrix that a row of the selection means: at the last step that fits."""
    side, step = at.split(" ", 1)
    fitting = [fault for fault in faults.matrix(places) if "%s %s" % (fault.side, fault.kind) == broken
               and (fault.place.side, fault.place.when) == (side, when) and re.search(step, fault.place.step)]
    assert fitting, "no step of the run fits: %s at %s" % (broken, at)
    return max(fitting, key=lambda fault: fault.place.index)


@pytest.mark.parametrize("row", SELECTION, ids=title)
def test_whatever_breaks_the_dimension_is_old_or_new_and_the_run_says_so(row, trials):
    trial = trials[title(row)]
    assert not trial.wrong and trial.state == row[2], "%s\n%s" % (trial, trial.run.err)


def test_the_matrix_breaks_every_step_before_and_after_it_in_every_way(places):
    whens, matrix = collections.defaultdict(set), faults.matrix(places)
    for fault in matrix:
        whens[fault.place.side, fault.place.step].add(fault.place.when)
    assert len(matrix) >= 200 and {fault.kind for fault in matrix} == set(faults.KINDS)
    assert all({"before", "after"} <= moments for moments in whens.values())
    assert sum(side == "warehouse" for side, _ in whens) >= 10


@pytest.mark.parametrize("change", [
    "UPDATE analytics.athlete_dim SET full_name = 'x' WHERE athlete_uuid = '%s'",
    "UPDATE analytics.athlete_dim SET source_synced_at = now() WHERE athlete_uuid = '%s'",
    "DELETE FROM analytics.athlete_dim WHERE athlete_uuid = '%s'",
    "INSERT INTO analytics.athlete_dim VALUES (overlay('%s' PLACING 'f' FROM 1)::uuid, 'x')"])
def test_what_is_neither_old_nor_new_is_noticed_and_what_is_left(lanes, change):
    lane = lanes[0]
    lane.make_old_state()
    assert (lane.state(), lane.leftovers()) == ("old", [])
    lane.sql("warehouse", change % faults.FIRST_UUID)
    assert lane.state() == "partial"
    with lane.sides["warehouse"].holding("SELECT pg_advisory_xact_lock(1)") as holder:
        assert lane.leftovers() == ["warehouse: lock of %d" % holder.connection.info.backend_pid]
