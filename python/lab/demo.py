"""Watch athletes travel from one real Postgres to another. Needs nothing but this folder.

  make demo           two throwaway servers, three runs of the real script, what the warehouse then says
  make demo KEEP=1    leaves the servers running, and .env.demo to go on with
  make demo-stop      stops and deletes those
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Dict

from athletes import fill_app
from servers import PROJECT, SCRIPT, SUPERUSER_PASSWORD, Lab, Server, program_of, remove, two_servers

ENV_FILE = PROJECT / ".env.demo"
ATHLETES = 5000
SEED = 561  # with it, the few names on show are of many scripts
COLUMNS = 100
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

THREE_DAYS_PASS = """
UPDATE analytics.athlete_dim SET source_synced_at = source_synced_at - INTERVAL '3 days';
UPDATE analytics.athlete_sync_run
   SET started_at = started_at - INTERVAL '3 days', finished_at = finished_at - INTERVAL '3 days'
"""
UPDATE_APP = """
DELETE FROM public."User" WHERE email ~ '^athlete(7|77|777)@';
UPDATE public."User" SET name = name || ' Jr.', "updatedAt" = now() WHERE email ~ '00@'
"""
UPDATE_APP_AGAIN = """
UPDATE public."User" SET name = 'Dr. ' || name, "updatedAt" = now() WHERE email ~ '^athlete500[1-9]@'
"""

# README's monitoring queries; the second asks for 5 rows, not 10, and the same 5 every time; the last
# for the columns that fit.
COUNT = "SELECT COUNT(*) FROM analytics.athlete_dim;"
RECENT = """SELECT athlete_uuid, full_name, source_synced_at FROM analytics.athlete_dim
             ORDER BY source_synced_at DESC, athlete_uuid LIMIT 5;"""
STALE = """SELECT athlete_uuid, full_name, source_synced_at FROM analytics.athlete_dim
             WHERE source_synced_at < NOW() - INTERVAL '2 days' ORDER BY source_synced_at ASC;"""
HEALTH = "SELECT verdict, last_success_age, last_result FROM analytics.athlete_sync_health;"


def main() -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for terminals that cannot show Amharic
    for name in SIGNALS:
        signal.signal(name, stop_at_signal)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the servers running, write .env.demo")
    parser.add_argument("--stop", action="store_true", help="stop and delete servers that --keep has left")
    options = parser.parse_args()
    try:
        were_running = stop_kept_servers()
        if not options.stop:
            show(options.keep)
        elif not were_running:
            print("No demo was left running.")
        return 0
    except subprocess.CalledProcessError as problem:
        words = (problem.stderr or problem.output).strip()
        print("demo: %s failed: %s" % (Path(problem.cmd[0]).name, words), file=sys.stderr)
    except (OSError, RuntimeError) as problem:
        print("demo: %s" % problem, file=sys.stderr)
    except KeyboardInterrupt:
        print("\ndemo: stopped; its servers and their folder are gone", file=sys.stderr)
        return 130
    return 1


def stop_at_signal(*_: Any) -> None:
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)  # a second Ctrl-C shall not interrupt the cleaning up
    raise KeyboardInterrupt


def show(keep: bool) -> None:
    started = time.monotonic()
    with two_servers(keep) as lab:
        version = lab.app.psql("-Atc", "SHOW server_version").strip()
        print("Two Postgres servers, version %s, started in %.1f s: app on port %d, warehouse on port %d."
              % (version, time.monotonic() - started, lab.app.port, lab.warehouse.port))
        show_set_up(lab)
        show_runs(lab)
        show_answers(lab.warehouse)
        if keep:
            write_settings(ENV_FILE, dict(lab.settings(), DEMO_FOLDER=str(lab.app.folder),
                                          DEMO_BINDIR=str(lab.app.bindir)))
            show_what_next(lab)
    if not keep:
        print("\nServers stopped and deleted. To look around: make demo KEEP=1. For real: README.md.")


def show_set_up(lab: Lab) -> None:
    """README's steps, and its commands: only the hosts are this demo's."""
    for step, what, server, file, role, answer in zip(
            (1, 2), ("A role in the app", "A role and tables in the warehouse"), (lab.app, lab.warehouse),
            ("app_readonly", "warehouse_setup"), ("app_readonly", "warehouse_writer"), lab.set_up()):
        headline("%d. %s" % (step, what))
        print("$ psql -h localhost -p %d -U postgres -d %s -f sql/%s.sql -c '\\password %s'"
              % (server.port, server.name, file, role))
        print(answer.strip())
    headline("3. Settings: the demo's own, in place of .env")
    for name, value in lab.settings().items():
        print("%s=%s" % (name, "..." if name.endswith("_PASSWORD") else value))
    headline("4. Packages: make demo has installed them into .venv")


def show_runs(lab: Lab) -> None:
    fill_app(lab.app, ATHLETES, SEED)
    headline("5. Run it. The first two commands change nothing")
    run_script(lab, "--check")
    run_script(lab, "--dry-run")
    headline("First load: {:,} athletes, names in fifteen scripts".format(ATHLETES))
    run_script(lab)
    lab.warehouse.psql("-c", THREE_DAYS_PASS)
    lab.app.psql("-c", UPDATE_APP)
    fill_app(lab.app, 25, SEED, first=ATHLETES + 1)
    headline("Three days later (the demo set the clock): 50 to update, 25 to insert, 3 missing")
    run_script(lab)
    lab.app.psql("-c", UPDATE_APP_AGAIN)
    headline("More new names. A dry run tells what a sync would do, and leaves everything as it is")
    run_script(lab, "--dry-run")


def show_answers(warehouse: Server) -> None:
    headline("What the warehouse says: the monitoring queries of python/docs/monitoring.md")
    for query in (COUNT, RECENT, STALE, HEALTH):
        print("warehouse=> " + query, end="  " if query == COUNT else "\n")
        answer = warehouse.psql("-At" if query == COUNT else "-Pfooter=off", "-c", query)
        # Where a right-to-left name ends, a mark, or terminals that know of it move the next column.
        print(re.sub("([\u0590-\u08ff])( *\\|)", "\\1\u200e\\2", answer).strip("\n"))


def headline(text: str) -> None:
    print("\n-- %s" % text)


def run_script(lab: Lab, *arguments: str) -> None:
    """Run the script as a user would, but with settings of our own: .env may name real databases."""
    env_file = lab.app.folder / ".env"
    write_settings(env_file, lab.settings())
    print("$ " + " ".join(("python", str(SCRIPT.relative_to(PROJECT))) + arguments), flush=True)
    command = [sys.executable, str(SCRIPT), "--env-file", str(env_file)] + list(arguments)
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("APP_", "WH_", "SYNC_", "PG"))}
    output = subprocess.run(command, env=environment, cwd=str(PROJECT), check=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8").stdout
    for line in output.splitlines():
        without_date = re.sub(r"^\d{4}-\d\d-\d\dT", "", line)  # so that the line fits
        print(textwrap.fill(without_date, COLUMNS, subsequent_indent="    "))


def write_settings(path: Path, settings: Dict[str, str]) -> None:
    path.touch(mode=0o600)
    path.write_text("".join('%s="%s"\n' % (name, value.replace("\\", "\\\\").replace('"', '\\"'))
                            for name, value in settings.items()), encoding="utf-8")


def show_what_next(lab: Lab) -> None:
    print("\nBoth servers go on running, and .env.demo says where. For example:")
    for server in (lab.app, lab.warehouse):
        print("  %s postgresql://postgres:%s@127.0.0.1:%d/%s" % (
            short(program_of(server.bindir, "psql")), SUPERUSER_PASSWORD, server.port, server.name))
    print("  %s %s --env-file .env.demo" % (short(sys.executable), SCRIPT.relative_to(PROJECT)))
    print("  make sync ARGS='--env-file .env.demo --dry-run'")
    print("  make demo-stop")


def short(path: str) -> str:
    """Relative to the project where that is possible: the commands are typed there."""
    return shlex.quote(path[len(str(PROJECT)) + 1:] if path.startswith(str(PROJECT) + os.sep) else path)


def stop_kept_servers() -> bool:
    """Stop and delete what --keep has left, if anything."""
    if not ENV_FILE.exists():
        return False
    found = dict(re.findall(r'^(DEMO_\w+)="(.*)"$', ENV_FILE.read_text(encoding="utf-8"), re.MULTILINE))
    if "DEMO_FOLDER" not in found:
        raise RuntimeError(".env.demo is not the demo's own; give it another name")
    folder = Path(found["DEMO_FOLDER"])
    if folder.name.startswith("athlete-sync-") and folder.is_dir():
        bindir = Path(found["DEMO_BINDIR"])
        remove([Server(side, folder, bindir, {}) for side in ("app", "warehouse")], folder)
    ENV_FILE.unlink()
    print("Stopped and deleted the servers that an earlier demo had left running.")
    return True


if __name__ == "__main__":
    raise SystemExit(main())
