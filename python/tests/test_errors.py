"""Each cause of the table in the script: brought about on real servers, told as it should be, and mended by what is
advised, which is pasted as it stands."""

from __future__ import annotations

import contextlib
import re
import signal
import socketserver
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ANN, BOB, HISTORY, finish, trigger
from lab.servers import (PROJECT, READER_PASSWORD, SCRIPT, SUPERUSER_PASSWORD, WRITER_PASSWORD, program_of, wait_until)
from proxy import Proxy
from standby import standby_of

PREFIX = {"app": "APP", "warehouse": "WH"}
ROLE = {"app": "app_readonly", "warehouse": "warehouse_writer"}
PASSWORD = {"app": READER_PASSWORD, "warehouse": WRITER_PASSWORD}
AGAIN = "attempt 1 of 2 failed"


# What is broken, in SQL or by a setting, what the line says, what in it is pasted, and how all is put back. {role},
# {db}, {password} and {P} are the side's; "~": it is tried again, "!": it is a failure to connect.
LOGIN = r"psql [^;]*sql/\w+\.sql -c '[^']*'"
BOTH = {
    "! wrong password": (dict(PASSWORD="typed"), "authentication failed.*check {P}_USER and {P}_PASSWORD", LOGIN,
                         "", "ALTER ROLE {role} PASSWORD '{password}'"),
    "! role never made": (dict(USER="nobody_known", PASSWORD="typed"), "password authentication.*make the role", LOGIN,
                          "", "DROP OWNED BY nobody_known; DROP ROLE nobody_known"),
    "! expired": ({}, "password authentication failed", "ALTER ROLE {role} VALID UNTIL 'infinity';",
                  "ALTER ROLE {role} VALID UNTIL '2020-01-01'", "ALTER ROLE {role} VALID UNTIL 'infinity'"),
    "! NOLOGIN": ({}, "not permitted to log in", "ALTER ROLE .*?;", "ALTER ROLE {role} NOLOGIN",
                  "ALTER ROLE {role} LOGIN"),
    "! CONNECT": ({}, "it may not connect", "GRANT .*?;",
                  "REVOKE CONNECT ON DATABASE {db} FROM PUBLIC, {role}",
                  "GRANT CONNECT ON DATABASE {db} TO PUBLIC, {role}"),
    "! nobody may in": ({}, "lets nobody in.*not currently accepting", "ALTER DATABASE .*?;",
                        "ALTER DATABASE {db} ALLOW_CONNECTIONS false", "ALTER DATABASE {db} ALLOW_CONNECTIONS true"),
    "!~ the role's limit": ({}, "no connection is free.*for role", "ALTER ROLE .*?;",
                            "ALTER ROLE {role} CONNECTION LIMIT 0", "ALTER ROLE {role} CONNECTION LIMIT -1"),
    "!~ the database's limit": ({}, "no connection is free.*for database", "ALTER DATABASE .*?;",
                                "ALTER DATABASE {db} CONNECTION LIMIT 0", "ALTER DATABASE {db} CONNECTION LIMIT -1"),
    "! no such database": (dict(DB="nowhere"), '"nowhere" does not exist.*check {P}_DB', "psql .* -l"),
    "! no TLS there": (dict(SSLMODE="require"), "server does not support SSL", "{P}_SSLMODE=disable"),
    "!~ closed port": (dict(PORT="1"), "nothing listens there.*check {P}_HOST and {P}_PORT: pg_isready"),
    "!~ unknown host": (dict(HOST="nosuchhost.invalid"), "unknown host.*check {P}_HOST"),
}
APP = {
    "name without its quotes": (dict(TABLE="public.User"), "the table does not exist", 'APP_TABLE=public."User"'),
    "name in quotes as a whole": (dict(TABLE='"public.User"'), "the table does not exist", 'APP_TABLE=public."User"'),
    "no such table": (dict(TABLE="public.nobody"), "the table does not exist.*check APP_TABLE .*, APP_DB"),
    "no such column": (dict(NAME_COLUMN="fullName"), 'fullname" does not exist.*it has uuid, name, email, "createdAt"'),
    "nearly a column": (dict(NAME_COLUMN="nam"), r'"nam" does not exist \[42703\] Hint: Perhaps you.*"User.name"'),
    "USAGE": ({}, "denied for schema public", "GRANT .*;", "REVOKE USAGE ON SCHEMA public FROM PUBLIC, {role}",
              "GRANT USAGE ON SCHEMA public TO PUBLIC, {role}"),
}
REMADE = ("DROP TABLE analytics.athlete_dim; CREATE TABLE analytics.athlete_dim (athlete_uuid UUID PRIMARY KEY, "
          "full_name TEXT NOT NULL, source_synced_at TIMESTAMPTZ NOT NULL DEFAULT now()) WITH (fillfactor = 50);"
          "GRANT SELECT, INSERT, UPDATE ON analytics.athlete_dim TO warehouse_writer; ALTER ROLE warehouse_writer"
          " NOBYPASSRLS; ALTER ROLE warehouse_writer RESET ALL")
