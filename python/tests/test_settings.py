"""Settings: where they are found, how they are read, and what is said of those that cannot be."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import venv
from urllib.parse import quote

import psycopg2
import pytest

from conftest import ANN, arguments, finish, project_in, run_in, run_in_process
from lab.servers import PROJECT, READER_PASSWORD, SCRIPT, WRITER_PASSWORD
from pings import ping_server

MALFORMED = {
    "APP_PORT": ["abc", "0", "-1", "65536", "5432.0", "54 32", "\u00b2"],
    "WH_PORT": ["abc"],
    "APP_SSLMODE": ["sometimes"],
    "WH_SSLMODE": ["REQUIRE!"],
    "APP_TABLE": ['public."User', 'public.User"', "a b", "a..b", ".a", "a.", '""', "a;b", '"a"b', "1a",
                  "a-b", "x'y"],
    "APP_UUID_COLUMN": ["a.b", "a b"],
    "APP_NAME_COLUMN": ['"a"."b"'],
    "WH_TABLE": ["analytics.", "analytics athlete_dim"],
    "SYNC_CONNECT_TIMEOUT": ["0", "abc", "-1", "1.5", "10s"],
    "SYNC_CONNECT_ATTEMPTS": ["0", "many"],
    "SYNC_DEADLINE": ["0", "1h", "-5", "9" * 30],
    "SYNC_MAX_UPDATED_PERCENT": ["-1", "101", "half", "50%"],
    "SYNC_REFRESH": ["sometimes", "12", "12w", "h", "12 h", "-12h", "12h2m", "Always", "9" * 30 + "d"],
}


@pytest.mark.parametrize("name, value", [(name, value) for name in MALFORMED for value in MALFORMED[name]],
                         ids=ascii)
def test_a_malformed_setting_is_named(world, name, value):
    run = world.sync(**{name: value})
    assert run.code == 1, run
    assert " settings: " in run.error and name in run.error and "Next: " in run.error, run
    assert "invalid literal" not in run.error, "Python's words, not ours"


@pytest.mark.parametrize("value", ["999999999", "99999999999"])
@pytest.mark.parametrize("name", ["SYNC_DEADLINE", "SYNC_CONNECT_TIMEOUT", "SYNC_CONNECT_ATTEMPTS"])
def test_a_number_too_large_is_taken_or_refused_but_never_a_defect(world, name, value):
    world.app_has((ANN, "Ann Archer"))
    run = world.sync(**{name: value})
    assert run.code in (0, 1), run
    assert "Exception in thread" not in run.err


def test_passwords_and_values_are_not_repeated_in_complaints(world):
    run = world.sync(APP_PASSWORD="s3cr3t", APP_DATABASE_URL="postgres://reader:s3cr3t@[/app", APP_PORT="x")
    assert run.code == 1 and "s3cr3t" not in run.out + run.err, run


@pytest.mark.parametrize("text", [
    "people", "People", "PUBLIC.People", 'public."User"', '"User"', '"a.b".c', '"a""b"', '"".""""', '" "',
    "a$1", "_a1",
    "\u00c9t\u00e9", "gr\u00f6\u00dfe.STRASSE", "\u738b", '"%s {x}"', '"a"."b"."c"', "a.b.c", "$a", "1a",
    "a b", "a.", 'a"b"'])
def test_a_name_is_read_as_postgres_reads_it(world, text):
    if world.app.connection.server_version < 90600:
        pytest.skip("PostgreSQL 9.5 has no parse_ident(), with which later ones say how they read a name")
    try:
        read = world.app.value("SELECT parse_ident(%s)", text)
    except psycopg2.Error:
        with pytest.raises(ValueError):
            world.script.read_name(text)
    else:
        assert list(world.script.read_name(text).identifier.strings) == read


# Where settings are found


@pytest.fixture
def project(tmp_path):
    return project_in(tmp_path / "a folder with blanks")


