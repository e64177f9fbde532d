"""--status, the view that says the same, the run history, the ping and the guard against renaming sprees."""

from __future__ import annotations

import json
import platform
import re
import time

import pytest

from conftest import (
    ANN, BOB, CAT, DAN, HISTORY, HOLD_THE_LOCK, RENAMES, arguments, database, finish, run_in_process, trigger)
from lab.servers import PROJECT, READER_PASSWORD, WRITER_PASSWORD, free_port
from pings import TOKEN, ping_server
from test_rows import spree


def show(world, *flags, **settings):
    """--status in this process."""
    run = run_in_process(world.script, arguments(("--status",) + flags), world.environment(settings))
    for secret in (READER_PASSWORD, WRITER_PASSWORD, TOKEN):
        assert secret not in run.out + run.err
    return run


def look(world, *flags, **settings):
    """--status, which changes nothing and is not recorded."""
    before = world.app.snapshot(), world.warehouse.snapshot()
    run = show(world, *flags, **settings)
    assert (world.app.snapshot(), world.warehouse.snapshot()) == before
    return run


def verdict(world, look=look, **settings):
    """The verdict, on which the text, the JSON, the exit codes and the view have to agree."""
    text, as_json = look(world, **settings), look(world, "--json", **settings)
    answer = json.loads(as_json.out)
    said = text.out.split(":")[0]
    (viewed, viewed_success, viewed_age), = world.warehouse.sql("""
        SELECT verdict, last_success, extract(epoch FROM last_success_age)
          FROM analytics.athlete_sync_health""")
    assert (answer["verdict"], viewed) == (said, said), (text, as_json)
    assert text.code == as_json.code == answer["exit_code"] == (0 if said == "healthy" else 3)
    assert (answer["last_success"] is None) == (answer["age_seconds"] is None) == (viewed_success is None)
    if viewed_success:
        assert answer["last_success"] == viewed_success.strftime("%Y-%m-%dT%H:%M:%SZ")
        assert answer["last_success"] in text.out
        assert abs(answer["age_seconds"] - viewed_age) < 5
    return said


# What happened, oldest first -> the verdict. "ok 3d" is a run that went well three days ago.

VERDICTS = {
    "nothing": ([], "never ran"),
    "only skipped runs": (["skipped 1h"], "never ran"),
    "a fresh success": (["ok 1h"], "healthy"),
    "an old success": (["ok 3d"], "stale"),
    "just within two days": (["ok 47h"], "healthy"),
    "just beyond two days": (["ok 49h"], "stale"),
    "the last run failed": (["ok 2h", "failed 1h"], "failing"),
    "none ever went well": (["failed 1h"], "failing"),
    "failed, and long ago": (["ok 9d", "failed 8d"], "failing"),
    "mended": (["failed 2h", "ok 1h"], "healthy"),
    "skipped since an old success": (["ok 3d", "skipped 1h"], "stale"),
    "skipped since a failure": (["ok 3h", "failed 2h", "skipped 1h"], "failing"),
    "skipped since a fresh success": (["ok 2h", "skipped 1h"], "healthy"),
}


def happened(world, *runs, **columns):
    """Write runs into the history: result, how long ago, and columns other than a usual run's."""
    for run in runs:
        result, ago = run.split()
        row = dict(dict(
            target="analytics.athlete_dim", mode="full", result=result, rejects="[]", version="1",
            exit_code=3 if result == "failed" else 0, max_age="2d", seconds=1.0,
            source_rows=3, inserted=3, updated=0), **columns)
        names = [name for name in row if name != "seconds"]
        world.warehouse.sql(
            "INSERT INTO analytics.athlete_sync_run (started_at, finished_at, %s) VALUES"
            " (now() - %%s::interval - %%s * interval '1 s', now() - %%s::interval, %s)"
            % (", ".join(names), ", ".join(["%s"] * len(names))),
            ago, row["seconds"], ago, *[row[name] for name in names])