OF_DIM = "ALTER TABLE analytics.athlete_dim "
WAREHOUSE = {
    "no such table": (dict(TABLE="analytics.coach_dim"), "the table does not exist", r"psql .*\.sql", "",
                      "DROP TABLE analytics.coach_dim"),
    "no such column": ({}, "full_name text.*it has athlete_uuid, full_name, seen", "",
                       OF_DIM + "RENAME source_synced_at TO seen"),
    "a role that it SETs": ({}, "a privilege is missing.* TO deputy;", "GRANT .*?;(?= or run)", "CREATE ROLE deputy;"
                            "GRANT deputy TO {role}; ALTER ROLE {role} SET role = deputy",
                            REMADE + "; DROP OWNED BY deputy; DROP ROLE deputy"),
    "a sequence": ({}, "denied for sequence athlete_dim_id_seq", "GRANT USAGE .*?;", OF_DIM + "ADD id SERIAL"),
    "row security": ({}, "row-level security is in the way", "ALTER ROLE .*?;", OF_DIM + "ENABLE ROW LEVEL SECURITY"),
    "no key": ({}, "keeps one row an athlete.*ON CONFLICT", "CREATE UNIQUE INDEX .*?;",
               OF_DIM + "DROP CONSTRAINT athlete_dim_pkey"),
    "a deferrable key": ({}, "the key is deferrable.*ON CONFLICT", "ALTER TABLE .*?;", OF_DIM + "DROP CONSTRAINT"
                         " athlete_dim_pkey, ADD PRIMARY KEY (athlete_uuid) DEFERRABLE"),
    "only reads": ({}, "read-only transaction.*point WH_HOST at the primary", "BEGIN READ WRITE;.*COMMIT;",
                   "ALTER ROLE {role} SET default_transaction_read_only = on"),
    "a column to fill": ({}, "does not fill a column", "ALTER TABLE .*?;", OF_DIM + "ADD club TEXT NOT NULL"),
}
CASES = {"%s: %s" % (side, name): (side,) + case
         for side, own in (("app", APP), ("warehouse", WAREHOUSE)) for name, case in dict(BOTH, **own).items()}


@pytest.mark.parametrize("name", list(CASES))
def test_a_cause_is_told_and_what_is_pasted_mends_it(world, name):
    side, changed, *texts = CASES[name]
    names = {"{role}": ROLE[side], "{db}": side, "{password}": PASSWORD[side].replace("'", "''"), "{P}": PREFIX[side]}
    words, pasted, change, undo = [re.sub("{[a-zP]+}", lambda found: names[found.group()], text)
                                   for text in texts + [""] * (4 - len(texts))]
    settings = dict({PREFIX[side] + "_" + key: value for key, value in changed.items()}, SYNC_CONNECT_ATTEMPTS="2")
    world.app_has((ANN, "Ann Archer"))
    with broken(getattr(world, side), change, undo or (REMADE if "ALTER" in change else "")):
        run = world.sync(**settings)
        line = told(run, 2 if "!" in name else 3, side, words)
        assert (AGAIN in run.err) == ("~" in name), run
        if pasted:
            paste(getattr(world, side), re.search(pasted, line).group(), settings)
            if settings.get(PREFIX[side] + "_DB") == "nowhere":
                settings.pop(PREFIX[side] + "_DB")  # as the list that was pasted says
            assert world.sync(**settings).code == 0, line


