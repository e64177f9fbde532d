"""The main cases by other routes to the data: through PgBouncer, from a hot standby, into a partitioned dimension."""

from __future__ import annotations

import shutil
import subprocess

import psycopg2
import pytest
from conftest import ANN, BOB, CAT, DAN, HOLD_THE_LOCK, Side, finish, wait_until
from lab.servers import READER_PASSWORD, WRITER_PASSWORD, free_port, leave_root
from standby import standby_of


class Route:
    """A world, the settings that lead through the route, what to wait for before a run, and who is read."""

    def __init__(self, world, settings=None, catch_up=lambda: None, reader=None):
        self.world, self.settings, self.catch_up = world, settings or {}, catch_up
        self.reader = reader or world.app

    def sync(self, *flags, **settings):
        self.catch_up()
        return self.world.sync(*flags, **dict(self.settings, **settings))

    def run(self, flag):
        self.catch_up()
        return self.world.run(flag, **self.settings)


@pytest.fixture(params=["through_pooler", "from_standby", "into_partitions"])
def route(request):
    return request.getfixturevalue(request.param)


PGBOUNCER = """
[databases]
app       = host=127.0.0.1 port={app.port}
warehouse = host=127.0.0.1 port={warehouse.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = md5
auth_file = {app.folder}/pooler.users
pool_mode = transaction
"""


@pytest.fixture(scope="module")
def pooler(lab):
    program = shutil.which("pgbouncer", path="/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin")
    if not program:
        pytest.skip("NOTHING was run through a pooler: apt install pgbouncer")
    folder, port = lab.app.folder, free_port()
    (folder / "pooler.ini").write_text(PGBOUNCER.format(app=lab.app, warehouse=lab.warehouse, port=port))
    (folder / "pooler.users").write_text("".join('"%s" "%s"\n' % login for login in (
        ("app_readonly", READER_PASSWORD), ("warehouse_writer", WRITER_PASSWORD))))
    with (folder / "pooler.log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "pooler.ini")], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, preexec_fn=leave_root())
    try:
        wait_until(lambda: "process up" in (folder / "pooler.log").read_text() or process.poll() is not None)
        assert process.poll() is None, (folder / "pooler.log").read_text()
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def through_pooler(world, pooler):
    return Route(world, {"APP_PORT": str(pooler), "WH_PORT": str(pooler)})


@pytest.fixture(scope="module")
def standby(lab):
    with standby_of(lab.app, "hot_standby") as server:
        yield Side(server)


@pytest.fixture
def from_standby(world, standby):
    def catch_up():
        written = world.app.value("SELECT pg_current_wal_lsn()::text")
        wait_until(lambda: standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written))

    with world.app.changed("SET synchronous_commit = on", "RESET synchronous_commit"):  # so that it is sent
        yield Route(world, {"APP_PORT": str(standby.server.port)}, catch_up, standby)


PARTITIONS = ("analytics.athlete_dim_0", "analytics.athlete_dim_1")
PARTITIONED = """
ALTER TABLE analytics.athlete_dim RENAME TO athlete_dim_whole;
CREATE TABLE analytics.athlete_dim (LIKE analytics.athlete_dim_whole INCLUDING ALL) PARTITION BY HASH (athlete_uuid);
CREATE TABLE analytics.athlete_dim_0 PARTITION OF analytics.athlete_dim FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE analytics.athlete_dim_1 PARTITION OF analytics.athlete_dim FOR VALUES WITH (MODULUS 2, REMAINDER 1);
GRANT SELECT, INSERT, UPDATE ON analytics.athlete_dim TO warehouse_writer
"""
WHOLE = "DROP TABLE analytics.athlete_dim; ALTER TABLE analytics.athlete_dim_whole RENAME TO athlete_dim"


@pytest.fixture
def into_partitions(world, monkeypatch):
    if world.warehouse.version() < 11:
        pytest.skip("PostgreSQL 11 brought hash partitions, and keys on partitioned tables")
    snapshot = world.warehouse.snapshot
    monkeypatch.setattr(world.warehouse, "snapshot", lambda leaving_out: snapshot(leaving_out + PARTITIONS))
    with world.warehouse.changed(PARTITIONED, WHOLE):
        yield Route(world)


def test_what_happens_to_each_row_run_after_run(route):
    """What one leaves in a pooled connection would meet the next: temp tables, time-outs, locks."""
    world = route.world
    world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"), (CAT, None), (DAN, "Dan D."), ("x", "Nobody"))
    world.warehouse_has((BOB, "Bob Before"), (CAT, "Cat Kept"), (DAN, "Dan D."))
    before, runs = world.rows(), [route.run(flag) for flag in ("--check", "--dry-run")]
    assert [run.code for run in runs] == [0, 0] and "inserted=1 updated=1 unchanged=1" in runs[1].out, runs
    assert (world.rows(), world.history()) == (before, [])
    runs = [route.sync(SYNC_REFRESH=refresh) for refresh in ("never", "always", "1m")]
    assert [run.counts() for run in runs] == ["5: 1 new, 1 renamed, 1 unchanged, 2 rejected"] \
        + 2 * ["5: 3 unchanged, 2 rejected"], runs
    assert world.dimension() == {ANN: "Ann Anders", BOB: "Bob Borg", CAT: "Cat Kept", DAN: "Dan D."}
    assert (world.stamped(), world.ends()) == ({ANN, BOB, DAN}, 3 * ["ok 0"])
    assert route.run("--status").out.startswith("healthy")
    world.app.sql("INSERT INTO public.\"User\" (uuid, name)"
                  " SELECT md5(n::text)::uuid, 'Athlete ' || n FROM generate_series(1, 20000) AS n")
    for counts in ("20005: 20000 new, 3 unchanged, 2 rejected", "20005: 20003 unchanged, 2 rejected"):
        assert route.sync(SYNC_REFRESH="never").counts() == counts
    assert world.warehouse.sql("SELECT query FROM pg_stat_activity"
                               " WHERE state <> 'idle' AND usename = 'warehouse_writer'") == []