@pytest.mark.parametrize("name", list(VERDICTS))
def test_status_and_the_view_agree(world, name):
    runs, expected = VERDICTS[name]
    happened(world, *runs)
    assert verdict(world) == expected


def test_the_verdict_after_true_runs(world):
    world.app_has((ANN, "Ann Archer"), ("x", "Bob Bowman"))
    said = [verdict(world)]
    for flags in ([], ["--strict"], ["--dry-run"], []):
        world.sync(*flags)
        said.append(verdict(world))
    with world.warehouse.holding(HOLD_THE_LOCK):
        world.sync()
        said.append(verdict(world))
    world.warehouse.sql("UPDATE analytics.athlete_sync_run SET finished_at = finished_at - interval '3 days'")
    said.append(verdict(world))
    assert said == ["never ran", "healthy", "failing", "failing", "healthy", "healthy", "stale"]


@pytest.mark.parametrize("max_age, ago, expected", [
    ("30m", "20m", "healthy"), ("30m", "40m", "stale"), ("12h", "13h", "stale"), ("7d", "6d", "healthy")])
def test_sync_max_age(world, max_age, ago, expected):
    world.app_has((ANN, "Ann Archer"))
    world.sync(SYNC_MAX_AGE=max_age)
    world.warehouse.sql("UPDATE analytics.athlete_sync_run SET finished_at = now() - %s::interval", ago)
    assert verdict(world, SYNC_MAX_AGE=max_age) == expected


def test_a_run_at_work_is_shown(world):
    world.app_has((ANN, "Ann Archer"))
    world.sync()
    assert "running" not in look(world).out and json.loads(look(world, "--json").out)["running"] is None
    with world.app.locked():
        process = world.start()
        world.app.wait_until_a_run_waits_for_a_lock()
        backend = world.warehouse.value("SELECT pid FROM pg_stat_activity WHERE usename = 'warehouse_writer'")
        assert verdict(world, show) == "healthy", "while the last one was"
        shown, answer = show(world).out, json.loads(show(world, "--json").out)
    assert finish(process).code == 0
    assert re.search("^running: backend %d " % backend, shown, re.MULTILINE), shown
    assert "backend %d " % backend in answer["running"]


def test_another_dimension_has_a_verdict_of_its_own(world):
    table = 'analytics."Athlete ""Dim"""'
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.changed("CREATE TABLE %s (LIKE analytics.athlete_dim INCLUDING ALL)" % table,
                                 "DROP TABLE " + table):
        world.warehouse.sql("GRANT SELECT, INSERT, UPDATE ON %s TO warehouse_writer" % table)
        world.sync(WH_TABLE=table)
        assert verdict(world) == "never ran"
        for spelling in (table, 'Analytics."Athlete ""Dim"""', '"analytics"."Athlete ""Dim"""'):
            run = look(world, WH_TABLE=spelling)
            assert (run.code, run.out.split(":")[0]) == (0, "healthy"), run
        assert len(json.loads(look(world, "--json", WH_TABLE=table).out)["runs"]) == 1
        assert json.loads(look(world, "--json").out)["runs"] == []


def test_a_dimension_names_its_schema(world):
    world.app_has((ANN, "Ann Archer"))
    run = run_in_process(world.script, arguments([]), world.environment(dict(WH_TABLE="athlete_dim")))
    assert run.code == 1 and "WH_TABLE must name its schema" in run.err, run


@pytest.mark.parametrize("break_, mend", [
    ("ALTER TABLE analytics.athlete_sync_run RENAME TO hidden",
     "ALTER TABLE analytics.hidden RENAME TO athlete_sync_run"),
    ("ALTER TABLE analytics.athlete_sync_run RENAME result TO hidden",
     "ALTER TABLE analytics.athlete_sync_run RENAME hidden TO result"),
], ids=["no table", "another shape"])
def test_without_a_history_it_says_which_file_to_run(world, break_, mend):
    with world.warehouse.changed(break_, mend):
        run, as_json = look(world), look(world, "--json")
    assert (run.code, as_json.code) == (3, 3), run
    assert "-f sql/warehouse_setup.sql" in run.error, run
    assert "-f sql/warehouse_setup.sql" in json.loads(as_json.out)["message"]


