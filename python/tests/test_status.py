"""What a run leaves to be read later: --status with its view, the run history, and the ping."""

from __future__ import annotations

import json
import platform

import pytest
from conftest import ANN, HISTORY, HOLD_THE_LOCK, RENAMES, arguments, finish, run_in_process, trigger
from pings import TOKEN, ping_server


def status(world, **settings):
    """What --status --json says, on which the text and the exit codes have to agree; it changes nothing."""
    before = world.app.snapshot(), world.warehouse.snapshot()
    text, as_json = (run_in_process(world.script, arguments(["--status"] + more), world.environment(settings))
                     for more in ([], ["--json"]))
    assert (world.app.snapshot(), world.warehouse.snapshot()) == before
    health = json.loads(as_json.out)
    assert text.code == as_json.code == health["exit_code"] == (0 if health["verdict"] == "healthy" else 3), text
    assert text.out.splitlines()[0] == health["verdict"]
    viewed = world.warehouse.value("SELECT min(verdict) FROM analytics.athlete_sync_health WHERE target ~ 'athlete'")
    return dict(health, text=text.out, viewed=viewed or "never ran")


KINDS = {"ok": ("ok", 3, 0), "failed": ("failed", None, None), "skipped": ("skipped", None, None),
         "idle": ("ok", 0, None), "emptied": ("ok", 0, 3), "all-empty": ("ok", 0, 0)}  # result, source_rows, missing


def happened(world, *runs, seconds=1, target="analytics.athlete_dim", message=None):
    """Write runs into the history, such as "full ok 3d": one that went well three days ago."""
    for mode, kind, ago in map(str.split, runs):
        world.warehouse.sql("""
            INSERT INTO analytics.athlete_sync_run (target, started_at, finished_at, mode, result, source_rows, missing,
                                                    message, exit_code, rejects, version, max_age)
            VALUES (%s, now() - %s::interval - %s * interval '1s', now() - %s::interval, %s, %s, %s, %s,
                    %s, 0, '[]', '', '2d')""", target, ago, seconds, ago, mode, *KINDS[kind], message)


VERDICTS = {  # what happened, oldest first -> the verdict
    "": "never ran", "full skipped 1h": "never ran", "full ok 47h": "healthy", "full ok 49h": "stale",
    "full failed 1h": "failing", "full ok 9d, full failed 8d": "failing", "full failed 2h, full ok 1h": "healthy",
    "full ok 3d, full skipped 1h": "stale", "full ok 3h, full failed 2h, full skipped 1h": "failing",
    "full ok 9d, incremental ok 1m": "stale", "incremental ok 1m": "stale",
    "full emptied 9d, full skipped 1h": "app is empty", "full emptied 2h, incremental idle 1h": "app is empty",
    "full emptied 2h, full failed 1h": "failing", "full emptied 2h, full ok 1h": "healthy",
    "full emptied 2h, incremental ok 1h": "healthy", "full emptied 3h, full all-empty 2h": "healthy"}


@pytest.mark.parametrize("runs", list(VERDICTS))
def test_status_and_the_view_agree(world, runs):
    happened(world, *filter(None, runs.split(", ")))
    happened(world, "full ok 0m", "full failed 0m", target="analytics.coach_dim")
    assert [status(world)[said] for said in ("verdict", "viewed")] == [VERDICTS[runs]] * 2


def test_the_verdict_after_true_runs(world):
    world.app_has((ANN, "Ann Archer"), ("x", "Bob Bowman"))
    said = [status(world)["verdict"]]
    for flags in ([], ["--strict"], ["--dry-run"], []):
        world.sync(*flags)
        said.append(status(world)["verdict"])
    with world.warehouse.holding(HOLD_THE_LOCK) as holder:
        world.sync()
        health, backend = status(world), "backend %d " % holder.value("SELECT pg_backend_pid()")
    assert backend in health["running"] and backend in health["text"] and status(world)["running"] is None
    world.app.sql('TRUNCATE public."User"')
    world.sync()
    assert said + [health["verdict"], status(world)["verdict"]] == [
        "never ran", "healthy", "failing", "failing", "healthy", "healthy", "app is empty"]


