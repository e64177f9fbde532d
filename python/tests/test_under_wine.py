"""The suite's main cases by a Windows Python under Wine: make test-windows. PowerShell and Task Scheduler
cannot be had there; what they start can.

The tests of other files that are named here run as they stand there, in a world that starts Windows'
Python: the project lies where a user may have put it, and was installed by the commands of windows.md.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import conftest
import test_settings
from conftest import ANN, NO_SETTINGS, Run, World, arguments
from lab import wine as windows
from lab.servers import PROJECT, SCRIPT
from lab.wine import windows_path
from test_ends import (  # noqa: F401
    check_failure, test_a_connection_that_the_server_ends, test_a_database_that_cannot_be_reached,
    test_a_package_that_is_missing_or_broken, test_a_wrong_command_line_is_1_and_not_argparses_2,
    test_all_problems_are_reported_together, test_attempts_to_connect_are_announced, test_done,
    test_done_as_json, test_quiet_is_silent_where_all_is_well, test_the_deadline, test_version,
    test_what_is_not_there)
from test_incremental import begun, test_only_what_changed_is_sent_counted_and_stamped, unique  # noqa: F401
from test_log_file import (  # noqa: F401
    log, project, test_a_package_that_is_missing_reaches_it, test_a_run_after_the_other,
    test_above_5_megabytes_it_becomes_the_older_one, test_env_beside_the_readme_names_it,
    test_it_holds_what_was_printed, test_it_is_utf8_whatever_the_terminal, test_json_is_for_stdout_only,
    test_option_before_environment_before_env, test_quiet_is_for_the_terminal_only,
    test_several_at_once_lose_no_line_while_it_becomes_the_older_one,
    test_what_is_wrong_with_the_settings_reaches_the_file_that_env_names)
from test_names import test_all_together, test_names_of_megabytes, test_two_thousand_generated  # noqa: F401
from test_settings import PASSWORDS, as_file, nothing_set, reader, test_the_environment_wins  # noqa: F401
from test_concurrency import test_a_second_run_is_skipped_while_the_first_holds_the_lock  # noqa: F401
from test_places import test_other_dimension  # noqa: F401
from test_rows import ROWS
from test_status import test_history_of_a_run_that_went_well  # noqa: F401

sys.path.insert(0, str(PROJECT / "python" / "lab"))
from athletes import fill_app

if not os.environ.get("TEST_UNDER_WINE"):
    pytest.skip("Windows' Python under Wine has a run of its own: make test-windows",
                allow_module_level=True)

PAGE = (PROJECT / "python" / "docs" / "windows.md").read_text(encoding="utf-8")
FOLDER_NAME = "Joey's UAIS, 100 % & M\u00fcller"


@pytest.fixture(scope="session")
def wine():
    with windows.Wine() as wine:
        yield wine


@pytest.fixture(scope="session")
def installed(wine, tmp_path_factory):
    """The project as a user has it, made by the page's commands. py is the launcher of python.org's
    installer, which this Python lacks; pip gets its packages from a folder, not from the network."""
    place = tmp_path_factory.mktemp("windows") / FOLDER_NAME
    place.mkdir()
    for name in ("python/scripts", "python/requirements.txt", "sql", "logs", ".env.example", "README.md"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        (place / name).parent.mkdir(exist_ok=True, parents=True)
        copy(str(PROJECT / name), str(place / name))
    user = Installed(wine, place)
    for command in ("py -m venv .venv", r".venv\Scripts\python -m pip install -r python\requirements.txt"):
        done = user.type_in(command)
        assert done.returncode == 0, done.stdout.decode("utf-8", "replace")
    return user


class Installed:
    def __init__(self, wine, place):
        self.wine, self.place = wine, place
        self.python = str(place / ".venv" / "Scripts" / "python.exe")
        self.launcher = place.parent / "launcher"
        self.launcher.mkdir()
        (self.launcher / "py.bat").write_text('@"%s" %%*\r\n' % windows_path(windows.PYTHON))

    def type_in(self, command, variables=None, on_the_page=True):
        """Type a line of windows.md into cmd, in the project's folder."""
        if on_the_page:
            assert re.search("^ *%s$" % re.escape(command), PAGE, re.MULTILINE), "not in windows.md: " + command
        known = {"WINEPATH": windows_path(self.launcher), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "nul",
                 "PIP_FIND_LINKS": windows_path(windows.WHEELS)}
        return self.wine.run(["cmd", "/d", "/c", command], self.place, dict(known, **(variables or {})))

    def lines_of(self, name):
        return (self.place / "logs" / name).read_text(encoding="utf-8").splitlines()


