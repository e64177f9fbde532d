"""What becomes of each row, and of a run as a whole. `world` holds each run to more: see conftest.py."""

from __future__ import annotations

import platform
import random
import re
from datetime import timedelta

import psycopg2
import pytest

from conftest import ANN, BOB, CAT, DAN, finish
from lab.servers import PROJECT

ANN_IN_CAPITALS = ANN.upper()
SETUP = str(PROJECT / "sql" / "warehouse_setup.sql")


# Rows: in the app, in the warehouse before, what was counted, in the warehouse after. "3: 2 new,
# 1 missing" is three rows in the app, two inserted, one missing, and every other count 0.

ROWS = {
    "first load": dict(
        app=[(ANN, "Ann Archer"), (BOB, "Bob Bowman")], before=[],
        counts="2: 2 new", after={ANN: "Ann Archer", BOB: "Bob Bowman"}),
    "rerun": dict(
        app=[(ANN, "Ann Archer")], before=[(ANN, "Ann Archer")],
        counts="1: 1 unchanged", after={ANN: "Ann Archer"}),
    "rename": dict(
        app=[(ANN, "Ann Baker"), (BOB, "Bob Bowman")], before=[(ANN, "Ann Archer"), (BOB, "Bob Bowman")],
        counts="2: 1 renamed, 1 unchanged", after={ANN: "Ann Baker", BOB: "Bob Bowman"}),
    "rename by letter case, accent form or blank only": dict(
        app=[(ANN, "ann archer"), (BOB, "Jose\u0301 B."), (CAT, "Cat Cooper ")],
        before=[(ANN, "Ann Archer"), (BOB, "Jos\u00e9 B."), (CAT, "Cat Cooper")],
        counts="3: 3 renamed", after={ANN: "ann archer", BOB: "Jose\u0301 B.", CAT: "Cat Cooper "}),
    "gone from the app": dict(
        app=[(ANN, "Ann Archer")], before=[(ANN, "Ann Archer"), (BOB, "Bob Bowman"), (CAT, "Cat Cooper")],
        counts="1: 1 unchanged, 2 missing",
        after={ANN: "Ann Archer", BOB: "Bob Bowman", CAT: "Cat Cooper"}),
    "new, renamed, unchanged and gone together": dict(
        app=[(ANN, "Ann Archer"), (BOB, "Bob Baker"), (DAN, "Dan Dyer")],
        before=[(ANN, "Ann Archer"), (BOB, "Bob Bowman"), (CAT, "Cat Cooper")],
        counts="3: 1 new, 1 renamed, 1 unchanged, 1 missing",
        after={ANN: "Ann Archer", BOB: "Bob Baker", CAT: "Cat Cooper", DAN: "Dan Dyer"}),
    "two athletes swap names": dict(
        app=[(ANN, "Bob Bowman"), (BOB, "Ann Archer")], before=[(ANN, "Ann Archer"), (BOB, "Bob Bowman")],
        counts="2: 2 renamed", after={ANN: "Bob Bowman", BOB: "Ann Archer"}),
    "the app is empty": dict(
        app=[], before=[(ANN, "Ann Archer")],
        counts="0: 1 missing", after={ANN: "Ann Archer"}),
    "both are empty": dict(
        app=[], before=[],
        counts="0: nothing", after={}),
    "uuid is NULL": dict(
        app=[(None, "Nobody Known"), (ANN, "Ann Archer")], before=[],
        counts="2: 1 new, 1 rejected", after={ANN: "Ann Archer"}),
    "name is NULL, athlete unknown": dict(
        app=[(ANN, None), (BOB, "Bob Bowman")], before=[],
        counts="2: 1 new, 1 rejected", after={BOB: "Bob Bowman"}),
    "name is NULL, athlete known: kept, and not missing": dict(
        app=[(ANN, None), (DAN, "Dan Dyer")], before=[(ANN, "Ann Archer"), (DAN, "Dan Dyer")],
        counts="2: 1 unchanged, 1 rejected", after={ANN: "Ann Archer", DAN: "Dan Dyer"}),
    "uuid and name are NULL": dict(
        app=[(None, None), (None, None), (DAN, "Dan Dyer")], before=[(ANN, "Ann Archer"), (DAN, "Dan Dyer")],
        counts="3: 1 unchanged, 1 missing, 2 rejected", after={ANN: "Ann Archer", DAN: "Dan Dyer"}),
    "uuid in another spelling is the same athlete": dict(
        app=[("{%s}" % ANN_IN_CAPITALS, "Ann Baker")], before=[(ANN, "Ann Archer")],
        counts="1: 1 renamed", after={ANN: "Ann Baker"}),
    "repeated, names equal": dict(
        app=[(ANN, "Ann Archer")] * 3 + [(BOB, "Bob Bowman")], before=[],
        counts="4: 2 new, 2 repeated", after={ANN: "Ann Archer", BOB: "Bob Bowman"}),
    "repeated in other letter case and spelling, names equal": dict(
        app=[(ANN, "Ann Archer"), (ANN_IN_CAPITALS, "Ann Archer"), (ANN.replace("-", ""), "Ann Archer")],
        before=[(ANN, "Ann Archer")],
        counts="3: 1 unchanged, 2 repeated", after={ANN: "Ann Archer"}),
    "repeated, names equal but not the warehouse's": dict(
        app=[(ANN, "Ann Baker")] * 2, before=[(ANN, "Ann Archer")],
        counts="2: 1 renamed, 1 repeated", after={ANN: "Ann Baker"}),
    "repeated, names differ, athlete unknown": dict(
        app=[(ANN, "Ann Archer"), (ANN, "Ann Baker"), (BOB, "Bob Bowman")], before=[],
        counts="3: 1 new, 2 rejected", after={BOB: "Bob Bowman"}),
    "repeated, names differ, athlete known: kept, and not missing": dict(
        app=[(ANN, "Ann Archer"), (ANN_IN_CAPITALS, "Ann Baker"), (DAN, "Dan Dyer")], before=[(ANN, "Ann Cooper"), (DAN, "Dan Dyer")],
        counts="3: 1 unchanged, 2 rejected", after={ANN: "Ann Cooper", DAN: "Dan Dyer"}),
    "repeated, names differ, one is the warehouse's": dict(
        app=[(ANN, "Ann Archer"), (ANN, "Ann Baker"), (DAN, "Dan Dyer")], before=[(ANN, "Ann Archer"), (DAN, "Dan Dyer")],
        counts="3: 1 unchanged, 2 rejected", after={ANN: "Ann Archer", DAN: "Dan Dyer"}),
    "repeated, two names equal and one not: all rejected": dict(
        app=[(ANN, "Ann Archer"), (ANN, "Ann Archer"), (ANN, "Ann Baker"), (DAN, "Dan Dyer")], before=[(DAN, "Dan Dyer")],
        counts="4: 1 unchanged, 3 rejected", after={DAN: "Dan Dyer"}),
    "repeated, names differ by letter case only": dict(
        app=[(ANN, "Ann Archer"), (ANN, "ANN ARCHER"), (DAN, "Dan Dyer")], before=[(DAN, "Dan Dyer")],
        counts="3: 1 unchanged, 2 rejected", after={DAN: "Dan Dyer"}),
    "repeated, once without a name": dict(
        app=[(ANN, None), (ANN, "Ann Archer")], before=[],
        counts="2: 1 new, 1 rejected", after={ANN: "Ann Archer"}),
    "repeated, names differ and one is NULL": dict(
        app=[(ANN, "Ann Archer"), (ANN, None), (ANN, "Ann Baker"), (DAN, "Dan Dyer")], before=[(ANN, "Ann Cooper"), (DAN, "Dan Dyer")],
        counts="4: 1 unchanged, 3 rejected", after={ANN: "Ann Cooper", DAN: "Dan Dyer"}),
    "repeated, no name at all": dict(
        app=[(ANN, None), (ANN_IN_CAPITALS, None), (DAN, "Dan Dyer")], before=[(ANN, "Ann Archer"), (DAN, "Dan Dyer")],
        counts="3: 1 unchanged, 2 rejected", after={ANN: "Ann Archer", DAN: "Dan Dyer"}),
    "repeated, empty name and NULL": dict(
        app=[(ANN, ""), (ANN, None), (ANN, "")], before=[],
        counts="3: 1 new, 1 rejected, 1 repeated", after={ANN: ""}),
    "everything at once": dict(
        app=[(ANN, "Ann Baker"), (ANN_IN_CAPITALS, "Ann Baker"), (ANN, None), (BOB, "Bob Bowman"),
             (BOB, "Bob Baker"), (DAN, "Dan Dyer"), (None, "Nobody Known"), ("not-a-uuid", "Nobody Else")],
        before=[(ANN, "Ann Archer"), (BOB, "Bob Brewer"), (CAT, "Cat Cooper")],
        counts="8: 1 new, 1 renamed, 1 missing, 5 rejected, 1 repeated",
        after={ANN: "Ann Baker", BOB: "Bob Brewer", CAT: "Cat Cooper", DAN: "Dan Dyer"}),
}


