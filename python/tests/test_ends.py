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
from lab.servers import READER_PASSWORD, SCRIPT, WRITER_PASSWORD, free_port
from pings import TOKEN, ping_server
from proxy import Proxy

COUNT = r"(\d+|null)"
RESULT_LINE = re.compile(
    r"result=(ok|skipped|failed) mode=full (source={0} inserted={0} updated={0} unchanged={0} missing={0} "
    r"rejected={0} repeated={0} )?seconds=\d+\.\d\d( dry_run=true)?".format(COUNT))
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR) ")


def check_failure(run, code, *words):
    assert run.code == code, run
    assert run.out.count("\n") == 1 and RESULT_LINE.match(run.out) and run.result["result"] == "failed", run
    check_error(run, code, *words)


def check_error(run, code, *words):
    for word in ("ERROR", "Next: ", "xit code %d" % code) + words:
        assert word in run.error, "%r is not in the last line of stderr\n%r" % (word, run)
    assert run.error.count("Next: ") == 1, run
    assert "Traceback" not in run.err and 'File "' not in run.err, run


def check_told(world, server, run):
    """A run that was stopped has changed nothing, and is pinged and recorded."""
    assert world.dimension() == {}
    assert [path for path, _ in server.told] == ["/%s/start" % TOKEN, "/%s/%d" % (TOKEN, run.code)]
    row, = world.history()
    assert world.ends() == ["failed %d" % run.code] and row["message"] in run.error, row


# 0 done


