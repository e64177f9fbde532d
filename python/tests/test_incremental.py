"""--incremental: what a full run would carry, and no row less; where that is not known, a full run."""

from __future__ import annotations

import pytest
from conftest import ANN, BOB, CAT, DAN, HISTORY, HOLD_THE_LOCK, empty_world
from incremental_rounds import OPTIONS, UNIQUE, play
from lab import servers

USER = 'public."User"'
HALF = 2 ** 31
GROUND = [(ANN, "Ann Archer"), (BOB, "Bob Bowman")]
NO_SUCCESS, ANOTHER, UNFIT_SOURCE = "no success is in the run history", "are not those of the last", "a plain table"
OTHER_SPELLING = "a uuid is spelled in another way"


@pytest.fixture
def begun(world):
    """Two athletes, carried by a first run, which is full and says why."""
    world.app_has(*GROUND)
    with world.app.changed(UNIQUE, "DROP INDEX IF EXISTS public.one_athlete"):
        run = full(world, NO_SUCCESS)
        assert run.counts() == "2: 2 new" and run.result["missing"] == 0
        yield world


def rename(world, athlete, name, table=USER):
    world.app.sql("UPDATE %s SET name = %%s WHERE uuid = %%s" % table, name, athlete)


def incremental(world, counts, **settings):
    run = world.sync("--incremental", **settings)
    assert (run.code, run.result["mode"], run.result["missing"]) == (0, "incremental", None), run
    assert run.counts().replace(", None missing", "").replace("None missing", "nothing") == counts, run
    return run


def full(world, words, **settings):
    run = world.sync("--incremental", **settings)
    assert (run.code, run.result["mode"]) == (0, "full"), run
    reason, = [line for line in run.err.splitlines() if "full, not incremental" in line]
    assert words in reason, run
    return run


def nothing_left_to_do(world):
    run = world.sync("--dry-run")
    assert (run.code, run.result["inserted"], run.result["updated"]) == (0, 0, 0), run


def test_only_what_changed_is_sent_counted_and_stamped(begun):
    begun.app_has((CAT, "Cat Cooper"))
    incremental(begun, "1: 1 new")
    begun.warehouse.sql("UPDATE analytics.athlete_dim SET source_synced_at = '2020-01-01 00:00:00+00'")
    begun.app.sql('UPDATE public."User" SET email = email WHERE uuid = %s', CAT)
    rename(begun, BOB, "Bob Baker")
    begun.app_has((DAN, "Dan Dyer"), ("x", "Nobody"))
    incremental(begun, "4: 1 new, 1 renamed, 1 unchanged, 1 rejected")
    assert begun.stamped() == {BOB, CAT, DAN}
    row = begun.history()[-1]
    assert (row["mode"], row["source_rows"], row["missing"]) == ("incremental", 4, None)
    run = incremental(begun, "0: nothing")
    assert "WARNING" not in run.err and "empty" not in run.err, run
    assert "missing=null" in begun.run("--incremental").out
    nothing_left_to_do(begun)


RENAME = "UPDATE {t} SET name = 'N' WHERE uuid = '{ann}'"
CHANGES = {
    "INSERT INTO {t} (uuid, name) VALUES ('{cat}', 'C')": {CAT: "C"},
    "DELETE FROM {t} WHERE uuid = '{ann}'": {},
    "DELETE FROM {t} WHERE uuid = '{ann}'; INSERT INTO {t} (uuid, name) VALUES ('{ann}', 'N')": {ANN: "N"},
    "BEGIN; SAVEPOINT a; " + RENAME + "; RELEASE a; COMMIT": {ANN: "N"},
    "BEGIN; SAVEPOINT a; " + RENAME + "; ROLLBACK TO a; UPDATE {t} SET name = 'M' WHERE uuid = '{bob}'; COMMIT":
        {BOB: "M"},
    "CREATE TEMP TABLE kept AS TABLE {t}; TRUNCATE {t}; INSERT INTO {t} TABLE kept; DROP TABLE kept; " + RENAME:
        {ANN: "N"},
    "ALTER TABLE {t} ALTER name TYPE text USING name || '!'": {ANN: "Ann Archer!", BOB: "Bob Bowman!"},
}
UPKEEP = ["VACUUM FREEZE {t}", "VACUUM FULL {t}", "VACUUM (FULL, FREEZE) {t}", "CLUSTER {t} USING one_athlete"]
CHANGES.update({RENAME + "; " + upkeep: {ANN: "N"} for upkeep in UPKEEP})


