"""README, its pages, .env.example and Makefile say what the script does: it is asked, and they are read."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ANN, BOB, CAT, DAN, TABLE
from lab.servers import PROJECT

DOCS = PROJECT / "python" / "docs"
PAGES = ["README.md"] + sorted(str(page.relative_to(PROJECT)) for page in DOCS.glob("*.md"))
UNIQUE = 'ALTER TABLE public."User" ADD CONSTRAINT one UNIQUE (uuid)', 'ALTER TABLE public."User" DROP CONSTRAINT one'


def text_of(name):
    """A file's text; a page of python/docs by its name alone."""
    path = DOCS / (name + ".md") if "." not in name and name != "Makefile" else PROJECT / name
    return path.read_text(encoding="utf-8")


def blocks(name, language):
    """The fenced blocks of a page that are in one language."""
    return re.findall(r"^```%s\n(.*?)^```$" % language, text_of(name), re.M | re.S)


def typed(name):
    """The lines to type of a page, a continued one in one piece."""
    return "".join(blocks(name, "bash")).replace("\\\n    ", "").splitlines()


def rows_of(name):
    """The rows of a page's tables, as lists of cells without backticks."""
    return [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]]
            for line in text_of(name).splitlines() if line.startswith("|")]


def test_readme_is_read_in_five_minutes():
    lines = text_of("README.md").splitlines()
    prose = re.sub(r"(?ms)^```(text|cron)$.*?^```$|^\|.*?$", "", text_of("README.md")).splitlines()
    assert len(lines) <= 180 and [line for line in prose if len(line) > 80] == []
    assert set(PAGES) - set(re.findall(r"\]\((python/docs/\w+\.md)", text_of("README.md"))) == {"README.md"}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    """To a page of ours, and to a heading in it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(name)):
        path, _, anchor = target.partition("#")
        linked = (PROJECT / name).parent / path if path else PROJECT / name
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
        assert anchor in [""] + [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], target


@pytest.mark.parametrize("name", PAGES + [".env.example", "Makefile", ".ci/run"])
def test_what_is_named_is_there(script, name):
    """Settings, options, targets and files."""
    text = text_of(name)
    settings = {setting.name for setting in script.SETTINGS} | {"APP_PG_BINDIR", "WH_PG_BINDIR"}  # of the tests
    if not name.endswith("changelog.md"):  # which names what is gone
        assert set(re.findall(r"\b(?:APP|WH|SYNC)_[A-Z_]*[A-Z]\b", text)) - settings == set()
        commands = " ".join(line for line in text.splitlines() if "sync_athletes_from_app.py" in line)
        options = re.findall(r" (--[a-z-]+)", commands) + re.findall(r"`(--[a-z-]+)", text)
        assert [option for option in options if option not in script.make_parser().format_help()] == []
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.M))
    assert set(re.findall(r"(?:`|^ *|\$ )make ([a-z][\w-]*)", text, re.M)) - targets == set()
    assert [file for file in re.findall(r"\b(?:python|sql)/[\w./-]*\w\.(?!log)\w+", text)
            if not (PROJECT / file).exists()] == []


def test_every_setting_is_in_the_table_and_in_env_example_with_its_default(script):
    told = [row for row in rows_of("settings") if re.match(r"(APP|WH|SYNC)_", row[0])]
    usual = {name: default for name, default, _ in told if default in ("required", "none", "libpq's")}
    assert told == [[setting.name, setting.default or usual.get(setting.name), setting.meaning]
                    for setting in script.SETTINGS]
    lines = text_of(".env.example").splitlines()
    assert [setting.name for setting in script.SETTINGS if not any(
        re.match("#?%s=%s" % (setting.name, re.escape(setting.default or "")), line) for line in lines)] == []


def test_env_example_can_be_copied_as_it_is(world):
    """Filled in nowhere, it lacks a host and nothing else; and git leaves the copy alone."""
    run = world.sync("--env-file", str(PROJECT / ".env.example"), SYNC_CONNECT_ATTEMPTS="1",
                     **dict.fromkeys(world.lab.settings()))
    assert run.code == 2 and "your_warehouse_host" in run.error, run
    assert {".env", ".env.*", "!.env.example"} <= set(text_of(".gitignore").split())


def test_every_line_of_settings_that_is_shown_is_read(script):
    read = {setting.name: setting.read for setting in script.SETTINGS}
    for name, value in (line.split("=", 1) for page in ("settings", "errors")
                        for line in "".join(blocks(page, "env")).split()):
        read[name](value.strip("'"))


def test_the_version_and_every_exit_code_are_told(script):
    assert re.search(r"^## (.*)$", text_of("changelog"), re.M).group(1) == script.VERSION
    assert re.findall(r"(?m)^\| (\d) \|", text_of("README.md")) == list("01234")
    assert re.findall(r"(?m)^ +(\d)  \w", script.__doc__) == list("01234")


def test_the_keys_of_the_result_are_told(world):
    told = re.sub(r"each with `uuid`\s+and\s+`reason`", "", text_of("settings").split("one object with the keys")[1])
    assert re.findall(r"`(\w+)`", told) == list(world.sync("--diff").result)


FIGURES = [  # what differs from run to run
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+\d\d(:\d\d)?)?|\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
    (r"(?m)^( *\d+ )\d\d-\d\d \d\d:\d\d +\d+\.\d", r"\1TIME"), (r"port \d+", "port N"), (r"seconds=[\d.]+", "S"),
    (r"\S+/python \S+/python/scripts/", "python python/scripts/"),
    (r"connection to server at \S+ \(\S+?\), |connection to server.*?failed: |Next: .*", "")]


def without_figures(text):
    for figure, name in FIGURES:
        text = re.sub(figure, name, text)
    return " ".join(text.split())


def is_shown(text, name):
    assert without_figures(text) in [without_figures(block) for block in blocks(name, "text")], text


def test_what_is_printed_of_a_morning_is_shown_as_it_is(world):
    """A full run with rejects, an incremental one, and one that failed: log, --check and --status."""
    with world.app.changed(*UNIQUE):
        world.app_has((ANN, "Ann Archer"), (BOB, None), ("4711", "Dan Dyer"))
        world.warehouse_has((DAN, "Dan Dyer"))
        is_shown(world.run("--check").out, "monitoring")
        run = world.run()
        is_shown(run.err + run.out, "settings")
        world.app_has((CAT, None))
        assert "mode=incremental" in world.run("--incremental").out
        assert world.run(APP_PASSWORD="wrong").code == 2
        is_shown(world.run("--status").out, "monitoring")
        from test_diff import THREE_CHANGES  # which imports this file; it holds that they are printed
        is_shown("\n".join(THREE_CHANGES), "monitoring")


def test_readme_shows_the_demo_as_it_is_and_the_demo_readmes_commands():
    done = subprocess.run([sys.executable, str(PROJECT / "python" / "lab" / "demo.py")], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, encoding="utf-8", env=dict(os.environ, PYTHONIOENCODING="utf-8"))
    assert done.returncode == 0 and without_figures(blocks("README.md", "text")[0]) in without_figures(done.stdout)
    for command in typed("README.md")[:2]:
        assert re.sub(r"psql -h \S+ -U postgres -d \S+", "", command) in done.stdout


NOTHING = "SELECT '%s %s'"
TROUBLES = {  # what README says of it: how it is brought about, by settings or by the lack of a privilege
    "the login was refused: ... password authentication failed": (dict(APP_PASSWORD="wrong"), NOTHING),
    "nothing listens there: ... Connection refused": (dict(APP_PORT="1", SYNC_CONNECT_ATTEMPTS="1"), NOTHING),
    "permission denied for table User": ({}, '%s SELECT ON TABLE public."User" %s app_readonly'),
    "permission denied for schema analytics": ({}, "%s USAGE ON SCHEMA analytics %s warehouse_writer"),
    'relation "public.user" does not exist': (dict(APP_TABLE="public.User"), NOTHING),
}


@pytest.mark.parametrize("said", TROUBLES)
def test_a_trouble_reads_as_readme_says(world, said):
    assert said in [row[0] for row in rows_of("README.md")]
    settings, privilege = TROUBLES[said]
    side = world.app if "User" in privilege else world.warehouse
    with side.changed(privilege % ("REVOKE", "FROM"), privilege % ("GRANT", "TO")):
        run = world.run(**settings)
    if world.app.version() < 11:  # which calls every table a relation here
        said = said.replace("for table", "for relation")
    assert run.code in (2, 3) and re.search(re.escape(said).replace(re.escape("..."), ".*"), run.error), run


def test_readmes_sizes_are_those_of_the_performance_page():
    measured = {tuple(row[:2]): (float(row[3]), row[6]) for row in rows_of("performance") if row[2:3] == ["the sync"]}
    for start, rows in (("10 thousand", "10,000"), ("1 million", "1,000,000"), ("10 million", "10,000,000")):
        (first, memory), (again, _) = measured["first load", rows], measured["rerun, unchanged, always", rows]
        told, = [row[1] for row in rows_of("README.md") if row[0].startswith(start)]
        assert told.replace(" of memory", "") == "%s s / %s s, %s MB" % tuple(
            ["%.*f" % (seconds < 10, seconds) for seconds in (first, again)] + [memory])


# SQL: every statement of every page is run


def statements(name):
    """The statements of a page's SQL blocks, each without its comments."""
    text = re.sub(r"(?m)^--.*$", "", "\n".join(blocks(name, "sql")))
    return [statement.strip() for statement in text.split(";") if statement.strip()]