def test_done(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"), ("x", "Cat Cooper"), (BOB, "Bob Bowman"))
    world.warehouse_has((ANN, "Ann Baker"))
    run = world.run()
    assert run.code == 0, run
    assert RESULT_LINE.match(run.out) and run.out.count("\n") == 1, run
    assert run.out.startswith(
        "result=ok mode=full source=4 inserted=1 updated=1 unchanged=0 missing=0 rejected=1 repeated=1 seconds=")
    assert all(LOG_LINE.match(line) for line in run.err.splitlines()), run


def test_done_as_json(world):
    world.app_has((ANN, "Ann Archer"), ("x", "Cat Cooper"))
    run = world.run("--json", "--dry-run")
    assert run.code == 0 and run.out.count("\n") == 1, run
    assert list(run.result) == RESULT_KEYS
    assert isinstance(run.result.pop("seconds"), float)
    assert run.result.items() >= dict(
        result="ok", exit_code=0, mode="full", dry_run=True, source=2, inserted=1, updated=0, unchanged=0,
        missing=0, rejected=1, repeated=0, message=None,
        rejects=[{"uuid": "x", "reason": "uuid is not a uuid"}]).items()


def test_quiet_is_silent_where_all_is_well(world):
    world.app_has((ANN, "Ann Archer"))
    run = world.run("-q")
    assert (run.code, run.out, run.err) == (0, "", "")
    assert world.dimension() == {ANN: "Ann Archer"}


def test_quiet_still_says_what_is_wrong(world):
    world.app_has(("x", "Ann Archer"), (BOB, "Bob Bowman"))
    run = world.run("-q")
    assert (run.code, run.out) == (0, "") and "rejected" in run.err, run
    check_failure(world.run("--quiet", "--strict"), 3, "app", "--strict")


def test_help_is_the_docstring(world):
    run = world.run("--help", APP_HOST=None)
    assert (run.code, run.err) == (0, ""), run
    assert world.script.__doc__.strip() in run.out
    for option in ("--dry-run", "--strict", "--allow-updates", "--env-file", "--json", "--quiet",
                   "--verbose", "--version"):
        assert option in run.out


def test_version(world):
    run = world.run("--version", APP_HOST=None)
    assert (run.code, run.out.split()[-1], run.err) == (0, world.script.VERSION, "")


def test_a_dry_run_says_so(world):
    assert "dry_run=true" in world.run("--dry-run").out


# 1 configuration


REQUIRED = [prefix + name for prefix in ("APP_", "WH_") for name in ("HOST", "DB", "USER", "PASSWORD")]


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_setting(world, name, value):
    run = world.sync(**{name: value})
    assert run.code == 1, run
    check_error(run, 1, name + " is missing")
    assert not any(other in run.error for other in REQUIRED if other != name)


def test_all_problems_are_reported_together(world):
    settings = dict.fromkeys(REQUIRED)
    run = world.run(APP_PORT="abc", WH_TABLE="a b", SYNC_REFRESH="sometimes", SYNC_DEADLINE="0", **settings)
    check_failure(run, 1, "APP_PORT", "WH_TABLE", "SYNC_REFRESH", "SYNC_DEADLINE", ".env", *REQUIRED)


@pytest.mark.parametrize("arguments, words", [
    (["--nonsense"], "--nonsense"),
    (["stray"], "stray"),
    (["-x"], "-x"),
    (["-q", "-v"], "not allowed with"),
    (["--env-file"], "--env-file"),
    (["--dry-run=yes"], "--dry-run"),
    (["--allow-updates", "many"], "--allow-updates: must be a whole number from 0 to 999999999"),
    (["--allow-updates", "-1"], "--allow-updates"),
])
def test_a_wrong_command_line_is_1_and_not_argparses_2(world, arguments, words):
    run = finish(world.start(*arguments))
    check_failure(run, 1, words, "--help")
    assert world.history() == []


def test_a_wrong_command_line_answers_in_json_too(world):
    run = world.run("--json", "--nonsense")
    assert (run.code, list(run.result)) == (1, RESULT_KEYS), run


@pytest.mark.parametrize("module, error", [
    *((name, "ImportError: No module named '%s'" % name) for name in ("psycopg2", "pandas", "numpy", "dotenv", "tqdm")),
    ("pandas", "ValueError: numpy.dtype size changed")])
def test_a_package_that_is_missing_or_broken(world, tmp_path, module, error):
    kind, words = error.split(": ")
    (tmp_path / (module + ".py")).write_text("raise %s(%r)" % (kind, words))
    with ping_server() as server:
        run = world.run(PYTHONPATH=str(tmp_path), SYNC_PING_URL=server.url)
    check_failure(run, 1, "packages: " + words)
    assert "Next: make install" in run.error or ".venv" in run.error, "run by a Python that is not .venv's"
    assert [path for path, _ in server.told] == ["/%s/1" % TOKEN] and world.history() == []


def env_files(folder):
    (folder / "latin1.env").write_bytes(b"APP_PASSWORD=Jos\xe9\n")
    (folder / "utf16.env").write_text("APP_PASSWORD=hush", encoding="utf-16")
    (folder / "folder.env").mkdir()


@pytest.mark.parametrize("name, words", [
    ("missing.env", "No such file"), ("folder.env", "Is a directory"), ("latin1.env", "UTF-8"),
    ("utf16.env", "UTF-8")])
def test_an_env_file_that_cannot_be_read(world, tmp_path, name, words):
    env_files(tmp_path)
    check_failure(world.run("--env-file", str(tmp_path / name)), 1, words, name, "--env-file")


@pytest.mark.parametrize("url", [
    "postgres://reader:s3cr3t@host:port/app", "mysql://reader:s3cr3t@host/app",
    "postgres://reader:s3cr3t%zz@host/app", "host=h password=s3cr3t nonsense=1",
    "postgres://reader:s3cr3t@[::1/app"])
def test_a_malformed_url_keeps_its_password(world, url):
    run = world.sync("-v", WH_DATABASE_URL=url)
    assert run.code == 1 and "WH_DATABASE_URL" in run.error, run
    assert "s3cr3t" not in run.out + run.err


# 2 connection


def closed_port():
    return str(free_port())


UNREACHABLE = {
    "wrong password": (dict(PASSWORD="wr0ng"), "password authentication failed", "_PASSWORD"),
    "unknown host": (dict(HOST="nosuchhost.invalid"), "nosuchhost.invalid", "_HOST"),
    "closed port": (dict(PORT=closed_port), "onnection refused", "_PORT"),
    "unknown database": (dict(DB="nowhere"), 'database "nowhere" does not exist', "_DB"),
    "unknown role": (dict(USER="nobody_known"), "nobody_known", "_USER"),
    "TLS that the server does not have": (dict(SSLMODE="require"), "SSL", "_SSLMODE"),
}


@pytest.mark.parametrize("change, words, next_step", list(UNREACHABLE.values()), ids=list(UNREACHABLE))
@pytest.mark.parametrize("prefix, side", [("APP", "app"), ("WH", "warehouse")])
def test_a_database_that_cannot_be_reached(world, prefix, side, change, words, next_step):
    settings = {prefix + "_" + name: value() if callable(value) else value for name, value in change.items()}
    run = world.run(SYNC_CONNECT_ATTEMPTS="1", **settings)
    check_failure(run, 2, "ERROR %s: " % side, words, prefix + next_step)


def test_attempts_to_connect_are_announced(world):
    run = world.sync(SYNC_CONNECT_ATTEMPTS="2", APP_PORT=closed_port())
    assert run.code == 2 and "attempt 1 of 2" in run.err, run


def test_a_wrong_password_is_not_tried_again(world):
    """A second and third attempt could lock the account."""
    run = world.sync(APP_PASSWORD="wr0ng")
    assert run.code == 2 and "attempt" not in run.err, run


@pytest.mark.parametrize("refuser", ["first", "last"])
def test_of_several_addresses_the_one_that_answers_counts(world, refuser):
    """Such as localhost, which is ::1 and 127.0.0.1; libpq tells of each in turn."""
    ports = [closed_port(), str(world.lab.app.port)]
    hosts = ",".join("127.0.0.1:" + port for port in (ports if refuser == "first" else ports[::-1]))
    run = world.sync(APP_DATABASE_URL="postgresql://app_readonly:wr0ng@%s/app" % hosts)
    check_error(run, 2, "ERROR app: the login was refused: ", "password authentication failed")
    assert "attempt" not in run.err, run


@pytest.mark.parametrize("side", ["app", "warehouse"])
def test_a_connection_that_the_server_ends(world, side):
    world.app_has((ANN, "Ann Archer"))
    server = getattr(world, side)
    with server.locked():
        process = world.start()
        server.wait_until_a_run_waits_for_a_lock()
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                   " WHERE usename IN ('app_readonly', 'warehouse_writer')")
        run = finish(process)
    check_failure(run, 2, "ERROR %s: " % side, "closed the connection")
    assert world.dimension() == {}