@pytest.mark.parametrize("change", list(CHANGES))
def test_each_kind_of_change_arrives(begun, change):
    for statement in change.format(t=USER, ann=ANN, bob=BOB, cat=CAT).split("; "):
        begun.app.sql(statement)
    assert begun.sync("--incremental").result["mode"] == "incremental"
    assert begun.dimension() == dict(GROUND, **CHANGES[change])
    nothing_left_to_do(begun)


def test_transactions_open_over_several_runs_are_not_lost(begun):
    """The second writer has an old number and writes, in a subtransaction, after two runs."""
    with begun.app.holding("UPDATE %s SET name = 'N' WHERE uuid = '%s'" % (USER, ANN)) as first, \
            begun.app.holding("SELECT txid_current()") as second:
        for athlete in (CAT, DAN):
            begun.app_has((athlete, "Somebody"))
            begun.sync("--incremental")
        second.sql("SAVEPOINT a; UPDATE %s SET name = 'M' WHERE uuid = '%s'; RELEASE a" % (USER, BOB))
        for writer, athlete, name in ((first, ANN, "N"), (second, BOB, "M")):
            begun.sync("--incremental")
            assert begun.dimension()[athlete] == dict(GROUND)[athlete]
            writer.connection.commit()
            assert begun.sync("--incremental").result["mode"] == "incremental"
            assert begun.dimension()[athlete] == name
    nothing_left_to_do(begun)


# Which sources it may be


TABLE = "CREATE TABLE other.people (uuid text UNIQUE, name text)"
UNFIT = {
    "no index": "CREATE TABLE other.people (uuid text, name text)",
    "not unique": "CREATE TABLE other.people (uuid text, name text); CREATE INDEX ON other.people (uuid)",
    "index of two columns": "CREATE TABLE other.people (uuid text, name text, UNIQUE (uuid, name))",
    "index of something else": "CREATE TABLE other.people (uuid text, name text UNIQUE)",
    "index of some": TABLE.replace(" UNIQUE", "") + "; CREATE UNIQUE INDEX ON other.people (uuid) WHERE name <> ''",
    "index that looks late": TABLE.replace("UNIQUE", "UNIQUE DEFERRABLE"),
    "index half made": TABLE + "; UPDATE pg_index SET indisvalid = false WHERE indrelid = 'other.people'::regclass",
    "materialized view": 'CREATE MATERIALIZED VIEW other.people AS TABLE public."User";'
                         "CREATE UNIQUE INDEX ON other.people (uuid)",
    "partitions": TABLE + " PARTITION BY LIST (uuid); CREATE TABLE other.rest PARTITION OF other.people DEFAULT",
    "heirs": TABLE + "; CREATE TABLE other.heir () INHERITS (other.people)",
    "policies": TABLE + "; ALTER TABLE other.people ENABLE ROW LEVEL SECURITY;"
                        "CREATE POLICY everybody ON other.people USING (true)",
    "some columns": TABLE + "; GRANT SELECT (uuid, name) ON other.people TO app_readonly",
    "name of a domain": "CREATE DOMAIN other.word AS text; " + TABLE.replace("name text", "name other.word"),
    "name of an enum": "CREATE TYPE other.word AS ENUM ('Ann Archer', 'Bob Bowman');"
                       + TABLE.replace("name text", "name other.word"),
    "name computed": TABLE.replace("name text", "own text, name text GENERATED ALWAYS AS (own) VIRTUAL"),
    "uuid computed": "CREATE DOMAIN other.word AS text; " + TABLE.replace("uuid text", "uuid other.word"),
}
FIT = {
    "of uuid": TABLE.replace("uuid text", "uuid uuid"),
    "of varchar": TABLE.replace("text", "varchar(36)"),
    "INCLUDE": TABLE.replace(" UNIQUE", "") + "; CREATE UNIQUE INDEX ON other.people (uuid) INCLUDE (name)",
    "one partition": "CREATE TABLE other.all (uuid text, name text) PARTITION BY LIST (uuid);"
                     "CREATE TABLE other.people PARTITION OF other.all (UNIQUE (uuid)) DEFAULT",
}


@pytest.fixture
def other(world, request):
    """A source that is made as the case says, with the two athletes."""
    make = request.param
    world.app.needs(make, DEFAULT=11, INCLUDE=11, VIRTUAL=18)
    world.app_has(*GROUND)
    with world.app.changed("CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO app_readonly",
                           "DROP SCHEMA other CASCADE"):
        world.app.sql(make)
        if "VIEW" not in make:
            world.app.sql("INSERT INTO other.people VALUES (%s, %s), (%s, %s)", *GROUND[0], *GROUND[1])
        if "GRANT" not in make:
            world.app.sql("GRANT SELECT ON other.people TO app_readonly")
        yield world


