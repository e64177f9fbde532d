"""README's cron line, as it stands there, in the environment that cron gives."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ANN, in_env_file, project_in
from lab.servers import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
CRON_LINE = re.search(r"^0 2 \* \* \* (.*sync_athletes_from_app\.py.*)$", README, re.MULTILINE).group(1)


@pytest.fixture(params=["UAIS", "Joey's UAIS, 100 % & more"], ids=["plain", "spaces"])
def installed(request, world, tmp_path):
    """The project as a user has it: .env, .venv, logs, and a path of his own."""
    place = project_in(tmp_path / request.param)
    (place / "logs").mkdir()
    (place / ".venv").symlink_to(sys.prefix)
    (place / ".env").write_text("".join(
        "%s=%s\n" % (name, in_env_file(text)) for name, text in world.lab.settings().items()))
    (place / ".env").chmod(0o600)
    return place


def run_as_cron(place, home, option=""):
    """cron turns every % that has no backslash into a newline, then hands the line to /bin/sh."""
    command = CRON_LINE.replace(".py >>", ".py%s >>" % option)
    command = command.replace("/path/to/UAIS", shlex.quote(str(place)).replace("%", r"\%"))
    command = re.sub(r"(?<!\\)%.*", "", command).replace(r"\%", "%")
    return subprocess.run(["/bin/sh", "-c", command], cwd=str(home), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={"HOME": str(home), "LOGNAME": "joey", "SHELL": "/bin/sh",
                               "PATH": "/usr/bin:/bin"})


def log_of(place):
    return (place / "logs" / "sync_athletes.log").read_text(encoding="utf-8").splitlines()


def test_the_line_syncs_and_logs(world, installed, tmp_path):
    world.app_has((ANN, "Ann Anders"))
    done = [run_as_cron(installed, tmp_path, option) for option in ("", " --incremental")]
    assert [(run.returncode, run.stdout) for run in done] == [(0, b""), (0, b"")], log_of(installed)
    assert world.dimension() == {ANN: "Ann Anders"}
    results = [line for line in log_of(installed) if line.startswith("result=ok")]
    assert len(results) == 2 and "unchanged=1" in results[1]


def test_the_line_keeps_the_exit_code(world, installed, tmp_path):
    env_file = installed / ".env"
    env_file.write_text(re.sub("APP_PASSWORD=.*", "APP_PASSWORD=wrong", env_file.read_text()))
    done = run_as_cron(installed, tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert " ERROR app: the login was refused: " in log_of(installed)[-2]
    assert log_of(installed)[-1].startswith("result=failed")


def test_the_folder_of_the_log_is_there_from_the_start():
    assert (PROJECT / "logs" / ".gitkeep").exists()
    assert "%" not in CRON_LINE, "cron reads an unescaped % as the end of the line"


def test_the_script_that_is_scheduled_is_there():
    named = re.findall(r"\S+sync_athletes_from_app\.py", CRON_LINE)
    assert named and all((PROJECT / Path(name)).exists() for name in named)


@pytest.mark.parametrize("page", ["scheduling", "incremental"])
def test_the_pages_show_the_same_line(page):
    text = (PROJECT / "python" / "docs" / (page + ".md")).read_text(encoding="utf-8")
    shown = re.findall(r"^[\d*/-]+(?: [\d*/-]+){4} +(cd .*)$", text, re.MULTILINE)
    assert shown and {line.replace(" --incremental", "") for line in shown} == {CRON_LINE}