@pytest.mark.parametrize("side", ["app", "warehouse"])
def test_the_deadline(world, side):
    world.app_has((ANN, "Ann Archer"))
    with ping_server() as server, getattr(world, side).locked():
        began = time.monotonic()
        run = finish(world.start(SYNC_PING_URL=server.url, SYNC_DEADLINE="2"))
        seconds = time.monotonic() - began
    check_failure(run, 2, "the deadline of 2 s passed", "SYNC_DEADLINE")
    assert 2 <= seconds < 7, "%.1f s" % seconds
    check_told(world, server, run)


# 3 SQL or data


MISSING = {
    "app: no such table": (dict(APP_TABLE='public."Users"'), 'relation "public.Users" does not exist',
                           "APP_TABLE"),
    "app: its name unquoted": (dict(APP_TABLE="public.User"), 'relation "public.user" does not exist',
                               '"User"'),
    "app: no such schema": (dict(APP_TABLE='nowhere."User"'), 'nowhere.User" does not exist', "APP_TABLE"),
    "app: no such uuid column": (dict(APP_UUID_COLUMN="id"), 'column "id" does not exist', "APP_UUID_COLUMN"),
    "app: no such name column": (dict(APP_NAME_COLUMN="fullName"), 'column "fullname" does not exist',
                                 "APP_NAME_COLUMN"),
    "warehouse: no such table": (dict(WH_TABLE="analytics.athlete"), '"analytics.athlete" does not exist',
                                 "sql/warehouse_setup.sql"),
    # Before PostgreSQL 16 it is the schema that does not exist, since then the relation.
    "warehouse: no such schema": (dict(WH_TABLE="nowhere.athlete_dim"), '"nowhere', "sql/warehouse_setup.sql"),
    "warehouse: a table of another shape": (dict(WH_TABLE="public.bystander"), "", ""),
}


@pytest.mark.parametrize("name", list(MISSING))
def test_what_is_not_there(world, name):
    settings, words, next_step = MISSING[name]
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.changed("GRANT SELECT ON public.bystander TO warehouse_writer",
                                 "REVOKE SELECT ON public.bystander FROM warehouse_writer"):
        check_failure(world.run(**settings), 3, "ERROR %s: " % name.split(":")[0], words, next_step)
    assert world.dimension() == {}


REVOKED = {
    "app: SELECT": 'SELECT ON TABLE public."User"',
    "app: USAGE": "USAGE ON SCHEMA public",
    "warehouse: SELECT": "SELECT ON TABLE analytics.athlete_dim",
    "warehouse: INSERT": "INSERT ON TABLE analytics.athlete_dim",
    "warehouse: UPDATE": "UPDATE ON TABLE analytics.athlete_dim",
    "warehouse: USAGE": "USAGE ON SCHEMA analytics",
    "warehouse: TEMP": "TEMPORARY ON DATABASE warehouse",
}


