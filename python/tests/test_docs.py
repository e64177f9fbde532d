"""README, its pages, .env.example and Makefile say what the script does: it is asked, and they are read."""

from __future__ import annotations

import getpass
import os
import plistlib
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from conftest import ANN, BOB, CAT, DAN, in_env_file, project_in
from lab.servers import PROJECT, READER_PASSWORD, SCRIPT, WRITER_PASSWORD

EXIT_CODES = range(5)
DOCS = PROJECT / "python" / "docs"
PAGES = ["README.md"] + sorted(str(page.relative_to(PROJECT)) for page in DOCS.glob("*.md"))
# No settings of the script, though they look like some: they choose the servers of the tests.
OF_THE_TESTS = {"APP_PG_BINDIR", "WH_PG_BINDIR"}


def text_of(name):
    return (PROJECT / name).read_text(encoding="utf-8")


def page(name):
    return text_of("python/docs/" + name)


def all_text():
    return "\n".join(text_of(name) for name in PAGES)


def blocks(name, language):
    """The fenced blocks of a page that are in one language."""
    return re.findall(r"^```%s\n(.*?)^```$" % language, text_of(name), re.M | re.S)


def words(text):
    """One blank between words: how argparse breaks its lines differs between Pythons."""
    return " ".join(text.replace("optional arguments:", "options:").split())


def rows_of(text):
    """The rows of a page's tables, as lists of cells without backticks."""
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            yield [cell.strip().replace("`", "").replace("\\|", "|") for cell in cells]


# README itself


def test_readme_is_read_in_one_sitting():
    assert len(text_of("README.md").splitlines()) <= 250


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    """To a page of ours, and to a heading in it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(name)):
        path, _, anchor = target.partition("#")
        linked = (PROJECT / name).parent / path if path else PROJECT / name
        if linked.name == "windows.md" and not linked.exists():
            pytest.skip("python/docs/windows.md is not there yet")
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], target


def test_readme_leads_to_every_page():
    linked = set(re.findall(r"\]\((python/docs/\w+\.md)", text_of("README.md")))
    assert set(PAGES) - linked == {"README.md"}


@pytest.mark.parametrize("hard", [
    "written anew since the last success", "oldest open transaction", "would rename more of the dimension's athletes",
    "whatever the network does", "may live", "setup is older than the script", "were read about", "disappears silently"])
def test_no_sentence_that_was_found_hard(hard):
    assert hard not in words(all_text() + text_of(".env.example") + SCRIPT.read_text(encoding="utf-8"))


def without_figures(text):
    """Times, ports and seconds differ from run to run; a line's continuation is part of it."""
    text = re.sub(r"\d\d:\d\d:\d\dZ", "TIME", re.sub(r"port \d+", "port N", text))
    return words(re.sub(r"seconds=[\d.]+", "seconds=S", text))


@pytest.fixture(scope="module")
def demo():
    done = subprocess.run([sys.executable, str(PROJECT / "python" / "lab" / "demo.py")], cwd=str(PROJECT),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
                          env=dict(os.environ, PYTHONIOENCODING="utf-8"))
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_readme_shows_the_demo_as_it_is(demo):
    shown, = blocks("README.md", "text")
    assert without_figures(shown) in without_figures(demo)


# Settings, options, output


def default_is_said(line, setting):
    return setting.default is None or setting.default in line.replace("\\|", "|")


@pytest.mark.parametrize("name", ["python/docs/settings.md", ".env.example"])
def test_every_setting_is_there_with_its_default(script, name):
    lines = text_of(name).splitlines()
    unsaid = [setting.name for setting in script.SETTINGS if not any(
        re.search(r"\b%s\b" % setting.name, line) and default_is_said(line, setting) for line in lines)]
    assert unsaid == []