def nothing_set(world):
    return dict.fromkeys(world.lab.settings())


def as_file(settings):
    return "".join('%s="%s"\n' % item for item in sorted(settings.items()))


def test_env_beside_the_readme_is_found_from_anywhere(world, project):
    world.app_has((ANN, "Ann Archer"))
    run = run_in(project, world, **nothing_set(world))
    assert run.code == 1 and str(project / ".env") in run.error, run
    (project / ".env").write_text(as_file(world.lab.settings()))
    run = run_in(project, world, **nothing_set(world))
    assert (run.code, world.dimension()) == (0, {ANN: "Ann Archer"}), run


def test_another_env_file_takes_its_place(world, project):
    (project / ".env").write_text(as_file(dict(world.lab.settings(), APP_PORT="1")))
    (project / "other.env").write_text(as_file(world.lab.settings()))
    assert run_in(project, world, "--env-file", str(project / "other.env"), **nothing_set(world)).code == 0


def test_the_environment_wins(world, tmp_path):
    (tmp_path / "wrong.env").write_text("APP_PASSWORD=wr0ng\nAPP_TABLE=nowhere\n")
    (tmp_path / "right.env").write_text(as_file({"APP_PASSWORD": READER_PASSWORD}))
    assert world.sync("--env-file", str(tmp_path / "wrong.env")).code == 3, "only the table is the file's"
    assert world.sync("--env-file", str(tmp_path / "wrong.env"), APP_TABLE='public."User"').code == 0
    assert world.sync("--env-file", str(tmp_path / "right.env"), APP_PASSWORD="wr0ng").code == 2
    assert world.sync("--env-file", str(tmp_path / "right.env"), APP_PASSWORD=None).code == 0


@pytest.mark.skipif(os.name != "posix", reason="file modes are a matter of POSIX")
def test_an_env_file_that_others_may_read_is_warned_of(world, tmp_path):
    env_file = tmp_path / "x.env"
    env_file.write_text(as_file({"APP_PASSWORD": READER_PASSWORD}))
    warned = []
    for mode in (0o644, 0o640, 0o600):
        env_file.chmod(mode)
        run = world.sync("--env-file", str(env_file), APP_PASSWORD=None)
        assert run.code == 0, run
        warned.append(" WARNING " in run.err and "chmod 600" in run.err)
    assert (warned[0], warned[2]) == (True, False)


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
}


@pytest.fixture
def reader(world):
    """A role of the app whose password a test may choose."""
    def with_password(password):
        world.app.sql("ALTER ROLE another_reader PASSWORD %s", password)
        return "another_reader"
    with world.app.changed("CREATE ROLE another_reader LOGIN IN ROLE app_readonly",
                           "DROP ROLE another_reader"):
        yield with_password


@pytest.mark.parametrize("password, text", list(PASSWORDS.values()), ids=list(PASSWORDS))
def test_a_password_in_env(world, reader, tmp_path, password, text):
    (tmp_path / "x.env").write_bytes(text.encode("utf-8"))
    run = world.sync("--env-file", str(tmp_path / "x.env"), APP_USER=reader(password), APP_PASSWORD=None)
    assert run.code == 0, run
    assert password not in run.out + run.err


def test_names_in_env_are_quoted_as_the_message_says(world, tmp_path):
    world.app_has((ANN, "Ann Archer"))
    (tmp_path / "x.env").write_text(
        'APP_TABLE=public."User"\nAPP_NAME_COLUMN=\'"name"\'\nWH_TABLE="Analytics.ATHLETE_DIM"\n')
    assert world.sync("--env-file", str(tmp_path / "x.env")).counts() == "1: 1 new"


# URLs


def url(world, role, password, options=""):
    return "postgresql://%s:%s@127.0.0.1:%d/app%s" % (
        role, quote(password, safe=""), world.lab.app.port, options)


