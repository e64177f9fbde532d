"""However a run ends, it is told, in time: by a line, a code, the history and a ping. And what holds the lock
for longer than any run may live does not hold it for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

import psycopg2
import pytest
from conftest import ANN, RUN_MAY_TAKE, finish
from lab.servers import PROJECT
from proxy import Proxy
from pings import TOKEN, ping_server

ATHLETES = "INSERT INTO public.\"User\" (uuid, name) SELECT md5(n::text)::uuid, repeat('x', 500)" \
           "  FROM generate_series(1, 5000) AS n"
HOLD_THE_LOCK = "SELECT pg_advisory_xact_lock(1096043596, 'analytics.athlete_dim'::regclass::oid::integer)"


def frozen_in_mid_copy(world, proxy, **settings):
    """A run that is stopped, as by kill -STOP, while half of its rows are staged."""
    stopped = []

    def freeze(moment):
        if moment.when == "mid" and not stopped:
            os.kill(process.pid, signal.SIGSTOP)
            stopped.append(moment)

    proxy.reset(freeze)
    process = world.start("--json", APP_PORT=str(proxy.port), **settings)
    wait_until(lambda: stopped)
    return process


def wait_until(is_so):
    until = time.monotonic() + RUN_MAY_TAKE
    while not is_so():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


OLDER_THAN_ITS_DEADLINE = """
SELECT 1 FROM pg_stat_activity
 WHERE usename = 'warehouse_writer' AND application_name = %s AND xact_start < clock_timestamp() - interval '7.5 s'
"""


def test_a_run_that_is_frozen_is_skipped_at_first_and_ended_when_it_is_older_than_its_deadline(world):
    world.app.sql(ATHLETES)
    with Proxy("app", world.lab.app.port) as proxy:
        frozen = frozen_in_mid_copy(world, proxy)
        assert world.sync(SYNC_DEADLINE="600").result["result"] == "skipped"
        wait_until(lambda: world.warehouse.sql(OLDER_THAN_ITS_DEADLINE, "sync_athletes"))
        run = world.sync(SYNC_DEADLINE="2")
        frozen.kill()
        frozen.communicate()
    assert "older than SYNC_DEADLINE and is ended: backend" in run.err, run
    assert (run.code, run.counts()) == (0, "5000: 5000 new"), run
    assert world.warehouse.value("SELECT count(*) FROM analytics.athlete_dim") == 5000


def test_a_lock_that_may_not_be_ended_is_exit_3(world, lab):
    holder = world.warehouse.server
    session = psycopg2.connect(host="127.0.0.1", port=holder.port, dbname="warehouse", user="warehouse_writer",
                               password=lab.settings()["WH_PASSWORD"], application_name="psql")
    session.cursor().execute(HOLD_THE_LOCK)
    wait_until(lambda: world.warehouse.sql(OLDER_THAN_ITS_DEADLINE, "psql"))
    run = world.sync(SYNC_DEADLINE="2")
    pid = session.info.backend_pid
    assert run.code == 3 and "SELECT pg_terminate_backend(%d);" % pid in run.error, run
    world.warehouse.sql("SELECT pg_terminate_backend(%s)", pid)
    session.close()
    wait_until(lambda: world.sync().result["result"] == "ok")


def test_the_server_is_told_to_look_after_its_client(world):
    """What shows a frozen or vanished client to a backend that waits for it inside COPY."""
    with Proxy("app", world.lab.app.port) as proxy:
        world.app.sql(ATHLETES)
        seen = []
        proxy.reset(lambda moment: seen.append(moment) if moment.when == "mid" else None)
        assert finish(world.start(APP_PORT=str(proxy.port))).code == 0
        steps = [step for step in proxy.steps if "tcp_user_timeout" in step]
    assert len(steps) == 1 and "tcp_keepalives_idle" in steps[0] and seen


def test_what_the_server_is_told_holds_until_the_transaction_ends(world, script, lab):
    """And no longer: a pooler may give the connection to somebody else."""
    wanted = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3",
              "tcp_user_timeout": "60000"}
    session = psycopg2.connect(host="127.0.0.1", port=world.warehouse.server.port, dbname="warehouse",
                               user="warehouse_writer", password=lab.settings()["WH_PASSWORD"])
    with contextlib.closing(session), session.cursor() as cursor:
        known = {name for name in wanted if world.warehouse.sql("SELECT 1 FROM pg_settings WHERE name = %s", name)}

        def shown():
            cursor.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(known)])
            return dict(cursor.fetchall())

        before = shown()
        cursor.execute(script.WATCH_THE_CLIENT)
        assert shown() == {name: wanted[name] for name in known} and "tcp_keepalives_idle" in known
        session.commit()
        assert shown() == before


# Who hears of an end


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 4), (signal.SIGINT, 4), (signal.SIGHUP, 4)])
def test_an_interrupted_run_is_pinged_and_recorded(world, number, code):
    world.app_has((ANN, "Ann Archer"))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # or a suite started by nohup would hand its own on
    with ping_server() as server, world.app.holding('LOCK TABLE public."User" IN ACCESS EXCLUSIVE MODE'):
        process = world.start(SYNC_PING_URL=server.url)
        world.app.wait_until_a_run_waits_for_a_lock()
        process.send_signal(number)
        run = finish(process)
    assert (run.code, run.result["result"]) == (code, "failed") and number.name in run.error, run
    assert [path for path, _ in server.told] == ["/%s/start" % TOKEN, "/%s/4" % TOKEN]
    assert [(row["result"], row["exit_code"]) for row in world.history()] == [("failed", 4)]


def test_a_run_that_ends_by_its_deadline_is_pinged_and_recorded(world):
    with ping_server() as server, world.app.holding('LOCK TABLE public."User" IN ACCESS EXCLUSIVE MODE'):
        run = finish(world.start(SYNC_PING_URL=server.url, SYNC_DEADLINE="2"))
    assert run.code == 2 and "the deadline of 2 s passed" in run.error, run
    assert [path for path, _ in server.told] == ["/%s/start" % TOKEN, "/%s/2" % TOKEN]
    assert [(row["result"], row["exit_code"]) for row in world.history()] == [("failed", 2)]


def test_a_run_that_the_watchdog_ends_is_pinged_too(world):
    """A port that says nothing: libpq waits for it where no signal handler runs."""
    with ping_server() as server, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        run = finish(world.start(SYNC_PING_URL=server.url, SYNC_DEADLINE="2", SYNC_CONNECT_TIMEOUT="60",
                                 WH_PORT=str(silent.getsockname()[1])))
    assert run.code == 2, run
    assert [path for path, _ in server.told] == ["/%s/start" % TOKEN, "/%s/2" % TOKEN]


@contextlib.contextmanager
def silent_port():
    """A port that lets everybody in and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        yield silent


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
    assert [(row["result"], row["exit_code"]) for row in world.history()] == [("failed", 4)]


