"""What becomes of each row, and of a run as a whole. `world` holds each run to more: see conftest.py."""

from __future__ import annotations

import random
import re
from datetime import timedelta

import psycopg2
import pytest
from conftest import ANN, BOB, CAT, DAN, trigger

CAPITALS = ANN.upper()

# Rows: in the app, in the warehouse before, what was counted, in the warehouse after. "3: 2 new,
# 1 missing" is three rows in the app, two inserted, one missing, and every other count 0.

ROWS = [
    ("first load", [(ANN, "Archer"), (BOB, "Bowman")], {},
     "2: 2 new", {ANN: "Archer", BOB: "Bowman"}),
    ("rerun", [(ANN, "Archer")], {ANN: "Archer"}, "1: 1 unchanged", {ANN: "Archer"}),
    ("rename", [(ANN, "Ann Baker"), (BOB, "Bowman")], {ANN: "Archer", BOB: "Bowman"},
     "2: 1 renamed, 1 unchanged", {ANN: "Ann Baker", BOB: "Bowman"}),
    ("rename by letter case, accent form or blank only", [(ANN, "archer"), (BOB, "Jose\u0301 B."), (CAT, "Cooper ")],
     {ANN: "Archer", BOB: "Jos\u00e9 B.", CAT: "Cooper"},
     "3: 3 renamed", {ANN: "archer", BOB: "Jose\u0301 B.", CAT: "Cooper "}),
    ("new, renamed, unchanged and gone together",
     [(ANN, "Archer"), (BOB, "Bob Baker"), (DAN, "Dan Dyer")], {ANN: "Archer", BOB: "Bowman", CAT: "Cooper"},
     "3: 1 new, 1 renamed, 1 unchanged, 1 missing", {ANN: "Archer", BOB: "Bob Baker", CAT: "Cooper", DAN: "Dan Dyer"}),
    ("two athletes swap names", [(ANN, "Bowman"), (BOB, "Archer")], {ANN: "Archer", BOB: "Bowman"},
     "2: 2 renamed", {ANN: "Bowman", BOB: "Archer"}),
    ("the app is empty", [], {ANN: "Archer"}, "0: 1 missing", {ANN: "Archer"}),
    ("both are empty", [], {}, "0: nothing", {}),
    ("uuid is NULL", [(None, "Nobody Known"), (ANN, "Archer")], {}, "2: 1 new, 1 rejected", {ANN: "Archer"}),
    ("name is NULL, athlete unknown", [(ANN, None), (BOB, "Bowman")], {}, "2: 1 new, 1 rejected", {BOB: "Bowman"}),
    ("name is NULL, athlete known: kept, and not missing",
     [(ANN, None), (DAN, "Dan Dyer")], {ANN: "Archer", DAN: "Dan Dyer"},
     "2: 1 unchanged, 1 rejected", {ANN: "Archer", DAN: "Dan Dyer"}),
    ("uuid and name are NULL", [(None, None), (None, None), (DAN, "Dan Dyer")], {ANN: "Archer", DAN: "Dan Dyer"},
     "3: 1 unchanged, 1 missing, 2 rejected", {ANN: "Archer", DAN: "Dan Dyer"}),
    ("uuid in another spelling is the same athlete", [("{%s}" % CAPITALS, "Ann Baker")], {ANN: "Archer"},
     "1: 1 renamed", {ANN: "Ann Baker"}),
    ("repeated, names equal", [(ANN, "Archer")] * 3 + [(BOB, "Bowman")], {},
     "4: 2 new, 2 repeated", {ANN: "Archer", BOB: "Bowman"}),
    ("repeated in other letter case and spelling, names equal",
     [(ANN, "Archer"), (CAPITALS, "Archer"), (ANN.replace("-", ""), "Archer")], {ANN: "Archer"},
     "3: 1 unchanged, 2 repeated", {ANN: "Archer"}),
    ("repeated, names equal but not the warehouse's", [(ANN, "Ann Baker")] * 2, {ANN: "Archer"},
     "2: 1 renamed, 1 repeated", {ANN: "Ann Baker"}),
    ("repeated, names differ, athlete unknown", [(ANN, "Archer"), (ANN, "Ann Baker"), (BOB, "Bowman")], {},
     "3: 1 new, 2 rejected", {BOB: "Bowman"}),
    ("repeated, names differ, athlete known: kept, and not missing",
     [(ANN, "Archer"), (CAPITALS, "Ann Baker"), (DAN, "Dan Dyer")], {ANN: "Cooper", DAN: "Dan Dyer"},
     "3: 1 unchanged, 2 rejected", {ANN: "Cooper", DAN: "Dan Dyer"}),
    ("repeated, two names equal and one the warehouse's: all rejected",
     [(ANN, "Archer"), (ANN, "Archer"), (ANN, "Ann Baker"), (DAN, "Dan Dyer")], {ANN: "Archer", DAN: "Dan Dyer"},
     "4: 1 unchanged, 3 rejected", {ANN: "Archer", DAN: "Dan Dyer"}),
    ("repeated, names differ by letter case only",
     [(ANN, "Archer"), (ANN, "ARCHER"), (DAN, "Dan Dyer")], {DAN: "Dan Dyer"},
     "3: 1 unchanged, 2 rejected", {DAN: "Dan Dyer"}),
    ("repeated, once without a name", [(ANN, None), (ANN, "Archer")], {}, "2: 1 new, 1 rejected", {ANN: "Archer"}),
    ("repeated, names differ and one is NULL",
     [(ANN, "Archer"), (ANN, None), (ANN, "Ann Baker"), (DAN, "Dan Dyer")], {ANN: "Cooper", DAN: "Dan Dyer"},
     "4: 1 unchanged, 3 rejected", {ANN: "Cooper", DAN: "Dan Dyer"}),
    ("repeated, no name at all", [(ANN, None), (CAPITALS, None), (DAN, "Dan Dyer")], {ANN: "Archer", DAN: "Dan Dyer"},
     "3: 1 unchanged, 2 rejected", {ANN: "Archer", DAN: "Dan Dyer"}),
    ("repeated, empty name and NULL", [(ANN, ""), (ANN, None), (ANN, "")], {},
     "3: 1 new, 1 rejected, 1 repeated", {ANN: ""}),
    ("everything at once",
     [(ANN, "Ann Baker"), (CAPITALS, "Ann Baker"), (ANN, None), (BOB, "Bowman"), (BOB, "Bob Baker"),
      (DAN, "Dan Dyer"), (None, "Nobody Known"), ("not-a-uuid", "Nobody Else")],
     {ANN: "Archer", BOB: "Brewer", CAT: "Cooper"}, "8: 1 new, 1 renamed, 1 missing, 5 rejected, 1 repeated",
     {ANN: "Ann Baker", BOB: "Brewer", CAT: "Cooper", DAN: "Dan Dyer"}),
]