@pytest.mark.parametrize("case", list(ROWS.values()), ids=list(ROWS))
def test_rows(world, case):
    world.app_has(*case["app"])
    world.warehouse_has(*case["before"])
    run = world.sync()
    assert (run.code, run.result["result"], run.counts()) == (0, "ok", case["counts"]), run
    assert world.dimension() == case["after"]


@pytest.mark.parametrize("case", list(ROWS.values()), ids=list(ROWS))
def test_dry_run_tells_what_the_run_after_it_does(world, case):
    world.app_has(*case["app"])
    world.warehouse_has(*case["before"])
    before = world.rows()
    dry = world.sync("--dry-run")
    assert (dry.code, dry.result["dry_run"], dry.counts()) == (0, True, case["counts"]), dry
    assert world.rows() == before
    assert world.history() == []
    wet = world.sync()
    assert [dry.result[key] for key in ("result", "source", "repeated", "rejects")] == \
        [wet.result[key] for key in ("result", "source", "repeated", "rejects")]
    assert (wet.counts(), wet.result["dry_run"]) == (dry.counts(), False)


@pytest.mark.parametrize("case", list(ROWS.values()), ids=list(ROWS))
def test_a_second_run_finds_nothing_to_do(world, case):
    world.app_has(*case["app"])
    world.warehouse_has(*case["before"])
    first, second = world.sync().result, world.sync().result
    assert world.dimension() == case["after"]
    assert (second["inserted"], second["updated"]) == (0, 0)
    assert second["unchanged"] == first["inserted"] + first["updated"] + first["unchanged"]
    assert [second[key] for key in ("source", "missing", "rejected", "repeated", "rejects")] == \
        [first[key] for key in ("source", "missing", "rejected", "repeated", "rejects")]