@pytest.mark.parametrize("other", list(UNFIT.values()), ids=list(UNFIT), indirect=True)
def test_a_source_that_may_hide_a_change_is_read_in_full(other):
    assert full(other, UNFIT_SOURCE, APP_TABLE="other.people").counts() == "2: 2 new"


@pytest.mark.parametrize("other", list(FIT.values()), ids=list(FIT), indirect=True)
def test_a_source_that_hides_nothing(other):
    full(other, NO_SUCCESS, APP_TABLE="other.people")
    rename(other, ANN, "N", "other.people")
    incremental(other, "1: 1 renamed", APP_TABLE="other.people")
    assert other.dimension() == {ANN: "N", BOB: "Bob Bowman"}


def test_other_columns_or_another_table(begun):
    with begun.app.changed("ALTER TABLE {t} ADD other text UNIQUE; UPDATE {t} SET other = uuid;"
                           "CREATE TABLE public.next (LIKE {t} INCLUDING ALL); INSERT INTO public.next TABLE {t};"
                           "GRANT SELECT ON public.next TO app_readonly".format(t=USER),
                           "DROP TABLE public.next; ALTER TABLE {t} DROP other".format(t=USER)):
        for settings in ({"APP_NAME_COLUMN": "email"}, {}, {"APP_UUID_COLUMN": "other"}, {"APP_TABLE": "public.next"}):
            full(begun, ANOTHER, **settings)
        incremental(begun, "0: nothing", **settings)


def test_a_changed_row_in_another_spelling_falls_back_within_the_run(begun):
    begun.app_has((ANN.upper(), "Ann Baker"), ("x", "Nobody"))
    run = full(begun, "spells its uuid in another way")
    assert run.counts() == "4: 1 unchanged, 3 rejected", run
    assert begun.dimension() == dict(GROUND)
    begun.app.sql("DELETE FROM %s WHERE uuid = %%s" % USER, ANN.upper())
    full(begun, OTHER_SPELLING)
    incremental(begun, "0: nothing")


def test_rejects_are_not_read_again_but_by_strict(begun):
    begun.app_has((CAT, None))
    incremental(begun, "1: nothing, 1 rejected")
    incremental(begun, "0: nothing")
    strict = begun.sync("--incremental", "--strict")
    assert (strict.code, strict.result["mode"], strict.result["rejected"]) == (3, "full", 1), strict


def test_only_a_success_moves_the_position(begun):
    rename(begun, ANN, "N")
    with begun.warehouse.holding(HOLD_THE_LOCK):
        assert begun.sync("--incremental").result["result"] == "skipped"
    codes = [begun.sync(*flags, "--incremental").code for flags in (["--allow-changes", "0"], ["--dry-run"])]
    assert (codes, begun.sync("--dry-run").code, begun.dimension()) == ([3, 0], 0, dict(GROUND))
    incremental(begun, "1: 1 renamed")


DOUBTS = {
    "UPDATE {0} SET app_source = 'elsewhere'": ANOTHER, "UPDATE {0} SET app_source = NULL": ANOTHER,
    "UPDATE {0} SET result = 'failed'": NO_SUCCESS, "UPDATE {0} SET target = 'analytics.coach_dim'": NO_SUCCESS,
    "UPDATE {0} SET app_is_unique = NULL": OTHER_SPELLING,
    "UPDATE {0} SET app_position = app_position - 2147483648": "too many transactions",
    "REVOKE SELECT ON {0} FROM warehouse_writer": NO_SUCCESS,
    "ALTER TABLE {0} RENAME app_source TO hidden": ANOTHER,
    "DELETE FROM analytics.athlete_dim WHERE full_name LIKE 'Bob%'": "fewer athletes",
}
UNDO = {"REVOKE": "GRANT SELECT ON {0} TO warehouse_writer", "ALTER": "ALTER TABLE {0} RENAME hidden TO app_source"}


@pytest.mark.parametrize("change", list(DOUBTS))
def test_a_history_that_does_not_hold(begun, change):
    undo = UNDO.get(change.split()[0], "SELECT 1")
    rename(begun, ANN, "N")
    with begun.warehouse.changed(change.format(HISTORY), undo.format(HISTORY)):
        full(begun, DOUBTS[change])
    assert begun.dimension() == {ANN: "N", BOB: "Bob Bowman"}
    assert begun.sync("--incremental").result["mode"] == "incremental"
    nothing_left_to_do(begun)


