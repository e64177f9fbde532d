"""What happens to people who do this job: a run does what is right, or says what is wrong and changes nothing.

Each table holds the shapes of one kind of trouble. Of what other files test too, only what they lack is here.
"""

from __future__ import annotations

import ast
import copy
import itertools
import os
import re
import sys
from contextlib import ExitStack, contextmanager

import pytest
from conftest import (ANN, BOB, CAT, HISTORY, HOLD_THE_LOCK, TABLE, Side, arguments, database, empty,
                      empty_world, finish, run_in_process, trigger)
from lab.servers import NEEDS_ITS_OWN, PROJECT, SCRIPT, Lab, named
from pings import TOKEN, ping_server
from standby import standby_of
from test_names import app_in

OLD = [(ANN, "Ann Archer"), (BOB, "Bob Bowman"), (CAT, "Cat Cooper")]
MANY = [("00000000-0000-4000-8000-%012d" % number, "Athlete %d" % number) for number in range(60)]
LOOKS = [(), ("--check",), ("--status",)]
UNIQUE = 'ALTER TABLE public."User" ADD CONSTRAINT one UNIQUE (uuid)', 'ALTER TABLE public."User" DROP CONSTRAINT one'


def looks_like(run, code, *words):
    """A run that ends in this code, and whose last line on stderr, or warnings, has these words."""
    lines = (run.err + run.out).splitlines()
    said = run.error if code else "\n".join(line for line in lines if " WARNING " in line)
    assert run.code == code and all(re.search(word, said) for word in words), run


def refused_early(world, *flags, **settings):
    """Run main() where it comes to no database."""
    nowhere = {"SYNC_CONNECT_ATTEMPTS": "1", "APP_PORT": "1", "WH_PORT": "1"}
    return run_in_process(world.script, arguments(flags), world.environment(dict(nowhere, **settings)))


# Row-level security on the source: what it shows, and what must be said
POLICY = "row-level security|polic(y|ies)"
ONE = "CREATE POLICY one ON odd.t USING (name LIKE 'Ann%');"
ALL = "CREATE POLICY whole ON odd.t TO app_readonly USING (true);"
VIEW = "CREATE VIEW odd.seen AS SELECT uuid, name FROM odd.t; GRANT SELECT ON odd.seen TO app_readonly;"
INVOKER = VIEW.replace(" AS", " WITH (security_invoker = true) AS")
POLICIES = {  # which, and how many athletes they show; 0 is refused, less than all is warned of
    "none": ("", 0),
    "on a setting that nobody sets": ("CREATE POLICY one ON odd.t USING (current_setting('a.b', true) = '1')", 0),
    "for another role": ("CREATE POLICY whole ON odd.t TO coaches USING (true)", 0),
    "to write, not to read": ("CREATE POLICY whole ON odd.t FOR UPDATE USING (true)", 0),
    "forced on the owner": ("ALTER TABLE odd.t FORCE ROW LEVEL SECURITY, OWNER TO app_readonly", 0),
    "a view that reads as its reader": (INVOKER, 0),
    "a view as its owner": (VIEW + "GRANT SELECT ON odd.t TO coaches; ALTER VIEW odd.seen OWNER TO coaches", 0),
    "on a partition": (
        "CREATE TABLE odd.whole (uuid text, name text) PARTITION BY LIST (uuid);"
        "CREATE TABLE odd.seen PARTITION OF odd.whole DEFAULT; INSERT INTO odd.whole TABLE odd.t;"
        "GRANT SELECT ON odd.seen TO app_readonly; ALTER TABLE odd.seen ENABLE ROW LEVEL SECURITY", 0),
    "one row through a function": (
        ONE + "CREATE FUNCTION odd.rows() RETURNS SETOF odd.t LANGUAGE plpgsql AS"
        " 'BEGIN RETURN QUERY SELECT * FROM odd.t; END';" + VIEW.replace("FROM odd.t", "FROM odd.rows()"), 0),
    "one row": (ONE, 1), "one row through a view that reads as its reader": (ONE + INVOKER, 1),
    "all, but restricted": (ALL + "CREATE POLICY less ON odd.t AS RESTRICTIVE USING (name LIKE 'Ann%')", 1),
    "all, it only looks so": ("CREATE POLICY whole ON odd.t USING (true AND name LIKE 'Ann%')", 1),
    "all": (ALL, 3), "all, for everybody, beside one": (ONE + "CREATE POLICY whole ON odd.t USING (true)", 3),
    "all, for a role it is in": (
        "GRANT coaches TO app_readonly; CREATE POLICY whole ON odd.t FOR SELECT TO coaches USING (true)", 3),
    "restricted for others": (ALL + "CREATE POLICY less ON odd.t AS RESTRICTIVE TO coaches USING (false)", 3),
    "bypassed": ("ALTER ROLE app_readonly BYPASSRLS", 3), "a view that reads as a superuser": (VIEW, 3),
}
SECURED = "CREATE SCHEMA odd; CREATE ROLE coaches; GRANT USAGE ON SCHEMA odd TO app_readonly, coaches;" \
          'CREATE TABLE odd.t AS SELECT uuid, name FROM public."User"; GRANT SELECT ON odd.t TO app_readonly;' \
          "ALTER TABLE odd.t ENABLE ROW LEVEL SECURITY;"
