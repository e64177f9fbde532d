"""A fixed selection of the fault matrix (see faults.py; make test-faults tries all of it).

Each row: what breaks, at which step of which side, at which of its moments, and the state in which the
dimension must be then. Everything else is the same for all: code and last line as DESIGN says, in time,
nothing left on the servers, no secret printed, and the next run mends it.
"""

from __future__ import annotations

import collections

import faults
import pytest

COPY_OUT, COPY_IN, UPSERT = "COPY (", "FROM STDIN", 'INSERT INTO "analytics"."athlete_dim"'
LOCK, STAGING, HISTORY = "advisory_xact_lock", "CREATE TEMP TABLE", "athlete_sync_run"

SELECTION = [
    # what breaks,        at which step,           when,     what is left
    ("app cut",           "app login",             "login",  "new"),  # it tries again
    ("app stopped",       "app login",             "before", "old"),
    ("warehouse cut",     "warehouse login",       "before", "new"),
    ("warehouse stalled", "warehouse login",       "after",  "old"),
    ("sync SIGTERM",      "warehouse login",       "login",  "old"),

    ("app killed",        "app " + COPY_OUT,       "before", "old"),
    ("app revoked",       "app " + COPY_OUT,       "before", "old"),
    ("app killed",        "app " + COPY_OUT,       "mid",    "old"),
    ("app stopped",       "app " + COPY_OUT,       "mid",    "old"),
    ("app cut",           "app " + COPY_OUT,       "mid",    "old"),
    ("app stalled",       "app " + COPY_OUT,       "mid",    "old"),
    ("app cancelled",     "app " + COPY_OUT,       "mid",    "old"),
    ("app timed out",     "app " + COPY_OUT,       "during", "old"),
    ("app killed, warehouse stalled", "app " + COPY_OUT, "mid", "old"),
    ("sync SIGKILL",      "app " + COPY_OUT,       "mid",    "old"),

    ("sync SIGKILL",      "warehouse " + LOCK,     "after",  "old"),
    ("warehouse revoked", "warehouse " + STAGING,  "before", "old"),
    ("warehouse killed",  "warehouse " + COPY_IN,  "mid",    "old"),
    ("warehouse cut",     "warehouse " + COPY_IN,  "mid",    "old"),
    ("warehouse stalled", "warehouse " + COPY_IN,  "mid",    "old"),
    ("warehouse cancelled", "warehouse " + COPY_IN, "mid",   "old"),
    ("app cut",           "warehouse " + COPY_IN,  "mid",    "old"),
    ("warehouse stopped", "warehouse " + COPY_IN,  "end",    "old"),

    ("warehouse table locked", "warehouse " + UPSERT, "before", "old"),
    ("warehouse row locked",   "warehouse " + UPSERT, "before", "old"),
    ("warehouse revoked",      "warehouse " + UPSERT, "before", "old"),
    ("warehouse temp files limited", "warehouse " + UPSERT, "before", "old"),
    ("warehouse killed",  "warehouse " + UPSERT,   "during", "old"),
    ("warehouse stopped", "warehouse " + UPSERT,   "during", "old"),
    ("warehouse frozen",  "warehouse " + UPSERT,   "during", "old"),
    ("warehouse cut",     "warehouse " + UPSERT,   "during", "old"),
    ("warehouse stalled", "warehouse " + UPSERT,   "during", "old"),
    ("warehouse stalled, SIGTERM", "warehouse " + UPSERT, "during", "old"),
    ("warehouse cancelled", "warehouse " + UPSERT, "during", "old"),
    ("warehouse slow",    "warehouse " + UPSERT,   "during", "old"),
    ("sync SIGTERM",      "warehouse " + UPSERT,   "during", "old"),
    ("sync SIGINT",       "warehouse " + UPSERT,   "during", "old"),
    ("sync SIGKILL",      "warehouse " + UPSERT,   "during", "old"),

    ("warehouse killed",  "warehouse " + HISTORY,  "after",  "old"),
    ("warehouse cut",     "warehouse COMMIT",      "before", "old"),
    ("warehouse cancelled", "warehouse COMMIT",    "during", "old"),
    ("sync SIGKILL",      "warehouse COMMIT",      "before", "new"),  # the COMMIT is on its way
    ("warehouse killed",  "warehouse COMMIT",      "after",  "new"),
    ("warehouse stopped", "warehouse COMMIT",      "after",  "new"),
    ("warehouse cut",     "warehouse COMMIT",      "after",  "new"),
    ("warehouse stalled", "warehouse COMMIT",      "after",  "new"),
    ("sync SIGTERM",      "warehouse COMMIT",      "after",  "new"),
]