class WindowsWorld(World):
    """The world of all tests, but for what is started, and how what it printed is read."""

    installed = None

    def sync(self, *flags, **settings):
        return self.run("--json", *flags, **settings)

    def run(self, *flags, **settings):
        with self.held_to_the_rules(flags, settings) as runs:
            runs.append(finish(self.start(*flags, **settings)))
        return runs[0]

    def start(self, *flags, command=None, env_file=NO_SETTINGS.name, cwd=Path(os.sep), **settings):
        chosen = {name: text for name, text in self.environment(settings).items()
                  if not name.startswith("COVERAGE")}
        ours = {sys.executable: self.installed.python, str(SCRIPT): str(self.script_file())}
        command = [ours.get(word, word) for word in command or ours]
        process = self.installed.wine.start(command + arguments(flags, env_file), cwd, chosen)
        self.started.append(process)
        return process

    def script_file(self):
        return self.installed.place / SCRIPT.relative_to(PROJECT)


def finish(process):
    """What a console without UTF-8 shows, as a file of that code page."""
    out, err = process.communicate(timeout=conftest.RUN_MAY_TAKE)
    return Run(process.returncode, out.decode("cp1252"), err.decode("cp1252"))


@pytest.fixture(autouse=True)
def world(lab, sides, script, installed):
    app, warehouse = sides
    app.sql('TRUNCATE public."User"')
    warehouse.sql("TRUNCATE analytics.athlete_dim, analytics.athlete_sync_run, analytics.athlete_rename "
                  "RESTART IDENTITY")
    world = WindowsWorld(lab, app, warehouse, script)
    world.installed = installed
    yield world
    for process in world.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


# The page, typed in


# What Wine has no program for, or only one that does nothing.
NOT_TYPED_IN = ("cd ", "psql ", "notepad ", "schtasks ", "icacls ")
SCRIPT_LINE = r".venv\Scripts\python python\scripts\sync_athletes_from_app.py"
TYPED_IN = {
    "py -m venv .venv", r".venv\Scripts\python -m pip install -r python\requirements.txt",  # see installed
    "copy .env.example .env", "echo %ERRORLEVEL%", r"type logs\sync_athletes.log", SCRIPT_LINE,
    SCRIPT_LINE + " --check", SCRIPT_LINE + " --dry-run", SCRIPT_LINE + " --status",
    SCRIPT_LINE + r" >> logs\by_hand.log 2>&1"}


@pytest.fixture
def env_file(world, installed):
    """.env as a user gets it: copied, filled in, and saved by Notepad with a byte order mark and CRLF."""
    assert installed.type_in("copy .env.example .env").returncode == 0
    env_file = installed.place / ".env"
    text = env_file.read_text(encoding="utf-8")
    for name, value in world.lab.settings().items():
        text, times = re.subn("(?m)^%s=.*$" % name, lambda _: '%s="%s"' % (name, value), text)
        assert times == 1, name
    env_file.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    yield env_file
    env_file.unlink()
    for path in (installed.place / "logs").glob("*.log*"):
        path.unlink()


def test_every_command_of_the_page_is_typed_in_or_known_not_to_be():
    commands = set(re.findall(r"^    (\S.*)$", re.sub(r"(?s)```.*?```", "", PAGE), re.MULTILINE))
    assert {command for command in commands if not command.startswith(NOT_TYPED_IN)} == TYPED_IN