def test_the_table_of_settings_follows_the_scripts(script):
    told = {row[0]: row[1:] for row in rows_of(page("settings.md")) if re.match(r"(APP|WH|SYNC)_", row[0])}
    assert sorted(told) == sorted(setting.name for setting in script.SETTINGS)
    for setting in script.SETTINGS:
        default, meaning = told[setting.name]
        assert default in ([setting.default] if setting.default else ["required", "none", "libpq's"])
        assert meaning == setting.meaning


def test_env_example_names_no_setting_that_the_script_does_not_know(script):
    named = set(re.findall(r"\b(?:APP|WH|SYNC)_[A-Z_]+\b", text_of(".env.example")))
    assert named == {setting.name for setting in script.SETTINGS}


def test_env_example_can_be_copied_as_it_is(script, world):
    """Filled in nowhere, it asks for what is required and for nothing else."""
    run = world.sync("--env-file", str(PROJECT / ".env.example"), **dict.fromkeys(world.lab.settings()))
    assert run.code in (1, 2), run
    assert not re.search(r"(SYNC|TABLE|COLUMN|PORT)\w* (must|not)", run.error), run


def test_the_settings_in_readme_are_those_of_env_example():
    assert blocks("README.md", "env")[0].strip().splitlines() == [
        line for line in blocks("README.md", "env")[0].strip().splitlines()
        if line == "" or line in text_of(".env.example").splitlines()]


@pytest.mark.parametrize("name", PAGES)
def test_no_page_names_a_setting_that_the_script_does_not_know(script, name):
    named = set(re.findall(r"\b(?:APP|WH|SYNC)_[A-Z_]+[A-Z]\b", text_of(name)))
    assert named - {setting.name for setting in script.SETTINGS} - OF_THE_TESTS == set()


def test_every_line_of_settings_that_is_shown_is_read(world):
    """Each env block of the settings page, with the lab's connections: no setting is refused."""
    for block in blocks("python/docs/settings.md", "env") + blocks("python/docs/errors.md", "env"):
        settings = dict(line.split("=", 1) for line in block.split("\n") if line)
        for name, value in settings.items():
            setting, = [known for known in world.script.SETTINGS if known.name == name]
            setting.read(value.strip("'"))


def test_settings_page_shows_help_as_it_is(world):
    shown = words(world.run("--help", COLUMNS="100").out)
    assert shown in words(page("settings.md"))


def test_the_result_line_is_shown_as_it_is_printed(world):
    world.app_has((ANN, "Ann Archer"))
    printed = world.run().out
    for name in ("README.md", "python/docs/settings.md"):
        shown = re.search(r"^result=ok .*?seconds=[\d.]+", text_of(name).replace("\n    ", " "), re.M).group()
        assert re.sub(r"=\S+", "", shown) == re.sub(r"=\S+", "", printed).strip()


def without_times(text):
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(Z|\+\d\d)", "TIME", text)
    text = re.sub(r"(?m)^\d\d-\d\d \d\d:\d\d +\d+\.\d", "TIME", text)
    text = re.sub(r"connection to server.*?failed: |\d+ (seconds|minutes|hours)(?= ago)", "", text)
    return re.sub(r"port \d+", "port N", re.sub(r"seconds=[\d.]+", "seconds=S", re.sub(r"Next: .*", "", text)))


def is_shown(text, name):
    shown = [without_times(block) for block in blocks("python/docs/" + name, "text")]
    assert without_times(text) in shown, text


