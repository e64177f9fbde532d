"""--check: each planted defect is named, what is printed mends it, and looking changes nothing.

Each side has a database of its own here, set up anew after every test that planted something in it, so
that a row may break whatever it likes. Its name has to be quoted in SQL and in a shell. Roles belong to
the whole server, so they are put back too.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from urllib.parse import quote

import pytest

from conftest import ANN, BOB, CAT, HISTORY, Side, arguments, database, finish, run_in_process, trigger
from lab.servers import PRISMA_USER, PROJECT, READER_PASSWORD, SCRIPT, WRITER_PASSWORD, free_port, program_of
from standby import standby_of

ROLE = {"app": "app_readonly", "warehouse": "warehouse_writer"}
PASSWORD = {"app": READER_PASSWORD, "warehouse": WRITER_PASSWORD}
PREFIX = {"app": "APP", "warehouse": "WH"}
SETUP = {"app": "sql/app_readonly.sql", "warehouse": "sql/warehouse_setup.sql"}
DATABASE = {"app": "app to check", "warehouse": "warehouse to check"}
SECRET_URL = "https://example.org/ping-token-4711"

# What setup made, and what a row may have made, is gone; the role is as setup leaves it.
AS_NEW = {
    "app": """
        DROP SCHEMA IF EXISTS app, public CASCADE;
        CREATE SCHEMA public;
        GRANT USAGE ON SCHEMA public TO PUBLIC;""" + PRISMA_USER,
    "warehouse": "DROP SCHEMA IF EXISTS analytics, dw CASCADE",
}
ROLE_AS_NEW = """
    DO $$ BEGIN
        IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'hidden') THEN
            ALTER ROLE hidden RENAME TO {role};
        END IF;
    END $$;
    ALTER ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE VALID UNTIL 'infinity';
    ALTER ROLE {role} RESET ALL;
    ALTER ROLE {role} IN DATABASE "{database}" RESET ALL;
    ALTER DATABASE "{database}" RESET ALL;
    GRANT CONNECT, TEMPORARY ON DATABASE "{database}" TO PUBLIC;"""

CATALOGS = """
    pg_class pg_attribute pg_attrdef pg_proc pg_type pg_namespace pg_index pg_constraint pg_trigger pg_policy
    pg_rewrite pg_authid pg_auth_members pg_database pg_db_role_setting pg_default_acl pg_depend pg_shdepend
    pg_description""".split()


# Where defects are planted, and how they are looked at


@pytest.fixture(scope="module")
def own(lab, sides):
    own = {}
    for side in sides:
        name = side.server.name
        side.sql('CREATE DATABASE "%s"' % DATABASE[name])
        server = copy.copy(side.server)
        server.name = DATABASE[name]
        own[name] = Side(server)
        set_up(own[name], name)
    yield own
    for side in sides:
        name = side.server.name
        own[name].connection.close()
        side.sql('DROP DATABASE "%s"' % DATABASE[name])


def set_up(own, side):
    own.sql(ROLE_AS_NEW.format(role=ROLE[side], database=DATABASE[side]))
    own.sql(AS_NEW[side])
    variable = {"app": "app_password", "warehouse": "writer_password"}[side]
    own.server.psql("-f", str(PROJECT / SETUP[side]), "-v", "%s=%s" % (variable, PASSWORD[side]))


@pytest.fixture
def site(world, own):
    site = Site(world, own)
    yield site
    with contextlib.ExitStack() as steps:  # the second even if the first fails
        for side in site.touched:
            steps.callback(set_up, own[side], side)


class Site:
    """Two databases, and the settings that lead to them."""

    def __init__(self, world, own):
        self.world, self.own, self.touched = world, own, set()

    def plant(self, side, statements):
        self.touched.add(side)
        self.own[side].sql(statements)

    def paste(self, side, text):
        """Run the file that is named, or else what is SQL, up to the last semicolon."""
        self.touched.add(side)
        server, command = self.own[side].server, re.search(r"psql -h .*\.sql", text)
        if command:
            path = os.path.dirname(program_of(server.bindir, "psql")) + os.pathsep + os.environ["PATH"]
            subprocess.run(command.group(), shell=True, cwd=str(PROJECT), check=True, stdout=subprocess.DEVNULL,
                           env=dict(server.psql_environment(), PATH=path))
        else:
            statements = re.search(r"\b(ALTER|BEGIN|CREATE|DROP|GRANT|REVOKE) .*;", text)
            assert statements, "no SQL in %r" % text
            server.psql("-q", stdin=statements.group().replace("'...'", literal(PASSWORD[side])))

    def settings(self, settings):
        found = {PREFIX[side] + "_DB": own.server.name for side, own in self.own.items()}
        found.update({PREFIX[side] + "_PORT": str(own.server.port) for side, own in self.own.items()})
        return dict(dict(found, SYNC_CONNECT_ATTEMPTS="1"), **settings)

    def values(self, settings):
        return {name: value(self.own) if callable(value) else value for name, value in settings.items()}

    def check(self, *flags, **settings):
        """--check --json, held to what must be true of each: nothing is changed, no secret is printed."""
        environment = self.world.environment(self.settings(settings))
        before = {side: state(own) for side, own in self.own.items()}
        run = run_in_process(self.world.script, arguments(("--check", "--json") + flags), environment)
        assert {side: state(own) for side, own in self.own.items()} == before, "it changed a database"
        check_secrets(run, settings)
        return Looked(run)


def literal(text):
    return "'%s'" % text.replace("'", "''")


def state(side):
    """What whoever writes anything leaves different: the newest row of a catalog, the rows of the tables."""
    relations = side.sql("""
        SELECT oid::regclass::text, relkind::text FROM pg_class
         WHERE relkind IN ('r', 'S', 'm')
           AND relname !~ '^athlete_dim_.*_seq$'  -- a serial column loses numbers, as --check warns
           AND relnamespace::regnamespace::text !~ '^(pg_|information_schema)'""")
    newest = "concat_ws(' ', count(*), max(xmin::text::bigint), max(xmax::text::bigint))"
    seen = {name: newest for name in CATALOGS}
    rows = "md5(string_agg(concat(ctid, xmin, xmax, t::text), ',' ORDER BY ctid))"
    position = "concat_ws(' ', max(last_value), bool_or(is_called))"
    seen.update({name: position if kind == "S" else rows for name, kind in relations})
    return dict(side.sql(" UNION ALL ".join(
        "SELECT $$%s$$, %s FROM %s AS t" % (name, what, name) for name, what in seen.items())))


def check_secrets(run, settings):
    secrets = {READER_PASSWORD, WRITER_PASSWORD, SECRET_URL, SECRET_URL.rsplit("/")[-1]}
    secrets |= {text for name, text in settings.items()
                if name.endswith(("_PASSWORD", "_URL"))} - {"CHANGE_ME"}
    for secret in secrets - {None}:
        assert secret not in run.out + run.err, "printed: %r" % secret


class Looked:
    """What --check --json printed."""

    def __init__(self, run):
        self.run, self.answer = run, json.loads(run.out)
        self.checks = self.answer["checks"]
        first = next((check["code"] for check in self.checks if check["code"]), 0)
        assert run.code == self.answer["exit_code"] == first, run
        for check in self.checks:
            assert (check["code"] == 0) == (check["level"] != "FAIL"), check
            assert bool(check["next_step"]) == (check["level"] != "ok"), "what to type: %r" % check

    @property
    def trouble(self):
        return [check for check in self.checks if check["level"] != "ok"]

    def find(self, line):
        """The check of a line such as "FAIL app row security: may hide"."""
        start, words = line.split(": ", 1)
        found = [check for check in self.checks
                 if "%(level)s %(side)s %(subject)s" % check == start and words in check["found"]]
        assert len(found) == 1, "%r in:\n%s" % (line, "\n".join(map(str, self.trouble)))
        return found[0]

    def __repr__(self):
        return "exit code %d: %s" % (self.run.code, self.trouble)


# One row a defect: what is planted on which side, in SQL or by settings, and the line that --check says.
# The statement that it prints is then pasted, unless another mends (what is printed is no SQL) or a setting.

def closed_port(_):
    return str(free_port())


def url_of_another_machine(own):
    return "postgresql://app_readonly:%s@app.example.org:%s/%s?hostaddr=127.0.0.1" % tuple(
        quote(str(part)) for part in (READER_PASSWORD, own["app"].server.port, DATABASE["app"]))


def revoked(side, privilege, line, everybody=False, **more):
    role = ROLE[side] + (", PUBLIC" if everybody else "")
    return dict(dict(plant="REVOKE %s FROM %s" % (privilege, role), line=line, prints="GRANT "), **more)


DIM = "analytics.athlete_dim"
SEQUENCE = "analytics.athlete_sync_run_run_id_seq"
def meddling(body, when="BEFORE INSERT OR UPDATE", **more):
    return trigger(when, body + " RETURN NEW;", **more)[0]


REMADE = """
DROP TABLE analytics.athlete_dim;
CREATE TABLE analytics.athlete_dim (athlete_uuid UUID PRIMARY KEY, full_name TEXT NOT NULL,
                                    source_synced_at TIMESTAMPTZ NOT NULL DEFAULT now()) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE ON analytics.athlete_dim TO warehouse_writer
