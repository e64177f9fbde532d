"""SYNC_LOG_FILE and --log-file: what is said on stderr and the result line are kept in a file too."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ANN, arguments, finish, project_in, run_in
from lab.servers import SCRIPT

RESULT = re.compile(r"(\S+Z INFO )?result=\w+ mode=full source=\S+ inserted=\S+ updated=\S+ unchanged=\S+ missing=\S+ "
                    r"rejected=\S+ repeated=\S+ seconds=\S+( dry_run=true)?")
MOST_BYTES = 5 * 1000 * 1000


@pytest.fixture
def log(tmp_path):
    return tmp_path / "Joey's log.txt"


def lines_of(path):
    return path.read_bytes().decode("utf-8").splitlines()


@pytest.mark.parametrize("flags, settings, code", [
    ([], dict(), 0), (["--dry-run"], dict(), 0), (["-v"], dict(APP_PASSWORD="wr0ng"), 2),
    ([], dict(APP_TABLE="nowhere"), 3), ([], dict(WH_DB=None, APP_PORT="x"), 1), (["--json"], dict(), 0)], ids=str)
def test_it_holds_what_was_printed(world, log, flags, settings, code):
    world.app_has((ANN, "Ann Archer"), ("x", "Bob Bowman"))
    log.write_text("of the run before\n")
    run = world.run(*flags, SYNC_LOG_FILE=str(log), **settings)
    first, *lines, last = lines_of(log)
    assert (run.code, first, lines) == (code, "of the run before", run.err.splitlines()), run
    assert RESULT.fullmatch(last) and ("--json" in flags or last.endswith(run.out.rstrip("\n"))), last


@pytest.mark.parametrize("flag", ["-q", "--check"])
def test_it_holds_the_result_of_those_who_say_something_else(world, log, flag):
    world.app_has((ANN, "Ann Archer"))
    assert world.sync().code == 0
    run = world.run(flag, "--log-file", str(log))
    assert (run.code, run.err, run.out == "") == (0, "", flag == "-q") and RESULT.fullmatch(lines_of(log)[-1]), run
    assert flag != "-q" or " INFO app: connected to " in "\n".join(lines_of(log)), "quiet is for the terminal alone"


def test_it_is_utf8_whatever_the_terminal(world, log):
    table = 'public."\u0421\u043f\u043e\u0440\u0442"'
    run = world.run("--log-file", str(log), APP_TABLE=table, PYTHONIOENCODING="ascii")
    assert run.code == 3 and "\u0421\u043f\u043e\u0440\u0442" in lines_of(log)[-2]


@pytest.mark.skipif(os.name != "posix", reason="bash closes it")
def test_nobody_listens(world, log):
    run = finish(world.start("--log-file", str(log), command=[
        "bash", "-c", '"$0" "$@" >&- 2>&-', sys.executable, str(SCRIPT)]))
    assert run.code == 0 and RESULT.fullmatch(lines_of(log)[-1])


def test_option_before_environment_before_env_and_beside_the_readme(world, tmp_path):
    project = project_in(tmp_path / "a project")
    (project / ".env").write_text("SYNC_LOG_FILE=env.log\n")
    for flags, settings, name in ((["--log-file=option.log"], dict(SYNC_LOG_FILE="set.log"), "option.log"),
                                  ([], dict(SYNC_LOG_FILE="~/home.log", HOME=str(project)), "home.log"),
                                  ([], dict(SYNC_LOG_FILE="set.log"), "set.log"),
                                  ([], dict(SYNC_LOG_FILE=""), "env.log")):
        assert run_in(project, world, *flags, **settings).code == 0
        assert [path.name for path in project.glob("*.log")] == [name]
        (project / name).unlink()
    assert run_in(project, world, APP_PORT="x").code == 1 and "APP_PORT" in lines_of(project / "env.log")[-2]
    assert run_in(project, world, "--help", "--log-file=none.log").code == 0 and not (project / "none.log").exists()


@pytest.mark.parametrize("name", ["folder.log", "nowhere/sync.log"])
@pytest.mark.parametrize("settings, code", [(dict(), 0), (dict(APP_TABLE="nowhere"), 3)], ids=["ok", "failed"])
def test_one_that_cannot_be_written_is_a_warning(world, tmp_path, name, settings, code):
    (tmp_path / "folder.log").mkdir()
    run = world.run("--log-file", str(tmp_path / name), **settings)
    warning, = [line for line in run.err.splitlines() if " WARNING log file: " in line]
    assert (run.code, run.out.count("\n")) == (code, 1) and str(tmp_path / name) in warning, run


def test_above_5_megabytes_it_becomes_the_older_one_and_no_line_is_lost(world, log):
    """Not even of a run that still has it open."""
    older = log.with_name(log.name + ".1")
    older.write_bytes(b"oldest\n")
    with world.warehouse.locked():
        process = world.start("--log-file", str(log))
        world.warehouse.wait_until_a_run_waits_for_a_lock()
        with log.open("ab") as file:
            file.write(b"old\n" * (MOST_BYTES // 4))
        second = finish(world.start("--log-file", str(log)))
    first = finish(process)
    assert (first.code, second.code) == (0, 0) and " skipped: " in second.err
    assert [line for line in lines_of(older) if line != "old"][:-1] == first.err.splitlines()
    assert lines_of(log)[:-1] == second.err.splitlines()
    assert sorted(path.name for path in log.parent.iterdir()) == [log.name, older.name]


def test_cron_writes_to_the_same_file(world, log):
    """Each line would be there twice; so it is there once, with a warning."""
    world.app_has((ANN, "Ann Archer"))
    with log.open("ab") as file:
        code = subprocess.call([sys.executable, str(SCRIPT), "--log-file", str(log)] + arguments(()), stdout=file,
                               stderr=file, stdin=subprocess.DEVNULL, env=world.environment({}))
    assert code == 0 and len([line for line in lines_of(log) if RESULT.fullmatch(line)]) == 1
    assert len([line for line in lines_of(log) if " INFO app: connected to " in line]) == 1
    assert len([line for line in lines_of(log) if " WARNING " in line]) == 1
