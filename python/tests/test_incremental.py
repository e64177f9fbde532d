"""--incremental: what a full run would carry, and no row less; where that is not known, a full run."""

from __future__ import annotations

import os
import random
import signal
import uuid

import psycopg2
import pytest
from conftest import ANN, BOB, CAT, DAN, Side, World, empty_world, finish, wait_until
from incremental_rounds import Rounds, dump_and_restore
from lab import servers
from standby import standby_of

USER = 'public."User"'
HALF = 2 ** 31
GROUND = [(ANN, "Ann Archer"), (BOB, "Bob Bowman")]
OPTIONS = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_prepared_transactions": "10"}


def skip_before_9_6(server_version):
    if int(server_version) < 90600:
        pytest.skip("incremental needs PostgreSQL 9.6")


@pytest.fixture
def unique(world):
    skip_before_9_6(world.app.connection.server_version)
    with world.app.changed("ALTER TABLE %s ADD CONSTRAINT one_athlete UNIQUE (uuid)" % USER,
                           "ALTER TABLE %s DROP CONSTRAINT IF EXISTS one_athlete" % USER):
        yield world


@pytest.fixture
def begun(unique):
    """Two athletes, carried by a first run."""
    unique.app_has(*GROUND)
    assert unique.sync("--incremental").counts() == "2: 2 new"
    return unique


def rename(world, athlete, name, table=USER):
    world.app.sql("UPDATE %s SET name = %%s WHERE uuid = %%s" % table, name, athlete)


def incremental(world, counts, **settings):
    run = world.sync("--incremental", **settings)
    assert (run.code, run.result["mode"], run.result["missing"]) == (0, "incremental", None), run
    assert run.counts().replace(", None missing", "").replace("None missing", "nothing") == counts, run
    return run


def full(world, words, **settings):
    """It must be full, and say why, and the run after it needs not."""
    run = world.sync("--incremental", **settings)
    assert (run.code, run.result["mode"]) == (0, "full"), run
    reason, = [line for line in run.err.splitlines() if "full, not incremental" in line]
    assert words in reason, run
    return run


def nothing_left_to_do(world, **settings):
    run = world.sync("--dry-run", **settings)
    assert (run.code, run.result["inserted"], run.result["updated"]) == (0, 0, 0), run


# The course of things


def test_the_first_run_is_full_and_says_why(unique):
    unique.app_has(*GROUND)
    run = full(unique, "no earlier success")
    assert run.counts() == "2: 2 new" and run.result["missing"] == 0
    assert incremental(unique, "0: nothing").result["source"] == 0


def test_only_what_changed_is_sent_counted_and_stamped(unique):
    unique.app_has(*GROUND, (CAT, "Cat Cooper"))
    unique.sync()
    unique.warehouse.sql("UPDATE analytics.athlete_dim SET source_synced_at = '2020-01-01 00:00:00+00'")
    unique.app.sql('UPDATE public."User" SET email = email WHERE uuid = %s', CAT)
    rename(unique, BOB, "Bob Baker")
    unique.app_has((DAN, "Dan Dyer"), ("x", "Nobody"))
    run = incremental(unique, "4: 1 new, 1 renamed, 1 unchanged, 1 rejected")
    assert unique.stamped() == {BOB, CAT, DAN}
    row = unique.history()[-1]
    assert (row["mode"], row["source_rows"], row["missing"]) == ("incremental", 4, None), run
    nothing_left_to_do(unique)


def test_nothing_changed_is_no_empty_app(begun):
    run = incremental(begun, "0: nothing")
    assert "WARNING" not in run.err and "empty" not in run.err, run
    assert "missing=null" in begun.run("--incremental").out