@pytest.mark.parametrize("name", [name for name in PAGES if "compatibility" not in name])
def test_every_statement_runs(world, name):
    """In a warehouse that has seen several runs; rolled back, so that a GRANT or a password stays as it was."""
    world.app_has((ANN, "Ann Archer"), ("x", "Cat Cooper"), (BOB, None))
    for flags in ((), ("--incremental",), ("--strict",)):
        world.sync(*flags)
    for statement in statements(name):
        if not re.search("your_app_password|your_wh_password", statement):  # which make a role that is here already
            of_the_app = re.search('app_readonly|pg_tables|public."User"', statement)
            with (world.app if of_the_app else world.warehouse).holding(statement):
                pass


def test_queries_find_who_is_missing_and_what_was_rejected_and_take_back_who_was_inserted(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
    world.sync()
    world.app.sql('DELETE FROM public."User" WHERE uuid = %s', BOB)
    world.app_has((CAT, None))
    world.sync()
    world.sync(APP_TABLE="nowhere")
    missing, rejected, more, inserted = [
        next(text for text in statements("monitoring") if part in text)
        for part in ("max(started_at)", "jsonb_array_elements", "rejected_before", "USING analytics.athlete_sync_run")]
    assert [str(row[0]) for row in world.warehouse.sql(missing)] == [BOB]
    assert [row[1:] for row in world.warehouse.sql(rejected)] == [(CAT, "name is NULL")]
    assert world.warehouse.sql(more) == [(2, 1, 0)]
    assert world.warehouse.sql(inserted.replace("42", "1")) == [(BOB, "Bob Bowman")]
    assert world.dimension() == {ANN: "Ann Archer"}


def test_less_for_the_apps_role_is_enough(world):
    world.app_has((ANN, "Ann Archer"))
    undo = 'REVOKE SELECT (uuid, name, xmin) ON public."User" FROM app_readonly'
    undo += '; GRANT SELECT ON public."User" TO app_readonly'
    with world.app.changed("; ".join(statements("settings")), undo), world.app.changed(*UNIQUE):
        runs = [world.sync(), world.sync("--incremental")]
    assert [(run.code, run.result["mode"]) for run in runs] == [(0, "full"), (0, "incremental")], runs


@pytest.mark.parametrize("side, role", [("app", "app_readonly"), ("warehouse", "warehouse_writer")])
def test_removal_removes(world, side, role):
    """All of a side's statements in one transaction, rolled back: the role goes, the table stays."""
    block, = [block for block in blocks("compatibility", "sql") if "DROP ROLE " + role in block]
    with getattr(world, side).holding(block) as holder:
        assert holder.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", role) == []
        assert holder.value("SELECT to_regclass(%s) IS NOT NULL", TABLE[side])


PROMISED = """
SELECT athlete_uuid, full_name, source_synced_at FROM analytics.athlete_dim ORDER BY source_synced_at DESC LIMIT 10;
FROM analytics.athlete_dim WHERE source_synced_at < NOW() - INTERVAL '2 days' ORDER BY source_synced_at ASC; | corrupted
SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename = 'User'; | server does not support SSL
GRANT SELECT, INSERT, UPDATE ON TABLE analytics.athlete_dim TO warehouse_writer; | SELECT COUNT(*) FROM public."User";
ALTER ROLE app_readonly WITH PASSWORD 'your_secure_password'; | psql -h <warehouse_host> -U postgres -d <warehouse_db>
GRANT SELECT ON TABLE public."User" TO app_readonly; | GRANT USAGE ON SCHEMA analytics TO warehouse_writer; | DataFrame
python python/scripts/sync_athletes_from_app.py | SELECT COUNT(*) FROM analytics.athlete_dim; | SSL connection required
psql -h <app_host> -U postgres -d <app_db> | pip install -r python/requirements.txt | could not connect to server
SHOW server_encoding; | SHOW client_encoding; | uuid AS athlete_uuid | APP_SSLMODE=require | WH_SSLMODE=require
name AS full_name | tmp_athlete_dim | timeout expired | ping <host> | pg_hba.conf | ON CONFLICT
"""


def test_what_the_guide_promised_is_here():
    text = " ".join(" ".join(map(text_of, PAGES)).split())
    assert [words for words in re.split(r" \| |\n", PROMISED.strip()) if words not in text] == []