UNSECURED = "DROP SCHEMA odd CASCADE; ALTER ROLE app_readonly NOBYPASSRLS; DROP ROLE coaches"


@pytest.mark.parametrize("policies, shown", list(POLICIES.values()), ids=list(POLICIES))
def test_row_level_security_never_hides_athletes_in_silence(world, policies, shown):
    world.app.needs(policies, security_invoker=15, RESTRICTIVE=10, PARTITION=11)
    world.app_has(*OLD)
    world.warehouse_has(*OLD)
    with world.app.changed(SECURED + policies, UNSECURED):
        source = "odd.seen" if "odd.seen" in policies else "odd.t"
        runs = [world.sync(*flags, APP_TABLE=source) for flags in ((), ("--check",), ("--incremental",))]
    for run in runs:
        looks_like(run, *{0: (3, POLICY, "BYPASSRLS"), 1: (0, POLICY), 3: (0, "(?s)^(?!.*(%s))" % POLICY)}[shown])
        assert not shown or run.counts() == {1: "1: 1 unchanged, 2 missing", 3: "3: 3 unchanged"}[shown], run
    assert len(world.stamped()) == shown


# Bytes that are not UTF-8 in a database that says UTF8, as an old dump restored brings them
BROKEN = [r"Ren\351", r"\303", r"\300\200", r"\355\240\200", r"a\364\220\200\200b", r"\377\tx\n\\"]
SAY_UTF8 = "UPDATE pg_database SET encoding = 6 WHERE datname = current_database()"


def test_names_that_are_not_utf8_are_rejected_alone_shown_somehow_and_mended(world):
    theirs = ", ".join("('%s', E'%s')" % (row[0], name) for row, name in zip(MANY, BROKEN + [r"Bob\tBr\303\266\n"]))
    ours = "('%s', E'Ren\\351', now()), ('%s', E'Zo\\353', now());" % (MANY[6][0], MANY[7][0])
    setup = (PROJECT / "sql" / "warehouse_setup.sql").read_text(encoding="utf-8")
    with app_in(world.lab, "SQL_ASCII", 'INSERT INTO public."User" VALUES ' + theirs, SAY_UTF8) as app, \
            database(world.lab.warehouse, "mixed", "SQL_ASCII") as warehouse:
        world.lab.warehouse.psql("-q", database=warehouse, stdin="SET client_encoding = SQL_ASCII;" + setup
                                 + "INSERT INTO analytics.athlete_dim VALUES " + ours + SAY_UTF8)
        runs = [world.run(*flags, "--diff", APP_DB=app, WH_DB=warehouse) for flags in (["--dry-run"], [], [])]
    for run, counts in zip(runs, ("updated=1 unchanged=0", "updated=1 unchanged=0", "updated=0 unchanged=1")):
        assert run.code == 0 and counts + " missing=1 rejected=6" in run.out, run
        renamed, missing = "~ %s Ren" % MANY[6][0] in run.out, "- %s Zo" % MANY[7][0] in run.out
        assert (renamed, missing) == ("updated=1" in counts, True), run


