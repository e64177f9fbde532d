"""Names arrive byte for byte, whatever is in them and wherever a chunk of the stream ends."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
import uuid

import pytest

from conftest import ANN, BOB, database
from lab.servers import PROJECT

NAMES_FROM_HELL = [
    "O'Brien", '"quoted"', "''", '""', "tab\tin it", "\tfirst", "last\t", "line\nbreak", "\n", "\n\n",
    "ends in\n",
    "carriage\rreturn", "\r", "both\r\n", "\r\n", "back\\slash", "\\", "\\\\", "\\\\\\", "ends in\\",
    "\\.", "\\.\n", "\n\\.\n", "above\n\\.\nbelow", "a\\.", "\\N", "\\\\N", "\t\\N", "a\t\\N", "\n\\N",
    "\\N\\N", "N",
    "\\n", "\\t", "\\r", "\\x41", "\\101", "\\u0041", "NULL", "null", "nan", "NaN", "None", "NA", "N/A",
    "inf",
    "", " ", "   ", " leading", "trailing ", "1", "007", "1e5", "True", "=1+1", "@SUM(A1)", "-1", "+1",
    "; DROP TABLE public.\"User\"; --", "'); DELETE FROM analytics.athlete_dim; --", "$$", "$1", "%s",
    "%(name)s", "%%",
    "{}", "{dimension}", "a,b;c|d", "# no comment", "<b>&amp;</b>", "`id`", "$(id)",
    "Jose\u0301", "Jos\u00e9", "Z\u0351\u0306\u0318a\u0334\u0300l\u030cgo", "\u1112\u1161\u11ab",
    "\u0130\u0131\u017f\u00df",
    "\U0001f3c3\U0001f3fd\u200d\u2640\ufe0f", "\U0001f1e9\U0001f1ea", "\u05d3\u05df \u05e9",
    "\u202e\u0645\u062d\u0645\u062f\u202c",
    "\u738b\u5c0f\u660e", "\U0002070e", "\ufeffbom", "\u200b", "\u00a0", "\u2028", "\u0085", "\ufffd",
    "\ufffe", "\uffff",
    "\U0010ffff", "\x7f", "".join(map(chr, range(1, 32))),
] + [chr(code) for code in range(1, 32)]

NASTY_ALPHABETS = [
    "\\N\t\n\r.", "\\nrtbfvx01", "'\"`$%{}();-", " \t\n\x0b\x0c\r\x1c\x1d\x1e\x85\u2028", "abcXYZ019",
    "\u0300\u0301\u0327e\u0334", "\u05d0\u0627\u202e\u200f1", "\u738b\U0001f600\U0010ffff\u00e9a",
    "".join(map(chr, range(1, 128))), "".join(map(chr, range(0x2000, 0x2070))),
]


def generated_names(how_many):
    chance = random.Random(1)
    for _ in range(how_many):
        alphabet = chance.choice(NASTY_ALPHABETS)
        yield "".join(chance.choice(alphabet) for _ in range(chance.choice((1, 2, 3, 8, 30, 200))))


def numbered(names):
    return [(str(uuid.UUID(int=number)), name) for number, name in enumerate(names, 1)]


def fingerprints(side, table, uuid_column, name_column):
    return dict(side.sql("SELECT %s::text, md5(convert_to(%s, 'UTF8')) FROM %s"
                         % (uuid_column, name_column, table)))


def in_the_app(world):
    return fingerprints(world.app, 'public."User"', "uuid", "name")


def in_the_warehouse(world):
    return fingerprints(world.warehouse, "analytics.athlete_dim", "athlete_uuid", "full_name")


def check_that_all_arrive(world, rows):
    world.app_has(*rows)
    run = world.sync()
    assert (run.code, run.counts()) == (0, "%d: %d new" % (len(rows), len(rows))), run
    sent = {athlete: hashlib.md5(name.encode("utf-8")).hexdigest() for athlete, name in rows}
    assert in_the_app(world) == sent
    assert in_the_warehouse(world) == sent
    assert world.sync().counts() == "%d: %d unchanged" % (len(rows), len(rows))


@pytest.mark.parametrize("name", NAMES_FROM_HELL, ids=ascii)
def test_alone(world, name):
    """On its own a name is also the first and the last of the stream."""
    world.app_has((ANN, name))
    run = world.sync()
    assert (run.code, run.counts()) == (0, "1: 1 new"), run
    assert world.dimension() == {ANN: name}


def test_all_together(world):
    check_that_all_arrive(world, numbered(NAMES_FROM_HELL))


def test_two_thousand_generated(world):
    check_that_all_arrive(world, numbered(generated_names(2000)))


def test_renames_are_as_exact(world):
    names = NAMES_FROM_HELL + list(generated_names(300))
    rows = numbered(names)
    world.warehouse_has(*[(athlete, name + " ") for athlete, name in rows])
    world.app_has(*rows)
    assert world.sync(SYNC_MAX_UPDATED_PERCENT="100").counts() == "%d: %d renamed" % (len(rows), len(rows))
    assert in_the_warehouse(world) == in_the_app(world)


# Where chunks end. A line is 36 characters, a tab, the name and a newline.

CHUNK = 256 * 1024


@pytest.mark.parametrize("off_by", [-2, -1, 0, 1, 2, 38, 39, CHUNK - 1, CHUNK, CHUNK + 1])
def test_a_line_ends_at_or_beside_the_border(world, off_by):
    long_name = "n" * (CHUNK - 38 + off_by)
    check_that_all_arrive(world, numbered([long_name, "next", long_name, "", "last"]))


@pytest.mark.parametrize("character", ["\t", "\n", "\\", "\u00e9", "\U0001f600", "\\.\n"])
@pytest.mark.parametrize("shift", range(5))
def test_the_border_cuts_through_a_character(world, character, shift):
    name = "n" * shift + character * (CHUNK // 3)
    check_that_all_arrive(world, numbered([name, name, "last"]))


@pytest.mark.parametrize("megabytes", [1, 5])
def test_names_of_megabytes(world, megabytes):
    unit = "1 MB \u738b\t\\.\n'"
    name = unit * (megabytes * 1024 * 1024 // len(unit.encode("utf-8")))
    check_that_all_arrive(world, numbered(["first", name, "", name, "last"]))


def test_rejects_among_many_chunks(world):
    chance = random.Random(3)
    rows = numbered("".join(chance.choice("ab\t\\\n\u00e9") for _ in range(chance.randrange(200)))
                    for _ in range(20000))
    good, bad = dict(rows), 0
    for place in chance.sample(range(len(rows)), 500):
        athlete, name = rows[place]
        rows[place] = chance.choice([(None, name), (athlete, None), ("x" + athlete, name),
                                     (athlete[:-1], name)])
        del good[athlete]
        bad += 1
    rows += [("x", "n" * 2 * CHUNK), (None, "n" * CHUNK), (ANN, None)]
    world.app_has(*rows)
    run = world.sync()
    assert (run.code, run.counts()) == (0, "%d: %d new, %d rejected" % (len(rows), len(good), bad + 3))
    assert world.dimension() == good


# Databases that are not UTF-8


@pytest.fixture
def app_in(world, lab):
    """Make an app database in another encoding, with these lines of SQL for its rows."""
    with contextlib.ExitStack() as made:
        def make(encoding, *inserts):
            name = made.enter_context(database(lab.app, encoding.lower(), encoding))
            lab.app.psql("-qc", 'CREATE TABLE public."User" (uuid TEXT, name TEXT)', database=name)
            lab.app.psql("-q", stdin=";".join(("SET client_encoding = SQL_ASCII",) + inserts), database=name)
            lab.app.psql("-f", str(PROJECT / "sql" / "app_readonly.sql"), database=name)
            return name
        yield make


def test_an_app_in_latin1(world, app_in):
    database = app_in("LATIN1", "INSERT INTO public.\"User\" VALUES ('%s', E'Jos\\xe9')" % ANN)
    assert world.sync(APP_DB=database).counts() == "1: 1 new"
    assert world.dimension() == {ANN: "Jos\u00e9"}


def test_an_app_in_any_bytes_loses_only_what_is_not_utf8(world, app_in):
    good, bad = numbered(["Jos\u00e9 Ibarra", "not UTF-8"])
    database = app_in(
        "SQL_ASCII", "INSERT INTO public.\"User\" VALUES ('%s', E'Jos\\xc3\\xa9 Ibarra')" % good[0],
        "INSERT INTO public.\"User\" VALUES ('%s', E'Jos\\xe9')" % bad[0],
        "INSERT INTO public.\"User\" VALUES (E'\\xff', 'Bob Bowman')",
        "INSERT INTO public.\"User\""
        " SELECT md5(i::text)::uuid, 'Ann Archer' FROM generate_series(1, 9000) AS i")
    run = world.sync(APP_DB=database)
    assert (run.code, run.counts()) == (0, "9003: 9001 new, 2 rejected"), run
    assert world.dimension()[good[0]] == good[1]
    assert [reject["reason"] for reject in run.result["rejects"]] == ["not valid UTF-8"] * 2
    assert bad[0] in [reject["uuid"] for reject in run.result["rejects"]]


def test_a_known_athlete_whose_name_is_not_utf8_is_rejected_and_not_missing(world, app_in):
    database = app_in(
        "SQL_ASCII", "INSERT INTO public.\"User\" VALUES ('%s', E'Jos\\xe9')" % ANN,
        "INSERT INTO public.\"User\" VALUES ('%s', 'Bob Bowman')" % BOB)
    world.warehouse_has((ANN, "Jos\u00e9"), (BOB, "Bob Bowman"))
    assert world.sync(APP_DB=database).counts() == "2: 1 unchanged, 1 rejected"
    assert world.dimension() == {ANN: "Jos\u00e9", BOB: "Bob Bowman"}


def test_a_refusal_in_any_bytes_is_understood(world, app_in):
    """As from a server that speaks German in Latin 1; what can be read of it says what is wrong."""
    if world.app.connection.server_version < 170000:
        pytest.skip("PostgreSQL 17 brought triggers on login, with which this server says what we like")
    database = app_in("SQL_ASCII", """
        CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM set_config('client_encoding', 'SQL_ASCII', false);  -- else the server would see to it
            IF session_user = 'app_readonly' THEN RAISE EXCEPTION E'password f\\xfcr wen?'; END IF;
        END $$;
        CREATE EVENT TRIGGER refuse ON login EXECUTE FUNCTION refuse();
        ALTER EVENT TRIGGER refuse ENABLE ALWAYS""")
    run = world.sync(APP_DB=database)
    assert run.code == 2, run
    if sys.version_info < (3, 11):  # psycopg2 then raises an error without a word
        assert " ERROR app: the connection failed: its words are not UTF-8 text. " in run.error, run
    else:
        assert " ERROR app: the login was refused: " in run.error, run
        assert "password f\ufffdr wen?" in run.error and "APP_PASSWORD" in run.error, run


def test_a_warehouse_that_cannot_hold_a_name_refuses_the_run(world, lab):
    world.app_has((ANN, "\u738b\u5c0f\u660e\u738b\u5c0f\u660e"))
    with database(lab.warehouse, "western", "LATIN1"):
        lab.warehouse.psql("-f", str(PROJECT / "sql" / "warehouse_setup.sql"), database="western")
        run = world.sync(WH_DB="western")
    assert run.code == 3 and "encoding" in run.error and "warehouse" in run.error, run