def test_a_warehouse_out_of_reach_is_2(world):
    assert look(world, WH_PORT=str(free_port()), SYNC_CONNECT_ATTEMPTS="1").code == 2


# The table of runs


def table(text):
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("started"))
    return [line for line in lines[start + 1:] if re.match(r"\d\d-\d\d ", line)]


def test_the_table_is_no_wider_than_80_columns(world):
    million = dict(source_rows=1000000, inserted=1000000, updated=0, unchanged=0, missing=1000000,
                   rejected=100000)
    happened(world, "ok 9h", seconds=3599.99, **million)
    happened(world, "ok 8h", **dict(million, inserted=0, updated=1000000))
    unknown = dict.fromkeys(million)
    happened(world, "failed 7h", **unknown)
    happened(world, "skipped 6h", **dict(unknown, mode="incremental"))
    run = look(world)
    assert len(table(run.out)) == 4
    for line in run.out.splitlines():
        assert len(line) <= 80, "%d columns: %s" % (len(line), line)
    header = next(line for line in run.out.splitlines() if line.startswith("started"))
    for word in "secs mode result source inserted updated missing rejected".split():
        assert word in header
    assert run.out.count("1000000") == 7, "no number is cut"


def test_the_last_ten_runs_newest_first(world):
    for number in range(12):
        happened(world, "ok %dh" % (40 - number), source_rows=number)
    run, answer = look(world), json.loads(look(world, "--json").out)
    assert [row["source"] for row in answer["runs"]] == list(range(11, 1, -1))
    shown = [line[:11].replace(" ", "T") for line in table(run.out)]
    assert shown == [row["started_at"][5:16] for row in answer["runs"]]


def test_rejects_since_the_last_full_run_are_told(world):
    happened(world, "ok 3h", rejected=2, missing=14)
    happened(world, "ok 5m", "ok 4m", mode="incremental", rejected=1)
    run = look(world)
    assert "last full run 3 hours ago: 2 rejected, 14 missing; 2 more rejected since, by incremental runs\n" in run.out
    assert json.loads(look(world, "--json").out)["last_full_run"]["rejected_since"] == 2


def test_what_is_rejected_with_reasons(world):
    world.app_has((ANN, None), ("4711", "Bob Bowman"), ("Bob", "4712"), (None, "Cat Cooper"), (DAN, "Dan Dyer"))
    world.sync()
    for _ in range(2):  # a run that was skipped afterwards has rejected nothing, and hides nothing
        run = look(world)
        shown = run.out[run.out.index("rejected by the last full run and since:"):].splitlines()[1:]
        assert sorted(line.strip() for line in shown) == sorted([
            "'%s': name is NULL" % ANN, "'4711': uuid is not a uuid", "'(not shown)': uuid is not a uuid",
            "None: uuid is NULL"]), run
        with world.warehouse.holding(HOLD_THE_LOCK):
            assert world.sync().result["result"] == "skipped"
        for _ in range(10):  # nor have those that did not read them
            happened(world, "ok 0m", mode="incremental")
    world.app.sql('DELETE FROM public."User"')
    world.sync()
    assert "rejected by" not in look(world).out


def test_json_has_all_of_it(world):
    world.app_has((ANN, "Ann Archer"), ("x", "Bob Bowman"))
    world.sync()
    answer = json.loads(look(world, "--json").out)
    row, = answer["runs"]
    assert answer.items() >= dict(verdict="healthy", exit_code=0, running=None).items()
    assert row.items() >= dict(
        mode="full", result="ok", exit_code=0, source=2, inserted=1, updated=0, unchanged=0, missing=0,
        rejected=1, repeated=0, rejects=[{"uuid": "(not shown)", "reason": "uuid is not a uuid"}], message=None).items()