def test_step_5(world, installed, env_file):
    world.app_has((ANN, "Ann Anders"))
    for flag, code, words in ((" --check", 0, b""), (" --dry-run", 0, b"inserted=1 "), ("", 0, b"inserted=1 "),
                              (" --status", 0, b"healthy")):
        done = installed.type_in(SCRIPT_LINE + flag)
        assert done.returncode == code and words in done.stdout, done.stdout
    assert world.dimension() == {ANN: "Ann Anders"}


def test_the_exit_code_is_asked_for(installed, env_file):
    """In a batch file, because cmd /c takes one line."""
    env_file.write_bytes(re.sub(b"APP_PASSWORD=.*", b"APP_PASSWORD=wr0ng", env_file.read_bytes()))
    (installed.place / "by_hand.bat").write_text("@%s\n@echo %%ERRORLEVEL%%\n" % SCRIPT_LINE)
    done = installed.type_in("by_hand.bat", on_the_page=False)
    assert done.stdout.splitlines()[1:2] == [b"2"] or b"\r\n2\r\n" in done.stdout, done.stdout


@pytest.mark.parametrize("code, password", [(0, None), (2, b"APP_PASSWORD=wr0ng")])
def test_a_redirection(world, installed, env_file, code, password):
    world.app_has((ANN, "Ann Anders"))
    if password:
        env_file.write_bytes(re.sub(b"APP_PASSWORD=.*", password, env_file.read_bytes()))
    done = installed.type_in(SCRIPT_LINE + r" >> logs\by_hand.log 2>&1")
    assert (done.returncode, done.stdout) == (code, b"")
    assert installed.lines_of("by_hand.log")[-1].startswith("result=" + ("ok" if code == 0 else "failed"))


def way_1(installed):
    """The program and the arguments of the page, as Windows splits them."""
    program = re.search(r"Program: `(.*python\.exe)`", PAGE).group(1)
    script, options = re.search(r'Arguments: `"(.*\.py)" (.*)`', PAGE).groups()
    here = windows_path(installed.place)
    return [word.replace(r"C:\path\to\UAIS", here) for word in [program, script] + options.split()]


@pytest.mark.parametrize("settings, code", [
    (dict(), 0), (dict(APP_PASSWORD="wr0ng"), 2), (dict(APP_TABLE="nowhere"), 3), (dict(APP_PORT="x"), 1)],
    ids=str)
def test_way_1_from_another_folder(world, installed, env_file, tmp_path, settings, code):
    world.app_has((ANN, "Ann Anders"))
    run = finish(world.start(command=way_1(installed), env_file=None, cwd=tmp_path,
                             **dict(nothing_set(world), **settings)))
    assert run.code == code, run
    assert installed.lines_of("sync_athletes.log") == run.err.splitlines() + run.out.splitlines()
    shown = installed.type_in(r"type logs\sync_athletes.log")
    assert shown.stdout.decode("utf-8").splitlines() == installed.lines_of("sync_athletes.log")


def test_way_1_with_a_path_that_is_wrong(world, installed, env_file):
    program, script, *options = way_1(installed)
    run = finish(world.start(command=[program, script + "x"] + options, env_file=None))
    assert run.code == 2 and not (installed.place / "logs" / "sync_athletes.log").exists(), run


def test_a_venv_that_has_lost_its_python(world, installed, tmp_path):
    (tmp_path / "Scripts").mkdir()
    shutil.copy(installed.python, str(tmp_path / "Scripts"))
    (tmp_path / "pyvenv.cfg").write_text("home = C:\\nowhere\nversion = 3.11.9\n")
    run = finish(world.start(command=[str(tmp_path / "Scripts" / "python.exe"), str(SCRIPT)]))
    assert run.code == 0x67 and "`0x67`" in PAGE, run


