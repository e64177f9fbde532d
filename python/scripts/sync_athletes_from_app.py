#!/usr/bin/env python3
"""Copy the athletes from the app's Postgres into the warehouse's.

  app public."User" -> COPY -> pandas checks each chunk -> COPY -> temp staging table
                    -> compare -> one INSERT ... ON CONFLICT -> proof -> commit

  python python/scripts/sync_athletes_from_app.py --dry-run    what would change; changes nothing
  python python/scripts/sync_athletes_from_app.py              the sync

The app is only read. The warehouse is written in one transaction: afterwards analytics.athlete_dim
is exactly the old state or exactly the new one. Running it again is always safe.

Settings come from the environment, or from .env beside README.md; .env.example lists them all.
Logs go to stderr; the last line of stdout is the result.

exit codes:
  0  done, or skipped because another run holds the lock
  1  configuration: a setting is missing or wrong, a wrong option, a package not installed
  2  connection: refused, unknown host, wrong password, connection lost, deadline passed
  3  SQL or data: table, privilege, constraint, lock or disk; a run that looks like an accident
  4  unexpected: a defect, or interrupted by Ctrl-C, SIGTERM or a closed terminal (SIGHUP)
"""

# This file, from the top:
#   How a run can fail         exit codes, and the exception that carries them
#   The story                  main, sync and carry_athletes: a run in forty lines
#   The steps                  in the order of the run, each right below its SQL; KEEP_CHANGES compares, UPSERT writes
#   What the run reports       result line, history, ping
#   Looking                    --check, --status and --diff
#   Settings                   one row each
#   Connections                one transaction on each side, and Watchdog, which ends a run at its deadline
#   What errors mean           and what to type next
#   Command line, the log

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import select
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

log = logging.getLogger("sync_athletes")
# What is ignored from the start stays so: nohup, or a shell that starts a job with &, wants it.
SIGNALS_TO_STOP = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
                   if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]
if __name__ == "__main__":
    def _leave_early(*_: Any) -> None:
        with suppress(OSError):  # the disk is full, or nobody listens
            os.write(2, b"ERROR sync: interrupted before it began\n")
        os._exit(4)

    for _signal in SIGNALS_TO_STOP:  # until the watchdog is there: the imports below take their time
        signal.signal(_signal, _leave_early)

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's; it starts them on import, and dies of a limit on threads
missing_package: Optional[Exception] = None
try:
    import pandas as pd
    import psycopg2
    import psycopg2.extensions
    from dotenv.parser import parse_stream
    from psycopg2 import sql
    from tqdm import tqdm
except Exception as problem:  # a pandas built for another numpy raises ValueError
    missing_package = problem  # read_command_line reports it

VERSION = "2.0.1"
PROJECT = Path(__file__).resolve().parent.parent.parent
QUOTE = shlex.quote if os.name == "posix" else '"{}"'.format
COMMAND = " ".join(map(QUOTE, [sys.executable, os.path.abspath(__file__)]))  # in what is to be typed


# ---- How a run can fail ----------------------------------------------------------------------

OK, CONFIGURATION, CONNECTION, SQL_OR_DATA, UNEXPECTED = range(5)


class SyncError(Exception):
    """A failure that is understood: on which side, what happened, what to type next, the exit code."""

    def __init__(self, code: int, side: str, what: str, next_step: str):
        self.code, self.side, self.what, self.next_step = code, side, what, next_step
        self.ask: Callable[[], Optional[str]] = lambda: None  # whether the server knows a better next step

    def __str__(self) -> str:
        return "%s: %s. Next: %s" % (self.side, self.what, self.next_step)


# ---- The story -------------------------------------------------------------------------------


def main(argv: Optional[List[str]] = None) -> int:
    ending, problem, stderr = Ending(), None, start_logging()
    try:
        with Watchdog(ending) as watchdog:
            options = read_command_line(argv, ending, stderr)
            settings = read_settings(options, ending)
            watchdog.set_deadline(settings["SYNC_DEADLINE"])
            if options.status:
                show_status(settings, options, ending.report)
            else:
                sync(settings, options, ending)
    except Exception as error:
        problem = as_sync_error(error)
        if ending.cancelled_by and getattr(error.__cause__, "pgcode", "") == "57014":
            problem = ending.cancelled_by
    ending.lock.acquire()  # if the watchdog has it, it ends the process
    ending.warehouse = None
    ending.tell(problem)
    return ending.report.exit_code


def sync(settings: Settings, options: argparse.Namespace, ending: Ending) -> None:
    """Lock first, then take the app's snapshot: a later run must never write an older snapshot."""
    log.info("sync: %s into %s", spelled(settings["APP_TABLE"]), spelled(settings["WH_TABLE"]))
    ending.ping("start")
    if options.check:
        look_around(settings)
    with connect(settings.warehouse, settings) as warehouse:
        ending.warehouse = warehouse
        if take_lock(warehouse, ending.report):
            carry_athletes(warehouse, settings, options, ending.report)
        record_run(warehouse, ending.report, ending.seconds())
        if not options.dry_run:
            ending.lock.acquire()  # from here on, the watchdog waits
            warehouse.commit()


def carry_athletes(warehouse: Database, settings: Settings, options: argparse.Namespace, report: Report) -> None:
    """Read the app, compare, and write what differs. Nothing is committed here."""
    warehouse.run(CREATE_STAGING)
    look_at_dimension(warehouse)
    last = last_success(warehouse)
    with connect(settings.app, settings) as app:
        policies = lock_source(app)
        refuse_older_app(app, last, options, report)
        since = start_of_incremental(app, warehouse, last, options, report)
        staged_rows = stream_athletes(app, warehouse, options, report, since)
    if policies:
        heed_policies(policies, settings, options, report)
    seen = settle_duplicates(warehouse, staged_rows, report)
    refuse_rejects(last, options, report)
    changes = compare_with_dimension(warehouse, seen, options, report)
    if options.diff:
        note_changes(warehouse, report)
    refuse_too_many_changes(changes, settings, options, report)
    upsert_athletes(warehouse, changes, options)
    prove_agreement(warehouse)
    report.dimension_rows = changes.in_dimension + report.inserted


# ---- The steps, each right below its SQL. {dimension} stands for analytics.athlete_dim, and so on.

# Transaction-level, so that no pooler can leak it. Keyed by the dimension's oid, because WH_TABLE may be
# spelled in two ways. 1096043596 keeps it apart from other programs' locks.
TAKE_LOCK = "SELECT pg_try_advisory_xact_lock(1096043596, {dimension_text}::regclass::oid::integer)"

# A run ends its transaction by its deadline, which its application_name tells; on PostgreSQL 17 the server does, a
# little later. An older one belongs to a process that is frozen, or whose host is gone.
WHO_HOLDS_THE_LOCK = """
SELECT held.pid,
       'backend ' || held.pid::text || ' from ' || coalesce(client_addr::text, '?')
           || ' since ' || coalesce(xact_start::timestamptz(0)::text, '?'),
       application_name LIKE 'sync_athletes %' AND xact_start < clock_timestamp()
           - (substring(application_name FROM '[0-9]+')::float8 + 5::float8) * interval '1 second'
  FROM pg_catalog.pg_locks AS held
  LEFT JOIN pg_catalog.pg_stat_activity AS activity ON activity.pid = held.pid
 WHERE held.locktype = 'advisory'
   AND held.granted
   AND held.classid = 1096043596::oid
   AND held.objid = {dimension_text}::regclass::oid
   AND held.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""
END_HOLDER = """
SELECT pg_terminate_backend(%(pid)s);
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(1096043596, {dimension_text}::regclass::oid::integer);
SET LOCAL lock_timeout = 0
"""


def take_lock(warehouse: Database, report: Report) -> bool:
    """Take the run's lock, or note that the run is skipped. A run that is past its deadline is ended first."""
    while not warehouse.fetch_row(TAKE_LOCK)[0]:
        for pid, description, is_overdue in warehouse.run(WHO_HOLDS_THE_LOCK):  # none if it has just ended
            if not is_overdue:
                report.result = "skipped"
                report.message = "another run holds the lock of %s: %s" % (
                    spelled(warehouse.settings["WH_TABLE"]), description)
                log.info("warehouse: skipped: %s", report.message)
                return False
            log.warning("warehouse: the run that holds the lock is past its deadline and is ended: %s", description)
            warehouse.run(END_HOLDER, pid=pid)
    return True


# An athlete whose name cannot be used is staged with NULL: it is seen, not missing.
CREATE_STAGING = "CREATE TEMP TABLE tmp_athlete_dim (athlete_uuid UUID NOT NULL, full_name TEXT) ON COMMIT DROP"

# A domain over uuid has uuid's output function. If the database casts text to uuid by itself, a key of text would take
# two spellings for two athletes. A table that inherits has athletes that the key does not see.
LOOK_AT_DIMENSION = """
SELECT typoutput::oid = 'pg_catalog.uuid_out'::regproc::oid,
       relkind <> 'p' AND EXISTS (SELECT 1 FROM pg_catalog.pg_inherits WHERE inhparent = attrelid)
  FROM pg_catalog.pg_attribute
  JOIN pg_catalog.pg_class ON pg_class.oid = attrelid
  JOIN pg_catalog.pg_type ON pg_type.oid = atttypid
 WHERE attrelid = {dimension_text}::regclass::oid AND attname = 'athlete_uuid'
"""

# Each node of Citus has advisory locks of its own: a run on a worker and one on the coordinator would overlap.
FIND_COORDINATOR = """
SELECT coalesce((SELECT nodename || ':' || nodeport::text FROM pg_catalog.pg_dist_node WHERE groupid = 0 LIMIT 1), '?')
  FROM pg_catalog.pg_dist_local_group
 WHERE groupid <> 0
"""


def look_at_dimension(warehouse: Database) -> None:
    """Let Postgres refuse what the run could not write, and wait for others' locks, before the app is opened."""
    coordinator = warehouse.fetch_row(FIND_COORDINATOR) if warehouse.is_citus else None
    if coordinator:
        names = names_for_advice(warehouse)
        raise SyncError(SQL_OR_DATA, "warehouse", "a worker of Citus cannot see other nodes' runs",
                        "%s and %s of the coordinator: %s" % (names["HOST"], names["PORT"], coordinator[0]))
    key_is_uuid, has_children = warehouse.fetch_row(LOOK_AT_DIMENSION) or (True, False)  # the EXPLAIN tells what lacks
    if not key_is_uuid:
        raise warehouse.problem(OTHER_COLUMN, "athlete_uuid is no uuid")
    if has_children:
        raise warehouse.problem(NOT_ONE_ROW, "other tables inherit from it")
    warehouse.run("EXPLAIN " + UPSERT.replace("{rows}", "tmp_athlete_dim"))


# What this run has to know of the one before: all columns, for a history of an older version may lack some.
LAST_SUCCESS = """
SELECT pg_catalog.to_json(run)
  FROM analytics.athlete_sync_run AS run
 WHERE target = %(target)s AND result = 'ok'
 ORDER BY run_id DESC
 LIMIT 1
"""


def last_success(warehouse: Database) -> Dict[str, Any]:
    return dict((warehouse.try_row(LAST_SUCCESS, target=spelled(warehouse.settings["WH_TABLE"])) or [{}])[0])


# TRUNCATE and ALTER TABLE are not MVCC-safe: to a snapshot older than a reload, the table is empty. So the lock
# comes before the snapshot. A SELECT locks whatever it would read, views and partitions included, until the
# transaction ends; its own snapshot does not matter, because under READ COMMITTED the COPY takes a new one.
LOCK_SOURCE = "SELECT {uuid_column}, {name_column} FROM {app_table} LIMIT 0"

# Which of the tables that are locked now have policies, and none that plainly lets the role see all.
TABLES_WITH_POLICIES = """
SELECT pg_class.oid::regclass::text
  FROM pg_catalog.pg_class
 WHERE relrowsecurity
   AND pg_class.oid IN (SELECT relation FROM pg_catalog.pg_locks WHERE pid = pg_backend_pid())
   AND NOT coalesce((
        SELECT bool_or(pg_get_expr(polqual, polrelid) = 'true')
               AND bool_and(coalesce(pg_catalog.to_jsonb(pg_policy) ->> 'polpermissive'::text, 'true') = 'true')
          FROM pg_catalog.pg_policy
         WHERE polrelid = pg_class.oid
           AND polcmd IN ('r', '*')
           AND EXISTS (SELECT 1 FROM pg_catalog.unnest(polroles) AS role (oid)
                        WHERE role.oid = 0::oid OR pg_has_role(role.oid, 'USAGE'))), false)
"""