def test_status_in_a_file_on_a_windows_code_page(world):
    world.app_has((ANN, "Ann Archer"), ("\u9078\u624b\x1b[31m", "Bob Bowman"))
    world.sync()
    process = world.start("--status", PYTHONIOENCODING="cp1252")
    out, err = (text.decode("cp1252") for text in process.communicate(timeout=60))
    assert process.returncode == 0 and out.startswith("healthy: ") and "Traceback" not in err, err
    assert "uuid is not a uuid" in out and "\x1b" not in out + err


# The history of runs that failed, each recorded in a transaction of its own


FAILURES = {  # what is prepared, flags, settings, exit code, source_rows, words of the message
    "app is down": (None, [], dict(APP_PORT=lambda: str(free_port())), 2, None, "app: "),
    "app refuses the password": (None, [], dict(APP_PASSWORD="wrong"), 2, None, "app: "),
    "no such table": (None, [], dict(APP_TABLE="public.nowhere"), 3, None, "does not exist"),
    "no such dimension": (None, [], dict(WH_TABLE="analytics.nowhere"), 3, None, "does not exist"),
    "SQL error in the warehouse": (
        "ALTER TABLE analytics.athlete_dim ADD CONSTRAINT nobody CHECK (full_name = '')", [], {}, 3, 2,
        "constraint"),
    "a guard refuses": (lambda world: spree(world, 20, 20), [], {}, 3, 22, "20 of 20"),
    "--strict": (None, ["--strict"], {}, 3, 2, "--strict"),
}


@pytest.mark.parametrize("name", list(FAILURES))
@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry run"])
def test_history_of_failures(world, name, dry):
    prepare, flags, settings, code, source, words = FAILURES[name]
    world.app_has((ANN, "Ann Archer"), ("x", "Bob Bowman"))
    change, undo = "SELECT 1", "SELECT 1"
    if callable(prepare):
        prepare(world)
    elif prepare:
        change, undo = prepare, "ALTER TABLE analytics.athlete_dim DROP CONSTRAINT nobody"
    settings = dict({key: value() if callable(value) else value for key, value in settings.items()},
                    SYNC_CONNECT_ATTEMPTS="1")
    before = world.rows()
    with world.warehouse.changed(change, undo):
        run = world.sync(*flags + ["--dry-run"] * dry, **settings)
    assert world.rows() == before
    if dry:
        assert world.history() == []
        return
    row, = world.history()
    assert run.code == code, run
    assert (row["result"], row["exit_code"], row["source_rows"]) == ("failed", code, source)
    assert words in row["message"] and row["message"] == run.result["message"]
    assert [row[key] for key in ("inserted", "updated", "unchanged", "repeated")] == [None] * 4
    assert "WH_TABLE" in settings or verdict(world) == "failing"


def test_a_warehouse_that_lets_nobody_in_records_nothing(world):
    assert (world.sync(WH_PASSWORD="wrong").code, world.history()) == (2, [])


# What the warehouse remembers


def test_history_of_a_run_that_went_well(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Baker"), (CAT, "Cat Cooper"), (CAT, "Cat Cooper"),
                  ("x", "Dan Dyer"))
    world.warehouse_has((BOB, "Bob Bowman"), (CAT, "Cat Cooper"), (DAN, "Dan Dyer"))
    run = world.sync()
    row, = world.history()
    assert row.pop("started_at") <= row.pop("finished_at")
    assert row.items() >= dict(
        run_id=1, target="analytics.athlete_dim", mode="full", result="ok", exit_code=0, source_rows=5,
        inserted=1, updated=1, unchanged=1, missing=1, rejected=1, repeated=1, message=None,
        host=platform.node(),
        rejects=[{"uuid": "(not shown)", "reason": "uuid is not a uuid"}], version=world.script.VERSION).items(), run
    assert world.warehouse.sql(
        "SELECT last_result, last_success < now(), last_success_age > '0', last_duration > '0', usual_duration > '0'"
        "  FROM analytics.athlete_sync_health") == [("ok", True, True, True, True)]


