"""Many at once: runs started together, and runs that hold the lock too long."""

from __future__ import annotations

import contextlib
import os
import re
import signal

import psycopg2
import pytest
from conftest import ANN, BOB, HOLD_THE_LOCK, finish, wait_until
from proxy import Proxy


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
    assert {second.result[key] for key in ("source", "inserted", "updated", "missing", "rejected")} == {None}
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
        processes = [world.start() for _ in range(20)]
        wait_until(lambda: sum(process.poll() is None for process in processes) <= 1, "all runs but one to be skipped")
        running, = [process for process in processes if process.poll() is None]  # until the table is free
        backend, since = world.warehouse.sql(
            "SELECT pid, extract(year FROM xact_start)::integer FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted")[0]
    runs = {process: finish(process) for process in processes}
    winner = runs.pop(running)
    holder = r"warehouse: .*\b%d\b.*\b127\.0\.0\.1\b.*since .*%d-" % (backend, since)
    assert (winner.code, winner.result["result"]) == (0, "ok"), winner
    for run in runs.values():
        assert (run.code, run.result["result"]) == (0, "skipped") and re.search(holder, run.err), run
        assert float(run.result["seconds"]) < 3, run
    assert world.dimension() == {ANN: "Ann Anders", BOB: "Bob Borg"}
    assert [row["result"] for row in world.history()].count("ok") == 1


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


def test_a_run_that_is_frozen_does_not_outlive_its_deadline(world):
    """Since PostgreSQL 17 its own server ends it; elsewhere the next run does."""
    world.app.sql(ATHLETES)
    with Proxy("app", world.lab.app.port) as proxy:
        frozen = frozen_in_mid_copy(world, proxy, SYNC_DEADLINE="5")
        assert world.sync().result["result"] == "skipped"
        wait_until(lambda: not world.warehouse.sql(
            "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND xact_start > clock_timestamp() - interval '10.5 s'"))
        run = world.sync()
        frozen.kill()
        frozen.communicate()
    assert (run.code, run.counts()) == (0, "5000: 5000 new"), run


# Who holds the lock, and whether the next run ends it: by the deadline that its own name tells.
HOLDERS = {"psql 1": False, "sync_athletes": False, "sync_athletes 600": False, "sync_athletes 1": True}


def test_a_run_is_ended_by_its_own_deadline_and_nobody_else_is(world, lab):
    world.app_has((ANN, "Ann Archer"))
    holder = psycopg2.connect(host="127.0.0.1", port=world.warehouse.server.port, dbname="warehouse",
                              user="warehouse_writer", password=lab.settings()["WH_PASSWORD"],
                              application_name="sync_athletes 1")
    with contextlib.closing(holder), holder.cursor() as cursor:
        cursor.execute(HOLD_THE_LOCK)
        assert world.sync(SYNC_DEADLINE="1").result["result"] == "skipped", "it is not yet past its deadline"
        wait_until(lambda: world.warehouse.sql(OLDER_THAN_ITS_DEADLINE, "sync_athletes 1"))
        for name, is_ended in HOLDERS.items():
            cursor.execute("SET application_name = %s", [name])
            run = world.sync(SYNC_DEADLINE="1" if not is_ended else "600")
            assert ("past its deadline and is ended: backend %d" % holder.info.backend_pid in run.err) is is_ended, run
            assert (run.code, run.result["result"]) == (0, "ok" if is_ended else "skipped"), run
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("SELECT 1")
    assert world.dimension() == {ANN: "Ann Archer"}


def test_another_roles_lock_is_left_to_it(world):
    """Postgres does not show its age."""
    with world.warehouse.holding("SET application_name = 'sync_athletes 0'", HOLD_THE_LOCK):
        run = world.sync()
    assert (run.code, run.result["result"]) == (0, "skipped") and "since ?" in run.err, run


LIMITS = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3",
          "client_connection_check_interval": "5000", "lock_timeout": "0", "statement_timeout": "3602000",
          "idle_in_transaction_session_timeout": "3602000", "transaction_timeout": "3602000"}


def test_each_side_is_told_its_limits_and_forgets_them_with_the_transaction(world, lab):
    """What shows a server that its client is gone. A pooler may give the connection to somebody else."""
    with Proxy("app", lab.app.port) as app, Proxy("warehouse", lab.warehouse.port) as warehouse:
        assert finish(world.start(APP_PORT=str(app.port), WH_PORT=str(warehouse.port))).code == 0
        told = [step for proxy in (app, warehouse) for step in proxy.steps if "tcp_keepalives_idle" in step]
    assert len(told) == 2
    for side, step in zip((world.app, world.warehouse), told):
        with side.holding("SET lock_timeout = 12345", "COMMIT", "BEGIN") as session:
            limits = [dict(session.sql("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", list(LIMITS)))
                      for statement in ("SELECT 1", step, "COMMIT") if session.sql(statement) or True]
        assert limits[1] == {name: LIMITS[name] for name in limits[0]} != limits[0] == limits[2] and len(limits[0]) > 4