def title(row):
    return " @ ".join(row[:2]) + " " + row[2]


@pytest.fixture(scope="module")
def lanes(lab):
    with faults.fault_lanes(3, lab) as lanes:
        yield lanes


@pytest.fixture(scope="module")
def places(lanes):
    return faults.record_all(lanes[0])


@pytest.fixture(scope="module")
def verdicts(lanes, places):
    """Every row's verdict, by its title; all are tried at once, because most of them wait."""
    chosen = {title(row): find(places, row) for row in SELECTION}
    by_fault = {verdict.fault: verdict for verdict in faults.try_all(lanes, list(chosen.values()))}
    return {title: by_fault[fault] for title, fault in chosen.items()}


def find(places, row):
    """The fault of the matrix that a row of the selection means: at the last step that fits."""
    what, at, when, _ = row
    side, step = at.split(" ", 1)
    fitting = [fault for fault in faults.matrix(places)
               if "%s %s" % (fault.side, fault.kind) == what and fault.moment.side == side
               and fault.moment.when == when and step in fault.step]
    assert fitting, "no step of the run fits %r" % title(row)
    return max(fitting, key=lambda fault: (fault.refresh == "always", fault.moment.index))


@pytest.mark.parametrize("row", SELECTION, ids=title)
def test_whatever_breaks_the_dimension_is_old_or_new_and_the_run_says_so(row, verdicts):
    verdict = verdicts[title(row)]
    assert not verdict.wrong, "%s\n%s" % (verdict, verdict.done.err)
    assert verdict.state == row[3], verdict


def test_the_matrix_breaks_every_step_before_and_after_it(places):
    whens = collections.defaultdict(set)
    kinds = set()
    matrix = faults.matrix(places)
    for fault in matrix:
        whens[fault.moment.side, fault.step].add(fault.moment.when)
        kinds.add(fault.kind)
    assert len(matrix) >= 200
    assert kinds == set(faults.KINDS)
    assert all({"before", "after"} <= moments for moments in whens.values())
    assert {side: sum(1 for at, _ in whens if at == side) for side in faults.SIDES}["warehouse"] >= 10


@pytest.mark.parametrize("change", [
    "UPDATE analytics.athlete_dim SET full_name = 'x' WHERE athlete_uuid = '%s'",
    "UPDATE analytics.athlete_dim SET source_synced_at = now() WHERE athlete_uuid = '%s'",
    "DELETE FROM analytics.athlete_dim WHERE athlete_uuid = '%s'",
    "INSERT INTO analytics.athlete_dim VALUES (overlay('%s' PLACING 'f' FROM 1)::uuid, 'x')",
], ids=["renamed", "stamped", "deleted", "inserted"])
def test_a_dimension_that_is_neither_old_nor_new_is_noticed(lanes, change):
    lanes[0].make_old_state()
    assert lanes[0].state("always") == "old"
    lanes[0].sql("warehouse", change % faults.athlete_uuid(0))
    assert lanes[0].state("always") == "partial"


def test_what_a_run_leaves_on_a_server_is_noticed(lanes):
    lane = lanes[0]
    assert lane.leftovers() == []
    lane.hold("SET LOCAL ROLE warehouse_writer; CREATE TEMP TABLE left_over ();"
              "SELECT pg_advisory_xact_lock(1)")
    left = " ".join(lane.leftovers())
    lane.holder.rollback()
    assert "lock of %d" % lane.holder.info.backend_pid in left
    assert lane.leftovers() == []