CHANGES = {
    "updatedAt untouched": ("UPDATE {t} SET name = 'N' WHERE uuid = '{ann}'", {ANN: "N"}),
    "insert": ("INSERT INTO {t} (uuid, name) VALUES ('{cat}', 'C')", {CAT: "C"}),
    "delete and insert again": (
        "DELETE FROM {t} WHERE uuid = '{ann}'; INSERT INTO {t} (uuid, name) VALUES ('{ann}', 'N')",
        {ANN: "N"}),
    "delete": ("DELETE FROM {t} WHERE uuid = '{ann}'", {}),
    "savepoint kept": (
        "BEGIN; SAVEPOINT a; UPDATE {t} SET name = 'N' WHERE uuid = '{ann}'; RELEASE a; COMMIT", {ANN: "N"}),
    "savepoint rolled back": (
        "BEGIN; SAVEPOINT a; UPDATE {t} SET name = 'N' WHERE uuid = '{ann}'; ROLLBACK TO a;"
        " UPDATE {t} SET name = 'M' WHERE uuid = '{bob}'; COMMIT", {BOB: "M"}),
    "rollback": ("BEGIN; UPDATE {t} SET name = 'N'; ROLLBACK", {}),
    "exception block": (
        "DO $$ BEGIN BEGIN UPDATE {t} SET name = 'X'; RAISE division_by_zero;"
        " EXCEPTION WHEN division_by_zero THEN UPDATE {t} SET name = 'N' WHERE uuid = '{ann}'; END; END $$",
        {ANN: "N"}),
    "truncate and reload": (
        "CREATE TEMP TABLE kept AS TABLE {t}; TRUNCATE {t}; INSERT INTO {t} SELECT * FROM kept;"
        " DROP TABLE kept; UPDATE {t} SET name = 'N' WHERE uuid = '{ann}'", {ANN: "N"}),
    "table rewritten with other names": ("ALTER TABLE {t} ALTER name TYPE text USING name || '!'",
                                         {ANN: "Ann Archer!", BOB: "Bob Bowman!"}),
}
UPKEEP = ["VACUUM FREEZE {t}", "VACUUM FULL {t}", "VACUUM (FULL, FREEZE) {t}",
          "CLUSTER {t} USING one_athlete", "REINDEX TABLE {t}"]


@pytest.mark.parametrize("change, after", list(CHANGES.values()), ids=list(CHANGES))
def test_each_kind_of_change_arrives(begun, change, after):
    begun.app.sql(change.format(t=USER, ann=ANN, bob=BOB, cat=CAT))
    assert begun.sync("--incremental").result["mode"] == "incremental"
    assert begun.dimension() == dict(GROUND, **after)
    nothing_left_to_do(begun)


@pytest.mark.parametrize("upkeep", UPKEEP)
def test_upkeep_hides_no_change(begun, upkeep):
    rename(begun, ANN, "N")
    begun.app.sql(upkeep.format(t=USER))
    incremental(begun, "1: 1 renamed")
    begun.app.sql(upkeep.format(t=USER))
    rename(begun, BOB, "M")
    assert begun.sync("--incremental").result["mode"] == "incremental"
    assert begun.dimension() == {ANN: "N", BOB: "M"}


def test_transactions_open_over_several_runs_are_not_lost(begun):
    """The second writer has an old number and writes, in a subtransaction, after two runs."""
    with begun.app.holding("UPDATE %s SET name = 'N' WHERE uuid = '%s'" % (USER, ANN)) as first, \
            begun.app.holding("SELECT txid_current()") as second:
        for number in range(2):
            begun.app_has((str(uuid.UUID(int=number)), "Athlete %d" % number))
            begun.sync("--incremental")
        second.sql("SAVEPOINT a; UPDATE %s SET name = 'M' WHERE uuid = '%s'; RELEASE a" % (USER, BOB))
        begun.sync("--incremental")
        first.connection.commit()
        begun.sync("--incremental")
        assert begun.dimension()[ANN] == "N" and begun.dimension()[BOB] == "Bob Bowman"
        second.connection.commit()
    assert begun.sync("--incremental").result["mode"] == "incremental"
    assert begun.dimension()[BOB] == "M"
    nothing_left_to_do(begun)


# Where it must be full


def test_without_a_unique_index(world):
    world.app_has(*GROUND)
    world.sync()
    full(world, "" if world.app.connection.server_version < 90600 else "unique index")