def lock_source(app: Database) -> List[str]:
    """Lock what is read. Returns the tables of which row-level security may hide rows."""
    app.run("SET LOCAL row_security = off")  # Postgres then refuses what a policy would touch
    with app.attempt():
        app.run(LOCK_SOURCE)
        return []
    app.run("SET LOCAL row_security = on")
    app.run(LOCK_SOURCE)  # raises what else may be wrong
    return [table for table, in app.run(TABLES_WITH_POLICIES)]


def heed_policies(tables: List[str], settings: Settings, options: argparse.Namespace, report: Report) -> None:
    what = "row-level security of %s decides which rows the role sees: %d now" % (", ".join(tables), report.source)
    mend = ("as a superuser: ALTER ROLE {0} BYPASSRLS; or as the owner: CREATE POLICY athlete_sync ON {1} FOR SELECT "
            "TO {0} USING (true);").format(quoted(settings.app.libpq.get("user", "?")), tables[0])
    if not report.source:
        refuse(options, "app", what, mend)
    log.warning("app: %s. Next: %s", what, mend)


# Which app this is, and its state. A standby that has just been promoted has its new timeline in its recovery state
# alone until the next checkpoint. Servers before 9.6 do not tell.
READ_STATE = """
SELECT pg_catalog.concat_ws(' ', 'system', system_identifier, 'database', pg_database.oid,
                            'table', {app_table_text}::regclass::oid)   AS lineage,
       greatest(checkpoint.timeline_id, min_recovery_end_timeline)      AS timeline,
       txid_snapshot_xmax(txid_current_snapshot())                      AS next_transaction
  FROM pg_control_system(), pg_control_checkpoint() AS checkpoint, pg_control_recovery(), pg_catalog.pg_database
 WHERE datname = current_database()
"""


def refuse_older_app(app: Database, last: Dict[str, Any], options: argparse.Namespace, report: Report) -> None:
    """A replica that lags would put names back that were new."""
    report.app_lineage, report.app_timeline, report.app_next = app.try_row(READ_STATE) or (None, None, None)
    if report.app_lineage and report.app_lineage == last.get("app_lineage") \
            and report.app_timeline <= last["app_timeline"] and report.app_next < last["app_next"]:
        refuse(options, "app", "its state is older than that of the last success (transaction %d, then %d), as a "
            "replica's that lags" % (report.app_next, last["app_next"]),
            "point the setting at the primary, or wait; if the app was restored from a backup, in the warehouse: "
            "UPDATE analytics.athlete_sync_run SET app_lineage = NULL WHERE run_id = %d;" % last["run_id"])


# Rows that only a later snapshot sees were written by oldest_open, the oldest transaction still open in ours, or by a
# younger one, as long as the server is the same, not restarted nor restored, and table and columns are: by number,
# because swapping names writes no row. A crash of one backend is no restart, but resets the statistics; rows may then
# be lost. No row comes back if a row may change what is read without being written (a view, a policy, a domain or an
# enum, a virtual column), if xmin may not be read, or if a changed row may repeat an unchanged athlete.
READ_POSITION = """
SELECT txid_snapshot_xmin(txid_current_snapshot()) AS oldest_open,
       pg_catalog.concat_ws(' ', 'started', extract(epoch FROM pg_postmaster_start_time()),
           'crashed', (SELECT extract(epoch FROM stats_reset) FROM pg_catalog.pg_stat_bgwriter),
           'database', (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()),
           'table', source.oid, 'columns', key.attnum, name.attnum) AS source
  FROM pg_catalog.pg_class AS source
  JOIN pg_catalog.pg_attribute AS key ON key.attrelid = source.oid AND key.attname = {uuid_column_text}
  JOIN pg_catalog.pg_attribute AS name ON name.attrelid = source.oid AND name.attname = {name_column_text}
  JOIN pg_catalog.pg_index AS index ON index.indrelid = source.oid AND index.indkey[0] = key.attnum
 WHERE source.oid = {app_table_text}::regclass::oid
   AND relkind = 'r' AND NOT relhassubclass
   AND NOT row_security_active(source.oid)
   AND has_column_privilege(source.oid, 'xmin', 'SELECT')
   AND key.atttypid IN ('uuid'::regtype::oid, 'text'::regtype::oid, 'varchar'::regtype::oid, 'bpchar'::regtype::oid)
   AND name.atttypid IN ('text'::regtype::oid, 'varchar'::regtype::oid, 'bpchar'::regtype::oid)
   AND 'v' NOT IN (coalesce(pg_catalog.to_jsonb(key) ->> 'attgenerated'::text, ''),
                   coalesce(pg_catalog.to_jsonb(name) ->> 'attgenerated'::text, ''))
   AND indisunique AND indisvalid AND indimmediate AND indpred IS NULL
   AND coalesce(pg_catalog.to_jsonb(index) ->> 'indnkeyatts'::text, indnatts::text) = '1'
 LIMIT 1
"""


def start_of_incremental(app: Database, warehouse: Database, last: Dict[str, Any], options: argparse.Namespace,
                         report: Report) -> Optional[int]:
    """Note where this run leaves the app. Return the xmin from which to read; None if all must be read."""
    report.app_position, report.app_source = app.try_row(READ_POSITION) or (None, None)
    if not options.incremental:
        return None
    uuid, table = quoted(app.settings["APP_UUID_COLUMN"].strings[0]), spelled(app.settings["APP_TABLE"])
    athletes: int = warehouse.fetch_row("SELECT count(*) FROM {dimension}")[0]
    obstacle = next((why for is_so, why in [  # the first, which makes sense of those that follow
        (options.strict, "--strict must know every row"),
        (not report.app_source, "the source must be a plain table without policies, its uuid column text or uuid with "
                                "a unique index, and SELECT granted on all of the table"),
        (not last, "no success is in the run history"),
        (last.get("app_source") != report.app_source,
         "the app's server, its start, the table or the columns are not those of the last success"),
        (not last.get("app_is_unique"), "a uuid is spelled in another way than Postgres does; to mend it, in the app: "
         "UPDATE {0} SET {1} = {1}::uuid::text WHERE {1} ~* '^{{?([0-9a-f]{{4}}-?){{8}}}}?$';".format(table, uuid)),
        ((report.app_position or 0) - (last.get("app_position") or 0) >= 2 ** 31,
         "the last success is too many transactions ago"),
        (athletes < (last.get("dimension_rows") or athletes + 1),
         "the dimension holds fewer athletes than the last success left there"),
    ] if is_so), None)
    if obstacle:
        log.info("app: full, not incremental: %s", obstacle)
        return None
    log.info("app: incremental: what has changed since the success of %s", last["finished_at"])
    report.mode, report.dimension_rows = "incremental", athletes
    return int(last["app_position"] % 2 ** 32)


def stream_athletes(app: Database, warehouse: Database, options: argparse.Namespace, report: Report,
                    since: Optional[int]) -> int:
    """Copy the app's rows, or those changed `since`, into staging, a chunk at a time. Returns how many are there.

    A thread extracts into an OS pipe while this one checks and loads. The pipe is the bounded queue: it holds 64 kB,
    then makes the faster side wait; and a side that stops closes it, which the other one notices.
    """
    read_end, write_end = os.pipe()
    with ThreadPoolExecutor(1) as pool, open(read_end, "rb", CHUNK_BYTES) as extracted, \
            progress_bar(options, desc="app", unit=" athletes", unit_scale=True) as bar:
        extraction = pool.submit(extract_athletes, app, write_end, since)
        checked = CheckedRows(extracted, extraction, bar)
        try:
            staged_rows = warehouse.copy("COPY pg_temp.tmp_athlete_dim (athlete_uuid, full_name) FROM STDIN", checked)
        except SyncError as problem:
            raise checked.failure or problem
    if staged_rows != checked.rows - checked.unreadable:
        raise proof_failed("staging holds %d of %d rows" % (staged_rows, checked.rows - checked.unreadable))
    report.app_is_unique = checked.all_canonical
    if since is not None and not (report.app_is_unique and app.fetch_row("SELECT 1 FROM {app_table} LIMIT 1")):
        log.info("app: full, not incremental: a changed row spells its uuid in another way, or no row is left")
        warehouse.run("TRUNCATE pg_temp.tmp_athlete_dim")
        report.mode, report.dimension_rows = "full", None
        return stream_athletes(app, warehouse, options, report, None)
    report.source, report.reject_reasons, report.rejects = checked.rows, checked.reasons, checked.rejects
    report.rejected = sum(checked.reasons.values())
    log.info("app: %d rows read, %d staged", report.source, staged_rows)
    if not report.source and report.mode == "full":
        log.warning("app: %s is empty; nothing to do", spelled(app.settings["APP_TABLE"]))
    return staged_rows


# Text format: one row on each line, NULL is exactly \\N. What comes out here goes into staging byte for byte.
EXTRACT = "COPY (SELECT {uuid_column}, {name_column} FROM {app_table}) TO STDOUT"

# xmin wraps around at 2^32. A row is new if it is less than 2^31 ahead of {position}: bit 31 of the difference is 0.
# An old row read again does no harm. An equation, because the planner then expects few rows, and scans in parallel.
EXTRACT_CHANGES = EXTRACT.replace(") TO", " WHERE (xmin::text::bigint - {position}) >> 31 & 1::bigint = 0::bigint) TO")


def extract_athletes(app: Database, write_end: int, since: Optional[int]) -> int:
    """Write the app's rows into the pipe and close it. Returns the number of rows the server sent."""
    with open(write_end, "wb", CHUNK_BYTES) as pipe:
        return app.copy(EXTRACT if since is None else EXTRACT_CHANGES, pipe, position=sql.Literal(since))


# Hides pandas' fixed cost per chunk, and stays in a core's cache; 256 kB is no quicker, and takes 3 MB more memory.
CHUNK_BYTES = 128 * 1024


class CheckedRows:
    """The file that COPY ... FROM STDIN reads: the extracted rows less those that were rejected."""

    def __init__(self, extracted: BinaryIO, extraction: "Future[int]", bar: Any):
        self.extracted, self.extraction, self.bar = extracted, extraction, bar
        self.chunks = self.check_chunks()
        self.failure: Optional[BaseException] = None
        self.rows = self.unreadable = 0
        self.all_canonical = True
        self.reasons: Counter[str] = Counter()
        self.rejects: List[Dict[str, Optional[str]]] = []

    def read(self, _: int) -> bytes:
        """Return the next rows, of any size; b"" at the end. psycopg2 hides what is raised here; we keep it."""
        try:
            return next(self.chunks, b"")
        except BaseException as failure:
            self.failure = failure
            raise

    def check_chunks(self) -> Iterator[bytes]:
        begun_line = b""
        for chunk in iter(lambda: self.extracted.read(CHUNK_BYTES), b""):
            lines, newline, begun_line = (begun_line + chunk).rpartition(b"\n")
            good_lines = self.check(lines + newline) if newline else b""
            if good_lines:
                yield good_lines
        rows_sent = self.extraction.result()  # raises what ended it early; a closed pipe alone looks like the end
        if rows_sent != self.rows or begun_line:
            raise SyncError(SQL_OR_DATA, "app", "%d of %d rows arrived" % (self.rows, rows_sent), AGAIN)

    def check(self, lines: bytes) -> bytes:
        """Count the rows, note the rejected, and return the lines that may be staged."""
        # Tabs and newlines only separate: a name's own are escaped, and stay so.
        cells = lines[:-1].replace(b"\n", b"\t").split(b"\t")
        rows = pd.DataFrame({"athlete_uuid": cells[0::2], "full_name": cells[1::2]}, dtype=object)
        self.rows += len(rows)
        self.bar.update(len(rows))
        if are_canonical(rows["athlete_uuid"]) and NULL not in rows["full_name"].values and is_utf8(lines):
            return lines  # as they came
        rows["reason"] = list(map(why_rejected, rows["athlete_uuid"], rows["full_name"]))
        bad, room = rows[rows["reason"].notna()], MOST_REJECTS - len(self.rejects)
        self.reasons.update(bad["reason"])
        self.rejects += [{"uuid": None if uuid == NULL else as_found(uuid)[:100], "reason": reason}
                         for uuid, reason in zip(bad["athlete_uuid"][:room], bad["reason"])]
        readable = rows[~rows["reason"].isin(["uuid is NULL", "uuid is not a uuid"])]
        self.unreadable += len(rows) - len(readable)
        self.all_canonical &= are_canonical(readable["athlete_uuid"])
        names = readable["full_name"].where(readable["reason"].isna(), NULL)
        return b"".join(b"%s\t%s\n" % row for row in zip(readable["athlete_uuid"], names))