"""

def of_both(side):
    """What may be wrong on either side: the login, and where it is."""
    role, prefix, password = ROLE[side], PREFIX[side], literal(PASSWORD[side])
    refused = dict(line="FAIL %s login: password authentication failed" % side, code=2)
    prints = "ALTER ROLE %s" % role
    defects = {
        "CONNECT": revoked(side, 'CONNECT ON DATABASE "%s"' % DATABASE[side],
                           "FAIL %s login: may not connect" % side, True, code=2),
        "missing role": dict(
            refused, plant="ALTER ROLE %s RENAME TO hidden" % role,
            mend="ALTER ROLE hidden RENAME TO %s; ALTER ROLE %s PASSWORD %s" % (role, role, password)),
        "expired password": dict(refused, plant="ALTER ROLE %s VALID UNTIL '2020-01-01'" % role, prints=prints),
        "wrong password": dict(refused, plant="ALTER ROLE %s PASSWORD 'another one'" % role, prints=prints),
        "role may not log in": dict(plant="ALTER ROLE %s NOLOGIN" % role, prints=prints, code=2,
                                    line="FAIL %s login: not permitted to log in" % side),
        "password in quotes": dict(settings={prefix + "_PASSWORD": '"%s"' % PASSWORD[side]}, code=2, set={},
                                   line="warn settings password: %s_PASSWORD begins" % prefix),
        "CHANGE_ME": dict(plant="ALTER ROLE %s PASSWORD 'CHANGE_ME'" % role,
                          settings={prefix + "_PASSWORD": "CHANGE_ME"},
                          line="warn settings password: %s_PASSWORD is still CHANGE_ME" % prefix,
                          prints=prints + " WITH PASSWORD", set={}),
    }
    for name, setting, value, words, mended in (
            ("closed port", "_PORT", closed_port, "refused", {}),
            ("unknown host", "_HOST", "nosuchhost.invalid", "nosuchhost.invalid", {}),
            ("no such database", "_DB", "nowhere", '"nowhere" does not exist', {}),
            ("TLS that the server does not have", "_SSLMODE", "require", "SSL", {prefix + "_SSLMODE": "disable"})):
        defects[name] = dict(settings={prefix + setting: value}, line="FAIL %s login: %s" % (side, words), code=2,
                             prints=prefix + setting, set=mended)
    return {"%s: %s" % (side, name): defect for name, defect in defects.items()}


DEFECTS = {
    **of_both("app"), **of_both("warehouse"),

    # The app: privileges
    "app: SELECT": revoked("app", 'SELECT ON public."User"', 'FAIL app run: permission denied'),
    "app: USAGE": revoked("app", "USAGE ON SCHEMA public", 'FAIL app run: permission denied for schema public', True),
    "app: role may insert": dict(
        plant='GRANT INSERT ON public."User" TO app_readonly', line="warn app read only: may write",
        prints="REVOKE"),
    "app: role may update one column": dict(
        plant='GRANT UPDATE (name) ON public."User" TO app_readonly', line="warn app read only: may write",
        prints="REVOKE"),
    "app: role may write another table": dict(
        plant="CREATE TABLE public.club (); GRANT DELETE ON public.club TO app_readonly",
        line="warn app read only: may write", prints="REVOKE"),
    "app: role is a superuser": dict(
        plant="ALTER ROLE app_readonly SUPERUSER", line="warn app read only: superuser",
        prints="ALTER ROLE app_readonly NOSUPERUSER"),

    # The app: where it is
    "app: no TLS on the way to another machine": dict(
        settings=dict(APP_DATABASE_URL=url_of_another_machine),
        line="warn app TLS: off", prints="APP_SSLMODE=require", set={}),

    # The app: what it holds
    "app: missing table": dict(
        plant='ALTER TABLE public."User" RENAME TO "Member"', line='FAIL app run: does not exist',
        prints="APP_TABLE", mend='ALTER TABLE public."Member" RENAME TO "User"'),
    "app: missing schema": dict(
        settings=dict(APP_TABLE='app."User"'), line='FAIL app run: does not exist', prints="APP_TABLE",
        set={}),
    "app: missing uuid column": dict(
        plant='ALTER TABLE public."User" RENAME uuid TO id', line='FAIL app run: uuid',
        prints="APP_UUID_COLUMN", set=dict(APP_UUID_COLUMN="id")),
    "app: missing name column": dict(
        settings=dict(APP_NAME_COLUMN="fullName"), line='FAIL app run: fullname', prints="APP_NAME_COLUMN",
        set={}),
    "app: neither column": dict(
        settings=dict(APP_UUID_COLUMN="a", APP_NAME_COLUMN="b"), line='FAIL app run: does not exist',
        prints="APP_UUID_COLUMN", set={}),
    "app: uuid of a wrong type": dict(
        plant="""ALTER TABLE public."User" ALTER uuid TYPE INTEGER USING 7;
                             INSERT INTO public."User" VALUES (7, 'Ann Archer')""",
        line='FAIL app run: every row was rejected: 1 uuid is not a uuid', prints="--dry-run --json",
        mend="""DELETE FROM public."User"; ALTER TABLE public."User" ALTER uuid TYPE UUID USING NULL"""),
    "app: row security": dict(
        plant='ALTER TABLE public."User" ENABLE ROW LEVEL SECURITY',
        line='warn app row security: may hide rows',
        prints="ALTER ROLE app_readonly BYPASSRLS"),
    "app: rows that would be rejected": dict(
        plant="INSERT INTO public.\"User\" VALUES ('%s', NULL), (NULL, 'Bob Bowman'), ('x', 'Cat Cooper'),"
                          " ('{%s', 'Dan Dyer'), ('%s', 'Eve Eden')" % (ANN, BOB, CAT),
        line='warn app rows: 4 of 5 rows would be rejected: 2 uuid is not a uuid', prints="--dry-run --json",
        mend="DELETE FROM public.\"User\" WHERE name IS DISTINCT FROM 'Eve Eden'"),
    "app: one uuid, two names": dict(
        plant="INSERT INTO public.\"User\" VALUES ('%s', 'Ann Archer'), ('%s', 'Bob Bowman')"
                          % (ANN, ANN.upper()),
        line='FAIL app run: every row was rejected: 2 names differ', prints="--dry-run --json", mend='DELETE FROM public."User"'),
    "app: one uuid in two spellings, two names": dict(
        plant="INSERT INTO public.\"User\" VALUES ('%s', 'Ann Archer'), ('{%s}', 'Bob Bowman')"
                          % (ANN.replace("-", ""), ANN),
        line='FAIL app run: every row was rejected: 2 names differ', prints="--dry-run --json", mend='DELETE FROM public."User"'),

    # The warehouse: privileges
    "warehouse: TEMP": revoked("warehouse", 'TEMPORARY ON DATABASE "warehouse to check"',
                               'FAIL warehouse run: permission denied to create temporary tables', True),
    "warehouse: USAGE": revoked("warehouse", "USAGE ON SCHEMA analytics",
                                'FAIL warehouse run: permission denied for schema analytics'),
    "warehouse: SELECT": revoked("warehouse", "SELECT ON " + DIM, 'FAIL warehouse run: permission denied'),
    "warehouse: INSERT": revoked("warehouse", "INSERT ON " + DIM, 'FAIL warehouse run: permission denied'),
    "warehouse: UPDATE": revoked("warehouse", "UPDATE ON " + DIM, 'FAIL warehouse run: permission denied'),
    "warehouse: history SELECT": revoked("warehouse", "SELECT ON analytics.athlete_sync_run",
                                         'warn warehouse status: may not read analytics.athlete_sync_run'),
    "warehouse: history INSERT": revoked(
        "warehouse", "INSERT ON analytics.athlete_sync_run", "warn warehouse run history: permission denied",
        prints="sql/warehouse_setup.sql"),
    "warehouse: sequence USAGE": revoked("warehouse", "USAGE ON SEQUENCE " + SEQUENCE,
                                         'warn warehouse numbering: may not number'),
    "warehouse: view SELECT": revoked("warehouse", "SELECT ON analytics.athlete_sync_health",
                                      'warn warehouse status: may not read analytics.athlete_sync_health'),
    "warehouse: role only reads": dict(
        plant="ALTER ROLE warehouse_writer SET default_transaction_read_only = on",
        line='FAIL warehouse run: read-only', prints="ALTER ROLE warehouse_writer"),
    "warehouse: database only reads": dict(
        plant='ALTER DATABASE "warehouse to check" SET default_transaction_read_only = on',
        line='FAIL warehouse run: read-only', prints="ALTER ROLE warehouse_writer"),

    # The warehouse: where it is
    "warehouse: another database": dict(
        settings=dict(WH_DB="postgres"), line='FAIL warehouse run: does not exist', prints="WH_DB", set={}),

    # The warehouse: what it holds
    "warehouse: missing schema": dict(
        plant="DROP SCHEMA analytics CASCADE", line='FAIL warehouse run: does not exist', prints="sql/warehouse_setup.sql"),
    "warehouse: missing table": dict(
        plant="DROP TABLE analytics.athlete_dim", line='FAIL warehouse run: does not exist',
        prints="sql/warehouse_setup.sql"),
    "warehouse: missing history": dict(
        plant="DROP TABLE analytics.athlete_sync_run CASCADE",
        line="warn warehouse run history: does not exist", prints="sql/warehouse_setup.sql"),
    "warehouse: history of another shape": dict(
        plant="ALTER TABLE analytics.athlete_sync_run DROP repeated CASCADE",
        line="warn warehouse run history: ",
        mend="ALTER TABLE analytics.athlete_sync_run ADD repeated BIGINT", then=["status"]),
    "warehouse: missing view": dict(
        plant="DROP VIEW analytics.athlete_sync_health",
        line="warn warehouse status: there is no", prints="sql/warehouse_setup.sql"),
    "warehouse: missing athlete_uuid": dict(
        plant="ALTER TABLE analytics.athlete_dim DROP athlete_uuid",
        line='FAIL warehouse run: athlete_uuid', prints="needs athlete_uuid uuid",
        mend=REMADE),
    "warehouse: missing full_name": dict(
        plant="INSERT INTO analytics.athlete_dim VALUES ('%s', 'Ann Archer');"
              "ALTER TABLE analytics.athlete_dim DROP full_name" % ANN,
        line='FAIL warehouse run: full_name', prints="needs athlete_uuid uuid",
        mend=REMADE),
    "warehouse: missing source_synced_at": dict(
        plant="INSERT INTO analytics.athlete_dim VALUES ('%s', 'Ann Archer');"
              "ALTER TABLE analytics.athlete_dim DROP source_synced_at" % ANN,
        line='FAIL warehouse run: source_synced_at', prints="needs athlete_uuid uuid",
        mend=REMADE),
    "warehouse: athlete_uuid is text": dict(
        plant="INSERT INTO analytics.athlete_dim VALUES ('%s', 'Ann Archer');"
              "ALTER TABLE analytics.athlete_dim ALTER athlete_uuid TYPE TEXT" % ANN,
        line='FAIL warehouse run: uuid', prints="needs athlete_uuid uuid",
        mend=REMADE),
    "warehouse: missing key": dict(
        plant="ALTER TABLE analytics.athlete_dim DROP CONSTRAINT athlete_dim_pkey",
        line='FAIL warehouse run: the key has no unique index', prints="athlete_uuid"),
    "warehouse: a key of its own": dict(
        plant="ALTER TABLE analytics.athlete_dim DROP CONSTRAINT athlete_dim_pkey;"
              "ALTER TABLE analytics.athlete_dim ADD athlete_id UUID PRIMARY KEY"
              " DEFAULT md5(random()::text)::uuid",
        line='FAIL warehouse run: the key has no unique index', prints="athlete_uuid"),
    "warehouse: a key for some rows only": dict(
        plant="ALTER TABLE analytics.athlete_dim DROP CONSTRAINT athlete_dim_pkey;"
              "CREATE UNIQUE INDEX ON analytics.athlete_dim (athlete_uuid) WHERE full_name <> ''",
        line='FAIL warehouse run: the key has no unique index', prints="athlete_uuid"),
    "warehouse: a column that must be filled": dict(
        plant="ALTER TABLE analytics.athlete_dim ADD club TEXT NOT NULL",
        line='FAIL warehouse run: "club"', prints="ALTER COLUMN club DROP NOT NULL;"),
    "warehouse: a serial column": dict(
        plant="ALTER TABLE analytics.athlete_dim ADD id SMALLSERIAL;"
              "GRANT USAGE ON SEQUENCE analytics.athlete_dim_id_seq TO warehouse_writer",
        line="warn warehouse serial: column id loses a number", prints="SYNC_REFRESH=never",
        mend="ALTER TABLE analytics.athlete_dim DROP id"),
    "warehouse: a constraint on the stamp": dict(
        plant="ALTER TABLE analytics.athlete_dim ADD CONSTRAINT once UNIQUE (athlete_uuid, source_synced_at)",
        line="warn warehouse cheap reruns: once", prints="DROP CONSTRAINT once"),
    "warehouse: an inheritance child": dict(
        plant="CREATE TABLE analytics.old () INHERITS (analytics.athlete_dim)",
        line="FAIL warehouse run: analytics.old inherits from", prints="NO INHERIT"),
    "app: everybody may write": dict(
        plant='GRANT INSERT ON public."User" TO PUBLIC', line="warn app read only: may write",
        prints="FROM PUBLIC"),
    "app: padded uuids": dict(
        plant="""ALTER TABLE public."User" ALTER uuid TYPE char(40);
                 INSERT INTO public."User" VALUES ('%s', 'Ann Archer')""" % ANN,
        line="FAIL app run: every row was rejected: 1 uuid is not a uuid", prints="APP_UUID_COLUMN",
        mend='ALTER TABLE public."User" ALTER uuid TYPE text'),
    "warehouse: a harmless trigger": dict(
        plant=meddling(""), line='warn warehouse triggers: "Meddle"', prints="DISABLE TRIGGER"),
    "warehouse: a trigger that meddles": dict(
        plant=meddling("NEW.full_name := upper(NEW.full_name);"), line='FAIL warehouse run: the proof failed',
        mend='DROP TRIGGER "Meddle" ON analytics.athlete_dim'),
    "warehouse: a trigger that drops rows": dict(
        plant=meddling("RETURN NULL;"), line='FAIL warehouse run: the proof failed',
        mend='DROP TRIGGER "Meddle" ON analytics.athlete_dim'),
    "warehouse: a rule": dict(
        plant="CREATE RULE meddle AS ON INSERT TO analytics.athlete_dim DO INSTEAD NOTHING",
        line='FAIL warehouse run: ', prints="\\d+",
        mend="DROP RULE meddle ON analytics.athlete_dim"),
    "warehouse: row security": dict(
        plant="ALTER TABLE analytics.athlete_dim ENABLE ROW LEVEL SECURITY",
        line="FAIL warehouse run: row-level security refuses a row", prints="ALTER ROLE warehouse_writer BYPASSRLS;"),
    "warehouse: a sequence that is not granted": dict(
        plant="ALTER TABLE analytics.athlete_dim ADD athlete_id BIGSERIAL",
        line="FAIL warehouse run: permission denied for sequence", prints="sequences and views",
        mend="ALTER TABLE analytics.athlete_dim DROP athlete_id"),
    "warehouse: a trigger into a table that is not granted": dict(
        plant="CREATE TABLE analytics.audit ();" + meddling("INSERT INTO analytics.audit DEFAULT VALUES;"),
        line="FAIL warehouse run: a trigger, function or view refused", prints="look for triggers",
        mend='DROP TRIGGER "Meddle" ON analytics.athlete_dim'),
    "warehouse: a serial column, but stamps are rare": dict(
        plant="ALTER TABLE analytics.athlete_dim ADD athlete_no SMALLSERIAL;"
              "GRANT USAGE ON ALL SEQUENCES IN SCHEMA analytics TO warehouse_writer", loses_numbers=True,
        line="warn warehouse serial: column athlete_no loses a number", set=dict(SYNC_REFRESH="never")),
    "warehouse: an index on the stamp": dict(
        plant='CREATE INDEX "By Stamp" ON analytics.athlete_dim (source_synced_at)',
        line='warn warehouse cheap reruns: "By Stamp"', prints="DROP INDEX"),
    "warehouse: full pages": dict(
        plant="ALTER TABLE analytics.athlete_dim RESET (fillfactor)",
        line="warn warehouse cheap reruns: fillfactor 100", prints="fillfactor = 50"),
}


@pytest.mark.parametrize("name", list(DEFECTS))
def test_a_defect_is_named_and_what_is_printed_mends_it(site, name):
    side, defect = name.split(":")[0], DEFECTS[name]
    if "plant" in defect:
        site.plant(side, defect["plant"])
    settings = site.values(defect.get("settings", {}))
    looked = site.check(**settings)
    named = looked.find(defect["line"])
    assert looked.run.code == defect.get("code", 3 if named["level"] == "FAIL" else 0), looked
    assert defect.get("prints", "") in named["next_step"], named

    if defect.get("mend"):
        site.plant(side, defect["mend"])
    elif "set" not in defect or "CHANGE_ME" in name:
        site.paste(side, named["next_step"])
    again = site.check(**defect.get("set", settings))
    assert {check["subject"] for check in again.trouble} == set(defect.get("then", [])), again


@pytest.mark.parametrize("statement", [
    "GRANT SELECT ON analytics.athlete_dim TO PUBLIC",
    "REVOKE CONNECT ON DATABASE \"warehouse to check\" FROM PUBLIC",
    "ALTER ROLE warehouse_writer SET search_path = analytics",
    "ALTER ROLE warehouse_writer VALID UNTIL '2020-01-01'",
    "INSERT INTO analytics.athlete_dim VALUES ('%s', 'Ann Archer')" % ANN, "CREATE TABLE analytics.mine ()",
    "SELECT nextval('analytics.athlete_sync_run_run_id_seq')", "COMMENT ON SCHEMA analytics IS 'mine'",
])
def test_a_change_would_be_noticed(site, statement):
    before = state(site.own["warehouse"])
    assert state(site.own["warehouse"]) == before
    site.plant("warehouse", statement)
    assert state(site.own["warehouse"]) != before


# No false alarm


@pytest.mark.parametrize("athletes", [0, 1, 1000])
def test_an_installation_made_by_the_sql_files_is_well(site, athletes):
    site.plant("app", """
        INSERT INTO public."User"
        SELECT md5(number::text)::uuid, 'Ann Archer' FROM generate_series(1, %d) AS number""" % athletes)
    for _ in range(2):
        looked = site.check()
        assert (looked.run.code, looked.trouble) == (0, [])
        looked.find("ok app rows: %d rows, none rejected" % athletes)
        site.touched.add("warehouse")
        assert site.world.sync(**site.settings({})).code == 0


def test_a_healthy_installation_is_told_in_a_few_lines(site):
    shown = run_in_process(site.world.script, arguments(["--check"]), site.world.environment(site.settings({})))
    lines = shown.out.splitlines()
    assert shown.code == 0 and len(lines) <= 8 and lines[-1] == "Ready", shown
    assert [re.sub("[0-9]+", "N", line) for line in lines[:-1]] == ["settings: N ok", "app: N ok", "warehouse: N ok"]


# What a run says and what --check says is one


MORE_SETUPS = {
    "SELECT on two columns": (
        "app", 'REVOKE SELECT ON public."User" FROM app_readonly;'
               'GRANT SELECT (uuid, name) ON public."User" TO app_readonly'),
    "SELECT on one column": (
        "app", 'REVOKE SELECT ON public."User" FROM app_readonly; GRANT SELECT (uuid) ON public."User" TO app_readonly'),
    "swapped columns": ("app", 'ALTER TABLE public."User" RENAME uuid TO x; ALTER TABLE public."User" RENAME name TO uuid;'
                               'ALTER TABLE public."User" RENAME x TO name'),
    "bytea key": ("app", "ALTER TABLE public.\"User\" ALTER uuid TYPE bytea USING convert_to(uuid, 'UTF8')"),
    "uuid key": ("app", 'ALTER TABLE public."User" ALTER uuid TYPE uuid USING uuid::uuid'),
    "key with a unique index": ("app", 'CREATE UNIQUE INDEX ON public."User" (uuid)'),
    "row security that hides all": ("app", 'ALTER TABLE public."User" ENABLE ROW LEVEL SECURITY'),
    "a view that divides by zero": (
        "app", 'ALTER TABLE public."User" RENAME TO "Member"; CREATE VIEW public."User" AS'
               " SELECT uuid, (1 / (length(name) - length(name)))::text AS name FROM public.\"Member\";"
               'GRANT SELECT ON public."User" TO app_readonly'),
    "varchar(255)": ("warehouse", "ALTER TABLE analytics.athlete_dim ALTER full_name TYPE varchar(255)"),
    "varchar(20)": ("warehouse", "ALTER TABLE analytics.athlete_dim ALTER full_name TYPE varchar(20)"),
    "char(50)": ("warehouse", "ALTER TABLE analytics.athlete_dim ALTER full_name TYPE char(50)"),
    "integer name": ("warehouse", "ALTER TABLE analytics.athlete_dim ALTER full_name TYPE integer USING 1"),
    "timestamp": ("warehouse", "ALTER TABLE analytics.athlete_dim ALTER source_synced_at TYPE timestamp"),
    "date": ("warehouse", "ALTER TABLE analytics.athlete_dim ALTER source_synced_at DROP DEFAULT;"
                          "ALTER TABLE analytics.athlete_dim ALTER source_synced_at TYPE date"),
    "key of two columns": (
        "warehouse", "ALTER TABLE analytics.athlete_dim DROP CONSTRAINT athlete_dim_pkey;"
                     "ALTER TABLE analytics.athlete_dim ADD PRIMARY KEY (athlete_uuid, full_name)"),
    "deferrable key": (
        "warehouse", "ALTER TABLE analytics.athlete_dim DROP CONSTRAINT athlete_dim_pkey;"
                     "ALTER TABLE analytics.athlete_dim ADD PRIMARY KEY (athlete_uuid) DEFERRABLE"),
    "an updatable view": (
        "warehouse", "ALTER TABLE analytics.athlete_dim RENAME TO athlete_kept;"
                     "CREATE VIEW analytics.athlete_dim AS SELECT * FROM analytics.athlete_kept;"
                     "GRANT SELECT, INSERT, UPDATE ON analytics.athlete_dim TO warehouse_writer"),
    "a view that is not": (
        "warehouse", "ALTER TABLE analytics.athlete_dim RENAME TO athlete_kept;"
                     "CREATE VIEW analytics.athlete_dim AS SELECT DISTINCT * FROM analytics.athlete_kept;"
                     "GRANT SELECT, INSERT, UPDATE ON analytics.athlete_dim TO warehouse_writer"),
    "a column with a default": ("warehouse", "ALTER TABLE analytics.athlete_dim ADD club TEXT NOT NULL DEFAULT 'none'"),
    "a column that may be empty": ("warehouse", "ALTER TABLE analytics.athlete_dim ADD club TEXT"),
    "a trigger that is deferred": (
        "warehouse", meddling("UPDATE analytics.athlete_dim SET full_name = full_name || '!' WHERE athlete_uuid ="
                              " NEW.athlete_uuid AND full_name NOT LIKE '%!';", "AFTER INSERT OR UPDATE", deferred=True)),
    "a trigger on updates alone": (
        "warehouse", meddling("NEW.full_name := 'x' || NEW.full_name;", "BEFORE UPDATE")),
    "a policy that lets all through": (
        "warehouse", "ALTER TABLE analytics.athlete_dim ENABLE ROW LEVEL SECURITY;"
                     "CREATE POLICY all_of_it ON analytics.athlete_dim USING (true)"),
    "a policy for reading alone": (
        "warehouse", "ALTER TABLE analytics.athlete_dim ENABLE ROW LEVEL SECURITY;"
                     "CREATE POLICY reading ON analytics.athlete_dim FOR SELECT USING (true)"),
    "stamps that have to be unique": ("warehouse", "ALTER TABLE analytics.athlete_dim ADD UNIQUE (source_synced_at)"),
    "names that must look like one": (
        "warehouse", "ALTER TABLE analytics.athlete_dim ADD CHECK (full_name ~ '^[A-Z][a-z]+ [A-Z]')"),
    "names that have to be unique": ("warehouse", "ALTER TABLE analytics.athlete_dim ADD UNIQUE (full_name)"),
    "a policy for inserts alone": (
        "warehouse", "ALTER TABLE analytics.athlete_dim ENABLE ROW LEVEL SECURITY;"
                     "CREATE POLICY inserts ON analytics.athlete_dim FOR INSERT WITH CHECK (true)"),
    "a deferred foreign key": (
        "warehouse", "CREATE TABLE analytics.known (athlete_uuid UUID PRIMARY KEY);"
                     "INSERT INTO analytics.known SELECT athlete_uuid FROM analytics.athlete_dim;"
                     "ALTER TABLE analytics.athlete_dim ADD FOREIGN KEY (athlete_uuid) REFERENCES analytics.known"
                     " DEFERRABLE INITIALLY DEFERRED"),
    "a materialized view": (
        "app", 'ALTER TABLE public."User" RENAME TO "Member"; CREATE MATERIALIZED VIEW public."User" AS'
               ' SELECT * FROM public."Member"; GRANT SELECT ON public."User" TO app_readonly'),
    "an inheritance parent in the app": (
        "app", 'CREATE TABLE public.child () INHERITS (public."User");'
               "INSERT INTO public.child VALUES ('00000000-0000-4000-8000-00000000000e', 'Eve Eden')"),
    "no renames table": ("warehouse", "DROP TABLE analytics.athlete_rename"),
    "a history with a column more": (
        "warehouse", "ALTER TABLE analytics.athlete_sync_run ADD wanted TEXT NOT NULL"),
    "INSERT on three columns": (
        "warehouse", "REVOKE INSERT ON analytics.athlete_dim FROM warehouse_writer; GRANT INSERT"
                     " (athlete_uuid, full_name, source_synced_at) ON analytics.athlete_dim TO warehouse_writer"),
    "UPDATE on the name alone": (
        "warehouse", "REVOKE UPDATE ON analytics.athlete_dim FROM warehouse_writer;"
                     "GRANT UPDATE (full_name) ON analytics.athlete_dim TO warehouse_writer"),
    "SELECT on the key alone": (
        "warehouse", "REVOKE SELECT ON analytics.athlete_dim FROM warehouse_writer;"
                     "GRANT SELECT (athlete_uuid) ON analytics.athlete_dim TO warehouse_writer"),
}
SETUPS = dict({name: (name.split(":")[0], defect.get("plant", "SELECT 1"), defect.get("settings", {}))
               for name, defect in DEFECTS.items()},
              **{name: (side, plant, {}) for name, (side, plant) in MORE_SETUPS.items()})


@pytest.mark.parametrize("name", list(SETUPS))
def test_check_ends_as_the_run_would(site, name):
    assert len(SETUPS) >= 60
    side, plant, settings = SETUPS[name]
    site.plant("app", "INSERT INTO public.\"User\" VALUES ('%s', 'Ann A'), ('%s', 'Bob B'), ('%s', 'Cat C')"
               % (ANN, BOB, CAT) if side == "warehouse" or name in MORE_SETUPS else "SELECT 1")
    site.plant("warehouse", "INSERT INTO analytics.athlete_dim VALUES ('%s', 'Ann Before', '2020-01-01')" % ANN
               if "INSERT INTO analytics" not in plant and "must be filled" not in name else "SELECT 1")
    site.plant(side, plant)
    settings = site.values(settings)
    looked = site.check(**settings)
    run = run_in_process(site.world.script, arguments(()), site.world.environment(site.settings(settings)))
    assert looked.run.code == run.code, (looked, run)


OTHER_SHAPES = {
    "uuid and varchar": (
        "app", "CREATE TABLE public.people (id UUID PRIMARY KEY, name VARCHAR(50))",
        dict(APP_TABLE="public.people", APP_UUID_COLUMN="id")),
    "a view": (
        "app", 'CREATE VIEW public.people AS SELECT uuid, name FROM public."User"', dict(APP_TABLE="People")),
    "a partitioned table": (
        "app", "CREATE TABLE public.people (uuid UUID, name TEXT) PARTITION BY HASH (uuid);"
               "CREATE TABLE public.people_0 PARTITION OF public.people FOR VALUES"
               " WITH (MODULUS 1, REMAINDER 0)",
        dict(APP_TABLE="public.people")),
    "names that need quotes": (
        "app", 'CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO app_readonly;'
               'CREATE TABLE app."The ""User""; {x} %s" ("UUID." TEXT, "full%Name" TEXT)',
        dict(APP_TABLE='app."The ""User""; {x} %s"', APP_UUID_COLUMN='"UUID."',
             APP_NAME_COLUMN='"full%Name"')),
    "another dimension": (
        "warehouse", 'CREATE TABLE analytics."Athlete {x} %s" (LIKE analytics.athlete_dim INCLUDING ALL)'
                     ' WITH (fillfactor = 50)',
        dict(WH_TABLE='analytics."Athlete {x} %s"')),
    "varchar without a length": (
        "warehouse", "CREATE TABLE analytics.people (athlete_uuid UUID PRIMARY KEY, full_name VARCHAR,"
                     " source_synced_at TIMESTAMPTZ) WITH (fillfactor = 50)",
        dict(WH_TABLE="analytics.people")),
}


@pytest.mark.parametrize("name", list(OTHER_SHAPES))
def test_what_a_run_accepts_is_no_defect(site, name):
    side, create, settings = OTHER_SHAPES[name]
    if "PARTITION" in create and site.own[side].connection.server_version < 110000:
        pytest.skip("PostgreSQL 11 brought partitions by hash")
    site.plant(side, create)
    site.plant("warehouse",
               "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA analytics TO warehouse_writer")
    site.plant("app", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO app_readonly")
    if name == "names that need quotes":
        site.plant("app", "GRANT SELECT ON ALL TABLES IN SCHEMA app TO app_readonly")
    looked = site.check(**settings)
    assert (looked.run.code, looked.trouble) == (0, [])
    run = site.world.sync(**site.settings(settings))
    assert run.code == 0, run


# Several at once: all are named, not only the first


TOGETHER = {
    "one side is down": (
        "", "REVOKE INSERT ON analytics.athlete_dim FROM warehouse_writer", dict(APP_PORT=closed_port), 2,
        ["FAIL app login: refused", "FAIL warehouse run: permission denied"]),
    "the other is down": (
        'REVOKE SELECT ON public."User" FROM app_readonly', "", dict(WH_PASSWORD="wrong"), 2,
        ["FAIL app run: permission denied", "FAIL warehouse login: password authentication failed"]),
    "a login and a warning": (
        "ALTER ROLE app_readonly NOLOGIN", "CREATE INDEX ON analytics.athlete_dim (source_synced_at)", {}, 2,
        ["FAIL app login: not permitted to log in", "warn warehouse cheap reruns: source_synced_at"]),
    "both sides": (
        'REVOKE SELECT ON public."User" FROM app_readonly',
        "ALTER TABLE analytics.athlete_dim RESET (fillfactor), DROP CONSTRAINT athlete_dim_pkey;"
        "DROP VIEW analytics.athlete_sync_health", {}, 3,
        ["FAIL app run: permission denied", "FAIL warehouse run: the key has no unique index",
         "warn warehouse cheap reruns: fillfactor 100", "warn warehouse status: there is no"]),
}


@pytest.mark.parametrize("name", list(TOGETHER))
def test_all_checks_are_made_not_only_up_to_the_first_failure(site, name):
    app, warehouse, settings, code, lines = TOGETHER[name]
    site.plant("app", app or "SELECT 1")
    site.plant("warehouse", warehouse or "SELECT 1")
    looked = site.check(**site.values(settings))
    for line in lines:
        looked.find(line)
    assert looked.run.code == code, looked


def test_missing_and_malformed_settings_are_named_together(site):
    looked = site.check(APP_HOST=None, WH_PASSWORD=None, SYNC_REFRESH="daily",
                        SYNC_PING_URL="ping-token-4711")
    named = looked.find("FAIL settings settings: ")
    assert looked.run.code == 1
    for name in ("APP_HOST is missing", "WH_PASSWORD is missing", "SYNC_REFRESH must", "SYNC_PING_URL must"):
        assert name in named["found"]
    assert ".env.example" in named["next_step"]


# Settings: where each came from


def test_each_setting_says_where_it_came_from_and_no_secret(site, tmp_path):
    env_file = tmp_path / ".env"
    env_file.write_text("SYNC_REFRESH=12h\nSYNC_MAX_AGE=3d\nSYNC_PING_URL=%s\n" % SECRET_URL)
    env_file.chmod(0o600)
    looked = site.check("--env-file", str(env_file), SYNC_MAX_AGE="4d")
    listed = {check["found"]: check["subject"] for check in looked.checks if check["side"] == "settings"}
    assert looked.trouble == []
    assert listed.items() >= {
        "SYNC_REFRESH = 12h (from .env)": "file", "SYNC_MAX_AGE = 4d (from the environment)": "environment",
        "SYNC_DEADLINE = 3600 (default)": "default",
        "APP_PASSWORD = (hidden) (from the environment)": "environment",
        "SYNC_PING_URL = (hidden) (from .env)": "file"}.items(), listed


def test_env_that_others_may_read(site, tmp_path):
    env_file = tmp_path / ".env"
    env_file.write_text("SYNC_REFRESH=12h\n")
    env_file.chmod(0o644)
    looked = site.check("--env-file", str(env_file))
    named, = looked.trouble
    assert (named["level"], named["side"], looked.run.code) == ("warn", "settings", 0)
    assert str(env_file) in named["found"] + named["next_step"]
    subprocess.run(re.search("chmod 600 .*", named["next_step"]).group(), shell=True, check=True)
    assert site.check("--env-file", str(env_file)).trouble == []


# Databases and servers of another kind


@pytest.mark.parametrize("side", ["app", "warehouse"])
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_another_encoding(site, side, encoding):
    server = copy.copy(site.own[side].server)
    server.name = encoding.lower()
    with database(site.own[side].server, server.name, encoding):
        if side == "app":
            server.psql("-qc", PRISMA_USER)
        server.psql("-qf", str(PROJECT / SETUP[side]))
        other = Side(server)
        try:
            looked = Site(site.world, dict(site.own, **{side: other})).check()
        finally:
            other.connection.close()
    assert looked.find("warn %s encoding: %s" % (side, encoding)) in looked.trouble
    assert (looked.run.code, len(looked.trouble)) == (0, 1)


def test_a_standby_as_the_warehouse(site):
    with standby_of(site.own["warehouse"].server, "standby") as standby:
        other = Side(standby)
        looked = Site(site.world, dict(site.own, warehouse=other)).check()
        other.connection.close()
    named = looked.find("FAIL warehouse run: the database is read-only")
    assert "WH_HOST" in named["next_step"] and looked.run.code == 3


def test_the_lock_of_a_run_and_who_holds_it(site):
    take_lock = "SELECT pg_advisory_xact_lock(1096043596, 'analytics.athlete_dim'::regclass::oid::integer)"
    with site.own["warehouse"].holding(take_lock) as holder:
        looked = site.check()
        holder_pid = holder.value("SELECT pg_backend_pid()")
    named = looked.find("warn warehouse run's lock: held by backend %d" % holder_pid)
    assert (looked.trouble, looked.run.code) == ([named], 0)
    assert site.check().trouble == []


def test_a_look_keeps_no_run_from_the_lock(site):
    """It waits for the history, which somebody else holds; meanwhile a run would get the lock."""
    warehouse, number = site.own["warehouse"], "(1096043596, 'analytics.athlete_dim'::regclass::oid::integer)"
    with warehouse.locked(HISTORY):
        process = site.world.start("--check", **site.settings({}))
        warehouse.wait_until_a_run_waits_for_a_lock()
        assert warehouse.value("SELECT pg_try_advisory_lock" + number)
        warehouse.sql("SELECT pg_advisory_unlock" + number)
        assert finish(process).code == 0


def test_strict_is_the_runs_too(site):
    site.plant("app", "INSERT INTO public.\"User\" VALUES ('x', 'Ann Archer'), ('%s', 'Bob Bowman')" % BOB)
    looked, run = site.check("--strict"), site.world.sync("--strict", **site.settings({}))
    site.touched.add("warehouse")
    assert looked.run.code == run.code == 3 and looked.find("FAIL app run: --strict allows none")


def test_a_question_that_could_not_be_asked_is_not_answered(site):
    site.plant("warehouse", "DROP TABLE analytics.athlete_sync_run CASCADE")
    site.check().find("ok warehouse numbering: could not be asked")


def test_a_table_that_is_locked_does_not_hold_it_for_ever(site):
    with site.own["app"].locked('public."User"'):
        run = finish(site.world.start("--check", **site.settings(dict(SYNC_DEADLINE="1"))))
    assert run.code == 2 and "deadline" in run.out, run


def test_clocks_that_differ(script):
    assert script.check_clocks(3, -3).level == "ok"
    check = script.check_clocks(3600, 0)
    assert (check.level, check.found, check.code) == ("warn", "3600 s apart", 0)


# How it is shown


def read_table(text):
    """The rows of the table as --json would give them, and the verdict; what is well is counted between them."""
    lines, rows = text.splitlines(), []
    counts = [line for line in lines if re.match(r"(settings|app|warehouse): \d+ ok$", line)]
    assert lines[-4:-1] == counts and len(counts) == 3, text
    for line in lines[:-4]:
        if line.startswith("     -> "):
            rows[-1][-1] = line[8:]
        else:
            assert re.match(r"(ok  |warn|FAIL) \S", line), line
            rows.append([line[:4].strip(), line[5:14].strip(), line[15:27].strip(), line[28:], ""])
    return rows, lines[-1]


DAMAGE = ("REVOKE INSERT ON analytics.athlete_dim FROM warehouse_writer;"
          "ALTER TABLE analytics.athlete_dim RESET (fillfactor);"
          "DROP VIEW analytics.athlete_sync_health")


def test_json_and_the_table_say_the_same(site):
    site.plant("warehouse", DAMAGE)
    looked = site.check()
    shown = run_in_process(site.world.script, arguments(["--check", "-v"]),
                           site.world.environment(site.settings({})))
    rows, summary = read_table(shown.out)
    assert rows == [[check[key] for key in ("level", "side", "subject", "found", "next_step")]
                    for check in looked.checks]
    assert summary == "Not ready, 1 failure, 2 warnings"
    few = run_in_process(site.world.script, arguments(["--check"]), site.world.environment(site.settings({})))
    assert read_table(few.out) == ([row for row in rows if row[0] != "ok"], summary)
    assert shown.code == looked.run.code == 3


def test_quiet_says_nothing_unless_something_is_wrong(site):
    def quiet():
        return run_in_process(site.world.script, arguments(["--check", "-q"]),
                              site.world.environment(site.settings({})))
    assert quiet().out == ""
    site.plant("warehouse", DAMAGE)
    assert "FAIL warehouse run" in quiet().out and "warn warehouse cheap reruns" in quiet().out


@pytest.mark.parametrize("table, encoding", [
    ('public."User"', "utf-8"), ('public."Gr\u00f6\u00dfe"', "cp1252"), ('public."\u9078\u624b"', "cp1252"),
], ids=["utf-8", "cp1252", "what cp1252 lacks"])
def test_redirected_to_a_file(site, tmp_path, table, encoding):
    site.plant("warehouse", DAMAGE)
    process = site.world.start("--check", **site.settings(dict(APP_TABLE=table, PYTHONIOENCODING=encoding)))
    out, err = (text.decode(encoding).replace("\r", "") for text in process.communicate(timeout=60))
    rows, summary = read_table(out)
    assert process.returncode == 3 and "Traceback" not in err and "\x1b" not in out + err, err
    assert ("2 failures" if "User" not in table else "1 failure") in summary, summary
    assert [row[-1].count("GRANT SELECT, INSERT, UPDATE ON TABLE analytics.athlete_dim TO warehouse_writer;")
            for row in rows if row[1:3] == ["warehouse", "run"]] == [1], "on one line"


def test_on_a_terminal_of_80_columns(site):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(os.devnull) as nothing:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT)] + arguments(["--check"]),
            env=site.world.environment(site.settings({})),
            stdin=nothing, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    shown = b"".join(iter(lambda: read_terminal(ours), b"")).decode()
    os.close(ours)
    err = process.communicate(timeout=60)[1].decode()
    rows, summary = read_table(shown.replace("\r", ""))
    assert (process.returncode, rows, summary) == (0, [], "Ready"), shown
    assert "\x1b" not in shown + err


def read_terminal(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # what Linux says at the end
        return b""