def test_a_changed_row_in_another_spelling_falls_back_within_the_run(begun):
    begun.app_has((ANN.upper(), "Ann Baker"), ("x", "Nobody"))
    run = full(begun, "spells its uuid")
    assert run.counts() == "4: 1 unchanged, 3 rejected" and len(run.result["rejects"]) == 3, run
    assert begun.dimension() == dict(GROUND)
    full(begun, "one spelling")
    begun.app.sql("DELETE FROM %s WHERE uuid = %%s" % USER, ANN.upper())
    full(begun, "one spelling")
    incremental(begun, "0: nothing")


@pytest.mark.parametrize("break_, mend", [
    ("ALTER TABLE analytics.athlete_sync_run RENAME TO hidden",
     "ALTER TABLE analytics.hidden RENAME TO athlete_sync_run"),
    ("REVOKE SELECT ON analytics.athlete_sync_run FROM warehouse_writer",
     "GRANT SELECT ON analytics.athlete_sync_run TO warehouse_writer"),
    ("ALTER TABLE analytics.athlete_sync_run RENAME app_position TO hidden",
     "ALTER TABLE analytics.athlete_sync_run RENAME hidden TO app_position"),
], ids=["missing", "unreadable", "of an earlier shape"])
def test_without_a_history_to_read(begun, break_, mend):
    with begun.warehouse.changed(break_, mend):
        rename(begun, ANN, "N")
        full(begun, "no earlier success")
    assert begun.dimension()[ANN] == "N"


@pytest.mark.parametrize("change, words", [
    ("app_position = NULL", "no earlier success"),
    ("app_source = 'elsewhere'", "are not those of the last success"),
    ("app_source = NULL", "are not those of the last success"),
    ("app_is_unique = NULL", "unique index"),
    ("dimension_rows = NULL", "no earlier success"),
    ("app_position = app_position + 100000", "restored"),
    ("app_position = app_position - 2147483648", "too many transactions"),
])
def test_a_position_that_does_not_hold(begun, change, words):
    begun.warehouse.sql("UPDATE analytics.athlete_sync_run SET " + change)
    rename(begun, ANN, "N")
    full(begun, words)
    assert begun.dimension()[ANN] == "N"
    assert begun.sync("--incremental").result["mode"] == "incremental"
    nothing_left_to_do(begun)


def test_other_columns_other_table_other_database(begun):
    full(begun, "are not those of the last success", APP_NAME_COLUMN="email")
    full(begun, "are not those of the last success")
    with begun.app.changed("CREATE TABLE public.people (uuid text UNIQUE, name text);"
                           "GRANT SELECT ON public.people TO app_readonly", "DROP TABLE public.people"):
        full(begun, "are not those of the last success", APP_TABLE="public.people")
    full(begun, "are not those of the last success")
    incremental(begun, "0: nothing")


SOURCES = {
    "view": ("CREATE VIEW public.other AS SELECT * FROM public.\"User\"", "DROP VIEW public.other"),
    "materialized view": ("CREATE MATERIALIZED VIEW public.other AS SELECT * FROM public.\"User\"",
                          "DROP MATERIALIZED VIEW public.other"),
}


@pytest.mark.parametrize("create, drop", list(SOURCES.values()), ids=list(SOURCES))
def test_a_source_without_row_versions(begun, create, drop):
    with begun.app.changed(create, drop):
        begun.app.sql("GRANT SELECT ON public.other TO app_readonly")
        for _ in range(2):
            full(begun, "row versions", APP_TABLE="public.other")
    assert begun.dimension() == dict(GROUND)


FOREIGN = """
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
COPY (SELECT '%s', 'Ann Archer') TO '%s';
CREATE FOREIGN TABLE public.other (uuid text, name text) SERVER files OPTIONS (filename '%s');
GRANT SELECT ON public.other TO app_readonly
"""


def test_a_foreign_table(begun):
    try:
        begun.app.sql("CREATE EXTENSION file_fdw")
    except (psycopg2.errors.UndefinedFile, psycopg2.errors.FeatureNotSupported):
        pytest.skip("this server was installed without file_fdw, which is in PostgreSQL's contrib")
    file = begun.app.server.folder / "foreign.txt"
    with begun.app.changed(FOREIGN % (ANN, file, file), "DROP EXTENSION file_fdw CASCADE"):
        for _ in range(2):
            assert full(begun, "row versions", APP_TABLE="public.other").counts() == \
                "1: 1 unchanged, 1 missing"