@contextlib.contextmanager
def broken(side, change, undo):
    """A database lets nobody out of itself, so that it is changed from another."""
    side.server.psql("-qc", change, database="postgres" if "ALTER DATABASE" in change else None)
    try:
        yield
    finally:
        side.server.psql("-qc", undo)


def told(run, code, side, words):
    """The line that says it, without what the history may add."""
    line, = [line for line in run.err.splitlines() if " ERROR " in line]
    assert run.code == code and " ERROR %s: " % side in line and re.search(words, line), run
    return line


def paste(side, text, settings):
    """What is advised: a setting, a command for the shell, or SQL."""
    setting = re.match(r"([A-Z]+_[A-Z]+)=(\S+)$", text)
    if setting:
        settings[setting.group(1)] = setting.group(2)
    elif text.startswith("psql "):
        return shell(side, text)
    else:
        side.sql(text)


def shell(side, command):
    """As a superuser, in the project's folder, who types the new password twice where psql asks for it."""
    psql = Path(program_of(side.server.bindir, "psql"))
    password = PASSWORD[side.server.name] if "-U postgres" not in command else SUPERUSER_PASSWORD
    done = subprocess.run(["sh", "-c", command], cwd=str(PROJECT), input="typed\ntyped\n", start_new_session=True,
                          env={"PATH": "%s:/usr/bin:/bin" % psql.parent, "PGPASSWORD": password},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0 and done.stdout, (command, done)
    return done.stdout


BY_TRIGGER = r"a trigger, function or view refused: \(withheld.*psql .*d\+ analytics"
WORDS = {
    "22001": (OF_DIM + "ALTER full_name TYPE varchar(3)", r"value too long for type character varying\(3\) \[22001\]"),
    "2200H": ("CREATE SEQUENCE analytics.few MAXVALUE 2; SELECT nextval('analytics.few') FROM generate_series(1, 2);"
              "GRANT USAGE ON SEQUENCE analytics.few TO warehouse_writer;" + OF_DIM + "ADD id INT;" + OF_DIM +
              "ALTER id SET DEFAULT nextval('analytics.few')", r"reached maximum value of sequence .few. \(2\)"),
    "22003": (OF_DIM + "ADD id SMALLINT GENERATED ALWAYS AS ((length(full_name) * 10000)::smallint) STORED",
              r"smallint out of range \[22003\]"),
    "428C9": (OF_DIM + "DROP source_synced_at, ADD source_synced_at TIMESTAMPTZ GENERATED ALWAYS"
              " AS ('2020-01-01 00:00:00+00'::timestamptz) STORED", r"non-DEFAULT value into column .*428C9"),
    "23514": (OF_DIM + "ADD CONSTRAINT short CHECK (length(full_name) < 3)", "check constraint .short."),
    "22P02": (OF_DIM + "ADD id INTEGER GENERATED ALWAYS AS (full_name::integer) STORED", r"\(withheld.*\[22P02\]"),
    "P0001": ("RAISE EXCEPTION 'not %', NEW.full_name USING HINT = NEW.full_name", BY_TRIGGER),
    "42501": ("RAISE EXCEPTION 'not %', NEW.full_name USING ERRCODE = '42501'", BY_TRIGGER),
    "22003 of a trigger": ("RAISE EXCEPTION 'not %', NEW.full_name USING ERRCODE = '22003'", BY_TRIGGER),
    "22P02 of a trigger": ("PERFORM NEW.full_name::integer", BY_TRIGGER),
}


@pytest.mark.parametrize("state", list(WORDS))
def test_words_are_shown_unless_they_may_quote_a_row(world, state):
    change, words = WORDS[state]
    world.warehouse.needs(change, GENERATED=14 if state == "428C9" else 12)
    world.app_has((ANN, "Ann Archer"))
    if words == BY_TRIGGER:
        change = trigger("BEFORE INSERT", change + "; RETURN NEW;")[0]
    gone = "DROP SEQUENCE IF EXISTS analytics.few; DROP FUNCTION IF EXISTS analytics.meddle() CASCADE"
    with broken(world.warehouse, change, REMADE + ";" + gone):
        told(world.sync(), 3, "warehouse", words)


def test_a_full_table_of_locks_is_no_full_disk(world):
    """The server's hint is what helps."""
    world.app_has((ANN, "Ann Archer"))
    take_all = ("DO $$ BEGIN FOR n IN 1..1000000 LOOP PERFORM pg_advisory_lock(n); END LOOP;"
                " EXCEPTION WHEN out_of_memory THEN NULL; END $$")
    with world.warehouse.holding(take_all) as holder:
        line = told(finish(world.start(SYNC_CONNECT_ATTEMPTS="1")), 2, "warehouse",
                    "(?i)out of shared memory.*hint: .*max_locks_per_transaction")
        holder.sql("SELECT pg_advisory_unlock_all()")
    assert "disk" not in line


@pytest.mark.parametrize("side", ["app", "warehouse"])
def test_a_lock_that_outlasts_the_deadline_is_told_with_its_holder(world, side):
    world.app_has((ANN, "Ann Archer"))
    server, table = getattr(world, side), {"app": r'public."User"', "warehouse": "analytics.athlete_dim"}[side]
    with server.locked() as holder:
        holder_pid = holder.value("SELECT pg_backend_pid()")
        run = finish(world.start(SYNC_DEADLINE="2"))
        line = told(run, 2, side, r"deadline of 2 s passed; rolled back; backend %d \(postgres.*\) holds a lock on %s%s"
                    % (holder_pid, table, r", since (before )?20\d\d" if server.version() >= 14 else "[,.]"))
        server.sql(re.search("SELECT pg_terminate_backend.*?;", line).group())
        assert world.sync().code == 0


OURS = "FROM pg_stat_activity WHERE usename = 'app_readonly' AND state = 'active'"


def test_a_statement_that_somebody_cancels(world):
    with world.app.locked():
        process = world.start()
        world.app.wait_until_a_run_waits_for_a_lock()
        wait_until(lambda: [world.app.sql("SELECT pg_cancel_backend(pid) " + OURS), process.poll()][1] is not None)
        told(finish(process), 3, "app", r"somebody cancelled the statement: .*user request \[57014\]")


@pytest.mark.parametrize("ended_by", ["the server", "a cancel"])
def test_a_run_that_slept_past_its_deadline_says_so(world, ended_by):
    """Frozen until its statement has ended, by whatever means: on servers before 17 it is cancelled."""
    with world.app.locked():
        process = world.start(SYNC_DEADLINE="2")
        world.app.wait_until_a_run_waits_for_a_lock()
        process.send_signal(signal.SIGSTOP)
        if ended_by == "a cancel":
            wait_until(lambda: world.app.sql("SELECT 1 %s AND xact_start < now() - interval '2.2 s'" % OURS))
            world.app.sql("SELECT pg_cancel_backend(pid) " + OURS)
        wait_until(lambda: not world.app.sql("SELECT 1 " + OURS))
        process.send_signal(signal.SIGCONT)
        run = finish(process)
    assert run.code == 2 and "deadline" in run.err and "cancelled the statement" not in run.err, run


def test_a_failed_run_that_is_not_in_the_history_says_so(world):
    world.app_has((ANN, None))
    with world.warehouse.changed("REVOKE INSERT ON %s FROM warehouse_writer" % HISTORY,
                                 "GRANT INSERT ON %s TO warehouse_writer" % HISTORY):
        failed = world.sync()
        told(failed, 3, "app", "every row was rejected")
        world.app_has((BOB, "Bob Bowman"))
        run = world.sync()
    assert "WARNING warehouse: this run is not in the run history" in failed.err and world.ends() == [], failed
    assert run.code == 0 and re.search("denied for (table|relation) athlete_sync_run", run.err), run


STAND_IN = """
SET allow_system_table_mods = on;
CREATE TABLE pg_catalog.pg_dist_local_group AS SELECT 1 AS groupid;
CREATE TABLE pg_catalog.pg_dist_node (groupid, nodename, nodeport)
    AS VALUES (0, 'coordinator.example.org', 5433), (1, 'worker.example.org', 5434);
GRANT SELECT ON pg_catalog.pg_dist_local_group, pg_catalog.pg_dist_node TO PUBLIC
"""
NO_STAND_IN = """
SET allow_system_table_mods = on; DROP TABLE pg_catalog.pg_dist_local_group, pg_catalog.pg_dist_node;
RESET allow_system_table_mods
"""


def test_a_worker_of_citus_is_no_warehouse(world):
    world.app_has((ANN, "Ann Archer"))
    if world.warehouse.version() < 13:
        pytest.skip("PostgreSQL 13 brought a way to make what stands in for the catalogs of Citus")
    with world.warehouse.changed(STAND_IN, NO_STAND_IN):
        told(world.sync(), 3, "warehouse",
             "a worker of Citus.*WH_HOST and WH_PORT of the coordinator: coordinator.example.org:5433")
        world.warehouse.sql("UPDATE pg_catalog.pg_dist_local_group SET groupid = 0")
        assert world.sync().code == 0


def test_a_server_without_citus_is_asked_whether_the_table_exists(world):
    world.app_has((ANN, "Ann Archer"))
    with Proxy("warehouse", world.lab.warehouse.port) as proxy:
        assert world.sync(WH_PORT=str(proxy.port)).code == 0
        asked = [step for step in proxy.steps if "pg_dist" in step]
    assert len(asked) == 1 and asked[0].count("pg_dist") == asked[0].count("to_regclass('pg_catalog.pg_dist") == 1


@pytest.mark.parametrize("state, words, told_as", [
    ("08006", "connection to the remote node warehouse_writer@w:5432 failed with the following error: "
     "fe_sendauth: no password supplied", "INSERT INTO pg_dist_authinfo VALUES .0, 'warehouse_writer'"),
    ("XX000", "failure on connection marked as essential: w:5432", "the connection was lost"),
    ("58030", "failed to COPY to shard 102008 on w:5432", "the connection was lost")])
def test_a_worker_that_is_lost_or_lets_nobody_in_is_a_connection(world, state, words, told_as):
    world.app_has((ANN, "Ann Archer"))
    raising = "RAISE EXCEPTION '%s' USING ERRCODE = '%s'; RETURN NEW;" % (words, state)
    with world.warehouse.changed(*trigger("BEFORE INSERT", raising)):
        told(world.sync(), 2, "warehouse", told_as)


@contextlib.contextmanager
def stand_in(answer, tls=b"N"):
    """Listens as a server would, answers the request for TLS, and then says one thing to each who connects."""
    class Client(socketserver.BaseRequestHandler):
        def handle(self):
            if self.request.recv(8)[4:] == struct.pack("!I", 80877103):
                self.request.sendall(tls)
                if tls:
                    self.request.recv(4096)
            self.request.sendall(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Client) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield str(server.server_address[1])
        server.shutdown()


def fatal(words):
    fields = b"SFATAL\0VFATAL\0C08P01\0M" + words.encode() + b"\0\0"
    return b"E" + struct.pack("!I", len(fields) + 4) + fields


SAID = {  # and whether it is tried again
    "no more connections allowed (max_client_conn)": ("no connection is free", True),
    "MaxClientsInSessionMode: max clients reached - in Session mode": ("no connection is free", True),
    "Max client connections reached": ("no connection is free", True),
    "sorry, too many clients already": ("no connection is free", True),
    "tut mir leid, schon zu viele Verbindungen": ("the connection failed", True),
    "le système de bases de données se lance": ("the connection failed", True),
    "the database system is starting up": ("the server is not up", True),
    "the database system is in recovery mode": ("the server is not up", True),
    "Passwort-Authentifizierung für Benutzer »x« fehlgeschlagen": ("the login was refused", False),
    "authentification par mot de passe échouée pour l'utilisateur « x »": ("the login was refused", False),
    "Tenant or user not found": ("the login was refused", False),
    "no such database: app": ("no such database", False),
}


@pytest.mark.parametrize("answer, tls, words, again", [
    *((fatal(said), b"N", *told_as) for said, told_as in SAID.items()),
    (b"", b"S", "hung up", True), (b"", b"N", "hung up", True), (b"", b"", "hung up", True),
    (b"HTTP/1.1 400 Bad Request\r\n", b"N", "received H", True)])
def test_what_poolers_and_other_languages_say_and_who_hangs_up(world, answer, tls, words, again):
    with stand_in(answer, tls) as port:
        run = world.sync(APP_PORT=port, SYNC_CONNECT_ATTEMPTS="2")
    assert "disable" not in told(run, 2, "app", words), "no advice lowers security"
    assert (AGAIN in run.err) == again, run


def app_url(world, **parameters):
    return dict(APP_HOST=None, APP_PORT=None, APP_DB=None, APP_USER=None, APP_PASSWORD=None, SYNC_CONNECT_ATTEMPTS="1",
                APP_DATABASE_URL="postgresql://app_readonly:%s@127.0.0.1:%d/app?%s" % (
                    "".join("%%%02x" % byte for byte in READER_PASSWORD.encode()), world.lab.app.port,
                    "&".join("%s=%s" % one for one in parameters.items())))


@pytest.mark.parametrize("parameters, words", [
    (dict(port="1"), "check the host in APP_DATABASE_URL and the port in APP_DATABASE_URL: "),
    (dict(host="db.example.org", hostaddr="2001:db8::1"), "only IPv6.*getent ahosts db.example.org"),
    (dict(target_session_attrs="read-write"), "is read-only.*APP_DATABASE_URL with target_session_attrs=primary")])
def test_a_url_is_named_where_it_is_what_is_set(world, parameters, words):
    line = told(world.sync(**app_url(world, **parameters)), 2, "app", words)
    assert "APP_HOST" not in line
    if "=primary" in words:
        assert world.sync(**app_url(world, target_session_attrs="primary")).code == 0


@pytest.mark.parametrize("url, words", [
    ("postgresql+psycopg2://u:s3cret@h/d", "is not a libpq URL such as postgresql://"),
    ("postgresql://u:s3cret@h/d?serverVersion=15", "parameter serverVersion"),
    ("postgresql://u:s3cret@h/d?sslmode=requir", "sslmode that is none of disable, "),
    ("postgresql://u:s3cret?more=x@h/d", "%3F"), ("postgresql://u@h/d?password=s3cret&more=x", "is not a libpq URL")])
def test_a_url_is_told_by_the_part_that_is_wrong(world, url, words):
    line = told(world.sync(**dict(app_url(world), APP_DATABASE_URL=url)), 1, "settings", "APP_DATABASE_URL .*" + words)
    assert "s3cret" not in line and "more" not in line


def test_a_standby_that_nobody_may_read(world):
    world.app_has((ANN, "Ann Archer"))
    if world.app.version() < 14:
        pytest.skip("PostgreSQL 14 brought the message of a standby that nobody may read")
    with standby_of(world.lab.app, "hidden") as standby:
        for value, code in (("off", 2), ("on", 0)):
            standby.stop("fast")
            with (standby.data / "postgresql.conf").open("a") as configuration:
                configuration.write("hot_standby = %s\n" % value)
            standby.start()
            run = world.sync(APP_PORT=str(standby.port))
            assert run.code == code, run
            if code:
                told(run, 2, "app", "nobody may read this standby.*set hot_standby = on there")


@pytest.mark.parametrize("kilobytes", [2500000, 4500000])
def test_where_no_thread_can_be_started(world, kilobytes):
    """Each would take 3 GB, so that none, or the first alone, can be had. Numpy starts some when it is imported."""
    limits = "ulimit -s 3000000; ulimit -v %d; exec \"$@\"" % kilobytes
    run = finish(world.start(command=("bash", "-c", limits, "limited", sys.executable, str(SCRIPT))))
    assert run.code == 4 and "sync: no thread can be started. Next: raise ulimit -u" in run.err, run


def rows_of(script):
    """The causes as errors.md has them: what the line says, the exit code, what to do."""
    names = dict(prefix="APP", HOST="APP_HOST", PORT="APP_PORT", DB="APP_DB", USER="APP_USER", PASSWORD="APP_PASSWORD",
                 setup="psql -f sql/...", grants="the GRANTs above", columns="check the columns", tables="see above")
    causes = [(cause, 2) for cause in script.LASTING + script.PASSING]
    causes += [(cause, cause.code) for cause in script.CAUSES + [script.NOT_OURS]]
    for cause, code in causes:
        step = re.sub(r"{(\w+)}", lambda name: names.get(name.group(1), "<%s>" % name.group(1)), cause.next_step)
        yield "| %s | %d | %s |" % (cause.meaning, code, step.replace("|", "\\|"))


def test_the_page_has_each_cause(script):
    page = (PROJECT / "python" / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in page if re.search(r" \| [23] \| ", line)]
    assert table == list(dict.fromkeys(rows_of(script)))
