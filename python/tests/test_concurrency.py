"""Many at once: runs that are started together, runs that hold the lock too long, and runs while others write
to the app's table."""

from __future__ import annotations

import contextlib
import os
import re
import signal

import faults
import psycopg2
import pytest
from conftest import ANN, BOB, HOLD_THE_LOCK, finish, wait_until
from proxy import Proxy

RUNS = 20


# One run at a time


def test_a_second_run_is_skipped_while_the_first_holds_the_lock(world):
    world.app_has((ANN, "Ann Archer"))
    with world.app.locked():
        first = world.start("--json")
        world.app.wait_until_a_run_waits_for_a_lock()
        second = finish(world.start("--json"))
        third = finish(world.start("--dry-run"))
    first = finish(first)
    assert (second.code, second.result["result"]) == (0, "skipped"), second
    assert "lock" in second.err and "skipped" in second.err
    unknown = ("source", "inserted", "updated", "unchanged", "missing", "rejected", "repeated")
    assert {second.result[key] for key in unknown} == {None}
    assert (third.code, third.result["result"], third.result["source"]) == (0, "skipped", "null"), third
    assert (first.code, first.counts()) == (0, "1: 1 new"), first
    assert world.ends() == ["skipped 0", "ok 0"] and world.history()[0]["source_rows"] is None


def test_runs_for_different_dimensions_do_not_hinder_each_other(world):
    create = "CREATE TABLE analytics.other_dim (LIKE analytics.athlete_dim INCLUDING ALL)"
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.changed(create, "DROP TABLE analytics.other_dim"), world.warehouse.holding(
            "SELECT pg_advisory_xact_lock(1096043596, 'analytics.other_dim'::regclass::oid::integer)"):
        world.warehouse.sql("GRANT SELECT, INSERT, UPDATE ON analytics.other_dim TO warehouse_writer")
        assert world.sync(WH_TABLE="analytics.other_dim").result["result"] == "skipped"
        assert world.sync().result["result"] == "ok"


def test_of_twenty_runs_started_at_once_one_writes_and_the_others_skip(world):
    world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"))
    world.warehouse_has((ANN, "Ann Before"))
    with world.warehouse.locked(mode="EXCLUSIVE"):
        processes = [world.start() for _ in range(RUNS)]
        wait_until(lambda: sum(process.poll() is None for process in processes) <= 1, "all runs but one to be skipped")
        running, = [process for process in processes if process.poll() is None]  # until the table is free
        backend, since = world.warehouse.sql(
            "SELECT pid, extract(year FROM xact_start)::integer"
            "  FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted")[0]
    runs = {process: finish(process) for process in processes}
    winner = runs.pop(running)
    holder = r"warehouse: .*\b%d\b.*\b127\.0\.0\.1\b.*since .*%d-" % (backend, since)
    assert (winner.code, winner.result["result"]) == (0, "ok"), winner
    for run in runs.values():
        assert (run.code, run.result["result"]) == (0, "skipped"), run
        assert float(run.result["seconds"]) < 3, run
        assert re.search(holder, run.err), run
    assert world.dimension() == {ANN: "Ann Anders", BOB: "Bob Borg"}
    assert [row["result"] for row in world.history()].count("ok") == 1


@pytest.fixture
def lane(lab):
    with faults.Lane(lab, "writers") as lane:
        yield lane


def test_among_writers_with_open_transactions_the_last_run_leaves_no_difference(lane):
    assert faults.run_among_writers(lane, 4) == []


def test_differences_are_noticed(lane):
    lane.make_old_state()
    assert faults.differences(lane) == sum(lane.old.get(found) != name for found, name in lane.names.items())


# Who holds the lock longer than any run may take


ATHLETES = "INSERT INTO public.\"User\" (uuid, name) SELECT md5(n::text)::uuid, repeat('x', 500)" \
           "  FROM generate_series(1, 5000) AS n"


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


def test_another_roles_session_that_outlives_a_skipped_run(world):
    """Postgres does not show its age; the history does."""
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.holding(HOLD_THE_LOCK) as holder:
        codes = [world.sync().code for _ in range(2)]
        world.warehouse.sql("UPDATE analytics.athlete_sync_run SET finished_at = now() - interval '59 minutes'")
        codes.append(world.sync().code)
        world.warehouse.sql("UPDATE analytics.athlete_sync_run SET finished_at = now() - interval '61 minutes'")
        late = world.sync()
        pid = holder.connection.info.backend_pid
    assert codes == [0, 0, 0] and late.code == 3, late
    assert "SELECT pg_terminate_backend(%d);" % pid in late.error and world.dimension() == {}
    with world.warehouse.holding(HOLD_THE_LOCK):  # by another session
        assert world.sync().code == 0
    assert world.sync().code == 0 and world.dimension() == {ANN: "Ann Archer"}
    with world.warehouse.holding(HOLD_THE_LOCK):
        assert world.sync().code == 0


# What shows the server that a client is gone


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
