# make demo     set up, train on moving digits for a few minutes, predict and interpolate, write GIFs
# make test     set up, run the tests            (make test-slow: the long ones)
# make quality  set up, check style
#
# Everything is installed into .venv; PYTHON chooses the interpreter (3.11 or newer), VENV another folder.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test test-slow quality

demo: $(VENV)/.installed
	$(RUN) examples/demo.py

# The tests need a core each; two run at a time.
test: $(VENV)/.installed
	$(RUN) -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.installed
	$(RUN) -m pytest -m slow -n 2 --dist worksteal

quality: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(VENV)/.installed: setup.cfg pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mcvd-diffusers needs Python 3.11 or newer; choose one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c requirements/constraints.txt -e ".[test,digits,video,plots]"
	touch $@