def test_what_is_printed_of_a_morning_is_shown_as_it_is(world):
    """A full run with rejects, an incremental one, and one that failed: log, --check and --status."""
    world.app.sql('ALTER TABLE public."User" ADD CONSTRAINT one UNIQUE (uuid)')
    world.app_has((ANN, "Ann Archer"), (BOB, None), ("4711", "Dan Dyer"))
    world.warehouse_has((DAN, "Dan Dyer"))
    try:
        is_shown(world.run("--check").out, "monitoring.md")
        run = world.run()
        is_shown(run.err + run.out, "settings.md")
        world.app_has((CAT, None))
        run = world.run("--incremental")
        is_shown("".join(run.err.splitlines(True)[2:]) + run.out, "incremental.md")
        assert "\nresult=failed mode=full seconds=" in "\n" + world.run(APP_PASSWORD="wrong").out
        is_shown(world.run("--status").out, "monitoring.md")
        world.app.sql('TRUNCATE public."User"')
        world.app_has((ANN, "Ann Archer"), (BOB, "Bob Baker"))
        world.warehouse.sql("TRUNCATE analytics.athlete_dim")
        world.warehouse_has((BOB, "Bob Bowman"), (CAT, "Cat Cooper"))
        is_shown("".join(world.run("--dry-run", "--diff").out.splitlines(True)[:-1]), "monitoring.md")
    finally:
        world.app.sql('ALTER TABLE public."User" DROP CONSTRAINT one')


def test_make_demo_says_what_it_installs():
    told = "46 MB to download, 240 MB there"
    assert told in text_of("README.md") and told in text_of("Makefile")


def test_the_keys_of_the_result_are_told(world):
    told = page("settings.md").split("one object with the keys")[1]
    assert re.findall(r"`(\w+)`", told.replace("`uuid` and", "").replace("`reason`", "")) == list(world.sync("--diff").result)


def test_every_option_that_is_named_exists(world):
    shown = world.run("--help").out
    lines = [line for line in all_text().splitlines() if "sync_athletes_from_app.py" in line]
    named = re.findall(r" (--[a-z-]+)", "\n".join(lines)) + re.findall(r"`(--[a-z-]+)", all_text())
    assert sorted({option for option in named if option not in shown}) == []


# Exit codes and failures


@pytest.mark.parametrize("code", EXIT_CODES)
def test_every_exit_code_is_in_the_readme_and_the_docstring(script, code):
    assert re.search(r"^\|\s*`?%d`?\s*\|" % code, text_of("README.md"), re.M), "a row of a table"
    assert re.search(r"^ +%d  \w" % code, script.__doc__, re.M)


class NamesInDocs(dict):
    """What a page writes in place of an installation's own names."""

    def __missing__(self, name):
        return "<%s>" % name


PLACES = NamesInDocs(
    prefix="APP", port="5432", user="<role>", setup="psql -f sql/...", grants="the GRANTs above",
    columns="check APP_UUID_COLUMN and APP_NAME_COLUMN; the dimension needs athlete_uuid, full_name, source_synced_at")


def failures_of(script):
    """Every failure that the script has a name for, as a row of the table: words, code, advice."""
    known = [("", explanation) for _, explanation in script.CONNECT_EXPLANATIONS]
    known += [(" [%s]" % state, explanation) for state, explanation in script.EXPLANATIONS.items()]
    known += [("", explanation) for explanation in (
        script.OTHER_REFUSAL, script.ROW_SECURITY, script.NOT_THE_TABLE, script.REFUSED_STATEMENT)]
    coded = {explanation.meaning for state, explanation in known if state}
    rows = []
    for state, explanation in known:
        row = [explanation.meaning + state, str(explanation.code), explanation.next_step.format_map(PLACES)]
        stands_below = not state and explanation.meaning in coded and "login" not in explanation.meaning
        if row not in rows and not stands_below:
            rows.append(row)
    return rows


def test_every_failure_is_in_the_table_with_its_code_and_advice(script):
    told = page("errors.md").split("## Every failure that has a name")[1].split("Besides these")[0]
    assert [row for row in rows_of(told) if row[1].isdigit()] == failures_of(script)


def test_every_other_failure_that_is_told_is_one(script):
    told = page("errors.md").split("Besides these")[1]
    source = words(re.sub(r'"\s*\n\s*"', "", text_of("python/scripts/sync_athletes_from_app.py")))
    rows = [row for row in rows_of(told) if row[1].isdigit()]
    assert rows and [row[0] for row in rows if row[0] not in source] == []


