# make demo       install, run the main job on the embedded shapes data set, show reward before and after
# make test       install, run the tests that need neither minutes nor a browser (7 minutes on two cores)
# make test-all   install, run every test (needs Chromium, and what each skipped test names)
# make chaos     install, run the whole campaign of faults (hours; VADER_RAY_CHAOS_KILLS sets the number of kills)
# make docs       install, build the documentation site into site/
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

.PHONY: demo test test-all chaos gate docs clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(VENV)/bin/vader-ray train shapes_hps --workers $(WORKERS)

test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not browser and not chaos"

test-all: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25 -m "not chaos"

chaos: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest --timeout 0 tests/chaos

gate: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/hadolint Dockerfile

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo site/index.html

clean:
	rm -rf $(VENV)
