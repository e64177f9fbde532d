"""What one run costs the two servers: their CPU, the bytes over the wire, the WAL, row versions, locks."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import psycopg2
from servers import Lab, Server

# CPU of all processes of a server; MB over the wire, both ways; WAL of the warehouse; the row versions that the run
# left in the dimension; the strongest lock on a table, and for how long one transaction held it.
HEADER = ("app CPU s", "wh CPU s", "app MB", "wh MB", "WAL MB", "versions", "app table locked", "dimension locked")


class Cost(NamedTuple):
    cpu: float
    cells: List[str]  # below HEADER


def watched(lab: Lab, database: str, table: str, run: Callable[[], Any]) -> Cost:
    """Run it through a proxy that counts, while its locks are looked at."""
    def ask(question: str) -> str:
        return lab.warehouse.psql("-qAtc", question, database=database).strip()
    sides = (lab.app, lab.warehouse)
    before_lsn, before_xid = ask("SELECT pg_current_wal_insert_lsn()"), ask("SELECT txid_current()")
    with ExitStack() as steps:
        locks = [LockWatch(lab.app, "app", 'public."User"'), LockWatch(lab.warehouse, database, table)]
        traffic = [Proxy(side.port) for side in sides]
        for lock, side, proxy in zip(locks, sides, traffic):
            steps.callback(lock.stop)
            steps.callback(setattr, side, "port", side.port)
            side.port = proxy.port
        watchers = [lock.connection.info.backend_pid for lock in locks]
        before = [cpu_seconds(side, watchers) for side in sides]
        run()
        cpu = [cpu_seconds(side, watchers) - used for side, used in zip(sides, before)]
    wal = int(ask("SELECT pg_current_wal_insert_lsn() - '%s'::pg_lsn" % before_lsn))
    versions = int(ask("SELECT count(*) FROM %s WHERE age(xmin) < txid_current() - %s" % (table, before_xid)))
    passed = [sum(count for count, in proxy.counts) for proxy in traffic]
    figures = cpu + [count / 1e6 for count in passed + [wal]]
    return Cost(sum(cpu), ["%.2f" % figure for figure in figures] + [str(versions)]
                + [lock.longest() for lock in locks])


def cpu_seconds(server: Server, but: List[int]) -> float:
    """CPU seconds so far of a server: its postmaster, which counts its ended children, and its children of now."""
    postmaster, ticks = (server.data / "postmaster.pid").read_text().split()[0], 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            utime_to_cstime = list(map(int, fields[11:15]))
            if process.name == postmaster:
                ticks += sum(utime_to_cstime)
            elif fields[1] == postmaster and int(process.name) not in but:
                ticks += sum(utime_to_cstime[:2])
    return ticks / os.sysconf("SC_CLK_TCK")


class Proxy(threading.Thread):
    """Passes connections on to a port of this host, and counts the bytes that go by."""

    def __init__(self, port: int):
        super().__init__(daemon=True)
        self.target, self.counts, self.listener = ("127.0.0.1", port), [], socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while True:
            client, server = self.listener.accept()[0], socket.create_connection(self.target)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self.pass_on, args=(source, sink), daemon=True).start()

    def pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        count = [0]
        self.counts.append(count)
        with suppress(OSError):
            for chunk in iter(lambda: source.recv(1 << 18), b""):
                count[0] += len(chunk)
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)


MODES = ["AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock",
         "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"]  # each is stronger than the one before

LOCKS = """
SELECT virtualtransaction, mode
  FROM pg_locks
 WHERE granted
   AND locktype = 'relation'
   AND mode <> 'SIReadLock'  -- it makes nobody wait
   AND relation = to_regclass(%s)
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND pid <> pg_backend_pid()
"""


class LockWatch(threading.Thread):
    """Looks every 10 ms which transactions hold which lock on a table."""

    def __init__(self, server: Server, database: str, table: str):
        super().__init__(daemon=True)
        self.table, self.is_over = table, threading.Event()
        self.seen: Dict[Tuple[str, str], List[float]] = {}  # from when to when
        self.connection = psycopg2.connect(host="127.0.0.1", port=server.port, dbname=database,
                                           user=server.superuser, password=server.password)
        self.connection.autocommit = True
        self.start()

    def run(self) -> None:
        with self.connection.cursor() as cursor:
            while not self.is_over.wait(0.01):
                cursor.execute(LOCKS, [self.table])
                now = time.perf_counter()
                for held in cursor:
                    self.seen.setdefault(held, [now, now])[1] = now

    def stop(self) -> None:
        self.is_over.set()
        self.join()
        self.connection.close()

    def longest(self) -> str:
        if not self.seen:
            return "not seen"
        mode, seconds = max((MODES.index(mode), until - since) for (_, mode), (since, until) in self.seen.items())
        return "%s %.2f s" % (MODES[mode].replace("Lock", ""), seconds)