def test_the_shorter_of_two_ages_counts(world):
    world.app_has((ANN, "Ann Archer"))
    world.sync(SYNC_MAX_AGE="7d")
    world.warehouse.sql("UPDATE analytics.athlete_sync_run SET finished_at = now() - interval '2d'")
    said = [status(world, SYNC_MAX_AGE=here) for here in ("7d", "1d")]
    world.warehouse.sql("UPDATE analytics.athlete_sync_run SET max_age = '1d'")
    assert [(one["viewed"], one["verdict"]) for one in said + [status(world, SYNC_MAX_AGE="7d")]] == [
        ("healthy", "healthy"), ("healthy", "stale"), ("stale", "stale")]


def test_the_last_ten_runs_the_last_ones_message_and_how_long_its_like_take(world):
    happened(world, *["full ok 40d"] * 3, seconds=5000, message="The reason.")
    happened(world, *["full ok 9d"] * 3, "full failed 8d", seconds=100)
    happened(world, *["incremental ok 1h"] * 3, seconds=2)
    usual = status(world)["usual_duration"]
    happened(world, "full failed 0h", seconds=90, message="The last one.")
    health, last_ten = status(world), list(range(11, 1, -1))
    assert (usual, health["usual_duration"], health["last_duration"]) == ("00:00:02", "00:01:40", "00:01:30")
    assert last_ten == [run["run_id"] for run in health["runs"]] == [
        int(line.split()[0]) for line in health["text"].splitlines()[-10:]]
    assert "The last one." in health["text"] and "The reason." not in health["text"]


NOBODY = dict(SYNC_PING_URL="http://127.0.0.1:1/" + TOKEN)
TOLD = {  # flags, settings -> the events of the ping; result, exit code and source_rows in the history
    "a run": ([], {}, "0 start", ("ok", 0, 2)), "skipped": ([], {}, "log start", ("skipped", 0, None)),
    "quiet": (["-q"], {}, "0 start", ("ok", 0, 2)), "refused": (["--strict"], {}, "3 start", ("failed", 3, 2)),
    "app is down": ([], dict(APP_PORT="1"), "2 start", ("failed", 2, None)),
    "no host": ([], dict(WH_HOST=None), "1", None), "--status": (["--status"], {}, "", None),
    "no such table": ([], dict(APP_TABLE="public.nowhere"), "3 start", ("failed", 3, None)),
    "nobody listens": ([], NOBODY, "", ("ok", 0, 2)), "nor to a failure": (["--strict"], NOBODY, "", ("failed", 3, 2)),
    "warehouse refuses": ([], dict(WH_PASSWORD="wrong"), "2 start", None), "--check": (["--check"], {}, "", None),
    "--dry-run": (["--dry-run"], {}, "", None), "and fails": (["--dry-run", "--strict"], dict(APP_PORT="1"), "", None)}


@pytest.mark.parametrize("name", list(TOLD))
def test_what_is_told(world, name):
    flags, settings, events, recorded = TOLD[name]
    world.app_has((ANN, "Ann Archer"), ("x", "Bob Bowman"))
    with ping_server() as server, world.warehouse.holding(HOLD_THE_LOCK if name == "skipped" else "SELECT 1"):
        run = run_in_process(world.script, arguments(flags), world.environment(
            dict(dict(SYNC_PING_URL=server.url + "?a=1", SYNC_CONNECT_ATTEMPTS="1"), **settings)))
    assert sorted(path for path, _ in server.told) == ["/%s/%s?a=1" % (TOKEN, one) for one in events.split()], run
    assert TOKEN not in run.out + run.err and (" WARNING ping" in run.err) == (settings == NOBODY), run
    for path, body in server.told:
        assert body == "" if "/start" in path else "result=" in body and body in (run.out.strip() or body), body
    rows = world.history()
    assert [(row["result"], row["exit_code"], row["source_rows"]) for row in rows] == [recorded][:bool(recorded)]
    for row in rows:
        assert row["exit_code"] == run.code and (row["message"] or "") in run.err
        assert recorded[0] == "ok" or [row[key] for key in ("inserted", "unchanged", "repeated")] == [None] * 3