def test_a_second_signal_cuts_the_last_act_short(world):
    with ping_server(status=None) as server, world.app.holding('LOCK TABLE public."User" IN ACCESS EXCLUSIVE MODE'):
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


# The history never fails a run that is right, nor hinders one that failed


HISTORY = "ALTER TABLE analytics.athlete_sync_run "
COMPLAIN = "CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no'; END$$;"
ANOTHER_HOST = HISTORY + "RENAME host TO machine; " + HISTORY + "ADD host %s"
THE_HOST = HISTORY + "DROP host; " + HISTORY + "RENAME machine TO host"
SETUP, LOOK = "run once: psql", r"psql -c '\d+ analytics.athlete_sync_run' warehouse shows"

HINDRANCES = {
    # what hinders, how it is undone, what the warning says to run
    "a column that must not be NULL": (HISTORY + "ADD wanted text NOT NULL", HISTORY + "DROP wanted", LOOK),
    "a trigger that complains": (
        COMPLAIN + "CREATE TRIGGER complain BEFORE INSERT ON analytics.athlete_sync_run"
        " FOR EACH ROW EXECUTE PROCEDURE complain()", "DROP FUNCTION complain() CASCADE", LOOK),
    "a trigger that complains at the COMMIT": (
        COMPLAIN + "CREATE CONSTRAINT TRIGGER complain AFTER INSERT ON analytics.athlete_sync_run"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE PROCEDURE complain()",
        "DROP FUNCTION complain() CASCADE", LOOK),
    "a constraint": (HISTORY + "ADD CONSTRAINT none CHECK (version = 'none')", HISTORY + "DROP CONSTRAINT none", LOOK),
    "a column of another type": (ANOTHER_HOST % "integer", THE_HOST, LOOK),
    "a column too narrow": (ANOTHER_HOST % "varchar(1)", THE_HOST, LOOK),
    "a column renamed": (HISTORY + "RENAME host TO machine", HISTORY + "RENAME machine TO host", SETUP),
    "no rights on it": ("REVOKE INSERT ON analytics.athlete_sync_run FROM warehouse_writer",
                        "GRANT INSERT ON analytics.athlete_sync_run TO warehouse_writer", SETUP),
    "its renaming": (HISTORY + "RENAME TO elsewhere",
                     "ALTER TABLE analytics.elsewhere RENAME TO athlete_sync_run", SETUP),
}


