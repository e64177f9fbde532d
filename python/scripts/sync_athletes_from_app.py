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
#   The steps                  in the order of the run, each right below its SQL: start_of_incremental, then
#                              COMPARED, which decides who is renamed, and UPSERT, which writes the dimension
#   What the run reports       result line, history, ping
#   Looking                    --check, --status and --diff
#   Settings                   one row each
#   Connections                one transaction on each side, and Watchdog, which ends a run at its deadline
#   What errors mean           and what to type next
#   Command line
#   The log

from __future__ import annotations

import argparse
import difflib
import errno
import gc
import io
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

log = logging.getLogger("sync_athletes")
Row = Tuple[Any, ...]  # of a query's result
# What is ignored from the start stays so: nohup, or a shell that starts a job with &, wants it.
SIGNALS_TO_STOP = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
                   if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]


def leave_at_once(*_: object) -> None:
    try:
        os.write(2, b"ERROR sync: interrupted before it began. Next: run it again (exit code 4)\n")
    finally:  # even if stderr is closed
        os._exit(4)


def withhold(*_: object) -> None:
    """Python would print an uncaught error with the row that COPY was reading: an athlete's name."""
    log.warning("sync: an error's text is withheld, for it may quote a row")


if __name__ == "__main__":
    sys.excepthook = withhold
    setattr(sys, "unraisablehook", withhold)  # Python 3.7 ignores it
    for _signal in SIGNALS_TO_STOP:  # until the watchdog is there: the imports below take their time
        signal.signal(_signal, leave_at_once)

missing_package: Optional[Exception] = None
gc.disable()
try:
    import numpy as np
    import pandas as pd
    import psycopg2
    import psycopg2.extensions
    from dotenv import dotenv_values
    from numpy.lib.stride_tricks import sliding_window_view  # not in numpy before 1.20
    from psycopg2 import sql
    from tqdm import tqdm
except Exception as problem:  # a pandas built for another numpy raises ValueError
    missing_package = problem  # read_command_line reports it

# Modules are never freed. So the garbage collector need not look at them, which saves a tenth of a second.
gc.freeze()
gc.enable()

VERSION = "1.0.0"
PROJECT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------------------------------------
# How a run can fail
# ---------------------------------------------------------------------------------------------

OK, CONFIGURATION, CONNECTION, SQL_OR_DATA, UNEXPECTED = range(5)


class SyncError(Exception):
    """A failure that is understood: on which side, what happened, what to type next, the exit code."""

    def __init__(self, code: int, side: str, what: str, next_step: str):
        super().__init__(what)
        self.code, self.side, self.what, self.next_step = code, side, what, next_step

    def __str__(self) -> str:
        return "%s: %s. Next: %s (exit code %d)" % (self.side, self.what, self.next_step, self.code)


# ---------------------------------------------------------------------------------------------
# The story
# ---------------------------------------------------------------------------------------------


def main(argv: Optional[List[str]] = None) -> int:
    report = Report()
    if hasattr(sys.stdout, "reconfigure"):  # a Windows code page lacks most characters of names
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = read_command_line(argv, report)
        forget_libpq_variables()
        if options.check:
            show_checks(options, report)
        else:
            settings = read_settings(options.env_file)
            with Watchdog(settings["SYNC_DEADLINE"], report) as watchdog:
                if options.status:
                    show_status(settings, report, watchdog)
                else:
                    sync_and_report(settings, options, report, watchdog)
    except Exception as error:
        report.fail(as_sync_error(error))
    report.say_result()
    if report.result == "failed" and not report.notifier:
        ping_early_end(sys.argv[1:] if argv is None else argv, report)
    return report.exit_code


def sync_and_report(settings: Settings, options: argparse.Namespace, report: Report,
                    watchdog: Watchdog) -> None:
    """However the run ends, it is reported: a log line, the result, the history, a ping."""
    if not options.dry_run:
        report.notifier = Notifier(settings, report, watchdog)
    try:
        sync(settings, options, report, watchdog)
    except Exception as error:
        report.fail(as_sync_error(error))
    report.say_result()


def sync(settings: Settings, options: argparse.Namespace, report: Report, watchdog: Watchdog) -> None:
    """Lock first, then take the app's snapshot: a later run must never write an older snapshot."""
    with connect(settings.warehouse, settings, watchdog) as warehouse:
        if take_lock(warehouse, report):
            carry_athletes(warehouse, settings, options, report, watchdog)
        if options.dry_run:
            return warehouse.rollback()
        record_run(warehouse, report)
        warehouse.commit()


def carry_athletes(warehouse: Database, settings: Settings, options: argparse.Namespace, report: Report,
                   watchdog: Watchdog) -> None:
    """Read the app, compare, and write what differs. Nothing is committed here."""
    refuse_inheritance(warehouse)
    warehouse.run(CREATE_STAGING)
    with connect(settings.app, settings, watchdog, before_snapshot=lock_source) as app:
        position = read_position(app, report)
        since = start_of_incremental(position, warehouse, options, report)
        staged_rows = stream_athletes(app, warehouse, report, since)
        if since is not None and not report.app_is_unique:
            staged_rows = start_again_in_full(app, warehouse, report)
    athletes = settle_duplicates(warehouse, staged_rows, report)
    refuse_rejects(report, options)
    rows_to_write = compare_with_dimension(warehouse, athletes, report)
    if options.diff:
        note_changes(warehouse, rows_to_write, report)
    refuse_too_many_renames(report, settings, options)
    if report.updated and not options.dry_run:
        record_renames(warehouse, rows_to_write, report)
    upsert_athletes(warehouse, rows_to_write, report)
    prove_agreement(warehouse)


# ---------------------------------------------------------------------------------------------
# The steps, each right below its SQL. {dimension} stands for analytics.athlete_dim, and so on.
# ---------------------------------------------------------------------------------------------

# Transaction-level, so that no pooler can leak it. Keyed by the dimension's oid, because WH_TABLE may be
# spelled in two ways. 1096043596 keeps it apart from other programs' locks.
TAKE_LOCK = """
SELECT pg_try_advisory_xact_lock(1096043596, {dimension_text}::regclass::oid::integer)
"""


def take_lock(warehouse: Database, report: Report) -> bool:
    """Take the run's lock, or note that the run is skipped. A run that holds it past its deadline is ended first.

    Raises SyncError (data) if it may not be ended.
    """
    if warehouse.fetch_row(TAKE_LOCK)[0]:
        return True
    holder = lock_holder(warehouse)
    if holder and (holder.is_overdue or has_outlived_a_skip(warehouse, holder)):
        end_holder(warehouse, holder)
        return True
    report.result, report.message = "skipped", "another run holds the lock of %s: %s" % (
        warehouse.settings["WH_TABLE"].spelling, holder or "it has just ended")
    log.info("warehouse: skipped: %s", report.message)
    return False


# A run ends its transaction by its deadline; on PostgreSQL 17 the server does, two seconds later. An older
# one belongs to a run that is frozen, or whose host is gone.
WHO_HOLDS_THE_LOCK = """
SELECT held.pid,
       coalesce(activity.client_addr::text, '?'),
       coalesce(activity.xact_start::timestamptz(0)::text, '?'),
       coalesce(activity.application_name = 'sync_athletes' AND activity.usename = current_user, false),
       coalesce(activity.xact_start < clock_timestamp() - %(seconds)s * interval '1 second', false)
  FROM pg_catalog.pg_locks AS held
  LEFT JOIN pg_catalog.pg_stat_activity AS activity ON activity.pid = held.pid
 WHERE held.locktype = 'advisory'
   AND held.granted
   AND held.classid = 1096043596
   AND held.objid = {dimension_text}::regclass::oid
   AND held.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""
SECONDS_TO_END_BY_ITSELF = 5


class Holder(NamedTuple):
    """The backend that holds the run's lock: WHO_HOLDS_THE_LOCK's columns."""

    pid: int
    address: str
    since: str
    is_a_run_of_ours: bool
    is_overdue: bool

    def __str__(self) -> str:
        return "backend %d from %s since %s" % (self.pid, self.address, self.since)


def lock_holder(warehouse: Database) -> Optional[Holder]:
    row = warehouse.run(WHO_HOLDS_THE_LOCK, seconds=longest_run(warehouse)).fetchone()
    return Holder(*row) if row else None


def longest_run(warehouse: Database) -> int:
    """Seconds after which no run can still be at work."""
    return int(warehouse.settings["SYNC_DEADLINE"]) + SECONDS_TO_END_BY_ITSELF


# pg_stat_activity hides the age of another role's session. The history shows it: a skipped run names this
# session, is older than any run may take, and no run has succeeded since.
SKIPPED_LONG_AGO = """
SELECT 1
  FROM analytics.athlete_sync_run
 WHERE target = %(target)s
   AND result = 'skipped'
   AND strpos(message, %(holder)s) > 0
   AND finished_at < clock_timestamp() - %(seconds)s * interval '1 second'
   AND run_id > (SELECT coalesce(max(run_id), 0)
                   FROM analytics.athlete_sync_run
                  WHERE target = %(target)s
                    AND result = 'ok')
 LIMIT 1
"""


def has_outlived_a_skip(warehouse: Database, holder: Holder) -> bool:
    return not holder.is_a_run_of_ours and warehouse.try_row(
        SKIPPED_LONG_AGO, target=target_of(warehouse.settings), holder=str(holder),
        seconds=longest_run(warehouse)) is not None


END_HOLDER = "SELECT pg_terminate_backend(%(pid)s)"
SECONDS_TO_END_HOLDER = 5


def end_holder(warehouse: Database, holder: Holder) -> None:
    if holder.is_a_run_of_ours:
        log.warning("warehouse: the run that holds the lock is older than SYNC_DEADLINE and is ended: %s", holder)
        warehouse.run(END_HOLDER, pid=holder.pid)
        until = time.monotonic() + SECONDS_TO_END_HOLDER
        while time.monotonic() < until:
            if warehouse.fetch_row(TAKE_LOCK)[0]:
                return
            warehouse.watchdog.sleep(0.1)
    raise SyncError(
        SQL_OR_DATA, "warehouse", "the run's lock is held for longer than any run may take: %s" % str(holder),
        "as a superuser: SELECT pg_terminate_backend(%d);" % holder.pid)


LIST_INHERITANCE_CHILDREN = """
SELECT string_agg(inhrelid::regclass::text, ', ')
  FROM pg_catalog.pg_inherits
  JOIN pg_catalog.pg_class ON pg_class.oid = inhparent
 WHERE inhparent = {dimension_text}::regclass
   AND relkind <> 'p'
"""


def refuse_inheritance(warehouse: Database) -> None:
    """Raise SyncError (data) if tables inherit from the dimension; partitions are another thing.

    A SELECT would read the children's athletes too, while the key that ON CONFLICT goes by does not
    know them: each of them would be inserted a second time.
    """
    children = warehouse.fetch_row(LIST_INHERITANCE_CHILDREN)[0]
    if children:
        dimension = warehouse.settings["WH_TABLE"].spelling
        raise SyncError(
            SQL_OR_DATA, "warehouse", "%s inherits from %s, whose key does not cover it" % (children, dimension),
            "ALTER TABLE %s NO INHERIT %s; or make %s a partitioned table"
            % (children.split(",")[0], dimension, dimension))


# full_name may be NULL: an athlete whose name cannot be used is staged without one, so that it
# counts as seen, not as missing.
CREATE_STAGING = """
CREATE TEMP TABLE tmp_athlete_dim (
    athlete_uuid UUID NOT NULL,
    full_name    TEXT
) ON COMMIT DROP
"""

# TRUNCATE and ALTER TABLE are not MVCC-safe: to a snapshot older than a reload, the table is empty. So
# the lock comes before the snapshot, and LOCK TABLE takes none. Partitions and children are included.
LOCK_SOURCE = "LOCK TABLE {app_table} IN ACCESS SHARE MODE"

# While it waits for that lock the server must notice when we are gone. Not every platform can.
WATCH_WHILE_WAITING = """
SAVEPOINT before_watch;
SET LOCAL client_connection_check_interval = 5000;
RELEASE SAVEPOINT before_watch
"""

# Any SELECT locks all that it would read, and keeps the locks until the end of the transaction.
LOCK_BY_READING = "SELECT {uuid_column}, {name_column} FROM {app_table} LIMIT 0"


def lock_source(app: Database) -> None:
    """Keep TRUNCATE and ALTER TABLE away from the source until the app's transaction ends.

    LOCK TABLE refuses a role with SELECT on columns alone, a materialized view, and before PostgreSQL 11
    any view. A SELECT locks these, but only after its own snapshot. So it is done under READ COMMITTED,
    where the COPY that follows takes a snapshot of its own.
    """
    watch_while_waiting(app)
    try:
        app.run(LOCK_SOURCE)
    except SyncError as problem:
        if not is_missing_or_refused(problem):
            raise
        app.begin("READ COMMITTED")
        watch_while_waiting(app)
        app.run(LOCK_BY_READING)


def watch_while_waiting(app: Database) -> None:
    if app.connection.server_version < 140000:
        return
    try:
        app.run(WATCH_WHILE_WAITING)
    except SyncError:
        app.run("ROLLBACK TO SAVEPOINT before_watch")  # raises, if it is the connection that is lost


# --incremental: where the last good run of this dimension left the app, and the dimension.
READ_LAST_POSITION = """
SELECT app_position, app_source, app_is_unique, dimension_rows, date_trunc('second', finished_at)::text
  FROM analytics.athlete_sync_run
 WHERE target = %(target)s AND result = 'ok'
 ORDER BY run_id DESC
 LIMIT 1
"""

# oldest_open is the oldest transaction that was still open in our snapshot. Rows that only a later snapshot
# sees were written by it or by a younger one, as long as `source` is the same. After a restore, a failover or
# a crash, rows may be lost and their transaction numbers used again. A crash of one backend does not change
# the server's start, but every crash resets its statistics. Tables and columns are identified by number,
# because swapping their names writes no row. PostgreSQL 9.6 and later.
READ_POSITION = """
WITH RECURSIVE part (oid) AS (
    SELECT {app_table_text}::regclass::oid
     UNION ALL
    SELECT inhrelid FROM pg_catalog.pg_inherits JOIN part ON inhparent = part.oid
)
SELECT txid_snapshot_xmin(snapshot) AS oldest_open,
       txid_snapshot_xmax(snapshot) AS next,
       concat_ws(' ',
           'system', (SELECT system_identifier FROM pg_catalog.pg_control_system()),
           'timeline', greatest((SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()),
                                (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery())),
           'started', extract(epoch FROM pg_postmaster_start_time()),
           'crashed', (SELECT extract(epoch FROM stats_reset) FROM pg_catalog.pg_stat_bgwriter),
           'database', (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()),
           'tables', (SELECT md5(string_agg(oid::text, ' ' ORDER BY oid)) FROM part),
           'columns', (SELECT string_agg(attnum::text, ' ' ORDER BY attname = {uuid_column_text})
                         FROM pg_catalog.pg_attribute
                        WHERE attrelid = {app_table_text}::regclass
                          AND attname IN ({uuid_column_text}, {name_column_text})))
  FROM txid_current_snapshot() AS snapshot
"""

# Only a plain table, or one whose parts are all plain tables, has xmin. A policy, a virtual column, or a
# type with its text in another table (an enum) can change what is read without writing a row.
# to_jsonb, because older servers lack attgenerated.
HAS_ROW_VERSIONS = """
WITH RECURSIVE part (oid) AS (
    SELECT {app_table_text}::regclass::oid
     UNION ALL
    SELECT inhrelid FROM pg_catalog.pg_inherits JOIN part ON inhparent = part.oid
)
SELECT (SELECT every(relkind IN ('r', 'p'))
          FROM pg_catalog.pg_class JOIN part ON pg_class.oid = part.oid)
       AND NOT row_security_active({app_table_text}::regclass)
       AND has_column_privilege({app_table_text}::regclass, 'xmin', 'SELECT')
       AND NOT EXISTS (SELECT 1
                         FROM pg_catalog.pg_attribute AS attribute
                        WHERE attrelid = {app_table_text}::regclass
                          AND attname IN ({uuid_column_text}, {name_column_text})
                          AND to_jsonb(attribute) ->> 'attgenerated' = 'v')
       AND NOT EXISTS (SELECT 1
                         FROM pg_catalog.pg_attribute
                         JOIN pg_catalog.pg_type ON pg_type.oid = atttypid
                        WHERE attrelid = {app_table_text}::regclass
                          AND attname IN ({uuid_column_text}, {name_column_text})
                          AND typcategory <> 'S'
                          AND 'uuid'::regtype NOT IN (pg_type.oid, typbasetype))