MOST_REJECTS = 100
NULL = b"\\N"  # as COPY writes it; a name of these two characters is written \\\\N
# All that Postgres's uuid_in reads: braces, any case, a hyphen after any four digits or none.
ANY_UUID = re.compile(rb"(\{)?(?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}(?(1)\})")
ZERO_UUID = b"00000000-0000-0000-0000-000000000000"
DIGITS_TO_ZERO = bytes.maketrans(b"123456789abcdef", b"0" * 15)


def are_canonical(uuids: pd.Series) -> bool:
    """Whether Postgres prints all of them so. One comparison for all: a million take 0.07 s, fullmatch 0.5 s."""
    return b"\n".join(uuids).translate(DIGITS_TO_ZERO) == b"\n".join([ZERO_UUID] * len(uuids))


def why_rejected(uuid: bytes, name: bytes) -> Optional[str]:
    if uuid.translate(DIGITS_TO_ZERO) != ZERO_UUID and not ANY_UUID.fullmatch(uuid):  # the slower one only if need be
        return "uuid is NULL" if uuid == NULL else "uuid is not a uuid"
    if name == NULL:
        return "name is NULL"
    return None if is_utf8(name) else "name is not UTF-8"


def is_utf8(text: bytes) -> bool:
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False


def as_found(cell: bytes) -> str:
    text = cell.decode(errors="surrogateescape").encode("ascii", "backslashreplace").decode("unicode_escape")
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")  # Python has COPY's escapes, too


# One uuid, several names: nobody can say which is true, so none is taken. COLLATE "C" compares bytes.
SETTLE_REPEATS = """
WITH repeated AS (
    DELETE FROM pg_temp.tmp_athlete_dim
     WHERE athlete_uuid IN (SELECT athlete_uuid
                              FROM pg_temp.tmp_athlete_dim
                             GROUP BY athlete_uuid
                            HAVING count(*) > 1)
    RETURNING athlete_uuid, full_name COLLATE "C" AS full_name
), settled AS (
    SELECT athlete_uuid,
           pg_catalog.count(full_name)          AS named_rows,
           pg_catalog.count(DISTINCT full_name) AS names,
           min(full_name)                       AS full_name
      FROM repeated
     GROUP BY athlete_uuid
), kept AS (
    INSERT INTO pg_temp.tmp_athlete_dim
    SELECT athlete_uuid, CASE WHEN names = 1 THEN full_name END
      FROM settled
)
SELECT coalesce(sum(named_rows) FILTER (WHERE names > 1), 0)::bigint     AS conflicting_rows,
       coalesce(sum(named_rows - 1) FILTER (WHERE names = 1), 0)::bigint AS repeated_rows,
       coalesce((pg_catalog.array_agg(athlete_uuid::text ORDER BY athlete_uuid)
                     FILTER (WHERE names > 1))[1:100], '{{}}')
  FROM settled
"""


def settle_duplicates(warehouse: Database, staged_rows: int, report: Report) -> int:
    """Keep one row per athlete in staging, without a name where names conflict. Returns how many athletes it holds."""
    report.repeated = 0
    if report.app_source and report.app_is_unique:
        return staged_rows  # the app's own unique index, and one spelling of each uuid, leave nothing to count
    # This sorts the uuids alone; beside other counts it would sort whole rows (1,000,000: 0.2 s, not 0.4 s).
    seen: int = warehouse.fetch_row("SELECT pg_catalog.count(DISTINCT athlete_uuid) FROM pg_temp.tmp_athlete_dim")[0]
    if seen != staged_rows:
        conflicting_rows, report.repeated, uuids = warehouse.fetch_row(SETTLE_REPEATS)
        reason = "names differ for one uuid"
        report.rejects += [{"uuid": uuid, "reason": reason} for uuid in uuids[:MOST_REJECTS - len(report.rejects)]]
        report.reject_reasons += Counter({reason: conflicting_rows})
        report.rejected += conflicting_rows
    return seen


def refuse_rejects(last: Dict[str, Any], options: argparse.Namespace, report: Report) -> None:
    if not report.rejected:
        return
    is_known = options.quiet and report.rejected <= (last.get("rejected") or 0)  # cron would mail it every night
    log.log(logging.INFO if is_known else logging.WARNING, "app: %d rows rejected: %s; up to %d of them: %s --dry-run "
            "--json", report.rejected, report.reasons(), MOST_REJECTS, COMMAND)
    if report.rejected == report.source and report.mode == "full":
        refuse(options, "app", "every row was rejected: %s; that looks like a wrong column" % report.reasons(),
            "check APP_UUID_COLUMN and APP_NAME_COLUMN; what was found: %s --dry-run --json" % COMMAND)
    elif options.strict:
        refuse(options, "app", "%d rows rejected, and --strict allows none" % report.rejected,
            "mend them in the app, or leave --strict out")


# This decides who is new or renamed, and keeps them, and those who are due for a stamp. The last row is the dimension's
# count, of the same moment if all is compared: others may write. The join is quickest in batches that fit a cache.
KEEP_CHANGES = """
SET LOCAL work_mem = '1MB';
CREATE TEMP TABLE tmp_athlete_change ON COMMIT DROP AS
SELECT athlete_uuid, kind, old_name, full_name, NULL::bigint AS in_dimension
  FROM (SELECT staged.athlete_uuid,
               CASE WHEN known.athlete_uuid IS NULL THEN 'inserted'
                    WHEN known.full_name::text COLLATE "C" IS DISTINCT FROM staged.full_name COLLATE "C" THEN 'updated'
                    ELSE 'unchanged' END AS kind,
               known.full_name::text AS old_name,
               staged.full_name,
               coalesce(known.source_synced_at, '-infinity') < now() - %(stamp_older_than)s::interval AS is_due
          FROM pg_temp.tmp_athlete_dim AS staged
          LEFT JOIN {dimension} AS known ON known.athlete_uuid = staged.athlete_uuid) AS compared
 WHERE kind = 'inserted' OR (full_name IS NOT NULL AND (kind = 'updated' OR is_due))
 UNION ALL
SELECT NULL, NULL, NULL, NULL, coalesce(%(counted)s::bigint, (SELECT count(*) FROM {dimension}))
 ORDER BY athlete_uuid;
SET LOCAL work_mem TO DEFAULT
"""

# staged is more than due if the app's unique index, corrupt since a new C library sorts anew, lets repeats through.
COUNT_CHANGES = """
SELECT count(*)         FILTER (WHERE kind = 'inserted'),
       pg_catalog.count(full_name) FILTER (WHERE kind = 'inserted'),
       count(*)         FILTER (WHERE kind = 'updated'),
       pg_catalog.count(full_name) AS due,
       max(in_dimension),
       (SELECT pg_catalog.count(full_name) FROM pg_temp.tmp_athlete_dim
         WHERE athlete_uuid IN (SELECT athlete_uuid FROM pg_temp.tmp_athlete_change)) AS staged
  FROM pg_temp.tmp_athlete_change
"""


class Changes(NamedTuple):
    table: str  # of pg_temp; its rows that have a name are to be written
    rows: int  # how many these are
    in_dimension: int  # athletes, before it is written


def compare_with_dimension(warehouse: Database, seen: int, options: argparse.Namespace, report: Report) -> Changes:
    """Count what is new, renamed and missing of the athletes `seen`; keep what differs in tmp_athlete_change."""
    refresh = warehouse.settings["SYNC_REFRESH"]
    named = report.source - report.rejected - report.repeated
    changes, unknown, report.inserted, report.updated = Changes("tmp_athlete_dim", named, 0), seen, named, 0
    if options.diff or warehouse.fetch_row("SELECT 1 FROM {dimension} LIMIT 1"):  # else all new (1,000,000: 1 s less)
        with progress_bar(options, desc="warehouse: comparing", bar_format="{desc} {elapsed}"):
            warehouse.run(KEEP_CHANGES, counted=report.dimension_rows,
                          stamp_older_than=None if refresh in ("always", "never") else refresh)
        unknown, report.inserted, report.updated, due, in_dimension, staged = warehouse.fetch_row(COUNT_CHANGES)
        if staged > due:
            raise warehouse.problem(REPEATED, "%d rows are too many" % (staged - due))
        table, rows = ("tmp_athlete_dim", named) if refresh == "always" else ("tmp_athlete_change", due)
        changes = Changes(table, rows, in_dimension)
    report.unchanged = named - report.inserted - report.updated
    if report.mode == "full":
        report.missing = changes.in_dimension - (seen - unknown)
    log.info("warehouse: %d to insert, %d to update, %d unchanged, %s", report.inserted, report.updated,
             report.unchanged, "%d missing" % report.missing if report.mode == "full" else "missing is not counted")
    return changes


def refuse_too_many_changes(changes: Changes, settings: Settings, options: argparse.Namespace, report: Report) -> None:
    """Refuse what looks like an accident: a wrong column renames nearly everybody, a wrong database replaces them."""
    changed = report.updated + min(report.inserted, report.missing or 0)
    allowed = options.allow_changes
    if allowed is None:
        allowed = changes.in_dimension * settings["SYNC_MAX_CHANGED_PERCENT"] // 100
    if changed > allowed and (changes.in_dimension >= 20 or options.allow_changes is not None):
        refuse(options, "warehouse", "%d of %d athletes would be renamed or replaced, and at most %d are allowed; "
            "that looks like a wrong column, table or database" % (changed, changes.in_dimension, allowed),
            "look: {0} --dry-run --diff; if it is meant: {0} --allow-changes {1}".format(COMMAND, changed))


def refuse(options: argparse.Namespace, side: str, what: str, next_step: str) -> None:
    problem = SyncError(SQL_OR_DATA, side, what, next_step)
    if options.check or not options.dry_run:
        raise problem
    log.warning("without --dry-run this would be refused: %s", problem)


# {rows} is tmp_athlete_change, or tmp_athlete_dim where all are new or stamped. Not always the latter, because an
# INSERT that meets an unchanged row locks and logs it even where its own WHERE then leaves it alone (1,000,000: 3.0 s,
# not 0.7 s). In the order of the key, which fills its index from left to right (a first load: 3.0 s, not 4.3 s).
UPSERT = """
INSERT INTO {dimension} (athlete_uuid, full_name, source_synced_at)
SELECT athlete_uuid, full_name, now()
  FROM pg_temp.{rows}
 WHERE full_name IS NOT NULL
 ORDER BY athlete_uuid
    ON CONFLICT (athlete_uuid) DO UPDATE
   SET full_name        = EXCLUDED.full_name,
       source_synced_at = EXCLUDED.source_synced_at
"""


def upsert_athletes(warehouse: Database, changes: Changes, options: argparse.Namespace) -> None:
    with progress_bar(options, desc="warehouse: writing", bar_format="{desc} {elapsed}"):
        written = warehouse.run(UPSERT.replace("{rows}", changes.table)).rowcount
    if written != changes.rows:
        raise proof_failed("%d of %d rows were written" % (written, changes.rows))
    log.info("warehouse: %d rows written%s", written, ", to be rolled back" if options.dry_run else "")


# Postgres stores what it gets, unless a trigger, a rule, a policy or the column's type changes it (char(n) pads,
# varchar(n) trims), here or in a partition: in whatever this transaction has locked for writing.
WHAT_COULD_INTERFERE = """
WITH written (oid) AS (
    SELECT relation FROM pg_catalog.pg_locks WHERE pid = pg_backend_pid() AND mode = 'RowExclusiveLock'
)
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_trigger JOIN written ON tgrelid = written.oid
                WHERE NOT tgisinternal AND tgenabled <> 'D')
    OR EXISTS (SELECT 1 FROM pg_catalog.pg_rewrite JOIN written ON ev_class = written.oid)
    OR EXISTS (SELECT 1 FROM pg_catalog.pg_class JOIN written ON pg_class.oid = written.oid WHERE relrowsecurity)
    OR EXISTS (SELECT 1 FROM pg_catalog.pg_attribute JOIN written ON attrelid = written.oid
                WHERE attname = 'full_name'
                  AND (atttypid NOT IN ('text'::regtype::oid, 'varchar'::regtype::oid) OR atttypmod <> -1))
"""