@pytest.mark.parametrize("name", list(REVOKED))
def test_a_privilege_is_missing_and_the_message_gives_it_back(world, name):
    """What `Next:` says is typed in as it stands, and heals the run."""
    side, what = name.split(":")[0], REVOKED[name]
    server, role = getattr(world, side), {"app": "app_readonly", "warehouse": "warehouse_writer"}[side]
    everybody = ", PUBLIC" if name in ("app: USAGE", "warehouse: TEMP") else ""
    world.app_has((ANN, "Ann Archer"))
    with server.changed("REVOKE %s FROM %s" % (what, role + everybody),
                        "GRANT %s TO %s" % (what, role + everybody)):
        run = world.run()
        check_failure(run, 3, "ERROR %s: " % side, "permission denied", "GRANT")
        assert world.dimension() == {}
        for grant in re.findall(r"GRANT [^;]+;", run.error):
            server.sql(grant)
        assert world.sync().code == 0


def test_no_key_and_the_message_gives_it_back(world):
    world.app_has((ANN, "Ann Archer"))
    world.warehouse.sql("ALTER TABLE analytics.athlete_dim DROP CONSTRAINT athlete_dim_pkey")
    try:
        run = world.run()
        check_failure(run, 3, "warehouse", "ON CONFLICT", "CREATE UNIQUE INDEX")
        world.warehouse.sql(re.search(r"CREATE UNIQUE INDEX [^;]+;", run.error).group())
        assert world.sync().code == 0
    finally:
        world.warehouse.sql("DROP INDEX IF EXISTS analytics.athlete_dim_athlete_uuid_idx")
        world.warehouse.sql("ALTER TABLE analytics.athlete_dim ADD PRIMARY KEY (athlete_uuid)")


def test_a_warehouse_that_only_reads(world):
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.changed("ALTER ROLE warehouse_writer SET default_transaction_read_only = on",
                                 "ALTER ROLE warehouse_writer RESET default_transaction_read_only"):
        check_failure(world.run(), 3, "warehouse", "read-only transaction", "WH_HOST")


# 4 unexpected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("side", ["app", "warehouse"])
def test_interrupted(world, side, number):
    world.app_has((ANN, "Ann Archer"))
    with ping_server() as server, getattr(world, side).locked():
        process = world.start(SYNC_PING_URL=server.url)
        getattr(world, side).wait_until_a_run_waits_for_a_lock()
        began = time.monotonic()
        process.send_signal(number)
        run = finish(process)
        seconds = time.monotonic() - began
    check_failure(run, 4, signal.Signals(number).name, "run it again")
    assert seconds < 2, "%.1f s" % seconds
    check_told(world, server, run)
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


DEFECTS = {
    "before the connections": ("dotenv", "def dotenv_values(**_): raise RuntimeError('Ann' + ' Archer')"),
    "in the middle of the run": ("tqdm", "def tqdm(**_): raise RuntimeError('Ann' + ' Archer')"),
}


@pytest.mark.parametrize("module, text", list(DEFECTS.values()), ids=list(DEFECTS))
def test_a_defect(world, tmp_path, module, text):
    """A stand-in for a package raises what nobody foresaw, with an athlete's name in its text."""
    world.app_has((ANN, "Ann Archer"))
    (tmp_path / (module + ".py")).write_text(text)
    check_failure(world.run(PYTHONPATH=str(tmp_path)), 4, "RuntimeError", "-v")
    assert world.dimension() == {}
    assert 'File "' in world.run("-v", PYTHONPATH=str(tmp_path)).err


# Whatever the code


@pytest.mark.parametrize("settings", [
    dict(APP_PORT="abc"), dict(APP_PASSWORD="wr0ng"), dict(APP_TABLE="public.nowhere"),
    dict(WH_TABLE="nowhere.dim")])
def test_verbose_adds_the_traceback(world, settings):
    run = world.sync("-v", **settings)
    assert 'File "' in run.err and " ERROR " in run.error, run
    assert 'File "' not in world.sync(**settings).err


@pytest.mark.parametrize("settings, code", [(dict(), 0), (dict(APP_TABLE="nowhere"), 3)])
@pytest.mark.parametrize("streams", ["| true", ">&-", "2>&-", ">&- 2>&-", "> /dev/full", "2> /dev/full"])
def test_nobody_listens(world, streams, settings, code):
    """A reader that went away, a closed or a full stream: the work is done and the code tells."""
    if "/dev/full" in streams and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    world.app_has((ANN, "Ann Archer"))
    line = '"$0" "$@" %s; echo "code ${PIPESTATUS[0]}" >&3' % streams
    run = finish(world.start(command=["bash", "-c", "exec 3>&2; " + line, sys.executable, str(SCRIPT)],
                             **settings))
    assert run.err.splitlines()[-1] == "code %d" % code, run
    assert world.dimension() == ({ANN: "Ann Archer"} if code == 0 else {})


