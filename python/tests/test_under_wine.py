"""The suite's main cases by a Windows Python under Wine: make test-windows. PowerShell and Task Scheduler cannot be
had there; what they start can. The tests of other files that are named here run as they stand there, in a world that
starts Windows' Python: the project lies where a user may have put it, installed by the commands of windows.md."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import ANN, NO_SETTINGS, RUN_MAY_TAKE, World, arguments, finish, project_in
from lab import wine as windows
from lab.servers import PROJECT, SCRIPT
from test_concurrency import test_a_second_run_is_skipped_while_the_first_holds_the_lock  # noqa: F401
from test_docs import text_of
from test_ends import (  # noqa: F401
    check_failure, test_a_package_that_is_missing_or_broken, test_a_wrong_command_line_is_1_and_not_argparses_2,
    test_all_problems_are_reported_together, test_done)
from test_errors import CASES, test_a_cause_is_told_and_what_is_pasted_mends_it as told_and_mended
from test_incremental import begun, test_only_what_changed_is_sent_counted_and_stamped  # noqa: F401
from test_log_file import (  # noqa: F401
    lines_of, log, test_it_holds_what_was_printed, test_it_is_utf8_whatever_the_terminal)
from test_names import test_names_of_megabytes, test_two_thousand_together  # noqa: F401
from test_places import test_other_names_on_both_sides  # noqa: F401
from test_rows import ROWS
from test_settings import (  # noqa: F401
    PASSWORDS, reader, test_a_password_in_env as password_in_env, test_the_environment_wins)
from test_status import test_history_of_a_run_that_went_well  # noqa: F401
from test_typed import fill_in

if not os.environ.get("TEST_UNDER_WINE"):
    pytest.skip("Windows' Python under Wine has a run of its own: make test-windows", allow_module_level=True)

PAGE = text_of("windows")
# All that is to be typed but what Wine has no program for, or only one that does nothing.
COPY, VENV, PACKAGES, CHECK, DRY_RUN, SYNC, STATUS, SHOW_LOG, BY_HAND = (
    command for command in re.findall(r"^    (\S.*)$", re.sub(r"(?s)```.*?```", "", PAGE), re.MULTILINE)
    if not command.startswith(("cd ", "echo ", "psql ", "notepad ", "schtasks ", "icacls ")))


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    with windows.Wine() as wine:
        yield Installed(wine, tmp_path_factory.mktemp("windows"))


class Installed:
    """The project as a user has it, made by the page's commands. py is the launcher of python.org's
    installer, which this Python lacks; pip gets its packages from a folder, not from the network."""

    def __init__(self, wine, folder):
        self.wine, self.folder, self.place = wine, folder, project_in(folder / "Joey's UAIS, 100 % & M\u00fcller")
        self.python = str(self.place / ".venv" / "Scripts" / "python.exe")
        (self.place / "logs").mkdir()
        for name in ("python/requirements.txt", ".env.example"):
            shutil.copy(str(PROJECT / name), str(self.place / name))
        (folder / "py.bat").write_text('@"%s" %%*\r\n' % windows.windows_path(windows.PYTHON))
        self.type_in(VENV)
        self.type_in(PACKAGES)

    def type_in(self, command, code=0):
        """Into cmd, in the project's folder. Returns what is printed."""
        done = self.wine.run(["cmd", "/d", "/c", command], self.place, {
            "WINEPATH": windows.windows_path(self.folder), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "nul",
            "PIP_FIND_LINKS": windows.windows_path(windows.WHEELS)})
        assert done.returncode == code, (command, done.stdout)
        return done.stdout


class WindowsWorld(World):
    def sync(self, *flags, **settings):
        return self.run("--json", *flags, **settings)

    def start(self, *flags, command=None, env_file=NO_SETTINGS.name, cwd=Path(os.sep), **settings):
        chosen = {name: text for name, text in self.environment(settings).items() if not name.startswith("COVERAGE")}
        ours = {sys.executable: self.installed.python,
                str(SCRIPT): str(self.installed.place / SCRIPT.relative_to(PROJECT))}
        command = [ours.get(word, word) for word in command or ours]
        self.started.append(self.installed.wine.start(command + arguments(flags, env_file), cwd, chosen))
        return self.started[-1]


@pytest.fixture(autouse=True)
def world(world, installed):
    of_windows = WindowsWorld(world.lab, world.app, world.warehouse, world.script)
    of_windows.installed, of_windows.started = installed, world.started  # which are killed after the test
    return of_windows


@pytest.fixture
def env_file(world, installed):
    """.env as a user gets it: copied, filled in, and saved by Notepad with a byte order mark and CRLF. And no log."""
    for path in [*installed.place.glob(".env"), *installed.place.glob("logs/*")]:
        path.unlink()
    installed.type_in(COPY)
    path = installed.place / ".env"
    fill_in(path, world, path.read_text(encoding="utf-8"))
    path.write_bytes(path.read_text(encoding="utf-8").replace("\n", "\r\n").encode("utf-8-sig"))
    return path