def test_the_warehouse_restored_with_its_history(begun):
    """The position is there and nowhere else."""
    rename(begun, ANN, "N")
    incremental(begun, "1: 1 renamed")
    begun.warehouse.sql("UPDATE analytics.athlete_dim SET full_name = 'Ann Archer' WHERE athlete_uuid = %s", ANN)
    begun.warehouse.sql("DELETE FROM analytics.athlete_sync_run WHERE run_id > 1")
    incremental(begun, "1: 1 renamed")


def test_every_row_less_than_half_the_circle_away_is_sent(world, script):
    """The whole circle of 32 bits, by the very condition of EXTRACT_CHANGES."""
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


def test_any_names(world):
    table, uuid_column, name_column = 'public."%s {a.b}""Ä"', '"%(u)s"', '"Full {name}"'
    dimension = table.replace("public", "analytics")
    to = dict(APP_TABLE=table, APP_UUID_COLUMN=uuid_column, APP_NAME_COLUMN=name_column, WH_TABLE=dimension)
    create = ("CREATE TABLE %s (%s text PRIMARY KEY, %s text); GRANT SELECT ON %s TO app_readonly"
              % (table, uuid_column, name_column, table))
    made = ("CREATE TABLE %s (LIKE analytics.athlete_dim INCLUDING ALL);"
            "GRANT SELECT, INSERT, UPDATE ON %s TO warehouse_writer" % (dimension, dimension))
    with world.app.changed(create, "DROP TABLE " + table), world.warehouse.changed(made, "DROP TABLE " + dimension):
        world.app.sql("INSERT INTO %s VALUES ('%s', 'A'), ('%s', 'B')" % (table, ANN, BOB))
        assert full(world, NO_SUCCESS, **to).counts() == "2: 2 new"
        world.app.sql("UPDATE %s SET %s = 'N' WHERE %s = '%s'" % (table, name_column, uuid_column, ANN))
        incremental(world, "1: 1 renamed", **to)
        assert world.warehouse.sql("SELECT full_name FROM %s ORDER BY 1" % dimension) == [("B",), ("N",)]


# Servers of their own: crashes, standbys, copies, prepared transactions, the end of the counter


def test_a_few_random_rounds():
    """By chance; incremental_rounds.py as a program does 500. Not by chance: which of them must be full."""
    played = play(20, 1, {3: "crash", 6: "read_from_standby", 9: "stop_standby", 12: "promote_standby", 15: "save",
                          17: "restore"})
    assert played.summary() == "rounds=20 differences=0 incremental=15 full=5"


@pytest.fixture(scope="module")
def own_lab():
    with servers.two_servers(**OPTIONS) as lab:
        lab.set_up()
        lab.app.psql("-qc", UNIQUE)
        yield lab


@pytest.fixture
def own(own_lab, script):
    with empty_world(own_lab, script) as world:
        world.app_has(*GROUND)
        assert world.sync().counts() == "2: 2 new"
        yield world


def test_prepared_transactions(own):
    own.app.sql("BEGIN; UPDATE %s SET name = 'N' WHERE uuid = '%s'; PREPARE TRANSACTION 'one'" % (USER, ANN))
    incremental(own, "0: nothing")
    own.app_has((CAT, "Cat Cooper"))
    incremental(own, "1: 1 new")
    own.app.sql("COMMIT PREPARED 'one'")
    assert own.sync("--incremental").result["mode"] == "incremental"
    assert own.dimension() == {ANN: "N", BOB: "Bob Bowman", CAT: "Cat Cooper"}


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
    full(own, ANOTHER)
    rename(own, ANN, "Just before")
    with own.app.holding("UPDATE %s SET name = 'Held' WHERE uuid = '%s'" % (USER, BOB)) as writer:
        while own.app.value("SELECT txid_current()") < 2 ** 32 + 10:
            pass
        own.app_has((CAT, "After"))
        assert own.sync("--incremental").result["mode"] == "incremental"
        assert own.dimension() == {ANN: "Just before", BOB: "Bob Bowman", CAT: "After"}
        writer.connection.commit()
    assert own.sync("--incremental").result["mode"] == "incremental"
    assert own.dimension()[BOB] == "Held" and own.history()[-1]["app_position"] > 2 ** 32
    nothing_left_to_do(own)
