"""SYNC_LOG_FILE and --log-file: what is said on stderr and the result line are kept in a file too."""

from __future__ import annotations

import os
import re
import sys

import pytest

from conftest import ANN, finish, project_in, run_in
from lab.servers import PROJECT, SCRIPT

RESULT = re.compile(r"result=\w+ mode=full source=\S+ inserted=\S+ updated=\S+ unchanged=\S+ missing=\S+ "
                    r"rejected=\S+ repeated=\S+ seconds=\S+( dry_run=true)?")
MOST_BYTES = 5 * 1000 * 1000


@pytest.fixture
def log(tmp_path):
    return tmp_path / "Joey's log.txt"


def lines_of(path):
    return path.read_bytes().decode("utf-8").splitlines()


def said(run):
    """What a file shall hold after a run that printed no JSON."""
    return run.err.splitlines() + run.out.splitlines()


# What is in it


@pytest.mark.parametrize("flags, settings, code", [
    ([], dict(), 0), (["--dry-run"], dict(), 0), (["-v"], dict(APP_PASSWORD="wr0ng"), 2),
    ([], dict(APP_TABLE="nowhere"), 3), ([], dict(WH_DB=None, APP_PORT="x"), 1), (["--check"], dict(), 0),
    (["--status"], dict(), 3), (["--strict", "--nonsense"], dict(), 1)], ids=str)
def test_it_holds_what_was_printed(world, log, flags, settings, code):
    world.app_has((ANN, "Ann Archer"), ("x", "Bob Bowman"))
    run = world.run("--log-file", str(log), *flags, **settings)
    assert run.code == code, run
    assert lines_of(log) == said(run)


def test_a_run_after_the_other(world, log):
    runs = [world.run(SYNC_LOG_FILE=str(log)) for _ in range(2)]
    assert lines_of(log) == said(runs[0]) + said(runs[1])


def test_quiet_is_for_the_terminal_only(world, log):
    world.app_has((ANN, "Ann Archer"))
    run = world.run("-q", "--log-file", str(log))
    assert (run.code, run.out, run.err) == (0, "", "")
    assert RESULT.match(lines_of(log)[-1]) and " INFO app: connected to " in "\n".join(lines_of(log))


def test_json_is_for_stdout_only(world, log):
    """It lists uuids and, where asked, names; the file gets the result line."""
    world.app_has((ANN, "Ann Archer"))
    assert world.run("--json", "--log-file", str(log)).result["inserted"] == 1
    assert RESULT.match(lines_of(log)[-1]) and "Ann Archer" not in "\n".join(lines_of(log))


def test_it_is_utf8_whatever_the_terminal(world, log):
    table = 'public."\u0421\u043f\u043e\u0440\u0442"'
    run = world.run("--log-file", str(log), APP_TABLE=table, PYTHONIOENCODING="ascii")
    assert run.code == 3 and "\u0421\u043f\u043e\u0440\u0442" in lines_of(log)[-2]


@pytest.mark.parametrize("module", ["psycopg2", "dotenv"])
def test_a_package_that_is_missing_reaches_it(world, tmp_path, log, module):
    (tmp_path / (module + ".py")).write_text("raise ImportError(\"No module named '%s'\")" % module)
    run = world.run("--log-file", str(log), PYTHONPATH=str(tmp_path))
    assert run.code == 1 and module in lines_of(log)[-2], run
    assert lines_of(log) == said(run)


def test_help_writes_nothing(world, log):
    assert world.run("--help", "--log-file", str(log)).code == 0
    assert not log.exists()


@pytest.mark.skipif(os.name != "posix", reason="bash closes it")
def test_nobody_listens(world, log):
    run = finish(world.start("--log-file", str(log), command=[
        "bash", "-c", '"$0" "$@" >&- 2>&-', sys.executable, str(SCRIPT)]))
    assert run.code == 0 and RESULT.match(lines_of(log)[-1])


# Where it is


@pytest.fixture
def project(tmp_path):
    return project_in(tmp_path / "a project")


LINES = {
    "plain": "SYNC_LOG_FILE=sync.log",
    "blanks": "  SYNC_LOG_FILE =  sync.log  ",
    "single quotes": "SYNC_LOG_FILE='sync.log'",
    "double quotes": 'SYNC_LOG_FILE="sync.log"',
    "a comment": "SYNC_LOG_FILE=sync.log # beside README",
    "export": "export SYNC_LOG_FILE=sync.log",
    "the last counts": "SYNC_LOG_FILE=wrong.log\nSYNC_LOG_FILE=sync.log",
    "a comment before": "#SYNC_LOG_FILE=wrong.log\nSYNC_LOG_FILE=sync.log\n# SYNC_LOG_FILE=wrong.log",
    "another name": "SYNC_LOG_FILE=sync.log\nMY_SYNC_LOG_FILE=wrong.log\nSYNC_LOG_FILES=wrong.log",
    "Windows line ends": "APP_PORT=1\r\nSYNC_LOG_FILE=sync.log\r\nAPP_DB=x\r\n",
    "a byte order mark": "\ufeffSYNC_LOG_FILE=sync.log",
    "nothing": "SYNC_LOG_FILE=\n",
    "nothing but a comment": "SYNC_LOG_FILE= # none",
}