@pytest.mark.parametrize("hinder, mend, advice", list(HINDRANCES.values()), ids=list(HINDRANCES))
def test_a_history_that_refuses_a_row_is_a_warning(world, hinder, mend, advice):
    world.app_has((ANN, "Ann Archer"))
    truncate = "TRUNCATE analytics.athlete_sync_run; "
    with world.warehouse.changed(truncate + hinder, mend + ";" + truncate):
        with world.warehouse.holding(HOLD_THE_LOCK):
            skipped = world.sync()
        good, bad = world.sync(), world.sync("--strict", APP_TABLE="public.nowhere")
    assert (good.code, good.counts(), world.dimension()) == (0, "1: 1 new", {ANN: "Ann Archer"}), good
    assert (skipped.code, skipped.result["result"]) == (0, "skipped"), skipped
    assert (bad.code, errors_of(bad)) == (3, 1) and "nowhere" in bad.err, bad
    for run in (skipped, good, bad):
        warning, = [line for line in run.err.splitlines() if "this run is not in the run history" in line]
        assert advice in warning and "athlete_dim" not in warning.split("; run once")[0], warning


def test_renames_that_are_refused_at_the_commit_are_a_warning(world):
    world.app_has((ANN, "Ann Archer"))
    world.warehouse_has((ANN, "Ann Before"))
    trigger = ("CREATE CONSTRAINT TRIGGER complain AFTER INSERT ON analytics.athlete_rename"
               " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE PROCEDURE complain()")
    with world.warehouse.changed(COMPLAIN + trigger, "DROP FUNCTION complain() CASCADE"):
        run = world.sync()
    assert (run.code, run.counts(), world.dimension()) == (0, "1: 1 renamed", {ANN: "Ann Archer"}), run
    assert "former names are not kept" in run.err and len(world.history()) == 1, run


def errors_of(run):
    return run.err.count(" ERROR ")


def test_a_locked_history_is_waited_for_five_seconds(world):
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.holding("LOCK TABLE analytics.athlete_sync_run IN ACCESS EXCLUSIVE MODE"):
        good = world.start()
        bad = world.start(WH_TABLE="analytics.nowhere")
        good, bad = finish(good), finish(bad)
    assert good.code == 0 and "this run is not in the run history" in good.err, good
    assert float(good.result["seconds"]) < 10 and world.dimension() == {ANN: "Ann Archer"}
    assert bad.code == 3 and "this run is not in the run history" in bad.err, bad


@pytest.fixture
def in_latin1(world, lab):
    lab.warehouse.psql("-qc", "CREATE DATABASE latin1 ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    lab.warehouse.psql("-f", str(PROJECT / "sql" / "warehouse_setup.sql"), database="latin1")
    yield lambda query: lab.warehouse.psql("-qAtc", query, database="latin1")
    lab.warehouse.psql("-qc", "DROP DATABASE latin1")


def test_a_warehouse_in_latin1_records_what_it_cannot_spell(world, in_latin1):
    world.app_has((ANN, "Jos\u00e9"), ("\u738b", "Bob Bowman"))
    good = world.sync(WH_DB="latin1")
    assert (good.code, good.counts()) == (0, "2: 1 new, 1 rejected") and "run history" not in good.err, good
    bad = world.sync(WH_DB="latin1", APP_TABLE="public.\u738b")
    assert bad.code == 3, bad
    assert in_latin1("SELECT result, message LIKE '%\\u738b%' FROM analytics.athlete_sync_run ORDER BY run_id") == \
        "ok|\nfailed|t\n"
