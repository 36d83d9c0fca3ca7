# make demo       install, run the main job on the embedded shapes data set, show reward before and after
# make test       install, run the tests that need neither minutes nor a browser (6 minutes on two cores)
# make test-all   install, run every test except those of make chaos (needs Chromium, and what each skipped test
#                 names)
# make chaos      install, run the long tests: the campaign of faults with its table of kills, and clusters that
#                 lose machines (hours; VADER_RAY_CHAOS_KILLS sets the number of kills, 10 by default)
# make audit      look up known vulnerabilities of the installed packages (needs pypi.org's vulnerability data)
# make docs       install, build the documentation site into site/
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
# Packages are installed without bytecode; the first import of a module must write it, or every process compiles it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-begin test test-all chaos gate audit docs clean

$(VENV)/installed: pyproject.toml
	@echo "installing the package and what it needs into $(VENV): about 4 minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check "pip>=25.1" # the first with --group
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile --editable . --group dev
	touch $@

demo: demo-begin $(VENV)/installed
	$(VENV)/bin/vader-ray train shapes_hps --workers $(WORKERS)

demo-begin:
	@echo "demo: trains a tiny video model on $(WORKERS) CPU workers: about 4 minutes on two cores," \
	  "5 with the installation, and the download; then see runs/"

test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not browser and not chaos"

test-all: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25 -m "not chaos"

chaos: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest --timeout 0 -m chaos

gate: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/hadolint Dockerfile

# Not a part of the gate, which needs no network. Local versions (2.14.1+cu130) are those of the same release.
audit: $(VENV)/installed-dev
	$(VENV)/bin/pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > $(VENV)/audited.txt
	@$(VENV)/bin/pip-audit -r $(VENV)/audited.txt --no-deps --disable-pip --strict --progress-spinner off || { echo \
	  "The audit is not clean: a package with a known vulnerability is listed above, or pypi.org did not answer for a" \
	  "package, and then nothing is known; without a network there is no audit." >&2; exit 1; }

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo site/index.html

clean:
	rm -rf $(VENV)
