"""What becomes of each row, and of a run as a whole. `world` holds each run to more: see conftest.py."""

from __future__ import annotations

import random
import re
from datetime import timedelta

import psycopg2
import pytest

from conftest import ANN, BOB, CAT, DAN, trigger

ANN_IN_CAPITALS = ANN.upper()


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
    """A dry run tells what the run after it does; and a second run finds nothing to do."""
    world.app_has(*case["app"])
    world.warehouse_has(*case["before"])
    before = world.rows()
    dry = world.sync("--dry-run")
    assert (dry.code, dry.result["dry_run"], dry.counts()) == (0, True, case["counts"]), dry
    assert (world.rows(), world.history()) == (before, [])
    wet = world.sync()
    assert (wet.code, wet.result["result"], wet.counts()) == (0, "ok", case["counts"]), wet
    assert wet.result["dry_run"] is False
    assert world.dimension() == case["after"]
    again = world.sync()
    assert world.dimension() == case["after"]
    assert (again.result["inserted"], again.result["updated"]) == (0, 0), again
    assert again.result["unchanged"] == sum(wet.result[key] for key in ("inserted", "updated", "unchanged"))
    for key in ("source", "rejected", "repeated", "rejects", "missing"):
        assert dry.result[key] == wet.result[key] == again.result[key], key


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


def spree(world, known, renamed):
    athletes = ["00000000-0000-4000-8000-%012d" % number for number in range(known)]
    world.warehouse_has(*[(athlete, "Ann Archer") for athlete in athletes])
    world.app_has(*[(athlete, "Ann Baker" if number < renamed else "Ann Archer")
                    for number, athlete in enumerate(athletes)])


@pytest.mark.parametrize("known, renamed, flags, percent, code", [
    (20, 10, [], None, 0),
    (20, 11, [], None, 3),
    (19, 19, [], None, 0),
    (19, 19, [], "0", 0),
    (20, 20, [], "100", 0),
    (20, 2, [], "10", 0),
    (20, 3, [], "10", 3),
    (20, 1, [], "0", 3),
    (20, 0, [], "0", 0),
    (20, 11, ["--allow-updates", "11"], None, 0),
    (20, 11, ["--allow-updates", "10"], None, 3),
    (20, 11, ["--allow-updates", "0"], "100", 3),
    (20, 20, ["--allow-updates", "1000"], "0", 0),
    (1000, 500, [], None, 0),
    (1000, 501, [], None, 3),
    (1000, 600, [], "60", 0),
    (1000, 601, [], "60", 3),
    (1000, 1000, [], "100", 0),
])
def test_a_renaming_spree_is_refused(world, known, renamed, flags, percent, code):
    spree(world, known, renamed)
    before = world.rows()
    run = world.sync(*flags, SYNC_MAX_UPDATED_PERCENT=percent)
    assert run.code == code, run
    if code == 0:
        assert run.result["updated"] == renamed
        return
    for words in ("%d of %d" % (renamed, known), "--dry-run", "--allow-updates %d" % renamed, "looks like"):
        assert words in run.error, run
    dry = world.sync("--dry-run", *flags, SYNC_MAX_UPDATED_PERCENT=percent)
    assert (dry.code, dry.result["updated"]) == (0, renamed) and "would be refused" in dry.err, dry
    assert world.rows() == before
    ceiling = re.search(r"Next: .*(--allow-updates \d+)", run.error).group(1).split()
    assert world.sync(*ceiling, SYNC_MAX_UPDATED_PERCENT=percent).result["updated"] == renamed


def test_the_guard_counts_the_dimension_not_the_app(world):
    """60 of 100 athletes of the dimension, though the app has a thousand new ones besides."""
    athletes = ["00000000-0000-4000-8000-%012d" % number for number in range(1100)]
    world.warehouse_has(*[(athlete, "Ann Archer") for athlete in athletes[:100]])
    world.app_has(*[(athlete, "Ann Baker" if number < 60 or number >= 100 else "Ann Archer")
                    for number, athlete in enumerate(athletes)])
    run = world.sync()
    assert run.code == 3 and "60 of 100" in run.error, run


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
    with world.warehouse.changed(*trigger(when, body, deferred="upper" in body)):
        world.warehouse.sql("ALTER FUNCTION analytics.meddle() SECURITY DEFINER")
        run = world.sync(SYNC_REFRESH=refresh)
    assert (run.code, run.result["result"]) == (3, "failed"), run
    assert "warehouse" in run.error and "trigger" in run.error
    assert world.rows() == before


def view_of(name):
    return ("app", "CREATE VIEW public.odd AS SELECT uuid, %s AS name FROM public.\"User\";"
                   "GRANT SELECT ON public.odd TO app_readonly" % name, "DROP VIEW public.odd")


def trigger_that(body):
    return ("warehouse", *trigger("BEFORE INSERT", body + " RETURN NEW;"))


LEAKS = {
    "a trigger's words": trigger_that("RAISE EXCEPTION 'I do not like %', NEW.full_name;"),
    "a trigger's ASSERT": trigger_that("ASSERT NEW.full_name = '', NEW.full_name;"),
    "a trigger's syntax error": trigger_that("PERFORM to_tsquery(NEW.full_name);"),
    "a trigger's identifier": trigger_that("EXECUTE format('SELECT %I', NEW.full_name);"),
    "a trigger's cast": trigger_that("PERFORM NEW.full_name::regclass;"),
    "a trigger's borrowed code": trigger_that("RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = NEW.full_name;"),
    "a view's syntax error": view_of("to_tsquery(name)::text"),
    "a view's table": view_of("name::regclass::text"),
    "a view's role": view_of("name::regrole::text"),
    "a CHECK": ("warehouse", "ALTER TABLE analytics.athlete_dim ADD CONSTRAINT odd"
                             " CHECK (to_tsquery(full_name) IS NOT NULL)",
                "ALTER TABLE analytics.athlete_dim DROP CONSTRAINT odd"),
}


@pytest.mark.parametrize("side, leak, mend", list(LEAKS.values()), ids=list(LEAKS))
def test_an_error_that_may_quote_a_name_is_withheld(world, side, leak, mend):
    world.app_has((ANN, "Siobhan O'Brien & Smith ("))
    with getattr(world, side).changed(leak, mend):
        run = world.sync("-v", **{"APP_TABLE": "public.odd"} if side == "app" else {})
    assert (run.code, world.dimension()) == (3, {}) and "withheld" in run.error, run
    assert "Brien" not in run.out + run.err + str(world.history())


def test_a_trigger_that_finds_two_rows_is_not_blamed_on_the_app(world):
    """Its SQLSTATE, 21000, is that of an app which holds one uuid twice."""
    world.app_has((ANN, "Ann Archer"))
    body = "PERFORM (SELECT * FROM generate_series(1, 2)); RETURN NEW;"
    with world.warehouse.changed(*trigger("BEFORE INSERT", body)):
        run = world.sync()
    assert run.code == 3 and "[21000]" in run.error, run
    assert "REINDEX" not in run.error and "triggers" in run.error, run


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
