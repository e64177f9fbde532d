"""README, .env.example and Makefile say what the script does: it is asked, and they are read."""

from __future__ import annotations

import re

import pytest

from lab.servers import PROJECT

EXIT_CODES = range(5)


def text_of(name):
    return (PROJECT / name).read_text(encoding="utf-8")


def words(text):
    """One blank between words: how argparse breaks its lines differs between Pythons."""
    return " ".join(text.replace("optional arguments:", "options:").split())


def default_is_said(line, setting):
    return setting.default is None or setting.default in line.replace("\\|", "|")


@pytest.mark.parametrize("name", ["README.md", ".env.example"])
def test_every_setting_is_there_with_its_default(script, name):
    lines = text_of(name).splitlines()
    unsaid = [setting.name for setting in script.SETTINGS if not any(
        re.search(r"\b%s\b" % setting.name, line) and default_is_said(line, setting) for line in lines)]
    assert unsaid == []


def test_env_example_names_no_setting_that_the_script_does_not_know(script):
    named = set(re.findall(r"\b(?:APP|WH|SYNC)_[A-Z_]+\b", text_of(".env.example")))
    assert named == {setting.name for setting in script.SETTINGS}


def test_env_example_can_be_copied_as_it_is(script, world):
    """Filled in nowhere, it asks for what is required and for nothing else."""
    run = world.sync("--env-file", str(PROJECT / ".env.example"), **dict.fromkeys(world.lab.settings()))
    assert run.code in (1, 2), run
    assert not re.search(r"(SYNC|TABLE|COLUMN|PORT)\w* (must|not)", run.error), run


def test_readme_names_no_setting_that_the_script_does_not_know(script):
    named = set(re.findall(r"\b(?:APP|WH|SYNC)_[A-Z_]+[A-Z]\b", text_of("README.md")))
    known = {setting.name for setting in script.SETTINGS} | {"APP_PG_BINDIR", "WH_PG_BINDIR"}
    assert named - known == set()


@pytest.mark.parametrize("code", EXIT_CODES)
def test_every_exit_code_is_in_the_readme_and_the_docstring(script, code):
    assert re.search(r"^\|\s*`?%d`?\s*\|" % code, text_of("README.md"), re.M), "a row of a table"
    assert re.search(r"^ +%d  \w" % code, script.__doc__, re.M)


def test_readme_shows_help_as_it_is(world):
    shown = words(world.run("--help", COLUMNS="100").out)
    assert shown in words(text_of("README.md"))


def test_every_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.M))
    for name in ("README.md", ".env.example", ".ci/run", "python/scripts/sync_athletes_from_app.py"):
        named = set(re.findall(r"(?:`|^ *|\$ )make ([a-z][\w-]*)", text_of(name), re.M))
        assert named - targets == set(), name
    assert {"help", "install", "sync", "demo", "test", "lint", "clean"} <= targets
    assert "make test" in text_of(".ci/run")


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"\b(?:python|sql)/[\w./-]*\w\.\w+", text_of("README.md") + text_of("Makefile")))
    assert [name for name in sorted(named) if not (PROJECT / name).exists()] == []


def test_every_option_that_is_named_exists(world):
    shown = world.run("--help").out
    lines = [line for line in text_of("README.md").splitlines() if "sync_athletes_from_app.py" in line]
    for option in re.findall(r" (--[a-z-]+)", "\n".join(lines)):
        assert option in shown


def test_no_secret_is_kept_in_the_repository():
    ignored = text_of(".gitignore").split()
    assert ".env" in ignored and "!.env.example" in ignored