PARTITIONED = """
CREATE TABLE public.parted (uuid text, name text, PRIMARY KEY (uuid)) PARTITION BY LIST (uuid);
CREATE TABLE public.parted_ann PARTITION OF public.parted FOR VALUES IN ('%s');
CREATE TABLE public.parted_rest PARTITION OF public.parted DEFAULT;
INSERT INTO public.parted VALUES ('%s', 'Ann Archer'), ('%s', 'Bob Bowman');
GRANT SELECT ON public.parted TO app_readonly
""" % (ANN, ANN, BOB)


def test_a_partitioned_source(unique):
    if unique.app.connection.server_version < 110000:
        pytest.skip("PostgreSQL 11 brought keys on partitioned tables")
    to = dict(APP_TABLE="public.parted")
    with unique.app.changed(PARTITIONED, "DROP TABLE public.parted"):
        assert full(unique, "no earlier success", **to).counts() == "2: 2 new"
        rename(unique, ANN, "N", "public.parted")
        incremental(unique, "1: 1 renamed", **to)
        with unique.app.changed("CREATE TABLE public.filled AS SELECT '%s'::text AS uuid, 'C'::text AS name"
                                % CAT, "DROP TABLE IF EXISTS public.filled"):
            unique.sync("--incremental", **to)
            unique.app.sql("ALTER TABLE public.filled ALTER uuid SET NOT NULL;"
                           "ALTER TABLE public.parted ATTACH PARTITION public.filled FOR VALUES IN ('%s')"
                           % CAT)
            unique.sync("--incremental", **to)
            assert unique.dimension() == {ANN: "N", BOB: "Bob Bowman", CAT: "C"}


def test_a_unique_index_that_includes_another_column(unique):
    if unique.app.connection.server_version < 110000:
        pytest.skip("PostgreSQL 11 brought INCLUDE")
    unique.app.sql("ALTER TABLE %s DROP CONSTRAINT one_athlete" % USER)
    with unique.app.changed("CREATE UNIQUE INDEX including ON %s (uuid) INCLUDE (name)" % USER,
                            "DROP INDEX public.including"):
        unique.app_has(*GROUND)
        full(unique, "no earlier success")
        rename(unique, ANN, "N")
        incremental(unique, "1: 1 renamed")


def test_rejects_that_stand(begun):
    """Unless they change, an incremental run does not read them again; --strict must."""
    begun.app_has((CAT, None))
    assert begun.sync().counts() == "3: 2 unchanged, 1 rejected"
    run = begun.sync("--incremental")
    assert "1 rows rejected since the last full run" in run.err, run
    assert (run.result["mode"], run.result["rejected"]) == ("incremental", 0), run
    strict = begun.sync("--incremental", "--strict")
    assert (strict.code, strict.result["mode"], strict.result["rejected"]) == (3, "full", 1), strict
    rename(begun, CAT, "Cat Cooper")
    strict = begun.sync("--incremental", "--strict")
    assert (strict.code, strict.result["mode"], strict.counts()) == (0, "full", "3: 1 new, 2 unchanged"), strict
    assert begun.sync("--incremental", "--strict").result["mode"] == "incremental"
    assert "rejected since" not in begun.sync("--incremental").err


# Rows that come into sight without a new version


