"""However a run ends: each exit code, made to happen, with its last line on stdout and stderr; and that it is
told, in time, by the history and a ping too."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import sys
import time

import pytest
from conftest import ANN, BOB, RESULT_KEYS, RUN_MAY_TAKE, finish
from lab.servers import READER_PASSWORD, SCRIPT, WRITER_PASSWORD, free_port, wait_until
from pings import TOKEN, ping_server

COUNT = r"(\d+|null)"
RESULT_LINE = re.compile(
    r"result=(ok|skipped|failed) mode=full (source={0} inserted={0} updated={0} unchanged={0} missing={0} "
    r"rejected={0} repeated={0} )?seconds=\d+\.\d\d( dry_run=true)?\n".format(COUNT))
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR) ")


def check_failure(run, code, *words):
    assert run.code == code, run
    assert RESULT_LINE.fullmatch(run.out) and run.result["result"] == "failed", run
    for word in ("ERROR", "Next: ", "xit code %d" % code) + words:
        assert word in run.error, "%r is not in the last line of stderr\n%r" % (word, run)
    assert run.error.count("Next: ") == 1 and run.err.count(" ERROR ") == 1, run
    assert "Traceback" not in run.err and 'File "' not in run.err, run


def events(server):
    return [path.replace("/%s/" % TOKEN, "") for path, _ in server.told]


# 0 done


def test_done(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"), ("x", "Cat Cooper"), (BOB, "Bob Bowman"))
    world.warehouse_has((ANN, "Ann Baker"))
    as_json = world.run("--json", "--dry-run")
    known = as_json.result
    assert as_json.code == 0 and as_json.out.count("\n") == 1 and list(known) == RESULT_KEYS, as_json
    assert isinstance(known.pop("seconds"), float) and known == dict(
        result="ok", exit_code=0, mode="full", dry_run=True, source=4, inserted=1, updated=1, unchanged=0,
        missing=0, rejected=1, repeated=1, message=None, rejects=[{"uuid": "x", "reason": "uuid is not a uuid"}])
    for flags, end in ((["--dry-run"], " dry_run=true\n"), ([], "\n")):
        run = world.run(*flags)
        assert run.code == 0 and RESULT_LINE.fullmatch(run.out) and re.search(r"seconds=\S+%s$" % end, run.out), run
        assert run.out.startswith(
            "result=ok mode=full source=4 inserted=1 updated=1 unchanged=0 missing=0 rejected=1 repeated=1 seconds=")
        assert all(LOG_LINE.match(line) for line in run.err.splitlines()), run


def test_quiet_is_silent_where_all_is_well_and_still_says_what_is_wrong(world):
    world.app_has((ANN, "Ann Archer"))
    run = world.run("-q")
    assert (run.code, run.out, run.err, world.dimension()) == (0, "", "", {ANN: "Ann Archer"})
    world.app_has(("x", "Bob Bowman"))
    run = world.run("-q")
    assert (run.code, run.out) == (0, "") and "rejected" in run.err, run
    check_failure(world.run("--quiet", "--strict"), 3, "app", "--strict")


def test_help_is_the_docstring_and_names_every_option(world):
    run = world.run("--help", APP_HOST=None)
    assert (run.code, run.err) == (0, "") and world.script.__doc__.strip() in run.out, run
    options = [word for action in world.script.make_parser()._actions for word in action.option_strings]
    assert "--allow-changes" in options and all(option in run.out for option in options), run
    run = world.run("--version", APP_HOST=None)
    assert (run.code, run.out.split()[-1], run.err) == (0, world.script.VERSION, "")


# 1 configuration


REQUIRED = [prefix + name for prefix in ("APP_", "WH_") for name in ("HOST", "DB", "USER", "PASSWORD")]


@pytest.mark.parametrize("value", [None, ""])
def test_all_problems_are_reported_together(world, value):
    run = world.run(APP_PORT="abc", WH_TABLE="a b", SYNC_REFRESH="sometimes", SYNC_DEADLINE="0",
                    **dict.fromkeys(REQUIRED, value))
    check_failure(run, 1, "APP_PORT", "WH_TABLE", "SYNC_REFRESH", "SYNC_DEADLINE", ".env",
                  *(name + " is missing" for name in REQUIRED))


@pytest.mark.parametrize("line", ["--nonsense", "stray", "-q -v", "--env-file", "--dry-run=yes", "--allow-changes many",
                                  "--allow-changes -1"])
def test_a_wrong_command_line_is_1_and_not_argparses_2(world, line):
    arguments = line.split()
    check_failure(finish(world.start(*arguments)), 1, arguments[0].split("=")[0], "--help")
    assert world.history() == []
    run = finish(world.start("--json", *arguments))
    assert (run.code, list(run.result)) == (1, RESULT_KEYS), run


@pytest.mark.parametrize("module, error", [
    *((name, "ImportError: No module named '%s'" % name) for name in ("psycopg2", "pandas", "numpy", "dotenv", "tqdm")),
    ("pandas", "ValueError: numpy.dtype size changed")])
def test_a_package_that_is_missing_or_broken(world, tmp_path, module, error):
    """Before the settings are read: told on stderr and stdout alone."""
    kind, words = error.split(": ")
    (tmp_path / (module + ".py")).write_text("raise %s(%r)" % (kind, words))
    check_failure(world.run(PYTHONPATH=str(tmp_path)), 1, "packages: ", module if "'" in words else words, ".venv")


# 2 connection: each cause is in test_errors.py


@pytest.mark.parametrize("refuser", ["first", "last"])
def test_of_several_addresses_the_one_that_answers_counts(world, refuser):
    """Such as localhost, which is ::1 and 127.0.0.1; libpq tells of each in turn."""
    ports = [str(free_port()), str(world.lab.app.port)]
    hosts = ",".join("127.0.0.1:" + port for port in (ports if refuser == "first" else ports[::-1]))
    run = world.run(APP_DATABASE_URL="postgresql://app_readonly:wr0ng@%s/app" % hosts,
                    **dict.fromkeys(["APP_HOST", "APP_PORT", "APP_DB", "APP_USER", "APP_PASSWORD"]))
    check_failure(run, 2, "ERROR app: ", "password authentication failed")
    assert "attempt" not in run.err, run


# 2 the deadline, 4 a signal


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("side", ["app", "warehouse"])
def test_stopped(world, side, number):
    """By its deadline, or by a signal: nothing is changed, and it is told."""
    world.app_has((ANN, "Ann Archer"))
    locked = getattr(world, side)
    with ping_server() as server, locked.locked():
        process = world.start(SYNC_PING_URL=server.url, SYNC_DEADLINE="60" if number else "2")
        locked.wait_until_a_run_waits_for_a_lock()
        began = time.monotonic()
        if number:
            process.send_signal(number)
        run = finish(process)
        assert time.monotonic() - began < (2 if number else 7)
    code = 4 if number else 2
    check_failure(run, code, signal.Signals(number).name if number else "the deadline of 2 s passed")
    row, = world.history()
    assert world.ends() == ["failed %d" % code] and row["message"] in run.error, row
    assert (world.dimension(), events(server)) == ({}, ["start", str(code)])
    assert world.sync().code == 0, "no lock is left behind"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_was_ignored_from_the_start_stays_ignored(world, number):
    """As nohup starts a program, or a shell a job with &."""
    world.app_has((ANN, "Ann Archer"))
    command = ["sh", "-c", "trap '' %d; exec \"$0\" \"$@\"" % number, sys.executable, str(SCRIPT)]
    with world.app.locked():
        process = world.start(command=command)
        world.app.wait_until_a_run_waits_for_a_lock()
        process.send_signal(number)
    assert finish(process).code == 0 and world.dimension() == {ANN: "Ann Archer"}


def test_a_pipe_that_nobody_fills_as_env_file(world, tmp_path):
    os.mkfifo(str(tmp_path / "env"))
    run = finish(world.start("--env-file", str(tmp_path / "env"), SYNC_DEADLINE="1"))
    check_failure(run, 2, "the deadline of 1 s passed")


def test_a_silent_port(world):
    """libpq waits for it where no signal handler runs. What wakes then does not cut the watchdog's last act short."""
    with ping_server(slow_start=1.5) as server, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        process = world.start(SYNC_PING_URL=server.url, SYNC_CONNECT_TIMEOUT="60", WH_PORT=str(silent.getsockname()[1]))
        line = silent.accept()[0]
        process.send_signal(signal.SIGTERM)
        told = process.stdout.readline()  # by the watchdog, while libpq waits
        silent.close()
        line.close()  # and now it does not wait any more
        run = finish(process)
    assert (run.code, told.startswith(b"result=failed"), run.out) == (4, True, ""), run
    assert run.err.count(" ERROR ") == 1 and events(server) == ["start", "4"], run


