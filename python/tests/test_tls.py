"""TLS with a real server and a real authority, and what else of libpq can lead a run astray.

This server lets the two roles in with TLS only, so that what arrives came by it.
"""

from __future__ import annotations

import re
import shutil
from urllib.parse import quote

import pytest
from conftest import ANN, empty_world
from lab.servers import READER_PASSWORD, WRITER_PASSWORD, wait_until
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


def both(**settings):
    return {prefix + "_" + name: text for prefix in ("APP", "WH") for name, text in settings.items()}


def verified(authority, **settings):
    return dict(both(HOST="localhost", SSLMODE="verify-full", SSLROOTCERT=str(authority.certificate)), **settings)


def arrived(run, world):
    assert (run.code, run.counts(), world.dimension()) == (0, "1: 1 new", {ANN: "Ann Anders"}), run


def refused(run, side, *words):
    assert (run.code, run.result["result"]) == (2, "failed"), run
    for word in (" ERROR %s: " % side,) + words + ("Next: ",):
        assert word in run.error, "%r is not in %s" % (word, run.error)


@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
def test_each_mode(secure, authority, mode):
    settings = verified(authority, **both(SSLMODE=mode)) if "verify" in mode else both(SSLMODE=mode)
    arrived(secure.sync(**settings), secure)
    looked = secure.run("--check", **settings)
    assert looked.code == 0 and looked.out.endswith("Ready\n") and " WARNING " not in looked.out, looked


@pytest.mark.parametrize("prefix, side", [("APP", "app"), ("WH", "warehouse")])
def test_what_is_not_trusted(secure, authority, stranger, tmp_path, prefix, side):
    """The certificate was made for localhost; that 127.0.0.1 is the same machine is not for libpq to know."""
    (tmp_path / "notes.crt").write_text("to do\n")
    for name, text, words in (("SSLROOTCERT", str(stranger.certificate), ["certificate verify failed", "_HOST"]),
                              ("SSLROOTCERT", str(tmp_path / "notes.crt"), ["notes.crt"]),
                              ("HOST", "127.0.0.1", ["does not match host name", "_HOST"])):
        run = secure.sync(**verified(authority, **{prefix + "_" + name: text}))
        refused(run, side, "certificate is not trusted", prefix + "_SSLROOTCERT", *words)
        assert "disable" not in run.error, "no advice lowers security"
    arrived(secure.sync(**verified(authority, **{prefix + "_HOST": "127.0.0.1", prefix + "_SSLMODE": "verify-ca"})),
            secure)


@pytest.mark.parametrize("prefix, side", [("APP", "app"), ("WH", "warehouse")])
def test_one_has_tls_and_the_other_has_not(secure, world, authority, prefix, side):
    refused(secure.sync(**{prefix + "_SSLMODE": "disable"}), side, prefix + "_SSLMODE=require")
    for mode in ("require", "verify-full"):
        run = world.sync(**{prefix + "_SSLMODE": mode, prefix + "_SSLROOTCERT": str(authority.certificate)})
        refused(run, side, "server does not support SSL", prefix + "_SSLMODE=disable")


def test_urls_with_everything(secure, authority, stranger):
    verify = "sslmode=verify-full&sslrootcert=" + quote(str(authority.certificate), safe="")
    settings = dict.fromkeys(secure.lab.settings())  # only the URLs count
    for prefix, role, password, server in (("APP", "app_readonly", READER_PASSWORD, secure.lab.app),
                                           ("WH", "warehouse_writer", WRITER_PASSWORD, secure.lab.warehouse)):
        settings[prefix + "_DATABASE_URL"] = "postgresql://%s:%s@localhost:%d/%s?%s" % (
            role, quote(password, safe=""), server.port, server.name, verify)
    arrived(secure.sync(**settings), secure)
    refused(secure.sync(APP_SSLROOTCERT=str(stranger.certificate), **settings), "app", "certificate")
    settings["APP_DATABASE_URL"] = settings["APP_DATABASE_URL"].replace("localhost", "127.0.0.1")
    refused(secure.sync(**settings), "app", "does not match host name")


