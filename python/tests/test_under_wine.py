"""The suite's main cases by a Windows Python under Wine: make test-windows. PowerShell and Task Scheduler
cannot be had there; what they start can.

The tests of other files that are named here run as they stand there, in a world that starts Windows'
Python: the project lies where a user may have put it, and was installed by the commands of windows.md.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

import conftest
from conftest import NO_SETTINGS, Run, World, arguments
from lab import wine as windows
from lab.servers import PROJECT, SCRIPT
from lab.wine import windows_path
from test_exit_codes import (  # noqa: F401
    test_a_connection_that_the_server_ends, test_a_database_that_cannot_be_reached,
    test_a_package_that_is_not_installed, test_a_wrong_command_line_is_1_and_not_argparses_2,
    test_all_problems_are_reported_together, test_attempts_to_connect_are_announced, test_done,
    test_done_as_json, test_quiet_is_silent_where_all_is_well, test_the_deadline, test_version,
    test_what_is_not_there)
from test_incremental import begun, test_only_what_changed_is_sent_counted_and_stamped, unique  # noqa: F401
from test_names import test_all_together, test_names_of_megabytes, test_two_thousand_generated  # noqa: F401
from test_settings import reader, test_a_password_in_env, test_the_environment_wins  # noqa: F401
from test_sync import (  # noqa: F401
    test_a_second_run_is_skipped_while_the_first_holds_the_lock, test_history_of_a_run_that_failed,
    test_history_of_a_run_that_went_well, test_other_dimension, test_rows,
    test_strict_refuses_a_run_with_a_reject)

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
    project = Installed(wine, place)
    for command in ("py -m venv .venv", r".venv\Scripts\python -m pip install -r python\requirements.txt"):
        done = project.type_in(command)
        assert done.returncode == 0, done.stdout.decode("utf-8", "replace")
    return project


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

    def log(self):
        return (self.place / "logs" / "sync_athletes.log").read_text(encoding="utf-8").splitlines()


class WindowsWorld(World):
    """The world of all tests, but for what is started, and how what it printed is read."""

    installed = None

    def sync(self, *flags, **settings):
        return self.run("--json", *flags, **settings)

    def run(self, *flags, **settings):
        with self.held_to_the_rules(settings) as runs:
            runs.append(finish(self.start(*flags, **settings)))
        return runs[0]

    def start(self, *flags, command=None, env_file=NO_SETTINGS.name, cwd=Path(os.sep), **settings):
        chosen = {name: text for name, text in self.environment(settings).items()
                  if not name.startswith("COVERAGE")}
        command = command or [self.installed.python, windows_path(self.script_file())]
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
    warehouse.sql("TRUNCATE analytics.athlete_dim, analytics.athlete_sync_run RESTART IDENTITY")
    world = WindowsWorld(lab, app, warehouse, script)
    world.installed = installed
    yield world
    for process in world.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
