"""--diff names who changes, on stdout alone; and what a run overwrites is kept, so that it can be taken back."""

from __future__ import annotations

import pytest
import diff_rounds
from conftest import ANN, BOB, CAT, DAN, HISTORY, HOLD_THE_LOCK, RENAMES, arguments, run_in_process, trigger
from pings import ping_server
from test_docs import statements

THREE_CHANGES = ["+ %s Ann Archer" % ANN, "~ %s Bob Bowman -> Bob Baker" % BOB, "- %s Cat Cooper" % CAT]
UUIDS = ["%08d-0000-4000-8000-000000000000" % number for number in range(250)]


@pytest.fixture
def three_changes(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Baker"), (DAN, "Dan Dunn"))
    world.warehouse_has((BOB, "Bob Bowman"), (CAT, "Cat Cooper"), (DAN, "Dan Dunn"))
    return world


def as_text(world, *flags, **settings):
    """What a run without --json prints."""
    with world.held_to_the_rules(flags, settings) as runs:
        runs.append(run_in_process(world.script, arguments(flags), world.environment(settings)))
    return runs[0]


@pytest.mark.parametrize("refresh", ["always", "12h", "never"])
@pytest.mark.parametrize("flags", [["--dry-run"], []], ids=["dry", "real"])
def test_new_renamed_and_missing(three_changes, flags, refresh):
    run = as_text(three_changes, "--diff", *flags, SYNC_REFRESH=refresh)
    assert run.out.splitlines()[:-1] == THREE_CHANGES and run.out.splitlines()[-1].startswith("result=ok"), run
    if not flags:
        assert as_text(three_changes, "--diff").out.splitlines()[:-1] == THREE_CHANGES[2:]
        assert as_text(three_changes, "--diff", "-q").out == ""


def test_as_json(three_changes):
    assert three_changes.sync("--diff").result["changes"] == {
        "inserted": [{"uuid": ANN, "old_name": None, "new_name": "Ann Archer"}],
        "updated": [{"uuid": BOB, "old_name": "Bob Bowman", "new_name": "Bob Baker"}],
        "missing": [{"uuid": CAT, "old_name": "Cat Cooper", "new_name": None}],
        "not_listed": {"inserted": 0, "updated": 0, "missing": 0}}
    with three_changes.warehouse.holding(HOLD_THE_LOCK):
        assert three_changes.sync("--diff").result["changes"] is None


def test_what_the_guard_refuses_is_shown(world):
    world.warehouse_has(*[(one, "Old name") for one in UUIDS])
    world.app_has(*[(one, "New name") for one in UUIDS])
    run = as_text(world, "--diff")
    lines = run.out.splitlines()
    assert (run.code, len(lines), lines[100]) == (3, 102, "~ and 150 more"), run
    assert lines[:100] == ["~ %s Old name -> New name" % one for one in UUIDS[:100]]
    assert lines[101].startswith("result=failed") and "--dry-run --diff" in run.error, run
    changes = world.sync("--diff").result["changes"]
    assert (len(changes["updated"]), changes["not_listed"]["updated"], world.renames()) == (100, 150, [])


def test_at_most_a_hundred_of_each_in_the_order_of_the_uuids(world):
    world.app_has(*[(one, "Here") for one in reversed(UUIDS[:110])])
    world.warehouse_has(*[(one, "Gone") for one in reversed(UUIDS[110:220])])
    assert as_text(world, "--diff").out.splitlines()[:-1] == (
        ["+ %s Here" % one for one in UUIDS[:100]] + ["+ and 10 more"]
        + ["- %s Gone" % one for one in UUIDS[110:210]] + ["- and 10 more"])


SHOWN = {
    "Ann Archer": "Ann Archer", "a\nb": "a\\nb", "a\tb": "a\\tb", "\x1b[2Jgone": "\\x1b[2Jgone", "back\\n": "back\\\\n",
    "\u202egnirts": "\\u202egnirts", "\u2066in\u2069": "\\u2066in\\u2069", "\u200fright": "\\u200fright",
    "\u2028": "\\u2028", "\x7f\x9b": "\\x7f\\x9b", "\u05d0\u05d1": "\u05d0\u05d1", "\U0001f600": "\U0001f600",
    "": '""', " blank": '" blank"', "A -> B": '"A -> B"', '"Q"': '""Q""', "NULL": '"NULL"', "It's": "It's",
    "x" * 2 ** 20: "x" * 60 + "... (1048576 characters)",
}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_name_stays_one_line_and_cannot_repaint_a_terminal(world, encoding):
    """Nor can it stop the run where stdout cannot write it."""
    world.app_has(*zip(UUIDS, SHOWN))
    process = world.start("--diff", PYTHONIOENCODING=encoding)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.decode(encoding).splitlines()[:-1] == [
        "+ %s %s" % (one, name.encode(encoding, "backslashreplace").decode(encoding))
        for one, name in zip(UUIDS, SHOWN.values())]


def test_json_has_every_name_as_it_is(world):
    world.app_has(*zip(UUIDS, SHOWN))
    run = world.sync("--diff")
    assert [change["new_name"] for change in run.result["changes"]["inserted"]] == list(SHOWN)
    assert run.out.isascii() and len(run.out.splitlines()) == 1


def test_no_name_in_a_ping(three_changes):
    with ping_server() as server:
        three_changes.sync("--diff", SYNC_PING_URL=server.url)
    assert len(server.told) == 2
    assert not [name for name in ("Archer", "Bowman", "Baker", "Cooper") if name in str(server.told)]


# What is kept


def test_a_rename_is_kept_with_its_run(three_changes):
    three_changes.sync("--dry-run")
    assert three_changes.renames() == []
    three_changes.sync()
    assert three_changes.renames() == [(three_changes.history()[-1]["run_id"], BOB, "Bob Bowman", "Bob Baker")]
    assert three_changes.warehouse.value("SELECT renamed_at > now() - interval '1 minute' FROM " + RENAMES)
    with three_changes.warehouse.locked(RENAMES):  # which a run without renames leaves alone
        assert "former names" not in three_changes.sync().err + three_changes.sync(SYNC_REFRESH="never").err


HINDRANCES = {
    "not there": ("ALTER TABLE {t} RENAME TO elsewhere", "ALTER TABLE analytics.elsewhere RENAME TO athlete_rename"),
    "not writable": ("REVOKE INSERT ON {t} FROM warehouse_writer", "GRANT INSERT ON {t} TO warehouse_writer"),
    "a column is missing": ("ALTER TABLE {t} RENAME renamed_at TO at", "ALTER TABLE {t} RENAME at TO renamed_at"),
    "a row is refused": ("ALTER TABLE {t} ADD CONSTRAINT no_baker CHECK (new_name !~ 'Baker')",
                         "ALTER TABLE {t} DROP CONSTRAINT no_baker"),
    "a trigger talks": trigger("BEFORE INSERT", "RAISE EXCEPTION 'no %', NEW.new_name;", RENAMES),
}


@pytest.mark.parametrize("name", list(HINDRANCES))
def test_what_hinders_the_table_does_not_hinder_the_run(three_changes, name):
    with three_changes.warehouse.changed(*[statement.replace("{t}", RENAMES) for statement in HINDRANCES[name]]):
        run = as_text(three_changes)
    assert (run.code, three_changes.dimension()[BOB], three_changes.renames()) == (0, "Bob Baker", []), run
    warning, = [line for line in run.err.splitlines() if "WARNING" in line]
    assert "former names are not kept" in warning and "-f sql/warehouse_setup.sql" in warning, run
    assert three_changes.ends() == ["ok 0"]


def test_without_a_history_there_is_no_run_to_name(three_changes):
    with three_changes.warehouse.locked(HISTORY):
        run = run_in_process(three_changes.script, arguments([]), three_changes.environment({}))
    assert (run.code, three_changes.dimension()[BOB], three_changes.renames()) == (0, "Bob Baker", []), run
    assert "this run is not in the run history" in run.err, run


def test_a_run_that_fails_keeps_nothing(three_changes):
    with three_changes.warehouse.changed(*trigger("BEFORE UPDATE", "NEW.full_name := 'X'; RETURN NEW;")):
        run = as_text(three_changes)
    assert (run.code, three_changes.renames(), three_changes.dimension()[BOB]) == (3, [], "Bob Bowman"), run
    assert three_changes.ends() == ["failed 3"]


def test_random_runs(world):
    """By chance; diff_rounds.py as a program does 300. Incremental ones do not know who is missing."""
    renamed, incremental = diff_rounds.play(world, seed=1, rounds=30)
    assert renamed > 20 and incremental > 5


def test_a_run_is_taken_back_as_the_page_says(world):
    """But not for Bob, whom a later run renamed, nor for Cat, who was renamed by hand."""
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"), (CAT, "Cat Cooper"), (DAN, "Dan Dunn"))
    world.sync()
    for name, who in (("wrong", [ANN, BOB, CAT]), ("other", [BOB]), ("wrong", [BOB])):
        world.app.sql('UPDATE public."User" SET name = %s WHERE uuid = ANY (%s)', name, who)
        world.sync()
    world.warehouse.sql("UPDATE analytics.athlete_dim SET full_name = 'by hand' WHERE athlete_uuid = %s", CAT)
    page = statements("python/docs/monitoring.md")
    take_back, = [one for one in page if "SET full_name = overwritten.old_name" in one]
    world.warehouse.sql(take_back.replace("42", "2"))
    assert world.dimension() == {ANN: "Ann Archer", BOB: "wrong", CAT: "by hand", DAN: "Dan Dunn"}
    find, = [one for one in page if "WHERE former.old_name" in one]
    assert world.warehouse.sql(find.replace("Ann Archer", "Bob Bowman"))[0][:3] == (BOB, "Bob Bowman", "wrong")