APPEARANCES = {
    "an enum's value is renamed": (
        "CREATE TYPE public.who AS ENUM ('Somebody'); UPDATE {t} SET name = 'Somebody';"
        " ALTER TABLE {t} ALTER name TYPE public.who USING name::public.who",
        "ALTER TYPE public.who RENAME VALUE 'Somebody' TO 'N'",
        "ALTER TABLE {t} ALTER name TYPE text; DROP TYPE public.who"),
    "another table takes the name": (
        "CREATE TABLE public.next (LIKE {t} INCLUDING ALL); INSERT INTO public.next (uuid, name)"
        " SELECT uuid, 'N' FROM {t}; GRANT SELECT ON public.next TO app_readonly",
        'ALTER TABLE {t} RENAME TO past; ALTER TABLE public.next RENAME TO "User"',
        'ALTER TABLE {t} RENAME TO next; ALTER TABLE public.past RENAME TO "User"; DROP TABLE public.next'),
    "another column takes the name": (
        "ALTER TABLE {t} ADD other text; UPDATE {t} SET other = 'N'",
        "ALTER TABLE {t} RENAME name TO past; ALTER TABLE {t} RENAME other TO name",
        "ALTER TABLE {t} RENAME name TO other; ALTER TABLE {t} RENAME past TO name;"
        " ALTER TABLE {t} DROP other"),
    "row security ends": (
        "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY;"
        " CREATE POLICY nobody ON {t} USING (name = 'Ann Archer'); UPDATE {t} SET name = 'N'",
        "ALTER TABLE {t} DISABLE ROW LEVEL SECURITY",
        "DROP POLICY nobody ON {t}; ALTER TABLE {t} DISABLE ROW LEVEL SECURITY"),
}


@pytest.mark.parametrize("before, change, undo", list(APPEARANCES.values()), ids=list(APPEARANCES))
def test_what_comes_into_sight_without_a_new_version(begun, before, change, undo):
    begun.app.sql(before.format(t=USER))
    with begun.app.changed("SELECT 1", undo.format(t=USER)):
        begun.sync("--incremental")
        begun.sync("--incremental")
        begun.app.sql(change.format(t=USER))
        run = begun.sync("--incremental")
        assert begun.dimension() == {ANN: "N", BOB: "N"}, run


def test_a_role_that_may_read_the_two_columns_only(begun):
    with begun.app.changed("REVOKE SELECT ON {t} FROM app_readonly;"
                           "GRANT SELECT (uuid, name) ON {t} TO app_readonly".format(t=USER),
                           "REVOKE ALL ON {t} FROM app_readonly; REVOKE SELECT (uuid, name) ON {t} FROM"
                           " app_readonly; GRANT SELECT ON {t} TO app_readonly".format(t=USER)):
        rename(begun, ANN, "N")
        full(begun, "row versions")
    assert begun.dimension()[ANN] == "N"


# It takes up from the last success


@pytest.mark.parametrize("between", ["failed", "skipped", "dry", "dry and incremental"])
def test_only_a_success_moves_the_position(begun, between):
    rename(begun, ANN, "N")
    if between == "failed":
        begun.app_has((None, "Nobody"))
        assert begun.sync("--incremental", "--strict").code == 3
        begun.app.sql("DELETE FROM %s WHERE uuid IS NULL" % USER)
    elif between == "skipped":
        with begun.warehouse.holding("SELECT pg_advisory_xact_lock(1096043596,"
                                     " 'analytics.athlete_dim'::regclass::oid::integer)"):
            assert begun.sync("--incremental").result["result"] == "skipped"
    else:
        dry = begun.sync("--dry-run", *["--incremental"] * ("incremental" in between))
        assert dry.result["updated"] == 1 and begun.dimension() == dict(GROUND)
    incremental(begun, "1: 1 renamed")
    assert begun.dimension()[ANN] == "N"


@pytest.mark.parametrize("loss", ["TRUNCATE analytics.athlete_dim",
                                  "DELETE FROM analytics.athlete_dim WHERE full_name LIKE 'Bob%'"])
def test_athletes_lost_from_the_dimension_are_filled_in(begun, loss):
    begun.warehouse.sql(loss)
    full(begun, "fewer athletes")
    assert begun.dimension() == dict(GROUND)


def test_the_warehouse_restored_with_its_history(begun):
    tables = ("analytics.athlete_dim", "analytics.athlete_sync_run")
    for number, table in enumerate(tables):
        begun.warehouse.sql("CREATE TABLE public.saved_%d AS TABLE %s" % (number, table))
    rename(begun, ANN, "N")
    incremental(begun, "1: 1 renamed")
    for number, table in enumerate(tables):
        begun.warehouse.sql("TRUNCATE %s; INSERT INTO %s TABLE public.saved_%d; DROP TABLE public.saved_%d"
                            % (table, table, number, number))
    assert begun.dimension()[ANN] == "Ann Archer"
    incremental(begun, "1: 1 renamed")
    assert begun.dimension()[ANN] == "N"


