"""What the sync costs beside plain `psql | psql` doing the same work, on two throwaway servers.

  make bench                            1,000,000 athletes, 3 rounds
  make bench ROWS=100000 ROUNDS=5       any number
  make bench CHART=1                    10,000 athletes to ROWS, drawn as python/lab/bench.svg
  make bench PEERS=1                    beside dlt, Sling, and pandas with execute_values too (peers.py)

Each round runs every case twice from the same state, once by the script, once by psql (COPY out |
COPY into a temp table, ANALYZE, the same INSERT, COMMIT; no counting, no proof), by turns first.
Both warehouses lie on one server. Both dimensions are vacuumed before each run, as autovacuum would
between two nights, and each round begins with a checkpoint. fsync is on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import peers
from athletes import fill_app
from servers import PROJECT, SCRIPT, Lab, two_servers

OURS, PSQL = "warehouse", "warehouse_psql"  # two databases, so that each side keeps its own state

COPY_OUT = 'COPY (SELECT uuid, name FROM public."User") TO STDOUT'

# psql reads the rows from its standard input, so its statements come with -c, one by one.
PSQL_LOAD = ["BEGIN", "CREATE TEMP TABLE staged (athlete_uuid UUID, full_name TEXT) ON COMMIT DROP",
             "COPY staged FROM STDIN"]

PSQL_ALL = """
INSERT INTO analytics.athlete_dim (athlete_uuid, full_name, source_synced_at)
SELECT athlete_uuid, full_name, now() FROM staged ORDER BY athlete_uuid
    ON CONFLICT (athlete_uuid) DO UPDATE
   SET full_name = EXCLUDED.full_name, source_synced_at = EXCLUDED.source_synced_at
"""

PSQL_CHANGED = """
INSERT INTO analytics.athlete_dim (athlete_uuid, full_name, source_synced_at)
SELECT staged.athlete_uuid, staged.full_name, now()
  FROM staged LEFT JOIN analytics.athlete_dim AS known USING (athlete_uuid)
 WHERE known.athlete_uuid IS NULL OR known.full_name IS DISTINCT FROM staged.full_name
 ORDER BY staged.athlete_uuid
    ON CONFLICT (athlete_uuid) DO UPDATE
   SET full_name = EXCLUDED.full_name, source_synced_at = EXCLUDED.source_synced_at
"""

RENAME_1_PERCENT = """
UPDATE public."User" SET name = name || ' II' WHERE hashtext(uuid) % 100 = 0;
INSERT INTO public."User" (uuid, name)
SELECT gen_random_uuid()::text, name FROM public."User" WHERE hashtext(uuid) % 100 = 1;
"""


RENAME_1000 = """
UPDATE public."User" SET name = name || ' III'
 WHERE uuid IN (SELECT uuid FROM public."User" ORDER BY md5(uuid) LIMIT 1000)
