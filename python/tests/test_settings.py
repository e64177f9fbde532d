"""Settings: where they are found, how they are read, and what is said of those that cannot be."""

from __future__ import annotations

import os
import shutil
import sys
from urllib.parse import quote

import psycopg2
import pytest

from conftest import ANN, finish
from lab.servers import READER_PASSWORD, SCRIPT, WRITER_PASSWORD

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
    """A copy of the project as far as finding .env goes: README.md, and the script two folders down."""
    scripts = tmp_path / "a folder with blanks" / "python" / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(str(SCRIPT), str(scripts))
    (scripts.parents[1] / "README.md").write_text("")
    return scripts.parents[1]


def run_in(project, world, *flags, **settings):
    command = [sys.executable, str(project / "python" / "scripts" / SCRIPT.name)]
    return finish(world.start(*flags, command=command, env_file=None, **settings))


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