@pytest.mark.parametrize("how", ["the deadline", "SIGTERM", "cancel", "terminate"])
def test_a_commit_that_waits_for_a_standby_that_is_gone(world, how):
    """It is written here and told as that: not ok, and not rolled back. So is its row of the history."""
    world.app_has((ANN, "Ann Archer"))
    wait = world.warehouse.changed("ALTER ROLE warehouse_writer SET synchronous_commit = on",
                                   "ALTER ROLE warehouse_writer RESET synchronous_commit")
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with wait, ping_server() as server:
        set_standbys(world, "nobody")
        try:
            process = world.start(SYNC_PING_URL=server.url, SYNC_DEADLINE="3" if how == "the deadline" else "60")
            wait_until(lambda: world.warehouse.sql(waiting))
            if how == "SIGTERM":
                process.send_signal(signal.SIGTERM)
            elif how in ("cancel", "terminate"):  # by somebody else; the server that ends it takes its word with it
                world.warehouse.sql("SELECT pg_%s_backend((%s))" % (how, waiting))
            run = finish(process)
        finally:
            set_standbys(world, "")
    words = ["is not known"] if how == "terminate" else ["written here", "synchronous_standby_names"]
    check_failure(run, 2, "ERROR warehouse: ", *words)
    assert "rolled back" not in run.err and "nothing was changed" not in run.err, run
    assert world.dimension() == {ANN: "Ann Archer"} and "ok 0" in world.ends()
    assert events(server) == ["start", "2"]