"""

COUNT_DIMENSION = "SELECT count(*) FROM {dimension}"

# Rejected rows that have not changed since are not read again by an incremental run.
COUNT_STANDING_REJECTS = """
SELECT coalesce(sum(rejected), 0)
  FROM analytics.athlete_sync_run
 WHERE target = %(target)s
   AND result = 'ok'
   AND run_id >= (SELECT max(run_id)
                    FROM analytics.athlete_sync_run
                   WHERE target = %(target)s
                     AND result = 'ok'
                     AND mode = 'full')
"""


class Position(NamedTuple):
    """How far a snapshot of the app reaches: READ_POSITION's columns."""

    oldest_open: int
    next: int
    source: str


class LastSuccess(NamedTuple):
    """What the last good run left: READ_LAST_POSITION's columns, each None if there is none."""

    position: Any
    source: Optional[str]
    source_is_unique: Optional[bool]
    dimension_rows: Any
    finished_at: Optional[str]


def read_position(app: Database, report: Report) -> Optional[Position]:
    """Note where this run leaves the app. None where the source does not tell its row versions."""
    row = app.try_row(READ_POSITION) if app.connection.server_version >= 90600 else None
    if not row or app.try_row(HAS_ROW_VERSIONS) != (True,):
        return None
    position = Position(*row)
    report.app_position, report.app_source = position.oldest_open, position.source
    return position


def start_of_incremental(position: Optional[Position], warehouse: Database, options: argparse.Namespace,
                         report: Report) -> Optional[int]:
    """Return the xmin from which an incremental run reads; None if the run must be full.

    A run with --incremental is one, unless obstacle_in_app or obstacle_in_warehouse, below, names a reason to
    read all. One reason shows only after reading: see start_again_in_full.
    """
    if not options.incremental:
        return None
    row = warehouse.try_row(READ_LAST_POSITION, target=target_of(warehouse.settings))
    last = LastSuccess(*row or [None] * 5)
    obstacle = obstacle_in_app(position, last) or obstacle_in_warehouse(warehouse, last, options)
    if obstacle:
        log.info("app: full, not incremental: %s", obstacle)
        return None
    log.info("app: incremental: what has changed since the success of %s", last.finished_at)
    report.mode = "incremental"
    return int(last.position % 2 ** 32)


def obstacle_in_app(position: Optional[Position], last: LastSuccess) -> Optional[str]:
    """Say why the position of the last success does not hold in the app of today, if so."""
    if position is None:
        return "the source does not tell its row versions (a view, a foreign table, row-level security, " \
               "a privilege on columns alone, a column that is neither text nor uuid, or PostgreSQL 9.5)"
    if last.position is None or last.dimension_rows is None:
        return "no earlier success has left a position in the run history"
    if position.source != last.source:
        return "the app's server, its start, its last crash, the table or the columns are not those of the " \
               "last success"
    if position.oldest_open < last.position:
        return "the app's transaction counter is behind the last success: it was restored"
    if position.next - last.position >= 2 ** 31:
        return "the last success is too many transactions ago"
    if not last.source_is_unique:
        return "nothing rules out that a changed row repeats an unchanged athlete: the uuid column needs a " \
               "unique index, and one spelling"
    return None


def obstacle_in_warehouse(warehouse: Database, last: LastSuccess, options: argparse.Namespace) -> Optional[str]:
    if warehouse.fetch_row(COUNT_DIMENSION)[0] < last.dimension_rows:
        return "the dimension holds fewer athletes than the last success left there"
    rejected = warehouse.fetch_row(COUNT_STANDING_REJECTS, target=target_of(warehouse.settings))[0]
    if rejected and options.strict:
        return "rows were rejected since the last full run, and --strict must know whether they still are"
    if rejected:
        log.warning("app: %d rows rejected since the last full run; unless they change, only a full run "
                    "reads them again", rejected)
    return None


EMPTY_STAGING = "TRUNCATE pg_temp.tmp_athlete_dim"


def start_again_in_full(app: Database, warehouse: Database, report: Report) -> int:
    log.info("app: full, not incremental: a changed row spells its uuid in another way, or the unique index "
             "is gone")
    warehouse.run(EMPTY_STAGING)
    report.mode = "full"
    report.rejects.clear()
    report.reject_reasons.clear()
    return stream_athletes(app, warehouse, report, None)


# A unique index on the uuid column alone, and on all of the table: a parent's does not cover its children.
# INCLUDE columns are no part of the key; to_jsonb, because before PostgreSQL 11 there are none.
SOURCE_IS_UNIQUE = """
SELECT EXISTS (
           SELECT 1
             FROM pg_catalog.pg_index AS index
             JOIN pg_catalog.pg_class AS source ON source.oid = index.indrelid
             JOIN pg_catalog.pg_attribute AS key ON key.attrelid = index.indrelid
                                                AND key.attnum = index.indkey[0]
            WHERE index.indrelid = {app_table_text}::regclass
              AND key.attname = {uuid_column_text}
              AND coalesce(to_jsonb(index) ->> 'indnkeyatts', index.indnatts::text) = '1'
              AND index.indisunique AND index.indisvalid AND index.indimmediate
              AND index.indpred IS NULL
              AND (source.relkind = 'p' OR NOT source.relhassubclass)
       )
"""

LOAD_STAGING = "COPY pg_temp.tmp_athlete_dim (athlete_uuid, full_name) FROM STDIN"


def stream_athletes(app: Database, warehouse: Database, report: Report, since: Optional[int]) -> int:
    """Copy the app's rows, or those changed `since`, into staging, a chunk at a time. Returns how many are there.

    A thread extracts into an OS pipe while this one checks and loads. The pipe is the bounded queue:
    it holds 64 kB, then makes the faster side wait; and a side that stops closes it, which the
    other one notices.
    """
    any_bytes = app.encoding() == "SQL_ASCII"
    if any_bytes:  # asked for UTF-8, such a server would stop at the first name that is not
        app.run("SET LOCAL client_encoding TO 'SQL_ASCII'")
    read_end, write_end = os.pipe()
    with open(read_end, "rb", CHUNK_BYTES) as extracted, ThreadPoolExecutor(1) as pool, \
            progress_bar(report) as bar:
        extraction = pool.submit(extract_athletes, app, write_end, since)
        checked = CheckedRows(extracted, extraction, report, any_bytes, bar)
        try:
            rows = warehouse.copy(LOAD_STAGING, checked)
        except SyncError as problem:
            app.hang_up()
            raise checked.failure or problem
        finally:
            extracted.close()
    if rows != checked.rows - checked.unreadable:
        raise proof_failed("staging holds %d of %d rows" % (rows, checked.rows - checked.unreadable))
    log_what_was_read(app, report, rows, since)
    report.app_is_unique = checked.all_canonical and app.fetch_row(SOURCE_IS_UNIQUE)[0]
    return rows


# What was read is locked by us, however it was reached: by a view, or as a partition.
LIST_FOREIGN_TABLES = """
SELECT string_agg(relation::regclass::text, ', ')
  FROM pg_catalog.pg_locks
  JOIN pg_catalog.pg_class ON pg_class.oid = relation
 WHERE pid = pg_backend_pid()
   AND relkind = 'f'
"""


def log_what_was_read(app: Database, report: Report, staged_rows: int, since: Optional[int]) -> None:
    log.info("app: %d rows read, %d staged", report.source, staged_rows)
    if not report.source and since is None:
        log.warning("app: %s is empty; nothing to do", app.settings["APP_TABLE"].spelling)
    unprotected = app.fetch_row(LIST_FOREIGN_TABLES)[0]
    if unprotected:
        log.info("app: %s cannot be locked where its rows are: it must not be reloaded meanwhile", unprotected)


# Text format: one row on each line, NULL is exactly \\N. What comes out here goes into LOAD_STAGING
# byte for byte.
EXTRACT_ATHLETES = """
COPY (
    SELECT {uuid_column} AS athlete_uuid,
           {name_column} AS full_name
      FROM {app_table}
) TO STDOUT
"""

# xmin has 32 bits and wraps around. A row is new if its distance from {position}, counted upwards, is less
# than 2^31: bit 31 of the difference is then 0. An old row that is read again does no harm. This is an
# equation because the planner then expects few rows, and scans a large table in parallel.
EXTRACT_CHANGES = """
COPY (
    SELECT {uuid_column} AS athlete_uuid,
           {name_column} AS full_name
      FROM {app_table}
     WHERE (xmin::text::bigint - {position}) >> 31 & 1 = 0
) TO STDOUT
"""


def extract_athletes(app: Database, write_end: int, since: Optional[int]) -> int:
    """Write the app's rows into the pipe and close it. Returns the number of rows the server sent."""
    with open(write_end, "wb", CHUNK_BYTES) as pipe:
        if since is None:
            return app.copy(EXTRACT_ATHLETES, pipe)
        return app.copy(EXTRACT_CHANGES, pipe, position=sql.Literal(since))


# Large enough to hide pandas' fixed cost per chunk, small enough to stay in a core's cache;
# 256 kB and 1 MB took the same time, the former less memory.
CHUNK_BYTES = 256 * 1024


class CheckedRows:
    """The file that COPY ... FROM STDIN reads: the extracted rows less those that were rejected."""

    def __init__(self, extracted: BinaryIO, extraction: "Future[int]", report: Report,
                 any_bytes: bool, bar: Any):
        self.extracted, self.extraction, self.report, self.bar = extracted, extraction, report, bar
        self.any_bytes = any_bytes
        self.failure: Optional[BaseException] = None
        self.rows = self.rejected = self.unreadable = 0
        self.all_canonical = True
        self.begun_line = b""
        self.good_rows = io.BytesIO()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end. psycopg2 hides what is raised here; we keep it."""
        try:
            slice_ = self.good_rows.read(size)
            while not slice_ and self.load_chunk():
                slice_ = self.good_rows.read(size)
            return slice_
        except BaseException as failure:
            self.failure = failure
            raise

    def load_chunk(self) -> bool:
        """Check the next chunk of whole lines into `good_rows`. Returns False at the end."""
        chunk = self.extracted.read(CHUNK_BYTES)
        if not chunk:
            self.check_completeness()
            return False
        end_of_lines = chunk.rfind(b"\n") + 1
        if not end_of_lines:
            self.begun_line += chunk  # a name longer than a chunk
            return True
        lines = self.begun_line + chunk[:end_of_lines]
        self.begun_line = chunk[end_of_lines:]
        self.good_rows = io.BytesIO(self.check(lines))
        return True

    def check(self, lines: bytes) -> bytes:
        """Count the rows, note the rejected, and return the lines that may be staged."""
        rows = check_rows(lines, self.any_bytes)
        self.rows += len(rows)
        self.all_canonical &= not (rows["is_uuid"] & ~rows["is_canonical"]).any()
        self.bar.update(len(rows))
        if rows["is_good"].all():
            return lines
        bad = rows[~rows["is_good"]]
        self.rejected += len(bad)
        self.report.reject_reasons.update(bad["reason"])
        for row in bad[:self.report.room_for_rejects()].itertuples():
            self.report.reject(as_found(uuid_of(lines, row)), row.reason)
        self.unreadable += len(rows) - int(rows["is_uuid"].sum())
        # An athlete without a usable name is staged without one, because it is not missing.
        return b"".join(lines[row.start:row.end + 1] if row.is_good else uuid_of(lines, row) + b"\t\\N\n"
                        for row in rows[rows["is_uuid"]].itertuples())

    def check_completeness(self) -> None:
        """Raise what ended the extraction early; a closed pipe alone looks like a normal end."""
        rows_sent = self.extraction.result()
        if rows_sent != self.rows or self.begun_line:
            raise SyncError(SQL_OR_DATA, "app", "sent %d rows of which %d arrived" % (rows_sent, self.rows),
                            "run again; if it stays, report it")
        self.report.source, self.report.rejected = self.rows, self.rejected


# A uuid as Postgres prints it, and the tab after it, once every hexadecimal digit is a zero. This is checked
# for a whole chunk at once; only rows that do not fit are looked at one by one.
DIGITS_TO_ZERO = bytes.maketrans(b"123456789abcdef", b"0" * 15)
CANONICAL_UUID = b"00000000-0000-0000-0000-000000000000\t"

# Every spelling that Postgres's uuid_in reads: braces, any case, a hyphen after any four digits or none.
ANY_UUID = re.compile(rb"(\{)?(?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}(?(1)\})\t")


def check_rows(lines: bytes, any_bytes: bool) -> pd.DataFrame:
    """Check COPY text: one row of the table on each line.

    `start` and `end` are the line's place in `lines`, without its newline; `is_canonical` says
    whether its uuid is spelled as Postgres prints it, `is_uuid` whether the warehouse can read it,
    `is_good` whether the row can be loaded, `reason` why not.
    """
    text = np.frombuffer(lines, dtype=np.uint8)
    end = np.flatnonzero(text == ord("\n"))
    start = np.concatenate(([0], end[:-1] + 1))
    rows = pd.DataFrame({"start": start, "end": end})
    rows["is_canonical"] = rows["is_uuid"] = are_canonical(lines, start)
    odd = rows[~rows["is_canonical"]]
    rows.loc[odd.index, "is_uuid"] = [ANY_UUID.match(lines, *line) is not None
                                      for line in zip(odd["start"], odd["end"])]
    # A tab within a name arrives as \t, so a true one before a final \N means that the name is NULL.
    tail = [text.take(end - before, mode="clip") == ord(character)
            for before, character in ((3, "\t"), (2, "\\"), (1, "N"))]
    rows["is_good"] = rows["is_uuid"] & ~np.logical_and.reduce(tail)
    rows["reason"] = np.where(rows["is_uuid"], "name is NULL", "uuid is not a uuid")
    no_uuid = [lines.startswith(b"\\N\t", begin) for begin in odd["start"]]
    rows.loc[odd.index[no_uuid], "reason"] = "uuid is NULL"
    if any_bytes and not is_utf8(lines):
        reject_broken_text(rows, lines)
    return rows


def are_canonical(lines: bytes, start: Any) -> Any:
    """An array of bool: whether a canonical uuid begins at each place of the array `start`."""
    long_enough = lines + b"\n" * len(CANONICAL_UUID)
    text = np.frombuffer(long_enough.translate(DIGITS_TO_ZERO), dtype=np.uint8)
    heads = sliding_window_view(text, len(CANONICAL_UUID))[start]
    return (heads == np.frombuffer(CANONICAL_UUID, dtype=np.uint8)).all(axis=1)


def reject_broken_text(rows: pd.DataFrame, lines: bytes) -> None:
    """A database in SQL_ASCII may hold any bytes; one bad name must not stop all the others."""
    for row in rows.itertuples():
        if not is_utf8(lines[row.start:row.end]):
            rows.at[row.Index, "is_good"] = False
            rows.at[row.Index, "reason"] = "not valid UTF-8"


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
        return True
    except UnicodeDecodeError:
        return False


def uuid_of(lines: bytes, row: Any) -> bytes:
    return lines[row.start:lines.index(b"\t", row.start)]


COPY_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def as_found(uuid: bytes) -> Optional[str]:
    """Undo COPY's escapes, so that the row can be found again; at most 100 characters."""
    if uuid == b"\\N":
        return None
    plain = re.sub(rb"\\(.)", lambda escape: COPY_ESCAPES.get(escape.group(1), escape.group(1)), uuid)
    return plain.decode(errors="replace")[:100]


# It sorts the uuids alone; beside other counts it would sort whole rows (1,000,000: 0.2 s, not 0.4 s).
COUNT_ATHLETES = "SELECT count(DISTINCT athlete_uuid) FROM pg_temp.tmp_athlete_dim"

# One uuid, several names: nobody can say which is true, so none is taken. COLLATE "C" compares bytes.
CONFLICTING_ATHLETES = """
SELECT athlete_uuid
  FROM pg_temp.tmp_athlete_dim
 GROUP BY athlete_uuid
HAVING count(DISTINCT full_name COLLATE "C") > 1
"""

LIST_CONFLICTS = """
SELECT athlete_uuid::text
  FROM pg_temp.tmp_athlete_dim
 WHERE full_name IS NOT NULL
   AND athlete_uuid IN (""" + CONFLICTING_ATHLETES + """)
 ORDER BY athlete_uuid
 LIMIT %(limit)s
"""

REJECT_CONFLICTS = """
UPDATE pg_temp.tmp_athlete_dim
   SET full_name = NULL
 WHERE full_name IS NOT NULL
   AND athlete_uuid IN (""" + CONFLICTING_ATHLETES + """)
"""

# What is left of a repeated athlete is equal, or has no name; keep one row, with a name if there is one.
DROP_REPEATS = """
DELETE FROM pg_temp.tmp_athlete_dim
 WHERE ctid IN (
           SELECT ctid
             FROM (SELECT ctid,
                          row_number() OVER (PARTITION BY athlete_uuid
                                             ORDER BY full_name IS NULL) AS place
                     FROM pg_temp.tmp_athlete_dim) AS placed
            WHERE place > 1
       )
"""

