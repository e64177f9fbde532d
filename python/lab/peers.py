"""What one would pick instead of the sync, each in a folder and a database of its own: for make bench PEERS=1.

dlt and Sling make and alter tables of their own, so all peers write as the warehouse's superuser; they
read the app by app_readonly's rights (Sling reads no $ in a password). How each is configured stands here and in
peer_*.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, NamedTuple

from athletes import sql_strings
from servers import PROJECT, SUPERUSER_PASSWORD, Lab

FOLDER = PROJECT / ".venv" / "peers"
LAB = Path(__file__).resolve().parent
SLING_QUERY = 'SELECT uuid::uuid AS athlete_uuid, name AS full_name FROM public."User"'


class Peer(NamedTuple):
    name: str
    requirement: str  # "" where the project's own packages are enough
    program: str
    arguments: List[str]
    table: str        # what it fills, in its own database
    columns: str = "athlete_uuid, full_name"

    @property
    def folder(self) -> Path:
        return FOLDER / self.name


PEERS = [
    Peer("execute_values", "", sys.executable, [str(LAB / "peer_execute_values.py")], "analytics.athlete_dim"),
    Peer("dlt", "dlt[postgres,sql-database,parquet]==1.31.0", str(FOLDER / "dlt" / "bin" / "python"),
         [str(LAB / "peer_dlt.py")], "analytics.athlete", "uuid, name"),
    Peer("sling", "sling-linux-amd64==1.4.11", "sling-linux-amd64",
         ["run", "--src-conn", "APP", "--src-stream", SLING_QUERY, "--tgt-conn", "WAREHOUSE",
          "--tgt-object", "analytics.athlete", "--mode", "incremental", "--primary-key", "athlete_uuid"],
         "analytics.athlete"),
]

HOSTILE_NAMES = ["O'Brien", '"quoted"', "tab\there", "new\nline", "return\rhere", "back\\slash", "\\N", "\\.",
                 "NULL", "null", "nan", "", " ", "100 %", "🏃🏽‍♀️", "שרה", "فاطمة", "a,b;c|d"]

MAKE_HOSTILE = """
UPDATE public."User" SET name = (ARRAY[%s])[substr(split_part(email, '@', 1), 8)::integer]
 WHERE substr(split_part(email, '@', 1), 8)::integer <= %d
"""


def hostile_sql() -> str:
    """The first athletes of athletes.py get these names."""
    return MAKE_HOSTILE % (sql_strings(HOSTILE_NAMES), len(HOSTILE_NAMES))


def peers_to_be_had() -> List[Peer]:
    """Install each unless it is there; say why one cannot be had."""
    had = []
    for peer in PEERS:
        try:
            install(peer)
            had.append(peer)
        except subprocess.CalledProcessError as error:
            print("%s is left out: %s" % (peer.name, error.stdout.strip().splitlines()[-1]))
    return had


def install(peer: Peer) -> None:
    installed = peer.folder / "installed"
    if peer.requirement and not (installed.exists() and installed.read_text() == peer.requirement):
        pip = [str(peer.folder / "bin" / "python"), "-m", "pip", "-q", "install", peer.requirement]
        for command in ([sys.executable, "-m", "venv", str(peer.folder)], pip):
            subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        installed.write_text(peer.requirement)


def forget(peer: Peer) -> None:
    """Delete what a peer keeps beside its database."""
    shutil.rmtree(str(peer.folder / "home"), ignore_errors=True)
    (peer.folder / "home").mkdir(parents=True)


def command(peer: Peer) -> List[str]:
    inside_sling = list(peer.folder.glob("lib/python*/site-packages/*/bin/" + peer.program))
    return [str(inside_sling[0]) if peer.name == "sling" else peer.program] + peer.arguments


def environment(lab: Lab, peer: Peer) -> Dict[str, str]:
    url = ("postgres" if peer.name == "sling" else "postgresql") + "://%s:%s@127.0.0.1:%d/%s?sslmode=disable"
    home = str(peer.folder / "home")  # where dlt and Sling keep what they know of the last run
    return {"PATH": os.environ["PATH"], "HOME": home, "DLT_DATA_DIR": home,
            "APP": url % ("peer_reader", "peer", lab.app.port, "app"),
            "WAREHOUSE": url % ("postgres", SUPERUSER_PASSWORD, lab.warehouse.port, "peer_" + peer.name),
            "RUNTIME__DLTHUB_TELEMETRY": "false", "SLING_DISABLE_TELEMETRY": "true"}


def verdict(lab: Lab, database: str, table: str, columns: str = "athlete_uuid, full_name") -> str:
    """Compare a dimension with the app, athlete by athlete: in files, because of what millions of them would need."""
    copy = "COPY (SELECT %s FROM %s ORDER BY 1) TO STDOUT"
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, side) for side in ("app", "copied")]
        for file, server, name, query in zip(files, (lab.app, lab.warehouse), ("app", database), (
                copy % ("uuid, name", 'public."User"'), copy % (columns, table))):
            with open(file, "wb") as out:
                subprocess.run(server.psql_command("-qc", query, database=name), env=server.psql_environment(),
                               stdout=out, check=True)
        differing = subprocess.run(["comm", "-3"] + files, env=dict(os.environ, LC_ALL="C"), check=True,
                                   stdout=subprocess.PIPE).stdout.decode()
    return differences(differing.split("\n")[:-1])


def differences(lines: List[str]) -> str:
    """Say what is wrong with a copy, or "right". comm puts a tab before a line that only the copy has."""
    wanted = dict(line.split("\t", 1) for line in lines if not line.startswith("\t"))
    found = dict(line[1:].split("\t", 1) for line in lines if line.startswith("\t"))
    wrong = sorted(wanted.keys() & found.keys())
    said = ["%d %s" % (count, what) for count, what in (
        (len(wanted) - len(wrong), "missing"), (len(found) - len(wrong), "too many"), (len(wrong), "wrong")) if count]
    said += ["%s became %s" % (shown(wanted[uuid]), shown(found[uuid])) for uuid in wrong[:5]]
    return ", ".join(said) or "right"


def shown(name: str) -> str:
    return "NULL" if name == "\\N" else ascii(name)  # that is how COPY writes it