# The whole circle of 32 bits, by the very condition of EXTRACT_CHANGES


def test_every_row_less_than_half_the_circle_away_is_sent(world, script):
    condition = script.EXTRACT_CHANGES.split("WHERE")[1].split(") TO STDOUT")[0]
    assert "{position}" in condition and "xmin" in condition
    borders = [0, 1, 2, 3, 4, HALF - 1, HALF, HALF + 1, 2 ** 32 - 2, 2 ** 32 - 1]
    grid = sorted(set(borders + [n * 33554431 % 2 ** 32 for n in range(128)]))
    near = [-HALF, -HALF + 1, -1, 0, 1, HALF - 1, HALF]
    for position in grid:
        rows = sorted(set(grid + [(position + off) % 2 ** 32 for off in near]))
        sent = {row for row, in world.app.sql(
            "SELECT xmin FROM unnest(%s::bigint[]) AS row (xmin) WHERE "
            + condition.replace("{position}", str(position)), rows)}
        assert sent == {row for row in rows if (row - position) % 2 ** 32 < HALF}, position


# Names


NAMES = {
    "reserved": ('public."select"', '"user"', '"order"'),
    "mixed case": ('"My App"."Athletes"', '"Uuid"', '"Full Name"'),
    "dotted and quoted": ('public."a.b""c"', '"u.u"', '"n""m"'),
    "not ASCII": ('public."Älä.人"', "größe", '"имя"'),
    "percent and braces": ('public."%s{x}"', '"%(u)s"', '"{name}"'),
}


@pytest.mark.parametrize("table, uuid_column, name_column", list(NAMES.values()), ids=list(NAMES))
def test_any_names(unique, table, uuid_column, name_column):
    world, dimension = unique, "analytics." + table.split(".", 1)[1]
    to = dict(APP_TABLE=table, APP_UUID_COLUMN=uuid_column, APP_NAME_COLUMN=name_column, WH_TABLE=dimension)
    create = ('CREATE SCHEMA IF NOT EXISTS "My App"; GRANT USAGE ON SCHEMA "My App" TO app_readonly;'
              "CREATE TABLE %s (%s text PRIMARY KEY, %s text); GRANT SELECT ON %s TO app_readonly"
              % (table, uuid_column, name_column, table))
    made = ("CREATE TABLE %s (LIKE analytics.athlete_dim INCLUDING ALL);"
            "GRANT SELECT, INSERT, UPDATE ON %s TO warehouse_writer" % (dimension, dimension))
    with world.app.changed(create, 'DROP TABLE %s; DROP SCHEMA "My App" CASCADE' % table), \
            world.warehouse.changed(made, "DROP TABLE " + dimension):
        world.app.sql("INSERT INTO %s VALUES ('%s', 'A'), ('%s', 'B')" % (table, ANN, BOB))
        assert full(world, "no earlier success", **to).counts() == "2: 2 new"
        world.app.sql("UPDATE %s SET %s = 'N' WHERE %s = '%s'" % (table, name_column, uuid_column, ANN))
        incremental(world, "1: 1 renamed", **to)
        assert world.warehouse.sql("SELECT full_name FROM %s ORDER BY 1" % dimension) == [("B",), ("N",)]


# Two dimensions