COUNT_NAMED = "SELECT count(full_name) FROM pg_temp.tmp_athlete_dim"


NAMES_DIFFER = "names differ for one uuid"


class Athletes(NamedTuple):
    """Athletes in staging: all that were seen, and those of them whose name can be used."""

    seen: int
    named: int


def settle_duplicates(warehouse: Database, staged_rows: int, report: Report) -> Athletes:
    """Keep one row per athlete in staging, without a name where names conflict."""
    report.repeated = 0
    named_rows = report.source - report.rejected
    # Where the unique index is corrupt, refuse_repeated_changes fails, or the INSERT.
    seen = staged_rows if report.app_is_unique else warehouse.fetch_row(COUNT_ATHLETES)[0]
    if seen == staged_rows:
        return Athletes(seen, named_rows)
    for (uuid,) in warehouse.run(LIST_CONFLICTS, limit=report.room_for_rejects()):
        report.reject(uuid, NAMES_DIFFER)
    conflicting_rows = warehouse.run(REJECT_CONFLICTS).rowcount
    if conflicting_rows:
        report.reject_reasons[NAMES_DIFFER] = conflicting_rows
    warehouse.run(DROP_REPEATS)
    named = warehouse.fetch_row(COUNT_NAMED)[0]
    report.rejected += conflicting_rows
    report.repeated = named_rows - conflicting_rows - named
    return Athletes(seen, named)


def refuse_rejects(report: Report, options: argparse.Namespace) -> None:
    """Warn of rejected rows; refuse the run with --strict, or if a full run rejected every row."""
    if not report.rejected:
        return
    log.warning("app: %d rows rejected: %s; --dry-run --json lists up to %d of them", report.rejected,
                report.reasons(), report.MOST_REJECTS)
    if report.rejected == report.source and report.mode == "full":
        refuse(SyncError(
            SQL_OR_DATA, "app", "every row was rejected: %s; that looks like a wrong column" % report.reasons(),
            "check APP_UUID_COLUMN and APP_NAME_COLUMN; --dry-run --json lists what was found"), options)
    elif options.strict:
        refuse(SyncError(
            SQL_OR_DATA, "app", "%d rows rejected, and --strict allows none" % report.rejected,
            "--dry-run --json lists them; mend them in the app, or leave --strict out"), options)


# This decides what is new, renamed or unchanged. If the dimension is distributed, it needs Citus 11.2 (issue 6574).
COMPARED = """
SELECT staged.athlete_uuid,
       staged.full_name,
       known.athlete_uuid IS NULL AS is_new,
       known.athlete_uuid IS NOT NULL AND staged.full_name IS NOT NULL
           AND known.full_name COLLATE "C" IS DISTINCT FROM staged.full_name COLLATE "C" AS is_renamed,
       coalesce(known.source_synced_at, '-infinity') < now() - %(stamp_older_than)s::interval AS is_due
  FROM pg_temp.tmp_athlete_dim AS staged
  LEFT JOIN {dimension} AS known ON known.athlete_uuid = staged.athlete_uuid
"""

# What differs is kept, and only that is written, because an INSERT that meets an unchanged row locks
# and logs it even where its own WHERE then leaves it alone (1,000,000 athletes: 3.0 s, not 0.7 s). The last
# row, without a uuid, is the dimension's count of the same moment: others may write there too.
KEEP_CHANGES = """
CREATE TEMP TABLE tmp_athlete_change ON COMMIT DROP AS
SELECT compared.*, NULL::bigint AS in_dimension
  FROM (""" + COMPARED + """) AS compared
 WHERE is_new OR is_renamed OR (full_name IS NOT NULL AND is_due)
 UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, count(*)
  FROM {dimension}
 ORDER BY athlete_uuid
"""

COUNTS = """
SELECT count(*) FILTER (WHERE is_new)                                 AS unknown,
       count(*) FILTER (WHERE is_new AND full_name IS NOT NULL)       AS inserted,
       count(*) FILTER (WHERE is_renamed)                             AS renamed,
       count(full_name)                                               AS to_write,
       """

COUNT_CHANGES = COUNTS + "max(in_dimension) FROM pg_temp.tmp_athlete_change"

# Where all athletes are written anyway, the changes need not be kept, only counted.
COUNT_COMPARED = COUNTS + "(SELECT count(*) FROM {dimension}) FROM (" + COMPARED + ") AS compared"

# The join in batches that fit a core's cache (1,000,000: 0.49 s, not 0.58 s with 4 MB).
SMALL_HASH_TABLE = "SET LOCAL work_mem = '1MB'"
USUAL_HASH_TABLE = "SET LOCAL work_mem TO DEFAULT"

STAGING, CHANGES = "pg_temp.tmp_athlete_dim", "pg_temp.tmp_athlete_change"


class RowsToWrite(NamedTuple):
    table: str
    number: int


def compare_with_dimension(warehouse: Database, athletes: Athletes, report: Report) -> RowsToWrite:
    """Count what is new and renamed into the report, and say which rows are to be written."""
    refresh = warehouse.settings["SYNC_REFRESH"]
    stamp_all = refresh == "always"
    warehouse.run(SMALL_HASH_TABLE)
    if stamp_all:
        counts = warehouse.fetch_row(COUNT_COMPARED, stamp_older_than=None)
        if counts[3] != athletes.named:
            raise proof_failed("staging holds %d of %d athletes" % (counts[3], athletes.named))
    else:
        warehouse.run(KEEP_CHANGES, stamp_older_than=None if refresh == "never" else refresh)
        counts = warehouse.fetch_row(COUNT_CHANGES)
        refuse_repeated_changes(warehouse)
    warehouse.run(USUAL_HASH_TABLE)
    unknown, inserted, renamed, to_write, report.in_dimension = counts
    report.inserted, report.updated = inserted, renamed
    report.unchanged = athletes.named - inserted - renamed
    if report.mode == "full":
        report.missing = report.in_dimension - (athletes.seen - unknown)
    log.info("warehouse: %d inserted, %d updated, %d unchanged, %s", inserted, renamed, report.unchanged,
             "%d missing" % report.missing if report.mode == "full" else "missing is counted by full runs")
    return RowsToWrite(STAGING if stamp_all else CHANGES, to_write)


COUNT_REPEATED_CHANGES = """
SELECT count(*) - (SELECT count(athlete_uuid) FROM pg_temp.tmp_athlete_change)
  FROM pg_temp.tmp_athlete_dim
 WHERE athlete_uuid IN (SELECT athlete_uuid FROM pg_temp.tmp_athlete_change)
"""


def refuse_repeated_changes(warehouse: Database) -> None:
    """Raise SyncError (data) if a changed athlete is staged twice although the app has a unique index.

    An INSERT of all athletes would find that out by itself (21000). One of the changed athletes alone would
    write one of the two names, and the other one in the next run. Text indexes do get corrupt: when an
    update of the C library changes how text sorts.
    """
    repeated = warehouse.fetch_row(COUNT_REPEATED_CHANGES)[0]
    if repeated:
        raise SyncError(
            SQL_OR_DATA, "app", "%d rows repeat an athlete in spite of a unique index" % repeated,
            "in the app: REINDEX TABLE %s; and mend the repeats that it names"
            % warehouse.settings["APP_TABLE"].spelling)


FEWEST_TO_GUARD = 20


def refuse_too_many_renames(report: Report, settings: Settings, options: argparse.Namespace) -> None:
    """Refuse what looks like an accident: a wrong column or database renames nearly everybody.

    Raises SyncError (data), unless --allow-updates allows that many.
    """
    in_dimension = report.in_dimension
    percent = settings["SYNC_MAX_UPDATED_PERCENT"]
    allowed = options.allow_updates
    if allowed is None:
        if in_dimension < FEWEST_TO_GUARD or report.updated * 100 <= percent * in_dimension:
            return
        limit = "SYNC_MAX_UPDATED_PERCENT=%d" % percent
    elif report.updated <= allowed:
        return
    else:
        limit = "--allow-updates %d" % allowed
    refuse(SyncError(
        SQL_OR_DATA, "warehouse", "%d of %d athletes would be updated, more than %s allows; that looks like "
        "a wrong column, table or database" % (report.updated, in_dimension, limit),
        "look with --dry-run --diff; if it is meant, run with --allow-updates %d" % report.updated), options)


def refuse(problem: SyncError, options: argparse.Namespace) -> None:
    if not options.dry_run:
        raise problem
    log.warning("without --dry-run this would be refused: %s", problem)


# The names that the upsert will overwrite. A LEFT JOIN as in COMPARED, for Citus.
RENAMED = """
SELECT staged.athlete_uuid AS uuid,
       known.full_name     AS old_name,
       staged.full_name    AS new_name
  FROM {rows} AS staged
  LEFT JOIN {dimension} AS known ON known.athlete_uuid = staged.athlete_uuid
 WHERE staged.full_name IS NOT NULL
   AND known.athlete_uuid IS NOT NULL
   AND known.full_name COLLATE "C" IS DISTINCT FROM staged.full_name COLLATE "C"
"""

# Drawn before the run's row is written, which then takes the same number.
DRAW_RUN_ID = "SELECT nextval(pg_get_serial_sequence('analytics.athlete_sync_run', 'run_id'))"

# No RETURNING: the writer may only insert here.
RECORD_RENAMES = """
INSERT INTO analytics.athlete_rename (run_id, athlete_uuid, old_name, new_name, renamed_at)
SELECT %(run_id)s, uuid, old_name, new_name, now()
  FROM (""" + RENAMED + """) AS renamed
"""


def record_renames(warehouse: Database, rows: RowsToWrite, report: Report) -> None:
    with optional_write(warehouse, "analytics.athlete_rename", "former names are not kept"):
        run_id = warehouse.fetch_row(DRAW_RUN_ID)[0]
        warehouse.run(RECORD_RENAMES, run_id=run_id, rows=sql.SQL(rows.table))
        report.run_id = run_id


@contextmanager
def optional_write(warehouse: Database, table: str, consequence: str) -> Iterator[None]:
    """For a write that the sync can do without: if it is refused, or locked for 5 s, warn and go on."""
    warehouse.run("SAVEPOINT before_optional; SET LOCAL lock_timeout = '5s'")
    try:
        yield
        warehouse.run("SET CONSTRAINTS ALL IMMEDIATE")  # what is deferred would fail the COMMIT
    except SyncError as problem:
        if isinstance(problem.__cause__, psycopg2.extensions.QueryCanceledError):  # somebody stops the run
            raise
        warehouse.run("ROLLBACK TO SAVEPOINT before_optional")  # raises, if it is the connection that is lost
        state = getattr(problem.__cause__, "pgcode", None) or ""
        log.warning("warehouse: %s (%s); %s", consequence, problem.what,
                    next_step_for_history(state, table, warehouse.settings))
    warehouse.run("SET LOCAL lock_timeout = 0; RELEASE SAVEPOINT before_optional")


# In the order of the key: the index is then filled from left to right (1,000,000 athletes: 3.0 s,
# not 4.3 s). {rows} is tmp_athlete_change, or tmp_athlete_dim where the unchanged are stamped too.
UPSERT = """
INSERT INTO {dimension} (athlete_uuid, full_name, source_synced_at)
SELECT athlete_uuid, full_name, now()
  FROM {rows}
 WHERE full_name IS NOT NULL
 ORDER BY athlete_uuid
    ON CONFLICT (athlete_uuid) DO UPDATE
   SET full_name        = EXCLUDED.full_name,
       source_synced_at = EXCLUDED.source_synced_at
"""


def upsert_athletes(warehouse: Database, rows: RowsToWrite, report: Report) -> None:
    written = warehouse.run(UPSERT, rows=sql.SQL(rows.table)).rowcount
    if written != rows.number:
        raise proof_failed("%d of %d rows were written" % (written, rows.number))
    log.info("warehouse: %d rows %s", written, "would be written" if report.dry_run else "written")


# Postgres stores what it gets, unless a trigger, a rule, a policy or the column's type changes it
# (char(n) pads, varchar(n) trims), here or in a partition.
WHAT_COULD_INTERFERE = """
WITH RECURSIVE part (oid) AS (
    SELECT {dimension_text}::regclass::oid
     UNION ALL
    SELECT inhrelid FROM pg_catalog.pg_inherits JOIN part ON inhparent = part.oid
)
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_trigger JOIN part ON tgrelid = part.oid
                WHERE NOT tgisinternal AND tgenabled <> 'D')
    OR EXISTS (SELECT 1 FROM pg_catalog.pg_rewrite JOIN part ON ev_class = part.oid)
    OR EXISTS (SELECT 1 FROM pg_catalog.pg_class JOIN part ON pg_class.oid = part.oid WHERE relrowsecurity)
    OR EXISTS (SELECT 1 FROM pg_catalog.pg_attribute JOIN part ON attrelid = part.oid
                WHERE attname = 'full_name'
                  AND (atttypid NOT IN ('text'::regtype, 'varchar'::regtype) OR atttypmod <> -1))
"""

# Deferred constraint triggers would else run at COMMIT, when all has been verified.
RUN_DEFERRED_TRIGGERS = "SET CONSTRAINTS ALL IMMEDIATE"

COUNT_DISAGREEMENTS = """
SELECT count(*)
  FROM pg_temp.tmp_athlete_dim AS staged
  LEFT JOIN {dimension} AS known ON known.athlete_uuid = staged.athlete_uuid
 WHERE staged.full_name IS NOT NULL
   AND known.full_name COLLATE "C" IS DISTINCT FROM staged.full_name COLLATE "C"
"""


def prove_agreement(warehouse: Database) -> None:
    """Read every athlete back, wherever something could have altered a name on its way in.

    Elsewhere the number of rows written is the proof, together with the comparison, which found
    the others to agree.
    """
    warehouse.run(RUN_DEFERRED_TRIGGERS)
    if warehouse.fetch_row(WHAT_COULD_INTERFERE)[0]:
        disagreeing = warehouse.fetch_row(COUNT_DISAGREEMENTS)[0]
        if disagreeing:
            raise proof_failed("%d athletes differ from what was sent" % disagreeing)


def proof_failed(what: str) -> SyncError:
    return SyncError(SQL_OR_DATA, "warehouse", "the proof failed, nothing was changed: " + what,
                     "look for triggers, rules and policies on the dimension (psql: \\d+)")


# ---------------------------------------------------------------------------------------------
# What the run reports: result line, history, ping
# ---------------------------------------------------------------------------------------------


# An int; None, never 0, if it is not known. Any, because mypy cannot see which step sets it.
Count = Any


@dataclass
class Report:
    """What a run reports."""

    mode: str = "full"
    in_dimension: Count = None
    app_position: Optional[int] = None
    app_source: Optional[str] = None
    app_is_unique: Optional[bool] = None
    dry_run: bool = False
    result: str = "ok"
    exit_code: int = OK
    source: Count = None
    inserted: Count = None
    updated: Count = None
    unchanged: Count = None
    missing: Count = None
    rejected: Count = None
    repeated: Count = None
    rejects: List[Dict[str, Optional[str]]] = field(default_factory=list)
    reject_reasons: Counter[str] = field(default_factory=Counter)
    message: Optional[str] = None
    run_id: Optional[int] = None  # set if renames were recorded; else the sequence gives one
    shows_changes: bool = False
    changes: Optional[Dict[str, Any]] = None
    answer: Optional[str] = None  # what --check and --status say instead of the result line
    notifier: Optional[Notifier] = None
    saying: Any = field(default_factory=threading.RLock)  # held until all is told
    said: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)
    ended: Optional[float] = None
    as_json: bool = False
    quiet: bool = False
    log_file: Optional[LogFile] = None
    MOST_REJECTS = 100

    def seconds(self) -> float:
        return round((self.ended or time.monotonic()) - self.started, 2)

    def reasons(self) -> str:
        return ", ".join("%d %s" % (count, reason) for reason, count in self.reject_reasons.most_common())

    def room_for_rejects(self) -> int:
        return self.MOST_REJECTS - len(self.rejects)

    def reject(self, uuid: Optional[str], reason: str) -> None:
        self.rejects.append({"uuid": uuid, "reason": reason})

    def fail(self, problem: SyncError) -> None:
        with self.saying:
            if self.said.is_set():
                return
            self.result, self.exit_code, self.message = "failed", problem.code, str(problem)
            self.inserted = self.updated = self.unchanged = self.missing = self.repeated = None
            cause = problem.__cause__ or problem
            # Not the exception's own text: Postgres puts whole rows into its details.
            log.debug("%s\n%s", type(cause).__name__, "".join(traceback.format_tb(cause.__traceback__)).rstrip())
            log.error("%s", problem)

    def say_result(self, problem: Optional[SyncError] = None) -> None:
        """Report the result once: by the run, or by the watchdog with the `problem` that ends it."""
        with self.saying:
            if self.said.is_set():
                return
            if problem and self.exit_code == OK:
                self.fail(problem)
            self.ended = time.monotonic()
            self.said.set()
            self.write_result()
            if self.notifier:
                self.notifier.send_result()

    def write_result(self) -> None:
        line = self.answer or (self.json_line() if self.as_json else
                               "\n".join(change_lines(self) + [self.text_line()]))
        write_or_forget(sys.stdout, "" if self.quiet and self.exit_code == OK else line + "\n")
        write_or_forget(sys.stderr, "")
        if self.log_file:
            self.log_file.write(self.answer or self.text_line())

    def text_line(self) -> str:
        counts = [(name, getattr(self, name)) for name in (
            "source", "inserted", "updated", "unchanged", "missing", "rejected", "repeated")]
        words = ["result=" + self.result, "mode=" + self.mode]
        if self.result != "failed" or any(count is not None for _, count in counts):  # else it counted nothing
            words += ["%s=%s" % (name, "null" if count is None else count) for name, count in counts]
        words += ["seconds=%.2f" % self.seconds()] + ["dry_run=true"] * self.dry_run
        return " ".join(words)

    def json_line(self) -> str:
        keys = ("result exit_code mode dry_run source inserted updated unchanged missing rejected "
                "repeated seconds rejects message" + " changes" * self.shows_changes)
        values = dict(vars(self), seconds=self.seconds())
        return json.dumps({key: values[key] for key in keys.split()})