def test_an_empty_app_is_a_warning(world):
    world.warehouse_has((ANN, "Ann Archer"))
    before = world.rows()
    run = world.sync()
    assert (run.code, run.result["result"], run.counts()) == (0, "ok", "0: 1 missing"), run
    assert world.rows() == before
    assert [line for line in run.err.splitlines() if " WARNING " in line and "app" in line], run


# When an athlete is stamped


@pytest.mark.parametrize("refresh, stamped", [
    (None, {ANN, BOB, CAT, DAN}),
    ("always", {ANN, BOB, CAT, DAN}),
    ("never", {ANN, BOB}),
    ("12h", {ANN, BOB, DAN}),
    ("719m", {ANN, BOB, CAT, DAN}),
    ("1d", {ANN, BOB}),
])
def test_refresh(world, refresh, stamped):
    """Ann is new, Bob renamed; Cat was stamped just under 12 hours ago, Dan just over."""
    half_a_day_ago = world.warehouse.value("SELECT now() - interval '12 hours'")
    minutes = timedelta(minutes=1)
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Baker"), (CAT, "Cat Cooper"), (DAN, "Dan Dyer"))
    world.warehouse_has((BOB, "Bob Bowman"), synced_at=half_a_day_ago + minutes)
    world.warehouse_has((CAT, "Cat Cooper"), synced_at=half_a_day_ago + minutes / 2)
    world.warehouse_has((DAN, "Dan Dyer"), synced_at=half_a_day_ago - minutes / 2)
    began = world.warehouse.value("SELECT now()")
    run = world.sync(SYNC_REFRESH=refresh)
    assert (run.code, run.counts()) == (0, "4: 1 new, 1 renamed, 2 unchanged"), run
    stamps = dict(world.warehouse.sql(
        "SELECT athlete_uuid::text, source_synced_at FROM analytics.athlete_dim"))
    assert {uuid for uuid, stamp in stamps.items() if stamp > began} == stamped
    assert len({stamps[uuid] for uuid in stamped}) == 1, "one run, one stamp"
    assert world.sync(SYNC_REFRESH=refresh).counts() == "4: 4 unchanged"


def test_only_what_the_app_named_is_stamped(world):
    world.app_has((ANN, "Ann Archer"), (BOB, None), (CAT, "Cat Cooper"), (CAT, "Cat Carter"))
    world.warehouse_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"), (CAT, "Cat Cooper"), (DAN, "Dan Dyer"))
    world.sync()
    assert world.stamped() == {ANN}


def test_rerun_moves_the_stamp(world):
    world.app_has((ANN, "Ann Archer"))
    stamps = []
    for _ in range(2):
        world.sync()
        stamps.append(world.warehouse.value("SELECT source_synced_at FROM analytics.athlete_dim"))
    assert stamps[0] < stamps[1]


# What counts as a uuid: whatever Postgres's own type reads, and Postgres is asked


def spellings():
    plain = "a0eebc999c0b4ef8bb6d6bb9bd380a11"
    dashed = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    yield from (plain, dashed, plain.upper(), dashed.upper(), "{%s}" % plain, "{%s}" % dashed,
                "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11", "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
                "", " ", "NULL", "null", "nan", "\\N", "\\.", "0", "-", plain[:-1], plain + "0", dashed[:-1],
                dashed + "1", " " + dashed, dashed + " ", "{" + dashed, dashed + "}", "{{%s}}" % dashed, "{}",
                dashed + "-", "-" + dashed, dashed.replace("-", "--", 1), dashed.replace("a0", "a-0"),
                dashed.replace("a", "g"), dashed.replace("-", "_"), dashed.replace("-", "\u2010"),
                "urn:uuid:" + dashed, "(%s)" % dashed, '"%s"' % dashed, dashed + "\n", dashed + "\t",
                "\t" + dashed, dashed + "\r\n",
                dashed.replace("0", "O"), "\uff10" + dashed[1:], "\u00e9" * 36, "x" * 10000, plain * 2,
                dashed[:17] + "\n" + dashed[18:], dashed + "\\", dashed[:-1] + "\\",
                "'; DROP TABLE \"User\"; --")
    chance = random.Random(2)
    for _ in range(300):  # a good one, with one or two characters put in, taken out or replaced
        text = list(chance.choice((plain, dashed, "{%s}" % dashed)))
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(len(text))
            put_in = chance.choice(("", "-", "-", "0", "F", "g", "{", "}", " ", "\t"))
            text[at:at + chance.choice((0, 1))] = put_in
        yield "".join(text)
    for _ in range(200):  # hyphens where uuid_in takes them, and now and then one where it does not
        digits = "%032x" % chance.getrandbits(128)
        groups = [digits[at:at + 4] for at in range(0, 32, 4)]
        text = "".join(group + chance.choice(("", "-")) for group in groups[:-1]) + groups[-1]
        yield chance.choice((text, text.upper(), "{%s}" % text, text + "-", text[:2] + "-" + text[2:]))


