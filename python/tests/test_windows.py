"""What can be known of Windows without one: the wrapper, by a grammar and by PowerShell where that is installed; the
task, against the schema of Task Scheduler; the page; and the script without what Windows lacks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from conftest import ANN, finish, project_in
from lab.servers import PROJECT, SCRIPT
from test_docs import blocks, text_of
from test_typed import JOEYS, PYTHON, executable, fill_in

WRAPPER = SCRIPT.with_name("run_sync_athletes.ps1")
TASK = SCRIPT.with_name("sync_athletes_task.xml").read_bytes()
ROOT = ElementTree.fromstring(TASK)
PAGE = text_of("windows")
NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


# The wrapper


def test_the_wrapper_is_powershell():
    """Version 5.1 takes a file without a byte order mark for the system's code page, and lacks some words."""
    text = WRAPPER.read_bytes().decode("ascii")
    assert len([line for line in text.splitlines() if line.strip() and not line.startswith("#")]) <= 20
    assert [newer for newer in ("&&", "||", "??", "?.", "-Parallel", "utf8NoBOM") if newer in text] == []
    if sys.version_info < (3, 10):
        pytest.skip("tree-sitter-powershell has no wheel for this Python; 3.10 and later parse the wrapper")
    import tree_sitter
    import tree_sitter_powershell
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
    assert not parser.parse(text.encode()).root_node.has_error


STRICT = "$ErrorActionPreference = 'Stop'; $PSNativeCommandUseErrorActionPreference = $true; "
WRAPPED = {  # what comes before in the session, what .venv's python.exe is, options: exit code, what is said
    "options reach it": ("", PYTHON, "--dry-run", 0, "result=ok .*dry_run=true"),
    "a refusal in a strict session": (STRICT, PYTHON, "--strict", 3, "result=failed "),
    "python.exe is not there": ("", None, "", 1, r"python.exe does not start: .* Next: step 4 of "),
    "python.exe is damaged": (STRICT, "damaged", "", 1, r"python.exe does not start: .* Next: step 4 of "),
    "python.exe has lost its Python": ("", "#!/bin/sh\nexit 103\n", "", 103, r"python.exe ended with 103, .* Next: "),
}


@pytest.mark.parametrize("folder", [JOEYS, "[brackets]"])
@pytest.mark.parametrize("case", WRAPPED)
def test_powershell_runs_the_wrapper(world, tmp_path, folder, case):
    if not shutil.which("pwsh"):
        pytest.skip("PowerShell (pwsh) is not installed: the wrapper is parsed, not run")
    session, python, options, code, said = WRAPPED[case]
    world.app_has((ANN, "Ann Anders"), ("x", "Bob Bowman"))
    place = project_in(tmp_path / folder)  # without logs: the wrapper makes it
    wrapper = place / WRAPPER.relative_to(PROJECT)
    shutil.copy(str(WRAPPER), str(wrapper))
    fill_in(place / ".env", world, "")
    if python:
        executable(place / ".venv" / "Scripts" / "python.exe", python)
    command = "%s& '%s' %s; exit $LASTEXITCODE" % (session, str(wrapper).replace("'", "''"), options)
    done = subprocess.run(["pwsh", "-NoProfile", "-Command", command], cwd=str(tmp_path))
    log = (place / "logs" / "sync_athletes.log").read_text(encoding="utf-8-sig")
    assert done.returncode == code and re.search(said, log), log


# The page


def test_the_sql_for_somebody_without_psql_is_enough(world):
    """As it stands, but for the names of roles and schema, which are there."""
    for_app, for_warehouse = [re.sub("app(?=_readonly)|warehouse(?=_writer)|analytics", "page", text)
                              for text in blocks("windows", "sql")]
    undo = "DROP SCHEMA IF EXISTS page CASCADE; DROP OWNED BY {0}; DROP ROLE {0}"
    with world.app.changed(for_app, undo.format("page_readonly")), \
            world.warehouse.changed(for_warehouse, undo.format("page_writer")):
        world.app_has((ANN, "Ann Anders"))
        run = world.sync(APP_USER="page_readonly", APP_PASSWORD="your_app_password", WH_USER="page_writer",
                         WH_PASSWORD="your_wh_password", WH_TABLE="page.athlete_dim")
    assert (run.code, run.counts()) == (0, "1: 1 new") and run.err.count("warehouse_setup.sql") == 1, run