# Both times are the server's: the hosts' clocks may differ. started_at is never after now(), this run's stamp,
# so with SYNC_REFRESH=always an older stamp means missing.
RECORD_RUN = """
INSERT INTO analytics.athlete_sync_run (
        run_id, target, started_at, finished_at, mode, result, exit_code, source_rows, inserted, updated,
        unchanged, missing, rejected, repeated, rejects, message, host, version, max_age,
        app_position, app_source, app_is_unique, dimension_rows)
VALUES (%(run_id)s, %(target)s,
        least(now(), clock_timestamp() - %(seconds)s * interval '1 second'), clock_timestamp(),
        %(mode)s, %(result)s, %(exit_code)s, %(source)s, %(inserted)s, %(updated)s,
        %(unchanged)s, %(missing)s, %(rejected)s, %(repeated)s, %(rejects)s, %(message)s,
        %(host)s, %(version)s, %(max_age)s, %(app_position)s, %(app_source)s, %(app_is_unique)s,
        %(dimension_rows)s)
"""


NOT_RECORDED = "this run is not in the run history"


def record_run(warehouse: Database, report: Report) -> None:
    """Write the run into the history, in its own transaction. It never fails a run that is right."""
    with optional_write(warehouse, "analytics.athlete_sync_run", NOT_RECORDED):
        warehouse.run(RECORD_RUN, **history_row(warehouse.settings, report, warehouse.encoding()))


def record_failure(settings: Settings, report: Report, watchdog: Watchdog) -> None:
    """Write a failed run into the history, over a new connection: the run's own is rolled back, or lost."""
    try:
        parameters = connection_parameters(settings.warehouse, settings, watchdog)
        connection = psycopg2.connect(**dict(parameters, connect_timeout=SECONDS_TO_REPORT))
        encoding = connection.info.parameter_status("server_encoding")
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '4s'; SET LOCAL statement_timeout = '4s'")
            cursor.execute(RECORD_RUN, history_row(settings, report, encoding))
        connection.commit()
        connection.close()
    except Exception as error:
        state = getattr(error, "pgcode", None)
        # No state: the warehouse is unreachable. The error that ended the run is already logged.
        said = report.message or ""
        is_said = said.startswith("warehouse: ") and "[%s]" % state in said
        # After a COMMIT without an answer the row may be there already.
        if state and not is_said and watchdog.outcome == ROLLED_BACK:
            log.warning("warehouse: %s (%s [%s]); %s", NOT_RECORDED, server_words(error, settings), state,
                        next_step_for_history(state, "analytics.athlete_sync_run", settings))


def next_step_for_history(state: str, table: str, settings: Settings) -> str:
    """What to run where `table` refused a row with SQLSTATE `state`: setup, or what shows why."""
    if state in ("3F000", "42P01", "42703", "42501"):
        return "run once: %s" % names_for_advice(settings.warehouse, settings)["setup"]
    database = quoted(settings.warehouse.libpq.get("dbname", "?"))
    if state == "55P03":
        return ("it is locked; psql -c \"SELECT pid, mode FROM pg_locks WHERE relation = '%s'::regclass\" %s"
                " shows by whom" % (table, database))
    return "psql -c '\\d+ %s' %s shows its constraints and triggers" % (table, database)


def history_row(settings: Settings, report: Report, encoding: str) -> Dict[str, Any]:
    """The parameters of RECORD_RUN. Where the warehouse may lack a character, it is written as \\uXXXX."""
    message = report.message
    if message and encoding != "UTF8":
        message = message.encode("ascii", "backslashreplace").decode()
    dimension_rows = None if report.inserted is None else report.in_dimension + report.inserted
    run_id = report.run_id or psycopg2.extensions.AsIs("DEFAULT")
    return dict(vars(report), run_id=run_id, message=message, target=target_of(settings), seconds=report.seconds(),
                dimension_rows=dimension_rows,
                rejects=json.dumps([shown(reject) for reject in report.rejects]), host=platform.node(), version=VERSION,
                max_age=settings["SYNC_MAX_AGE"])


def shown(reject: Dict[str, Optional[str]]) -> Dict[str, Optional[str]]:
    """What may be kept of a reject: if the columns were swapped, its uuid is a name."""
    uuid = reject["uuid"]
    looks_like_one = uuid is None or re.match(r"(?=.*[0-9])[0-9A-Fa-f{}-]+$", uuid)
    return reject if looks_like_one else dict(reject, uuid="(not shown)")


def target_of(settings: Settings) -> str:
    """The dimension's name as the history holds it, however the settings spell it."""
    return ".".join(quoted(part) for part in settings["WH_TABLE"].identifier.strings)


PING_SECONDS = 10
SECONDS_TO_REPORT = 5


class Notifier:
    """Pings the result and, if it failed, writes it into the history; in threads, as either may hang."""

    def __init__(self, settings: Settings, report: Report, watchdog: Watchdog):
        self.settings, self.report, self.watchdog = settings, report, watchdog
        self.url = settings["SYNC_PING_URL"]
        self.start = in_background(lambda: ping(self.url, "start", "")) if self.url else None

    def send_result(self) -> None:
        """Wait as long as pings may take, but at most SECONDS_TO_REPORT after a stop or the deadline."""
        pinging = in_background(self.ping_result) if self.url else None
        recording = in_background(self.record) if self.is_to_be_recorded() else None
        now = time.monotonic()
        end = now if self.watchdog.stopped_by else max(now, self.watchdog.ends_at)
        until = min(now + 2 * PING_SECONDS, end + SECONDS_TO_REPORT)
        if recording:
            recording.join(SECONDS_TO_REPORT)
        if pinging:
            pinging.join(max(0.0, until - time.monotonic()))
        if pinging and pinging.is_alive():
            log.warning("ping: SYNC_PING_URL/%s has not answered in time", self.event())

    def is_to_be_recorded(self) -> bool:
        """A failure, unless the warehouse itself did not let the run in: it would not do so now."""
        was_let_in = any(database.endpoint.side == "warehouse" for database in self.watchdog.databases)
        return self.report.exit_code != OK and (was_let_in or self.watchdog.stopped_by is not None)

    def record(self) -> None:
        record_failure(self.settings, self.report, self.watchdog)

    def ping_result(self) -> None:
        """After the start's ping, or the service would believe that the next run is under way."""
        if self.start:
            self.start.join()
        ping(self.url, self.event(), self.report.text_line())

    def event(self) -> str:
        """A skipped run is no success: the run that holds the lock may still fail."""
        return "log" if self.report.result == "skipped" else str(self.report.exit_code)


def ping_early_end(argv: List[str], report: Report) -> None:
    """Ping also when the command line or the settings are wrong, if SYNC_PING_URL is valid."""
    if {"--dry-run", "--check", "--status"} & set(argv):
        return
    try:
        url = read_ping_url(early_setting(argv, "SYNC_PING_URL"))
    except ValueError:  # what is wrong has been said
        return
    in_background(lambda: ping(url, str(report.exit_code), report.text_line())).join(SECONDS_TO_REPORT)


