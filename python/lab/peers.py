"""What one would pick instead of the sync, each in a folder and a database of its own: for make bench PEERS=1.

dlt and Sling make and alter tables of their own, so all peers write as the warehouse's superuser; they
read the app by app_readonly's rights (Sling reads no $ in a password). How each is configured stands below, and in performance.md.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple

from servers import PROJECT, SUPERUSER_PASSWORD, Lab

FOLDER = PROJECT / ".venv" / "peers"
LAB = Path(__file__).resolve().parent

SLING_REPLICATION = """
source: APP
target: WAREHOUSE
defaults:
  mode: incremental
  primary_key: athlete_uuid
streams:
  athletes:
    sql: SELECT uuid::uuid AS athlete_uuid, name AS full_name FROM public."User"
    object: analytics.athlete
"""


class Peer(NamedTuple):
    name: str
    requirement: str  # "" where the project's own packages are enough
    program: str
    arguments: List[str]
    table: str        # what it fills, in its own database
    columns: str = "athlete_uuid, full_name"

    @property
    def database(self) -> str:
        return "peer_" + self.name

    @property
    def folder(self) -> Path:
        return FOLDER / self.name


PEERS = [
    Peer("execute_values", "", sys.executable, [str(LAB / "peer_execute_values.py")], "analytics.athlete_dim"),
    Peer("dlt", "dlt[postgres,sql-database,parquet]==1.31.0", str(FOLDER / "dlt" / "bin" / "python"),
         [str(LAB / "peer_dlt.py")], "analytics.athlete", "uuid, name"),
    Peer("sling", "sling-linux-amd64==1.4.11", "sling-linux-amd64",
         ["run", "-r", str(FOLDER / "sling" / "replication.yaml")], "analytics.athlete"),
]

HOSTILE_NAMES = ["O'Brien", '"quoted"', "tab\there", "new\nline", "return\rhere", "back\\slash", "\\N", "\\.",
                 "NULL", "null", "nan", "", " ", "100 %", "🏃🏽‍♀️", "שרה", "فاطمة", "a,b;c|d"]

MAKE_HOSTILE = """
UPDATE public."User" AS athlete
   SET name = hostile.name
  FROM (SELECT uuid, row_number() OVER (ORDER BY uuid) AS place FROM public."User") AS placed
  JOIN unnest(ARRAY[%s]) WITH ORDINALITY AS hostile (name, place) USING (place)
 WHERE athlete.uuid = placed.uuid
"""


def hostile_sql() -> str:
    return MAKE_HOSTILE % ", ".join("'%s'" % name.replace("'", "''") for name in HOSTILE_NAMES)


def peers_to_be_had() -> List[Peer]:
    """Install each; say why one cannot be had."""
    had = []
    for peer in PEERS:
        reason = install(peer)
        if reason:
            print("%s is left out: %s" % (peer.name, reason))
        else:
            had.append(peer)
    return had


def install(peer: Peer) -> str:
    """Install a peer unless it is there. Returns why it cannot be had, or nothing."""
    installed = peer.folder / "installed"
    if not peer.requirement or installed.exists() and installed.read_text() == peer.requirement:
        return ""
    pip = [str(peer.folder / "bin" / "python"), "-m", "pip", "-q", "install", peer.requirement]
    for command in ([sys.executable, "-m", "venv", str(peer.folder)], pip):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        if done.returncode:
            return done.stdout.strip().splitlines()[-1]
    installed.write_text(peer.requirement)
    return ""


def set_up(lab: Lab) -> None:
    lab.app.psql("-qc", "CREATE ROLE peer_reader LOGIN PASSWORD 'peer' IN ROLE app_readonly")


def start_over(lab: Lab, peer: Peer) -> None:
    for statement in ("DROP DATABASE IF EXISTS %s", "CREATE DATABASE %s"):
        lab.warehouse.psql("-qc", statement % peer.database, database="postgres")
    lab.warehouse.psql("-qf", str(PROJECT / "sql" / "warehouse_setup.sql"), database=peer.database)
    shutil.rmtree(str(peer.folder / "home"), ignore_errors=True)
    (peer.folder / "home").mkdir(parents=True)
    if peer.name == "sling":
        (peer.folder / "replication.yaml").write_text(SLING_REPLICATION)


def command(peer: Peer) -> List[str]:
    program = peer.program
    if peer.name == "sling":
        program = str(next(peer.folder.glob("lib/python*/site-packages/*/bin/" + program)))
    return [program] + peer.arguments


def environment(lab: Lab, peer: Peer) -> Dict[str, str]:
    scheme = "postgres" if peer.name == "sling" else "postgresql"  # neither reads the other's
    app = "%s://peer_reader:peer@127.0.0.1:%d/app?sslmode=disable" % (scheme, lab.app.port)
    warehouse = "%s://postgres:%s@127.0.0.1:%d/%s?sslmode=disable" % (
        scheme, SUPERUSER_PASSWORD, lab.warehouse.port, peer.database)
    home = str(peer.folder / "home")  # where dlt and Sling keep what they know of the last run
    return {"PATH": os.environ["PATH"], "HOME": home, "DLT_DATA_DIR": home, "APP": app, "WAREHOUSE": warehouse,
            "RUNTIME__DLTHUB_TELEMETRY": "false", "SLING_DISABLE_TELEMETRY": "true"}


def verdict(lab: Lab, database: str, table: str, columns: str = "athlete_uuid, full_name") -> str:
    """Compare a dimension with the app, in a process of its own: what it needs would count as each peer's memory."""
    fork = multiprocessing.get_context("fork")
    answer, process_says = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: process_says.send(compare(lab, database, table, columns)))
    process.start()
    process_says.close()
    said = answer.recv()
    process.join()
    return said


def compare(lab: Lab, database: str, table: str, columns: str) -> str:
    """Compare athlete by athlete."""
    app = athletes(lab.app.psql("-qc", 'COPY (SELECT uuid, name FROM public."User") TO STDOUT'))
    copied = athletes(lab.warehouse.psql(
        "-qc", "COPY (SELECT %s FROM %s) TO STDOUT" % (columns, table), database=database))
    return differences(app, copied)


def athletes(copy_text: str) -> List[List[str]]:
    return [line.split("\t", 1) for line in copy_text.split("\n") if line]


def differences(app: List[List[str]], copied: List[List[str]]) -> str:
    """Say what is wrong with a copy of the app's athletes, or "right"."""
    wanted, found = dict(app), dict(copied)
    wrong = sorted(uuid for uuid in wanted if uuid in found and found[uuid] != wanted[uuid])
    said = ["%d %s" % (count, what) for count, what in (
        (len(wanted.keys() - found.keys()), "missing"), (len(found.keys() - wanted.keys()), "too many"),
        (len(copied) - len(found), "twice"), (len(wrong), "wrong")) if count]
    said += ["%s became %s" % (shown(wanted[uuid]), shown(found[uuid])) for uuid in wrong[:5]]
    return ", ".join(said) or "right"


def shown(name: str) -> str:
    return "NULL" if name == "\\N" else ascii(name)  # that is how COPY writes it
