"""Settings: where they are found, how they are read, and what is said of those that cannot be."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from urllib.parse import quote

import psycopg2
import pytest
from conftest import ANN, arguments, project_in, run_in, run_in_process
from lab.servers import READER_PASSWORD, SCRIPT
from pings import ping_server

HUGE = "9" * 30
MALFORMED = {
    "APP_PORT": ["abc", "0", "-1", "65536", "5432.0", "54 32", "\u00b2"],
    "WH_PORT": ["abc"],
    "APP_SSLMODE": ["sometimes"],
    "WH_SSLMODE": ["REQUIRE!"],
    "APP_TABLE": ['public."User', 'public.User"', "a b", "a..b", ".a", "a.", '""', "a;b", '"a"b', "1a", "a-b", "x'y"],
    "APP_UUID_COLUMN": ["a.b", "a b"],
    "APP_NAME_COLUMN": ['"a"."b"'],
    "WH_TABLE": ["analytics.", "analytics athlete_dim", "athlete_dim", "warehouse.analytics.athlete_dim"],
    "SYNC_CONNECT_TIMEOUT": ["0", "abc", "-1", "1.5", "10s", "1000001"],
    "SYNC_CONNECT_ATTEMPTS": ["0", "many", HUGE],
    "SYNC_DEADLINE": ["0", "1h", "-5", HUGE],
    "SYNC_MAX_CHANGED_PERCENT": ["-1", "101", "half", "50%"],
    "SYNC_REFRESH": ["sometimes", "12", "12w", "h", "12 h", "-12h", "12h2m", "Always", HUGE + "d"],
    "SYNC_MAX_AGE": ["2", "always", "2 days"],
    "SYNC_PING_URL": ["hc-ping.com/x", "ftp://hc-ping.com/x", "http://", "http:///x", "http://a b/"],
    # A URL in the wrong place is told as such, and what a URL must escape.
    "APP_HOST": ["postgresql://role:s3cr3t@host/db", "s3cr3t@host"],
    "WH_DB": ["postgresql://role:s3cr3t@host/db"],
    "APP_USER": ["role:s3cr3t"],
    "APP_DATABASE_URL": ["postgresql://role:xs3cr3t@2x@host/db", "postgres://reader:s3cr3t@[/app",
                         "postgresql://role:s3cr3t@host/db?sslaccept=strict"],
}
NO_FIVE = {"APP_" + word: None for word in ("HOST", "PORT", "DB", "USER", "PASSWORD")}


@pytest.mark.parametrize("name, value", [(name, value) for name in MALFORMED for value in MALFORMED[name]], ids=ascii)
def test_a_malformed_setting_is_named(world, name, value):
    run = world.sync(**dict(NO_FIVE if name == "APP_DATABASE_URL" else {}, **{name: value}))
    assert run.code == 1 and " ERROR settings: " + name in run.error and "Next: " in run.error, run
    assert "invalid literal" not in run.error, "Python's words, not ours"
    assert "s3cr3t" not in run.out + run.err
    assert "s3cr3t" not in value or "DATABASE_URL" in run.error


def test_all_problems_are_told_at_once_and_the_largest_numbers_are_none(world):
    run = world.sync(APP_PORT="x", WH_DB=None, SYNC_REFRESH="often")
    assert run.code == 1 and all(name in run.error for name in ("APP_PORT", "WH_DB", "SYNC_REFRESH")), run
    largest = dict.fromkeys(("SYNC_DEADLINE", "SYNC_CONNECT_TIMEOUT", "SYNC_CONNECT_ATTEMPTS"), "1000000")
    assert world.sync(SYNC_REFRESH="999999d", **largest).code == 0


@pytest.mark.parametrize("text", [
    "people", "People", "PUBLIC.People", 'public."User"', '"User"', '"a.b".c', '"a""b"', '"".""""', '" "', "a$1", "_a1",
    "\u00c9t\u00e9", "gr\u00f6\u00dfe.STRASSE", "\u738b", '"%s {x}"', '"a"."b"."c"', "a.b.c", "$a", "1a", "a b", "a.",
    'a"b"'])