# An older app: a replica that lags, or a copy of yesterday; and one that was emptied
def test_an_older_app_never_takes_names_back(world):
    world.app_has((ANN, "Ann Archer"))
    with standby_of(world.lab.app, "lagging") as lagging:
        standby, behind = Side(lagging), dict(APP_PORT=str(lagging.port))
        assert world.sync(**behind).code == 0
        standby.sql("SELECT pg_wal_replay_pause()")
        world.app.sql('UPDATE public."User" SET name = %s', "Ann Anders")
        assert world.sync().counts() == "1: 1 renamed"
        for flags in (("--incremental",), ("--check",), ("--allow-changes", "9"), ()):
            run = world.sync(*flags, **behind)
            looks_like(run, 3, "older", "replica", "backup")
        looks_like(world.sync("--dry-run", **behind), 0, "older")
        world.warehouse.sql(re.search(r"\b(UPDATE|DELETE) .*?;", run.error).group())  # as if it were a backup
        assert [world.sync(**where).counts() for where in (behind, {})] == 2 * ["1: 1 renamed"]
        standby.sql("SELECT pg_wal_replay_resume()")
        lagging.control("pg_ctl", "-D", lagging.data, "-w", "promote")
        for _ in range(99):
            world.app.sql("SELECT txid_current()")
        assert world.sync().code == 0
        standby.sql('UPDATE public."User" SET name = %s', "Ann Atkins")
        run = world.sync("--incremental", **behind)  # a new timeline: what it holds is the app now
        assert (run.code, run.counts(), run.result["mode"]) == (0, "1: 1 renamed", "full"), run


def test_an_app_that_was_emptied_is_told_of_by_runs_that_see_nothing_new(world):
    with world.app.changed(*UNIQUE):
        world.app_has(*OLD)
        world.sync()
        world.app.sql('TRUNCATE public."User"')
        for flags in (("--incremental",), ("--incremental", "--check"), ()):
            looks_like(world.sync(*flags), 0, "is empty")


# The dimension is not what the sync needs: found before the app is opened, whatever SYNC_REFRESH is
CAST = "); CREATE CAST (text AS uuid) WITH INOUT AS IMPLICIT"
ONE_ROW = "one row (an|per|for each) athlete"
DIMENSIONS = {  # the key's type, all behind the columns, and what is said
    "text, which the database casts": ("text PRIMARY KEY", CAST, ""),
    "a domain over a domain over uuid": ("odd.key2 PRIMARY KEY", ")", None),
    "no key": ("uuid", ")", ONE_ROW), "a key that is checked at the end": ("uuid PRIMARY KEY DEFERRABLE", ")", ""),
    "a history with is_current": ("uuid", ", is_current bool DEFAULT true);"
                                  "CREATE UNIQUE INDEX ON odd.dim (athlete_uuid) WHERE is_current", ONE_ROW),
    "a history by date": ("uuid", ", since date DEFAULT now(), PRIMARY KEY (athlete_uuid, since))", ONE_ROW),
    "a view of a history": ("uuid PRIMARY KEY", "); ALTER TABLE odd.dim RENAME TO every;"
                            "CREATE VIEW odd.dim AS SELECT * FROM odd.every WHERE full_name LIKE 'Ann%'", ""),
}
MAKE_DIMENSION = "CREATE SCHEMA odd; CREATE DOMAIN odd.key AS uuid; CREATE DOMAIN odd.key2 AS odd.key;" \
    "CREATE TABLE odd.dim (athlete_uuid {}, full_name text, source_synced_at timestamptz DEFAULT '2020-01-01'{};" \
    "INSERT INTO odd.dim VALUES ('{}', 'Ann Archer'), ('{}', 'Bob B.');" \
    "GRANT USAGE ON SCHEMA odd TO warehouse_writer; GRANT SELECT, INSERT, UPDATE ON odd.dim TO warehouse_writer"


