"""A hot standby of one of the suite's servers."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from lab.servers import SUPERUSER_PASSWORD, Server


@contextmanager
def standby_of(primary, name):
    """Copy a server and start the copy as its standby; it is stopped afterwards."""
    version = int(primary.psql("-Atc", "SHOW server_version_num"))
    if version < 100000:
        pytest.skip("before PostgreSQL 10 a server as initdb leaves it has no standbys")
    standby = Server(name, primary.folder, primary.bindir, {})
    source = "host=127.0.0.1 port=%d user=postgres password=%s" % (primary.port, SUPERUSER_PASSWORD)
    standby.control("pg_basebackup", "-D", standby.data, "-X", "stream", "-c", "fast", "-d", source)
    follow(standby, source, version)
    try:
        standby.start()
        standby.name = primary.name
        yield standby
    finally:
        standby.stop()


def follow(standby, source, version):
    """Not pg_basebackup's -R: where it is newer than the server, it names options that this one lacks."""
    configuration = standby.data / ("postgresql.conf" if version >= 120000 else "recovery.conf")
    with configuration.open("a") as settings:
        settings.write("primary_conninfo = '%s'\n" % source)
        settings.write("standby_mode = on\n" if version < 120000 else "")
    configuration.chmod(0o666)  # its owner may be root, and a server opens recovery.conf to write
    if version >= 120000:
        (standby.data / "standby.signal").touch()
