"""--diff names who changes, on stdout alone; and what a run overwrites is kept, so that it can be taken back."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
import diff_rounds
from conftest import ANN, BOB, CAT, DAN, RENAMES, arguments, run_in_process, trigger
from lab.servers import PROJECT, SCRIPT
from test_docs import statements
from pings import ping_server

SETUP = "-f sql/warehouse_setup.sql"
THREE_CHANGES = ["+ %s Ann Archer" % ANN, "~ %s Bob Bowman -> Bob Baker" % BOB, "- %s Cat Cooper" % CAT]


def three_changes(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Baker"), (DAN, "Dan Dunn"))
    world.warehouse_has((BOB, "Bob Bowman"), (CAT, "Cat Cooper"), (DAN, "Dan Dunn"))


def as_text(world, *flags, **settings):
    """What stdout holds above the result line."""
    with world.held_to_the_rules(flags, settings) as runs:
        runs.append(run_in_process(world.script, arguments(flags), world.environment(settings)))
    assert runs[0].out.splitlines()[-1].startswith("result="), runs[0]
    return runs[0].out.splitlines()[:-1]


# What --diff says


@pytest.mark.parametrize("refresh", ["always", "12h", "never"])
@pytest.mark.parametrize("flags", [["--dry-run"], []], ids=["dry", "real"])
def test_new_renamed_and_missing(world, flags, refresh):
    three_changes(world)
    assert as_text(world, "--diff", *flags, SYNC_REFRESH=refresh) == THREE_CHANGES


def test_as_json(world):
    three_changes(world)
    assert world.sync("--diff").result["changes"] == {
        "inserted": [{"uuid": ANN, "name": "Ann Archer"}],
        "updated": [{"uuid": BOB, "old_name": "Bob Bowman", "new_name": "Bob Baker"}],
        "missing": [{"uuid": CAT, "name": "Cat Cooper"}],
        "not_listed": {"inserted": 0, "updated": 0, "missing": 0}}


def test_a_run_that_changes_nothing_names_nobody(world):
    world.app_has((ANN, "Ann Archer"))
    world.sync()
    assert as_text(world, "--diff") == []


def test_quiet_is_silent_on_success(world):
    three_changes(world)
    assert run_in_process(world.script, arguments(["-q", "--diff"]), world.environment({})).out == ""


def test_an_incremental_run_does_not_know_who_is_missing(world):
    world.app.sql('CREATE UNIQUE INDEX one_athlete ON public."User" (uuid)')
    try:
        world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
        world.sync()
        world.app.sql('DELETE FROM public."User" WHERE uuid = %s', BOB)
        world.app.sql('UPDATE public."User" SET name = %s', "Ann Baker")
        run = world.sync("--diff", "--incremental")
    finally:
        world.app.sql("DROP INDEX public.one_athlete")
    assert run.result["mode"] == "incremental"
    assert run.result["changes"]["updated"] == [{"uuid": ANN, "old_name": "Ann Archer", "new_name": "Ann Baker"}]
    assert run.result["changes"]["missing"] is run.result["changes"]["not_listed"]["missing"] is None


def test_what_the_guard_refuses_is_shown(world):
    uuids = ["%08d-0000-4000-8000-000000000000" % number for number in range(250)]
    world.warehouse_has(*[(one, "Old name") for one in uuids])
    world.app_has(*[(one, "New name") for one in uuids])
    run = world.run("--diff")
    lines = run.out.splitlines()
    assert (run.code, len(lines)) == (3, 102)
    assert lines[0] == "~ %s Old name -> New name" % uuids[0]
    assert lines[99].split()[1] == uuids[99]
    assert lines[100] == "~ and 150 more"
    assert lines[101].startswith("result=failed")
    assert "look with --dry-run --diff" in run.error
    changes = world.sync("--diff").result["changes"]
    assert (len(changes["updated"]), changes["not_listed"]["updated"]) == (100, 150)
    assert world.renames() == []


def test_a_skipped_run_has_no_changes(world):
    with world.warehouse.holding(
            "SELECT pg_advisory_xact_lock(1096043596, 'analytics.athlete_dim'::regclass::oid::integer)"):
        assert world.sync("--diff").result["changes"] is None


def test_more_than_a_hundred_of_each(world):
    uuids = ["%08d-0000-4000-8000-000000000000" % number for number in range(220)]
    world.app_has(*[(one, "Here") for one in uuids[:110]])
    world.warehouse_has(*[(one, "Gone") for one in uuids[110:]])
    lines = as_text(world, "--diff")
    assert [line for line in lines if "more" in line] == ["+ and 10 more", "- and 10 more"]
    assert len(lines) == 202 and lines[:100] == sorted(lines[:100])


# How a name is shown


SHOWN = {
    "Ann Archer": "Ann Archer", "a\nb": "a\\nb", "a\tb": "a\\tb", "\x1b[2Jgone": "\\x1b[2Jgone", "back\\n": "back\\\\n",
    "\u202egnirts": "\\u202egnirts", "\u2066in\u2069": "\\u2066in\\u2069", "\u200fright": "\\u200fright",
    "\u2028": "\\u2028", "\x7f\x9b": "\\x7f\\x9b", "\u05d0\u05d1": "\u05d0\u05d1", "\U0001f600": "\U0001f600",
    "": '""', " blank": '" blank"', "A -> B": '"A -> B"', '"Q"': '""Q""', "NULL": '"NULL"', "It's": "It's",
    "x" * 2 ** 20: "x" * 60 + "... (1048576 characters)",
}


def test_a_name_stays_one_line_and_cannot_repaint_a_terminal(world):
    uuids = ["%08d-0000-4000-8000-000000000000" % number for number in range(len(SHOWN))]
    world.app_has(*zip(uuids, SHOWN))
    run = world.run("--diff", PYTHONIOENCODING="utf-8")
    assert run.out.splitlines()[:-1] == ["+ %s %s" % pair for pair in zip(uuids, SHOWN.values())]


def test_json_has_every_name_as_it_is(world):
    uuids = ["%08d-0000-4000-8000-000000000000" % number for number in range(len(SHOWN))]
    world.app_has(*zip(uuids, SHOWN))
    run = world.sync("--diff")
    assert [change["name"] for change in run.result["changes"]["inserted"]] == list(SHOWN)
    assert run.out.isascii() and len(run.out.splitlines()) == 1


@pytest.mark.parametrize("settings, coloured", [
    (dict(TERM="xterm"), True), (dict(TERM="xterm", NO_COLOR="1"), False), (dict(TERM="dumb"), False), ({}, False)])
def test_colour_on_a_terminal_alone(world, settings, coloured):
    three_changes(world)
    out = on_a_terminal(world, settings)
    assert ("\x1b[32m+ %s Ann Archer\x1b[0m\r\n" % ANN in out) is coloured, out
    assert ("\r\n~ " in out) is not coloured


def test_no_colour_in_a_pipe(world):
    three_changes(world)
    assert "\x1b" not in world.run("--diff", TERM="xterm").out


def on_a_terminal(world, settings):
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, str(SCRIPT)] + arguments(["--diff", "--dry-run"]),
                               env=world.environment(settings), stdin=subprocess.DEVNULL, stdout=theirs,
                               stderr=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    try:
        while True:
            shown += os.read(ours, 4096) or b""
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return shown.decode()


def test_no_name_in_a_ping(world):
    three_changes(world)
    with ping_server() as server:
        world.sync("--diff", SYNC_PING_URL=server.url)
    assert len(server.told) == 2
    assert not [told for told in server.told for name in ("Archer", "Bowman", "Baker", "Cooper") if name in str(told)]


# What is kept


def test_a_rename_is_kept_with_its_run(world):
    three_changes(world)
    world.sync()
    assert world.renames() == [(world.history()[-1]["run_id"], BOB, "Bob Bowman", "Bob Baker")]
    assert world.warehouse.value("SELECT renamed_at > now() - interval '1 minute' FROM analytics.athlete_rename")


def test_a_dry_run_keeps_nothing_and_draws_no_number(world):
    three_changes(world)
    world.sync("--dry-run")
    world.sync()
    assert [row[0] for row in world.renames()] == [run["run_id"] for run in world.history()] == [1]


def test_a_run_without_renames_does_not_touch_the_table(world):
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.locked(RENAMES):
        runs = [world.sync(SYNC_REFRESH=refresh) for refresh in ("always", "never")]
    assert [run.counts() for run in runs] == ["1: 1 new", "1: 1 unchanged"]
    assert "former names" not in runs[0].err + runs[1].err


HINDRANCES = {
    "not there": ("ALTER TABLE analytics.athlete_rename RENAME TO elsewhere",
                  "ALTER TABLE analytics.elsewhere RENAME TO athlete_rename"),
    "not writable": ("REVOKE INSERT ON analytics.athlete_rename FROM warehouse_writer",
                     "GRANT INSERT ON analytics.athlete_rename TO warehouse_writer"),
    "a column is missing": ("ALTER TABLE analytics.athlete_rename RENAME renamed_at TO at",
                            "ALTER TABLE analytics.athlete_rename RENAME at TO renamed_at"),
    "a row is refused": ("ALTER TABLE analytics.athlete_rename ADD CONSTRAINT no_baker CHECK (new_name !~ 'Baker')",
                         "ALTER TABLE analytics.athlete_rename DROP CONSTRAINT no_baker"),
    "a trigger talks": trigger("BEFORE INSERT", "RAISE EXCEPTION 'no %', NEW.new_name;", RENAMES),
    "locked": ("BEGIN; LOCK TABLE analytics.athlete_rename IN SHARE MODE", "ROLLBACK"),
}


@pytest.mark.parametrize("name", list(HINDRANCES))
def test_what_hinders_the_table_does_not_hinder_the_run(world, name):
    three_changes(world)
    with world.warehouse.changed(*HINDRANCES[name]):
        with world.held_to_the_rules([], {}) as runs:
            runs.append(run_in_process(world.script, arguments(["--json"]), world.environment({})))
    run = runs[0]
    assert (run.code, world.dimension()[BOB], world.renames()) == (0, "Bob Baker", []), run
    warnings = [line for line in run.err.splitlines() if "WARNING" in line]
    advice = SETUP if name.startswith(("not", "a column")) else "analytics.athlete_rename"
    assert len(warnings) == 1 and "former names are not kept" in warnings[0] and advice in warnings[0], run
    assert [row["result"] for row in world.history()] == ["ok"]


def test_without_a_history_there_is_no_run_to_name(world):
    three_changes(world)
    with world.warehouse.changed("ALTER TABLE analytics.athlete_sync_run RENAME TO elsewhere",
                                 "ALTER TABLE analytics.elsewhere RENAME TO athlete_sync_run"):
        run = run_in_process(world.script, arguments(["--json"]), world.environment({}))
    assert (run.code, world.dimension()[BOB], world.renames()) == (0, "Bob Baker", []), run


def test_a_run_that_fails_keeps_nothing(world):
    """The renames are part of its one transaction; its row in the history has the number that was drawn."""
    three_changes(world)
    with world.warehouse.changed(*trigger("BEFORE UPDATE", "NEW.full_name := upper(NEW.full_name); RETURN NEW;")):
        run = run_in_process(world.script, arguments(["--json"]), world.environment({}))
    assert (run.code, world.renames(), world.dimension()[BOB]) == (3, [], "Bob Bowman"), run
    assert [(row["run_id"], row["result"]) for row in world.history()] == [(1, "failed")]


def test_random_runs(world):
    """By chance; diff_rounds.py as a program does 300."""
    renamed, incremental = diff_rounds.play(world, seed=1, rounds=30)
    assert renamed > 20 and incremental > 5


# The page


def page_statement(words):
    found, = [one for one in statements("python/docs/monitoring.md") if words in one]
    return found


def test_a_run_is_taken_back_as_the_page_says(world):
    """But not for Bob, whom a later run renamed, nor for Cat, who was renamed by hand."""
    before = [(ANN, "Ann Archer"), (BOB, "Bob Bowman"), (CAT, "Cat Cooper"), (DAN, "Dan Dunn")]
    world.app_has(*before)
    world.sync()
    world.app.sql("UPDATE public.\"User\" SET name = 'wrong' WHERE uuid <> %s", DAN)
    world.sync()
    for name in ("other", "wrong"):
        world.app.sql('UPDATE public."User" SET name = %s WHERE uuid = %s', name, BOB)
        world.sync()
    world.warehouse.sql("UPDATE analytics.athlete_dim SET full_name = 'by hand' WHERE athlete_uuid = %s", CAT)
    world.warehouse.sql(page_statement("SET full_name = overwritten.old_name").replace("42", "2"))
    assert world.dimension() == {ANN: "Ann Archer", BOB: "wrong", CAT: "by hand", DAN: "Dan Dunn"}


def test_a_former_name_finds_its_athlete_as_the_page_says(world):
    three_changes(world)
    world.sync()
    rows = world.warehouse.sql(page_statement("WHERE former.old_name").replace("Ann Archer", "Bob Bowman"))
    assert [row[:3] for row in rows] == [(BOB, "Bob Bowman", "Bob Baker")]


def test_the_rounds_are_named_in_the_docs():
    assert "python/tests/diff_rounds.py" in (PROJECT / "python/docs/development.md").read_text(encoding="utf-8")