"""


class Case(NamedTuple):
    name: str
    refresh: str
    prepare_app: Optional[str]
    bar: float
    flags: Tuple[str, ...] = ()
    for_peers: str = ""  # what the peers call this case; they know no difference of always and never


CASES = [
    Case("first load", "always", None, 1.35, for_peers="first load"),
    Case("rerun, unchanged, always", "always", None, 1.35, for_peers="rerun, unchanged"),
    Case("rerun, unchanged, never", "never", None, 1.8),
    Case("1 % renamed, 1 % new, never", "never", RENAME_1_PERCENT, 1.8,
         for_peers="1 % renamed, 1 % new"),
    Case("1,000 renamed, --incremental", "never", RENAME_1000, 0.35, ("--incremental",)),
]


class Run(NamedTuple):
    seconds: float
    wal_bytes: int
    row_versions: int
    peak_bytes: int
    verdict: str = ""


Results = Dict[str, Dict[str, List[Run]]]  # by case, then by who


def main() -> int:
    options = read_command_line()
    # So that a checkpoint falls where a round begins, not by chance within one run.
    with two_servers(max_wal_size="'8GB'", checkpoint_timeout="'1h'") as lab:
        lab.set_up()
        lab.app.psql("-qc", 'ALTER TABLE public."User" ADD PRIMARY KEY (uuid)')  # Prisma's @id
        lab.warehouse.psql("-qc", "CREATE DATABASE %s" % PSQL, database="postgres")
        set_up_psql_warehouse(lab)
        peers.set_up(lab)
        header_text = header(lab, options)
        print(header_text + "\n")
        sizes = [size for size in (10000, 100000, 1000000) if size < options.rows and options.chart]
        others = peers.peers_to_be_had() if options.peers else []
        by_size = {size: bench(lab, size, options.rounds, others if size == options.rows else [])
                   for size in sizes + [options.rows]}
        print_table(by_size[options.rows])
        if options.chart:
            print_sizes(by_size)
        if options.peers:
            print_peers(by_size[options.rows], others)
        print_small_case(lab, options.rounds)
    if options.chart:
        draw_chart(by_size, header_text)
    return 0


def set_up_psql_warehouse(lab: Lab) -> None:
    lab.warehouse.psql("-qf", str(PROJECT / "sql" / "warehouse_setup.sql"), database=PSQL)


def bench(lab: Lab, rows: int, rounds: int, others: List[peers.Peer]) -> Results:
    names = [OURS, PSQL] + [peer.name for peer in others]
    results: Results = {case.name: {name: [] for name in names} for case in CASES}
    for round_ in range(rounds):
        start_over(lab, rows)
        for peer in others:
            peers.start_over(lab, peer)
        for case in CASES:
            if case.prepare_app:
                lab.app.psql("-qc", case.prepare_app)
            lab.app.psql("-qc", 'VACUUM ANALYZE public."User"')
            for who in ((OURS, PSQL), (PSQL, OURS))[round_ % 2]:
                run = measure(lab, who, case)
                results[case.name][who].append(with_verdict(lab, run, who) if others else run)
            for peer in others if case.for_peers else []:
                results[case.name][peer.name].append(measure_peer(lab, peer))
    return results


def with_verdict(lab: Lab, run: Run, database: str) -> Run:
    return run._replace(verdict=peers.verdict(lab, database, "analytics.athlete_dim"))


def start_over(lab: Lab, rows: int) -> None:
    lab.app.psql("-qc", 'TRUNCATE public."User"')
    fill_app(lab.app, rows)
    lab.app.psql("-q", stdin=peers.hostile_sql())
    for database in (OURS, PSQL):
        lab.warehouse.psql("-qc", "TRUNCATE analytics.athlete_dim", database=database)
    lab.warehouse.psql("-qc", "CHECKPOINT")


def measure(lab: Lab, who: str, case: Case) -> Run:
    def run() -> int:
        return run_script(lab, case) if who == OURS else run_psql(lab, case)
    return measured(lab, who, "analytics.athlete_dim", run)


def measure_peer(lab: Lab, peer: peers.Peer) -> Run:
    def run() -> int:
        return run_and_watch(peers.command(peer), peers.environment(lab, peer))
    run_ = measured(lab, peer.database, peer.table, run)
    return run_._replace(verdict=peers.verdict(lab, peer.database, peer.table, peer.columns))


def measured(lab: Lab, database: str, table: str, run: Callable[[], int]) -> Run:
    def ask(question: str) -> str:
        return lab.warehouse.psql("-qAtc", question, database=database).strip()
    if ask("SELECT to_regclass('%s')" % table):  # dlt and Sling make theirs at the first load
        ask("VACUUM ANALYZE " + table)
    before_lsn, before_xid = ask("SELECT pg_current_wal_insert_lsn()"), ask("SELECT txid_current()")
    started = time.perf_counter()
    peak = run()
    seconds = time.perf_counter() - started
    wal = int(ask("SELECT pg_current_wal_insert_lsn() - '%s'::pg_lsn" % before_lsn))
    versions = int(ask("SELECT count(*) FROM %s WHERE age(xmin) < txid_current() - %s" % (table, before_xid)))
    return Run(seconds, wal, versions, peak)


def run_script(lab: Lab, case: Case) -> int:
    return run_and_watch([sys.executable, str(SCRIPT), "-q"] + list(case.flags),
                         lab.environment(SYNC_REFRESH=case.refresh))


def run_and_watch(command: List[str], environment: Dict[str, str]) -> int:
    """Run a program and return its peak memory in bytes, as the operating system counts it."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        if status:
            output.seek(0)
            raise RuntimeError("%s failed:\n%s" % (command, output.read().decode(errors="replace")[-3000:]))
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_psql(lab: Lab, case: Case) -> int:
    extract = subprocess.Popen(lab.app.psql_command("-qc", COPY_OUT), env=lab.app.psql_environment(),
                               stdout=subprocess.PIPE)
    insert = PSQL_ALL if case.refresh == "always" else PSQL_CHANGED
    statements = PSQL_LOAD + ["ANALYZE staged", insert, "COMMIT"]
    arguments = [argument for statement in statements for argument in ("-c", statement)]
    load = subprocess.run(lab.warehouse.psql_command("-q", *arguments, database=PSQL),
                          env=lab.warehouse.psql_environment(), stdin=extract.stdout)
    if load.returncode or extract.wait():
        raise RuntimeError("psql failed")
    return 0


def print_table(results: Results) -> None:
    print("%-28s %7s %7s %6s %6s %10s %10s %8s" % (
        "case", "ours s", "psql s", "ratio", "bar", "WAL kB", "versions", "peak MB"))
    for case in CASES:
        ours, psql = results[case.name][OURS], results[case.name][PSQL]
        print("%-28s %7.2f %7.2f %6.2f %6.2f %10d %10d %8.0f" % (
            case.name, median(run.seconds for run in ours), median(run.seconds for run in psql),
            ratio(ours, psql), case.bar, median(run.wal_bytes for run in ours) / 1024,
            median(run.row_versions for run in ours), max(run.peak_bytes for run in ours) / 1e6))


