"""What the sync costs beside plain psql doing the same work, on two throwaway servers: a table for performance.md.

  make bench ROWS=10000,1000000 ROUNDS=3   above 1,000,000 athletes one round; ten thousand at least
  make bench PEERS=1                       beside dlt, Sling, and pandas with execute_values too (peers.py)
  make bench CHART=1                       drawn as python/lab/bench.svg

Each round runs every case from the same state by each of them, in turns forwards and backwards. psql does COPY out |
COPY into a temp table, ANALYZE, the same INSERT, COMMIT; it counts and proves nothing. Each writes a database of its
own on one server. All tables are vacuumed before each run, as autovacuum would between two nights; each round begins
with a checkpoint. fsync is on. Seconds and memory are of these rounds. What a run costs the servers comes from one
more round, watched (costs.py).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from statistics import median
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import peers
from athletes import fill_app
from costs import HEADER as COST_HEADER
from costs import Cost, watched
from servers import PROJECT, SCRIPT, Lab, two_servers

OURS, PSQL = "the sync", "psql"
COPY_OUT = 'COPY (SELECT uuid, name FROM public."User") TO STDOUT'

# psql reads the rows from its standard input, so its statements come with -c, one by one.
PSQL_LOAD = ["BEGIN", "CREATE TEMP TABLE staged (athlete_uuid UUID, full_name TEXT) ON COMMIT DROP",
             "COPY staged FROM STDIN", "ANALYZE staged"]

PSQL_UPSERT = """
INSERT INTO analytics.athlete_dim (athlete_uuid, full_name, source_synced_at)
SELECT staged.athlete_uuid, staged.full_name, now() FROM staged %s ORDER BY staged.athlete_uuid
    ON CONFLICT (athlete_uuid) DO UPDATE
   SET full_name = EXCLUDED.full_name, source_synced_at = EXCLUDED.source_synced_at
"""
ONLY_CHANGED = """LEFT JOIN analytics.athlete_dim AS known USING (athlete_uuid)
 WHERE known.athlete_uuid IS NULL OR known.full_name IS DISTINCT FROM staged.full_name"""

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
    bar: float  # how many times psql's seconds the sync may take, from a million athletes on
    prepare_app: str = "SELECT"
    flags: Tuple[str, ...] = ()
    is_for_peers: bool = False  # they know no difference of always and never


CASES = [
    Case("first load", "always", 1.15, is_for_peers=True),
    Case("rerun, unchanged, always", "always", 1.32, is_for_peers=True),
    Case("rerun, unchanged, never", "never", 1.20),
    Case("1 % renamed, 1 % new, never", "never", 1.25, RENAME_1_PERCENT, is_for_peers=True),
    Case("1,000 renamed, --incremental", "never", 0.35, RENAME_1000, ("--incremental",)),
]


class Contender(NamedTuple):
    """Whoever copies the athletes, into a database of its own."""

    name: str
    database: str
    run: Callable[[Lab, Case], int]  # returns the peak memory in bytes
    table: str = "analytics.athlete_dim"
    columns: str = "athlete_uuid, full_name"
    peer: Optional[peers.Peer] = None


class Result:
    """What came out of one case by one contender."""

    cost: Cost
    verdict: str

    def __init__(self) -> None:
        self.rounds: List[Tuple[float, int]] = []

    def seconds(self) -> float:
        return median(seconds for seconds, _ in self.rounds)

    def megabytes(self) -> float:
        return max(peak for _, peak in self.rounds) / 1e6

    def times(self, other: Result) -> float:
        """The median over the rounds of what each round's pair came to."""
        return median(mine / theirs for (mine, _), (theirs, _) in zip(self.rounds, other.rounds))