def test_history_of_a_run_that_failed(world):
    world.app_has((ANN, "Ann Archer"), ("x", "Dan Dyer"))
    world.sync()
    run = world.sync("--strict")
    row = world.history()[-1]
    assert (row["result"], row["exit_code"], row["source_rows"], row["rejected"]) == ("failed", 3, 2, 1), run
    health, = world.warehouse.sql(
        "SELECT last_result, last_success < now(), last_success_age > '0', last_duration > '0',"
        "       usual_duration > '0' FROM analytics.athlete_sync_health")
    assert health == ("failed", True, True, True, True)


def test_health_without_a_run(world):
    assert world.warehouse.sql(
        "SELECT last_success, last_success_age, last_result, last_duration, usual_duration"
        " FROM analytics.athlete_sync_health") == [(None,) * 5]


# The history never fails a run that is right, nor hinders one that failed


ALTER_HISTORY = "ALTER TABLE analytics.athlete_sync_run "
ANOTHER_HOST = ALTER_HISTORY + "RENAME host TO machine; " + ALTER_HISTORY + "ADD host %s"
THE_HOST = ALTER_HISTORY + "DROP host; " + ALTER_HISTORY + "RENAME machine TO host"
SETUP, LOOK = "run once: psql", r"psql -c '\d+ analytics.athlete_sync_run' warehouse shows"

HINDRANCES = {
    # what hinders, how it is undone, what the warning says to run
    "a column that must not be NULL": (ALTER_HISTORY + "ADD wanted text NOT NULL", ALTER_HISTORY + "DROP wanted", LOOK),
    "a trigger that complains": (*trigger("BEFORE INSERT", "RAISE EXCEPTION 'no';", HISTORY), LOOK),
    "a trigger that complains at the COMMIT": (
        *trigger("AFTER INSERT", "RAISE EXCEPTION 'no';", HISTORY, deferred=True), LOOK),
    "a constraint": (ALTER_HISTORY + "ADD CONSTRAINT none CHECK (version = 'none')",
                     ALTER_HISTORY + "DROP CONSTRAINT none", LOOK),
    "a column of another type": (ANOTHER_HOST % "integer", THE_HOST, LOOK),
    "a column too narrow": (ANOTHER_HOST % "varchar(1)", THE_HOST, LOOK),
    "a column renamed": (ALTER_HISTORY + "RENAME host TO machine", ALTER_HISTORY + "RENAME machine TO host", SETUP),
    "no rights on it": ("REVOKE INSERT ON analytics.athlete_sync_run FROM warehouse_writer",
                        "GRANT INSERT ON analytics.athlete_sync_run TO warehouse_writer", SETUP),
    "no right to number it": ("REVOKE USAGE ON SEQUENCE analytics.athlete_sync_run_run_id_seq FROM warehouse_writer",
                              "GRANT USAGE ON SEQUENCE analytics.athlete_sync_run_run_id_seq TO warehouse_writer", SETUP),
    "its renaming": (ALTER_HISTORY + "RENAME TO elsewhere",
                     "ALTER TABLE analytics.elsewhere RENAME TO athlete_sync_run", SETUP),
}


@pytest.mark.parametrize("hinder, mend, advice", list(HINDRANCES.values()), ids=list(HINDRANCES))
def test_a_history_that_refuses_a_row_is_a_warning(world, hinder, mend, advice):
    world.app_has((ANN, "Ann Archer"))
    truncate = "TRUNCATE analytics.athlete_sync_run; "
    with world.warehouse.changed(truncate + hinder, mend + ";" + truncate):
        with world.warehouse.holding(HOLD_THE_LOCK):
            skipped = world.sync()
        good, bad = world.sync(), world.sync("--strict", APP_TABLE="public.nowhere")
    assert (good.code, good.counts(), world.dimension()) == (0, "1: 1 new", {ANN: "Ann Archer"}), good
    assert (skipped.code, skipped.result["result"]) == (0, "skipped"), skipped
    assert (bad.code, errors_of(bad)) == (3, 1) and "nowhere" in bad.err, bad
    for run in (skipped, good, bad):
        warning, = [line for line in run.err.splitlines() if "this run is not in the run history" in line]
        assert run.err.count("sql/warehouse_setup.sql") == (advice == SETUP), run
        assert advice in warning and "athlete_dim" not in warning.split("; run once")[0], warning