def postgres_reads(side, text):
    try:
        return side.value("SELECT %s::uuid::text", text)
    except psycopg2.errors.InvalidTextRepresentation:
        return None


def test_a_uuid_is_what_postgres_reads_as_one(world):
    texts = list(spellings())
    read = [postgres_reads(world.warehouse, text) for text in texts]
    good = {uuid for uuid in read if uuid}
    assert len(good) > 100 and read.count(None) > 100  # both sorts are there
    world.app_has(*[(text, "one name") for text in texts])
    run = world.sync()
    assert run.code == 0, run
    assert world.dimension() == dict.fromkeys(good, "one name")
    assert run.result["rejected"] == read.count(None)
    assert run.result["repeated"] == len(texts) - read.count(None) - len(good)
    assert {reject["reason"] for reject in run.result["rejects"]} == {"uuid is not a uuid"}


@pytest.mark.parametrize("text", [
    "x", "", " ", "NULL", "\\N", "\\", "a\\b", "a\tb", "a\nb", "a\rb", "\u00e9\u4e16", "'; DROP", '"', "{}"])
def test_a_reject_is_listed_as_found(world, text):
    world.app_has((text, "Ann Archer"))
    assert world.sync().result["rejects"] == [{"uuid": text, "reason": "uuid is not a uuid"}]


def test_a_reject_says_why(world):
    world.app_has((None, "Nobody Known"), (ANN, None), (BOB, "Bob Bowman"), (BOB, "Bob Baker"))
    rejects = {reject["uuid"]: reject["reason"] for reject in world.sync().result["rejects"]}
    assert set(rejects) == {None, ANN, BOB}
    assert "uuid" in rejects[None] and "name is NULL" in rejects[ANN] and "names differ" in rejects[BOB]


def test_more_rejects_than_are_listed(world):
    world.app_has(*[("bad-%d" % number, "Ann Archer") for number in range(250)])
    world.app_has((ANN, "Ann Archer"), (ANN, "Ann Baker"), (BOB, "Bob Bowman"))
    run = world.sync()
    assert run.counts() == "253: 1 new, 252 rejected"
    assert len(run.result["rejects"]) == 100
    assert world.history()[-1]["rejects"] == run.result["rejects"]


def test_rejects_are_warned_of(world):
    world.app_has(("bad\nuuid \u4e16", "Ann Archer"), (BOB, "Bob Bowman"))
    run = world.sync()
    warning, = [line for line in run.err.splitlines() if " WARNING " in line]
    assert "1 row" in warning and "uuid" in warning, run


@pytest.mark.parametrize("bad_row", [
    (None, "Ann Archer"), (ANN, None), ("x", "Ann Archer"), (BOB, "Bob Baker")])
def test_strict_refuses_a_run_with_a_reject(world, bad_row):
    world.app_has(bad_row, (BOB, "Bob Bowman"), (CAT, "Cat Cooper"))
    run = world.sync("--strict")
    assert (run.code, run.result["result"]) == (3, "failed"), run
    assert world.dimension() == {}
    assert "app" in run.error and "--strict" in run.error
    assert world.sync().code == 0


def test_strict_lets_a_clean_run_pass(world):
    world.app_has((ANN, "Ann Archer"), (ANN, "Ann Archer"))
    assert world.sync("--strict").counts() == "2: 1 new, 1 repeated"


# A renaming spree is refused: (athletes in the dimension, renamed, flags, percent) -> exit code


@pytest.mark.parametrize("known, renamed, flags, percent, code", [
    (20, 10, [], None, 0),
    (20, 11, [], None, 3),
    (19, 19, [], None, 0),
    (20, 20, [], "100", 0),
    (20, 2, [], "10", 0),
    (20, 3, [], "10", 3),
    (20, 1, [], "0", 3),
    (20, 11, ["--allow-updates", "11"], None, 0),
    (20, 11, ["--allow-updates", "10"], None, 3),
    (20, 20, ["--allow-updates", "1000"], "0", 0),
])
def test_a_renaming_spree_is_refused(world, known, renamed, flags, percent, code):
    athletes = ["00000000-0000-4000-8000-%012d" % number for number in range(known)]
    world.warehouse_has(*[(athlete, "Ann Archer") for athlete in athletes])
    world.app_has(*[(athlete, "Ann Baker") for athlete in athletes[:renamed]])
    world.app_has(*[(athlete, "Ann Archer") for athlete in athletes[renamed:]])
    before = world.rows()
    run = world.sync(*flags, SYNC_MAX_UPDATED_PERCENT=percent)
    assert run.code == code, run
    if code == 3:
        assert "%d of %d" % (renamed, known) in run.error and world.rows() == before
        dry = world.sync("--dry-run", *flags, SYNC_MAX_UPDATED_PERCENT=percent)
        assert (dry.code, dry.result["updated"]) == (0, renamed), "reported all the same"
        ceiling = re.search(r"Next: .*(--allow-updates \d+)", run.error).group(1).split()
        assert world.sync(*ceiling, SYNC_MAX_UPDATED_PERCENT=percent).result["updated"] == renamed


# Other tables, columns and types


