"""What README, the pages and make schedule give to type, typed: in a folder whose name a shell, cron, systemd and
XML each read in their own way."""

from __future__ import annotations

import getpass
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ANN, in_env_file, project_in
from lab.servers import PROJECT, READER_PASSWORD, SCRIPT, WRITER_PASSWORD
from test_docs import blocks, text_of, typed

JOEYS = "Joey's UAIS & 100 %"

# It makes a .venv like itself, and installs nothing: all is there.
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit ;;
    "-m pip") echo installed; exit ;;
esac
exec '%s' "$@"
""" % sys.executable
OTHER_PYTHON = PYTHON.replace('"$@"', '"$@" | sed s/^3/2/')
NEEDED = ["Makefile", ".env.example", "python/requirements.txt", "python/lab/schedule.py",
          "python/docs/scheduling.md", "sql/app_readonly.sql", "sql/warehouse_setup.sql", "logs/.gitkeep"]


@pytest.fixture
def joeys(world, tmp_path):
    """The project as a user has it who has set it up."""
    place = project_in(tmp_path / JOEYS)
    for name in NEEDED:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(PROJECT / name), str(place / name))
    for name in ("python3", "python3.12"):
        executable(tmp_path / "bin" / name, PYTHON)
    (tmp_path / "bin" / "psql").symlink_to(world.app.server.psql_command()[0])
    fill_in(place / ".env", world, "")
    return with_venv(place)


def with_venv(place, python=PYTHON):
    executable(place / ".venv" / "bin" / "python", python)
    for stamp in ("made", "installed"):
        (place / ".venv" / stamp).touch()
    return place


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def fill_in(env_file, world, text):
    """As a user does who was given the example."""
    for name, value in world.lab.settings().items():
        text = re.sub("(?m)^%s=.*\n" % name, "", text) + "%s=%s\n" % (name, in_env_file(value))
    env_file.touch(mode=0o600)
    env_file.write_text(text)


def type_in(place, command, answers="", code=0, **environment):
    """Returns what is printed. psql asks for a password on the terminal, or, where there is none, on stdin."""
    ours = {"PATH": "%s:%s:/usr/sbin" % (place.parent / "bin", os.environ["PATH"]), "HOME": str(place.parent)}
    done = subprocess.run(["/bin/sh", "-c", command], cwd=str(place), env=dict(ours, **environment), encoding="utf-8",
                          input=answers, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert done.returncode == code, (command, done.stdout)
    return done.stdout


def test_commands_of_readme_and_settings_one_after_the_other(world, joeys):
    shutil.rmtree(str(joeys / ".venv"))
    said, coaches = {}, ('CREATE TABLE public."Coach" (uuid TEXT, name TEXT)', 'DROP TABLE public."Coach"')
    world.app_has((ANN, "Ann Archer"))
    for role, side in (("app_readonly", world.app), ("warehouse_writer", world.warehouse)):
        side.sql("ALTER ROLE %s PASSWORD 'forgotten'" % role)
    with world.app.changed(*coaches), world.warehouse.changed("SELECT", "DROP TABLE IF EXISTS analytics.coach_dim"):
        for command in typed("README.md") + typed("settings"):
            side = world.app if "<app_host>" in command else world.warehouse
            password = READER_PASSWORD if side is world.app else WRITER_PASSWORD
            here = re.sub("<(app|warehouse)_host>", "127.0.0.1 -p %d" % side.server.port, command)
            here = re.sub("<(app|warehouse)_db>", side.server.name, here)
            said[command] = type_in(joeys, here, (password + "\n") * 2, PGPASSWORD=side.server.password).splitlines()
            if command.startswith("cp "):
                fill_in(joeys / ".env", world, (joeys / ".env").read_text())
    assert (said["make check"][-1], said["make status"][0]) == ("Ready", "healthy")
    assert said["make sync"][-1].startswith("result=ok ") and world.dimension() == {ANN: "Ann Archer"}
    for answer in re.findall(r"answers (?:that )?`([^`]*)`", text_of("README.md")):
        pattern = re.sub(r"<\w+>|\\\.\\\.\\\.", ".*", re.escape(answer))
        assert any(re.search(pattern, line) for lines in said.values() for line in lines), answer


VENVS = {  # what .venv is like, what is typed: whether it is made anew
    "well": (PYTHON, "make install", False),
    "well, but not of python3's version": (OTHER_PYTHON, "make install", False),
    "its Python is gone": ("#!/nowhere/python\n", "make install", True),
    "it lacks a package": (PYTHON.replace('"$@"', '-S "$@"'), "make install", True),
    "another Python is asked for": (OTHER_PYTHON, "make install PYTHON=python3.12", True),
    "the same Python is asked for": (PYTHON, "make install PYTHON=python3.12", False),
    "its Python is gone, and a sync is wanted": ("#!/nowhere/python\n", "make status", True),
}


@pytest.mark.parametrize("venv", VENVS)
def test_make_install_mends_a_venv(joeys, venv):
    python, command, is_made_anew = VENVS[venv]
    said = type_in(with_venv(joeys, python), command)
    assert ("is made anew" in said) == is_made_anew, said
    assert (joeys / ".venv" / "bin" / "python").read_text() == (PYTHON if is_made_anew else python)


@pytest.mark.parametrize("target", ["check", "status", "sync"])
@pytest.mark.parametrize("code", [0, 3, 126, 127, 137])
def test_make_hides_no_code_but_the_scripts_own(joeys, target, code):
    with_venv(joeys, PYTHON.replace("exec", 'case "$1" in *.py) exit %d ;; esac\nexec' % code))
    type_in(joeys, "make " + target, code=0 if code == 0 or code == 3 and target != "sync" else 2)


# make schedule


def entry(joeys, kind):
    return type_in(joeys, "make -s schedule ARGS=" + kind)


@pytest.mark.parametrize("more, code, last", [("", 0, "result=ok"), ("APP_PASSWORD=wrong\n", 2, "result=failed")])
def test_cron(world, joeys, more, code, last):
    """It turns every % that has no backslash into a newline, and gives a job almost no environment."""
    world.app_has((ANN, "Ann Anders"))
    (joeys / ".env").write_text((joeys / ".env").read_text() + more)
    line = re.sub(r"^(\S+ ){5}", "", entry(joeys, "cron").splitlines()[1])
    command = re.sub(r"(?<!\\)%.*", "", line).replace(r"\%", "%")
    assert type_in(Path(os.sep), command, code=code, PATH="/usr/bin:/bin") == ""
    log = (joeys / "logs" / "sync_athletes.log").read_text(encoding="utf-8").splitlines()
    assert log[-1].startswith(last) and (" ERROR app: " in log[-2]) == bool(more), log
    assert world.dimension() == ({} if more else {ANN: "Ann Anders"})


def test_systemd_and_launchd_start_what_cron_does(world, joeys):
    world.app_has((ANN, "Ann Anders"))
    service = dict(re.findall(r"(?m)^(\w+)=(.*)$", entry(joeys, "service")))
    job = plistlib.loads(entry(joeys, "launchd").encode())
    for folder, words in ((service["WorkingDirectory"].replace("%%", "%"), service["ExecStart"].split()),
                          (job["WorkingDirectory"], job["ProgramArguments"])):
        type_in(Path(folder), " ".join(map(shlex.quote, words)))
    assert (world.dimension(), world.ends()) == ({ANN: "Ann Anders"}, ["ok 0", "ok 0"])
    assert (service["User"], job["StartCalendarInterval"]) == (getpass.getuser(), {"Hour": 2, "Minute": 0})
    assert job["StandardOutPath"] == job["StandardErrorPath"] == str(joeys / "logs/sync_athletes.log")


@pytest.mark.parametrize("command, words", [
    ("crontab -n athlete-sync.cron", ""), ("systemd-analyze verify athlete-sync.service athlete-sync.timer", ""),
    ("logrotate -d -s state athlete-sync.logrotate", "considering log {}/logs/sync_athletes.log")])
def test_who_reads_an_entry_understands_it(joeys, command, words):
    place, program = joeys.parent, command.split()[0]
    if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") or (
            program == "crontab" and "-n" not in type_in(place, "crontab -h || true")):
        pytest.skip("there is no %s, or none that only looks" % program)
    (joeys / "logs" / "sync_athletes.log").write_text("result=ok\n")
    for kind, more in (("cron", blocks("scheduling", "cron")), ("service", []), ("timer", []), ("logrotate", [])):
        (place / ("athlete-sync." + kind)).write_text(entry(joeys, kind) + "".join(more))
    said = type_in(place, "chmod 644 athlete-sync.*; " + command, SYSTEMD_LOG_LEVEL="info")
    assert words.format(joeys) in said and not re.search(r"error:|athlete-sync\.(service|timer)", said), said


def test_every_line_for_cron_is_readmes():
    shown = re.findall(r"(?m)^(?:[\d*/-]+ +){5}(cd .*)$", text_of("README.md") + text_of("scheduling"))
    assert len(shown) == 4 and len({line.replace(" --incremental", "") for line in shown}) == 1, shown


def test_a_password_from_a_file(world, joeys):
    """The page's line, with secrets of this folder, where the script lies alone."""
    world.app_has((ANN, "Ann Anders"))
    for name, password in (("app_password", READER_PASSWORD), ("wh_password", WRITER_PASSWORD)):
        (joeys / name).write_text(password + "\n")
    shutil.copy(str(SCRIPT), str(joeys / SCRIPT.name))
    command, = blocks("scheduling", "sh")
    settings = {name: value for name, value in world.lab.settings().items() if "PASSWORD" not in name}
    command = command.replace("/run/secrets/", "./").replace("exec python", shlex.quote(sys.executable))
    type_in(joeys, command, **settings)
    assert world.dimension() == {ANN: "Ann Anders"}