@pytest.mark.parametrize("key, more, words", list(DIMENSIONS.values()), ids=list(DIMENSIONS))
def test_a_dimension_that_cannot_hold_one_row_an_athlete_is_refused(world, key, more, words, monkeypatch):
    world.app_has((ANN.upper(), "Ann Archer"), (BOB, "Bob Bowman"))
    monkeypatch.setattr(world.warehouse, "snapshot", lambda leaving_out: None)  # the view's table is none beside it
    with world.warehouse.changed(MAKE_DIMENSION.format(key, more, ANN, BOB),
                                 "DROP SCHEMA odd CASCADE; DROP CAST IF EXISTS (text AS uuid)"):
        before = world.warehouse.sql("SELECT dim::text FROM odd.dim")
        runs = [world.sync(*flags, WH_TABLE="odd.dim", SYNC_REFRESH=refresh) for refresh, *flags in (
            ("always", "--check"), ("never", "--diff"), ("never",), ("always",))]
        if words is None:
            assert [run.counts() for run in runs] == 2 * ["2: 1 renamed, 1 unchanged"] + 2 * ["2: 2 unchanged"], runs
            return
        if "DEFERRABLE" not in key and "VIEW" not in more:  # which a write alone finds out
            runs.append(world.sync(WH_TABLE="odd.dim", SYNC_CONNECT_ATTEMPTS="1", APP_PORT="1"))
        for run in runs:
            looks_like(run, 3, " ERROR warehouse: ", words, "^((?!REINDEX).)*$")
        assert world.warehouse.sql("SELECT dim::text FROM odd.dim") == before


# The wrong database: the athletes of another, under other uuids
def test_athletes_are_not_replaced_by_those_of_another_database(world):
    world.warehouse_has(*MANY[:30])
    world.app_has(*(("f" + uuid[1:], name) for uuid, name in MANY[:30]))
    for flags in (("--check",), (), ("--allow-changes", "29")):
        looks_like(world.sync(*flags), 3, "30 of 30 athletes would be renamed or replaced", "--allow-changes 30")
    assert world.sync("--allow-changes", "30").counts() == "30: 30 new, 30 missing"
    traced = "SELECT count(*) FROM analytics.athlete_dim, %s WHERE run_id = 3" \
        " AND source_synced_at BETWEEN started_at AND finished_at" % HISTORY  # by its stamp, as the page says
    assert world.warehouse.value(traced) == 30 and re.search(r"(?m)^ *3 ", world.run("--status").out)


# What an administrator has set for the roles: the run is the same
DEFAULTS = """
default_transaction_isolation = 'serializable' | default_transaction_deferrable = on | row_security = off
search_path = '' | search_path = analytics | DateStyle = 'SQL, DMY' | IntervalStyle = 'iso_8601' | lock_timeout = 1
TimeZone = 'Asia/Kathmandu' | standard_conforming_strings = off | synchronous_commit = off | bytea_output = 'escape'
quote_all_identifiers = on | client_encoding = 'LATIN1' | client_min_messages = error
""".strip().replace("\n", " | ").split(" | ")
DURABLE = trigger("BEFORE UPDATE OR INSERT", """
    ASSERT session_user <> 'warehouse_writer' OR current_setting('synchronous_commit') <> 'off'
       AND current_setting('transaction_isolation') = 'read committed'; RETURN new;""")