SOURCES = {
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


@pytest.mark.parametrize("create, settings", list(SOURCES.values()), ids=list(SOURCES))
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


# The warehouse as setup left it, or did not


@pytest.mark.parametrize("break_, mend", [
    ("ALTER TABLE analytics.athlete_sync_run RENAME TO hidden",
     "ALTER TABLE analytics.hidden RENAME TO athlete_sync_run"),
    ("ALTER TABLE analytics.athlete_sync_run RENAME repeated TO hidden",
     "ALTER TABLE analytics.athlete_sync_run RENAME hidden TO repeated"),
    ("REVOKE INSERT ON analytics.athlete_sync_run FROM warehouse_writer",
     "GRANT INSERT ON analytics.athlete_sync_run TO warehouse_writer"),
    ("REVOKE USAGE ON SEQUENCE analytics.athlete_sync_run_run_id_seq FROM warehouse_writer",
     "GRANT USAGE ON SEQUENCE analytics.athlete_sync_run_run_id_seq TO warehouse_writer"),
], ids=["no history table", "history of another shape", "no right to write it", "no right to number it"])
def test_without_history_the_sync_works_and_says_once_what_to_run(world, break_, mend):
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.changed(break_, mend):
        run = world.sync()
    assert (run.code, run.counts()) == (0, "1: 1 new"), run
    assert world.dimension() == {ANN: "Ann Archer"}
    assert run.err.count("sql/warehouse_setup.sql") == 1, run


def test_setup_run_again_keeps_every_row(world, lab):
    world.app_has((ANN, "Ann Archer"))
    world.warehouse_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
    world.sync()
    before = world.warehouse.snapshot()
    lab.warehouse.psql("-f", SETUP)
    lab.app.psql("-f", str(PROJECT / "sql" / "app_readonly.sql"))
    assert world.warehouse.snapshot() == before
    assert world.sync().code == 0, "without -v the passwords stay"


@pytest.fixture
def by_hand(lab):
    lab.warehouse.psql("-qc", "CREATE DATABASE by_hand")
    yield
    lab.warehouse.psql("-qc", "DROP DATABASE by_hand")  # else no other test could drop its role


def test_setup_leaves_a_dimension_made_by_hand_as_it_is(world, lab, by_hand):
    lab.warehouse.psql("-q", database="by_hand", stdin="""
        CREATE SCHEMA analytics;
        CREATE TABLE analytics.athlete_dim (athlete_uuid UUID PRIMARY KEY, full_name TEXT NOT NULL,
                                            source_synced_at TIMESTAMPTZ NOT NULL DEFAULT NOW(), club TEXT);
        INSERT INTO analytics.athlete_dim VALUES ('%s', 'Ann Archer', '2020-01-01', 'Rowing');
        GRANT USAGE ON SCHEMA analytics TO warehouse_writer;
        GRANT SELECT, INSERT, UPDATE ON analytics.athlete_dim TO warehouse_writer""" % ANN)
    world.app_has((ANN, "Ann Baker"), (BOB, "Bob Bowman"))
    run = world.run("--json", "--dry-run", WH_DB="by_hand")
    assert (run.code, run.counts()) == (0, "2: 1 new, 1 renamed"), run
    read = ("-qAtc", "SELECT full_name, source_synced_at < '2021-01-01', club"
                     " FROM analytics.athlete_dim ORDER BY 1")
    lab.warehouse.psql("-f", SETUP, database="by_hand")
    assert lab.warehouse.psql(*read, database="by_hand") == "Ann Archer|t|Rowing\n"
    run = world.run("--json", WH_DB="by_hand")
    assert (run.code, run.counts()) == (0, "2: 1 new, 1 renamed"), run
    assert lab.warehouse.psql(*read, database="by_hand") == "Ann Baker|f|Rowing\nBob Bowman|f|\n"
    assert "warehouse_setup.sql" not in run.err


# One run at a time


def test_a_second_run_is_skipped_while_the_first_holds_the_lock(world):
    world.app_has((ANN, "Ann Archer"))
    with world.app.holding('LOCK TABLE public."User" IN ACCESS EXCLUSIVE MODE'):
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
    assert [(row["result"], row["exit_code"]) for row in world.history()] == [("skipped", 0), ("ok", 0)]


def test_runs_for_different_dimensions_do_not_hinder_each_other(world):
    create = "CREATE TABLE analytics.other_dim (LIKE analytics.athlete_dim INCLUDING ALL)"
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.changed(create, "DROP TABLE analytics.other_dim"), world.warehouse.holding(
            "SELECT pg_advisory_xact_lock(1096043596, 'analytics.other_dim'::regclass::oid::integer)"):
        world.warehouse.sql("GRANT SELECT, INSERT, UPDATE ON analytics.other_dim TO warehouse_writer")
        assert world.sync(WH_TABLE="analytics.other_dim").result["result"] == "skipped"
        assert world.sync().result["result"] == "ok"


# The proof


TRIGGERS = {
    "alters a name before the write": (
        "BEFORE INSERT OR UPDATE", "NEW.full_name := btrim(NEW.full_name); RETURN NEW;"),
    "alters a name after the write": (
        "AFTER INSERT", "UPDATE analytics.athlete_dim SET full_name = 'Somebody Else'"
                        " WHERE athlete_uuid = NEW.athlete_uuid; RETURN NULL;"),
    "drops a row before the write": (
        "BEFORE INSERT", "IF NEW.full_name LIKE ' %' THEN RETURN NULL; END IF; RETURN NEW;"),
    "drops a row after the write": (
        "AFTER INSERT", "DELETE FROM analytics.athlete_dim"
                        " WHERE athlete_uuid = NEW.athlete_uuid; RETURN NULL;"),
    "alters a name at the very end, deferred": (
        "AFTER INSERT OR UPDATE", "UPDATE analytics.athlete_dim SET full_name = upper(full_name)"
                                  " WHERE athlete_uuid = NEW.athlete_uuid"
                                  "   AND full_name <> upper(full_name); RETURN NULL;"),
    "spoils another athlete that was sent": (
        "AFTER INSERT", "UPDATE analytics.athlete_dim SET full_name = 'Somebody Else'"
                        " WHERE athlete_uuid <> NEW.athlete_uuid AND full_name <> 'Somebody Else';"
                        " RETURN NULL;"),
}


@pytest.mark.parametrize("when, body", list(TRIGGERS.values()), ids=list(TRIGGERS))
@pytest.mark.parametrize("refresh", ["always", "never"])
def test_a_trigger_that_meddles_is_found_out(world, when, body, refresh):
    world.app_has((ANN, " Ann Archer "), (BOB, "Bob Bowman"))
    world.warehouse_has((BOB, "Bob Bowman"))
    before = world.rows()
    create = ("CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN %s END';"
              "CREATE %s ON analytics.athlete_dim %s FOR EACH ROW EXECUTE PROCEDURE meddle();"
              % (body.replace("'", "''"), "CONSTRAINT TRIGGER meddle " + when if "upper" in body else
                 "TRIGGER meddle " + when, "DEFERRABLE INITIALLY DEFERRED" if "upper" in body else ""))
    with world.warehouse.changed(create, "DROP FUNCTION meddle() CASCADE"):
        run = world.sync(SYNC_REFRESH=refresh)
    assert (run.code, run.result["result"]) == (3, "failed"), run
    assert "warehouse" in run.error and "trigger" in run.error
    assert world.rows() == before


def test_a_trigger_that_complains_of_a_name_does_not_get_it_printed(world):
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.changed(
            "CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RAISE EXCEPTION 'I do not like %', NEW.full_name; END$$;"
            "CREATE TRIGGER complain BEFORE INSERT ON analytics.athlete_dim"
            " FOR EACH ROW EXECUTE PROCEDURE complain()", "DROP FUNCTION complain() CASCADE"):
        run = world.sync("-v")
    assert (run.code, world.dimension()) == (3, {}), run
    assert "Ann Archer" not in run.out + run.err + str(world.history())


LEAKS = {
    "ASSERT": "ASSERT NEW.full_name = '', NEW.full_name; RETURN NEW;",
    "syntax error": "PERFORM to_tsquery(NEW.full_name); RETURN NEW;",
    "identifier": "EXECUTE format('SELECT %I', NEW.full_name); RETURN NEW;",
    "cast": "PERFORM NEW.full_name::regclass; RETURN NEW;",
    "borrowed code": "RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = NEW.full_name; RETURN NEW;",
}


@pytest.mark.parametrize("body", list(LEAKS.values()), ids=list(LEAKS))
def test_what_a_trigger_quotes_is_withheld(world, body):
    world.app_has((ANN, "Siobhan O'Brien-Smith"))
    with world.warehouse.changed(
            "CREATE FUNCTION quote() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN %s END$$;"
            "CREATE TRIGGER quote BEFORE INSERT ON analytics.athlete_dim"
            " FOR EACH ROW EXECUTE PROCEDURE quote()" % body, "DROP FUNCTION quote() CASCADE"):
        run = world.sync("-v")
    assert (run.code, world.dimension()) == (3, {}) and "withheld" in run.error, run
    assert "Brien" not in run.out + run.err + str(world.history())


@pytest.mark.parametrize("name", ["to_tsquery(name)::text", "name::regclass::text", "name::regrole::text"])
def test_what_a_view_quotes_is_withheld(world, name):
    world.app_has((ANN, "Siobhan O'Brien & Smith ("))
    with world.app.changed("CREATE VIEW public.odd AS SELECT uuid, %s AS name FROM public.\"User\";"
                           "GRANT SELECT ON public.odd TO app_readonly" % name, "DROP VIEW public.odd"):
        run = world.sync("-v", APP_TABLE="public.odd")
    assert run.code == 3 and "withheld" in run.error, run
    assert "Brien" not in run.out + run.err + str(world.history())


def test_what_a_check_constraint_quotes_is_withheld(world):
    world.app_has((ANN, "Siobhan O'Brien & Smith ("))
    with world.warehouse.changed(
            "ALTER TABLE analytics.athlete_dim ADD CONSTRAINT odd CHECK (to_tsquery(full_name) IS NOT NULL)",
            "ALTER TABLE analytics.athlete_dim DROP CONSTRAINT odd"):
        run = world.sync("-v")
    assert run.code == 3 and "withheld" in run.error, run
    assert "Brien" not in run.out + run.err + str(world.history())


def test_a_rule_on_the_dimension_is_refused(world):
    world.app_has((ANN, "Ann Archer"))
    with world.warehouse.changed(
            "CREATE RULE nothing AS ON INSERT TO analytics.athlete_dim DO INSTEAD NOTHING",
            "DROP RULE nothing ON analytics.athlete_dim"):
        assert world.sync().code == 3
    assert world.dimension() == {}


def test_a_constraint_that_refuses_one_row_refuses_the_run(world):
    world.app_has((ANN, "Ann Archer"), (BOB, ""))
    with world.warehouse.changed(
            "ALTER TABLE analytics.athlete_dim ADD CONSTRAINT named CHECK (full_name <> '')",
            "ALTER TABLE analytics.athlete_dim DROP CONSTRAINT named"):
        run = world.sync()
    assert run.code == 3 and "named" in run.error, run
    assert world.dimension() == {}


def test_a_dimension_that_others_inherit_from_is_refused(world):
    """The comparison would see the child's athletes, the key would not, and each would be there twice."""
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
    world.warehouse_has((ANN, "Ann Archer"))
    with world.warehouse.changed(
            "CREATE TABLE analytics.athlete_old () INHERITS (analytics.athlete_dim);"
            "INSERT INTO analytics.athlete_old VALUES ('%s', 'Bob Bowman', now())" % BOB,
            "DROP TABLE analytics.athlete_old"):
        run = world.sync(SYNC_REFRESH="never")
        assert run.code == 3 and "analytics.athlete_old inherits from" in run.error, run
        world.warehouse.sql("ALTER TABLE analytics.athlete_old NO INHERIT analytics.athlete_dim")
        assert world.sync().code == 0


# Every row rejected


WRONG_COLUMNS = {
    "columns swapped": ("SELECT name AS uuid, uuid AS name FROM public.\"User\"", "uuid is not a uuid"),
    "key of another kind": ("SELECT convert_to(uuid, 'UTF8') AS uuid, name FROM public.\"User\"",
                            "uuid is not a uuid"),
    "key padded": ("SELECT uuid::char(40) AS uuid, name FROM public.\"User\"", "uuid is not a uuid"),
    "no key": ("SELECT NULL::uuid AS uuid, name FROM public.\"User\"", "uuid is NULL"),
    "no name": ("SELECT uuid, NULL::text AS name FROM public.\"User\"", "name is NULL"),
    "one key for all": ("SELECT '%s'::uuid AS uuid, name FROM public.\"User\"" % ANN, "names differ for one uuid"),
}


@pytest.mark.parametrize("query, reason", list(WRONG_COLUMNS.values()), ids=list(WRONG_COLUMNS))
def test_a_table_of_rejects_is_refused(world, query, reason):
    world.app_has((ANN, "Siobhan O'Brien"), (BOB, "Bob Bowman-Lee"))
    world.warehouse_has((ANN, "Siobhan O'Brien"))
    with world.app.changed("CREATE VIEW public.wrong AS %s; GRANT SELECT ON public.wrong TO app_readonly" % query,
                           "DROP VIEW public.wrong"):
        dry = world.run("--dry-run", APP_TABLE="public.wrong")
        run = world.run(APP_TABLE="public.wrong")
    assert dry.code == 0 and "without --dry-run this would be refused" in dry.err, dry
    assert run.code == 3 and "every row was rejected: 2 %s;" % reason in run.error, run
    assert (world.history()[-1]["result"], world.history()[-1]["rejected"]) == ("failed", 2)
    assert "O'Brien" not in str(world.history()) and "Bowman" not in str(world.history())


def test_a_reject_is_shown_whole_in_json_alone(world):
    world.app_has((ANN, "Ann Archer"), ("Siobhan O'Brien", "x"), ("Ada", "x"), ("4711-abc", "x"))
    run = world.sync()
    shown = [reject["uuid"] for reject in world.history()[-1]["rejects"]]
    assert [reject["uuid"] for reject in run.result["rejects"]] == ["Siobhan O'Brien", "Ada", "4711-abc"]
    assert shown == ["(not shown)", "(not shown)", "4711-abc"]
    assert "O'Brien" not in run.err and "Ada" not in run.err, run


def test_a_stamp_that_is_null_is_older_than_any(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
    with world.warehouse.changed("ALTER TABLE analytics.athlete_dim ALTER source_synced_at DROP NOT NULL",
                                 "TRUNCATE analytics.athlete_dim;"
                                 "ALTER TABLE analytics.athlete_dim ALTER source_synced_at SET NOT NULL"):
        world.warehouse_has((ANN, "Ann Archer"), synced_at=None)
        world.warehouse.sql("INSERT INTO analytics.athlete_dim VALUES (%s, 'Bob Bowman', now())", BOB)
        before = world.warehouse.value("SELECT max(source_synced_at) FROM analytics.athlete_dim")
        assert world.sync(SYNC_REFRESH="12h").counts() == "2: 2 unchanged"
        after = world.warehouse.sql("SELECT source_synced_at > %s FROM analytics.athlete_dim"
                                    " ORDER BY athlete_uuid", before)
    assert after == [(True,), (False,)]


# What the warehouse remembers


def test_history_of_a_run_that_went_well(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Baker"), (CAT, "Cat Cooper"), (CAT, "Cat Cooper"),
                  ("x", "Dan Dyer"))
    world.warehouse_has((BOB, "Bob Bowman"), (CAT, "Cat Cooper"), (DAN, "Dan Dyer"))
    run = world.sync()
    row, = world.history()
    assert row.pop("started_at") <= row.pop("finished_at")
    assert row.items() >= dict(
        run_id=1, target="analytics.athlete_dim", mode="full", result="ok", exit_code=0, source_rows=5,
        inserted=1, updated=1, unchanged=1, missing=1, rejected=1, repeated=1, message=None,
        host=platform.node(),
        rejects=[{"uuid": "(not shown)", "reason": "uuid is not a uuid"}], version=world.script.VERSION).items(), run
    assert world.warehouse.value("SELECT last_result FROM analytics.athlete_sync_health") == "ok"


def test_history_of_a_run_that_failed(world):
    world.app_has((ANN, "Ann Archer"), ("x", "Dan Dyer"))
    world.sync()
    run = world.sync("--strict")
    row = world.history()[-1]
    assert (row["result"], row["exit_code"], row["source_rows"], row["rejected"]) == ("failed", 3, 2, 1), run
    assert [row[key] for key in ("inserted", "updated", "unchanged", "repeated")] == [None] * 4
    assert row["message"] == run.result["message"] and "--strict" in row["message"]
    health, = world.warehouse.sql(
        "SELECT last_result, last_success < now(), last_success_age > '0', last_duration > '0',"
        "       usual_duration > '0' FROM analytics.athlete_sync_health")
    assert health == ("failed", True, True, True, True)


@pytest.mark.parametrize("settings, recorded", [
    (dict(APP_PASSWORD="wrong"), [("failed", 2)]),
    (dict(APP_TABLE="public.nowhere"), [("failed", 3)]),
    (dict(WH_TABLE="analytics.nowhere"), [("failed", 3)]),
    (dict(WH_PASSWORD="wrong"), []),
])
def test_history_of_a_run_that_could_not_start(world, settings, recorded):
    run = world.sync(**settings)
    assert [(row["result"], row["exit_code"]) for row in world.history()] == recorded, run
    assert {row["source_rows"] for row in world.history()} <= {None}, "what is not known is NULL"


def test_health_without_a_run(world):
    assert world.warehouse.sql(
        "SELECT last_success, last_success_age, last_result, last_duration, usual_duration"
        " FROM analytics.athlete_sync_health") == [(None,) * 5]


# Guarantees


def test_the_app_role_cannot_write(world):
    world.app_has((ANN, "Ann Archer"))
    with world.app.holding() as reader:
        reader.sql("SET SESSION AUTHORIZATION app_readonly")
        for statement in ('DELETE FROM public."User"', 'UPDATE public."User" SET name = name',
                          'INSERT INTO public."User" DEFAULT VALUES', 'TRUNCATE public."User"'):
            reader.sql("SAVEPOINT before")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                reader.sql(statement)
            reader.sql("ROLLBACK TO before")


def test_the_writer_may_do_no_more_than_the_sync_needs(world):
    assert world.warehouse.sql("""
        SELECT table_schema || '.' || table_name, string_agg(privilege_type, ' ' ORDER BY privilege_type)
          FROM information_schema.role_table_grants
         WHERE grantee = 'warehouse_writer' GROUP BY 1 ORDER BY 1""") == [
        ("analytics.athlete_dim", "INSERT SELECT UPDATE"),
        ("analytics.athlete_rename", "INSERT"),
        ("analytics.athlete_sync_health", "SELECT"),
        ("analytics.athlete_sync_run", "INSERT SELECT"),
    ]
    with world.warehouse.holding() as writer:
        writer.sql("SET SESSION AUTHORIZATION warehouse_writer")
        for statement in ("CREATE TABLE analytics.mine ()", "DELETE FROM analytics.athlete_dim",
                          "TRUNCATE analytics.athlete_dim", "SELECT * FROM public.bystander"):
            writer.sql("SAVEPOINT before")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                writer.sql(statement)
            writer.sql("ROLLBACK TO before")


def test_what_people_wrote_meanwhile_is_not_read(world):
    """One snapshot: an athlete renamed in the app while the run waits is carried with one name."""
    world.app_has((ANN, "Ann Archer"))
    world.warehouse_has((ANN, "Ann Archer"))
    with world.warehouse.holding("LOCK TABLE analytics.athlete_dim IN ACCESS EXCLUSIVE MODE"):
        process = world.start("--json")
        world.warehouse.wait_until_a_run_waits_for_a_lock()
        world.app.sql('UPDATE public."User" SET name = %s', "Ann Baker")
    assert finish(process).counts() == "1: 1 unchanged"
    assert world.sync().counts() == "1: 1 renamed"
    assert world.dimension() == {ANN: "Ann Baker"}


@pytest.mark.parametrize("refresh, words", (("always", "[21000]"), ("never", "repeat an athlete")))
def test_a_unique_index_that_lies_is_found_out(world, refresh, words):
    """As after a C library that sorts anew: the index calls itself unique, the table is not."""
    world.app_has((ANN, "Ann Archer"), (ANN, "Ann Baker"))
    world.warehouse_has((ANN, "Ann Archer"))
    with world.app.changed('CREATE INDEX lying ON public."User" (uuid)', "DROP INDEX public.lying"):
        world.app.sql("UPDATE pg_index SET indisunique = true WHERE indexrelid = 'public.lying'::regclass")
        run = world.sync(SYNC_REFRESH=refresh)
    assert run.code == 3 and words in run.err and "REINDEX TABLE" in run.err, run
    assert world.dimension() == {ANN: "Ann Archer"}