@pytest.mark.parametrize("name", list(LINES))
def test_env_names_it_as_dotenv_reads_it(world, script, tmp_path, name):
    env_file = tmp_path / "x.env"
    env_file.write_bytes(LINES[name].encode("utf-8"))
    found = script.find_log_file(["--env-file", str(env_file)])
    assert found == (None if name.startswith("nothing") else PROJECT / "sync.log")
    read = script.read_env_file(str(env_file))["SYNC_LOG_FILE"]
    assert (None if read in ("", "# none") else read) == (found and "sync.log")  # the latter from dotenv before 1.1


@pytest.mark.parametrize("missing", ["nothing", "dotenv"])
def test_env_beside_the_readme_names_it(world, project, tmp_path, missing):
    """A relative path counts from the project, wherever the run was started; without any package too."""
    (tmp_path / (missing + ".py")).write_text("raise ImportError(\"No module named 'it'\")")
    (project / ".env").write_text("SYNC_LOG_FILE=sync.log\n")
    run = run_in(project, world, PYTHONPATH=str(tmp_path))
    assert run.code == (0 if missing == "nothing" else 1), run
    assert lines_of(project / "sync.log") == said(run)


def test_what_is_wrong_with_the_settings_reaches_the_file_that_env_names(world, project):
    (project / ".env").write_text("SYNC_LOG_FILE=sync.log\nAPP_PORT=x\n")
    run = run_in(project, world, APP_PORT=None)
    assert run.code == 1 and "APP_PORT" in lines_of(project / "sync.log")[-2]


def test_option_before_environment_before_env(world, project):
    (project / ".env").write_text("SYNC_LOG_FILE=env.log\n")
    for flags, settings, name in ((["--log-file=option.log"], dict(SYNC_LOG_FILE="set.log"), "option.log"),
                                  ([], dict(SYNC_LOG_FILE="set.log"), "set.log"),
                                  ([], dict(SYNC_LOG_FILE=""), "env.log")):
        assert run_in(project, world, *flags, **settings).code == 0
        assert [path.name for path in project.glob("*.log")] == [name]
        (project / name).unlink()


# What can go wrong with it


@pytest.mark.parametrize("name", ["folder.log", "nowhere/sync.log", "/dev/stdout"])
@pytest.mark.parametrize("settings, code", [(dict(), 0), (dict(APP_TABLE="nowhere"), 3)], ids=["ok", "failed"])
def test_one_that_cannot_be_written_is_a_warning(world, tmp_path, name, settings, code):
    world.app_has((ANN, "Ann Archer"))
    (tmp_path / "folder.log").mkdir()
    run = world.run("--log-file", str(tmp_path / name), **settings)
    assert run.code == code, run
    warnings = [line for line in run.err.splitlines() if "WARNING log file: cannot write " in line]
    assert len(warnings) == 1 and str(tmp_path / name) in warnings[0], run
    assert run.out.count("\n") == 1 and run.error != warnings[0]


@pytest.mark.skipif(os.name != "posix", reason="flock is a matter of POSIX; under Wine there is another")
def test_one_that_is_locked_for_a_while_loses_no_line(world, log):
    import fcntl
    with log.open("wb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with world.warehouse.locked():
            process = world.start("--log-file", str(log))
            world.warehouse.wait_until_a_run_waits_for_a_lock()
            holder.close()
    run = finish(process)
    warning, = [line for line in said(run) if "WARNING log file" in line]
    assert sorted(lines_of(log)) == sorted(said(run)) and "cannot write" in warning


def test_above_5_megabytes_it_becomes_the_older_one(world, log):
    older = log.with_name(log.name + ".1")
    older.write_bytes(b"oldest\n")
    log.write_bytes(b"old\n" * (MOST_BYTES // 4))
    run = world.run("--log-file", str(log))
    assert (run.code, older.stat().st_size) == (0, MOST_BYTES)
    assert lines_of(log) == said(run)
    assert sorted(path.name for path in log.parent.iterdir()) == [log.name, older.name]


WRITERS, LINES_EACH = 4, 3000
WRITE = """
import importlib.util, sys
specification = importlib.util.spec_from_file_location("sync", sys.argv[1])
sync = sys.modules["sync"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(sync)
sync.LogFile.MOST_BYTES, sync.LogFile.SECONDS_TO_WAIT = 800000, 60
file = sync.LogFile(sync.Path(sys.argv[2]))
for number in range(int(sys.argv[4])):
    file.write("%s %d %s" % (sys.argv[3], number, "x" * 80))
"""


def test_several_at_once_lose_no_line_while_it_becomes_the_older_one(world, log, tmp_path):
    """1.1 MB in all, so that it is copied away once, and nothing is copied over."""
    (tmp_path / "write.py").write_text(WRITE)
    writers = [world.start(command=[sys.executable, str(tmp_path / "write.py"), str(SCRIPT), str(log),
                                    str(number), str(LINES_EACH)], env_file=None) for number in range(WRITERS)]
    for writer in writers:
        out, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err
    older = log.with_name(log.name + ".1")
    lines = lines_of(older) + lines_of(log)
    assert sorted(line.rstrip("x") for line in lines) == sorted(
        "%d %d " % (writer, number) for writer in range(WRITERS) for number in range(LINES_EACH))
    assert 0 < log.stat().st_size < older.stat().st_size <= 800000
