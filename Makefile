# make demo          serve the examples       make lint    ruff and mypy
# make test          run the tests            make bench   measure, and write docs/benchmarks.md
# make test-quick    the quick ones of them, and one smoke of a server, in under 3 minutes
#                    tests over several processes are on a directory, and the important ones on a Redis and a PostgreSQL
#                    server as well; all of them are with  make test PANEL_SCHEDULE_TEST_STORES=all
# make test-newest   the last part of `make test`: those of servers, sessions, jobs and workers on the newest Python
#
# Everything is installed into .venv, again only when pyproject.toml has changed; what the newest Python needs for its
# part into .venv-newest.

PYTHON ?= python3
PORT ?= 5006

venv := .venv
python := $(venv)/bin/python

# What a newer Python may well break: servers, sessions, jobs and worker processes. But not what they say of a mistake,
# nor how they bear many runs.
newest := background executors modules no_session process_tasks server sessions stopping worker_processes
mistakes := store_that_cannot_be_opened or served_script_is_refused or waited_too_long or cannot_say_what_it_is
newest := $(newest:%=tests/test_%.py) -k "not (thousand or $(mistakes))"

# Two processes get file after file, long ones first; what measures times or load runs after all others, by itself.
together := --dist loadfile --no-loadscope-reorder
alone := -m alone $(shell grep -l "pytest.mark.alone" tests/test_*.py)

# Once: where Python may not write, each process that a test starts would do it again.
compile = @$(python) -m compileall -q panel_schedule

.PHONY: demo test test-all test-slow test-rest installed-newest test-newest test-selected test-quick lint bench clean

demo: .venv/.examples
	@echo
	@echo "  The examples:  http://localhost:$(PORT)    (Ctrl-C stops them)"
	@echo
	@$(python) -m panel serve examples/*.py --index examples/index.py --setup setup_scripts/demo.py --port $(PORT) \
		--allow-websocket-origin localhost:$(PORT) --allow-websocket-origin 127.0.0.1:$(PORT)

test: meanwhile := installed-newest
test: test-all test-newest

test-all: .venv/.test
	@setup_scripts/system_packages.sh
	$(compile)
	@$(MAKE) --no-print-directory -j 3 test-slow test-rest $(meanwhile)
	$(python) -m pytest $(alone)

test-slow:
	$(python) -m pytest -n 2 $(together) -m "slow and not (alone or unhurried)"

# At the same time, with what those leave of the processors, as they mostly wait; it tells at its end what it has found.
test-rest:
	@nice -n 10 $(python) -m pytest --timeout 360 -m "unhurried or not (slow or alone)" >.venv/rest.log 2>&1; ended=$$?; \
	cat .venv/rest.log; exit $$ended

# For the last part: in the meantime, too.
installed-newest:
	@newest=$$($(PYTHON) setup_scripts/newest_python.py); [ -z "$$newest" ] || \
	nice -n 10 $(MAKE) --no-print-directory venv=.venv-newest PYTHON=$$newest .venv-newest/.test-servers

test-newest: .venv/.test
	@newest=$$($(python) setup_scripts/newest_python.py) || exit; \
	if [ -z "$$newest" ]; then echo "Not tested on a newer Python than that of .venv: of 3.12 to 3.14 none is here."; exit; fi; \
	$(MAKE) --no-print-directory venv=.venv-newest PYTHON=$$newest test-selected

test-selected: $(venv)/.test-servers
	$(compile)
	$(python) -m pytest -n 2 $(together) -m "not alone" $(newest)
	$(python) -m pytest -m alone $(newest)

test-quick: .venv/.test
	$(compile)
	$(python) -m pytest -n 2 $(together) -m "smoke or not (slow or alone)"

lint: .venv/.test
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy

bench: .venv/.bench
	$(python) -m tests.bench

clean:
	rm -rf .venv .venv-newest build dist .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of packages; a venv that was made by hand has none and gets what it lacks.
stamps := $(addprefix $(venv)/.,examples test test-servers bench)
$(venv)/.examples: extras := examples
$(venv)/.test: extras := examples,test
$(venv)/.test-servers: extras := test-servers
$(venv)/.bench: extras := examples,test,bench

$(stamps): pyproject.toml | $(venv)/bin/python
	@echo "Installing panel-schedule[$(extras)] into $(venv) ..."
	@$(python) -m pip install --quiet --disable-pip-version-check --editable ".[$(extras)]"
	@touch $@

$(venv)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "panel-schedule needs Python 3.11 or later, and $(PYTHON) is not: name one, as in  make PYTHON=python3.13" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(venv) || { rm -rf $(venv); exit 1; }