def test_5000_athletes_of_many_scripts(world):
    fill_app(world.lab.app, 5000)
    assert world.sync().counts() == "5000: 5000 new"
    assert sorted(world.dimension().values()) == sorted(
        name for name, in world.app.sql('SELECT name FROM public."User"'))


@pytest.mark.parametrize("name", ["Windows line ends", "a byte order mark", "other letters", "a dollar"])
def test_a_password_in_env(world, reader, tmp_path, name):  # noqa: F811
    test_settings.test_a_password_in_env(world, reader, tmp_path, *PASSWORDS[name])


# The log file


HOLD = {
    "as an editor, for reading": "file = open(path)",
    "for appending": "file = open(path, 'a')",
}


def hold(world, code, path):
    """A Windows program that says `held` and stays until it is killed."""
    holder = world.start(command=[sys.executable, "-c", "import sys, time; path = sys.argv[1]; %s; "
                                  "print('held', flush=True); time.sleep(120)" % code, str(path)],
                         env_file=None)
    assert holder.stdout.readline().strip() == b"held"
    return holder


def let_go(holder):
    """The venv's python.exe is a launcher: it takes the true one with it, once it is gone."""
    holder.kill()
    holder.communicate()


@pytest.mark.parametrize("how", list(HOLD))
@pytest.mark.parametrize("full", [False, True], ids=["small", "above 5 MB"])
def test_a_log_that_another_program_has_open(world, log, how, full):  # noqa: F811
    log.write_bytes(b"old\n" * (1250000 if full else 1))
    holder = hold(world, HOLD[how], log)
    run = world.run("--log-file", str(log))
    let_go(holder)
    said = run.err.splitlines() + run.out.splitlines()
    assert run.code == 0 and "log file" not in run.err, run
    assert log.read_text(encoding="utf-8").splitlines() == ([] if full else ["old"]) + said
    assert log.with_name(log.name + ".1").exists() == full


# cmd opens what it redirects to for itself alone.
EXCLUSIVE = ("import ctypes; ctypes.windll.kernel32.CreateFileW.restype = ctypes.c_void_p; "
             "ctypes.windll.kernel32.CreateFileW(path, 0xC0000000, 0, None, 4, 0, None)")


def test_a_log_that_another_program_has_for_itself_alone(world, log):  # noqa: F811
    world.app_has((ANN, "Ann Anders"))
    holder = hold(world, EXCLUSIVE, log)
    run = world.run("--log-file", str(log))
    let_go(holder)
    assert run.code == 0 and run.err.count("WARNING log file: cannot write") == 1, run
    assert log.read_bytes() == b"" and world.dimension() == {ANN: "Ann Anders"}


@pytest.mark.parametrize("name", ["a folder", "nowhere/sync.log", "a:b?.log"])
def test_a_log_that_cannot_be_written(world, tmp_path, name):
    (tmp_path / "a folder").mkdir()
    run = world.run("--log-file", str(tmp_path / name))
    assert run.code == 0 and run.err.count("WARNING log file: cannot write") == 1, run


# Rows


@pytest.mark.parametrize("case", list(ROWS.values()), ids=list(ROWS))
def test_row(world, case):
    """As test_rows, whose dry run and second run would take minutes here."""
    world.app_has(*case["app"])
    world.warehouse_has(*case["before"])
    run = world.sync()
    assert (run.code, run.counts(), world.dimension()) == (0, case["counts"], case["after"]), run


# Ctrl-C


@pytest.mark.parametrize("side", ["app", "warehouse"])
def test_ctrl_c(world, side):
    """Wine makes one of SIGINT, for whatever was started from one console: the launcher and the script."""
    world.app_has((ANN, "Ann Anders"))
    with getattr(world, side).locked():
        process = world.start()
        getattr(world, side).wait_until_a_run_waits_for_a_lock()
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        run = finish(process)
        seconds = time.monotonic() - began
    check_failure(run, 4, "interrupted by SIGINT", "run it again")
    assert seconds < 3, "%.1f s" % seconds
    assert world.dimension() == {}
    assert world.sync().code == 0, "no lock is left behind"