@pytest.mark.parametrize("app, before, counts, after", [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_rows(world, app, before, counts, after):
    """A dry run tells what the run after it does; and a second run finds nothing to do."""
    world.app_has(*app)
    world.warehouse_has(*before.items())
    rows = world.rows()
    dry = world.sync("--dry-run")
    assert (dry.code, dry.result["dry_run"], dry.counts()) == (0, True, counts), dry
    assert (world.rows(), world.history()) == (rows, [])
    wet = world.sync()
    assert (wet.code, wet.result["result"], wet.result["dry_run"], wet.counts()) == (0, "ok", False, counts), wet
    named = sum(wet.result[key] for key in ("inserted", "updated", "unchanged"))
    assert (world.dimension(), len(world.stamped())) == (after, named), "only what the app named is stamped"
    assert bool(" WARNING app: " in wet.err) == (not app or wet.result["rejected"] > 0), wet
    again = world.sync()
    assert world.dimension() == after
    assert [again.result[key] for key in ("inserted", "updated", "unchanged")] == [0, 0, named], again
    for key in ("source", "rejected", "repeated", "rejects", "missing"):
        assert dry.result[key] == wet.result[key] == again.result[key], key


# When an athlete is stamped


@pytest.mark.parametrize("refresh, stamped", [
    (None, {ANN, BOB, CAT, DAN}), ("always", {ANN, BOB, CAT, DAN}), ("never", {ANN, BOB}),
    ("12h", {ANN, BOB, DAN}), ("719m", {ANN, BOB, CAT, DAN}), ("1d", {ANN, BOB})])
def test_refresh(world, refresh, stamped):
    """Ann is new, Bob renamed; Cat was stamped just under 12 hours ago, Dan just over."""
    half_a_day_ago = world.warehouse.value("SELECT now() - interval '12 hours'")
    minutes = timedelta(minutes=1)
    world.app_has((ANN, "Archer"), (BOB, "Bob Baker"), (CAT, "Cooper"), (DAN, "Dan Dyer"))
    world.warehouse_has((BOB, "Bowman"), synced_at=half_a_day_ago + minutes)
    world.warehouse_has((CAT, "Cooper"), synced_at=half_a_day_ago + minutes / 2)
    world.warehouse_has((DAN, "Dan Dyer"), synced_at=half_a_day_ago - minutes / 2)
    began = world.warehouse.value("SELECT now()")
    run = world.sync(SYNC_REFRESH=refresh)
    assert (run.code, run.counts()) == (0, "4: 1 new, 1 renamed, 2 unchanged"), run
    stamps = dict(world.warehouse.sql("SELECT athlete_uuid::text, source_synced_at FROM analytics.athlete_dim"))
    assert {uuid for uuid, stamp in stamps.items() if stamp > began} == stamped
    assert len({stamps[uuid] for uuid in stamped}) == 1, "one run, one stamp"
    assert world.sync(SYNC_REFRESH=refresh).counts() == "4: 4 unchanged"


def test_a_stamp_that_is_null_is_older_than_any(world):
    world.app_has((ANN, "Archer"), (BOB, "Bowman"))
    nullable = "ALTER TABLE analytics.athlete_dim ALTER source_synced_at "
    with world.warehouse.changed(nullable + "DROP NOT NULL",
                                 "TRUNCATE analytics.athlete_dim; " + nullable + "SET NOT NULL"):
        world.warehouse_has((ANN, "Archer"), synced_at=None)
        world.warehouse_has((BOB, "Bowman"), synced_at=world.warehouse.value("SELECT now()"))
        before = world.rows()
        assert world.sync(SYNC_REFRESH="12h").counts() == "2: 2 unchanged"
        assert world.rows()[0][2] > before[1][2] and world.rows()[1] == before[1]


# What counts as a uuid: whatever Postgres's own type reads, and Postgres is asked


def spellings():
    plain = "a0eebc999c0b4ef8bb6d6bb9bd380a11"
    dashed = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    yield from (plain, dashed, plain.upper(), "{%s}" % plain, "{%s}" % dashed, "{{%s}}" % dashed, "{" + dashed, "{}",
                "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11", "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}", "", " ", "NULL",
                "null", "nan", "\\N", "\\.", "0", "-", plain[:-1], plain + "0", " " + dashed, dashed + " ",
                dashed + "}", dashed + "-", "-" + dashed, dashed.replace("-", "--", 1), dashed.replace("-", "_"),
                dashed.replace("-", "\u2010"), "urn:uuid:" + dashed, "(%s)" % dashed, '"%s"' % dashed, dashed + "\n",
                dashed + "\t", "\t" + dashed, dashed + "\r\n", dashed.replace("0", "O"), "\uff10" + dashed[1:],
                "\u00e9" * 36, "x" * 10000, plain * 2, dashed[:17] + "\n" + dashed[18:], dashed + "\\")
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
    assert (run.code, world.dimension()) == (0, dict.fromkeys(good, "one name")), run
    assert run.result["rejected"] == read.count(None)
    assert run.result["repeated"] == len(texts) - read.count(None) - len(good)
    assert {reject["reason"] for reject in run.result["rejects"]} == {"uuid is not a uuid"}


@pytest.mark.parametrize("uuid, name, reason", [
    (text, "Archer", "uuid is not a uuid") for text in (
        "x", "", " ", "NULL", "\\N", "\\", "a\\b", "a\tb", "a\nb", "\b\f\r\v", "\u00e9\u4e16", "'; DROP", '"', "{}")
] + [(None, "Archer", "uuid is NULL"), (ANN, None, "name is NULL"), (BOB, "Bob Baker", "names differ for one uuid")])
def test_a_reject_is_told_as_found_and_refused_by_strict(world, uuid, name, reason):
    world.app_has((uuid, name), (BOB, "Bowman"), (CAT, "Cooper"), (CAT, "Cooper"))
    strict = world.sync("--strict")
    assert (strict.code, strict.result["result"], world.dimension()) == (3, "failed", {}), strict
    assert " ERROR app: " in strict.error and "--strict" in strict.error
    run = world.sync()
    assert run.result["rejects"] == [{"uuid": uuid, "reason": reason}], run
    warning, = [line for line in run.err.splitlines() if " WARNING " in line]
    assert "%d %s" % (run.result["rejected"], reason) in warning
    world.app.sql("DELETE FROM public.\"User\" WHERE name <> 'Cooper' OR uuid IS NULL OR name IS NULL")
    assert world.sync("--strict").counts().startswith("2: 1 unchanged"), "repeats are no rejects"


@pytest.mark.parametrize("name", ["Archer", "n" * 1500], ids=["in one chunk", "in two chunks"])
def test_more_rejects_than_are_listed(world, name):
    """Of 256 kB, with more than are listed in each."""
    world.app_has(*[("bad-%d" % number, name) for number in range(300)])
    world.app_has((ANN, "Archer"), (ANN, "Ann Baker"), (BOB, "Bowman"))
    run = world.sync()
    assert run.counts() == "303: 1 new, 302 rejected"
    assert run.result["rejects"] == [{"uuid": "bad-%d" % n, "reason": "uuid is not a uuid"} for n in range(100)]
    assert world.history()[-1]["rejects"] == run.result["rejects"]


def test_a_reject_is_shown_whole_in_json_alone(world):
    world.app_has((ANN, "Archer"), ("Siobhan O'Brien", "x"), ("Ada", "x"), ("4711-abc", "x"))
    run = world.sync()
    kept = [reject["uuid"] for reject in world.history()[-1]["rejects"]]
    assert kept == ["(not shown)", "(not shown)", "4711-abc"] and run.result["rejects"][1]["uuid"] == "Ada", run
    assert "O'Brien" not in run.err and "Ada" not in run.err, run


WRONG_COLUMNS = {
    "columns swapped": ("name AS uuid, uuid AS name", "uuid is not a uuid"),
    "key of another kind": ("convert_to(uuid, 'UTF8') AS uuid, name", "uuid is not a uuid"),
    "key padded": ("uuid::char(40) AS uuid, name", "uuid is not a uuid"),
    "no key": ("NULL::uuid AS uuid, name", "uuid is NULL"),
    "no name": ("uuid, NULL::text AS name", "name is NULL"),
    "one key for all": ("'%s'::uuid AS uuid, name" % ANN, "names differ for one uuid"),
}


def view_of(columns):
    return ("CREATE VIEW public.odd AS SELECT %s FROM public.\"User\";"
            "GRANT SELECT ON public.odd TO app_readonly" % columns, "DROP VIEW public.odd")


@pytest.mark.parametrize("columns, reason", list(WRONG_COLUMNS.values()), ids=list(WRONG_COLUMNS))
def test_a_table_of_rejects_is_refused(world, columns, reason):
    world.app_has((ANN, "Siobhan O'Brien"), (BOB, "Bob Bowman-Lee"))
    world.warehouse_has((ANN, "Siobhan O'Brien"))
    with world.app.changed(*view_of(columns)):
        dry = world.run("--dry-run", APP_TABLE="public.odd")
        run = world.run(APP_TABLE="public.odd")
    assert dry.code == 0 and "without --dry-run this would be refused" in dry.err, dry
    assert run.code == 3 and "every row was rejected: 2 %s;" % reason in run.error, run
    assert (world.history()[-1]["result"], world.history()[-1]["rejected"]) == ("failed", 2)


# What looks like an accident is refused: athletes in the dimension; how many of them the app has renamed, and no
# longer has; how many it has besides; flags, percent -> exit code


def athletes(first, last, name):
    return [("00000000-0000-4000-8000-%012d" % number, name) for number in range(first, last)]


@pytest.mark.parametrize("known, renamed, gone, new, flags, percent, code", [
    (20, 10, 0, 0, [], None, 0),
    (20, 11, 0, 0, [], None, 3),
    (19, 19, 0, 0, [], "0", 0),
    (20, 20, 0, 0, [], "100", 0),
    (20, 2, 0, 0, [], "10", 0),
    (20, 3, 0, 0, [], "10", 3),
    (20, 1, 0, 0, [], "0", 3),
    (20, 0, 0, 5, [], "0", 0),
    (20, 0, 19, 0, [], "0", 0),
    (20, 0, 11, 10, [], None, 0),
    (20, 0, 11, 11, [], None, 3),
    (20, 0, 10, 99, [], None, 0),
    (20, 5, 6, 7, [], None, 3),
    (20, 11, 0, 0, ["--allow-changes", "11"], None, 0),
    (20, 11, 0, 0, ["--allow-changes", "10"], None, 3),
    (20, 6, 5, 5, ["--allow-changes", "10"], None, 3),
    (20, 11, 0, 0, ["--allow-changes", "0"], "100", 3),
    (20, 20, 0, 0, ["--allow-changes", "1000"], "0", 0),
    (100, 60, 0, 1000, [], None, 3),  # of the dimension's, not of the app's
])
def test_what_looks_like_an_accident_is_refused(world, known, renamed, gone, new, flags, percent, code):
    world.warehouse_has(*athletes(0, known, "Archer"))
    world.app_has(*athletes(0, renamed, "Ann Baker") + athletes(renamed, known - gone, "Archer")
                  + athletes(known, known + new, "Archer"))
    before, changed = world.rows(), renamed + min(gone, new)
    run = world.sync(*flags, SYNC_MAX_CHANGED_PERCENT=percent)
    assert run.code == code, run
    if code == 0:
        assert [run.result[key] for key in ("updated", "missing", "inserted")] == [renamed, gone, new]
        return
    assert "%d of %d" % (changed, known) in run.error and "--dry-run" in run.error, run
    dry = world.sync("--dry-run", *flags, SYNC_MAX_CHANGED_PERCENT=percent)
    assert (dry.code, dry.result["updated"]) == (0, renamed) and "would be refused" in dry.err, dry
    assert world.rows() == before
    ceiling = re.search(r"Next: .*(--allow-changes \d+)", run.error).group(1)
    assert ceiling == "--allow-changes %d" % changed
    assert world.sync(*ceiling.split(), SYNC_MAX_CHANGED_PERCENT=percent).result["updated"] == renamed


# The proof


CHANGE = "UPDATE analytics.athlete_dim SET full_name = %s WHERE athlete_uuid %s NEW.athlete_uuid%s; RETURN NULL;"
TRIGGERS = {
    "alters a name before the write": ("BEFORE", "NEW.full_name := btrim(NEW.full_name); RETURN NEW;"),
    "alters a name after the write": ("AFTER", CHANGE % ("upper(full_name)", "=", " AND pg_trigger_depth() = 1")),
    "alters a name at the very end": ("DEFERRED", CHANGE % ("upper(full_name)", "=", " AND pg_trigger_depth() = 1")),
    "spoils another athlete": ("AFTER", CHANGE % ("'Somebody'", "<>", " AND full_name <> 'Somebody'")),
    "drops a row before the write": ("BEFORE", "IF NEW.full_name LIKE ' %' THEN RETURN NULL; END IF; RETURN NEW;"),
    "drops a row after the write": (
        "AFTER", "DELETE FROM analytics.athlete_dim WHERE athlete_uuid = NEW.athlete_uuid; RETURN NULL;"),
}


@pytest.mark.parametrize("when, body", list(TRIGGERS.values()), ids=list(TRIGGERS))
@pytest.mark.parametrize("refresh", ["always", "never"])
def test_a_trigger_that_meddles_is_found_out(world, when, body, refresh):
    world.app_has((ANN, " Ann Archer "), (BOB, "Bowman"))
    world.warehouse_has((BOB, "Bowman"))
    before = world.rows()
    events = when.replace("DEFERRED", "AFTER") + " INSERT OR UPDATE"
    with world.warehouse.changed(*trigger(events, body, deferred=when == "DEFERRED")):
        world.warehouse.sql("ALTER FUNCTION analytics.meddle() SECURITY DEFINER")
        run = world.sync(SYNC_REFRESH=refresh, SYNC_DEADLINE="30")
    assert (run.code, run.result["result"]) == (3, "failed"), run
    assert world.rows() == before and " ERROR warehouse: " in run.error and "trigger" in run.error, run


def test_fewer_rows_written_than_wanted_are_no_success(world):
    """All names agree, so that reading back finds nothing; but one athlete has no new stamp."""
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
    world.warehouse_has((BOB, "Bob Bowman"))
    with world.warehouse.changed(*trigger("BEFORE UPDATE", "RETURN NULL;")):
        run = world.sync()
    assert run.code == 3 and "1 of 2 rows were written" in run.error, run
    assert world.dimension() == {BOB: "Bob Bowman"}


def check_that(condition):
    return ("ALTER TABLE analytics.athlete_dim ADD CONSTRAINT odd CHECK (%s)" % condition,
            "ALTER TABLE analytics.athlete_dim DROP CONSTRAINT odd")


@pytest.mark.parametrize("change, words", [
    (check_that("full_name <> ''"), '"odd"'),
    (("CREATE RULE odd AS ON INSERT TO analytics.athlete_dim DO INSTEAD NOTHING",
      "DROP RULE odd ON analytics.athlete_dim"), "")], ids=["constraint", "rule"])
def test_one_row_refused_refuses_the_run(world, change, words):
    world.app_has((ANN, "Archer"), (BOB, ""))
    with world.warehouse.changed(*change):
        run = world.sync()
    assert (run.code, world.dimension()) == (3, {}) and words in run.error, run


def trigger_that(body):
    return trigger("BEFORE INSERT", body + " RETURN NEW;")


LEAKS = {
    "a trigger's words": trigger_that("RAISE EXCEPTION 'I do not like %', NEW.full_name;"),
    "a trigger's ASSERT": trigger_that("ASSERT NEW.full_name = '', NEW.full_name;"),
    "a trigger's syntax error": trigger_that("PERFORM to_tsquery(NEW.full_name);"),
    "a trigger's identifier": trigger_that("EXECUTE format('SELECT %I', NEW.full_name);"),
    "a trigger's cast": trigger_that("PERFORM NEW.full_name::regclass;"),
    "a trigger's borrowed code": trigger_that("RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = NEW.full_name;"),
    "a trigger's two rows": trigger_that("PERFORM (SELECT * FROM generate_series(1, 2));"),
    "a view's syntax error": view_of("uuid, to_tsquery(name)::text AS name"),
    "a view's table": view_of("uuid, name::regclass::text AS name"),
    "a view's role": view_of("uuid, name::regrole::text AS name"),
    "a CHECK": check_that("to_tsquery(full_name) IS NOT NULL"),
}


@pytest.mark.parametrize("change", list(LEAKS.values()), ids=list(LEAKS))
def test_an_error_that_may_quote_a_name_is_withheld(world, change):
    """Nor is a code of theirs taken for one of ours, such as that of an app which holds one uuid twice."""
    world.app_has((ANN, "Siobhan O'Brien & Smith ("))
    in_app = "VIEW" in change[0]
    with (world.app if in_app else world.warehouse).changed(*change):
        run = world.sync("-v", APP_TABLE="public.odd" if in_app else None)
    assert (run.code, world.dimension()) == (3, {}) and "withheld" in run.error, run
    assert "REINDEX" not in run.error and "GRANT" not in run.error, run
    assert "Brien" not in run.out + run.err + str(world.history())


@pytest.mark.parametrize("refresh", ["always", "never"])
def test_a_dimension_that_others_inherit_from_is_refused(world, refresh):
    """The comparison would see the child's athletes, the key would not, and each would be there twice."""
    world.app_has((ANN, "Archer"), (BOB, "Bowman"))
    world.warehouse_has((ANN, "Archer"))
    with world.warehouse.changed(
            "CREATE TABLE analytics.athlete_old () INHERITS (analytics.athlete_dim);"
            "INSERT INTO analytics.athlete_old VALUES ('%s', 'Bowman', now())" % BOB,
            "DROP TABLE analytics.athlete_old"):
        run = world.sync(SYNC_REFRESH=refresh)
        assert run.code == 3 and " ERROR warehouse: " in run.error and "inherit" in run.error, run
        world.warehouse.sql("ALTER TABLE analytics.athlete_old NO INHERIT analytics.athlete_dim")
        assert world.sync(SYNC_REFRESH=refresh).counts() == "2: 1 new, 1 unchanged"


@pytest.mark.parametrize("refresh", ["always", "never"])
def test_a_unique_index_that_lies_is_found_out(world, refresh):
    """As after a C library that sorts anew: the index calls itself unique, the table is not."""
    world.app_has((ANN, "Archer"), (ANN, "Ann Baker"))
    world.warehouse_has((ANN, "Archer"))
    with world.app.changed('CREATE INDEX lying ON public."User" (uuid)', "DROP INDEX public.lying"):
        world.app.sql("UPDATE pg_index SET indisunique = true WHERE indexrelid = 'public.lying'::regclass")
        run = world.sync(SYNC_REFRESH=refresh)
    assert run.code == 3 and "REINDEX TABLE" in run.err, run
    assert world.dimension() == {ANN: "Archer"}
