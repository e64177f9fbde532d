"""Names arrive byte for byte, whatever is in them and wherever a chunk of the stream ends."""

from __future__ import annotations

import contextlib
import hashlib
import random
import uuid

import psycopg2
import pytest
from conftest import ANN, database
from lab.servers import PROJECT, READER_PASSWORD

NAMES_FROM_HELL = [
    "O'Brien", '"quoted"', "''", '""', "tab\tin it", "\tfirst", "last\t", "line\nbreak", "\n", "\n\n", "ends in\n",
    "carriage\rreturn", "\r", "both\r\n", "\r\n", "back\\slash", "\\", "\\\\", "\\\\\\", "ends in\\", "\\.", "\\.\n",
    "\n\\.\n", "above\n\\.\nbelow", "a\\.", "\\N", "\\\\N", "\t\\N", "a\t\\N", "\n\\N", "\\N\\N", "N", "\\n", "\\t",
    "\\r", "\\x41", "\\101", "\\u0041", "NULL", "null", "nan", "NaN", "None", "NA", "N/A", "inf", "", " ", "   ",
    " leading", "trailing ", "1", "007", "1e5", "True", "=1+1", "@SUM(A1)", "-1", "+1",
    "; DROP TABLE public.\"User\"; --", "'); DELETE FROM analytics.athlete_dim; --", "$$", "$1", "%s", "%(name)s",
    "%%", "{}", "{dimension}", "a,b;c|d", "# no comment", "<b>&amp;</b>", "`id`", "$(id)", "Jose\u0301", "Jos\u00e9",
    "Z\u0351\u0306\u0318a\u0334\u0300l\u030cgo", "\u1112\u1161\u11ab", "\u0130\u0131\u017f\u00df",
    "\U0001f3c3\U0001f3fd\u200d\u2640\ufe0f", "\U0001f1e9\U0001f1ea", "\u05d3\u05df \u05e9",
    "\u202e\u0645\u062d\u0645\u062f\u202c", "\u738b\u5c0f\u660e", "\U0002070e", "\ufeffbom", "\u200b", "\u00a0",
    "\u2028", "\u0085", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\x7f", "".join(map(chr, range(1, 32))),
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


def check_that_all_arrive(world, rows, counted="new"):
    world.app_has(*rows)
    run = world.sync(SYNC_MAX_CHANGED_PERCENT="100")
    assert (run.code, run.counts()) == (0, "%d: %d %s" % (len(rows), len(rows), counted)), run
    sent = {athlete: hashlib.md5(name.encode("utf-8")).hexdigest() for athlete, name in rows}
    for side, athlete, name, table in ((world.app, "uuid", "name", 'public."User"'),
                                       (world.warehouse, "athlete_uuid", "full_name", "analytics.athlete_dim")):
        assert sent == dict(side.sql("SELECT %s::text, md5(convert_to(%s, 'UTF8')) FROM %s" % (athlete, name, table)))
    assert world.sync().counts() == "%d: %d unchanged" % (len(rows), len(rows))


@pytest.mark.parametrize("name", NAMES_FROM_HELL, ids=ascii)
def test_alone_and_so_first_and_last(world, name):
    world.app_has((ANN, name))
    run = world.sync()
    assert (run.code, run.counts(), world.dimension()) == (0, "1: 1 new", {ANN: name}), run


@pytest.mark.parametrize("counted", ["new", "renamed"])
def test_two_thousand_together(world, counted):
    rows = numbered(NAMES_FROM_HELL + list(generated_names(2000)))
    world.warehouse_has(*[(athlete, name + " ") for athlete, name in rows if counted == "renamed"])
    check_that_all_arrive(world, rows, counted)


# Where chunks end. A line is 36 characters, a tab, the name and a newline.

CHUNK = 256 * 1024


@pytest.mark.parametrize("start, character", [
    (CHUNK - 38 + off_by, "") for off_by in (-2, -1, 0, 1, 2, 38, 39, CHUNK - 1, CHUNK, CHUNK + 1)
] + [(shift, character) for shift in range(5) for character in ("\t", "\n", "\\", "\u00e9", "\U0001f600", "\\.\n")])
def test_a_chunk_may_end_anywhere(world, start, character):
    name = "n" * start + character * (CHUNK // 3)
    check_that_all_arrive(world, numbered([name, "next", name, "", "last"]))


def test_names_of_megabytes(world):
    unit = "1 MB \u738b\t\\.\n'"
    names = [unit * (megabytes * 1024 * 1024 // len(unit.encode("utf-8"))) for megabytes in (1, 5)]
    check_that_all_arrive(world, numbered(["first", names[0], "", names[1], names[1], "last"]))


def test_rejects_among_many_chunks(world):
    chance = random.Random(3)
    rows = numbered("".join(chance.choice("ab\t\\\n\u00e9") for _ in range(chance.randrange(200)))
                    for _ in range(20000))
    good = dict(rows)
    for place in chance.sample(range(len(rows)), 500):
        athlete, name = rows[place]
        rows[place] = chance.choice([(None, name), (athlete, None), ("x" + athlete, name), (athlete[:-1], name)])
        del good[athlete]
    rows += [("x", "n" * 2 * CHUNK), (None, "n" * CHUNK), (ANN, None)]
    world.app_has(*rows)
    assert world.sync().counts() == "%d: %d new, 503 rejected" % (len(rows), len(good))
    assert world.dimension() == good


@contextlib.contextmanager
def app_in(lab, encoding, *statements):
    """An app's database in another encoding, filled byte for byte."""
    with database(lab.app, encoding.lower(), encoding) as name:
        lab.app.psql("-qc", 'CREATE TABLE public."User" (uuid TEXT, name TEXT)', database=name)
        lab.app.psql("-q", stdin=";".join(("SET client_encoding = SQL_ASCII",) + statements), database=name)
        lab.app.psql("-f", str(PROJECT / "sql" / "app_readonly.sql"), database=name)
        yield name


def test_a_side_in_latin1(world, lab):
    with app_in(lab, "LATIN1", "INSERT INTO public.\"User\" VALUES ('%s', E'Jos\\xe9')" % ANN) as name:
        assert world.sync(APP_DB=name).counts() == "1: 1 new"
    assert world.dimension() == {ANN: "Jos\u00e9"}
    world.app_has((ANN, "\u738b\u5c0f\u660e\u738b\u5c0f\u660e"))
    with database(lab.warehouse, "western", "LATIN1"):
        lab.warehouse.psql("-f", str(PROJECT / "sql" / "warehouse_setup.sql"), database="western")
        run = world.sync(WH_DB="western")
    assert run.code == 3 and "encoding" in run.error and " ERROR warehouse: " in run.error, run


def test_rows_that_are_not_utf8_are_rejected_and_not_missing(world, lab):
    """As an old dump left them in a database that says UTF8; the name in a chunk that has no other fault."""
    world.warehouse_has((ANN, "Jos\u00e9"))
    insert = 'INSERT INTO public."User" '
    with app_in(lab, "SQL_ASCII", insert + "VALUES ('%s', E'Jos\\xe9')" % ANN,
                insert + "SELECT md5(n::text)::uuid, E'Jos\\xc3\\xa9' FROM generate_series(1, 9000) AS n",
                insert + "VALUES (E'4711\\xff', 'Bowman')",
                insert + 'SELECT * FROM public."User" WHERE length(name) = 5 LIMIT 5000',
                "UPDATE pg_database SET encoding = pg_char_to_encoding('UTF8') WHERE datname = 'sql_ascii'") as name:
        run = world.sync(APP_DB=name)
    assert (run.code, run.counts()) == (0, "14002: 9000 new, 2 rejected, 5000 repeated"), run
    assert set(world.dimension().values()) == {"Jos\u00e9"}
    rejects = {reject["reason"]: reject["uuid"] for reject in world.history()[-1]["rejects"]}
    assert rejects == {"name is not UTF-8": ANN, "uuid is not a uuid": "(not shown)"}


def test_a_refusal_in_any_bytes_is_understood(world, lab):
    """As from a server that speaks German in Latin 1; what can be read of it says what is wrong."""
    if world.app.version() < 17:
        pytest.skip("PostgreSQL 17 brought triggers on login, with which this server says what we like")
    with app_in(lab, "SQL_ASCII", """
            CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM set_config('client_encoding', 'SQL_ASCII', false);  -- else the server would see to it
                IF session_user = 'app_readonly' THEN RAISE EXCEPTION E'password f\\xfcr wen?'; END IF;
            END $$;
            CREATE EVENT TRIGGER refuse ON login EXECUTE FUNCTION refuse();
            ALTER EVENT TRIGGER refuse ENABLE ALWAYS""") as name:
        run = world.sync(APP_DB=name)
        with pytest.raises((psycopg2.Error, UnicodeDecodeError)) as told:
            psycopg2.connect(host="127.0.0.1", port=lab.app.port, dbname=name, user="app_readonly",
                             password=READER_PASSWORD)
    assert run.code == 2 and " ERROR app: " in run.error, run
    if str(told.value):  # with some Pythons, such as 3.11.2, psycopg2 passes no word on
        assert "password f\ufffdr wen?" in run.error and "APP_PASSWORD" in run.error, run