def test_a_terminal_that_knows_no_unicode(world):
    run = world.run(APP_TABLE='public."Gr\u00f6\u00dfe"', LC_ALL="C", PYTHONIOENCODING="ascii")
    check_failure(run, 3, "app", "does not exist")


def test_no_password_where_everything_is_said(world):
    """-v, and the server's own words about the statements of this run."""
    world.app_has((ANN, "Ann Archer"))
    for settings in (dict(), dict(WH_USER="nobody_known"), dict(APP_TABLE="nowhere"), dict(APP_PORT="0")):
        run = world.sync("-v", **settings)
        for password in (READER_PASSWORD, WRITER_PASSWORD):
            assert password not in run.out + run.err
    assert not [row for row in world.history() if READER_PASSWORD in str(row) or WRITER_PASSWORD in str(row)]


def test_the_bar_on_a_terminal(world):
    pty = pytest.importorskip("pty", reason="terminals are a matter of POSIX")
    import fcntl
    import termios
    world.app_has((ANN, "Ann Archer"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = world.start(stderr=theirs)
    os.close(theirs)
    shown = b"".join(iter(lambda: read_terminal(ours), b""))
    os.close(ours)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and out.startswith(b"result=ok "), shown
    assert b" athletes" in shown and b"connected to" in shown, shown


def read_terminal(ours):
    try:
        return os.read(ours, 4096)
    except OSError:  # how Linux says that the other end has closed
        return b""


# Who hears of an end


@contextlib.contextmanager
def silent_port():
    """A port that lets everybody in and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        yield silent


def test_a_run_that_the_watchdog_ends_is_pinged_too(world):
    """A port that says nothing: libpq waits for it where no signal handler runs."""
    with ping_server() as server, silent_port() as silent:
        run = finish(world.start(SYNC_PING_URL=server.url, SYNC_DEADLINE="2", SYNC_CONNECT_TIMEOUT="60",
                                 WH_PORT=str(silent.getsockname()[1])))
    assert run.code == 2, run
    assert [path for path, _ in server.told] == ["/%s/start" % TOKEN, "/%s/2" % TOKEN]


def test_a_run_that_wakes_in_the_watchdogs_last_act_does_not_cut_it_short(world):
    with ping_server(slow_start=3.0) as server, silent_port() as silent:
        process = world.start(SYNC_PING_URL=server.url, SYNC_CONNECT_TIMEOUT="60",
                              WH_PORT=str(silent.getsockname()[1]))
        line = silent.accept()[0]
        process.send_signal(signal.SIGTERM)
        told = process.stdout.readline()  # by the watchdog, while libpq waits
        silent.close()
        line.close()  # and now it does not wait any more
        run = finish(process)
    assert (run.code, told.startswith(b"result=failed"), run.out) == (4, True, ""), run
    assert run.err.count(" ERROR ") == 1, run
    assert [path for path, _ in server.told] == ["/%s/start" % TOKEN, "/%s/4" % TOKEN]


def test_a_run_that_is_interrupted_while_it_connects_is_recorded(world):
    """As soon as the warehouse lets anybody in, it is told, though the run itself never came that far."""
    with Proxy("warehouse", world.lab.warehouse.port) as proxy:
        struck = []

        def interrupt(moment):
            if moment.when == "login" and not struck:
                struck.append(moment)
                process.send_signal(signal.SIGTERM)
                process.stdout.readline()

        proxy.reset(interrupt)
        process = world.start(WH_PORT=str(proxy.port))
        run = finish(process)
    assert run.code == 4, run
    assert world.ends() == ["failed 4"]


def test_a_second_signal_cuts_the_last_act_short(world):
    with ping_server(status=None) as server, world.app.locked():
        process = world.start(SYNC_PING_URL=server.url)
        world.app.wait_until_a_run_waits_for_a_lock()
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.stdout.readline()  # the result is out, the ping is not answered
        process.send_signal(signal.SIGTERM)
        process.wait(RUN_MAY_TAKE)
        took = time.monotonic() - began
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == 4 and took < 4, took


def test_the_start_is_pinged_before_the_result_however_slow_it_is(world):
    world.app_has((ANN, "Ann Archer"))
    with ping_server(slow_start=1.0) as server:
        run = world.run(SYNC_PING_URL=server.url)
    assert run.code == 0, run
    assert [path for path, _ in server.told] == ["/%s/start" % TOKEN, "/%s/0" % TOKEN]