def test_a_name_is_read_as_postgres_reads_it(world, text):
    if world.app.connection.server_version < 90600:
        pytest.skip("PostgreSQL 9.5 has no parse_ident(), with which later ones say how they read a name")
    try:
        read = world.app.value("SELECT parse_ident(%s)", text)
    except psycopg2.Error:
        with pytest.raises(ValueError):
            world.script.sql_name(1, 9)(text)
    else:
        assert list(world.script.sql_name(1, 9)(text).strings) == read


# Where settings are found


@pytest.fixture
def env_file(tmp_path):
    path = tmp_path / "x.env"
    path.touch(mode=0o600)
    return path


def as_file(settings):
    return "".join('%s="%s"\n' % item for item in sorted(settings.items()))


def test_env_beside_the_readme_is_found_from_anywhere_and_another_takes_its_place(world, tmp_path, env_file):
    project = project_in(tmp_path / "a folder with blanks")
    world.app_has((ANN, "Ann Archer"))
    nothing = dict.fromkeys(world.lab.settings())
    run = run_in(project, world, **nothing)
    assert run.code == 1 and str(project / ".env") in run.error and "cp .env.example .env" in run.error, run
    (project / ".env").write_text(as_file(world.lab.settings()))
    run = run_in(project, world, **nothing)
    assert (run.code, world.dimension()) == (0, {ANN: "Ann Archer"}), run
    env_file.write_text(as_file(dict(world.lab.settings(), APP_PORT="1")))
    run = run_in(project, world, "--env-file", str(env_file), SYNC_CONNECT_ATTEMPTS="1", **nothing)
    assert run.code == 2 and "cp .env.example" not in run.error, "never told to overwrite the file that is there"


def test_the_environment_wins(world, env_file):
    env_file.write_text(as_file({"APP_PASSWORD": "wr0ng", "APP_TABLE": "nowhere"}))
    assert world.sync("--env-file", str(env_file)).code == 3, "only the table is the file's"
    assert world.sync("--env-file", str(env_file), APP_TABLE='public."User"').code == 0
    assert world.sync("--env-file", str(env_file), APP_PASSWORD="").code == 2, "empty is as not set"
    env_file.write_text(as_file({"APP_PASSWORD": READER_PASSWORD}))
    assert world.sync("--env-file", str(env_file), APP_PASSWORD="wr0ng").code == 2
    assert world.sync("--env-file", str(env_file), APP_PASSWORD=None).code == 0


@pytest.mark.skipif(os.name != "posix", reason="file modes are a matter of POSIX")
@pytest.mark.parametrize("mode, is_warned_of", [(0o644, True), (0o640, True), (0o600, False)])
def test_an_env_file_that_others_may_read_is_warned_of(world, env_file, mode, is_warned_of):
    env_file.chmod(mode)
    run = world.sync("--env-file", str(env_file))
    assert run.code == 0 and (" WARNING " in run.err and "chmod 600 %s" % env_file in run.err) == is_warned_of, run


