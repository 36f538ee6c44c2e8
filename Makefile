# make demo | test | check | oracle | bench: each sets up what it needs and reuses it the next time.
PYTHON ?= python3
VENV ?= .venv
ORACLE ?= .venv-oracle

.PHONY: demo test check oracle bench clean
.DELETE_ON_ERROR:

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[torch,dev]"
	touch $@

$(ORACLE)/.installed: pyproject.toml tests/oracle/requirements.txt
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/python -m pip install --quiet -r tests/oracle/requirements.txt
	touch $@

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest

check: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) $(ORACLE) build dist