def test_renames_that_are_refused_at_the_commit_are_a_warning(world):
    world.app_has((ANN, "Ann Archer"))
    world.warehouse_has((ANN, "Ann Before"))
    with world.warehouse.changed(*trigger("AFTER INSERT", "RAISE EXCEPTION 'no';", RENAMES, deferred=True)):
        run = world.sync()
    assert (run.code, run.counts(), world.dimension()) == (0, "1: 1 renamed", {ANN: "Ann Archer"}), run
    assert "former names are not kept" in run.err and len(world.history()) == 1, run


def errors_of(run):
    return run.err.count(" ERROR ")


def test_a_locked_history_is_waited_for_five_seconds(world):
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.locked(HISTORY):
        good = world.start()
        bad = world.start(WH_TABLE="analytics.nowhere")
        good, bad = finish(good), finish(bad)
    assert good.code == 0 and "this run is not in the run history" in good.err, good
    assert float(good.result["seconds"]) < 10 and world.dimension() == {ANN: "Ann Archer"}
    assert bad.code == 3 and "this run is not in the run history" in bad.err, bad


def test_a_warehouse_in_latin1_records_what_it_cannot_spell(world, lab):
    world.app_has((ANN, "Jos\u00e9"), ("\u738b", "Bob Bowman"))
    with database(lab.warehouse, "latin1", "LATIN1"):
        lab.warehouse.psql("-f", str(PROJECT / "sql" / "warehouse_setup.sql"), database="latin1")
        good, bad = world.sync(WH_DB="latin1"), world.sync(WH_DB="latin1", APP_TABLE="public.\u738b")
        recorded = lab.warehouse.psql("-qAtc", "SELECT result, message LIKE '%\\u738b%'"
                                      " FROM analytics.athlete_sync_run ORDER BY run_id", database="latin1")
    assert (good.code, good.counts()) == (0, "2: 1 new, 1 rejected") and "run history" not in good.err, good
    assert (bad.code, recorded) == (3, "ok|\nfailed|t\n"), bad


# The ping


def no_seconds(text):
    return re.sub(r"seconds=\S+|\"seconds\": [0-9.]+", "", text)


PINGS = {  # what is run -> the path of the last ping, or None if there are none
    "a run": ([], {}, "/0"),
    "as JSON": (["--json"], {}, "/0"),
    "quiet": (["-q"], {}, "/0"),
    "refused": (["--strict"], {}, "/3"),
    "app is down": ([], dict(APP_PASSWORD="wrong"), "/2"),
    "a dry run": (["--dry-run"], {}, None),
    "--check": (["--check"], {}, None),
    "--status": (["--status"], {}, None),
}


@pytest.mark.parametrize("name", list(PINGS))
def test_a_ping_at_the_start_and_with_the_result(world, name):
    flags, settings, last = PINGS[name]
    world.app_has((ANN, "Ann Archer"), ("x", "Bob Bowman"))
    with ping_server() as server:
        run = run_in_process(world.script, arguments(flags),
                             world.environment(dict(settings, SYNC_PING_URL=server.url + "/")))
    assert TOKEN not in run.out + run.err
    if last is None:
        assert server.told == []
        return
    (start, nothing), (end, body) = sorted(server.told, key=lambda told: told[0], reverse=True)
    assert (start, nothing, end) == ("/%s/start" % TOKEN, "", "/%s%s" % (TOKEN, last))
    assert body.startswith("result=failed " if run.code else "result=ok mode=full source=2 inserted=1 "), body
    if "--json" not in flags and run.out:
        assert no_seconds(run.out.strip()) == no_seconds(body)
    assert "ping" not in run.err