def story(world):
    """What each kind of run says and leaves, without its times."""
    empty(world.app, world.warehouse)
    world.app_has((ANN.upper(), "Ann\\Anders"), (BOB, "B'ob\\n"), (CAT, "\t\"Çat\" "), (CAT.upper(), None), ("'", ""))
    world.warehouse_has((ANN, "Ann Archer"), (BOB, "B'ob\\n"))
    said = []
    for flag, refresh in (("--check", "always"), ("--diff", "always"), ("-q", "12h"), ("--incremental", "never"),
                          ("--strict", "always"), ("--status", "always")):
        run = run_in_process(world.script, arguments([flag]), world.environment({"SYNC_REFRESH": refresh}))
        said.append((run.code, re.sub(r"\d+", "0", run.out), re.sub(r"\d+", "0", run.err)))
    return said, world.dimension(), world.ends(), [row[1:] for row in world.renames()]


@pytest.mark.parametrize("default", DEFAULTS)
def test_the_defaults_of_a_role_change_nothing(world, default, usual={}):
    change, undo = "ALTER ROLE %s SET " + default, "ALTER ROLE %s RESET " + default.split()[0]
    with world.warehouse.changed(*DURABLE):
        usual["story"] = usual.get("story") or story(world)
        with world.app.changed(change % "app_readonly", undo % "app_readonly"), \
                world.warehouse.changed(change % "warehouse_writer", undo % "warehouse_writer"):
            assert story(world) == usual["story"] and usual["story"][0][1][0] == 0, usual


# Another writer beside the run, who has not committed when it compares
@pytest.mark.parametrize("statements", [
    "INSERT INTO {d} VALUES ('%s', 'Cat')" % CAT, "UPDATE {d} SET full_name = 'X'", "DELETE FROM {d}",
    "DELETE FROM {d}; INSERT INTO {d} VALUES ('%s', 'X')" % ANN])
def test_counts_add_up_beside_another_writer(world, statements):
    world.app_has(*OLD)
    world.warehouse_has(*OLD[:2])
    with world.warehouse.holding(statements.replace("{d}", TABLE["warehouse"])) as other:
        process = world.start("--json")
        world.warehouse.wait_until_a_run_waits_for_a_lock()
        other.connection.commit()
        run = finish(process)
    assert (run.code, run.counts(), world.dimension()) == (0, "3: 1 new, 2 unchanged", dict(OLD)), run


# A stall in the warehouse is no lock in the app
@pytest.mark.parametrize("stall, flags", [
    ("LOCK TABLE %s IN ACCESS EXCLUSIVE MODE" % TABLE["warehouse"], ["--check"]),
    ("LOCK TABLE %s IN ACCESS EXCLUSIVE MODE" % HISTORY, ["--incremental"]),
    ("UPDATE analytics.athlete_dim SET full_name = full_name", [])])
def test_while_the_warehouse_stalls_the_app_is_free(world, stall, flags):
    world.app_has(*OLD)
    world.warehouse_has((ANN, "Ann Before"))
    with world.warehouse.holding(stall):
        process = world.start(*flags)
        world.warehouse.wait_until_a_run_waits_for_a_lock()
        with world.app.holding("SET LOCAL lock_timeout = 1000", "LOCK TABLE " + TABLE["app"]) as migration:
            assert not migration.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'app_readonly'")
    assert finish(process).code == 0


# .env: what says nothing, and what is nobody's business
SAYS_NOTHING = """
WH_TABLE analytics.other | WH_TABLE: x | set WH_TABLE=x | $env:WH_TABLE = "x" | WH_TABLE | export WH_TABLE | = x
export export WH_TABLE=x | wh_table=x | WH_TABEL=x | WH_TABLE_=x | WH-TABLE=x | wh.table=x | WH_TABLE="a"b | app_table=x
"WH_TABLE=x" | APP_TABEL=x | APP_NAMECOLUMN=x | APP-TABLE=x | APP_HSOT=x | APP_PASSWD=x | SYNC_REFERSH=never
SYNC_STRICT=1 | [warehouse] | <<<<<<< HEAD | // a comment | \ufeffWH_TABLE=x | WH_TABLE\u2009=x
""".strip().replace("\n", " | ").split(" | ")
IS_FINE = ["# a comment", "  \t", "", "export SYNC_REFRESH=never", "PGHOST=elsewhere", "dotted.name=1", "WHERE=x",
           "SYNCHRONOUS=x", 'OTHER="two\nlines"', "SYNC_PING_URL=", "\u00a0SYNC_REFRESH=never"]