COUNT_DISAGREEMENTS = """
SELECT count(*)
  FROM pg_temp.tmp_athlete_dim AS staged
  LEFT JOIN {dimension} AS known ON known.athlete_uuid = staged.athlete_uuid
 WHERE staged.full_name IS NOT NULL
   AND known.full_name::text COLLATE "C" IS DISTINCT FROM staged.full_name COLLATE "C"
"""


def prove_agreement(warehouse: Database) -> None:
    """Read every athlete back where a name could have been altered; elsewhere comparison and count are the proof."""
    disagreeing = warehouse.fetch_row(WHAT_COULD_INTERFERE)[0] and warehouse.fetch_row(COUNT_DISAGREEMENTS)[0]
    if disagreeing:
        raise proof_failed("%d athletes differ from what was sent" % disagreeing)


def proof_failed(what: str) -> SyncError:
    return SyncError(SQL_OR_DATA, "warehouse", "the proof failed, nothing was changed: " + what,
                     "look for triggers, rules and policies on the dimension (psql: \\d+)")


# ---- What the run reports: result line, history, ping ----------------------------------------

COUNTS = ["source", "inserted", "updated", "unchanged", "missing", "rejected", "repeated"]
SECONDS_TO_REPORT, SECONDS_TO_PING = 5, 2  # start and result, one after the other
UNKNOWN: Any = None  # what is not known is None, never 0; mypy cannot see which step sets it


class Report:
    """What a run tells: the steps fill it in."""

    def __init__(self) -> None:
        self.mode, self.result, self.exit_code = "full", "ok", OK
        self.message: Optional[str] = None
        self.source = self.inserted = self.updated = self.unchanged = self.missing = UNKNOWN
        self.rejected = self.repeated = UNKNOWN
        self.rejects: List[Dict[str, Optional[str]]] = []
        self.reject_reasons: Counter[str] = Counter()
        self.changes: Optional[Dict[str, Any]] = None  # for --diff
        self.answer: Optional[str] = None  # what --status says instead of the result line
        self.is_recorded = False
        # For the next run: where this one leaves the app, and the dimension.
        self.app_position = self.app_source = self.app_is_unique = self.dimension_rows = UNKNOWN
        self.app_lineage = self.app_timeline = self.app_next = UNKNOWN

    def reasons(self) -> str:
        return ", ".join("%d %s" % (count, reason) for reason, count in self.reject_reasons.most_common())

    def fail(self, problem: SyncError) -> None:
        self.result, self.exit_code = "failed", problem.code
        self.message = "%s (exit code %d)" % (problem, problem.code)
        self.inserted = self.updated = self.unchanged = self.missing = self.repeated = self.dimension_rows = None


class Ending:
    """How a run ends, whoever ends it: all who are to be told. They are noted as they become known."""

    def __init__(self) -> None:
        self.report = Report()
        self.started, self.ended = time.monotonic(), 0.0
        self.options = make_parser().parse_args([])
        self.log_file: Optional[logging.Handler] = None
        self.ping_url: Optional[str] = None
        self.pinging: Optional[threading.Thread] = None  # the last one
        self.history: Optional[Settings] = None  # of the warehouse that a failure is recorded in
        self.warehouse: Optional[Database] = None  # while the run is connected
        self.lock = threading.RLock()  # whoever has it decides how the run ends
        self.cancelled_by: Optional[SyncError] = None  # the deadline or a signal, during COMMIT
        self.must_end: Optional[float] = None

    def seconds(self) -> float:
        return round((self.ended or time.monotonic()) - self.started, 2)

    def tell(self, problem: Optional[SyncError]) -> None:
        """The history, a log line, the result, a ping."""
        recording = None
        if problem:
            self.report.fail(problem)
            recording = self.history and in_background(
                record_failure, self.history, self.report, self.seconds(), self.warehouse and self.warehouse.backend)
            cause = problem.__cause__ or problem  # its text is not shown: Postgres puts whole rows into its details
            log.debug("%s\n%s", type(cause).__name__, "".join(traceback.format_tb(cause.__traceback__)).rstrip())
            if recording:
                recording.join(1)  # the failure's own line is the last
                if not (self.report.is_recorded or recording.is_alive() or problem.side == "warehouse"):
                    log.warning("warehouse: this run is not in the run history, which cannot be written")
            log.error("%s", self.report.message)
        self.ended = time.monotonic()
        self.write_result()
        # A skipped run is no success: the run that holds the lock may still fail.
        self.ping("log" if self.report.result == "skipped" else str(self.report.exit_code))
        until = self.must_end or self.ended + SECONDS_TO_REPORT
        for thread in (self.pinging, recording):
            if thread:
                thread.join(max(0.0, until - time.monotonic()))

    def text_line(self) -> str:
        counts = ["%s=%s" % (name, json.dumps(getattr(self.report, name))) for name in COUNTS]
        return " ".join(["result=" + self.report.result, "mode=" + self.report.mode] + counts
                        + ["seconds=%.2f" % self.seconds()] + ["dry_run=true"] * self.options.dry_run)

    def json_line(self) -> str:
        keys = ["result", "exit_code", "mode", "dry_run"] + COUNTS + ["seconds", "rejects", "message"]
        values = dict(vars(self.report), dry_run=self.options.dry_run, seconds=self.seconds())
        return json.dumps({key: values[key] for key in keys + ["changes"] * self.options.diff})

    def write_result(self) -> None:
        report, options = self.report, self.options
        if options.status and report.result == "failed":
            health = dict(verdict="not known", exit_code=report.exit_code, message=report.message)
            report.answer = json.dumps(health) if options.json else "not known"
        lines = [*(change_lines(report.changes) if report.changes else ()), self.text_line()]
        skipped = [report.message or ""] * (report.result == "skipped")
        lines += (skipped + ["Not ready" if report.exit_code else "Ready"]) * options.check
        result = report.answer or (self.json_line() if options.json else "\n".join(lines))
        if not (options.quiet and report.exit_code == OK):
            with suppress(OSError, AttributeError):  # nobody listens, the disk is full, or there is no stdout
                print(result, flush=True)
        if self.log_file and not options.status:
            self.log_file.handle(logging.makeLogRecord({"msg": self.text_line(), "levelname": "INFO"}))

    def ping(self, event: str) -> None:
        """Start is told while the run goes on, and before its result."""
        if self.ping_url:
            if self.pinging:
                self.pinging.join(SECONDS_TO_PING)
            self.pinging = in_background(ping, self.ping_url, event, "" if event == "start" else self.text_line())


# Both times are the server's: the hosts' clocks may differ. started_at is never after now(), this run's stamp,
# so with SYNC_REFRESH=always an older stamp means missing.
RECORD_RUN = """
INSERT INTO analytics.athlete_sync_run (
        target, started_at, finished_at,
        mode, result, exit_code, source_rows, inserted, updated, unchanged, missing,
        rejected, repeated, rejects, message, host, version, max_age, dimension_rows,
        app_position, app_source, app_is_unique, app_lineage, app_timeline, app_next)
VALUES (%(target)s, least(now(), clock_timestamp() - %(seconds)s::float8 * interval '1 second'), clock_timestamp(),
        %(mode)s, %(result)s, %(exit_code)s, %(source)s, %(inserted)s, %(updated)s, %(unchanged)s, %(missing)s,
        %(rejected)s, %(repeated)s, %(rejects)s, %(message)s, %(host)s, %(version)s, %(max_age)s, %(dimension_rows)s,
        %(app_position)s, %(app_source)s, %(app_is_unique)s, %(app_lineage)s, %(app_timeline)s, %(app_next)s)
RETURNING run_id
"""

# No RETURNING: the writer may only insert here.
RECORD_RENAMES = """
INSERT INTO analytics.athlete_rename (run_id, athlete_uuid, old_name, new_name, renamed_at)
SELECT %(run_id)s, athlete_uuid, old_name, full_name, now()
  FROM pg_temp.tmp_athlete_change
 WHERE kind = 'updated'
"""


def record_run(warehouse: Database, report: Report, seconds: float) -> None:
    """Write the run and its renames into the history, in its own transaction. It never fails a run that is right."""
    with warehouse.attempt("5s") as refusals:
        run_id = warehouse.fetch_row(RECORD_RUN, **history_row(warehouse.settings, report, seconds))[0]
    with warehouse.attempt("5s") as refusals_of_renames:
        if report.updated and not refusals:
            warehouse.run(RECORD_RENAMES, run_id=run_id)
    for problem in refusals + refusals_of_renames:
        log.warning("warehouse: %s: %s; if it is not locked: %s", "this run is not in the run history" if refusals else
                    "former names are not kept", problem.what, names_for_advice(warehouse)["setup"])


def record_failure(settings: Settings, report: Report, seconds: float, backend: Optional[int]) -> None:
    """Write a failed run into the history, over a new connection: the run's own is rolled back, or lost."""
    with suppress(Exception):  # the error that ended the run is told already, and its line is the last
        with closing(open_connection(settings.warehouse, settings)) as connection:
            cursor = connection.cursor()
            cursor.execute("SET LOCAL lock_timeout = '4s'; SET LOCAL statement_timeout = '4s';"
                           " SET LOCAL synchronous_commit = local")  # a standby that is gone may be the failure
            if backend:  # it holds the lock, and may be in a long statement
                cursor.execute("SELECT pg_terminate_backend(%s)", [backend])
            cursor.execute(RECORD_RUN, history_row(settings, report, seconds))
            connection.commit()
            report.is_recorded = True


def history_row(settings: Settings, report: Report, seconds: float) -> Dict[str, Any]:
    """The parameters of RECORD_RUN. If the columns were swapped, the uuid of a reject is a name, and is not kept."""
    looks_like_one = re.compile(r"(?=.*[0-9])[0-9A-Fa-f{}-]+$").match
    rejects = [reject if looks_like_one(reject["uuid"] or "0") else dict(reject, uuid="(not shown)")
               for reject in report.rejects]
    return dict(vars(report), target=spelled(settings["WH_TABLE"]), max_age=settings["SYNC_MAX_AGE"],
                seconds=seconds, rejects=json.dumps(rejects), host=platform.node(), version=VERSION)


