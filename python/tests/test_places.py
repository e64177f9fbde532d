"""The main cases by every other route to the data: through PgBouncer, from a hot standby, into a
partitioned dimension, over TLS."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess

import pytest
from conftest import ANN, BOB, CAT, DAN, RUN_MAY_TAKE, Side, World, empty_world, finish, wait_until
from lab.servers import PROJECT, READER_PASSWORD, WRITER_PASSWORD, free_port, leave_root
from proxy import Proxy
from standby import standby_of
from test_concurrency import ATHLETES, OLDER_THAN_ITS_DEADLINE, frozen_in_mid_copy
from tls import Authority, server_with_tls

ROUTES = {"PgBouncer before both sides": "through_pooler", "standby as the app": "from_standby",
          "partitioned dimension": "into_partitions", "TLS, verified": "over_tls"}


class Route:
    """A world, the settings that lead through the route, what to wait for before a run, and who is read."""

    def __init__(self, world, settings=None, catch_up=lambda: None, reader=None):
        self.world, self.settings, self.catch_up = world, settings or {}, catch_up
        self.reader = reader or world.app

    def sync(self, *flags, **settings):
        self.catch_up()
        return self.world.sync(*flags, **dict(self.settings, **settings))

    def run(self, *flags, **settings):
        self.catch_up()
        return self.world.run(*flags, **dict(self.settings, **settings))


@pytest.fixture(params=list(ROUTES))
def route(request):
    return request.getfixturevalue(ROUTES[request.param])


# PgBouncer


PGBOUNCER = """
[databases]
app       = host=127.0.0.1 port={app.port}
warehouse = host=127.0.0.1 port={warehouse.port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = md5
auth_file = {folder}/pooler.users
pool_mode = transaction
default_pool_size = 5
"""


@pytest.fixture(scope="module")
def pooler(lab):
    """The port of a PgBouncer in transaction mode, before both databases."""
    program = shutil.which("pgbouncer", path="/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin")
    if not program:
        pytest.skip("NOTHING was run through a pooler: apt install pgbouncer")
    folder, port = lab.app.folder, free_port()
    (folder / "pooler.ini").write_text(PGBOUNCER.format(
        app=lab.app, warehouse=lab.warehouse, port=port, folder=folder))
    (folder / "pooler.users").write_text("".join('"%s" "%s"\n' % login for login in (
        ("app_readonly", READER_PASSWORD), ("warehouse_writer", WRITER_PASSWORD))))
    with (folder / "pooler.log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "pooler.ini")], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, preexec_fn=leave_root())
    try:
        wait_until(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "pooler.log").read_text()
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def through_pooler(world, pooler):
    return Route(world, {"APP_PORT": str(pooler), "WH_PORT": str(pooler)})


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_frozen_run_behind_the_pooler_is_ended_too(world, pooler):
    """Its backend is known by the server's number; the pooler's own, which the client sees, means nothing there."""
    world.app.sql(ATHLETES)
    with Proxy("app", world.lab.app.port) as proxy:
        frozen = frozen_in_mid_copy(world, proxy, WH_PORT=str(pooler))
        wait_until(lambda: world.warehouse.sql(OLDER_THAN_ITS_DEADLINE, "sync_athletes"))
        run = world.sync(SYNC_DEADLINE="2", WH_PORT=str(pooler))
        frozen.send_signal(signal.SIGCONT)
        ended = finish(frozen)
    assert "older than SYNC_DEADLINE and is ended: backend" in run.err, run
    assert (run.code, run.counts(), ended.code) == (0, "5000: 5000 new", 2), (run, ended)
    assert sorted(row["result"] for row in world.history()) == ["failed", "ok"], ended


# A hot standby


@pytest.fixture(scope="module")
def standby(lab):
    with standby_of(lab.app, "hot_standby") as server:
        side = Side(server)
        yield side
        side.connection.close()


@pytest.fixture
def from_standby(world, standby):
    def catch_up():
        written = world.app.value("SELECT pg_current_wal_lsn()::text")
        wait_until(lambda: standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written))

    assert standby.value("SELECT pg_is_in_recovery()")
    with world.app.changed("SET synchronous_commit = on", "RESET synchronous_commit"):  # so that it is sent
        yield Route(world, {"APP_PORT": str(standby.server.port)}, catch_up, standby)


# A partitioned dimension


PARTITIONS = tuple("analytics.athlete_dim_%d" % number for number in range(4))
PARTITIONED = """
ALTER TABLE analytics.athlete_dim RENAME TO athlete_dim_whole;
CREATE TABLE analytics.athlete_dim (LIKE analytics.athlete_dim_whole INCLUDING DEFAULTS,
                                    PRIMARY KEY (athlete_uuid)) PARTITION BY HASH (athlete_uuid);
GRANT SELECT, INSERT, UPDATE ON analytics.athlete_dim TO warehouse_writer;
""" + "".join("""
CREATE TABLE %s PARTITION OF analytics.athlete_dim FOR VALUES WITH (MODULUS 4, REMAINDER %d);
""" % (name, number) for number, name in enumerate(PARTITIONS))
WHOLE = "DROP TABLE analytics.athlete_dim; ALTER TABLE analytics.athlete_dim_whole RENAME TO athlete_dim"


class PartitionedSide(Side):
    def snapshot(self, leaving_out=()):
        return super().snapshot(leaving_out + PARTITIONS)


@pytest.fixture
def into_partitions(world):
    if world.warehouse.connection.server_version < 110000:
        pytest.skip("PostgreSQL 11 brought hash partitions, and keys on partitioned tables")
    with world.warehouse.changed(PARTITIONED, WHOLE):
        side = PartitionedSide(world.warehouse.server)
        yield Route(World(world.lab, world.app, side, world.script))
        side.connection.close()


# TLS


@pytest.fixture(scope="module")
def tls_lab(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("authority"), "ours")
    with server_with_tls(*authority.sign("localhost")) as lab:
        lab.authority = authority
        yield lab


@pytest.fixture
def over_tls(tls_lab, script):
    settings = {}
    for side in ("APP", "WH"):
        settings.update({side + "_HOST": "localhost", side + "_SSLMODE": "verify-full",
                         side + "_SSLROOTCERT": str(tls_lab.authority.certificate)})
    with empty_world(tls_lab, script) as world:
        yield Route(world, settings)


# The main cases


def test_what_happens_to_each_row(route):
    route.world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"), (CAT, None), (DAN, "Dan D."), ("x", "Nobody"))
    route.world.warehouse_has((BOB, "Bob Before"), (CAT, "Cat Kept"), (DAN, "Dan D."))
    run = route.sync()
    assert (run.code, run.counts()) == (0, "5: 1 new, 1 renamed, 1 unchanged, 2 rejected"), run
    assert route.world.dimension() == {ANN: "Ann Anders", BOB: "Bob Borg", CAT: "Cat Kept", DAN: "Dan D."}
    assert route.world.stamped() == {ANN, BOB, DAN}
    assert [row["result"] for row in route.world.history()] == ["ok"]


def test_run_after_run(route):
    """What one leaves in a pooled connection would meet the next: temp tables, time-outs, locks."""
    route.world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"))
    runs = [route.sync(SYNC_REFRESH=refresh) for refresh in ("always", "never", "1m", "always")]
    assert [run.counts() for run in runs] == ["2: 2 new"] + 3 * ["2: 2 unchanged"], runs
    left = ("SELECT pid, query FROM pg_stat_activity WHERE state <> 'idle' AND usename = 'warehouse_writer'")
    assert route.world.warehouse.sql(left) == []
    assert route.world.warehouse.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def test_many_rows(route):
    route.world.app.sql("INSERT INTO public.\"User\" (uuid, name)"
                        " SELECT md5(n::text)::uuid, 'Athlete ' || n FROM generate_series(1, 20000) AS n")
    assert route.sync().counts() == "20000: 20000 new"
    again = route.sync("--json", SYNC_REFRESH="never")
    assert again.counts() == "20000: 20000 unchanged", again


def test_a_dry_run_changes_nothing(route):
    route.world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"))
    route.world.warehouse_has((BOB, "Bob Before"))
    before = route.world.rows()
    run = route.sync("--dry-run")
    assert (run.code, run.counts()) == (0, "2: 1 new, 1 renamed"), run
    assert route.world.rows() == before and route.world.history() == []


def test_a_reload_in_the_app_is_seen_whole(route):
    app = route.world.app
    route.world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"))
    with app.holding('TRUNCATE public."User"',
                     "INSERT INTO public.\"User\" (uuid, name) VALUES ('%s', 'Cat Cole')" % CAT) as holder:
        wait_until(lambda: route.reader.sql(
            "SELECT 1 FROM pg_locks WHERE relation = 'public.\"User\"'::regclass AND mode LIKE 'AccessEx%'"))
        process = route.world.start("--json", **route.settings)
        route.reader.wait_until_a_run_waits_for_a_lock()
        holder.connection.commit()
        run = finish(process)
    assert (run.code, run.counts()) == (0, "1: 1 new"), run
    assert route.world.dimension() == {CAT: "Cat Cole"}


def test_an_incremental_run(route):
    route.world.app.sql('ALTER TABLE public."User" ADD CONSTRAINT once UNIQUE (uuid)')
    try:
        route.world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"))
        assert route.sync().counts() == "2: 2 new"
        route.world.app.sql("UPDATE public.\"User\" SET name = 'Bob Bose' WHERE uuid = %s", BOB)
        route.world.app_has((CAT, "Cat Cole"))
        run = route.sync("--incremental")
    finally:
        route.world.app.sql('ALTER TABLE public."User" DROP CONSTRAINT once')
    assert run.code == 0, run
    assert route.world.dimension() == {ANN: "Ann Anders", BOB: "Bob Bose", CAT: "Cat Cole"}
    if route.world.app.connection.server_version >= 90600:
        assert (run.result["mode"], run.result["source"]) == ("incremental", 2), run


def test_a_refused_row_leaves_all_as_it_was(route):
    dimension = "ALTER TABLE analytics.athlete_dim "
    route.world.app_has((ANN, "Ann Anders"), (BOB, "Bob Borg"))
    route.world.warehouse_has((BOB, "Bob Before"))
    with route.world.warehouse.changed(dimension + "ADD CONSTRAINT no_ann CHECK (full_name <> 'Ann Anders')",
                                       dimension + "DROP CONSTRAINT no_ann"):
        run = route.sync()
    assert run.code == 3 and " ERROR warehouse: a constraint refuses a row" in run.err, run
    assert route.world.dimension() == {BOB: "Bob Before"}
    assert [row["result"] for row in route.world.history()] == ["failed"]


def test_two_runs_never_overlap(route):
    route.world.app_has((ANN, "Ann Anders"))
    with route.world.warehouse.locked(mode="EXCLUSIVE"):
        route.catch_up()
        first = route.world.start("--json", **route.settings)
        route.world.warehouse.wait_until_a_run_waits_for_a_lock()
        second = route.sync()
        assert (second.code, second.result["result"]) == (0, "skipped"), second
    first.communicate(timeout=RUN_MAY_TAKE)
    assert first.returncode == 0 and route.world.dimension() == {ANN: "Ann Anders"}


def test_the_deadline_leaves_nothing_behind(route):
    route.world.app_has((ANN, "Ann Anders"))
    with route.world.warehouse.locked(mode="EXCLUSIVE"):
        run = route.run(SYNC_DEADLINE="1")
        assert run.code == 2 and "deadline" in run.error, run
        wait_until(lambda: not route.world.warehouse.sql(
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"))
    assert route.sync().counts() == "1: 1 new"


def test_check_and_status(route):
    route.world.app_has((ANN, "Ann Anders"))
    assert route.sync().code == 0
    looked, status = route.run("--check"), route.run("--status")
    assert (looked.code, status.code) == (0, 0), (looked, status)
    assert status.out.startswith("healthy")


def test_check_names_the_pooler(through_pooler):
    looked = through_pooler.run("--check", "-v")
    assert looked.code == 0, looked
    assert len([line for line in looked.out.splitlines() if " pooler " in line]) == 2, looked


def test_setup_again_where_the_dimension_is_partitioned(into_partitions):
    world = into_partitions.world
    world.warehouse_has((ANN, "Ann Anders"))
    world.warehouse.server.psql("-f", str(PROJECT / "sql" / "warehouse_setup.sql"))
    assert world.dimension() == {ANN: "Ann Anders"}
    assert into_partitions.sync().code == 0


# Other tables, columns and types


OTHER_SOURCES = {
    "uuid column of type uuid": (
        'CREATE TABLE public.people (id UUID PRIMARY KEY, name VARCHAR(50))',
        dict(APP_TABLE="public.people", APP_UUID_COLUMN="id")),
    "unquoted names fold to lower case": (
        'CREATE TABLE people (athlete_id TEXT, full_name TEXT)',
        dict(APP_TABLE="Public.PEOPLE", APP_UUID_COLUMN="Athlete_ID", APP_NAME_COLUMN="FULL_NAME")),
    "quoted names are exact": (
        'CREATE SCHEMA "My App";'
        'CREATE TABLE "My App"."The ""User""; % {x}" ("UUID." TEXT, "full%sName" TEXT)',
        dict(APP_TABLE='"My App"."The ""User""; % {x}"', APP_UUID_COLUMN='"UUID."',
             APP_NAME_COLUMN='"full%sName"')),
    "no schema": (
        'CREATE TABLE people (uuid TEXT, name TEXT)',
        dict(APP_TABLE="people")),
}


@pytest.mark.parametrize("create, settings", list(OTHER_SOURCES.values()), ids=list(OTHER_SOURCES))
def test_other_source(world, create, settings):
    table, schema = settings["APP_TABLE"], '"My App"' if "SCHEMA" in create else "public"
    with world.app.changed(create, 'DROP TABLE %s; DROP SCHEMA IF EXISTS "My App"' % table):
        world.app.sql("GRANT USAGE ON SCHEMA %s TO app_readonly" % schema)
        world.app.sql("GRANT SELECT ON %s TO app_readonly" % table)
        world.app.sql("INSERT INTO %s VALUES (%%s, %%s)" % table.replace("%", "%%"), ANN, "Ann Archer")
        run = world.sync(**settings)
    assert (run.code, run.counts()) == (0, "1: 1 new"), run
    assert world.dimension() == {ANN: "Ann Archer"}


def test_other_dimension(world):
    create = 'CREATE TABLE analytics."Athlete ""Dim""" (LIKE analytics.athlete_dim INCLUDING ALL)'
    with world.warehouse.changed(create, 'DROP TABLE analytics."Athlete ""Dim"""'):
        world.warehouse.sql('GRANT SELECT, INSERT, UPDATE ON analytics."Athlete ""Dim""" TO warehouse_writer')
        world.app_has((ANN, "Ann Archer"))
        run = world.sync(WH_TABLE='Analytics."Athlete ""Dim"""')
        other = world.warehouse.sql('SELECT athlete_uuid::text, full_name FROM analytics."Athlete ""Dim"""')
    assert (run.code, run.counts(), other) == (0, "1: 1 new", [(ANN, "Ann Archer")]), run
    assert world.dimension() == {}
    assert world.history()[-1]["target"] == 'analytics."Athlete ""Dim"""'