def test_a_reload_in_the_app_is_seen_whole(route):
    route.world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"))
    with route.world.app.holding('TRUNCATE public."User"',
                                 "INSERT INTO public.\"User\" (uuid, name) VALUES ('%s', 'Cat Cole')" % CAT) as holder:
        wait_until(lambda: route.reader.sql(
            "SELECT 1 FROM pg_locks WHERE relation = 'public.\"User\"'::regclass AND mode LIKE 'AccessEx%'"))
        process = route.world.start("--json", **route.settings)
        route.reader.wait_until_a_run_waits_for_a_lock()
        holder.connection.commit()
        run = finish(process)
    assert (run.code, run.counts(), route.world.dimension()) == (0, "1: 1 new", {CAT: "Cat Cole"}), run


def test_an_incremental_run(route):
    world, table = route.world, 'ALTER TABLE public."User" '
    with world.app.changed(table + "ADD CONSTRAINT once UNIQUE (uuid)", table + "DROP CONSTRAINT once"):
        world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"))
        assert route.sync().counts() == "2: 2 new"
        world.app.sql("UPDATE public.\"User\" SET name = 'Bob Bose' WHERE uuid = %s", BOB)
        world.app_has((CAT, "Cat Cole"))
        run = route.sync("--incremental")
    assert (run.code, world.dimension()) == (0, {ANN: "Ann Anders", BOB: "Bob Bose", CAT: "Cat Cole"}), run
    if world.app.connection.server_version >= 90600:
        assert (run.result["mode"], run.result["source"]) == ("incremental", 2), run


def test_two_runs_never_overlap_and_the_deadline_leaves_nothing_behind(route):
    world = route.world
    world.app_has((ANN, "Ann Anders"))
    with world.warehouse.locked(mode="EXCLUSIVE"):
        route.catch_up()
        first = world.start(SYNC_DEADLINE="5", **route.settings)
        world.warehouse.wait_until_a_run_waits_for_a_lock()
        assert route.sync().result["result"] == "skipped"
        ended = finish(first)
        assert ended.code == 2 and "deadline" in ended.error, ended
        wait_until(lambda: not world.warehouse.sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"))
    assert route.sync().counts() == "1: 1 new"


def test_a_run_that_is_past_its_deadline_is_ended_behind_the_pooler_too(world, pooler):
    """Its backend is known by the server's number; the pooler's own, which the client sees, means nothing there."""
    overdue = psycopg2.connect(host="127.0.0.1", port=pooler, dbname="warehouse", user="warehouse_writer",
                               password=WRITER_PASSWORD, application_name="sync_athletes 1")
    overdue.cursor().execute(HOLD_THE_LOCK)
    assert world.sync(WH_PORT=str(pooler)).result["result"] == "skipped"
    wait_until(lambda: world.warehouse.sql("SELECT 1 FROM pg_stat_activity WHERE application_name = 'sync_athletes 1'"
                                           " AND xact_start < clock_timestamp() - interval '6 seconds'"))
    run = world.sync(WH_PORT=str(pooler))
    assert (run.code, run.result["result"]) == (0, "ok") and " is ended: backend " in run.err, run


def test_other_names_on_both_sides(world):
    source, uuid, name = '"My App"."The ""User""; % {x}"', '"UUID."', '"full%sName"'
    target = 'analytics."Athlete ""Dim""; % {x}"'
    with world.app.changed(
            'CREATE SCHEMA "My App"; GRANT USAGE ON SCHEMA "My App" TO app_readonly;'
            "CREATE TABLE {0} ({1} UUID PRIMARY KEY, {2} VARCHAR(50)); INSERT INTO {0} VALUES ('{3}', 'Ann Archer');"
            "GRANT SELECT ON {0} TO app_readonly".format(source, uuid, name, ANN),
            'DROP SCHEMA "My App" CASCADE'), world.warehouse.changed(
            "CREATE TABLE {0} (LIKE analytics.athlete_dim INCLUDING ALL);"
            "GRANT SELECT, INSERT, UPDATE ON {0} TO warehouse_writer".format(target), "DROP TABLE " + target):
        runs = [world.sync(APP_TABLE=source, APP_UUID_COLUMN=uuid, APP_NAME_COLUMN=name,
                           WH_TABLE=target.replace("analytics", "Analytics")).counts() for _ in range(2)]
        got = world.warehouse.sql("SELECT athlete_uuid::text, full_name FROM " + target)
    assert (runs, got, world.history()[-1]["target"]) == (["1: 1 new", "1: 1 unchanged"], [(ANN, "Ann Archer")], target)
