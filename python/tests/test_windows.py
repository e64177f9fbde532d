"""What can be known of Windows without one: the wrapper's grammar and words, the task against the schema of
Task Scheduler, the page, and the script without what Windows lacks. test_under_wine.py runs the rest."""

from __future__ import annotations

import codecs
import re
import sys
from xml.etree import ElementTree

import pytest
from conftest import ANN, finish
from lab.servers import PROJECT, SCRIPT

WRAPPER = SCRIPT.with_name("run_sync_athletes.ps1")
TASK = SCRIPT.with_name("sync_athletes_task.xml")
PAGE = (PROJECT / "python" / "docs" / "windows.md").read_text(encoding="utf-8")
NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


# The wrapper


def test_the_wrapper_is_powershell():
    if sys.version_info < (3, 10):
        pytest.skip("tree-sitter-powershell has no wheel for this Python; 3.10 and later parse the wrapper")
    import tree_sitter
    import tree_sitter_powershell
    language = tree_sitter.Language(tree_sitter_powershell.language())
    tree = tree_sitter.Parser(language).parse(WRAPPER.read_bytes())
    assert not tree.root_node.has_error, tree.root_node


def test_windows_powershell_reads_the_wrapper():
    """Version 5.1 takes a file without a byte order mark for the system's code page."""
    text = WRAPPER.read_bytes().decode("ascii")
    assert "\t" not in text
    code = re.sub(r"(?m)^\s*#.*$", "", text)
    for newer in ("&&", "||", "??", "?.", "-Parallel", "PSNativeCommand", "utf8NoBOM"):
        assert newer not in code, "Windows PowerShell 5.1 has no " + newer


def test_the_wrapper_names_what_is_there(script):
    text = WRAPPER.read_text(encoding="ascii")
    for name in re.findall(r"python\\[\w\\]+\.\w+", text):
        assert (PROJECT / name.replace("\\", "/")).exists(), name
    assert WRAPPER.parents[2] == PROJECT and "Split-Path -Parent (Split-Path -Parent $PSScriptRoot)" in text
    assert WRAPPER.with_name(re.search(r"Join-Path \$PSScriptRoot '(.*)'", text).group(1)) == SCRIPT
    assert "### 4. Packages" in PAGE and "step 4 of python\\docs\\windows.md" in text