@pytest.mark.parametrize("password", ["s3cr3t", "s3@cr:3t/o?r#d%20 \u738b", READER_PASSWORD])
def test_a_url_instead_of_the_five(world, reader, password):
    world.app_has((ANN, "Ann Archer"))
    settings = dict.fromkeys(name for name in world.lab.settings() if name.startswith("APP_"))
    run = world.sync(APP_DATABASE_URL=url(world, reader(password), password), **settings)
    assert (run.code, run.counts()) == (0, "1: 1 new"), run
    assert quote(password, safe="") not in run.out + run.err


@pytest.mark.parametrize("options", [
    "?sslmode=prefer", "?connect_timeout=5", "?application_name=mine",
    "?keepalives_idle=5&tcp_user_timeout=1000",
    "?client_encoding=LATIN1", "?options=-c%20statement_timeout%3D60000"])
def test_a_url_with_options(world, reader, options):
    world.app_has((ANN, "\u738b\u5c0f\u660e"))
    run = world.sync(APP_DATABASE_URL=url(world, reader("s3cr3t"), "s3cr3t", options))
    assert (run.code, world.dimension()) == (0, {ANN: "\u738b\u5c0f\u660e"}), run


def test_both_sides_by_url(world):
    settings = dict.fromkeys(world.lab.settings())
    run = world.sync(
        APP_DATABASE_URL=url(world, "app_readonly", READER_PASSWORD),
        WH_DATABASE_URL="postgres://warehouse_writer:%s@127.0.0.1:%d/warehouse" % (
            quote(WRITER_PASSWORD, safe=""), world.lab.warehouse.port), **settings)
    assert run.code == 0, run


# Secrets: a canary in a hundred mangled URLs, of which no four letters in a row may come out anywhere


CANARY = "h7nterZq"
TEMPLATES = [
    "postgresql://role:{0}@2{0}@host/db", "postgresql://role:{0}/x@host/db", "postgresql://role:{0}:x@host/db",
    "postgresql://role:{0}?x@host/db", "postgresql://role:{0}?x=1@host/db", "postgresql://role:{0}#x@host/db",
    "postgresql://role:{0}%@host/db", "postgresql://role:{0}%zz@host/db", "postgresql://role:{0}[@host/db",
    "postgresql://role:{0} x@host/db", "postgresql:/role:{0}@host/db", "postgresql//role:{0}@host/db",
    "postgresql:role:{0}@host/db", "role:{0}@host/db", "postgresql://role@{0}@host/db",
    "postgresql://role:x@{0}@host/db", "postgresql://role:x@y@{0}/db", "postgresql://role:x@host@{0}/db",
    "postgresql://role:x@host:{0}/db", "postgresql://role:x@host:5432:{0}/db", "postgresql://role:x@ho/st/{0}",
    "postgresql://role:x@host/db?sslmode={0}", "postgresql://role:x@host/db?{0}", "postgresql://role:x@host/db?a={0}",
    "postgresql://role:x@host/db&{0}=1", "postgresql://role:x@host/db?sslmode=require&{0}",
    "postgresql://role:x@ho st/{0}", "postgresql://role:{0}", "postgresql://:{0}@host/db",
    "postgresql://role:{0}@@host/db", "postgresql://role:{0}@host@/db", "postgresql://role:{0}@host/db@x",
    "postgresql://role:{0}@host/db:x", "postgresql://role:{0}@[host/db", "postgresql://role:{0}@host]/db",
    "//role:{0}@host/db", "host=db.example user=role password={0}", "host=db.example,password={0}",
    "{0}@db.example",
]
MANGLED = [(name, template) for template in TEMPLATES
           for name in ("APP_DATABASE_URL", "WH_DATABASE_URL", "APP_HOST", "WH_DB")]
PIECES = [CANARY[place:place + 4] for place in range(len(CANARY) - 3)]