# Who may come in, and how


def let_in(server, *entries):
    """Write the server's pg_hba.conf anew; it has read it once the superuser's next login fits it."""
    superuser = "host all postgres 127.0.0.1/32 md5\n"
    (server.data / "pg_hba.conf").write_text(superuser + "".join(entry + "\n" for entry in entries))
    server.psql("-qc", "SELECT pg_reload_conf()")
    wait_until(lambda: server.psql("-Atc", "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NULL").strip()
               == str(1 + len(entries)))


def test_what_is_asked_for_is_pasted_and_lets_the_run_in(authority, script):
    """One server, that asks for more and more: an entry, TLS, and a certificate of ours."""
    with server_with_tls(*authority.sign("localhost")) as lab, empty_world(lab, script) as world:
        server, writer = lab.app, "host all warehouse_writer 127.0.0.1/32 md5"
        let_in(server, writer)
        run = world.sync()
        refused(run, "app", "does not let this host", "no pg_hba.conf entry")
        entry = re.search(r"host app app_readonly <.*?>/32 [\w-]+", run.error).group()
        entry = entry.replace("<this host's address>", "127.0.0.1")
        let_in(server, writer, entry)
        assert world.sync().code == 0

        let_in(server, writer, entry.replace("host", "hostssl", 1))
        refused(world.sync(APP_SSLMODE="disable"), "app", "no pg_hba.conf entry", "APP_SSLMODE=require")
        assert world.sync(APP_SSLMODE="require").code == 0

        shutil.copy(str(authority.certificate), str(server.folder / "ours.crt"))
        (server.folder / "ours.crt").chmod(0o644)
        server.psql("-qc", "ALTER SYSTEM SET ssl_ca_file = '%s'" % (server.folder / "ours.crt"))
        let_in(server, writer, "hostssl all app_readonly 127.0.0.1/32 md5 clientcert=verify-ca")
        run = world.sync(APP_SSLMODE="require")
        refused(run, "app", "asks for our certificate", "valid client certificate")
        certificate, key = authority.sign("reader.example.org")
        key.chmod(0o600)
        named = dict(zip(re.findall(r"(PGSSL\w+)=<file>", run.error), map(str, (certificate, key))))
        assert world.run("--json", APP_SSLMODE="require", **named).code == 0


# The user's shell


def test_variables_of_the_shell_do_not_redirect_a_run(world, tmp_path):
    world.app_has((ANN, "Ann Anders"))
    (tmp_path / "services").write_text("[elsewhere]\nhost=192.0.2.1\nport=1\ndbname=other\nuser=nobody\n")
    (tmp_path / "passwords").write_text("*:*:*:*:wrong\n")
    (tmp_path / "passwords").chmod(0o600)
    shell = dict(
        PGSERVICE="elsewhere", PGSERVICEFILE=str(tmp_path / "services"), PGPASSFILE=str(tmp_path / "passwords"),
        PGHOST="192.0.2.1", PGHOSTADDR="192.0.2.1", PGPORT="1", PGDATABASE="other", PGUSER="nobody",
        PGPASSWORD="wrong", PGOPTIONS="-c search_path=nowhere", PGCLIENTENCODING="LATIN1",
        PGTARGETSESSIONATTRS="read-only", PGREQUIREPEER="nobody", PGCONNECT_TIMEOUT="1", PGAPPNAME="psql",
        PGTZ="nowhere", PGDATESTYLE="nonsense", PGREQUIREAUTH="none", PGCHANNELBINDING="require")
    arrived(world.run("--json", **shell), world)
    looked = world.run("--check", **shell)
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
    arrived(secure.sync(PGSSLMODE="disable", **both(SSLMODE="require")), secure)