Broken = namedtuple("Broken", "heading app warehouse undo_app undo_warehouse settings")
BROKEN = [
    Broken('permission denied for table "User"', 'REVOKE SELECT ON TABLE public."User" FROM app_readonly', None,
           'GRANT SELECT ON TABLE public."User" TO app_readonly', None, {}),
    Broken("permission denied for schema analytics", None, "REVOKE USAGE ON SCHEMA analytics FROM warehouse_writer",
           None, "GRANT USAGE ON SCHEMA analytics TO warehouse_writer", {}),
    Broken('relation "public.User" does not exist', None, None, None, None, {"APP_TABLE": "public.User"}),
    Broken("SSL connection required", None, None, None, None, {"APP_SSLMODE": "require"}),
    Broken("timeout expired", None, None, None, None, {"APP_PORT": "1", "SYNC_CONNECT_ATTEMPTS": "1"}),
]


@pytest.mark.parametrize("broken", BROKEN, ids=[broken.heading for broken in BROKEN])
def test_a_failure_reads_as_the_page_shows_it(world, broken):
    section = page("errors.md").split("\n## " + broken.heading)[1].split("\n## ")[0]
    shown = re.findall(r"^    (ERROR .*)$", section, re.M)[0]
    change = [(side, sql) for side, sql in ((world.app, broken.app), (world.warehouse, broken.warehouse)) if sql]
    for side, sql in change:
        side.sql(sql)
    try:
        run = world.run(**broken.settings)
    finally:
        for side, sql in ((world.app, broken.undo_app), (world.warehouse, broken.undo_warehouse)):
            if sql:
                side.sql(sql)
    assert run.code in (2, 3), run
    if world.app.connection.server_version < 110000:  # which calls every table a relation here
        shown = shown.replace("denied for table", "denied for relation")
    pattern = ".*".join(re.escape(part.strip()) for part in shown.split("..."))
    assert re.search(pattern, run.error), (shown, run)


# SQL: every statement of every page is run


def statements(name):
    """The statements of a page's SQL blocks, each without its comments."""
    text = "\n".join(blocks(name, "sql"))
    return [s.strip() for s in re.sub(r"^--.*$", "", text, flags=re.M).split(";") if s.strip()]


OF_THE_APP = ("app_readonly", "pg_tables", 'public."User"')


@pytest.mark.parametrize("name", [name for name in PAGES if "compatibility" not in name])
def test_every_statement_runs(world, name):
    """In a warehouse that has seen several runs; rolled back, so that a GRANT or a password stays as it was."""
    world.app_has((ANN, "Ann Archer"), ("x", "Cat Cooper"), (BOB, None))
    world.sync()
    world.sync("--incremental")
    world.sync("--strict")
    for statement in statements(name):
        if "your_app_password" in statement or "your_wh_password" in statement:
            continue  # creates a role that is here already
        side = world.app if any(word in statement for word in OF_THE_APP) else world.warehouse
        with side.holding(statement):
            pass


def run_history(world, *runs):
    """Write runs of any kind into the history: target, mode, result, minutes ago."""
    for target, mode, result, minutes in runs:
        world.warehouse.sql("""
            INSERT INTO analytics.athlete_sync_run (target, started_at, finished_at, mode, result, exit_code,
                                                    rejects, version, max_age)
            VALUES (%s, now() - %s * interval '1 minute', now() - %s * interval '1 minute', %s, %s, 0, '[]',
                    '1', '2 days')""", target, minutes, minutes, mode, result)