@pytest.mark.parametrize("flags", [("-v",), ("--check", "-v"), ("--json",)], ids=["sync", "check", "json"])
def test_no_piece_of_a_password_comes_out_of_a_mangled_url(world, flags):
    assert len(MANGLED) >= 100
    with ping_server() as server:
        for name, template in MANGLED:
            settings = {name: template.format(CANARY), "SYNC_PING_URL": server.url, "SYNC_CONNECT_ATTEMPTS": "1",
                        "SYNC_CONNECT_TIMEOUT": "1", "SYNC_DEADLINE": "20"}
            run = run_in_process(world.script, arguments(flags), world.environment(settings))
            said = run.out + run.err + str(world.history()) + str(server.told)
            assert run.code in (1, 2) and not [piece for piece in PIECES if piece in said], (name, template, run)


@pytest.mark.parametrize("name, value", [
    ("APP_HOST", "postgresql://role:%s@host/db" % CANARY), ("WH_DB", "postgresql://role:%s@host/db" % CANARY),
    ("APP_USER", "role:%s" % CANARY), ("APP_DATABASE_URL", "postgresql://role:x%s@2x@host/db" % CANARY)])
def test_a_url_in_the_wrong_place_is_told_as_such(world, name, value):
    run = world.sync(**{name: value})
    assert run.code == 1 and name in run.error and ("%40" in run.error or "DATABASE_URL" in run.error), run


# What looks wrong and is not, and the other way round


def url_of(world, prefix="APP", query=""):
    of = world.environment({})
    return "postgresql://%s:%s@%s:%s/%s%s" % tuple([quote(of[prefix + "_" + word], safe="")
                                                    for word in ("USER", "PASSWORD", "HOST", "PORT", "DB")] + [query])


NO_FIVE = {"APP_" + word: None for word in ("HOST", "PORT", "DB", "USER", "PASSWORD")}


@pytest.mark.parametrize("query", ["?schema=public", "?pgbouncer=true&connection_limit=1&sslmode=prefer",
                                   "?sslmode=prefer&pool_timeout=10"])
def test_a_url_as_prisma_writes_it(world, query):
    world.app_has((ANN, "Ann Archer"))
    run = world.sync(APP_DATABASE_URL=url_of(world, query=query), **NO_FIVE)
    assert (run.code, run.counts()) == (0, "1: 1 new"), run
    assert "Prisma's own parameters are left out of the URL" in run.err


def test_a_parameter_that_libpq_does_not_know_is_named(world):
    run = world.sync(APP_DATABASE_URL=url_of(world, query="?sslaccept=strict"), **NO_FIVE)
    assert run.code == 1 and "libpq does not know: sslaccept" in run.error, run


@pytest.mark.parametrize("hosts, code", [("127.0.0.1,127.0.0.1", 0), ("127.0.0.1:{port},127.0.0.1:{port}", 0)])
def test_two_hosts(world, hosts, code):
    world.app_has((ANN, "Ann Archer"))
    of = world.environment({})
    url = "postgresql://%s:%s@%s/app" % (of["APP_USER"], quote(of["APP_PASSWORD"], safe=""),
                                         hosts.format(port=of["APP_PORT"]))
    run = world.sync(APP_DATABASE_URL=url + ("" if "{" in hosts else "?port=" + of["APP_PORT"]), **NO_FIVE)
    assert run.code == code, run


@pytest.mark.parametrize("host", ["/cloudsql/project:europe-west1:app", "::1,{}", "/nowhere,{}", "/a:b,fe80::1%eth0,{}"])
def test_a_socket_folder_and_a_list_of_hosts_are_hosts(world, host):
    world.app_has((ANN, "Ann Archer"))
    run = world.sync(APP_HOST=host.format("127.0.0.1"))
    assert run.code == (0 if "{}" in host else 2), run


def test_a_socket_folder_in_a_url(world):
    run = world.sync(APP_DATABASE_URL="postgresql://role:x@/app?host=/cloudsql/project:europe-west1:app", **NO_FIVE)
    assert run.code == 2 and "/cloudsql/project:europe-west1:app" in run.error, run