IS_FINE += ["APP_%s=1" % name for name in "ROOT HOME ENV KEY NAME URL SECRET DEBUG ID PASS USER_ID BASE_URL".split()]


def in_file(tmp_path, *lines):
    (tmp_path / "settings.env").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "--env-file", str(tmp_path / "settings.env")


@pytest.mark.parametrize("lines", [SAYS_NOTHING, ['WH_TABLE="x'], ["WH_TABLE='x"], ["WH_TABLE='x' or so"]], ids=str)
def test_a_line_that_says_nothing_is_a_problem_with_its_number(world, tmp_path, lines):
    file = in_file(tmp_path, "# settings", "", *lines, "APP_PASSWORD hunter22", "APP_SECRET_KEY='hunter22")
    for flags in LOOKS:
        run = refused_early(world, *file, *flags)
        told = set(map(int, re.findall(r"\bline (\d+)", run.err + run.out)))
        assert run.code == 1 and set(range(3, 3 + len(lines))) <= told and not told & {1, 2}, run
        assert "hunter22" not in run.err + run.out, run


def test_lines_that_are_nobodys_business_stay_so(world, tmp_path):
    world.app_has(*OLD)
    world.warehouse_has(*OLD)
    elsewhere = dict.fromkeys(["APP_ID", "WH_PORT_5432_TCP", "SYNC_SERVICE_HOST"], "1")
    assert world.run(*in_file(tmp_path, *IS_FINE), **elsewhere).code == 0 and not world.stamped()


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="needs bash")
@pytest.mark.parametrize("command", ['exec "$@" --env-file <(cat "$ENV")', 'cat "$ENV" | "$@" --env-file /dev/stdin'])
def test_settings_that_can_be_read_once(world, tmp_path, command):
    for flags in ((), ("--check",)):
        bash = ["/bin/bash", "-c", command, "bash", sys.executable, str(SCRIPT)]
        run = finish(world.start(*flags, command=bash, env_file=None, ENV=in_file(tmp_path, "WH_TABLE=b.c")[1]))
        assert run.code == 3 and "b.c" in run.err + run.out, run


# A CA file that is not there, where libpq would connect unverified; relative means from the project
@pytest.mark.parametrize("name, file, mode, code", [("_SSLROOTCERT",) + one for one in (
    ("/nowhere/ca.crt", "prefer", 1), ("ca.crt", "verify-full", 1), ("~/ca.crt2", None, 1), ("python", "require", 1),
    ("~nobody-of-this-name/ca.crt", None, 1), ("-----BEGIN CERTIFICATE-----" * 20, None, 1),
    ("README.md", "prefer", 2), ("system", "verify-full", 2))] + [("PGSSLROOTCERT", "/nowhere/ca.crt", "require", 1),
    ("_DATABASE_URL", "postgresql://role@127.0.0.1:1/app?sslrootcert=/nowhere/ca.crt", None, 1)])
def test_a_ca_file_that_is_not_there(world, tmp_path, monkeypatch, name, file, mode, code):
    (tmp_path / "ca.crt").touch()
    monkeypatch.chdir(tmp_path)
    for prefix, flags in (("APP", []), ("WH", []), ("WH", ["--check"])):
        five = {prefix + "_" + word: None for word in "HOST PORT DB USER PASSWORD".split() if "URL" in name}
        tls = {prefix * name.startswith("_") + name: file, prefix + "_SSLMODE": mode}
        run = refused_early(world, *flags, HOME=str(tmp_path), **five, **tls)
        assert run.code == code and (name + " (environment) names" in run.err + run.out) == (code == 1), run