def test_the_missing_query_goes_by_the_last_full_run_of_this_table(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
    world.sync()
    world.app.sql('DELETE FROM public."User" WHERE uuid = %s', BOB)
    world.sync()
    later = -5
    run_history(world, ("analytics.athlete_dim", "incremental", "ok", later),
                ("analytics.athlete_dim", "full", "failed", later),
                ("analytics.athlete_dim", "full", "skipped", later), ("analytics.coach_dim", "full", "ok", later))
    query, = [s for s in statements("python/docs/monitoring.md") if s.startswith("SELECT") and "max(started_at)" in s]
    assert [row[0] for row in world.warehouse.sql(query)] == [BOB]


def test_the_rejects_query_lists_them(world):
    world.app_has((ANN, None), ("x", "Cat Cooper"))
    world.sync()
    query, = [s for s in statements("python/docs/monitoring.md") if "jsonb_array_elements" in s]
    assert {row[1] for row in world.warehouse.sql(query)} >= {ANN}


@pytest.mark.parametrize("side", ["app", "warehouse"])
def test_removal_removes(world, side):
    """All of a side's statements in one transaction, rolled back: the role goes, the table stays."""
    server = {"app": world.app, "warehouse": world.warehouse}[side]
    role = {"app": "app_readonly", "warehouse": "warehouse_writer"}[side]
    block, = [b for b in blocks("python/docs/compatibility.md", "sql") if "DROP ROLE " + role in b]
    with server.holding(block) as holder:
        assert holder.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", role) == []
        table = {"app": 'public."User"', "warehouse": "analytics.athlete_dim"}[side]
        assert holder.value("SELECT to_regclass(%s) IS NOT NULL", table)


# Commands


def test_every_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.M))
    for name in PAGES + [".env.example", ".ci/run", "python/scripts/sync_athletes_from_app.py"]:
        named = set(re.findall(r"(?:`|^ *|\$ )make ([a-z][\w-]*)", text_of(name), re.M))
        assert named - targets == set(), name
    assert {"help", "install", "sync", "demo", "test", "lint", "clean"} <= targets
    assert "make test" in text_of(".ci/run")


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"\b(?:python|sql)/[\w./-]*\w\.\w+", all_text() + text_of("Makefile")))
    named -= {"python/docs/windows.md"}  # its links are looked at above
    assert [name for name in sorted(named) if not (PROJECT / name).exists()] == []


def psql_commands():
    """Each psql command of README's set-up and of the settings page."""
    for name in ("README.md", "python/docs/settings.md"):
        for line in "\n".join(blocks(name, "bash")).splitlines():
            if line.startswith("psql "):
                yield line