@pytest.mark.parametrize("flags", [(), ("--check",)])
def test_two_ports_for_one_host_are_a_matter_of_configuration(world, flags):
    run = world.run(*flags, APP_DATABASE_URL="postgresql://role:x@127.0.0.1/app?port=1,2", **NO_FIVE)
    assert run.code == 1 and "2 ports for 1 hosts" in run.out + run.err, run


@pytest.mark.parametrize("host", ["db..example", "a" * 70 + ".example"])
@pytest.mark.parametrize("flags", [(), ("--check",)])
def test_a_host_that_no_name_can_be(world, host, flags):
    run = world.run(*flags, APP_HOST=host, SYNC_CONNECT_ATTEMPTS="1")
    assert run.code == 2, run


@pytest.mark.parametrize("name", ["APP_PASSWORD", "APP_HOST", "APP_TABLE", "SYNC_REFRESH"])
def test_a_byte_that_is_not_utf8(world, name):
    environment = {key.encode(): value.encode() for key, value in world.environment({}).items()}
    environment[name.encode()] = b"Jos\xe9"
    done = subprocess.run([sys.executable, str(SCRIPT)] + arguments(()), env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1 and name.encode() in done.stderr, done


@pytest.mark.parametrize("line, words", [
    ("SYNC_MAX_UPDATE_PERCENT=1", "SYNC_MAX_UPDATE_PERCENT is no setting; is it SYNC_MAX_UPDATED_PERCENT?"),
    ("SYNC_ELSE=1", "SYNC_ELSE is no setting"),
    ('SYNC_REFRESH="12h\n"', "SYNC_REFRESH must be a time such as 30m"),
    ("APP_PASSWORD=a\0b", "APP_PASSWORD holds a NUL character"),
    ("APP_HOST=your_app_host", "APP_HOST is still the example's your_app_host"),
    ("APP_DATABASE_URL=postgresql://role:x@your_app_host:5432/app_prod",
     "APP_DATABASE_URL is still the example's your_app_host"),
])
def test_lines_that_mislead(world, tmp_path, line, words):
    env_file = tmp_path / "settings.env"
    env_file.write_text(line + "\n")
    env_file.chmod(0o600)
    in_environment = NO_FIVE if line.startswith("APP_") else {}
    run = finish(world.start("--env-file", str(env_file), **in_environment))
    assert run.code == 1 and words in run.error, run
    assert "cp .env.example" not in run.err, "never told to overwrite the file that is there"


def test_the_environment_wins_over_a_url_in_the_file(world, tmp_path):
    world.app_has((ANN, "Ann Archer"))
    env_file = tmp_path / "settings.env"
    env_file.write_text("APP_DATABASE_URL=postgresql://role:x@nowhere.example/app\n")
    env_file.chmod(0o600)
    run = finish(world.start("--env-file", str(env_file)))
    assert run.code == 0 and "in the environment wins over APP_DATABASE_URL in the file" in run.err, run


@pytest.mark.parametrize("name", ["", "x" * 300, os.path.join("/dev/null", "x")])
def test_an_env_file_that_cannot_be(world, name):
    run = finish(world.start("--env-file", name))
    assert run.code == 1 and run.error.count("Next:") == 1, run


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
def test_an_env_file_in_a_folder_that_may_not_be_searched(world, tmp_path, flag):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "env").write_text("")
    (tmp_path / "closed").chmod(0)
    with as_nobody():
        run = run_in_process(world.script, [flag, "--env-file", str(tmp_path / "closed" / "env")],
                             world.environment({}))
    assert run.code == 1 and "cannot read %s" % (tmp_path / "closed" / "env") in run.out + run.err, run


def test_nothing_at_all_is_one_sentence(world, project):
    nothing = {name: None for name in world.environment({}) if name.startswith(("APP_", "WH_"))}
    run = run_in(project, world, **nothing)
    assert run.code == 1 and "there is no %s" % (project / ".env") in run.error, run
    assert "is missing" not in run.error and "cp .env.example .env" in run.error