def set_standbys(world, names):
    world.warehouse.sql("ALTER SYSTEM SET synchronous_standby_names = '%s'" % names)
    world.warehouse.sql("SELECT pg_reload_conf()")
    wait_until(lambda: world.warehouse.value("SHOW synchronous_standby_names") == names)


def test_a_ping_that_hangs_delays_neither_the_run_nor_the_deadline(world):
    world.app_has((ANN, "Ann Archer"))
    with ping_server(status=None) as server:
        run = world.run(SYNC_PING_URL=server.url, SYNC_DEADLINE="60")
        assert run.code == 0 and float(run.result["seconds"]) < 4, run
        assert events(server) == ["start", "0"], run


# 3 SQL or data: each cause is in test_errors.py


PRIVILEGES = ("{0} TEMPORARY ON DATABASE warehouse {1} warehouse_writer, PUBLIC; {0} USAGE ON SCHEMA analytics {1}"
              " warehouse_writer; {0} SELECT, INSERT, UPDATE ON analytics.athlete_dim {1} warehouse_writer")


def test_what_next_says_is_typed_in_as_it_stands_and_heals_the_run(world):
    """Even where nobody may do anything."""
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.changed(PRIVILEGES.format("REVOKE", "FROM"), PRIVILEGES.format("GRANT", "TO")):
        run = world.run()
        check_failure(run, 3, "ERROR warehouse: ", "permission denied")
        assert world.dimension() == {}
        world.warehouse.sql(" ".join(re.findall("GRANT [^;]+;", run.error)))
        assert world.sync().code == 0


# 4 a defect


def test_a_defect(world, tmp_path):
    """A stand-in for a package raises what nobody foresaw, in the middle, with an athlete's name in its text."""
    world.app_has((ANN, "Ann Archer"))
    (tmp_path / "tqdm.py").write_text("def tqdm(**_): raise RuntimeError('Ann' + ' Archer')")
    check_failure(world.run(PYTHONPATH=str(tmp_path)), 4, "RuntimeError", "-v")
    assert world.dimension() == {}
    assert 'File "' in world.run("-v", PYTHONPATH=str(tmp_path)).err


# Whatever the code


@pytest.mark.parametrize("settings, code", [
    (dict(), 0), (dict(APP_PORT="abc"), 1), (dict(APP_PASSWORD="wr0ng"), 2), (dict(WH_USER="nobody_known"), 2),
    (dict(APP_TABLE="public.nowhere"), 3), (dict(WH_TABLE="nowhere.dim"), 3), (dict(WH_TABLE="public.bystander"), 3)])
def test_verbose_adds_the_traceback_and_no_password(world, settings, code):
    world.app_has((ANN, "Ann Archer"))
    run = world.sync("-v", **settings)
    assert run.code == code and ('File "' in run.err and " ERROR " in run.error) == bool(settings), run
    assert 'File "' not in world.sync(**settings).err
    said = run.out + run.err + str(world.history())
    assert READER_PASSWORD not in said and WRITER_PASSWORD not in said


@pytest.mark.parametrize("settings, code", [(dict(), 0), (dict(APP_TABLE="nowhere"), 3)])
@pytest.mark.parametrize("streams", ["| true", ">&-", "2>&-", ">&- 2>&-", "> /dev/full", "2> /dev/full"])
def test_nobody_listens(world, streams, settings, code):
    """A reader that went away, a closed or a full stream: the work is done and the code tells."""
    if "/dev/full" in streams and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    world.app_has((ANN, "Ann Archer"))
    line = '"$0" "$@" %s; echo "code ${PIPESTATUS[0]}" >&3' % streams
    run = finish(world.start(command=["bash", "-c", "exec 3>&2; " + line, sys.executable, str(SCRIPT)], **settings))
    assert run.err.splitlines()[-1] == "code %d" % code, run
    assert world.dimension() == ({ANN: "Ann Archer"} if code == 0 else {})


def test_the_bar_on_a_terminal(world):
    pty = pytest.importorskip("pty", reason="terminals are a matter of POSIX")
    world.app_has((ANN, "Ann Archer"))
    ours, theirs = pty.openpty()
    import fcntl, termios  # noqa: E401
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process, shown = world.start(stderr=theirs), b""
    os.close(theirs)
    with contextlib.suppress(OSError):  # how Linux says that the other end has closed
        for part in iter(lambda: os.read(ours, 4096), b""):
            shown += part
    os.close(ours)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and out.startswith(b"result=ok "), shown
    assert b" athletes" in shown and b"connected to" in shown, shown


def test_a_stderr_that_nobody_reads_does_not_outlive_the_deadline(world):
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, b" " * 65536)
    os.set_blocking(write_end, True)
    assert world.start(stderr=write_end, SYNC_DEADLINE="2").wait(RUN_MAY_TAKE) == 2