def test_two_dimensions_side_by_side(begun):
    coaches = dict(WH_TABLE="analytics.coach_dim", APP_TABLE="public.coach")
    setup = str(servers.PROJECT / "sql" / "warehouse_setup.sql")
    with begun.app.changed("CREATE TABLE public.coach (uuid text PRIMARY KEY, name text);"
                           "GRANT SELECT ON public.coach TO app_readonly", "DROP TABLE public.coach"), \
            begun.warehouse.changed("SELECT 1", "DROP TABLE IF EXISTS analytics.coach_dim"):
        begun.lab.warehouse.psql("-f", setup, "-v", "table=analytics.coach_dim")
        begun.app.sql("INSERT INTO public.coach VALUES ('%s', 'Cat Coach')" % CAT)
        full(begun, "no earlier success", **coaches)
        with begun.warehouse.locked():
            rename(begun, ANN, "N")
            held = begun.start("--json", "--incremental")
            begun.warehouse.wait_until_a_run_waits_for_a_lock()
            rename(begun, CAT, "M", "public.coach")
            other = finish(begun.start("--json", "--incremental", **coaches))
            assert (other.code, other.result["updated"], other.result["mode"]) == (0, 1, "incremental"), other
            assert held.poll() is None, "the other did not wait for it"
        held = finish(held)
        assert (held.code, held.result["updated"], held.result["mode"]) == (0, 1, "incremental"), held
        assert begun.warehouse.sql("SELECT full_name FROM analytics.coach_dim") == [("M",)]
    assert begun.dimension() == {ANN: "N", BOB: "Bob Bowman"}


# Servers of their own: prepared transactions, dumps, standbys, crashes, the end of the counter


@pytest.fixture(scope="module")
def own_lab():
    with servers.two_servers(**OPTIONS) as lab:
        lab.set_up()
        lab.app.psql("-qc", "ALTER TABLE %s ADD CONSTRAINT one_athlete UNIQUE (uuid)" % USER)
        yield lab


def test_a_few_random_rounds(own_lab, script):
    """By chance; incremental_rounds.py as a program does 500."""
    skip_before_9_6(own_lab.app.psql("-Atc", "SHOW server_version_num"))
    own_lab.app.psql("-qc", "ALTER TABLE %s DROP CONSTRAINT one_athlete" % USER)  # set_up makes it
    rounds = Rounds(own_lab, random.Random(1), script)
    try:
        rounds.set_up()
        for _ in range(15):
            rounds.round()
        rounds.end_all()
    finally:
        rounds.close()
    assert rounds.summary() == "rounds=15 differences=0 incremental=12 full=3"  # three crashes


@pytest.fixture
def own(own_lab, script):
    with empty_world(own_lab, script) as world:
        skip_before_9_6(world.app.connection.server_version)
        world.app_has(*GROUND)
        assert world.sync().counts() == "2: 2 new"
        yield world


def test_prepared_transactions(own):
    for number, (athlete, name) in enumerate(((ANN, "N"), (BOB, "M"))):
        own.app.sql("BEGIN; UPDATE %s SET name = '%s' WHERE uuid = '%s'; PREPARE TRANSACTION 'p%d'"
                    % (USER, name, athlete, number))
    incremental(own, "0: nothing")
    own.app_has((CAT, "Cat Cooper"))
    incremental(own, "1: 1 new")
    own.app.sql("COMMIT PREPARED 'p0'")
    own.app.sql("ROLLBACK PREPARED 'p1'")
    assert own.sync("--incremental").result["mode"] == "incremental"
    assert own.dimension() == {ANN: "N", BOB: "Bob Bowman", CAT: "Cat Cooper"}


def test_the_app_restored_from_a_dump(own):
    rename(own, ANN, "N")
    own.app.connection.close()
    dump_and_restore(own.app.server)
    own.app.reconnect()
    full(own, "are not those of the last success")
    assert own.dimension() == {ANN: "N", BOB: "Bob Bowman"}
    incremental(own, "0: nothing")


CRASHES = {
    "of the server": lambda server: (server.stop("immediate"), server.start()),
    "of one backend": lambda server: kill_a_backend(server),
}


def kill_a_backend(server):
    """The server starts anew what is left of it, and is then as old as before."""
    victim, witness = Side(server), Side(server)
    os.kill(victim.value("SELECT pg_backend_pid()"), signal.SIGKILL)
    wait_until(lambda: is_ended(witness))  # until then the server still lets people in, and throws them out again
    wait_until(lambda: is_up(server))


def is_ended(side):
    try:
        side.sql("SELECT 1")
    except psycopg2.Error:
        return True
    return False


def is_up(server):
    try:
        side = Side(server)
    except psycopg2.OperationalError:
        return False
    side.connection.close()
    return True