@pytest.mark.parametrize("more, code, result", [
    (b"", 0, "result=ok"), (b"APP_PASSWORD=wr0ng\r\n", 2, "result=failed")], ids=["well", "refused"])
def test_step_5(world, installed, env_file, more, code, result):
    world.app_has((ANN, "Ann Anders"))
    env_file.write_bytes(env_file.read_bytes() + more)
    for command, shown in ((CHECK, b"eady"), (DRY_RUN, b"result="), (SYNC, b"result=")):
        assert shown in installed.type_in(command, code)
    installed.type_in(STATUS, 3 if code else 0)
    assert installed.type_in(BY_HAND, code) == b""
    assert lines_of(installed.place / "logs" / "by_hand.log")[-1].startswith(result)
    assert world.dimension() == ({} if code else {ANN: "Ann Anders"})


@pytest.mark.parametrize("settings, code", [
    (dict(), 0), (dict(APP_PASSWORD="wr0ng"), 2), (dict(APP_TABLE="nowhere"), 3), (dict(APP_PORT="x"), 1)], ids=str)
def test_way_1_from_another_folder(world, installed, env_file, tmp_path, settings, code):
    """The program and the arguments of the page, as Windows splits them, on a console without UTF-8."""
    world.app_has((ANN, "Ann Anders"))
    program, arguments = re.findall("(?:Program|Arguments): `(.*)`", PAGE)[:2]
    command = [word.strip('"').replace(r"C:\path\to\UAIS", windows.windows_path(installed.place))
               for word in [program] + arguments.split()]
    process = world.start(command=command, env_file=None, cwd=tmp_path,
                          **dict(dict.fromkeys(world.lab.settings()), **settings))
    out, err = process.communicate(timeout=RUN_MAY_TAKE)
    lines = lines_of(installed.place / "logs" / "sync_athletes.log")
    assert lines[:-1] == err.decode("cp1252").splitlines() and lines[-1].endswith(out.decode().strip()), err
    assert (process.returncode, installed.type_in(SHOW_LOG).decode().splitlines()) == (code, lines)


def test_a_venv_that_has_lost_its_python(world, installed, tmp_path):
    (tmp_path / "Scripts").mkdir()
    shutil.copy(installed.python, str(tmp_path / "Scripts"))
    (tmp_path / "pyvenv.cfg").write_text("home = C:\\nowhere\nversion = 3.11.9\n")
    run = finish(world.start(command=[str(tmp_path / "Scripts" / "python.exe"), str(SCRIPT)]))
    assert run.code == 0x67 and "`0x67`" in PAGE, run


# cmd opens what it redirects to for itself alone.
EXCLUSIVE = ("import ctypes; ctypes.windll.kernel32.CreateFileW.restype = ctypes.c_void_p; "
             "ctypes.windll.kernel32.CreateFileW(path, 0xC0000000, 0, None, 4, 0, None)")


@pytest.mark.parametrize("how", ["file = open(path)", "file = open(path, 'a')", EXCLUSIVE],
                         ids=["read", "appended to", "alone"])
def test_a_log_that_another_program_has_open(world, log, how):  # noqa: F811
    """One above 5 MB is written to all the same, and renamed later; one that is held alone is left out."""
    log.write_bytes(b"old\n" * 1250001)
    code = "import sys, time; path = sys.argv[1]; %s; print('held', flush=True); time.sleep(120)" % how
    holder = world.start(command=[sys.executable, "-c", code, str(log)], env_file=None)
    assert holder.stdout.readline().strip() == b"held"
    run = world.run("--log-file", str(log))
    assert run.code == 0 and run.err.count("WARNING log file: cannot write") == (how == EXCLUSIVE), run
    assert how == EXCLUSIVE or lines_of(log)[1250001:-1] == run.err.splitlines(), run


@pytest.mark.parametrize("name", [name for name in CASES if re.search("wrong|no such|TLS|closed|unknown|quotes", name)])
def test_a_cause(world, name):
    """As in test_errors.py, whose other causes are told by the servers alone."""
    told_and_mended(world, name)


@pytest.mark.parametrize("app, before, counts, after", [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_row(world, app, before, counts, after):
    """As test_rows, whose dry run and second run would take minutes here."""
    world.app_has(*app)
    world.warehouse_has(*before.items())
    run = world.sync()
    assert (run.code, run.counts(), world.dimension()) == (0, counts, after), run


@pytest.mark.parametrize("name", ["other letters", "a dollar", "Windows line ends", "a byte order mark"])
def test_a_password_in_env(world, reader, env_file, name):  # noqa: F811
    password_in_env(world, reader, env_file, *PASSWORDS[name])


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
        assert time.monotonic() - began < 3, run
    check_failure(run, 4, "interrupted by SIGINT", "run it again")
    assert world.dimension() == {} and world.sync().code == 0, "no lock is left behind"