def in_background(act: Callable[..., Any], *arguments: Any) -> threading.Thread:
    """Start it in a thread that the process does not wait for."""
    thread = threading.Thread(target=act, args=arguments, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # of a limit on threads; then it is left undone
        setattr(thread, "join", lambda _: None)
    return thread


def ping(url: str, event: str, body: str) -> None:
    import urllib.request  # here, because most runs do not ping, and the import is slow
    to_event = re.sub(r"/*(\?|$)", "/%s\\1" % event, url, count=1)
    # Some services refuse the name that Python gives itself.
    request = urllib.request.Request(to_event, body.encode(), {"User-Agent": "sync_athletes/" + VERSION})
    try:
        urllib.request.urlopen(request, timeout=SECONDS_TO_PING).close()
    except Exception as error:  # a ping never fails the run; and of a start nobody need hear what the result tells
        log.log(logging.DEBUG if event == "start" else logging.WARNING, "ping: SYNC_PING_URL failed for /%s: %s %s",
                event, getattr(error, "code", ""), getattr(error, "reason", type(error).__name__))


# ---- Looking: --check and --status change nothing; --diff says who changes -------------------

# --check: questions that a run does not ask. Each row is a warning: what was found, and what to do about it.
LOOKS = {
    "warehouse": """
SELECT 'the encoding is ' || current_setting('server_encoding') || ': a name that it lacks stops a run',
       'a new database: ENCODING ''UTF8'' TEMPLATE template0'
 WHERE current_setting('server_encoding') <> 'UTF8'
""",
    "app": """
SELECT 'the role may write there',
       'REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON TABLE ' || %(table)s || ' FROM ' || %(user)s
           || '; or, for a role that owns it or is a superuser: make another one for APP_USER'
 WHERE has_table_privilege({app_table_text}, 'INSERT, UPDATE, DELETE, TRUNCATE')
"""}


def look_around(settings: Settings) -> None:
    """Warn of what the dry run that follows survives. What is wrong with one side does not hide the other."""
    problems = []
    for endpoint in (settings.warehouse, settings.app):
        try:
            with connect(endpoint, settings) as database:
                look_at(database)
        except SyncError as problem:
            problems.append(problem)
    for another in problems[1:]:
        log.error("%s", another)
    if problems:
        raise problems[0]


def look_at(database: Database) -> None:
    endpoint, advice = database.endpoint, names_for_advice(database)
    is_near = endpoint.libpq.get("host", "/").startswith(("localhost", "127.", "::1", "/"))
    if not database.connection.info.ssl_in_use and not is_near:
        log.warning("%s: names travel without TLS. Next: set %s_SSLMODE=verify-full", endpoint.side, endpoint.prefix)
    with database.attempt():
        for found, mend in database.run(LOOKS[endpoint.side], **advice):
            log.warning("%s: %s. Next: %s", endpoint.side, found, mend)


# The view has a row for each dimension. If this host's SYNC_MAX_AGE is shorter than the last run's, it counts.
READ_HEALTH = """
SELECT pg_catalog.to_json(health), verdict = 'healthy' AND last_full_success < now() - %(max_age)s::interval
  FROM analytics.athlete_sync_health AS health
 WHERE target = %(target)s
"""

READ_LAST_RUNS = """
SELECT pg_catalog.to_json(run)
  FROM (SELECT *, pg_catalog.to_char(started_at, 'MM-DD HH24:MI') AS started,
               round(extract(epoch FROM finished_at - started_at)::numeric, 2) AS seconds
          FROM analytics.athlete_sync_run
         WHERE target = %(target)s
         ORDER BY run_id DESC
         LIMIT 10) AS run
"""


def show_status(settings: Settings, options: argparse.Namespace, report: Report) -> None:
    """Say what the health view says, and the last runs. Exit code 0 if the warehouse is fresh, 3 if not."""
    with connect(settings.warehouse, settings) as warehouse:
        values = {"target": spelled(settings["WH_TABLE"]), "max_age": settings["SYNC_MAX_AGE"]}
        row: Any = warehouse.fetch_row(READ_HEALTH, **values) or ({"verdict": "never ran"}, False)
        health, is_old = row
        health["runs"] = [run for run, in warehouse.run(READ_LAST_RUNS, **values)]
        holder = warehouse.fetch_row(WHO_HOLDS_THE_LOCK)
    health["running"] = holder and holder[1]
    if is_old:
        health["verdict"] = "stale"
    report.exit_code = health["exit_code"] = OK if health["verdict"] == "healthy" else SQL_OR_DATA
    report.answer = json.dumps(health) if options.json else "\n".join(status_lines(health))


def status_lines(health: Dict[str, Any]) -> Iterator[str]:
    """The view's row, then a line for each run, at most 80 columns; what is not known is a hyphen."""
    runs = health.pop("runs")
    yield health.pop("verdict")
    yield from ("%-18s %s" % (name, "-" if value is None else value) for name, value in health.items())
    if runs:
        yield "%-18s %s\n" % ("last_message", runs[0]["message"] or "-")
        yield "run_id started UTC   secs mode result   source inserted updated missing rejected"
    for run in runs:
        yield ("%(run_id)6s %(started)s %(seconds)6.1f %(mode).4s %(result)-7s %(source_rows)7s %(inserted)8s"
               " %(updated)7s %(missing)7s %(rejected)8s"
               % {name: "-" if value is None else value for name, value in run.items()})


# --diff. Its names go to stdout alone, because they were asked for there.
LIST_CHANGES = """
SELECT athlete_uuid::text, textsend(old_name), textsend(full_name)
  FROM pg_temp.tmp_athlete_change
 WHERE kind = %(kind)s AND full_name IS NOT NULL
 ORDER BY athlete_uuid
 LIMIT 100
"""

# OFFSET 0, because Citus refuses to put a distributed table on this side of a join with a temporary one,
# but not a subquery that it must read first.
LIST_MISSING = """
SELECT known.athlete_uuid::text, textsend(known.full_name), NULL::bytea
  FROM (SELECT athlete_uuid::uuid, full_name::text FROM {dimension} OFFSET 0) AS known
  LEFT JOIN pg_temp.tmp_athlete_dim AS staged ON staged.athlete_uuid = known.athlete_uuid
 WHERE staged.athlete_uuid IS NULL
 ORDER BY known.athlete_uuid
 LIMIT 100
"""


def list_changes(warehouse: Database, statement: str, **values: Any) -> List[Dict[str, Optional[str]]]:
    """Names come as bytes: one that is not UTF-8 may be in the dimension."""
    return [dict(zip(("uuid", "old_name", "new_name"), [uuid] + [
                None if name is None else bytes(name).decode(errors="backslashreplace") for name in names]))
            for uuid, *names in warehouse.run(statement, **values)]


def note_changes(warehouse: Database, report: Report) -> None:
    """List what the comparison counted. The missing are None where they are not known."""
    changes: Dict[str, Any] = {kind: list_changes(warehouse, LIST_CHANGES, kind=kind)
                               for kind in ("inserted", "updated")}
    changes["missing"] = list_changes(warehouse, LIST_MISSING) if report.mode == "full" else None
    left_out = {kind: None if listed is None else max(0, getattr(report, kind) - len(listed))
                for kind, listed in changes.items()}
    report.changes = dict(changes, not_listed=left_out)


CHANGE_MARKS = {"inserted": ("+", ["new_name"]), "updated": ("~", ["old_name", "new_name"]),
                "missing": ("-", ["old_name"])}


def change_lines(changes: Dict[str, Any]) -> Iterator[str]:
    for kind, (mark, names) in CHANGE_MARKS.items():
        for change in changes[kind] or []:
            yield "%s %s %s" % (mark, change["uuid"] or "NULL", " -> ".join(one_line(change[name]) for name in names))
        if changes["not_listed"][kind]:
            yield "%s and %d more" % (mark, changes["not_listed"][kind])


def one_line(name: Optional[str], longest: int = 60) -> str:
    """A name that is safe on a terminal: control and bidi characters escaped, quoted if ambiguous."""
    if name is None:
        return "NULL"
    shown = "".join(character if character.isprintable() and character != "\\" else ascii(character)[1:-1]
                    for character in name[:longest])
    if shown != shown.strip() or not shown or "->" in shown or shown[0] == '"' or shown == "NULL":
        shown = '"%s"' % shown
    return shown if len(name) <= longest else "%s... (%d characters)" % (shown, len(name))


# ---- Settings: one row each. settings.md and .env.example follow this table, and a test says so.


def sql_name(least: int, most: int) -> Callable[[str], sql.Identifier]:
    """A dotted name of so many parts, as SQL reads it: unquoted A to Z fold to lower case, quoted is exact."""
    def read(text: str) -> sql.Identifier:
        parts = re.findall(r'"((?:[^"]|"")+)"|([^\W\d][\w$]*)', text)
        if ".".join(plain or '"%s"' % exact for exact, plain in parts) != text or not least <= len(parts) <= most:
            raise ValueError('is not a name as SQL writes it, such as "fullName" or analytics.athlete_dim')
        return sql.Identifier(*(plain.encode().lower().decode() or exact.replace('""', '"') for exact, plain in parts))
    return read


def spelled(name: sql.Identifier) -> str:
    """The name as SQL writes it. The history knows the dimension by this, however the settings spell it."""
    return ".".join(map(quoted, name.strings))


def number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError("must be a whole number from %d to %d" % (least, most))
        return int(text)
    return read


def matching(pattern: str, problem: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(problem)
        return text
    return read


SECONDS = number(1, 1000000)
# Messages show these: a URL in their place would show its password.
MISPLACED = "holds a URL or a password; a URL goes into APP_DATABASE_URL or WH_DATABASE_URL"
HOST = matching(r"(?s)(?!.*(//|password\s*=))[^@]*", MISPLACED)
ROLE = matching(r"(?s)(?!.*(//|password\s*=))[^:]*", MISPLACED)
SSLMODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
SSLMODE = matching("|".join(SSLMODES), "has an sslmode that is none of " + ", ".join(SSLMODES))
PERIOD = matching("[0-9]{1,6}[mhd]", "must be a time such as 30m, 12h or 2d")  # Postgres reads it so
REFRESH = matching("always|never|[0-9]{1,6}[mhd]", "must be always, never, or a time such as 30m, 12h or 2d")
PING_URL = matching(r"https?://[^\s/?#]+([/?][^\s#]*)?", "must begin with http:// or https:// and a host, without a #")


def read_ca_file(text: str) -> str:
    """libpq takes a file that is not there for no file, and then trusts everybody. "system" is its own word."""
    path = PROJECT / os.path.expanduser(text)
    if text != "system" and not os.path.isfile(str(path)):
        raise ValueError("names %s, which is no file" % path)
    return text if text == "system" else str(path)


# Nothing but the one @ before the host, and no : / ? # in the password: what libpq would make of these it tells.
PLAIN_URL = re.compile(r"postgres(ql)?://([^:/?#@\s]*(:[^:/?#@\s]*)?@)?[^@\s]*")
# Prisma's own parameters. libpq knows none of them, and none is needed here.
PRISMAS = ("schema", "pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size")


def read_url(text: str) -> Dict[str, str]:
    """Read a libpq URL. No complaint quotes any of it: what is wrong may be the password."""
    url, _, query = text.partition("?")
    kept = [one for one in query.split("&") if one and one.partition("=")[0] not in PRISMAS]
    libpq: Dict[str, str] = {"port": "?"}  # of what is no URL at all
    try:
        libpq = psycopg2.extensions.parse_dsn(url + "?" * bool(kept) + "&".join(kept))
    except psycopg2.Error as error:
        parameter = re.search('parameter: "([A-Za-z_]+)"', str(error))
        if parameter and "@" not in query and "password" not in query:  # else it may be part of one
            raise ValueError("has the parameter %s, which libpq does not know" % parameter.group(1)) from None
    if not PLAIN_URL.fullmatch(text) or not re.fullmatch("[0-9,]*", libpq.get("port", "")):
        raise ValueError("is not a libpq URL such as postgresql://role:password@host:5432/database; in a password, a "
                         "user or a database write @ : / ? # % as %40 %3A %2F %3F %23 %25")
    SSLMODE(libpq.get("sslmode", "prefer"))
    if "sslrootcert" in libpq:
        libpq["sslrootcert"] = read_ca_file(libpq["sslrootcert"])
    return libpq


class Setting(NamedTuple):
    name: str
    default: Optional[str]
    read: Callable[[str], Any]
    meaning: str


def side_settings(prefix: str, side: str) -> List[Setting]:
    return [
        Setting(prefix + "_HOST", None, HOST, "host of the %s database" % side),
        Setting(prefix + "_PORT", "5432", number(1, 65535), "its port"),
        Setting(prefix + "_DB", None, HOST, "its name"),
        Setting(prefix + "_USER", None, ROLE, "the role to log in as"),
        Setting(prefix + "_PASSWORD", None, str, "its password"),
        Setting(prefix + "_DATABASE_URL", None, read_url, "a libpq URL instead of the five above"),
        Setting(prefix + "_SSLMODE", None, SSLMODE, "TLS, as libpq's sslmode: require, verify-full, ..."),
        Setting(prefix + "_SSLROOTCERT", None, read_ca_file, "file with the certificate authority to trust"),
    ]


SETTINGS = side_settings("APP", "app") + side_settings("WH", "warehouse") + [
    Setting("APP_TABLE", 'public."User"', sql_name(1, 2), "the app's table of athletes"),
    Setting("APP_UUID_COLUMN", "uuid", sql_name(1, 1), "its column with the athlete's uuid"),
    Setting("APP_NAME_COLUMN", "name", sql_name(1, 1), "its column with the athlete's name"),
    Setting("WH_TABLE", "analytics.athlete_dim", sql_name(2, 2), "the warehouse's dimension, with its schema"),
    Setting("SYNC_CONNECT_TIMEOUT", "10", SECONDS, "seconds that one attempt to connect may take"),
    Setting("SYNC_CONNECT_ATTEMPTS", "3", number(1, 1000000), "attempts to connect; the waits between them grow"),
    Setting("SYNC_DEADLINE", "3600", SECONDS, "seconds; a run that takes longer is stopped and exits 2"),
    Setting("SYNC_MAX_CHANGED_PERCENT", "50", number(0, 100), "percent of the athletes a run may rename or replace"),
    Setting("SYNC_REFRESH", "always", REFRESH, "when unchanged athletes get a new stamp: always, 30m, 12h, 2d, never"),
    Setting("SYNC_MAX_AGE", "2d", PERIOD, "an older last full success is stale, as --status and the health view say"),
    Setting("SYNC_PING_URL", None, PING_URL, "a URL to tell of start and result, as healthchecks.io expects"),
    Setting("SYNC_LOG_FILE", None, str, "the log and the result go there too; about 5 MB, and one older file"),
]
SETTING_NAMES = [setting.name for setting in SETTINGS]
Found = Tuple[str, str]  # a setting's text, and its place: "APP_PORT (environment)", "APP_PORT (.env line 4)"


@dataclass(frozen=True)
class Endpoint:
    side: str
    prefix: str  # of the side's settings
    libpq: Dict[str, Any] = field(repr=False)  # what libpq needs to reach it; holds the password


@dataclass(frozen=True)
class Settings:
    app: Endpoint
    warehouse: Endpoint
    values: Dict[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def names(self) -> Dict[str, sql.Composable]:
        """The configured names, for the SQL's {placeholders}; ..._text is a string literal."""
        tables = {"app_table": self["APP_TABLE"], "dimension": self["WH_TABLE"]}
        columns = {"uuid_column": self["APP_UUID_COLUMN"], "name_column": self["APP_NAME_COLUMN"]}
        return {**tables, **{name + "_text": sql.Literal(spelled(table)) for name, table in tables.items()},
                **columns, **{name + "_text": sql.Literal(column.strings[0]) for name, column in columns.items()}}


def read_settings(options: argparse.Namespace, ending: Ending) -> Settings:
    """Read every setting; raise a SyncError of all problems at once, told to the log file and the ping's URL, too."""
    path = PROJECT / ".env" if options.env_file is None else Path(options.env_file)
    problems: List[str] = []
    found = read_env_file(path, options, problems)
    found.update((name, (text, name + " (environment)")) for name, text in os.environ.items() if text)
    # A secret that is mounted as a file ends in a newline.
    found = {name: (text.rstrip("\r\n"), place) for name, (text, place) in found.items() if text.rstrip("\r\n")}
    problems += ["%s is no setting; is it %s?" % (place, near) for name, (_, place) in sorted(found.items())
                 if name not in SETTING_NAMES and name.startswith(("WH_", "SYNC_"))
                 for near in get_close_matches(name, SETTING_NAMES, 1, cutoff=0.83)]
    values: Dict[str, Any] = {}
    for setting in SETTINGS + [Setting("PGSSLROOTCERT", None, read_ca_file, "libpq's own, which is kept")]:
        text, place = found.get(setting.name, (setting.default, ""))
        try:
            if re.search("[\0\ud800-\udfff]", text or ""):  # such as a byte of Latin 1 in the environment
                raise ValueError("is not UTF-8 text, or holds a NUL character")
            values[setting.name] = None if text is None else setting.read(text)
        except ValueError as problem:
            problems.append("%s %s" % (place, problem))
    settings = Settings(read_side("app", "APP", values, found, problems),
                        read_side("warehouse", "WH", values, found, problems), values)
    for name in [name for name in os.environ if name.startswith("PG") and not name.startswith("PGSSL")]:
        del os.environ[name]  # a PGHOSTADDR or PGSERVICE of the user's shell must not redirect what the settings say
    if values.get("PGSSLROOTCERT"):
        os.environ["PGSSLROOTCERT"] = values["PGSSLROOTCERT"]
    ending.log_file = open_log_file(options.log_file or values.get("SYNC_LOG_FILE"))
    if not options.dry_run and not options.status:
        ending.ping_url, ending.history = values.get("SYNC_PING_URL"), None if problems else settings
    if problems:
        raise SyncError(CONFIGURATION, "settings", "; ".join(problems), "set them in the environment or in %s%s" % (
            path, "" if path.exists() else ", which is not there: cp .env.example .env"))
    return settings


def read_env_file(path: Path, options: argparse.Namespace, problems: List[str]) -> Dict[str, Found]:
    """Read .env once: it may be a pipe. What python-dotenv would pass over in silence is added to the problems."""
    found: Dict[str, Found] = {}
    if options.env_file is None and not path.exists():
        return found
    try:
        if os.name == "posix" and path.is_file() and path.stat().st_mode & 0o077:
            log.warning("settings: others may read %s; chmod 600 %s", path, shlex.quote(str(path)))
        with path.open(encoding="utf-8-sig") as lines:  # editors on Windows write a byte order mark
            bindings = list(parse_stream(lines))  # not dotenv_values: a $ in a password is a $
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SyncError(CONFIGURATION, "settings", "cannot read %s: %s" % (path, reason),
                        "make it a readable UTF-8 file, or name another with --env-file") from error
    for name, value, original, is_error in bindings:
        text = original.string.lstrip()
        blank_lines = original.string.count("\n") - text.count("\n")
        place = "%s line %d" % (options.env_file or ".env", original.line + blank_lines)
        problem = problem_of_line(name, value, text.rstrip(), is_error)
        if problem:
            problems.append("%s %s" % (place, problem))
        elif name in SETTING_NAMES:
            found[name] = str(value), "%s (%s)" % (name, place)
        elif options.check and name and name.startswith("APP_"):
            log.warning("settings: %s: %s is no setting", place, name)
    return found


def problem_of_line(name: Optional[str], value: Optional[str], text: str, is_error: bool) -> Optional[str]:
    """A guard that is misspelt guards nothing, a table is another one. Other programs' names are theirs."""
    if is_error or name and (value is None or not re.fullmatch(r"[A-Za-z_][\w.-]*", name)):
        return "cannot be read as NAME=value"
    if "\n" in text and (name in SETTING_NAMES or re.search(r"\n\s*(export\s+)?(APP|WH|SYNC)_", text)):
        return "opens a quote that ends lines below"
    upper = re.sub("[.-]", "_", (name or "").upper())
    near = get_close_matches(upper, SETTING_NAMES, 1, cutoff=0.87 if upper.startswith("APP_") else 0.83)  # not APP_ID
    if name not in SETTING_NAMES and (upper.startswith(("WH_", "SYNC_")) or near and upper.startswith("APP_")):
        return "%s is no setting%s" % (name, "; is it %s?" % near[0] if near else "")
    return None


def read_side(side: str, prefix: str, values: Dict[str, Any], found: Dict[str, Found], problems: List[str]) -> Endpoint:
    """The five, or the URL in their place; and TLS."""
    five = {prefix + "_HOST": "host", prefix + "_PORT": "port", prefix + "_DB": "dbname",
            prefix + "_USER": "user", prefix + "_PASSWORD": "password"}
    names = {**five, prefix + "_SSLMODE": "sslmode", prefix + "_SSLROOTCERT": "sslrootcert"}
    given = [name for name in names if name in found]
    url = prefix + "_DATABASE_URL"
    if url not in found:
        problems += [name + " is missing" for name in five if name not in given and not name.endswith("_PORT")]
    elif given and given[0] in five:
        problems.append("%s and %s are both set; leave one out" % (found[url][1], found[given[0]][1]))
    libpq = dict(values.get(url) or {"port": values.get(prefix + "_PORT")})
    libpq.update((names[name], values.get(name)) for name in given)
    return Endpoint(side, prefix, libpq)


# ---- Connections and the deadline ------------------------------------------------------------

# Each with the first version that knows it. The run's deadline takes the place of the time-outs that a DBA has set for
# people, and holds on the server even if this process is gone. While that waits for COPY's data, keepalives notice that
# this host is gone; within a statement, a check that only Linux is sure to take, that this process is. What a role has
# set for itself must not hide a warning, change what is printed, or let a committed run be lost in a crash. A Citus
# coordinator that compares pulls the dimension to itself; a server without Citus takes its name for a comment.
SET_LIMITS = [
    (90500, "SET CONSTRAINTS ALL IMMEDIATE; SET LOCAL lock_timeout = 0"),  # else triggers run at COMMIT, unproved
    (90500, "SET LOCAL client_min_messages = warning; SET LOCAL IntervalStyle = postgres; SET LOCAL TimeZone = 'UTC'"),
    (90500, "SELECT set_config('synchronous_commit', 'local', true)"
            " WHERE current_setting('synchronous_commit') = 'off'"),
    (90500, "SET LOCAL statement_timeout = %(milliseconds)s"),
    (90600, "SET LOCAL idle_in_transaction_session_timeout = %(milliseconds)s"),
    (170000, "SET LOCAL transaction_timeout = %(milliseconds)s"),
    (90500, "SET LOCAL citus.max_intermediate_result_size = '-1'"),
    (90500, "SET LOCAL tcp_keepalives_idle = 30; SET LOCAL tcp_keepalives_interval = 10"),
    (90500, "SET LOCAL tcp_keepalives_count = 3"),
    (140000, "SELECT set_config('client_connection_check_interval', '5000', true)"
             " WHERE strpos(version(), 'linux') > 0"),
    (90500, "SELECT pg_backend_pid(), current_user::text, to_regclass('pg_catalog.pg_dist_local_group') IS NOT NULL"),
]


@contextmanager
def connect(endpoint: Endpoint, settings: Settings) -> Iterator[Database]:
    """Open a side's connection and its one transaction; always close it. Raises SyncError (connection)."""
    database = Database(endpoint, settings)
    database.open()
    OPEN.append(database)
    try:
        log.info(endpoint.side + ": connected to %(dbname)s on %(host)s port %(port)s as %(user)s", database.place)
        yield database
    finally:
        OPEN.remove(database)
        with suppress(psycopg2.Error):
            database.connection.rollback()  # and wait for it, lest the next run meets our lock
        database.connection.close()


def open_connection(endpoint: Endpoint, settings: Settings) -> Any:
    """A silent peer is noticed after about a minute, where the platform can tell."""
    return psycopg2.connect(**{
        "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60000,
        **endpoint.libpq, "client_encoding": "UTF8", "connect_timeout": settings["SYNC_CONNECT_TIMEOUT"],
        "application_name": "sync_athletes %d" % settings["SYNC_DEADLINE"]})


class Database:
    """One side's open connection. Whatever goes wrong here is raised as a SyncError of that side."""

    def __init__(self, endpoint: Endpoint, settings: Settings):
        self.endpoint, self.settings = endpoint, settings
        self.place = dict({"host": "localhost", "port": 5432, "dbname": "?", "user": "?"}, **endpoint.libpq)
        self.connection: Any = None
        self.outcome, self.opened = "rolled back", time.time()
        self.backend, self.role, self.is_citus = 0, self.place["user"], False

    def open(self) -> None:
        """Again and again, unless no other attempt can mend what went wrong."""
        attempts = self.settings["SYNC_CONNECT_ATTEMPTS"]
        for attempt in range(1, attempts + 1):
            try:
                self.begin()
                break
            except (psycopg2.Error, UnicodeDecodeError) as error:
                cause, is_lasting = cause_of_refusal(error)
                if attempt == attempts or is_lasting:
                    raise self.problem(cause, words_of(error)) from error
            pause = 2 ** (attempt - 1)
            log.info("%s: attempt %d of %d failed (%s); next in %d s",
                     self.endpoint.side, attempt, attempts, cause.meaning, pause)
            time.sleep(pause)

    def begin(self) -> None:
        """Connect and begin the one transaction: a full pooler lets everybody in, and refuses the first statement."""
        self.connection = open_connection(self.endpoint, self.settings)
        self.connection.set_session(isolation_level="READ COMMITTED", readonly=self.endpoint.side == "app" or None)
        limits = "; ".join(limit for version, limit in SET_LIMITS if version <= self.connection.server_version)
        cursor = self.connection.cursor()  # the message of our own deadline is better than the server's: it comes first
        cursor.execute(limits, {"milliseconds": (self.settings["SYNC_DEADLINE"] + 2) * 1000})
        self.backend, self.role, self.is_citus = cursor.fetchone()

    def run(self, statement: str, **values: Any) -> Any:
        """Run one of the SQL constants: names fill its {placeholders}, values its %(parameters)s."""
        with self.errors_explained():
            cursor, names = self.connection.cursor(), self.settings.names()
            if values:  # a % in a name is none of a parameter's
                names = {key: sql.SQL(name.as_string(cursor).replace("%", "%%")) for key, name in names.items()}
            cursor.execute(sql.SQL(statement).format(**names), values or None)
            return cursor

    def fetch_row(self, statement: str, **values: Any) -> Any:
        return self.run(statement, **values).fetchone()

    @contextmanager
    def attempt(self, patience: str = "0") -> Iterator[List[SyncError]]:
        """What the server refuses within, or locks for longer than `patience`, is undone and noted, not raised."""
        refusals: List[SyncError] = []
        self.run("SAVEPOINT attempt; SET LOCAL lock_timeout = '%s'" % patience)
        try:
            yield refusals
        except SyncError as problem:
            if problem.code != SQL_OR_DATA or getattr(problem.__cause__, "pgcode", "") == "57014":  # cancelled
                raise
            log.debug("%s", problem)
            refusals.append(problem)
            self.run("ROLLBACK TO SAVEPOINT attempt")
        self.run("RELEASE SAVEPOINT attempt; SET LOCAL lock_timeout = 0")

    def try_row(self, statement: str, **values: Any) -> Any:
        """Return the first row; None if there is none, or a table, a column or a privilege is missing."""
        with self.attempt("5s"):
            return self.fetch_row(statement, **values)
        return None

    def copy(self, statement: str, file: Any, **fragments: sql.Composable) -> int:
        """Run a COPY from or to `file`. Returns the number of rows."""
        with self.errors_explained():
            cursor = self.connection.cursor()
            copy = sql.SQL(statement).format(**self.settings.names(), **fragments)
            cursor.copy_expert(copy, file, size=CHUNK_BYTES)
            return int(cursor.rowcount)

    def commit(self) -> None:
        with self.errors_explained():
            self.outcome = "whether it was committed is not known"
            del self.connection.notices[:]
            self.connection.commit()
        # All triggers have fired before. A COMMIT warns only if it was cancelled while it waited for another server.
        if self.connection.notices:
            raise SyncError(CONNECTION, self.endpoint.side, "the run is written here, but was not confirmed elsewhere: "
                            + " ".join(self.connection.notices[0].split()),
                            "look for the standby: SHOW synchronous_standby_names; SELECT * FROM pg_stat_replication;")

    def ask_elsewhere(self, question: str, **values: Any) -> Any:
        """Over another connection, within a second: this one waits. (psycopg2's cancel() would stop every thread.)"""
        answers: List[Any] = []

        def ask() -> None:
            with suppress(Exception), closing(open_connection(self.endpoint, self.settings)) as other:
                cursor = other.cursor()
                cursor.execute("SET LOCAL search_path = pg_catalog; SET LOCAL statement_timeout = '2s';" + question,
                               dict(values, backend=self.backend))
                answers.extend(cursor.fetchone() or ())

        in_background(ask).join(1)
        return answers[0] if answers else None

    def problem(self, cause: Cause, words: str, **known: str) -> SyncError:
        names = names_for_advice(self, **known)
        what, next_step = "%s: %s" % (cause.meaning, words), cause.next_step.format(**names)
        problem = SyncError(cause.code, self.endpoint.side, what, next_step)
        if cause.question:
            problem.ask = lambda: self.ask_elsewhere(cause.question, **names)
        return problem

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        try:
            yield
        except psycopg2.Error as error:
            raise explain_error(error, self) from error


OPEN: List[Database] = []  # which the watchdog asks what they wait for


class Watchdog(threading.Thread):
    """Ends the run at its deadline, or on Ctrl-C, SIGTERM or SIGHUP, wherever it stands.

    A thread, because the main one may sit in libpq, where no signal handler runs; a socket brings the signals, on
    Windows too. The servers then roll back. For a process that is frozen, SET_LIMITS and the next take_lock do it.
    """

    def __init__(self, ending: Ending):
        super().__init__(daemon=True)
        self.ending, self.is_over, self.deadline = ending, False, 3600
        with suppress(ValueError):  # the settings are not read yet: nobody may ever fill the pipe that --env-file names
            self.deadline = SECONDS(os.environ.get("SYNC_DEADLINE", ""))
        self.wake_reader, self.wake_writer = socket.socketpair()
        self.wake_writer.setblocking(False)

    def set_deadline(self, seconds: int) -> None:
        self.deadline = seconds
        self.wake_writer.send(b"\0")

    def __enter__(self) -> Watchdog:
        signal.set_wakeup_fd(self.wake_writer.fileno())
        for signal_ in SIGNALS_TO_STOP:
            signal.signal(signal_, lambda *_: None)  # set_wakeup_fd writes its number into the socket
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.is_over = True
        signal.set_wakeup_fd(-1)
        self.wake_writer.send(b"\0")

    def run(self) -> None:
        number: Optional[int] = 0  # of a signal; None at the deadline
        while number == 0 and not self.is_over:
            left = self.ending.started + self.deadline - time.monotonic()
            readable = select.select([self.wake_reader], [], [], max(0.0, left))[0]
            number = self.wake_reader.recv(1)[0] if readable else None
        if self.is_over:
            return
        self.ending.must_end = time.monotonic() + SECONDS_TO_REPORT
        # A run that commits has the lock, and keeps it until it has told how it ended.
        if self.ending.lock.acquire(blocking=False):
            problem = reason_to_stop(number, self.deadline, "rolled back", OPEN)
        else:
            self.ending.cancelled_by = reason_to_stop(number, self.deadline, "rolled back")
            for database in OPEN:  # it may wait for a synchronous standby that is gone; cancelled, it says so
                database.ask_elsewhere("SELECT pg_cancel_backend(%(backend)s)")
            self.ending.lock.acquire(timeout=SECONDS_TO_REPORT / 2)
            if self.is_over:
                return
            problem = reason_to_stop(number, self.deadline, "whether it was committed is not known")
        logging.disable(logging.INFO)  # of the main thread, which goes on meanwhile, but can no longer commit
        try:
            threading.Timer(SECONDS_TO_REPORT + 1, os._exit, [problem.code]).start()  # if nobody reads our stderr
            self.ending.tell(problem)
        finally:
            os._exit(self.ending.report.exit_code)


# ---- What errors mean, and what to type next -------------------------------------------------


class Cause(NamedTuple):
    pattern: str  # of the words; after the login, of SQLSTATE and source function too, which no server translates
    meaning: str
    next_step: str
    code: int = SQL_OR_DATA
    question: str = ""  # what the server answers to it is a better next step


PSQL = "psql -h {host} -p {port} -d {dbname}"
LOOK = PSQL + " -U {role} -c '\\d+ {table}'"
AGAIN = "run it again; if it stays, look at the server's log"

# Before the login libpq gives words only, and the server's may be in another language. The first that fits counts; what
# a server says comes first, because libpq also tells of other addresses of the host, where nothing listens.
# No other attempt mends these:
LASTING = [
    Cause("passwor|mot de passe|парол|senha|パスワード|비밀번호|no such user|not found|role .*does not exist",
          "the login was refused", "check {USER} and {PASSWORD}; to make the role, or give it a password: {setup} -c "
          "'\\password {user}'; if the server's log says that it expired: ALTER ROLE {user} VALID UNTIL 'infinity';"),
    Cause("pg_hba.conf", "the server does not let this host, role or database in", "{prefix}_SSLMODE=require if it "
          "asks for TLS; or add to its pg_hba.conf: host {database} {user} <this host's address>/32 md5"),
    Cause("not permitted to log in", "the role may not log in", "as a superuser: ALTER ROLE {user} LOGIN;"),
    Cause("permission denied for database", "it may not connect", "GRANT CONNECT ON DATABASE {database} TO {user};"),
    Cause("client certificate|certificate (required|authentication)|unknown ca", "the server asks for our certificate",
          "export PGSSLCERT=<file> PGSSLKEY=<file>, of one made for {user}"),
    Cause("certif", "its certificate is not trusted", "set {prefix}_SSLROOTCERT to its authority, {HOST} to its name"),
    Cause("not support SSL", "no TLS there", "turn it on; or, if nobody can listen in: {prefix}_SSLMODE=disable"),
    Cause("hot standby mode is disabled", "nobody may read this standby", "set hot_standby = on there, and restart it"),
    Cause("currently acc", "it lets nobody in", "from another: ALTER DATABASE {database} ALLOW_CONNECTIONS true;"),
    Cause("database .*not exist|such data", "no such database", "check {DB}: psql -h {host} -p {port} -U {role} -l"),
]
PASSING = [
    Cause("starting up|shutting down|not yet acc|in recovery", "the server is not up", "run it again once it is"),
    Cause("connections for role", "no connection is free", "as a superuser: ALTER ROLE {user} CONNECTION LIMIT -1;"),
    Cause("connections for database", "no connection is free", "ALTER DATABASE {database} CONNECTION LIMIT -1;"),
    Cause("max.client|more conn|query_wait|too many|slot", "no connection is free", "run it again, or raise the limit"),
    Cause("session is |standby mode", "not as the URL asks", "{prefix}_DATABASE_URL with target_session_attrs=primary"),
    Cause("EOF|closed the connection|closed unexpectedly|reset by peer", "the server, or a proxy, hung up", AGAIN),
    Cause("SSL", "TLS could not be agreed on", "{prefix}_SSLMODE=require if the server insists on it; else its log"),
    Cause(r"no address associated|:[0-9a-f]*[)\"], port \d+ failed: (network|no route|cannot)",
          "only IPv6, which this network lacks", "use a host with IPv4, as a pooler is: getent ahosts {host}"),
    Cause("translate host name", "unknown host", "check {HOST}: nslookup {host}"),
    Cause("timeout exp|timed out", "no answer in time", "check {HOST}, {PORT}, the firewall and SYNC_CONNECT_TIMEOUT"),
    Cause("refused", "nothing listens there", "check {HOST} and {PORT}: pg_isready -h {host} -p {port}"),
    Cause("unreachable|no route", "the network is unreachable", "check {HOST} and the network: ping {host}"),
    Cause("", "the connection failed", "see whether psql gets in: " + PSQL + " -U {role}"),
]

# What only the server knows. Its search_path is then pg_catalog.
SIMILAR_TABLE = """
SELECT pg_catalog.format('write %%s_TABLE=%%I.%%I', %(prefix)s, nspname, relname)
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE lower(nspname::text || '.' || relname::text) = lower(replace(%(table)s, '"', ''))
   AND relkind IN ('r', 'v', 'm', 'f', 'p') AND pg_catalog.format('%%I.%%I', nspname, relname) <> %(table)s
"""
COLUMNS_THERE = """
SELECT %(columns)s || '; it has ' || pg_catalog.string_agg(quote_ident(attname::text), ', ' ORDER BY attnum)
  FROM pg_attribute
 WHERE attrelid = %(table)s::regclass::oid AND attnum > 0 AND NOT attisdropped
"""

LOST = Cause("08|(XX000|58030).*(connection|remote node|COPY)", "the connection was lost", AGAIN, CONNECTION)
SLEPT = Cause("25P0", "the deadline passed", "do not let the host sleep, or raise SYNC_DEADLINE", CONNECTION)
OTHER_COLUMN = Cause("42703|42804|42883", "a column is missing or of another type", "{columns}", question=COLUMNS_THERE)
NOT_ONE_ROW = Cause("42P10", "nothing keeps one row an athlete there", "leave one of each, then CREATE UNIQUE INDEX ON "
                    "{table} (athlete_uuid); or name one in WH_TABLE that may be partitioned BY HASH (athlete_uuid)")
REPEATED = Cause("21000", "the app repeats an athlete", "in the app: REINDEX TABLE {app_table}; mend what it names")
# postgresql.org/docs/current/errcodes-appendix.html
CAUSES = [
    REPEATED,
    Cause("08.*remote node.*(passw|authenti|pg_hba)", "a Citus worker does not let the coordinator in", "on the "
          "coordinator: INSERT INTO pg_dist_authinfo VALUES (0, '{user}', 'password=...');", CONNECTION),
    LOST,
    Cause("22", "the database cannot hold or read a value", "look at types and encoding: " + LOOK + " -c '\\l'"),
    Cause("23502", "it does not fill a column", "ALTER TABLE {table} ALTER {column} DROP NOT NULL; or a default"),
    Cause("23", "a constraint refuses a row", LOOK),
    Cause("25006", "the database is read-only", "point {HOST} at the primary; or, if it is no standby: "
          "BEGIN READ WRITE; ALTER ROLE {user} SET default_transaction_read_only = off; COMMIT;"),
    SLEPT,
    Cause("40", "another session is in the way", "run it again; on a standby, raise max_standby_streaming_delay"),
    Cause("42501 (ExecWithCheck|check_enable)", "row-level security is in the way", "ALTER ROLE {user} BYPASSRLS;"),
    Cause("42501.* sequence ", "a privilege is missing", "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {user};"),
    Cause("42501", "a privilege is missing", "as the owner, in {database}: {grants}"),
    OTHER_COLUMN,
    Cause("42P01|3F000", "the table does not exist", "{tables}", question=SIMILAR_TABLE),
    NOT_ONE_ROW,
    Cause("53", "the server is at a limit", "make room (perhaps in /dev/shm), or raise the limit that it names"),
    Cause("55000.*ON CONFLICT", "the key is deferrable",
          "ALTER TABLE {table} DROP CONSTRAINT {constraint}, ADD UNIQUE (athlete_uuid);"),
    Cause("55P03", "another session holds a lock", "wait: SELECT * FROM pg_stat_activity WHERE state <> 'idle';"),
    Cause("57014", "somebody cancelled the statement", "run it again"),
    Cause("57", "the server ended the connection", "run it again once the server is up", CONNECTION),
    Cause("", "the server refused the statement", AGAIN),
]
NOT_OURS = Cause("", "a trigger, function or view refused", LOOK + ", and the server's log")

ADVICE = {
    "app": {
        "setup": PSQL + " -U postgres -v reader={role} -v table={name} -f sql/app_readonly.sql",
        "grants": "GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON TABLE {table} TO {user};",
        "columns": "check APP_UUID_COLUMN and APP_NAME_COLUMN (in .env mixed case is written '\"fullName\"')",
        "tables": "check APP_TABLE (mixed case is quoted: public.\"User\"), {DB}: " + PSQL + " -U {role} -c '\\d *.*'"},
    "warehouse": {
        "setup": PSQL + " -U postgres -v writer={role} -v table={name} -f sql/warehouse_setup.sql",
        "grants": "GRANT TEMPORARY ON DATABASE {database} TO {user}; GRANT USAGE ON SCHEMA {schema} TO {user};"
                  " GRANT SELECT, INSERT, UPDATE ON TABLE {table} TO {user}; or run: {setup}",
        "columns": "{table} needs athlete_uuid uuid, full_name text, source_synced_at timestamptz",
        "tables": "check WH_TABLE and {DB}, or run: {setup}"},
}


def cause_of_refusal(error: Exception) -> Tuple[Cause, bool]:
    """And whether it is a lasting one."""
    state = getattr(error, "pgcode", None) or "08"
    if state[:2] not in ("08", "57"):  # of the first statement
        return next(cause for cause in CAUSES if re.match(cause.pattern, state)), state != "53300"
    words = re.sub('"[^":]*"', '""', words_of(error))  # a database may be called refused_orders
    cause = next(cause for cause in LASTING + PASSING if re.search(cause.pattern, words, re.I))
    return cause._replace(code=CONNECTION), cause in LASTING


def words_of(error: Exception) -> str:
    """The server's message on one line. If it is not UTF-8, psycopg2 raises UnicodeDecodeError (its issue 1634)."""
    words = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
    words = words.partition("Either provide the file")[0]  # where libpq advises to verify nothing
    return " ".join(words.split()) or type(error).__name__


def explain_error(error: psycopg2.Error, database: Database) -> SyncError:
    told, state = error.diag, error.pgcode
    is_late = time.time() - database.opened >= database.settings["SYNC_DEADLINE"]
    if not state or (state == "57014" and is_late):  # without one, it did not come from the server
        return database.problem(SLEPT if is_late else LOST, "%s; %s" % (words_of(error), database.outcome))
    # A position is one in our own statement. Any context but these comes from a function, a trigger or another server;
    # before 9.6, RAISE has none. That policies are in the way Postgres says itself, in a function, too.
    is_ours = not re.match("pl_|plp|pltcl", told.source_file or "") and (
        told.source_function == "check_enable_rls" or all(map(OWN_CONTEXT.match, (told.context or "").splitlines())))
    known = "%s %s %s" % (state, told.source_function, told.message_primary)
    words = "(withheld, for it may quote a name; it is in the server's log) [%s]" % state
    if is_ours and (told.statement_position or WITHOUT_DATA.match(known)):
        words = "%s [%s]%s" % (told.message_primary, state, told.message_hint and " Hint: " + told.message_hint or "")
    cause = next(cause for cause in CAUSES if re.match(cause.pattern, known, re.I))
    return database.problem(cause if is_ours or NEVER_A_ROW.match(state) else NOT_OURS, words,
                            column=quoted(told.column_name or "?"), constraint=quoted(told.constraint_name or "?"))


OWN_CONTEXT = re.compile(r"COPY tmp_athlete_dim, line|while (locking|updating|inserting|checking|rechecking)")
NEVER_A_ROW = re.compile("08|25|40|53|57|58|XX")
# What cannot quote a row: connections, privileges, constraints' names, limits, time-outs, and the like; and where
# nothing is in quotes, values, and what Citus says of itself.
WITHOUT_DATA = re.compile("""08|0A|21|22021|2200H|22P05|23|25|28|3D|40|42501|42704|42809|428C9|42P07|42P10|53|54|55
    |57|58|XX00[12]|(22|XX000 .*(citus|connection|remote.node))[^"'`«»‹›„“”‚‘’「」]*$""", re.X)


def names_for_advice(database: Database, **known: str) -> Dict[str, str]:
    """This installation's names, so that what is said can be pasted; and of its settings, those that are there."""
    settings, prefix, at = database.settings, database.endpoint.prefix, database.place
    table = settings[prefix + "_TABLE"]
    place = "the {1} in %s_DATABASE_URL" % prefix if settings[prefix + "_DATABASE_URL"] else prefix + "_{0}"
    names = {"prefix": prefix, "table": spelled(table), "schema": quoted((("public",) + table.strings)[-2]),
             "app_table": spelled(settings["APP_TABLE"]), "user": quoted(database.role),
             "database": quoted(at["dbname"]), "name": shlex.quote(spelled(table)),
             "role": shlex.quote(at["user"]), **{key: shlex.quote(str(at[key])) for key in ("host", "port", "dbname")},
             **{name: place.format(name, name.lower()) for name in ("HOST", "PORT", "DB", "USER", "PASSWORD")}, **known}
    for name, text in ADVICE[database.endpoint.side].items():
        names[name] = text.format(**names)
    return names


def quoted(name: str) -> str:
    return name if re.match(r"[a-z_][a-z0-9_]*$", name) else '"%s"' % name.replace('"', '""')


# Who holds the lock that a backend waits for. Of other roles' sessions the server tells little; then we say at least
# since when we wait, if it is PostgreSQL 14 or later.
BLOCKER = """
SELECT pg_catalog.format('backend %%s (%%s) holds a lock on %%s%%s', holder.pid,
              pg_catalog.concat_ws(', ', usename, nullif(application_name, ''),
                                   substring(query FROM '^\\s*([A-Za-z]+( FULL)?)')),
              coalesce(relation::regclass::text, 'a row'),
              coalesce(', since ' || xact_start::timestamptz(0)::text,
                       ', since before ' || left(pg_catalog.to_jsonb(waiting) ->> 'waitstart'::text, 19)))
  FROM pg_locks AS waiting
  JOIN pg_stat_activity AS holder ON holder.pid = ANY (pg_blocking_pids(waiting.pid))
 WHERE waiting.pid = %(backend)s AND NOT waiting.granted
"""


def reason_to_stop(number: Optional[int], deadline: int, outcome: str, waiting: Sequence[Database] = ()) -> SyncError:
    """Of a signal, or of the deadline; then with what the databases wait for."""
    if number:
        return SyncError(UNEXPECTED, "sync", "interrupted by %s; %s" % (signal.Signals(number).name, outcome),
                         "run it again; that is always safe")
    what = "the deadline of %d s passed; %s" % (deadline, outcome)
    for database in waiting:
        blocker = database.ask_elsewhere(BLOCKER)
        if blocker:
            return SyncError(CONNECTION, database.endpoint.side, "%s; %s" % (what, blocker), "wait for it, or as a "
                             "superuser: SELECT pg_terminate_backend(%s); or raise SYNC_DEADLINE" % blocker.split()[1])
    return SyncError(CONNECTION, "sync", what, "see which side the log names last, or raise SYNC_DEADLINE")


def as_sync_error(error: Exception) -> SyncError:
    """Say where an unexpected error was raised, not its text, which may quote a row."""
    if isinstance(error, SyncError):
        error.next_step = error.ask() or error.next_step
        return error
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = "unexpected %s at line %s of %s" % (type(error).__name__, place.lineno, Path(place.filename).name)
    next_step = "run it again with -v and report what it prints"
    if "thread" in str(error):
        what, next_step = "no thread can be started", "raise ulimit -u or -v, or the container's limit of pids"
    problem = SyncError(UNEXPECTED, "sync", what, next_step)
    problem.__cause__ = error
    return problem


# ---- Command line ----------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # argparse itself would exit 2, which means connection
        raise SyncError(CONFIGURATION, "command line", message, "--help lists the options")


def make_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    instead, loudness = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="do it all, report it, and roll back")
    instead.add_argument("--check", action="store_true", help="a dry run that warns of more, and says what to type")
    instead.add_argument("--status", action="store_true", help="whether the warehouse is fresh: 0 if so, 3 if not")
    parser.add_argument("--diff", action="store_true", help="name the new, renamed and missing, up to 100 of each")
    parser.add_argument("--incremental", action="store_true", help="read only what changed since the last success")
    parser.add_argument("--strict", action="store_true", help="refuse the run if any row is rejected")
    parser.add_argument("--allow-changes", metavar="N", type=int, help="let up to N athletes be renamed or replaced")
    parser.add_argument("--env-file", metavar="PATH", help="read settings from here, not from .env")
    parser.add_argument("--log-file", metavar="PATH", help="log to this file too, as SYNC_LOG_FILE does")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    loudness.add_argument("-q", "--quiet", action="store_true", help="say nothing unless something is wrong")
    loudness.add_argument("-v", "--verbose", action="store_true", help="add a traceback to failures")
    parser.add_argument("--version", action="version", version="%(prog)s " + VERSION)
    return parser


def read_command_line(argv: Optional[List[str]], ending: Ending, stderr: Any) -> argparse.Namespace:
    parser = make_parser()
    ending.options.json = "--json" in (sys.argv if argv is None else argv)
    options = parser.parse_args(argv, ending.options)
    if (options.allow_changes or 0) < 0:
        parser.error("argument --allow-changes: must be 0 or more")
    if missing_package:
        raise SyncError(CONFIGURATION, "packages", " ".join(str(missing_package).split()),
                        "make install, and run it with the Python in %s" % (PROJECT / ".venv"))
    usual = logging.WARNING if options.status or options.check else logging.INFO  # a status is its answer alone
    logging.getLogger().setLevel(logging.DEBUG if options.verbose else usual)
    stderr.setLevel(logging.WARNING if options.quiet else logging.NOTSET)
    if options.check:
        options.dry_run = True
        if not options.json:
            stderr.setStream(sys.stdout)
    return options


@contextmanager
def progress_bar(options: argparse.Namespace, **shape: Any) -> Iterator[Any]:
    """A bar on a terminal. Its clock goes on while the main thread waits for a server."""
    with tqdm(leave=False, disable=options.quiet or not (sys.stderr and sys.stderr.isatty()), **shape) as bar:
        is_over = threading.Event()
        in_background(lambda: [bar.refresh() for _ in iter(lambda: is_over.wait(1), True)])
        try:
            yield bar
        finally:
            is_over.set()


# ---- The log: stderr, and a file if one is named ---------------------------------------------

LOG_LINE = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
LOG_LINE.converter = time.gmtime


def start_logging() -> logging.StreamHandler[Any]:
    logging.raiseExceptions = False  # a log that cannot be written is no reason to fail
    if hasattr(sys.stdout, "reconfigure"):  # a Windows code page lacks most characters of names
        sys.stdout.reconfigure(errors="backslashreplace")
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(LOG_LINE)
    logging.basicConfig(level=logging.INFO, handlers=[stderr])
    return stderr


def open_log_file(path: Optional[str]) -> Optional[logging.Handler]:
    """A relative path counts from the project: schedulers start programs anywhere."""
    if not path:
        return None
    file = PROJECT / os.path.expanduser(path)
    try:
        if file.exists() and file.stat().st_size > 5000000:
            with suppress(OSError):  # Windows renames no file that another program has open
                os.replace(str(file), str(file) + ".1")
        handler = logging.FileHandler(str(file), encoding="utf-8")
    except OSError as error:
        log.warning("log file: cannot write %s: %s", file, error.strerror)
        return None
    with suppress(OSError):  # Task Scheduler gives no stderr
        if os.path.samestat(file.stat(), os.fstat(2)):
            log.warning("log file: %s is where stderr goes already; leave one out", file)
            return None
    handler.setFormatter(LOG_LINE)
    logging.getLogger().addHandler(handler)
    return handler


if __name__ == "__main__":
    exit_code = UNEXPECTED
    try:
        exit_code = main()
    except SystemExit:  # of --help and --version
        exit_code = OK
    except Exception as error:  # its text may quote a name
        log.error("sync: unexpected %s at the very end (exit code 4)", type(error).__name__)
    with suppress(OSError, AttributeError):  # if nobody listens any more, Python would exit 120
        sys.stdout.flush()
    os._exit(exit_code)  # whatever a thread still waits for