EARLY_ENDS = {  # what ends a run before it begins -> whether it is told
    "a setting is missing": ([], dict(WH_HOST=None), True),
    "a setting is wrong": ([], dict(SYNC_DEADLINE="soon"), True),
    "no such option": (["--incremntal"], {}, True),
    "half an option": (["--incr"], {}, True),
    "a dry run": (["--dry-run"], dict(WH_HOST=None), False),
    "--status": (["--status"], dict(WH_HOST=None), False),
}


@pytest.mark.parametrize("where", ["environment", "file"])
@pytest.mark.parametrize("name", list(EARLY_ENDS))
def test_a_run_that_ends_before_it_begins_is_told_too(world, tmp_path, name, where):
    flags, settings, told = EARLY_ENDS[name]
    with ping_server() as server:
        line, environment = "SYNC_PING_URL=%s\n" % server.url, dict(settings)
        (tmp_path / "env").write_text(line if where == "file" else "", encoding="utf-8-sig")
        if where == "environment":
            environment["SYNC_PING_URL"] = server.url
        run = run_in_process(world.script, ["--env-file", str(tmp_path / "env")] + flags,
                             world.environment(environment))
    assert run.code == 1 and TOKEN not in run.out + run.err, run
    assert [path for path, _ in server.told] == ["/%s/1" % TOKEN] * told
    assert all(body.startswith("result=failed") for _, body in server.told)


def test_a_skipped_run_is_logged_there_and_is_no_success(world):
    with ping_server() as server, world.warehouse.holding(HOLD_THE_LOCK):
        world.sync(SYNC_PING_URL=server.url)
    assert sorted(path for path, _ in server.told) == ["/%s/log" % TOKEN, "/%s/start" % TOKEN]


@pytest.mark.parametrize("flags", [["-v"], ["--strict"]], ids=["ok", "refused"])
@pytest.mark.parametrize("server", ["dead", "500", "404", "not http", "slow"])
def test_a_ping_that_fails_changes_nothing_but_a_warning(world, monkeypatch, flags, server):
    world.app_has((ANN, "Ann Archer"), ("x", "Bob Bowman"))
    monkeypatch.setattr(world.script, "PING_SECONDS", 0.7)
    usual = world.sync(*flags)
    world.warehouse.sql("TRUNCATE analytics.athlete_dim")
    with ping_server({"500": 500, "404": 404}.get(server)) as answering:
        url = "http://127.0.0.1:%d/%s" % (free_port(), TOKEN) if server == "dead" else \
            "https" + answering.url[4:] if server == "not http" else answering.url
        began = time.monotonic()
        run = world.sync(*flags, SYNC_PING_URL=url)
        took = time.monotonic() - began
    assert (run.code, no_seconds(run.out)) == (usual.code, no_seconds(usual.out)), run
    warnings = [line for line in run.err.splitlines() if "ping" in line]
    assert warnings and all(" WARNING " in line for line in warnings), run
    assert TOKEN not in run.err and "Traceback" not in run.err.replace("traceback", "")
    assert took < 5, "it may wait for PING_SECONDS, not more"
    assert world.history()[-1]["result"] == usual.result["result"]


def test_the_deadline_holds_for_a_slow_ping_too(world):
    world.app_has((ANN, "Ann Archer"))
    with ping_server(status=None) as server:
        began = time.monotonic()
        run = world.run(SYNC_PING_URL=server.url, SYNC_DEADLINE="2")
        took = time.monotonic() - began
    assert (run.code, run.result["result"]) == (0, "ok"), run
    assert took < 2 + 5 + 2, run  # the deadline, the last act, and a slow machine
    assert "ping" in run.err, "that nobody was told is worth a warning"


@pytest.mark.parametrize("url", [
    TOKEN, "hc-ping.com/" + TOKEN, "ftp://example.org/" + TOKEN, "http://", "https:///" + TOKEN,
    "http:// example.org/" + TOKEN])
def test_a_malformed_url_is_a_matter_of_configuration(world, url):
    run = world.sync(SYNC_PING_URL=url)
    assert run.code == 1 and "SYNC_PING_URL" in run.error and TOKEN not in run.out + run.err, run
    assert world.history() == []