@contextlib.contextmanager
def as_nobody():
    """Root may search any folder."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("flag", ["--dry-run", "--check", "--status"])
@pytest.mark.parametrize("name", ["", "x" * 300, os.path.join("/dev/null", "x"), "latin1", "closed/x"])
def test_an_env_file_that_cannot_be_read(world, tmp_path, flag, name):
    (tmp_path / "latin1").write_bytes(b"APP_NAME_COLUMN=pr\xe9nom\n")
    (tmp_path / "closed").mkdir(0)
    with as_nobody():
        run = run_in_process(world.script, [flag, "--env-file", name and str(tmp_path / name)], world.environment({}))
    assert run.code == 1 and "cannot read %s" % (name and tmp_path / name) in run.out + run.err, run
    assert (run.out + run.err).count("Next:") == 1, run


# How .env is written: a login that succeeds shows that the password was read as meant


PASSWORDS = {
    "plain": ("s3cr3t", "APP_PASSWORD=s3cr3t"),
    "blanks around": ("s3cr3t", "  APP_PASSWORD = s3cr3t  "),
    "export": ("s3cr3t", "export APP_PASSWORD=s3cr3t"),
    "a comment after it": ("s3cr3t", "APP_PASSWORD=s3cr3t # of the reader"),
    "a hash within": ("s3#cr3t", "APP_PASSWORD=s3#cr3t"),
    "a hash first, quoted": ("#s3 cr3t", "APP_PASSWORD='#s3 cr3t'"),
    "equals signs": ("c2VjcmV0=a==", "APP_PASSWORD=c2VjcmV0=a=="),
    "a dollar": ("s3$cr3t$HOME${HOME}", "APP_PASSWORD=s3$cr3t$HOME${HOME}"),
    "a dollar in quotes": ("s3$cr3t ${HOME}", 'APP_PASSWORD="s3$cr3t ${HOME}"'),
    "double quotes": ("s3 cr3t", 'APP_PASSWORD="s3 cr3t"'),
    "single quotes": ('s3 "cr3t" \\n', "APP_PASSWORD='s3 \"cr3t\" \\n'"),
    "a quote within": ("s3'cr\"3t", "APP_PASSWORD=s3'cr\"3t"),
    "a percent sign": ("s3%20cr3t%s", "APP_PASSWORD=s3%20cr3t%s"),
    "other letters": ("geh\u00e4im\u738b", "APP_PASSWORD=geh\u00e4im\u738b"),
    "Windows line ends": ("s3cr3t", "# comment\r\nAPP_PASSWORD=s3cr3t\r\nAPP_NAME_COLUMN=name\r\n"),
    "a byte order mark": ("s3cr3t", "\ufeffAPP_PASSWORD=s3cr3t"),
    "no newline at the end": ("s3cr3t", "# comment\n\nAPP_PASSWORD=s3cr3t"),
    "the last counts": ("s3cr3t", "APP_PASSWORD=wr0ng\nAPP_PASSWORD=s3cr3t\n#APP_PASSWORD=wr0ng"),
    "beside quoted names": ("s3cr3t", 'APP_TABLE=public."User"\nAPP_NAME_COLUMN=\'"name"\'\nAPP_PASSWORD=s3cr3t'),
}


@pytest.fixture
def reader(world):
    """A role of the app whose password a test may choose."""
    def with_password(password):
        world.app.sql("ALTER ROLE another_reader PASSWORD %s", password)
        return "another_reader"
    with world.app.changed("CREATE ROLE another_reader LOGIN IN ROLE app_readonly", "DROP ROLE another_reader"):
        yield with_password


@pytest.mark.parametrize("password, text", list(PASSWORDS.values()), ids=list(PASSWORDS))
def test_a_password_in_env(world, reader, env_file, password, text):
    env_file.write_bytes(text.encode("utf-8"))
    run = world.sync("--env-file", str(env_file), APP_USER=reader(password), APP_PASSWORD=None)
    assert run.code == 0 and password not in run.out + run.err, run


@pytest.mark.parametrize("name", ["APP_PASSWORD", "APP_HOST", "APP_TABLE", "SYNC_REFRESH"])
def test_bytes_that_no_setting_may_have(world, env_file, name):
    env_file.write_text(name + "=a\0b\n")
    run = world.sync("--env-file", str(env_file), **{name: None})
    assert run.code == 1 and name in run.error, run
    environment = {key.encode(): value.encode() for key, value in world.environment({}).items()}
    environment[name.encode()] = b"Jos\xe9"
    done = subprocess.run([sys.executable, str(SCRIPT)] + arguments(()), env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1 and name.encode() in done.stderr, done


# URLs


def url(world, prefix="APP", user=None, password=None, at="{HOST}:{PORT}", query=""):
    of = {word: world.lab.settings()[prefix + "_" + word] for word in ("HOST", "PORT", "DB", "USER", "PASSWORD")}
    return "postgresql://%s:%s@%s/%s%s" % (user or of["USER"], quote(password or of["PASSWORD"], safe=""),
                                           at.format(**of), of["DB"], query.format(**of))


@pytest.mark.parametrize("password", [
    "s3cr3t", "s3@cr:3t/o?r#d%20 \u738b", READER_PASSWORD, "100%25", "sp ace+plus", "'\"\\", "&=;word"])
def test_a_password_in_a_url(world, reader, password):
    world.app_has((ANN, "Ann Archer"))
    run = world.sync(APP_DATABASE_URL=url(world, user=reader(password), password=password), **NO_FIVE)
    assert (run.code, run.counts()) == (0, "1: 1 new"), run
    assert password not in run.out + run.err and quote(password, safe="") not in run.out + run.err


# A part of the URL, or the host -> exit code, and words of what is said
ADDRESSES = [
    (dict(query="?sslmode=prefer"), 0, ""),
    (dict(query="?connect_timeout=5&application_name=mine&keepalives_idle=5&tcp_user_timeout=1000"), 0, ""),
    (dict(query="?client_encoding=LATIN1"), 0, ""),
    (dict(query="?options=-c%20statement_timeout%3D60000"), 0, ""),
    (dict(query="?options=-csearch_path%3Dpg_catalog"), 3, '"User" does not exist'),
    (dict(query="?schema=public"), 0, ""),
    (dict(query="?pgbouncer=true&connection_limit=1&sslmode=prefer&pool_timeout=10"), 0, ""),
    (dict(query="?sslmode=sometimes"), 1, "APP_DATABASE_URL"),
    (dict(at="{HOST},{HOST}", query="?port={PORT}"), 0, ""),
    (dict(at="{HOST}:{PORT},{HOST}:{PORT}"), 0, ""),
    (dict(at="", query="?host=/cloudsql/project:europe-west1:app"), 2, "/cloudsql/project:europe-west1:app"),
    (dict(APP_HOST="/cloudsql/project:europe-west1:app"), 2, "/cloudsql/project:europe-west1:app"),
    (dict(APP_HOST="::1,127.0.0.1"), 0, ""),
    (dict(APP_HOST="/a:b,fe80::1%eth0,127.0.0.1"), 0, ""),
    (dict(APP_HOST="db..example"), 2, "APP_HOST"),
    (dict(APP_HOST="a" * 70 + ".example"), 2, "APP_HOST"),
]


@pytest.mark.parametrize("address, code, words", ADDRESSES)
def test_where_the_app_is(world, address, code, words):
    world.app_has((ANN, "\u738b\u5c0f\u660e"))
    settings = dict(NO_FIVE, APP_DATABASE_URL=url(world, **address)) if "APP_HOST" not in address else address
    run = world.sync(APP_TABLE='"User"', SYNC_CONNECT_ATTEMPTS="1", SYNC_CONNECT_TIMEOUT="1", **settings)
    assert run.code == code and words in run.error, run
    assert world.dimension() == ({} if code else {ANN: "\u738b\u5c0f\u660e"}), "names come as UTF-8"


def test_both_sides_by_url(world):
    settings = dict.fromkeys(world.lab.settings(), None)
    urls = dict(APP_DATABASE_URL=url(world), WH_DATABASE_URL=url(world, "WH").replace("postgresql", "postgres"))
    assert world.sync(**dict(settings, **urls)).code == 0
    run = world.sync(**dict(settings, WH_PORT="5432", **urls))
    assert run.code == 1 and "WH_DATABASE_URL" in run.error and "WH_PORT" in run.error, run


# A canary in a hundred mangled URLs, of which no four letters in a row may come out anywhere
CANARY = "h7ntrQZq"
TEMPLATES = [
    "postgresql://role:" + rest for rest in (
        "{0}@2{0}@host/db", "{0}/x@host/db", "{0}:x@host/db", "{0}?x@host/db", "{0}?x=1@host/db", "{0}#x@host/db",
        "{0}%@host/db", "{0}%zz@host/db", "{0}[@host/db", "{0} x@host/db", "x@{0}@host/db", "x@y@{0}/db",
        "x@host@{0}/db", "x@host:{0}/db", "x@host:5432:{0}/db", "x@ho/st/{0}", "x@host/db?sslmode={0}", "x@host/db?{0}",
        "x@host/db?a={0}", "x@host/db&{0}=1", "x@host/db?sslmode=require&{0}", "x@ho st/{0}", "{0}", "{0}@@host/db",
        "{0}@host@/db", "{0}@host/db@x", "{0}@host/db:x", "{0}@[host/db", "{0}@host]/db")
] + ["postgresql:/role:{0}@host/db", "postgresql//role:{0}@host/db", "postgresql:role:{0}@host/db", "role:{0}@host/db",
     "postgresql://role@{0}@host/db", "postgresql://:{0}@host/db", "//role:{0}@host/db",
     "host=db.example user=role password={0}", "host=db.example,password={0}", "{0}@db.example"]
MANGLED = [(name, template) for template in TEMPLATES
           for name in ("APP_DATABASE_URL", "WH_DATABASE_URL", "APP_HOST", "WH_DB")]
PIECES = [CANARY[place:place + 4] for place in range(len(CANARY) - 3)]


@pytest.mark.parametrize("flags", [("-v",), ("--check", "-v"), ("--json",)], ids=["sync", "check", "json"])
def test_no_piece_of_a_password_comes_out_of_a_mangled_url(world, flags):
    with ping_server() as server:
        for name, template in MANGLED:
            five = {} if name[-3:] != "URL" else dict.fromkeys(
                one for one in world.lab.settings() if one.startswith(name.split("_")[0]))
            settings = dict(five, **{name: template.format(CANARY), "SYNC_PING_URL": server.url, "SYNC_DEADLINE": "20",
                                     "SYNC_CONNECT_ATTEMPTS": "1", "SYNC_CONNECT_TIMEOUT": "1"})
            run = run_in_process(world.script, arguments(flags), world.environment(settings))
            said = run.out + run.err + str(world.history()) + str(server.told)
            assert run.code in (1, 2) and not [piece for piece in PIECES if piece in said], (name, template, run)


FULL = "/dev/full"


@pytest.mark.skipif(not os.path.exists(FULL), reason="there is no /dev/full here")
@pytest.mark.parametrize("flag, module, code", [
    ("--help", "", 0), ("--version", "", 0), ("--nonsense", "", 1), ("--status", "", 2),
    ("-q", "raise ImportError('No module named numpy')", 1), ("-q", "raise ValueError('numpy.dtype size changed')", 1),
    ("-q", "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", 4)], ids=str)
def test_nothing_but_0_to_4_comes_out_though_nobody_can_be_told(world, tmp_path, flag, module, code):
    """Neither while it imports its packages."""
    if module:
        (tmp_path / "numpy.py").write_text(module)
    command = [sys.executable, str(SCRIPT), flag] + arguments(())
    environment = world.environment({"WH_PORT": "1", "SYNC_CONNECT_ATTEMPTS": "1", "PYTHONPATH": str(tmp_path)})
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(FULL, "wb") as full, open(write_end, "wb") as closed_pipe:
        for nobody in (full, closed_pipe):
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=nobody, stderr=nobody)
            assert done.returncode == code
    if module:
        told = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert told.returncode == code and (b" packages: " in told.stderr) == (code == 1), told