# Codes that only Python would give


FULL = "/dev/full"


@pytest.mark.skipif(not os.path.exists(FULL), reason="there is no /dev/full here")
@pytest.mark.parametrize("flags", ["--help", "--version", "--nonsense", "--status"])
def test_nothing_but_0_to_4_comes_out_though_nobody_can_be_told(world, flags):
    with open(FULL, "wb") as full:
        process = subprocess.Popen([sys.executable, str(SCRIPT), flags] + arguments(()),
                                   env=world.environment({"WH_PORT": "1"}),
                                   stdin=subprocess.DEVNULL, stdout=full, stderr=full)
        code = process.wait(60)
    assert code == {"--help": 0, "--version": 0, "--nonsense": 1, "--status": 2}[flags]


def test_a_closed_pipe(world):
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = subprocess.call([sys.executable, str(SCRIPT), "--version"], stdin=subprocess.DEVNULL, stdout=write_end)
    os.close(write_end)
    assert code == 0


def test_a_missing_package_with_nobody_to_tell(tmp_path):
    (tmp_path / "pandas.py").write_text("raise ImportError('No module named pandas')\n")
    with open(FULL if os.path.exists(FULL) else os.devnull, "wb") as full:
        code = subprocess.call([sys.executable, str(SCRIPT)], env=dict(os.environ, PYTHONPATH=str(tmp_path)),
                               stdin=subprocess.DEVNULL, stdout=full, stderr=full)
    assert code == 1


def test_a_numpy_that_is_too_old_is_a_matter_of_configuration(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("from numpy.lib import stride_tricks\n"
                                               "del stride_tricks.sliding_window_view\n")
    done = subprocess.run([sys.executable, str(SCRIPT)], env=dict(os.environ, PYTHONPATH=str(tmp_path)),
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert done.returncode == 1 and "packages: cannot import name 'sliding_window_view'" in done.stderr, done


@pytest.mark.skipif(not os.path.exists(FULL), reason="there is no /dev/full here")
def test_a_signal_during_the_imports_with_nobody_to_tell(tmp_path):
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    with open(FULL, "wb") as full:
        code = subprocess.call([sys.executable, str(SCRIPT)], env=dict(os.environ, PYTHONPATH=str(tmp_path)),
                               stdin=subprocess.DEVNULL, stdout=full, stderr=full)
    assert code == 4


def test_the_python_of_venv_is_not_told_to_run_itself(project, tmp_path):
    link = tmp_path / "link"
    venv.create(str(project / ".venv"), with_pip=False)
    link.symlink_to(project, target_is_directory=True)
    done = subprocess.run([str(link / ".venv" / "bin" / "python"), str(project / SCRIPT.relative_to(PROJECT))],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert done.returncode == 1 and "Next: make install" in done.stderr, done


def test_where_venv_is_there_its_python_is_named(world, project, tmp_path):
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").write_text("")
    (tmp_path / "pandas.py").write_text("raise ImportError('No module named pandas')\n")
    run = run_in(project, world, "--dry-run", PYTHONPATH=str(tmp_path))
    pasted = run.error.split("Next: ")[1].split(" (exit code")[0]
    assert shlex.split(pasted) == [
        str(project / ".venv" / "bin" / "python"), str(project / SCRIPT.relative_to(PROJECT)), "--dry-run"]


@pytest.mark.parametrize("database", ["refused_orders", "password", "timed out", "SSL"])
def test_a_database_by_a_misleading_name(world, database):
    run = world.sync(APP_DB=database)
    assert run.code == 2 and "the database does not exist" in run.error and "APP_DB" in run.error, run


def test_nobody_is_told_to_alter_a_role_that_is_not_there(world):
    run = world.sync(APP_USER="no_such_role")
    assert run.code == 2 and "if the role exists, as a superuser: ALTER ROLE no_such_role" in run.error, run