# The ping's URL: the event is the last part of its path
@pytest.mark.parametrize("told", ["/{e}", "/slug/{e}?new=1&next=/a/", "/slug/{e}?status=up"])
def test_the_event_is_the_last_part_of_the_path(world, told):
    with ping_server() as server:
        runs = [world.run(SYNC_PING_URL=server.url + told.replace("/{e}", slash), **more) for slash, more in (
            ("", {}), ("/", {"WH_TABLE": "a.b"}), ("#fragment", {}), ("/#", {}), ("/ b", {}))]
    events = ["/" + TOKEN + told.format(e=event) for event in ("start", "0", "start", "3")]
    assert ([run.code for run in runs], [path for path, _ in server.told]) == ([0, 3, 1, 1, 1], events), runs


# A value from elsewhere, or under the name of an older version
@pytest.mark.parametrize("name, value", [
    ("APP_PORT", "tcp://10.0.0.1:5432"), ("WH_TABLE", "b"), ("SYNC_MAX_UPDATED_PERCENT", "10"), ("WH_TABEL", "a.b")])
def test_a_message_about_a_value_says_where_it_came_from(world, tmp_path, name, value):
    file = in_file(tmp_path, "#", name + "=" + value)
    for flags in LOOKS:
        for place, run in (("(environment)", refused_early(world, *flags, **{name: value})),
                           ("line 2", refused_early(world, *flags, *file, **{name: None}))):
            assert run.code == 1 and name in run.err + run.out and place in run.err + run.out, run
    run = refused_early(world, *in_file(tmp_path, "APP_DATABASE_URL=postgresql://role:p@127.0.0.1:1/app"),
                        **dict.fromkeys("APP_HOST APP_DB APP_USER APP_PASSWORD".split()))
    assert run.code == 1 and re.search(r"APP_DATABASE_URL .*line 1.*APP_PORT \(environment\)", run.err), run


# Somebody else's operators: who may log in, and was granted nothing, waits in public for runs, and for a superuser
TYPES = """smallint integer bigint real float8 numeric text varchar bpchar name "char" oid regclass regtype uuid
timestamp timestamptz date interval boolean json jsonb inet xid text[] bigint[] anyelement""".split()
ROWS = "record pg_attribute pg_index pg_class txid_snapshot anyarray".split()
COMMON = "integer bigint numeric text varchar timestamp timestamptz date".split()


def trap():
    """Operators over all pairs of types, and functions of every name that is called: each fits better than a cast."""
    spoken = [node.value for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8")))
              if isinstance(node, ast.Constant) and re.search("SELECT|INSERT|WHERE", str(node.value))]
    spoken = "\n".join(spoken + [path.read_text(encoding="utf-8") for path in (PROJECT / "sql").glob("*.sql")])
    symbols = set(re.findall(r"(?<=\s)[-+*/<>=~!@#%^&|?]+(?=\s)", spoken)) - {"--", "=>", "%"} | {"~~", "!~~"}
    make = "CREATE FUNCTION public.%s(%s) RETURNS %s LANGUAGE plpgsql AS 'BEGIN RAISE ''by %%'', user; END'"
    yield "GRANT CREATE ON SCHEMA public TO stranger; SET SESSION AUTHORIZATION stranger; SET synchronous_commit = off"
    for left, right in itertools.product(TYPES, repeat=2):
        yield make % ("sprung", left + ", " + right, "boolean")
        yield from ("CREATE OPERATOR public.%s (PROCEDURE = public.sprung, LEFTARG = %s, RIGHTARG = %s)" % (
            symbol, left, right) for symbol in symbols)
    for name in set(re.findall(r"\b([a-z_0-9]+)\(", spoken)):
        for types in TYPES + ROWS + [", ".join(pair) for pair in itertools.product(COMMON, repeat=2)]:
            yield make % ('"%s"' % name, types, "text")