def test_the_page_names_what_is_there():
    named = re.findall(r"(?:python|sql)\\[\w\\]*\w\.\w+", PAGE + WRAPPER.read_text(encoding="ascii"))
    assert named and [name for name in named if not (PROJECT / name.replace("\\", "/")).exists()] == []
    assert re.findall(r"(?m)^\| `0x([0-4])` \| \w", PAGE) == list("01234")
    assert "Arguments: `%s`" % value("Actions/Exec/Arguments") in PAGE and "### 4. Packages" in PAGE


# The task


def value(path):
    return ROOT.find("/".join(NAMESPACE + step for step in path.split("/"))).text


def test_the_task_is_as_task_scheduler_wants_it():
    text = TASK.decode("utf-16")
    assert TASK.startswith(b"\xff\xfe") and text.startswith('<?xml version="1.0" encoding="UTF-16"?>\r\n')
    assert text.count("\n") == text.count("\r\n") and text.count("C:\\") == 1
    assert re.findall(r"S-1-[\d-]+", text) == ["S-1-5-18"]  # the system's own, which every Windows has
    assert (ROOT.get("version"), re.findall('(?:Context|id)="(.*?)"', text)) == ("1.2", ["Author", "Author"])


def test_the_task_runs_the_wrapper_once_a_day(script):
    assert value("Actions/Exec/Command") == "powershell.exe"
    path, = re.findall(r'^-NoProfile .* Bypass -File "C:\\path\\to\\UAIS\\(.*)"$', value("Actions/Exec/Arguments"))
    assert PROJECT / path.replace("\\", "/") == WRAPPER
    assert value("Triggers/CalendarTrigger/ScheduleByDay/DaysInterval") == "1"
    assert value("Settings/MultipleInstancesPolicy") == "IgnoreNew" and value("Settings/StartWhenAvailable") == "true"
    deadline, = (setting.default for setting in script.SETTINGS if setting.name == "SYNC_DEADLINE")
    assert value("Settings/ExecutionTimeLimit") == "PT2H" and int(deadline) < 2 * 3600


# Imported first is what needs these itself here, as it does not there.
WITHOUT = """
import os, runpy, select, signal, sys
import dotenv, numpy, pandas, psycopg2.extensions, tqdm
for module, names in (
        (signal, "SIGALRM SIGHUP SIGUSR1 SIGKILL setitimer alarm pthread_kill pthread_sigmask pause"),
        (os, "fork forkpty geteuid getuid setuid getgid getpwnam set_blocking mkfifo uname wait killpg"),
        (select, "poll epoll kqueue")):
    for name in names.split():
        vars(module).pop(name, None)
for name in ("fcntl", "pwd", "grp", "resource", "termios", "syslog", "posix", "tty", "pty"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("flag, settings, code", [
    ("--json", {}, 0), ("--check", {}, 0), ("--json", dict(SYNC_DEADLINE="1", APP_PASSWORD="wrong"), 2),
    ("-v", dict(APP_TABLE='public."\u0421\u043f\u043e\u0440\u0442"', PYTHONIOENCODING="cp437"), 3)], ids=str)
def test_the_script_needs_nothing_that_windows_lacks(world, flag, settings, code):
    """Nor a console that has all characters."""
    world.app_has((ANN, "Ann Anders"))
    with world.held_to_the_rules((flag,), settings) as runs:
        runs.append(finish(world.start(flag, command=(sys.executable, "-c", WITHOUT, str(SCRIPT)), **settings)))
    assert runs[0].code == code and (flag != "--check" or runs[0].out.endswith("Ready\n")), runs
    assert "Traceback" not in runs[0].out + runs[0].err, runs