def test_the_wrapper_starts_the_script_and_ends_with_its_code(script):
    text = WRAPPER.read_text(encoding="ascii")
    code = [line.split("  #")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert len(code) <= 15
    assert code[-3:] == ["$global:LASTEXITCODE = 1", "& $python $script --log-file $log @args",
                         "exit $LASTEXITCODE"]
    log = re.search(r"\$log = Join-Path \$project '(.*)'", text).group(1)
    assert "`%s`" % log in PAGE and script.find_log_file(["--log-file", "/x/" + log, "-q"]).name == log


# The page


def sql_of_the_page():
    return re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


def test_the_sql_for_somebody_without_psql_is_enough(world):
    """As it stands, but for the names of roles and schema, which are there."""
    for_app, for_warehouse = [
        text.replace("app_readonly", "page_reader").replace("warehouse_writer", "page_writer")
        .replace("analytics", "page") for text in sql_of_the_page()]
    undo = "DROP SCHEMA IF EXISTS page CASCADE; DROP OWNED BY {0}; DROP ROLE {0}"
    with world.app.changed(for_app, undo.format("page_reader")), \
            world.warehouse.changed(for_warehouse, undo.format("page_writer")):
        world.app_has((ANN, "Ann Anders"))
        run = world.sync(APP_USER="page_reader", APP_PASSWORD="your_app_password", WH_USER="page_writer",
                         WH_PASSWORD="your_wh_password", WH_TABLE="page.athlete_dim")
        assert (run.code, run.counts()) == (0, "1: 1 new"), run
        assert run.err.count("warehouse_setup.sql") == 1, run


@pytest.mark.parametrize("code", range(5))
def test_each_exit_code_is_a_last_run_result(code):
    assert re.search(r"^\| `0x%d` \| \w" % code, PAGE, re.MULTILINE)


def test_the_page_and_the_task_start_the_wrapper_alike():
    assert "Arguments: `%s`" % value("Actions/Exec/Arguments") in PAGE


def test_each_file_that_the_page_names_is_there():
    named = re.findall(r"(?:python|sql)\\[\w\\]*\w\.\w+", PAGE)
    assert named and [name for name in named if not (PROJECT / name.replace("\\", "/")).exists()] == []


# The task


def task():
    return ElementTree.fromstring(TASK.read_bytes())


def value(path):
    return task().find("/".join(NAMESPACE + step for step in path.split("/"))).text


# Children in the order the schema wants them where it wants one (xs:sequence), else in any (xs:all):
# learn.microsoft.com/windows/win32/taskschd/task-scheduler-schema. What is not listed has no children.
TRIGGER = ["Enabled", "StartBoundary", "EndBoundary", "Repetition", "ExecutionTimeLimit"]
SEQUENCES = {
    "CalendarTrigger": TRIGGER + ["RandomDelay", "ScheduleByDay"],
    "ScheduleByDay": ["DaysInterval"],
    "Principals": ["Principal"],
}
ANY_ORDER = {
    "Task": {"RegistrationInfo", "Triggers", "Settings", "Data", "Principals", "Actions"},
    "RegistrationInfo": {"URI", "SecurityDescriptor", "Source", "Date", "Author", "Version", "Description",
                         "Documentation"},
    "Triggers": {"CalendarTrigger"},
    "Principal": {"UserId", "LogonType", "GroupId", "DisplayName", "RunLevel"},
    "Settings": {"AllowStartOnDemand", "RestartOnFailure", "MultipleInstancesPolicy",
                 "DisallowStartIfOnBatteries", "StopIfGoingOnBatteries", "AllowHardTerminate",
                 "StartWhenAvailable", "NetworkProfileName", "RunOnlyIfNetworkAvailable", "WakeToRun",
                 "Enabled", "Hidden", "DeleteExpiredTaskAfter", "IdleSettings", "NetworkSettings",
                 "ExecutionTimeLimit", "Priority", "RunOnlyIfIdle"},
    "IdleSettings": {"Duration", "WaitTimeout", "StopOnIdleEnd", "RestartOnIdle"},
    "Actions": {"Exec"},
    "Exec": {"Command", "Arguments", "WorkingDirectory"},
}
BOOLEANS = {"DisallowStartIfOnBatteries", "StopIfGoingOnBatteries", "AllowHardTerminate", "Enabled",
            "StartWhenAvailable", "RunOnlyIfNetworkAvailable", "StopOnIdleEnd", "RestartOnIdle", "Hidden",
            "AllowStartOnDemand", "RunOnlyIfIdle", "WakeToRun"}


def test_the_task_is_encoded_as_task_scheduler_wants():
    raw = TASK.read_bytes()
    assert raw.startswith(codecs.BOM_UTF16_LE)
    text = raw.decode("utf-16")
    assert text.startswith('<?xml version="1.0" encoding="UTF-16"?>\r\n')
    assert text.count("\n") == text.count("\r\n") and text.isascii()


def test_the_task_is_what_the_schema_asks():
    root = task()
    assert (root.tag, root.get("version")) == (NAMESPACE + "Task", "1.2")
    for element in root.iter():
        name = element.tag.replace(NAMESPACE, "")
        children = [child.tag.replace(NAMESPACE, "") for child in element]
        order = SEQUENCES.get(name, [])
        assert set(children) <= (set(order) or ANY_ORDER.get(name, set())), name
        assert children == [child for child in order or children if child in children], name
        assert len(children) == len(set(children)), name
        if name in BOOLEANS:
            assert element.text in ("true", "false"), name
    assert root.find(NAMESPACE + "Actions").get("Context") == \
        root.find(NAMESPACE + "Principals")[0].get("id")


def test_the_task_runs_the_wrapper_once_a_day(script):
    assert value("Actions/Exec/Command") == "powershell.exe"
    arguments = re.match(r'-NoProfile -ExecutionPolicy Bypass -File "C:\\path\\to\\UAIS\\(.*)"$',
                         value("Actions/Exec/Arguments"))
    assert PROJECT / arguments.group(1).replace("\\", "/") == WRAPPER
    assert value("Triggers/CalendarTrigger/ScheduleByDay/DaysInterval") == "1"
    assert value("Settings/MultipleInstancesPolicy") == "IgnoreNew"
    assert value("Settings/StartWhenAvailable") == "true"
    deadline, = (setting.default for setting in script.SETTINGS if setting.name == "SYNC_DEADLINE")
    hours = re.match(r"PT(\d+)H$", value("Settings/ExecutionTimeLimit")).group(1)
    assert int(hours) * 3600 > int(deadline)


def test_the_task_has_one_place_to_change_and_nobodys_name():
    text = TASK.read_bytes().decode("utf-16")
    assert text.count("C:\\") == 1
    assert "one place to change" in text
    assert re.findall(r"S-1-[\d-]+", text) == ["S-1-5-18"]  # the system's own, which every Windows has
    assert "Users" not in text and "Author>" not in text


# The script


# Imported first is what needs these itself here, as it does not there.
WITHOUT = """
import os, runpy, select, signal, sys
import dotenv, numpy, pandas, psycopg2.extensions, tqdm
for module, names in (
        (signal, "SIGALRM SIGHUP SIGUSR1 SIGKILL setitimer alarm pthread_kill pthread_sigmask pause"),
        (os, "fork forkpty geteuid getuid setuid getgid getpwnam set_blocking mkfifo uname wait killpg"),
        (select, "poll epoll kqueue")):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "pwd", "grp", "resource", "termios", "syslog", "posix", "tty", "pty"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without(world, *flags, **settings):
    with world.held_to_the_rules(flags, settings) as runs:
        runs.append(finish(world.start(*flags, command=(sys.executable, "-c", WITHOUT, str(SCRIPT)),
                                       **settings)))
    return runs[0]


def test_the_script_needs_nothing_that_windows_lacks(world):
    world.app_has((ANN, "Ann Anders"))
    run = run_without(world, "--json")
    assert (run.code, run.counts()) == (0, "1: 1 new"), run
    assert run_without(world, "--check").code == 0
    assert run_without(world, "--status").code == 0
    assert run_without(world, "--json", SYNC_DEADLINE="1", APP_PASSWORD="wrong").code == 2


@pytest.mark.parametrize("flag, console", [
    ("--check", "cp1252"), ("--check", "ascii"), ("--json", "cp1252"), ("-v", "cp437")])
def test_a_console_that_lacks_the_characters(world, flag, console):
    world.app_has((ANN, "Ann Anders"))
    run = world.run(flag, APP_TABLE='public."\u0421\u043f\u043e\u0440\u0442"', PYTHONIOENCODING=console)
    assert run.code == 3, run
    assert "Traceback" not in run.out + run.err, run


def test_an_answer_that_a_console_lacks(world):
    """What is asked for may hold such a name too, where all is well."""
    table = 'public."\u0421\u043f\u043e\u0440\u0442"'
    with world.app.changed("CREATE VIEW %s AS TABLE public.\"User\"; GRANT SELECT ON %s TO app_readonly"
                           % (table, table), "DROP VIEW " + table):
        run = world.run("--check", APP_TABLE=table, PYTHONIOENCODING="cp1252")
    assert run.code == 0 and "Traceback" not in run.err, run