def in_background(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def ping(url: str, event: str, body: str) -> None:
    import urllib.request  # here, because most runs do not ping, and the import is slow
    try:
        urllib.request.urlopen("%s/%s" % (url, event), body.encode(), PING_SECONDS).close()
    except Exception as error:  # a ping never fails the run
        log.warning("ping: SYNC_PING_URL/%s failed: %s", event, type(error).__name__)


# ---------------------------------------------------------------------------------------------
# Looking: --check and --status change nothing; --diff says who changes
# ---------------------------------------------------------------------------------------------


class Check(NamedTuple):
    """A line of --check. `code` is what a run would exit with because of it."""

    level: str
    side: str
    subject: str
    found: str
    next_step: str = ""
    code: int = OK


def show_checks(options: argparse.Namespace, report: Report) -> None:
    """Take the steps of a run with made-up athletes, roll them back, and ask what a run does not ask."""
    if not options.verbose:
        logging.getLogger().setLevel(logging.ERROR)  # the lines of the steps would say it all twice
    try:
        settings = read_settings(options.env_file)
    except SyncError as problem:
        checks = [failed("settings", problem)]
    else:
        checks = check_settings(settings) + check_env_file(env_path(options.env_file))
        with Watchdog(settings["SYNC_DEADLINE"], report) as watchdog:
            rehearse(settings, options, watchdog, checks)
    # In the order of the run: it would end at the first.
    report.exit_code = next((check.code for check in checks if check.code), OK)
    report.quiet = report.quiet and all(check.level == "ok" for check in checks)
    if report.as_json:
        report.answer = json.dumps({"exit_code": report.exit_code,
                                    "checks": [check._asdict() for check in checks]})
    else:
        report.answer = "\n".join(check_lines(checks, options.verbose))


def check_lines(checks: List[Check], verbose: bool) -> List[str]:
    """Warnings and failures in full. What is well is counted for each side, or listed with -v."""
    lines = []
    for check in checks:
        if verbose or check.level != "ok":
            lines.append("%-4s %-9s %-12s %s" % (check.level, check.side, check.subject, check.found))
            lines += ["     -> " + check.next_step] if check.next_step else []
    for side in ("settings", "app", "warehouse"):
        lines.append("%s: %d ok" % (side, sum(check.side == side and check.level == "ok" for check in checks)))
    return lines + [verdict_of(checks)]


def verdict_of(checks: List[Check]) -> str:
    counts = ["%d %s%s" % (count, word, "" if count == 1 else "s") for word, count in (
        ("failure", sum(check.level == "FAIL" for check in checks)),
        ("warning", sum(check.level == "warn" for check in checks))) if count]
    ready = "Not ready" if any(check.code for check in checks) else "Ready"
    return ", ".join([ready] + counts)


def failed(subject: str, problem: SyncError) -> Check:
    return Check("FAIL", problem.side, subject, problem.what, problem.next_step, problem.code)


def check_settings(settings: Settings) -> List[Check]:
    """Say where each setting came from, without the value of a secret."""
    checks = []
    for setting in SETTINGS:
        text, source = settings.found.get(setting.name, (setting.default, "default"))
        if text is not None:
            secret = setting.name.endswith(("_PASSWORD", "_URL"))
            come_from = {"file": "from .env", "environment": "from the environment"}.get(source, source)
            checks.append(Check("ok", "settings", source, "%s = %s (%s)" % (
                setting.name, "(hidden)" if secret else text, come_from)))
    for name in settings.unknown:
        checks.append(Check("warn", "settings", "name", name + " is no setting", "correct it, or leave it out"))
    for endpoint in (settings.app, settings.warehouse):
        checks += check_password(endpoint, settings)
    return checks


def check_env_file(path: Path) -> List[Check]:
    if others_may_read(path):
        return [Check("warn", "settings", "file", "others may read %s" % path, "chmod 600 '%s'" % path)]
    return [Check("ok", "settings", "file", "%s%s" % (path, "" if path.exists() else " is not there"))]


def check_password(endpoint: Endpoint, settings: Settings) -> List[Check]:
    password = endpoint.libpq.get("password") or ""
    if password == "CHANGE_ME":
        return [Check("warn", "settings", "password", endpoint.prefix + "_PASSWORD is still CHANGE_ME",
                      "ALTER ROLE {user} WITH PASSWORD '...'; and set {prefix}_PASSWORD".format(
                          **names_for_advice(endpoint, settings)))]
    if len(password) > 1 and password[0] == password[-1] and password[0] in "\"'":
        return [Check("warn", "settings", "password",
                      endpoint.prefix + "_PASSWORD begins and ends with a quote",
                      "leave the quotes out, or let the script read .env by itself")]
    return []


class Look(NamedTuple):
    """A query that a run does not make. Each row is a warning: what was found, and how to fix it."""

    subject: str
    question: str


ENCODING = Look("encoding", """
SELECT current_setting('server_encoding'),
       'a name that this encoding lacks stops a run; the mend is a new database: ENCODING ''UTF8'' TEMPLATE template0'
 WHERE current_setting('server_encoding') <> 'UTF8'
""")

APP_LOOKS = [
    ENCODING,
    Look("read only", """
SELECT 'the role is a superuser', 'as another superuser: ALTER ROLE {{user}} NOSUPERUSER;'
  FROM pg_catalog.pg_roles
 WHERE rolname = current_user AND rolsuper
 UNION ALL
(SELECT 'the role may write ' || pg_class.oid::regclass,
        'REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON TABLE ' || pg_class.oid::regclass || ' FROM '
        || coalesce(string_agg(DISTINCT CASE WHEN held.grantee = 0 THEN 'PUBLIC'
                                             ELSE held.grantee::regrole::text END, ', '),
                    current_user::text) || ';'
   FROM pg_catalog.pg_class
   JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
   LEFT JOIN LATERAL (SELECT (aclexplode(acl)).*
                        FROM (SELECT relacl AS acl
                               UNION ALL
                              SELECT attacl FROM pg_catalog.pg_attribute WHERE attrelid = pg_class.oid) AS acls
                     ) AS held
     ON held.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
    AND (held.grantee = 0 OR pg_has_role(held.grantee, 'USAGE'))
  WHERE relkind IN ('r', 'p', 'v', 'f')
    AND nspname <> 'information_schema' AND nspname !~ '^pg_'
    AND NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
    AND has_schema_privilege(relnamespace, 'USAGE')
    AND (has_table_privilege(pg_class.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
         OR has_any_column_privilege(pg_class.oid, 'INSERT, UPDATE'))
  GROUP BY pg_class.oid
  ORDER BY 1
  LIMIT 3)
"""),
    Look("row security", """
SELECT 'policies may hide rows', 'as a superuser: ALTER ROLE {{user}} BYPASSRLS;'
 WHERE row_security_active({app_table_text}::regclass)
"""),
]

WAREHOUSE_LOOKS = [
    ENCODING,
    Look("triggers", """
SELECT quote_ident(tgname), 'ALTER TABLE {{table}} DISABLE TRIGGER ' || quote_ident(tgname) || ';'
  FROM pg_catalog.pg_trigger
 WHERE tgrelid = {dimension_text}::regclass AND NOT tgisinternal AND tgenabled <> 'D'
"""),
    Look("cheap reruns", """
SELECT 'index ' || indexrelid::regclass || ' is rewritten with every stamp',
       coalesce('ALTER TABLE {{table}} DROP CONSTRAINT ' || quote_ident(conname) || ';',
                'DROP INDEX ' || indexrelid::regclass || ';')
  FROM pg_catalog.pg_index
  JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
  LEFT JOIN pg_catalog.pg_constraint ON conindid = indexrelid
 WHERE indrelid = {dimension_text}::regclass AND attname = 'source_synced_at'
 UNION ALL
SELECT 'fillfactor ' || fillfactor, 'ALTER TABLE {{table}} SET (fillfactor = 50);'
  FROM (SELECT coalesce(substring(array_to_string(reloptions, ' ') FROM 'fillfactor=([0-9]+)'),
                        '100')::integer AS fillfactor
          FROM pg_catalog.pg_class
         WHERE oid = {dimension_text}::regclass AND relkind = 'r') AS dimension
 WHERE fillfactor > 70
"""),
    Look("numbering", """
SELECT 'the role may not number runs', 'GRANT USAGE ON SEQUENCE ' || sequence || ' TO {{user}};'
  FROM pg_get_serial_sequence('analytics.athlete_sync_run', 'run_id') AS sequence
 WHERE NOT has_sequence_privilege(sequence, 'USAGE')
"""),
    Look("status", """
SELECT 'the role may not read analytics.' || relname, 'GRANT SELECT ON TABLE analytics.' || relname || ' TO {{user}};'
  FROM pg_catalog.pg_class
 WHERE relname IN ('athlete_sync_run', 'athlete_sync_health')
   AND relnamespace::regnamespace::text = 'analytics'
   AND NOT has_table_privilege(pg_class.oid, 'SELECT')
 UNION ALL
SELECT 'there is no analytics.athlete_sync_health', 'run again: {{setup}}'
 WHERE NOT EXISTS (SELECT 1
                     FROM pg_catalog.pg_class
                    WHERE relname = 'athlete_sync_health'
                      AND relnamespace::regnamespace::text = 'analytics')
"""),
]


# ON CONFLICT draws a number for each athlete that it meets, new or not. bigint has enough of them.
SERIAL = Look("serial", """
SELECT 'column ' || quote_ident(attname) || ' loses a number for each athlete in each run',
       'SYNC_REFRESH=never; or give it and its sequence the type bigint'
  FROM pg_catalog.pg_attribute AS attribute
  LEFT JOIN pg_catalog.pg_attrdef ON adrelid = attrelid AND adnum = attnum
 WHERE attrelid = {dimension_text}::regclass
   AND atttypid IN ('smallint'::regtype, 'integer'::regtype)
   AND (pg_get_expr(adbin, adrelid) LIKE 'nextval(%' OR to_jsonb(attribute) ->> 'attidentity' IN ('a', 'd'))
""")


def look_around(database: Database, looks: List[Look]) -> List[Check]:
    """Ask each question and roll it back. If one fails for a reason that matters, the run's own steps fail too."""
    side, advice = database.endpoint.side, names_for_advice(database.endpoint, database.settings)
    checks = [Check("ok", side, "login", database.endpoint.describe()), check_tls(database)]
    if database.backend != database.connection.info.backend_pid:
        checks.append(Check("ok", side, "pooler", "there is one; a run is one transaction"))
    for look in looks:
        database.run("SAVEPOINT before_look")
        nothing = "nothing to tell"
        try:
            rows = database.run(look.question).fetchall()
        except SyncError:
            rows, nothing = [], "could not be asked"
        database.run("ROLLBACK TO SAVEPOINT before_look")
        checks += [Check("warn", side, look.subject, found, re.sub(
            "{(user|table|setup)}", lambda name: advice[name.group(1)], mend)) for found, mend in rows]
        checks += [] if rows else [Check("ok", side, look.subject, nothing)]
    return checks


READ_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float"


def rehearse(settings: Settings, options: argparse.Namespace, watchdog: Watchdog, checks: List[Check]) -> None:
    """The steps of sync and carry_athletes, in their order. What fails on one side does not hide the other."""
    app_was_tried, stamps_never = False, settings["SYNC_REFRESH"] == "never"
    with noting_failure(checks), connect(settings.warehouse, settings, watchdog) as warehouse:
        checks += look_around(warehouse, WAREHOUSE_LOOKS + ([] if stamps_never else [SERIAL]))
        clock = warehouse.fetch_row(READ_CLOCK)[0] - time.time()
        is_free = lock_is_free(warehouse, checks)
        refuse_inheritance(warehouse)
        warehouse.run(CREATE_STAGING)
        app_was_tried = True
        rehearse_app(settings, options, watchdog, checks, warehouse, clock)
        if is_free:  # else it would wait for the other run
            rehearse_writing(warehouse)
            checks.append(Check("ok", "warehouse", "run", "made-up athletes were written and rolled back"))
        checks += rehearse_history(warehouse)
    if not app_was_tried:
        rehearse_app(settings, options, watchdog, checks)


@contextmanager
def noting_failure(checks: List[Check]) -> Iterator[None]:
    try:
        yield
    except SyncError as problem:
        checks.append(failed("run" if problem.code == SQL_OR_DATA else "login", problem))


def lock_is_free(warehouse: Database, checks: List[Check]) -> bool:
    warehouse.run("SAVEPOINT before_lock")
    is_free: bool = warehouse.fetch_row(TAKE_LOCK)[0]
    warehouse.run("ROLLBACK TO SAVEPOINT before_lock")  # else a run that begins meanwhile would be skipped
    holder = lock_holder(warehouse) or "a run that has just ended"
    checks.append(Check("ok", "warehouse", "run's lock", "free") if is_free else
                  Check("warn", "warehouse", "run's lock", "held by %s, so nothing was written" % str(holder),
                        "wait for that run to end"))
    return is_free


def rehearse_app(settings: Settings, options: argparse.Namespace, watchdog: Watchdog, checks: List[Check],
                 warehouse: Optional[Database] = None, warehouse_clock: float = 0.0) -> None:
    """Read the app as a run does, into the warehouse's staging if there is one, which is emptied again."""
    with noting_failure(checks), connect(settings.app, settings, watchdog, lock_source) as app:
        checks += look_around(app, APP_LOOKS)
        if not warehouse:
            app.copy(EXTRACT_ATHLETES, io.BytesIO())
            return
        checks.append(check_clocks(app.fetch_row(READ_CLOCK)[0] - time.time(), warehouse_clock))
        warehouse.run("SAVEPOINT before_app")
        report = Report(quiet=True)
        try:
            settle_duplicates(warehouse, stream_athletes(app, warehouse, report, None), report)
        finally:
            warehouse.run("ROLLBACK TO SAVEPOINT before_app")
        checks.append(check_rejects(report))
        refuse_rejects(report, options)


def check_rejects(report: Report) -> Check:
    if report.rejected:
        return Check("warn", "app", "rows", "%d of %d rows would be rejected: %s" % (
            report.rejected, report.source, report.reasons()), "mend them in the app: --dry-run --json lists them")
    return Check("ok", "app", "rows", "%d rows, none rejected" % report.source)


# Two, to detect a UNIQUE index on source_synced_at. Names that a usual CHECK accepts.
MAKE_UP_ATHLETES = """
INSERT INTO pg_temp.tmp_athlete_dim
SELECT md5(random()::text || clock_timestamp())::uuid, name
  FROM unnest(ARRAY['Ann Aa', 'Ann Ab']) AS name
"""
RENAME_MADE_UP = "UPDATE pg_temp.tmp_athlete_dim SET full_name = replace(full_name, 'A', 'B')"
DROP_CHANGES = "DROP TABLE IF EXISTS pg_temp.tmp_athlete_change"


def rehearse_writing(warehouse: Database) -> None:
    """Insert the made-up athletes, then rename them: the two things that an upsert does."""
    for make_up in (MAKE_UP_ATHLETES, RENAME_MADE_UP):
        warehouse.run(make_up)
        rows = compare_with_dimension(warehouse, Athletes(2, 2), Report())
        upsert_athletes(warehouse, rows, Report())
        prove_agreement(warehouse)
        warehouse.run(DROP_CHANGES)


def rehearse_history(warehouse: Database) -> List[Check]:
    """Without a number from the sequence, which no rollback would give back."""
    row = history_row(warehouse.settings, Report(run_id=-1), warehouse.encoding())
    checks = []
    for subject, statement, values in (
            ("run history", RECORD_RUN, row),
            ("renames", RECORD_RENAMES, {"run_id": -1, "rows": sql.SQL(STAGING)})):
        warehouse.run("SAVEPOINT before_history; SET LOCAL lock_timeout = '5s'")
        try:
            warehouse.run(statement, **values)
            checks.append(Check("ok", "warehouse", subject, "can be written"))
        except SyncError as problem:
            setup = names_for_advice(warehouse.endpoint, warehouse.settings)["setup"]
            checks.append(Check("warn", "warehouse", subject, problem.what, "run again: " + setup))
        warehouse.run("ROLLBACK TO SAVEPOINT before_history")
    return checks


def check_tls(database: Database) -> Check:
    endpoint, host = database.endpoint, database.endpoint.libpq.get("host") or "/"
    if database.connection.info.ssl_in_use:
        return Check("ok", endpoint.side, "TLS", "on")
    if host in ("localhost", "::1") or host.startswith(("127.", "/")):
        return Check("ok", endpoint.side, "TLS", "off, within this machine")
    return Check("warn", endpoint.side, "TLS", "off: names travel in the open",
                 "set %s_SSLMODE=require, better verify-full" % endpoint.prefix)


def check_clocks(app_clock: float, warehouse_clock: float) -> Check:
    apart = abs(app_clock - warehouse_clock)
    if apart > 60:
        return Check("warn", "both", "clocks", "%.0f s apart" % apart, "timedatectl status, on both")
    return Check("ok", "app", "clocks", "%.0f s apart" % apart)


# The verdict of the view analytics.athlete_sync_health, which uses the SYNC_MAX_AGE of the last run.
READ_HEALTH = """
WITH run AS (
    SELECT * FROM analytics.athlete_sync_run WHERE target = %(target)s
), success AS (
    SELECT max(finished_at) AS finished_at,
           max(finished_at) FILTER (WHERE mode = 'full') AS full_finished_at
      FROM run
     WHERE result = 'ok'
), last AS (
    SELECT result FROM run WHERE result <> 'skipped' ORDER BY run_id DESC LIMIT 1
)
SELECT CASE WHEN last.result IS NULL                                         THEN 'never ran'
            WHEN last.result <> 'ok'                                         THEN 'failing'
            WHEN success.full_finished_at >= now() - %(max_age)s::interval   THEN 'healthy'
            ELSE 'stale' END                                                 AS verdict,
       to_char(success.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS last_success,
       extract(epoch FROM now() - success.finished_at)::bigint               AS age_seconds
  FROM success
  LEFT JOIN last ON true
"""

READ_LAST_RUNS = """
SELECT to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS started_at,
       round(extract(epoch FROM finished_at - started_at)::numeric, 2)::float AS seconds,
       mode, result, exit_code, source_rows AS source, inserted, updated, unchanged, missing,
       rejected, repeated, rejects, message
  FROM analytics.athlete_sync_run
 WHERE target = %(target)s
 ORDER BY run_id DESC
 LIMIT 10
"""

READ_LAST_FULL_RUN = """
SELECT extract(epoch FROM now() - finished_at)::bigint, rejected, missing
  FROM analytics.athlete_sync_run
 WHERE target = %(target)s AND result = 'ok' AND mode = 'full'
 ORDER BY run_id DESC
 LIMIT 1
"""


def show_status(settings: Settings, report: Report, watchdog: Watchdog) -> None:
    """Say whether the warehouse is fresh, from the run history. Exit code 0 if so, 3 if not."""
    target = target_of(settings)
    with connect(settings.warehouse, settings, watchdog) as warehouse, history_is_meant(warehouse):
        verdict, last_success, age = warehouse.fetch_row(
            READ_HEALTH, target=target, max_age=settings["SYNC_MAX_AGE"])
        cursor = warehouse.run(READ_LAST_RUNS, target=target)
        runs = [dict(zip([column.name for column in cursor.description], row)) for row in cursor]
        full = warehouse.run(READ_LAST_FULL_RUN, target=target).fetchone()
        standing = int(warehouse.fetch_row(COUNT_STANDING_REJECTS, target=target)[0])
        rejects = last_rejects(warehouse, target)
        holder = lock_holder(warehouse)
    running = str(holder) if holder else None
    report.exit_code = OK if verdict == "healthy" else SQL_OR_DATA
    if report.as_json:
        report.answer = json.dumps({
            "verdict": verdict, "exit_code": report.exit_code, "last_success": last_success,
            "age_seconds": age, "running": running, "last_full_run": full and {
                "age_seconds": full[0], "rejected": full[1], "missing": full[2],
                "rejected_since": standing - (full[1] or 0)}, "runs": runs})
    else:
        report.answer = "\n".join(
            ["%s: %s" % (verdict, "last success %s, %s ago" % (last_success, in_words(age)) if last_success
                         else "no success yet" if runs else "not run yet: make sync")]
            + last_failure(verdict, runs)
            + last_full_run(full, standing)
            + ["running: %s" % running] * bool(running) + table_of_runs(runs) + rejects)


@contextmanager
def history_is_meant(warehouse: Database) -> Iterator[None]:
    """What is missing here is the history, not the dimension, so the advice is to run setup."""
    try:
        yield
    except SyncError as problem:
        if is_missing_or_refused(problem):
            problem.next_step = "run: " + names_for_advice(warehouse.endpoint, warehouse.settings)["setup"]
        raise


def last_full_run(full: Optional[Row], standing: int) -> List[str]:
    if not full:
        return []
    rejected, missing = ("-" if count is None else count for count in full[1:])
    since = standing - (full[1] or 0)
    return ["last full run %s ago: %s rejected, %s missing" % (in_words(full[0]), rejected, missing)
            + ("; %d more rejected since, by incremental runs" % since if since else "")]


def last_failure(verdict: str, runs: List[Dict[str, Any]]) -> List[str]:
    failed_run = next((run for run in runs if run["result"] == "failed"), None)
    return ["failed %(started_at)s: %(message)s" % failed_run] if failed_run and verdict == "failing" else []


def table_of_runs(runs: List[Dict[str, Any]]) -> List[str]:
    """At most 80 columns; what is not known is a hyphen."""
    if not runs:
        return []
    lines = ["", "started UTC   secs mode        result   source inserted updated missing rejected"]
    for run in runs:
        known = {name: "-" if value is None else value for name, value in run.items()}
        known["started_at"] = run["started_at"][5:16].replace("T", " ")
        lines.append("%(started_at)s %(seconds)6.1f %(mode)-11s %(result)-7s %(source)7s %(inserted)8s"
                     " %(updated)7s %(missing)7s %(rejected)8s" % known)
    return lines


LIST_LAST_REJECTS = """
SELECT DISTINCT reject ->> 'uuid', reject ->> 'reason'
  FROM analytics.athlete_sync_run, jsonb_array_elements(rejects) AS reject
 WHERE target = %(target)s
   AND run_id >= (SELECT coalesce(max(run_id), 0)
                    FROM analytics.athlete_sync_run
                   WHERE target = %(target)s
                     AND result = 'ok'
                     AND mode = 'full')
 ORDER BY 2, 1
 LIMIT 100
"""


def last_rejects(warehouse: Database, target: str) -> List[str]:
    """Those of the last full run and of all since: no incremental run reads them again, unless they change."""
    lines = ["  %s: %s" % (ascii(uuid), reason) for uuid, reason in warehouse.run(LIST_LAST_REJECTS, target=target)]
    return ["", "rejected by the last full run and since:"] + lines if lines else []


def in_words(seconds: int) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return "%d %s" % (seconds // length, unit)
    return "%d seconds" % seconds


# --diff. Its names go to stdout alone, because they were asked for there.
LIST_CHANGES = """
SELECT coalesce(json_agg(change ORDER BY change.uuid), '[]')
  FROM (%s ORDER BY uuid LIMIT 100) AS change
"""
LIST_UPDATED = LIST_CHANGES % RENAMED

LIST_INSERTED = LIST_CHANGES % """
        SELECT staged.athlete_uuid AS uuid, staged.full_name AS name
          FROM {rows} AS staged
          LEFT JOIN {dimension} AS known ON known.athlete_uuid = staged.athlete_uuid
         WHERE staged.full_name IS NOT NULL
           AND known.athlete_uuid IS NULL
"""

# OFFSET 0, because Citus refuses to put a distributed table on this side of a join with a temporary one,
# but not a subquery that it must read first.
LIST_MISSING = LIST_CHANGES % """
        SELECT known.athlete_uuid AS uuid, known.full_name AS name
          FROM (SELECT athlete_uuid, full_name FROM {dimension} OFFSET 0) AS known
          LEFT JOIN pg_temp.tmp_athlete_dim AS staged ON staged.athlete_uuid = known.athlete_uuid
         WHERE staged.athlete_uuid IS NULL
"""


def note_changes(warehouse: Database, rows: RowsToWrite, report: Report) -> None:
    """List what the comparison counted. The missing are None where they are not known."""
    changes: Dict[str, Any] = {
        "inserted": warehouse.fetch_row(LIST_INSERTED, rows=sql.SQL(rows.table))[0] if report.inserted else [],
        "updated": warehouse.fetch_row(LIST_UPDATED, rows=sql.SQL(rows.table))[0] if report.updated else [],
        "missing": None if report.missing is None else []}
    if report.missing:
        changes["missing"], = warehouse.try_row(LIST_MISSING) or (None,)
        if changes["missing"] is None:
            log.warning("warehouse: this server does not list who is missing; it was only counted")
    changes["not_listed"] = {kind: None if listed is None else getattr(report, kind) - len(listed)
                             for kind, listed in changes.items()}
    report.changes = changes


CHANGE_MARKS = [("inserted", "+", "32"), ("updated", "~", "33"), ("missing", "-", "31")]


def change_lines(report: Report) -> List[str]:
    """Coloured on a terminal, unless NO_COLOR is set. A Windows console without colours has no TERM."""
    coloured = (sys.stdout and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
                and os.environ.get("TERM", "dumb") != "dumb")
    lines = []
    changes = report.changes or {}
    for kind, mark, colour in CHANGE_MARKS if changes else []:
        begin, end = ("\033[%sm" % colour, "\033[0m") if coloured else ("", "")
        for change in changes[kind] or []:
            names = [one_line(name) for key, name in change.items() if key != "uuid"]
            lines.append("%s%s %s %s%s" % (begin, mark, change["uuid"], " -> ".join(names), end))
        if changes["not_listed"][kind]:
            lines.append("%s%s and %d more%s" % (begin, mark, changes["not_listed"][kind], end))
    return lines


def one_line(name: Optional[str], longest: int = 60) -> str:
    """A name that is safe on a terminal: control and bidi characters escaped, quoted if ambiguous."""
    if name is None:
        return "NULL"
    shown = "".join(character if character.isprintable() and character != "\\" else ascii(character)[1:-1]
                    for character in name[:longest])
    if shown != shown.strip() or not shown or "->" in shown or shown[0] == '"' or shown == "NULL":
        shown = '"%s"' % shown
    return shown if len(name) <= longest else "%s... (%d characters)" % (shown, len(name))


# ---------------------------------------------------------------------------------------------
# Settings: one row each. settings.md and .env.example follow this table, and a test says so.
# ---------------------------------------------------------------------------------------------


class SqlName(NamedTuple):
    """A name as its owner spelled it, for messages, and as psycopg2 quotes it, for SQL."""

    spelling: str
    identifier: sql.Identifier


IDENTIFIER = re.compile(r'"((?:[^"]|"")+)"|([^\W\d][\w$]*)')
ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def read_name(text: str) -> SqlName:
    """Read a possibly dotted name as SQL reads it: unquoted folds to lower case, quoted is exact."""
    parts, position = [], 0
    while position <= len(text):
        match = IDENTIFIER.match(text, position)
        if not match or text[match.end():match.end() + 1] not in ("", "."):
            raise ValueError('not a name as SQL writes it, such as public."User"')
        exact, plain = match.groups()
        # Postgres folds only ASCII letters of a UTF-8 name.
        parts.append(plain.translate(ASCII_LOWER) if plain else exact.replace('""', '"'))
        position = match.end() + 1
    return SqlName(text, sql.Identifier(*parts))


def read_dimension(text: str) -> SqlName:
    """A name with its schema: the search_path of a role must not decide what is written."""
    dimension = read_name(text)
    if len(dimension.identifier.strings) != 2:
        raise ValueError("must name its schema too, such as analytics.athlete_dim")
    return dimension


def read_column(text: str) -> SqlName:
    column = read_name(text)
    if len(column.identifier.strings) > 1:
        raise ValueError("a column's name has no dot; quote it if it does: \"a.b\"")
    return column


def whole_number(text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ValueError("must be a whole number from %d to %d" % (least, most))
    return int(text)


def read_port(text: str) -> int:
    return whole_number(text, 1, 65535)


def read_count(text: str) -> int:
    return whole_number(text, 1, 1000000)


def read_percent(text: str) -> int:
    return whole_number(text, 0, 100)


def read_sslmode(text: str) -> str:
    modes = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
    if text not in modes:
        raise ValueError("must be one of " + ", ".join(modes))
    return text


def read_period(text: str) -> str:
    """Read 30m, 12h or 2d and return it as Postgres reads an interval."""
    units = {"m": "minutes", "h": "hours", "d": "days"}
    if not re.fullmatch(r"[0-9]{1,6}[mhd]", text):
        raise ValueError("must be a time such as 30m, 12h or 2d")
    return "%d %s" % (int(text[:-1]), units[text[-1]])


def read_refresh(text: str) -> str:
    return text if text in ("always", "never") else read_period(text)


def read_ping_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise ValueError("must begin with http:// or https:// and a host")
    return text.rstrip("/")


IN_URLS = "in a password, a user or a database write @ : / ? # % as %40 %3A %2F %3F %23 %25"
URLS_GO_ELSEWHERE = "a URL goes into APP_DATABASE_URL or WH_DATABASE_URL, and there: " + IN_URLS

# Prisma's parameters that libpq does not need: APP_TABLE names the schema, and a run has one connection.
PRISMA_PARAMETERS = ("schema", "pgbouncer", "connection_limit", "pool_timeout", "socket_timeout",
                     "statement_cache_size")


def read_url(text: str) -> Dict[str, str]:
    """Read a libpq URL. No complaint quotes any of it: what libpq trips over may be the password."""
    url, left_out = without_prisma_parameters(text)
    try:
        libpq: Dict[str, str] = psycopg2.extensions.parse_dsn(url)
    except psycopg2.Error as error:
        unknown, query = re.search('URI query parameter: "([a-z_]+)"', str(error)), url.partition("?")[2]
        if unknown and unknown.group(1) + "=" in query and "@" not in query:  # else it may be of a password
            raise ValueError("has a parameter that libpq does not know: %s" % unknown.group(1)) from None
        raise ValueError("is not a libpq URL; " + IN_URLS) from None
    check_hosts(libpq)
    read_role(libpq.get("user", ""))
    read_database(libpq.get("dbname", ""))
    if "sslmode" in libpq:
        read_sslmode(libpq["sslmode"])
    if left_out:
        log.info("settings: Prisma's own parameters are left out of the URL: %s", ", ".join(left_out))
    return libpq


def without_prisma_parameters(text: str) -> Tuple[str, List[str]]:
    base, _, query = text.partition("?")
    parameters = [parameter for parameter in query.split("&") if parameter]
    kept = [parameter for parameter in parameters if parameter.partition("=")[0] not in PRISMA_PARAMETERS]
    left_out = [parameter.partition("=")[0] for parameter in parameters if parameter not in kept]
    return base + "?" * bool(kept) + "&".join(kept) if left_out else text, left_out


def check_hosts(libpq: Dict[str, str]) -> None:
    """Several hosts have one port each, or one for all. Raises ValueError."""
    hosts, ports = read_host(libpq.get("host", "")).split(","), libpq.get("port", "").split(",")
    for port in ports:
        if port:
            read_port(port)
    if len(ports) not in (1, len(hosts)):
        raise ValueError("has %d ports for %d hosts" % (len(ports), len(hosts)))


def read_host(text: str) -> str:
    """Host names, addresses or socket folders; not a URL: messages would show its password."""
    for host in text.split(","):
        is_folder = re.match("/[^/]", host)  # of Cloud SQL: /cloudsql/project:region:instance
        if "@" in host or not is_folder and (re.search(r"[/=\s]", host) or ":" in host and not is_ipv6(host)):
            raise ValueError("is not a host's name; " + URLS_GO_ELSEWHERE)
    return text


def is_ipv6(text: str) -> bool:
    return re.fullmatch(r"[0-9A-Fa-f:.]+(%\w+)?", text) is not None and text.count(":") >= 2


def read_database(text: str) -> str:
    if re.search("[@/:]|password *=", text):
        raise ValueError("is not a database's name; " + URLS_GO_ELSEWHERE)
    return text


def read_role(text: str) -> str:
    """Some roles do hold an @: those of cloud services."""
    if re.search("[/:]|password *=", text):
        raise ValueError("is not a role's name; " + URLS_GO_ELSEWHERE)
    return text


class Setting(NamedTuple):
    name: str
    default: Optional[str]
    read: Callable[[str], Any]
    meaning: str


def side_settings(prefix: str, side: str) -> List[Setting]:
    return [
        Setting(prefix + "_HOST", None, read_host, "host of the %s database" % side),
        Setting(prefix + "_PORT", "5432", read_port, "its port"),
        Setting(prefix + "_DB", None, read_database, "its name"),
        Setting(prefix + "_USER", None, read_role, "the role to log in as"),
        Setting(prefix + "_PASSWORD", None, str, "its password"),
        Setting(prefix + "_DATABASE_URL", None, read_url, "a libpq URL instead of the five above"),
        Setting(prefix + "_SSLMODE", None, read_sslmode, "TLS, as libpq's sslmode: require, verify-full, ..."),
        Setting(prefix + "_SSLROOTCERT", None, str, "file with the certificate authority to trust"),
    ]


SETTINGS = side_settings("APP", "app") + side_settings("WH", "warehouse") + [
    Setting("APP_TABLE", 'public."User"', read_name, "the app's table of athletes"),
    Setting("APP_UUID_COLUMN", "uuid", read_column, "its column with the athlete's uuid"),
    Setting("APP_NAME_COLUMN", "name", read_column, "its column with the athlete's name"),
    Setting("WH_TABLE", "analytics.athlete_dim", read_dimension, "the warehouse's dimension, with its schema"),
    Setting("SYNC_CONNECT_TIMEOUT", "10", read_count, "seconds that one attempt to connect may take"),
    Setting("SYNC_CONNECT_ATTEMPTS", "3", read_count, "attempts to connect; the waits between them grow"),
    Setting("SYNC_DEADLINE", "3600", read_count, "seconds; a run that takes longer is stopped and exits 2"),
    Setting("SYNC_MAX_UPDATED_PERCENT", "50", read_percent,
            "if more than this percent of the athletes would be updated, the run stops and changes nothing; "
            "from 20 athletes on"),
    Setting("SYNC_REFRESH", "always", read_refresh,
            "when an unchanged athlete gets a new source_synced_at: always, after a time (30m, 12h, 2d), or never"),
    Setting("SYNC_MAX_AGE", "2d", read_period,
            "if the last full success is older, --status and the health view say stale"),
    Setting("SYNC_PING_URL", None, read_ping_url,
            "a URL to tell of start and result, as healthchecks.io expects"),
    Setting("SYNC_LOG_FILE", None, str,
            "the log and the result line go there too; at most 5 MB, and one older file beside it"),
]


class SettingText(NamedTuple):
    """A setting's text and where it came from."""

    text: str
    source: str


@dataclass(frozen=True)
class Endpoint:
    """One database: the side it is on, and what libpq needs to reach it."""

    side: str
    prefix: str
    libpq: Dict[str, Any] = field(repr=False)  # holds the password

    def describe(self) -> str:
        at = dict({"host": "the default host", "port": 5432, "dbname": "?", "user": "?"}, **self.libpq)
        return "%(dbname)s on %(host)s port %(port)s as %(user)s" % at


@dataclass(frozen=True)
class Settings:
    app: Endpoint
    warehouse: Endpoint
    values: Dict[str, Any] = field(repr=False)
    found: Dict[str, SettingText] = field(repr=False)
    unknown: List[str]  # names in .env that look like settings: another program's, or misspelt

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def names(self, connection: Any) -> Dict[str, sql.Composable]:
        """The configured names, for the SQL's {placeholders}; ..._text is a string literal."""
        app_table, dimension = self["APP_TABLE"].identifier, self["WH_TABLE"].identifier
        uuid_column, name_column = self["APP_UUID_COLUMN"].identifier, self["APP_NAME_COLUMN"].identifier
        return {
            "app_table": app_table,
            "app_table_text": sql.Literal(app_table.as_string(connection)),
            "uuid_column": uuid_column,
            "uuid_column_text": sql.Literal(uuid_column.strings[0]),
            "name_column": name_column,
            "name_column_text": sql.Literal(name_column.strings[0]),
            "dimension": dimension,
            "dimension_text": sql.Literal(dimension.as_string(connection)),
        }


def schema_of(table: sql.Identifier) -> Optional[str]:
    return table.strings[-2] if len(table.strings) > 1 else None


def read_settings(env_file: Optional[str]) -> Settings:
    """Read every setting and report all problems at once.

    Raises SyncError (configuration).
    """
    from_file = read_env_file(env_file)
    found = {name: SettingText(text, "file") for name, text in from_file.items() if text}
    found.update({name: SettingText(text, "environment") for name, text in os.environ.items() if text})
    values: Dict[str, Any] = {}
    problems = misspelt(from_file)
    for prefix in ("APP", "WH"):
        let_environment_win(prefix, found)
    for setting in SETTINGS:
        try:
            values[setting.name] = read_setting(setting, found)
        except ValueError as problem:
            problems.append("%s %s" % (setting.name, problem))
    app = read_endpoint("app", "APP", values, found, problems)
    warehouse = read_endpoint("warehouse", "WH", values, found, problems)
    if problems:
        raise missing_or_malformed(problems, found, env_file)
    return Settings(app, warehouse, values, found, unknown_names(from_file, ("APP_", "WH_")))


def read_setting(setting: Setting, found: Dict[str, SettingText]) -> Any:
    if setting.name not in found:
        return None if setting.default is None else setting.read(setting.default)
    text = found[setting.name].text
    try:
        text.encode()
    except UnicodeEncodeError:  # such as a byte of Latin 1 in the environment
        raise ValueError("is not UTF-8 text") from None
    if "\0" in text:
        raise ValueError("holds a NUL character")
    example = re.search("your_(app|warehouse)_host", text)
    if example:
        raise ValueError("is still the example's " + example.group())
    return setting.read(text)


def unknown_names(names: Iterable[str], prefixes: Tuple[str, ...]) -> List[str]:
    known = [setting.name for setting in SETTINGS]
    return [name for name in names if name.startswith(prefixes) and name not in known]


def misspelt(from_file: Iterable[str]) -> List[str]:
    """A misspelt limit limits nothing, so what begins with SYNC_ in the .env file must be a setting."""
    problems = []
    for name in unknown_names(from_file, ("SYNC_",)):
        near = difflib.get_close_matches(name, [setting.name for setting in SETTINGS], 1)
        problems.append("%s is no setting%s" % (name, "; is it %s?" % near[0] if near else ""))
    return problems


THE_FIVE = ("HOST", "PORT", "DB", "USER", "PASSWORD")


def let_environment_win(prefix: str, found: Dict[str, SettingText]) -> None:
    """A URL in the file gives way to one of the five in the environment, as everything else there does."""
    url = found.get(prefix + "_DATABASE_URL")
    winners = [name for name in (prefix + "_" + word for word in THE_FIVE)
               if name in found and found[name].source == "environment"]
    if url and url.source == "file" and winners:
        log.info("settings: %s in the environment wins over %s_DATABASE_URL in the file", winners[0], prefix)
        del found[prefix + "_DATABASE_URL"]


def missing_or_malformed(problems: List[str], found: Dict[str, SettingText],
                         env_file: Optional[str]) -> SyncError:
    path = env_path(env_file)
    if not path.exists() and not any(setting.name in found for setting in SETTINGS):
        return SyncError(CONFIGURATION, "settings", "there is no %s, and no setting in the environment" % path,
                         "cp .env.example .env, and fill in the ten lines at its top")
    return SyncError(CONFIGURATION, "settings", "; ".join(problems),
                     "set them in %s or in the environment; .env.example shows them all" % path)


def read_env_file(env_file: Optional[str]) -> Dict[str, Optional[str]]:
    path = env_path(env_file)
    try:
        if not env_file and not path.exists():
            return {}
        if others_may_read(path):
            log.warning("settings: others may read %s; chmod 600 %s", path, path)
        with path.open(encoding="utf-8-sig") as lines:  # editors on Windows write a byte order mark
            # Without interpolation: a $ in a password is a $.
            return dict(dotenv_values(stream=lines, interpolate=False))
    except (OSError, ValueError) as problem:  # UnicodeDecodeError is a ValueError
        reason = getattr(problem, "strerror", None) or "it is not UTF-8 text"
        raise SyncError(CONFIGURATION, "settings", "cannot read %s: %s" % (path, reason),
                        "make it a readable UTF-8 file, or name another with --env-file") from problem


def env_path(env_file: Optional[str]) -> Path:
    return Path(env_file) if env_file else PROJECT / ".env"


def others_may_read(path: Path) -> bool:
    return os.name == "posix" and path.is_file() and path.stat().st_mode & 0o077 != 0


def read_endpoint(side: str, prefix: str, values: Dict[str, Any], found: Dict[str, SettingText],
                  problems: List[str]) -> Endpoint:
    of = {name[len(prefix) + 1:]: value for name, value in values.items() if name.startswith(prefix)}
    if of.get("DATABASE_URL"):
        libpq = dict(of["DATABASE_URL"])
    else:
        for name in (prefix + "_" + word for word in THE_FIVE if word != "PORT"):
            if name not in found:
                problems.append("%s is missing" % name)
        libpq = {"host": of.get("HOST"), "port": of.get("PORT"), "dbname": of.get("DB"),
                 "user": of.get("USER"), "password": of.get("PASSWORD")}
    for name, parameter in (("SSLMODE", "sslmode"), ("SSLROOTCERT", "sslrootcert")):
        if of.get(name):
            libpq[parameter] = of[name]
    return Endpoint(side, prefix, libpq)


def forget_libpq_variables() -> None:
    """A PGHOSTADDR or PGSERVICE of the user's shell must not redirect what the settings say."""
    for name in [name for name in os.environ if name.startswith("PG") and not name.startswith("PGSSL")]:
        del os.environ[name]


# ---------------------------------------------------------------------------------------------
# Connections and the deadline
# ---------------------------------------------------------------------------------------------

# As pg_dump does, switch off the time-outs that a DBA has set for people. The run's deadline takes their
# place, on the server too, where it holds even if this process is gone. Each with the first version that
# knows it. SET, not set_config: a SELECT would take the snapshot that must come after the source's lock.
SET_TIMEOUTS = [
    (90500, "SET LOCAL lock_timeout = 0"),
    (90500, "SET LOCAL statement_timeout = {milliseconds}"),
    (90600, "SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"),
    (170000, "SET LOCAL transaction_timeout = {milliseconds}"),
]

# With these the server notices that this process is gone: by the check during a statement, which only Linux
# is sure to accept; by keepalives while it waits for COPY's data, where none of its time-outs applies.
# Milliseconds, but seconds for keepalives.
WATCH_THE_CLIENT = """
SELECT pg_backend_pid(),
       set_config(known.name, wanted.value, true)
  FROM pg_catalog.pg_settings AS known
  JOIN (VALUES ('client_connection_check_interval', '5000'),
               ('tcp_keepalives_idle', '30'),
               ('tcp_keepalives_interval', '10'),
               ('tcp_keepalives_count', '3'),
               ('tcp_user_timeout', '60000')) AS wanted (name, value)
    ON known.name = wanted.name
 WHERE known.name <> 'client_connection_check_interval' OR version() LIKE '%linux%'
"""


@contextmanager
def connect(endpoint: Endpoint, settings: Settings, watchdog: Watchdog,
            before_snapshot: Callable[[Database], None] = lambda _: None) -> Iterator[Database]:
    """Open a side's connection and its one transaction; always close it.

    Raises SyncError (connection).
    """
    connection = open_with_retries(endpoint, settings, watchdog)
    database = Database(endpoint, connection, settings, watchdog)
    watchdog.databases.append(database)
    try:
        database.begin("REPEATABLE READ")
        log.info("%s: connected to %s", endpoint.side, endpoint.describe())
        before_snapshot(database)
        database.backend = database.fetch_row(WATCH_THE_CLIENT)[0]
        yield database
    finally:
        connection.close()


def open_with_retries(endpoint: Endpoint, settings: Settings, watchdog: Watchdog) -> Any:
    attempts = settings["SYNC_CONNECT_ATTEMPTS"]
    for attempt in range(1, attempts + 1):
        watchdog.check()
        try:
            return psycopg2.connect(**connection_parameters(endpoint, settings, watchdog))
        except (psycopg2.Error, UnicodeDecodeError) as error:
            watchdog.check()
            explanation = explanation_of_refusal(error)
            if attempt == attempts or not explanation.worth_retrying:
                raise problem_of(explanation, last_attempt(words_of(error)), endpoint, settings) from error
        pause = 2 ** (attempt - 1)
        log.info("%s: attempt %d of %d failed (%s); next in %d s",
                 endpoint.side, attempt, attempts, explanation.meaning, pause)
        watchdog.sleep(pause)
    raise AssertionError("at least one attempt is made")


def connection_parameters(endpoint: Endpoint, settings: Settings, watchdog: Watchdog) -> Dict[str, Any]:
    """libpq's parameters. A silent peer is noticed after about a minute, where the platform can tell."""
    ours = {"application_name": "sync_athletes", "keepalives_idle": 30, "keepalives_interval": 10,
            "keepalives_count": 3, "tcp_user_timeout": 60000}
    seconds = min(settings["SYNC_CONNECT_TIMEOUT"], int(watchdog.seconds_left()))
    return dict(ours, **dict(endpoint.libpq, client_encoding="UTF8", connect_timeout=max(1, seconds)))


class Database:
    """One side's open connection. Whatever goes wrong here is raised as a SyncError of that side."""

    def __init__(self, endpoint: Endpoint, connection: Any, settings: Settings, watchdog: Watchdog):
        self.endpoint, self.connection = endpoint, connection
        self.settings, self.watchdog = settings, watchdog
        # connect() replaces it by the server's own pid: a pooler reports another number.
        self.backend: int = connection.info.backend_pid

    def begin(self, isolation_of_app: str) -> None:
        """Begin the transaction anew; the server ends it two seconds after our deadline, whose message is better."""
        self.connection.rollback()
        if self.endpoint.side == "app":
            self.connection.set_session(isolation_level=isolation_of_app, readonly=True)
        milliseconds = sql.Literal(min(int(self.watchdog.seconds_left() + 2) * 1000, 2 ** 31 - 1))
        self.run("; ".join(statement for version, statement in SET_TIMEOUTS
                           if version <= self.connection.server_version), milliseconds=milliseconds)

    def run(self, statement: str, **values: Any) -> Any:
        """Run one of the SQL constants. Values that are SQL fill {placeholders}, others %(parameters)s."""
        with self.errors_explained():
            fragments = {name: value for name, value in values.items() if isinstance(value, sql.Composable)}
            parameters = {name: value for name, value in values.items() if name not in fragments}
            names = dict(self.settings.names(self.connection), **fragments)
            if parameters:  # psycopg2 would take a % in a name for a placeholder
                names = {name: sql.SQL(value.as_string(self.connection).replace("%", "%%"))
                         for name, value in names.items()}
            cursor = self.connection.cursor()
            cursor.execute(sql.SQL(statement).format(**names), parameters or None)
            return cursor

    def fetch_row(self, statement: str, **values: Any) -> Any:
        return self.run(statement, **values).fetchone()

    def try_row(self, statement: str, **values: Any) -> Optional[Row]:
        """Return the row; None if there is none, or if a table, column or privilege is missing."""
        self.run("SAVEPOINT before_try")
        try:
            row: Optional[Row] = self.fetch_row(statement, **values)
        except SyncError as problem:
            if not is_missing_or_refused(problem):
                raise
            log.debug("%s", problem)
            row = None
        self.run("ROLLBACK TO SAVEPOINT before_try")
        return row

    def copy(self, statement: str, file: Any, **fragments: sql.Composable) -> int:
        """Run a COPY from or to `file`. Returns the number of rows."""
        with self.errors_explained():
            cursor = self.connection.cursor()
            names = dict(self.settings.names(self.connection), **fragments)
            cursor.copy_expert(sql.SQL(statement).format(**names), file, size=CHUNK_BYTES)
            return int(cursor.rowcount)

    def encoding(self) -> str:
        return str(self.connection.info.parameter_status("server_encoding"))

    def commit(self) -> None:
        with self.errors_explained():
            self.watchdog.outcome = "whether it was committed is not known"
            self.connection.commit()

    def rollback(self) -> None:
        with self.errors_explained():
            self.connection.rollback()

    def hang_up(self) -> None:
        """Cut the line from another thread: libpq, blocked on its socket, wakes and sees the end."""
        try:
            with socket.fromfd(self.connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as line:
                line.shutdown(socket.SHUT_RDWR)
        except (OSError, psycopg2.Error):
            pass  # it is closed already

    def cancel(self) -> None:
        """Ask the server, over a second connection, to cancel what the first one waits for.

        Not connection.cancel(): psycopg2 keeps Python's lock while it waits for the answer, and a
        frozen server's answer would never come.
        """
        try:
            helper = psycopg2.connect(**dict(self.endpoint.libpq, connect_timeout=2))
            helper.cursor().execute("SELECT pg_cancel_backend(%s)", [self.backend])
            helper.close()
        except (psycopg2.Error, UnicodeDecodeError):
            pass  # it is closed already, or the server is out of reach

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        self.watchdog.check()
        try:
            yield
        except psycopg2.Error as error:
            self.watchdog.check()
            raise explain_error(error, self) from error


ROLLED_BACK = "rolled back"


class Watchdog(threading.Thread):
    """Ends the run at its deadline, or on Ctrl-C, SIGTERM or SIGHUP, wherever it stands.

    A thread, because the main one may sit in libpq, where Python's signal handlers do not run. It
    asks the servers to cancel, then cuts the connections, then says the result itself: each step only if
    the one before has not helped. After the result, ping and history have SECONDS_TO_REPORT, or until a
    second signal; then the process ends. Signals reach it through a socket, which works on Windows too. If
    this process is frozen, SET_TIMEOUTS and the next run's end_holder take its place.
    """

    SECONDS_TO_CANCEL, SECONDS_TO_UNWIND = 0.8, 0.6

    def __init__(self, deadline: int, report: Report):
        super().__init__(daemon=True)
        self.ends_at = report.started + deadline
        self.deadline, self.report = deadline, report
        self.databases: List[Database] = []
        self.stopped_by: Optional[SyncError] = None
        self.outcome = ROLLED_BACK
        self.over = threading.Event()
        self.wake_reader, self.wake_writer = socket.socketpair()
        self.wake_writer.setblocking(False)

    def run(self) -> None:
        name = self.wait_for_signal(self.seconds_left())
        if self.over.is_set():
            return
        if name:
            self.stopped_by = SyncError(UNEXPECTED, "sync", "interrupted by %s; %s" % (name, self.outcome),
                                        "run it again; that is always safe")
        else:
            self.stopped_by = SyncError(
                CONNECTION, "sync", "the deadline of %d s passed; %s" % (self.deadline, self.outcome),
                "see which side the log names last, or raise SYNC_DEADLINE")
        self.stop_everything()
        self.wait_for_signal(SECONDS_TO_REPORT + 0.5)
        if not self.over.is_set():
            os._exit(self.report.exit_code)

    def stop_everything(self) -> None:
        for database in self.databases:
            in_background(database.cancel)  # a frozen server blocks it
        if self.has_unwound(self.SECONDS_TO_CANCEL):
            return
        for database in self.databases:
            database.hang_up()
        if not self.has_unwound(self.SECONDS_TO_UNWIND):
            in_background(self.say_result_ourselves)

    def __enter__(self) -> Watchdog:
        for signal_ in SIGNALS_TO_STOP:
            signal.signal(signal_, lambda *_: None)  # set_wakeup_fd writes its number into the socket
        signal.set_wakeup_fd(self.wake_writer.fileno())
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        signal.set_wakeup_fd(-1)
        self.wake_writer.send(b"\0")
        self.join()

    def seconds_left(self) -> float:
        return max(0.0, self.ends_at - time.monotonic())

    def check(self) -> None:
        if self.stopped_by:
            raise self.stopped_by

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stopped_by:
            self.over.wait(0.1)
        self.check()

    def wait_for_signal(self, seconds: float) -> Optional[str]:
        """Return the signal's name; None after `seconds`, or on the byte 0, sent when the wait is over."""
        readable, _, _ = select.select([self.wake_reader], [], [], seconds)
        number = self.wake_reader.recv(1)[0] if readable else 0
        return signal.Signals(number).name if number else None

    def has_unwound(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.report.said.is_set():
            if self.over.wait(0.02):
                return True
        return self.report.said.is_set()

    def say_result_ourselves(self) -> None:
        self.report.say_result(self.stopped_by)
        self.wake_writer.send(b"\0")


# ---------------------------------------------------------------------------------------------
# What errors mean, and what to type next
# ---------------------------------------------------------------------------------------------


class Explanation(NamedTuple):
    code: int
    meaning: str
    next_step: str
    worth_retrying: bool = False


AGAIN = "run it again; if it stays, look at the server's log"

# By SQLSTATE, else by its first two characters: postgresql.org/docs/current/errcodes-appendix.html
EXPLANATIONS = {
    "08": Explanation(CONNECTION, "the connection was lost", AGAIN),
    "21000": Explanation(SQL_OR_DATA, "the app holds one uuid twice in spite of its unique index",
                         "in the app: REINDEX TABLE on APP_TABLE, then mend the repeats that it names"),
    "22021": Explanation(SQL_OR_DATA, "text is not valid in the database's encoding",
                         "psql -c 'SHOW server_encoding' {database}; it should be UTF8"),
    "22P05": Explanation(SQL_OR_DATA, "a character does not exist in the database's encoding",
                         "psql -c 'SHOW server_encoding' {database}; it should be UTF8"),
    "23502": Explanation(SQL_OR_DATA, "the sync does not fill a column that is NOT NULL",
                         "ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL; or give it a default"),
    "23": Explanation(SQL_OR_DATA, "a constraint refuses a row", "psql -c '\\d+ {table}' {database}"),
    "25006": Explanation(SQL_OR_DATA, "the database is read-only",
                     "point {prefix}_HOST at the primary; or, if it is no standby: BEGIN READ WRITE; ALTER ROLE {user} "
                         "IN DATABASE {database} SET default_transaction_read_only = off; COMMIT;"),
    "28": Explanation(CONNECTION, "the login was refused",
                      "check {prefix}_USER and {prefix}_PASSWORD, and pg_hba.conf on the server"),
    "3D000": Explanation(CONNECTION, "the database does not exist", "check {prefix}_DB"),
    "3F000": Explanation(SQL_OR_DATA, "the schema does not exist",
                         "check {prefix}_TABLE and {prefix}_DB, or run: {setup}"),
    "40001": Explanation(SQL_OR_DATA, "the server could not keep the snapshot",
                         "run it again; on a standby, raise max_standby_streaming_delay"),
    "40P01": Explanation(SQL_OR_DATA, "deadlock with another session", "run it again"),
    "42501": Explanation(SQL_OR_DATA, "a privilege is missing", "as the owner, in {database}: {grants}"),
    "42703": Explanation(SQL_OR_DATA, "a column does not exist", "{columns}"),
    "42804": Explanation(SQL_OR_DATA, "a column has a type that the sync cannot write", "{columns}"),
    "42883": Explanation(SQL_OR_DATA, "a column has a type that the sync cannot compare", "{columns}"),
    "42P01": Explanation(SQL_OR_DATA, "the table does not exist",
                         "check {prefix}_TABLE (mixed case is quoted: public.\"User\") and {prefix}_DB, "
                         "or run: {setup}"),
    "42P10": Explanation(SQL_OR_DATA, "the key has no unique index",
                         "CREATE UNIQUE INDEX ON {table} (athlete_uuid);"),
    "53100": Explanation(SQL_OR_DATA, "the server's disk is full", "make room on the server"),
    "53200": Explanation(SQL_OR_DATA, "the server is out of memory", AGAIN),
    "53300": Explanation(CONNECTION, "the server has no connection free",
                         "run it again, or raise max_connections"),
    "53400": Explanation(SQL_OR_DATA, "a limit of the server is reached",
                         "raise the limit it names, for {user} or for all"),
    "55P03": Explanation(SQL_OR_DATA, "another session holds a lock",
                         "SELECT * FROM pg_stat_activity WHERE state <> 'idle'; then run it again"),
    "57014": Explanation(SQL_OR_DATA, "the statement was cancelled",
                         "if a timeout is named: ALTER ROLE {user} SET statement_timeout = 0; then run it again"),
    "57": Explanation(CONNECTION, "the server ended the connection", "run it again once the server is up"),
}
REFUSED_STATEMENT = Explanation(SQL_OR_DATA, "the server refused the statement", AGAIN)
# It shares 42501 with a missing privilege; source_function, which is never translated, tells it apart.
ROW_SECURITY = Explanation(SQL_OR_DATA, "row-level security refuses a row",
                           "ALTER ROLE {user} BYPASSRLS; or a policy that lets it see and write every row")
NOT_THE_TABLE = Explanation(SQL_OR_DATA, "a trigger, function or view refused", "look for triggers, functions, "
                            "sequences and views: psql -c '\\d+ {table}' {database}, and the server's log")

NOT_THERE = ("check {prefix}_HOST and {prefix}_PORT, and that the server is up: "
             "pg_isready -h {host} -p {port}")
NO_ANSWER = Explanation(CONNECTION, "no answer in time",
                        "check {prefix}_HOST, {prefix}_PORT and the firewall, or raise SYNC_CONNECT_TIMEOUT",
                    True)
NOT_UP = Explanation(CONNECTION, "the server is not up", "run it again once it is", True)
HUNG_UP = Explanation(CONNECTION, "the server hung up", AGAIN, True)
FULL = EXPLANATIONS["53300"]._replace(worth_retrying=True)

# Before the login libpq gives words only, no SQLSTATE. The first that fits counts.
CONNECT_EXPLANATIONS = [
    ("refused", Explanation(CONNECTION, "nothing listens there", NOT_THERE, True)),
    ("timeout expired", NO_ANSWER),
    ("timed out", NO_ANSWER),
    ("starting up", NOT_UP),
    ("shutting down", NOT_UP),
    ("not yet accepting", NOT_UP),
    ("in recovery mode", NOT_UP),
    ("too many", FULL),
    ("connection slots", FULL),
    ("closed the connection", HUNG_UP),
    ("reset by peer", HUNG_UP),
    ("translate host name", Explanation(CONNECTION, "unknown host", "check {prefix}_HOST: nslookup {host}")),
    ("password", Explanation(CONNECTION, "the login was refused",
                             "check {prefix}_USER and {prefix}_PASSWORD; if the role exists, as a superuser: "
                             "ALTER ROLE {user} WITH PASSWORD '...' VALID UNTIL 'infinity';")),
    ("pg_hba.conf", Explanation(CONNECTION, "the server does not let this host, role or database in",
                                "add a line to its pg_hba.conf, or {prefix}_SSLMODE=require if it asks for TLS")),
    ("certificate", Explanation(CONNECTION, "the server's certificate is not trusted",
                                "set {prefix}_SSLROOTCERT to its authority's file, "
                                "and {prefix}_HOST to the name in it")),
    ("SSL", Explanation(CONNECTION, "TLS could not be agreed on",
                        "{prefix}_SSLMODE=disable if the server has no TLS, =require if it insists on it")),
    ("not permitted to log in", Explanation(CONNECTION, "the role may not log in",
                                            "as a superuser: ALTER ROLE {user} LOGIN;")),
    ("permission denied for database", Explanation(CONNECTION, "the role may not connect to the database",
                                                   "GRANT CONNECT ON DATABASE {database} TO {user};")),
    ("database", EXPLANATIONS["3D000"]),
    ("role", Explanation(CONNECTION, "the role does not exist", "check {prefix}_USER, or run: {setup}")),
]
OTHER_REFUSAL = Explanation(CONNECTION, "the connection failed",
                            "see whether psql gets in: psql -h {host} -p {port} -U {user} {database}")

SETUP = {
    "app": "psql -h {host} -p {port} -U postgres -d {dbname} -v reader={role} -v table={name} -f sql/app_readonly.sql",
    "warehouse": "psql -h {host} -p {port} -U postgres -d {dbname} -v writer={role} -v table={name} "
                 "-f sql/warehouse_setup.sql",
}
GRANTS = {
    "app": "GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON TABLE {table} TO {user};",
    "warehouse": "GRANT TEMPORARY ON DATABASE {database} TO {user}; GRANT USAGE ON SCHEMA {schema} TO {user};"
                 " GRANT SELECT, INSERT, UPDATE ON TABLE {table} TO {user};",
}
COLUMNS = {
    "app": "check APP_UUID_COLUMN and APP_NAME_COLUMN (in .env mixed case is written '\"fullName\"')",
    "warehouse": "{table} needs athlete_uuid uuid, full_name text, source_synced_at timestamptz (psql: \\d {table})",
}


def explanation_of_refusal(error: Exception) -> Explanation:
    words = words_of(error)
    # Of several addresses, only one that is a Postgres server answers with FATAL.
    words = "\n".join(line for line in words.splitlines() if "FATAL" in line) or words
    words = re.sub('"[^"]*"', '""', words)  # a database may be called refused_orders
    return next((explanation for needle, explanation in CONNECT_EXPLANATIONS if needle in words), OTHER_REFUSAL)


def words_of(error: Exception) -> str:
    """The server's message; if it is not UTF-8, psycopg2 raises UnicodeDecodeError (its issue 1634).

    Before Python 3.11 that message is lost.
    """
    if isinstance(error, UnicodeDecodeError):
        return error.object.decode(errors="replace")
    return str(error) or "its words are not UTF-8 text"


def last_attempt(words: str) -> str:
    """libpq tells of each address it tried, each from a line of its own on; its hints begin with a tab."""
    lines = [line for line in words.strip().splitlines() if not line.startswith("\t")]
    begins = [place for place, line in enumerate(lines) if line.startswith("connection to server")]
    return " ".join(lines[begins[-1] if begins else -1:])


def explain_error(error: psycopg2.Error, database: Database) -> SyncError:
    state = error.pgcode
    if state:
        explanation = explanation_of(error, database)
        words = "%s [%s]" % (server_words(error, database.settings), state)
    else:  # it did not come from the server
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        explanation, words = EXPLANATIONS["08"], "%s; %s" % (first_line, database.watchdog.outcome)
    return problem_of(explanation, words, database.endpoint, database.settings,
                      column=quoted(error.diag.column_name or "?"))


def explanation_of(error: psycopg2.Error, database: Database) -> Explanation:
    """Advice about the table does not help where a trigger or a sequence is what failed."""
    state = error.pgcode
    if state == "42501" and error.diag.source_function == "ExecWithCheckOptions":
        return ROW_SECURITY
    table = database.settings["APP_TABLE" if database.endpoint.side == "app" else "WH_TABLE"].identifier
    granted_on = [*table.strings, schema_of(table) or "public", database.connection.info.dbname]
    is_named = re.search(r"(?<!\w)(%s)(?!\w)" % "|".join(map(re.escape, granted_on)), error.diag.message_primary)
    if (state[:2] in ("21", "23", "42") and not is_in_own_context(error)) or (state == "42501" and not is_named):
        return NOT_THE_TABLE
    return EXPLANATIONS.get(state) or EXPLANATIONS.get(state[:2]) or REFUSED_STATEMENT


def is_in_own_context(error: psycopg2.Error) -> bool:
    return all(OWN_CONTEXT.match(line) for line in (error.diag.context or "").splitlines())


# What cannot quote a row: connections, privileges, constraints' names, limits, time-outs, and the like.
CLASSES_WITHOUT_DATA = ("08", "0A", "21", "23", "25", "28", "3D", "40", "53", "54", "55", "57", "58")
CODES_WITHOUT_DATA = ("22021", "22P05", "42501", "42809", "42P10", "XX001", "XX002")

# Context that the server itself adds. Any other line comes from a function, a trigger or another server.
OWN_CONTEXT = re.compile(r"COPY tmp_athlete_dim, line|while (locking|updating|inserting|checking|rechecking)")


def server_words(error: psycopg2.Error, settings: Settings) -> str:
    """Return the server's message, unless it may quote a row.

    It may where it comes from a function, a trigger or another server, which its context then names; and
    where it is not about the run's own statement, which a position or the table's name shows.
    """
    message = str(error.diag.message_primary)
    is_ours = (error.diag.statement_position or error.pgcode.startswith(CLASSES_WITHOUT_DATA)
               or error.pgcode in CODES_WITHOUT_DATA or names_a_table(message, settings))
    if is_ours and is_in_own_context(error):
        return message
    return "(withheld, for it may quote a name; it is in the server's log)"


def names_a_table(message: str, settings: Settings) -> bool:
    """Whether the message quotes one configured table or schema, and nothing else."""
    tables = [settings[name].identifier.strings for name in ("APP_TABLE", "WH_TABLE")]
    quoted_names = re.findall('"([^"]+)"', message)
    return quoted_names in [[name] for table in tables for name in (".".join(table), *table)]


def problem_of(explanation: Explanation, words: str, endpoint: Endpoint, settings: Settings,
               **names: str) -> SyncError:
    return SyncError(explanation.code, endpoint.side, "%s: %s" % (explanation.meaning, words),
                       explanation.next_step.format(**names_for_advice(endpoint, settings), **names))


def names_for_advice(endpoint: Endpoint, settings: Settings) -> Dict[str, Any]:
    """This installation's names, so that what is said can be pasted."""
    side, libpq = endpoint.side, endpoint.libpq
    table = settings["APP_TABLE" if side == "app" else "WH_TABLE"]
    names = {
        "prefix": endpoint.prefix, "table": table.spelling,
        "schema": quoted(schema_of(table.identifier) or "public"),
        "user": quoted(libpq.get("user", "?")), "database": quoted(libpq.get("dbname", "?")),
        "host": libpq.get("host", "?"), "port": libpq.get("port", 5432),
    }
    names["setup"] = SETUP[side].format(**{key: shlex.quote(str(value)) for key, value in dict(
        host=names["host"], port=names["port"], dbname=libpq.get("dbname", "?"), role=libpq.get("user", "?"),
        name=table.spelling).items()})
    names.update(grants=GRANTS[side].format(**names), columns=COLUMNS[side].format(**names))
    return names


def quoted(name: str) -> str:
    return name if re.match(r"[a-z_][a-z0-9_]*$", name) else '"%s"' % name.replace('"', '""')


def is_missing_or_refused(problem: SyncError) -> bool:
    """A table, column, function or privilege is missing, as opposed to something having gone wrong."""
    return isinstance(problem.__cause__, (psycopg2.ProgrammingError, psycopg2.NotSupportedError))


def as_sync_error(error: Exception) -> SyncError:
    """Say where an unexpected error was raised, not its text, which may quote a row."""
    if isinstance(error, SyncError):
        return error
    place = traceback.extract_tb(error.__traceback__)[-1]
    problem = SyncError(UNEXPECTED, "sync", "unexpected %s at line %s of %s" % (
        type(error).__name__, place.lineno, Path(place.filename).name),
                        "run it again with -v and report what it prints")
    problem.__cause__ = error
    return problem


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # argparse itself would exit 2, which means connection
        raise SyncError(CONFIGURATION, "command line", message, "--help lists the options")

    def _print_message(self, message: str, file: Any = None) -> None:  # of --help and --version
        write_or_forget(file or sys.stdout, message)


def make_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="do it all, report it, and roll back")
    instead.add_argument("--check", action="store_true",
                         help="look at all that a run needs and say what to type; changes nothing")
    instead.add_argument("--status", action="store_true",
                         help="say from the run history whether the warehouse is fresh; 0 if so, 3 if not")
    parser.add_argument("--diff", action="store_true",
                        help="name the athletes that are new, renamed or missing, up to 100 of each")
    parser.add_argument("--incremental", action="store_true",
                        help="read only what changed since the last success, or all if that is not known")
    parser.add_argument("--strict", action="store_true", help="refuse the run if any row is rejected")
    parser.add_argument("--allow-updates", metavar="N", type=read_ceiling,
                        help="let up to N athletes be updated, whatever SYNC_MAX_UPDATED_PERCENT says")
    parser.add_argument("--env-file", metavar="PATH", help="read settings from here, not from .env")
    parser.add_argument("--log-file", metavar="PATH",  # find_log_file has seen it by then
                        help="append the log and the result to this file too, as SYNC_LOG_FILE does")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="say nothing unless something is wrong")
    loudness.add_argument("-v", "--verbose", action="store_true", help="add a traceback to failures")
    parser.add_argument("--version", action="version", version="%(prog)s " + VERSION)
    return parser


def read_command_line(argv: Optional[List[str]], report: Report) -> argparse.Namespace:
    """Raises SyncError (configuration)."""
    parser = make_parser()
    argv = sys.argv[1:] if argv is None else argv
    stderr, report.log_file = start_logging(argv)  # what the parser refuses is logged too
    report.as_json = "--json" in argv
    options = parser.parse_args(argv)
    if missing_package:
        raise SyncError(CONFIGURATION, "packages", str(missing_package), how_to_get_packages())
    if options.env_file == "":
        parser.error("--env-file names no file")
    usual = logging.WARNING if options.status else logging.INFO  # a status is its answer alone
    logging.getLogger().setLevel(logging.DEBUG if options.verbose else usual)
    stderr.setLevel(logging.WARNING if options.quiet else logging.NOTSET)
    report.dry_run, report.quiet, report.shows_changes = options.dry_run, options.quiet, options.diff
    return options


def how_to_get_packages() -> str:
    """Make install has put them into .venv; another Python does not see them there."""
    for python in (PROJECT / ".venv" / "bin" / "python", PROJECT / ".venv" / "Scripts" / "python.exe"):
        if python.exists() and Path(sys.prefix).resolve() != (PROJECT / ".venv").resolve():
            quote = shlex.quote if os.name == "posix" else '"{}"'.format
            return " ".join(map(quote, [str(python)] + sys.argv))
    return "make install, or: pip install -r python/requirements.txt"


def read_ceiling(text: str) -> int:
    try:
        return whole_number(text, 0, 999999999)
    except ValueError as problem:  # whose text argparse would leave out
        raise argparse.ArgumentTypeError(str(problem)) from None


def write_or_forget(stream: Any, text: str) -> None:
    """Write and flush. If nobody listens any more, or the disk is full, Python itself would exit 120."""
    if stream is None:  # closed by whoever started us
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def progress_bar(report: Report) -> Any:
    return tqdm(desc="app", unit=" athletes", unit_scale=True, leave=False,
                disable=report.quiet or not (sys.stderr and sys.stderr.isatty()))


# ---------------------------------------------------------------------------------------------
# The log: stderr, and a file if one is named
# ---------------------------------------------------------------------------------------------

def start_logging(argv: List[str]) -> Tuple[logging.Handler, Optional[LogFile]]:
    """Log to stderr and, if one is named, to the log file; return both."""
    logging.Formatter.converter = time.gmtime
    logging.raiseExceptions = False  # a log that cannot be written is no reason to fail
    path = find_log_file(argv)
    stderr, file = logging.StreamHandler(sys.stderr), LogFile(path) if path else None
    # The file first: its own warning must not follow a failure's line on stderr.
    logging.basicConfig(level=logging.INFO, handlers=([file] if file else []) + [stderr],
                        datefmt="%Y-%m-%dT%H:%M:%SZ", format="%(asctime)s %(levelname)s %(message)s")
    return stderr, file


def find_log_file(argv: List[str]) -> Optional[Path]:
    """--log-file, else SYNC_LOG_FILE. A relative path counts from the project: schedulers start programs anywhere."""
    path = option_in(argv, "--log-file") or early_setting(argv, "SYNC_LOG_FILE")
    return PROJECT / path if path else None


# As dotenv reads it. But a backslash stays one, because it may be part of a path.
IN_ENV_FILE = r"""(?mx) ^[ \t]*(?:export[ \t]+)?%s[ \t]*=
                  (?:[ \t]*'([^'\r\n]*)'|[ \t]*"([^"\r\n]*)"|([^\r\n]*?))
                  (?:[ \t]+\#[^\r\n]*)?[ \t]*\r?$"""


def early_setting(argv: List[str], name: str) -> str:
    """A setting for a run that cannot read its settings: a package is missing, or the settings are wrong."""
    if os.environ.get(name):
        return os.environ[name]
    try:
        text = env_path(option_in(argv, "--env-file")).read_bytes()
    except OSError:
        return ""  # read_env_file reports it
    found = re.findall(IN_ENV_FILE % name, text.decode("utf-8-sig", "replace"))
    return "".join(found[-1]).strip() if found else ""


def option_in(argv: List[str], option: str) -> Optional[str]:
    value = None
    for word, following in zip(argv, argv[1:] + [None]):
        name, equals, text = word.partition("=")
        if name == option:
            value = text if equals else following
    return value  # argparse takes the last, too


class LogFile(logging.Handler):
    """Appends lines to a file of at most 5 MB, with one older file beside it.

    A lock makes each line one step, however many runs there are: Windows has no atomic append. The older
    file is a copy, because Windows renames no file that another program has open.
    """

    MOST_BYTES = 5 * 1000 * 1000
    SECONDS_TO_WAIT = 1.0

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.pending, self.is_out_of_reach = path, b"", False

    def emit(self, record: logging.LogRecord) -> None:
        self.write(self.format(record))

    def write(self, line: str) -> None:
        """Append a line; one that cannot be written now is written with the next. It never fails."""
        self.pending += (line.replace("\n", os.linesep) + os.linesep).encode("utf-8", "backslashreplace")
        until = time.monotonic() + self.SECONDS_TO_WAIT
        while self.pending:
            try:
                self.append_pending()
            except OSError as error:
                if self.is_out_of_reach:
                    return
                if time.monotonic() > until:
                    self.is_out_of_reach = True
                    log.warning("log file: cannot write %s: %s", error.filename or self.path,
                                error.strerror or error)
                    return
                time.sleep(0.02)

    def append_pending(self) -> None:
        with open(str(self.path), "a+b") as file:
            lock_file(file.fileno())
            size = file.seek(0, os.SEEK_END)
            if size and size + len(self.pending) > self.MOST_BYTES:
                file.seek(0)
                with open(str(self.path) + ".1", "wb") as older:
                    older.write(file.read())
                file.truncate(0)
            file.write(self.pending)
            file.flush()
        self.pending = b""


def lock_file(descriptor: int) -> None:
    """Lock it until it is closed. Raises OSError if another run has the lock."""
    if sys.platform == "win32":
        import msvcrt
        os.lseek(descriptor, 2 ** 31 - 2, os.SEEK_SET)  # beyond the end: Windows bars readers of what it locks
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        return
    import fcntl
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise
        # A file system without locks. There an append is atomic, or nearly so.


if __name__ == "__main__":
    raise SystemExit(main())