@pytest.fixture(scope="module")
def trapped(lab, script):
    """Databases in which everybody may create in public, as in those made before PostgreSQL 15."""
    if named("app"):
        pytest.skip(NEEDS_ITS_OWN)  # to read its log
    with ExitStack() as made:
        own = Lab(copy.copy(lab.app), copy.copy(lab.warehouse))
        for server in (own.app, own.warehouse):
            server.psql("-qc", "CREATE ROLE stranger")
            made.callback(server.psql, "-qc", "DROP ROLE IF EXISTS stranger, other_role", database="postgres")
            server.name = made.enter_context(database(server, "trapped"))
        own.set_up()
        world = made.enter_context(empty_world(own, script))
        for server, side in ((own.app, world.app), (own.warehouse, world.warehouse)):
            server.psql("-q", stdin=";\n".join(
                line for line in trap() if side.version() >= 11 or "(record)" not in line))
        yield world


@contextmanager
def nothing_springs(*servers):
    """The logs of the servers have no error meanwhile: not of the trap, nor of what it was mistaken for."""
    before = [server.log.stat().st_size for server in servers]
    yield
    said = b"".join(server.log.read_bytes()[size:] for server, size in zip(servers, before))
    assert not re.search(b"ERROR:(?!.* affected by row-level security)", said), said.decode(errors="replace")


WAYS = [  # how a run ends, what the app has been made to hold, flags and settings
    (0, ""), (0, ""), (0, "", "SYNC_REFRESH=12h"), (0, "", "SYNC_REFRESH=never"), (0, "", "--check"),
    (0, "", "--status"), (0, "UPDATE {t} SET name = name || 'x' WHERE uuid LIKE '%1'", "--incremental"),
    (0, "UPDATE {t} SET name = name || 'x'", "--diff", "--allow-changes", "99"),
    (0, "ALTER TABLE {t} DROP CONSTRAINT one; INSERT INTO {t} SELECT upper(uuid), name FROM {t};"
     "INSERT INTO {t} SELECT uuid, 'x' FROM {t} LIMIT 1; INSERT INTO {t} VALUES ('x', 'y')", "--diff"),
    (0, "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY; CREATE POLICY one ON {t} USING (uuid LIKE '%2')"),
    (0, "", "--check"), (0, "ALTER POLICY one ON {t} USING (true)"),
    (3, "UPDATE {t} SET name = 'y'", "SYNC_MAX_CHANGED_PERCENT=0"), (3, "UPDATE {t} SET uuid = 'x'"),
    (0, "DELETE FROM {t}", "--diff", "--json"),
]


def test_strangers_operators_and_functions_are_never_called(trapped):
    trapped.app.sql(UNIQUE[0])
    trapped.app_has(*MANY)
    where = {"APP_DB": "trapped", "WH_DB": "trapped", "SYNC_MAX_AGE": "1h"}
    for code, statements, *words in WAYS:
        trapped.app.sql(statements.replace("{t}", TABLE["app"]) or "SELECT 1")
        settings = dict(word.split("=") for word in words if "=" in word)
        with nothing_springs(trapped.lab.app, trapped.lab.warehouse):
            run = finish(trapped.start(*[word for word in words if "=" not in word], **settings, **where))
        assert run.code == code, run
    with nothing_springs(trapped.lab.warehouse), trapped.warehouse.holding(HOLD_THE_LOCK):
        assert finish(trapped.start(**where)).result["result"] == "skipped"


def test_the_files_in_sql_call_nothing_of_a_strangers_either(trapped):
    for server, file, variables in (
            (trapped.lab.app, "app_readonly.sql", ["-vreader=other_role"]),
            (trapped.lab.warehouse, "warehouse_setup.sql", ["-vwriter=other_role", "-vtable=analytics.other"])):
        for more in ([], variables):
            with nothing_springs(server):
                server.psql("-f", str(PROJECT / "sql" / file), *more)