@pytest.mark.parametrize("answer", [404, 500, None])
def test_a_ping_that_fails_is_a_warning(world, monkeypatch, answer):
    world.app_has((ANN, "Ann Archer"))
    monkeypatch.setattr(world.script, "SECONDS_TO_PING", 0.3)
    with ping_server(answer) as server:
        run = world.sync(SYNC_PING_URL=server.url)
    assert run.code == 0 and " WARNING ping" in run.err and TOKEN not in run.err and run.result["seconds"] < 5, run


# The history keeps what there is to keep, never fails a run that is right, and hinders none that failed


def test_history_of_a_run_that_went_well(world):
    """Each count is another, so that none can stand for another."""
    many = [("00000000-0000-4000-8000-%012d" % number, "Athlete %d" % number) for number in range(18)]
    world.app_has(*many[:5], *((uuid, name + " Jr.") for uuid, name in many[5:9]), *many[9:12], *many[9:11],
                  ("x", "Dan Dyer"))
    world.warehouse_has(*many[5:])
    run = world.sync()
    row, = world.history()
    assert row.pop("started_at") <= row.pop("finished_at")
    assert row.items() >= dict(
        run_id=1, target="analytics.athlete_dim", mode="full", result="ok", exit_code=0, source_rows=15, inserted=5,
        updated=4, unchanged=3, missing=6, rejected=1, repeated=2, message=None, host=platform.node(),
        rejects=[{"uuid": "(not shown)", "reason": "uuid is not a uuid"}], version=world.script.VERSION).items(), run


ALTER, REFUSE = "ALTER TABLE analytics.athlete_sync_run ", ("AFTER INSERT", "RAISE EXCEPTION 'no';")
HINDRANCES = {  # what hinders, how it is undone
    "a column more": (ALTER + "ADD wanted text NOT NULL", ALTER + "DROP wanted"),
    "a column too narrow": (ALTER + "ALTER version TYPE varchar(1)", ALTER + "ALTER version TYPE text"),
    "a trigger": trigger(*REFUSE, HISTORY), "one at the COMMIT": trigger(*REFUSE, HISTORY, deferred=True),
    "a constraint": (ALTER + "ADD CONSTRAINT none CHECK (version = 'none')", ALTER + "DROP CONSTRAINT none"),
    "a column renamed": (ALTER + "RENAME run_id TO id", ALTER + "RENAME id TO run_id"),
    "its renaming": (ALTER + "RENAME TO elsewhere", "ALTER TABLE analytics.elsewhere RENAME TO athlete_sync_run"),
    "renames": trigger(*REFUSE, RENAMES), "renames at the COMMIT": trigger(*REFUSE, RENAMES, deferred=True)}


@pytest.mark.parametrize("name", list(HINDRANCES))
def test_a_history_that_refuses_a_row_is_a_warning(world, name):
    world.app_has((ANN, "Ann Archer"))
    world.warehouse_has((ANN, "Ann Before"))
    with world.warehouse.changed(*HINDRANCES[name]):
        with world.warehouse.holding(HOLD_THE_LOCK):
            skipped = world.sync()
        good, bad, looked = world.sync(), world.sync("--strict", APP_TABLE="public.nowhere"), world.run("--status")
    assert (good.code, good.counts(), world.dimension()) == (0, "1: 1 renamed", {ANN: "Ann Archer"}), good
    assert (skipped.code, skipped.result["result"]) == (0, "skipped"), skipped
    assert (bad.code, bad.err.count(" ERROR ")) == (3, 1) and "nowhere" in bad.err, bad
    lost = "former names are not kept" if "renames" in name else "this run is not in the run history"
    assert good.err.count(lost) == good.err.count("sql/warehouse_setup.sql") == 1, good
    assert (looked.code == 3) and ("sql/warehouse_setup.sql" in looked.err) == (name == "its renaming"), looked
    assert world.ends() == (["skipped 0", "ok 0", "failed 3"] if "renames" in name else []), good


def test_a_locked_history_is_waited_for_a_few_seconds(world):
    with world.warehouse.locked(HISTORY):
        runs = [finish(process) for process in (world.start(), world.start(WH_TABLE="analytics.nowhere"))]
    assert [run.code for run in runs] == [0, 3] and "this run is not in the run history" in runs[0].err, runs
    assert float(runs[0].result["seconds"]) < 20