@pytest.mark.parametrize("command", list(psql_commands()))
def test_every_psql_command_can_be_pasted(world, command):
    """With this lab's host, port and database. The password given is the one that the lab has."""
    side = world.app if "<app_host>" in command else world.warehouse
    password = READER_PASSWORD if side is world.app else WRITER_PASSWORD
    command = re.sub(r"<(app|warehouse)_host>", "127.0.0.1 -p %d" % side.server.port, command)
    command = re.sub(r"<(app|warehouse)_db>", side.server.name, command)
    command = command.replace("='...'", '="$PASSWORD"').replace("psql ", '"$PSQL" -X -v ON_ERROR_STOP=1 ', 1)
    environment = dict(side.server.psql_environment(), PASSWORD=password,
                       PSQL=side.server.psql_command()[0])
    has_coaches = "Coach" in command
    if has_coaches:
        world.app.sql('CREATE TABLE public."Coach" (uuid TEXT, name TEXT)')
    try:
        done = subprocess.run(["/bin/sh", "-c", command], cwd=str(PROJECT), env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    finally:
        world.warehouse.sql("DROP TABLE IF EXISTS analytics.coach_dim")
        if has_coaches:
            world.app.sql('DROP TABLE public."Coach"')
    assert done.returncode == 0, done.stdout


def test_readmes_commands_can_be_typed_one_after_the_other(world, tmp_path):
    """In a copy of the project where the packages are installed already; .env is filled in, as a user does."""
    world.app_has((ANN, "Ann Archer"))
    project_in(tmp_path)
    for name in ("Makefile", ".env.example", "python/requirements.txt"):
        shutil.copy(str(PROJECT / name), str(tmp_path / name))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\nexec '%s' \"$@\"\n" % sys.executable)
    python.chmod(0o755)
    for stamp in ("made", "installed"):
        (tmp_path / ".venv" / stamp).touch()
    lines = "\n".join(blocks("README.md", "bash")).splitlines()
    typed = [line for line in lines if line and not line.startswith("psql ")]
    typed.append(re.search(r"^    (make status)$", text_of("README.md"), re.M).group(1))
    assert typed == ["cp .env.example .env", "chmod 600 .env", "make install", "make check", "make sync ARGS=--dry-run",
                     "make sync", "make status"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for line in typed:
        done = subprocess.run(["/bin/sh", "-c", line], cwd=str(tmp_path), env=environment, encoding="utf-8",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
        if line.startswith("chmod"):
            env_file = (tmp_path / ".env").read_text(encoding="utf-8")
            for name, value in world.lab.settings().items():
                filled_in = "%s=%s" % (name, in_env_file(value))
                env_file, found = re.subn("(?m)^%s=.*$" % name, lambda _: filled_in, env_file)
                assert found == 1, name
            (tmp_path / ".env").write_text(env_file, encoding="utf-8")
    assert world.dimension() == {ANN: "Ann Archer"} and done.stdout.startswith("healthy: "), done.stdout


def test_readmes_sizes_are_those_of_the_performance_page():
    measured = {(case, rows): (float(seconds), mb + " MB") for case, rows, seconds, mb in re.findall(
        r"^(first load|rerun, unchanged, always) +([\d,]+) +([\d.]+) +(\d+)$", page("performance.md"), re.M)}
    for number, rows in (("10 thousand", "10,000"), ("100 thousand", "100,000"), ("1 million", "1,000,000"),
                         ("10 million", "10,000,000")):
        (first, memory), (again, _) = measured["first load", rows], measured["rerun, unchanged, always", rows]
        row = [number] + ["%.*f s" % (seconds < 10, seconds) for seconds in (first, again)] + [memory]
        assert row in list(rows_of(text_of("README.md")))


# Files to copy


def file_below(heading, language):
    section = page("scheduling.md").split("\n## %s\n" % heading)[1].split("\n## ")[0]
    return re.findall(r"^```%s\n(.*?)^```$" % language, section, re.M | re.S)


@pytest.fixture
def installed(tmp_path):
    """A folder as a user has it: what the files name is there."""
    place = tmp_path / "UAIS"
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (place / "logs").mkdir()
    return place


def test_systemd_reads_service_and_timer(installed, tmp_path):
    program = shutil.which("systemd-analyze")
    if not program:
        pytest.skip("systemd-analyze is not installed")
    service, timer = file_below("systemd timer", "ini")
    units = [tmp_path / "athlete-sync.service", tmp_path / "athlete-sync.timer"]
    for unit, text in zip(units, (service, timer)):
        unit.write_text(text.replace("/path/to/UAIS", str(installed)).replace("your_user", getpass.getuser()))
    done = subprocess.run([program, "verify"] + [str(unit) for unit in units], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, encoding="utf-8", env=dict(os.environ, SYSTEMD_LOG_LEVEL="info"))
    ours = [line for line in done.stdout.splitlines() if "athlete-sync" in line]
    assert (done.returncode, ours) == (0, []), done.stdout


def test_launchd_has_a_property_list():
    text, = file_below("launchd, on a Mac", "xml")
    job = plistlib.loads(text.encode())
    assert job["StartCalendarInterval"] == {"Hour": 2, "Minute": 0}
    assert job["ProgramArguments"][0] == job["WorkingDirectory"] + "/.venv/bin/python"
    assert (PROJECT / job["ProgramArguments"][1]).exists()
    assert job["StandardOutPath"] == job["StandardErrorPath"]


def test_logrotate_reads_its_file(installed, tmp_path):
    program = shutil.which("logrotate", path=os.environ["PATH"] + ":/usr/sbin")
    if not program:
        pytest.skip("logrotate is not installed")
    text, = file_below("Log rotation", "text")
    configuration = tmp_path / "athlete-sync"
    configuration.write_text(text.replace("/path/to/UAIS", str(installed)).replace("su your_user your_user", ""))
    configuration.chmod(0o644)
    (installed / "logs" / "sync_athletes.log").write_text("result=ok\n")
    done = subprocess.run([program, "-d", "-s", str(tmp_path / "state"), str(configuration)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    assert done.returncode == 0 and "error:" not in done.stdout, done.stdout
    assert "considering log %s" % (installed / "logs" / "sync_athletes.log") in done.stdout, done.stdout


# What the first guide promised its readers


GUIDE_SQL = [
    "ALTER ROLE app_readonly WITH PASSWORD 'your_secure_password';",
    'GRANT SELECT ON TABLE public."User" TO app_readonly;',
    "GRANT USAGE ON SCHEMA analytics TO warehouse_writer;",
    "GRANT SELECT, INSERT, UPDATE ON TABLE analytics.athlete_dim TO warehouse_writer;",
    "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename = 'User';",
    "SHOW server_encoding;", "SHOW client_encoding;", 'SELECT COUNT(*) FROM public."User";',
    "SELECT COUNT(*) FROM analytics.athlete_dim;",
    "SELECT athlete_uuid, full_name, source_synced_at FROM analytics.athlete_dim ORDER BY source_synced_at DESC "
    "LIMIT 10;",
    "SELECT athlete_uuid, full_name, source_synced_at FROM analytics.athlete_dim "
    "WHERE source_synced_at < NOW() - INTERVAL '2 days' ORDER BY source_synced_at ASC;",
]
GUIDE_COMMANDS = [
    "psql -h <app_host> -U postgres -d <app_db>", "-f sql/app_readonly.sql",
    "psql -h <warehouse_host> -U postgres -d <warehouse_db>", "-f sql/warehouse_setup.sql",
    "cp .env.example .env", "make install", "pip install -r python/requirements.txt", "make sync",
    "python python/scripts/sync_athletes_from_app.py", "crontab -e", "0 2 * * *",
    "python/scripts/sync_athletes_from_app.py >> logs/sync_athletes.log 2>&1", "ping <host>",
]
GUIDE_SETTINGS = [
    "APP_HOST=your_app_host", "APP_PORT=5432", "APP_DB=app_prod", "APP_USER=app_readonly",
    "APP_PASSWORD=your_app_password", "WH_HOST=your_warehouse_host", "WH_PORT=5432", "WH_DB=uias_warehouse",
    "WH_USER=warehouse_writer", "WH_PASSWORD=your_warehouse_password", "APP_SSLMODE=require", "WH_SSLMODE=require",
]
GUIDE_TROUBLES = [
    'permission denied for table "User"', "permission denied for schema analytics",
    'relation "public.User" does not exist', "SSL connection required", "server does not support SSL",
    "timeout expired", "could not connect to server", "corrupted", "pg_hba.conf", "CHANGE_ME",
]
GUIDE_NAMES = ["tmp_athlete_dim", "uuid AS athlete_uuid", "name AS full_name", "ON CONFLICT", "DataFrame",
               "source_synced_at", "Python 3.7", "PostgreSQL 9.5"]


@pytest.mark.parametrize("promised", GUIDE_SQL + GUIDE_COMMANDS + GUIDE_SETTINGS + GUIDE_TROUBLES + GUIDE_NAMES)
def test_what_the_guide_promised_is_here(promised):
    assert promised in words(all_text())


def test_no_secret_is_kept_in_the_repository():
    ignored = text_of(".gitignore").split()
    assert ".env" in ignored and "!.env.example" in ignored