@pytest.mark.parametrize("crash", list(CRASHES.values()), ids=list(CRASHES))
def test_a_crash_gives_numbers_out_again(own, crash):
    """What was aborted, or committed but not flushed, is lost with its numbers, which we had passed."""
    own.sync()
    own.app.sql("ALTER SYSTEM SET wal_writer_delay = '10s'")
    own.app.sql("SELECT pg_reload_conf()")
    own.app.sql("SET synchronous_commit = off")
    for _ in range(30):
        passed = own.app.value("SELECT txid_current()")
    own.sync("--incremental")
    own.app.connection.close()
    crash(own.app.server)
    own.app.reconnect()
    rename(own, ANN, "N")
    while own.app.value("SELECT txid_current()") < passed + 5:
        pass
    run = own.sync("--incremental")
    own.app.sql("ALTER SYSTEM RESET ALL")
    assert own.dimension()[ANN] == "N", run


def from_standby(own, server):
    """Read from the standby: another server, so full at first, then as from any other."""
    standby, to = Side(server), dict(APP_PORT=str(server.port))
    for words, name in (("full", "From standby"), ("incremental", "Again")):
        rename(own, BOB, name)
        written = own.app.value("SELECT pg_current_wal_insert_lsn()::text")
        wait_until(lambda: standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written))
        run = own.sync("--incremental", **to)
        assert (run.code, run.result["mode"], run.result["updated"]) == (0, words, 1), run
    standby.connection.close()


def test_a_promoted_standby_that_lacks_some_transactions(own, script):
    """It gives their numbers out again, and its checkpoint, which would tell the timeline, takes minutes."""
    with standby_of(own.app.server, "promoted") as server:
        from_standby(own, server)
        server.stop("fast")
        for number in range(20):
            own.app_has((str(uuid.UUID(int=number)), "lost"))
        own.sync("--incremental")
        position = own.history()[-1]["app_position"]
        server.start()
        server.control("pg_ctl", "-D", server.data, "-w", "promote")
        side = Side(server)
        new = World(own.lab, side, own.warehouse, script)
        rename(new, ANN, "N")
        while side.value("SELECT txid_current()") < position + 5:
            pass
        run = new.sync("--incremental", APP_PORT=str(server.port))
        side.connection.close()
        assert new.dimension()[ANN] == "N", run


def test_the_end_of_the_counter(own):
    """60 short of 2^32, then across it: the number of a row begins again, the position does not."""
    server = own.app.server
    if not (server.bindir / "pg_resetwal").exists():
        pytest.skip("there is no pg_resetwal in %s, and another version's would not do" % server.bindir)
    own.app.connection.close()
    for database in ("app", "postgres", "template1"):  # what is not frozen would lie in the future
        server.psql("-qc", "VACUUM FREEZE", database=database)
    server.stop("fast")
    last = 2 ** 32 - 60
    segment = server.data / "pg_xact" / ("%04X" % (last // (32 * 32768)))
    server.control("pg_resetwal", "-x", str(last), "-D", server.data)
    segment.write_bytes(bytes(32 * 8192))
    segment.chmod(0o666)  # we may be root, which no server is
    server.start()
    own.app.reconnect()
    assert own.app.value("SELECT txid_current()") < 2 ** 32
    rename(own, ANN, "Before")
    own.sync("--incremental")
    own.sync("--incremental")
    rename(own, ANN, "Just before")
    with own.app.holding("UPDATE %s SET name = 'Held' WHERE uuid = '%s'" % (USER, BOB)) as writer:
        while own.app.value("SELECT txid_current()") < 2 ** 32 + 10:
            pass
        own.app_has((CAT, "After"))
        run = own.sync("--incremental")
        assert run.result["mode"] == "incremental", run
        assert own.dimension() == {ANN: "Just before", BOB: "Bob Bowman", CAT: "After"}
        writer.connection.commit()
    assert own.sync("--incremental").result["mode"] == "incremental"
    assert own.dimension()[BOB] == "Held"
    assert own.history()[-1]["app_position"] > 2 ** 32
    nothing_left_to_do(own)