def print_sizes(by_size: Dict[int, Results]) -> None:
    print("\n%-28s %12s %8s %8s" % ("case", "athletes", "ours s", "peak MB"))
    for case in CASES:
        for size in sorted(by_size):
            runs = by_size[size][case.name][OURS]
            print("%-28s %12s %8.2f %8.0f" % (case.name, format(size, ","), median(run.seconds for run in runs),
                                              max(run.peak_bytes for run in runs) / 1e6))


def print_peers(results: Results, others: List[peers.Peer]) -> None:
    print("\n%-22s %-16s %8s %8s %10s %10s  %s" % (
        "case", "by", "s", "peak MB", "WAL kB", "versions", "result"))
    for case in CASES:
        for who in [OURS, PSQL] + [peer.name for peer in others] if case.for_peers else []:
            runs = results[case.name][who]
            print("%-22s %-16s %8.2f %8s %10d %10d  %s" % (
                case.for_peers, NAMES.get(who, who), median(run.seconds for run in runs),
                "%.0f" % (max(run.peak_bytes for run in runs) / 1e6) if who != PSQL else "",
                median(run.wal_bytes for run in runs) / 1024, median(run.row_versions for run in runs),
                "; ".join(sorted({run.verdict for run in runs}))))


NAMES = {OURS: "the sync", PSQL: "psql | psql"}


def ratio(ours: List[Run], psql: List[Run]) -> float:
    """The median over the rounds of what each round's pair came to."""
    return median(mine.seconds / theirs.seconds for mine, theirs in zip(ours, psql))


def print_small_case(lab: Lab, rounds: int) -> None:
    start_over(lab, 10)
    case = Case("10 athletes", "always", None, 2.0)
    pairs = []
    for _ in range(max(rounds, 5)):
        run = measure(lab, OURS, case)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import pandas, psycopg2, dotenv"], check=True)
        pairs.append((run.seconds, time.perf_counter() - started))
    print("%-28s %7.2f %7.2f %6.2f %6.2f   (beside python -c \"import pandas, psycopg2, dotenv\")" % (
        case.name, median(ours for ours, _ in pairs), median(bare for _, bare in pairs),
        median(ours / bare for ours, bare in pairs), case.bar))


def header(lab: Lab, options: argparse.Namespace) -> str:
    version = lab.warehouse.psql("-qAtc", "SHOW server_version").strip()
    return "%s athletes, %d rounds, medians; PostgreSQL %s, Python %s, %s cores, %s" % (
        format(options.rows, ","), options.rounds, version, sys.version.split()[0], os.cpu_count(),
        time.strftime("%Y-%m-%d"))


def draw_chart(by_size: Dict[int, Results], title: str) -> None:
    """Draw the ratios at the largest size, and how both and our memory scale, into bench.svg."""
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "bench"  # the same figures give the same file
    from matplotlib import pyplot
    figure, (bars, lines, memory) = pyplot.subplots(1, 3, figsize=(15, 4.5))
    largest = by_size[max(by_size)]
    names = [case.name for case in CASES]
    bars.barh(names, [ratio(largest[name][OURS], largest[name][PSQL]) for name in names], color="#4477aa")
    for place, case in enumerate(CASES):
        bars.plot([case.bar] * 2, [place - 0.4, place + 0.4], color="#cc3311")
    bars.axvline(1, color="grey", linestyle=":")
    bars.invert_yaxis()
    bars.set_xlabel("seconds, ours / psql | psql (red: the bar it must stay under)")
    for case, colour in zip(CASES, ("#4477aa", "#228833", "#aa3377", "#ccbb44", "#66ccee")):
        for who, style in ((OURS, "-"), (PSQL, ":")):
            lines.plot(sorted(by_size), [median(run.seconds for run in by_size[size][case.name][who])
                                         for size in sorted(by_size)], style, marker="o", color=colour,
                       label=case.name if who == OURS else None)
        memory.plot(sorted(by_size), [max(run.peak_bytes for run in by_size[size][case.name][OURS]) / 1e6
                                      for size in sorted(by_size)], marker="o", color=colour)
    lines.set(xscale="log", yscale="log", xlabel="athletes", ylabel="seconds (dotted: psql | psql)")
    memory.set(xscale="log", xlabel="athletes", ylabel="peak memory, MB", ylim=(0, 120))
    lines.legend(fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.tight_layout()
    figure.savefig(str(PROJECT / "python" / "lab" / "bench.svg"), metadata={"Date": None})


def read_command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chart", action="store_true")
    parser.add_argument("--peers", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