Results = Dict[Tuple[str, str], Result]  # by case and contender


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: sorted(map(int, text.split(","))), default=[1000000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chart", action="store_true")
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    # So that a checkpoint falls where a round begins, and a vacuum before a run, not by chance within one.
    with two_servers(max_wal_size="'64GB'", checkpoint_timeout="'1h'", autovacuum="off") as lab:
        lab.set_up()
        lab.app.psql("-qc", 'ALTER TABLE public."User" ADD PRIMARY KEY (uuid)')  # Prisma's @id
        contenders = find_contenders(lab, options.peers)
        title = "PostgreSQL %s, Python %s, %s cores, %s, %d rounds; above 1,000,000 athletes one" % (
            lab.warehouse.psql("-qAtc", "SHOW server_version").strip(), sys.version.split()[0], os.cpu_count(),
            time.strftime("%Y-%m-%d"), options.rounds)
        print("%s\n\n%s\n%s" % (title, ROW % HEADER, ROW % (("---",) * len(HEADER))), flush=True)
        by_size = {}
        for size in options.rows:
            by_size[size] = bench(lab, size, options.rounds if size <= 1000000 else 1, contenders)
            print_rows(size, by_size[size])
        print_small_case(lab, contenders[0], options.rounds)
    if options.chart:
        draw_chart(by_size, title)
    return 0


def find_contenders(lab: Lab, are_peers_wanted: bool) -> List[Contender]:
    lab.app.psql("-qc", "CREATE ROLE peer_reader LOGIN PASSWORD 'peer' IN ROLE app_readonly")
    return [Contender(OURS, "warehouse", run_sync), Contender(PSQL, "warehouse_psql", run_psql)] + [
        Contender(peer.name, "peer_" + peer.name, partial(run_peer, peer), peer.table, peer.columns, peer)
        for peer in (peers.peers_to_be_had() if are_peers_wanted else [])]


def bench(lab: Lab, rows: int, rounds: int, contenders: List[Contender]) -> Results:
    results: Results = {}
    for round_ in range(rounds + 1):  # the last of them is watched
        start_over(lab, rows, contenders)
        for case in CASES:
            lab.app.psql("-qc", case.prepare_app)
            lab.app.psql("-qc", 'VACUUM ANALYZE public."User"', "-c", "CHECKPOINT")
            for who in contenders[::-1 if round_ % 2 else 1]:
                if who.peer and not case.is_for_peers:
                    continue
                result = results.setdefault((case.name, who.name), Result())
                if lab.warehouse.psql("-qAtc", "SELECT to_regclass('%s')" % who.table, database=who.database).strip():
                    lab.warehouse.psql("-qc", "VACUUM ANALYZE " + who.table, database=who.database)
                os.sync()  # what was prepared is not written to the disk at the cost of whoever comes first
                if round_ < rounds:
                    result.rounds.append(seconds_of(partial(who.run, lab, case)))
                else:
                    result.cost = watched(lab, who.database, who.table, partial(who.run, lab, case))
                    result.verdict = peers.verdict(lab, who.database, who.table, who.columns)
    return results


def start_over(lab: Lab, rows: int, contenders: List[Contender]) -> None:
    lab.app.psql("-qc", 'TRUNCATE public."User"')
    fill_app(lab.app, rows)
    lab.app.psql("-q", stdin=peers.hostile_sql())
    for who in contenders:
        for statement in ("DROP DATABASE IF EXISTS ", "CREATE DATABASE "):
            lab.warehouse.psql("-qc", statement + who.database, database="postgres")
        lab.warehouse.psql("-qf", str(PROJECT / "sql" / "warehouse_setup.sql"), database=who.database)
        if who.peer:
            peers.forget(who.peer)
    lab.warehouse.psql("-qc", "CHECKPOINT")


def run_sync(lab: Lab, case: Case) -> int:
    return run_and_watch([sys.executable, str(SCRIPT), "-q"] + list(case.flags),
                         lab.environment(SYNC_REFRESH=case.refresh))


def run_peer(peer: peers.Peer, lab: Lab, _: Case) -> int:
    return run_and_watch(peers.command(peer), peers.environment(lab, peer))


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
    upsert = PSQL_UPSERT % ("" if case.refresh == "always" else ONLY_CHANGED)
    arguments = [argument for statement in PSQL_LOAD + [upsert, "COMMIT"] for argument in ("-c", statement)]
    load = subprocess.run(lab.warehouse.psql_command("-q", *arguments, database="warehouse_psql"),
                          env=lab.warehouse.psql_environment(), stdin=extract.stdout)
    if load.returncode or extract.wait():
        raise RuntimeError("psql failed")
    return 0


HEADER = ("case", "athletes", "by", "s", "times psql", "bar", "peak MB") + COST_HEADER + ("result",)
ROW = "| %-28s | %10s | %-14s | %6s | %10s | %4s | %7s | %9s | %8s | %7s | %7s | %7s | %10s | %20s | %20s | %s |"


def print_rows(size: int, results: Results) -> None:
    bars = {(case.name, OURS): "%.2f" % case.bar for case in CASES if size >= 1000000}
    for (case, who), result in results.items():
        peak = "%.0f" % result.megabytes() if who != PSQL else ""  # two programs, whose memory nobody measured
        print(ROW % (case, format(size, ","), who, "%.2f" % result.seconds(),
                     "%.2f" % result.times(results[case, PSQL]), bars.get((case, who), ""), peak,
                     *result.cost.cells, result.verdict.replace("|", "\\|")), flush=True)


def print_small_case(lab: Lab, sync: Contender, rounds: int) -> None:
    start_over(lab, 10, [sync])
    acts = [partial(sync.run, lab, CASES[0]),
            partial(subprocess.run, [sys.executable, "-c", "import pandas, psycopg2, dotenv"], check=True)]
    pairs = [[seconds_of(act)[0] for act in acts] for _ in range(max(rounds, 5))]
    times = median(ours / bare for ours, bare in pairs)
    print("\nTen athletes take %.2f s, %.2f times what `import pandas, psycopg2, dotenv` takes; the bar is 2.00.\n"
          "The bar of the peak is 90 MB." % (median(ours for ours, _ in pairs), times))


def seconds_of(act: Callable[[], Any]) -> Tuple[float, Any]:
    """How long it took, and what it returned."""
    started = time.perf_counter()
    returned = act()
    return time.perf_counter() - started, returned


def draw_chart(by_size: Dict[int, Results], title: str) -> None:
    """Draw a rerun's seconds, what it costs the two servers, and memory, over the number of athletes."""
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none"})  # same figures, same file
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4.5))
    sizes, rerun = sorted(by_size), CASES[1].name
    for axes, (what, figure_of) in zip(panels, {
            "seconds": Result.seconds,
            "CPU seconds of the two servers": lambda result: result.cost.cpu,
            "peak memory, MB": lambda result: result.megabytes() or float("nan")}.items()):
        for who in [who for case, who in by_size[sizes[0]] if case == rerun]:
            axes.plot(sizes, [figure_of(by_size[size][rerun, who]) for size in sizes], marker="o", label=who)
        axes.set(xscale="log", yscale="log", xlabel="athletes: a rerun that stamps all of them", ylabel=what)
    panels[0].legend(fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.tight_layout()
    figure.savefig(str(PROJECT / "python" / "lab" / "bench.svg"), metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
