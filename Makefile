# make demo     set up, predict and interpolate with the checkpoint, then train on moving digits for a few minutes; GIFs
# make test     set up, run the tests            (make test-slow: the long ones)
# make quality  set up, check style
# make app      set up, the demo in the browser
# make browser  Chromium for the demo's tests, where there is no browser: from Debian's packages, as root
#
# Everything is installed into .venv; PYTHON chooses the interpreter (3.11 or newer), VENV another folder. `make demo` installs what
# the demo needs only, so that a newcomer waits less; the others add what the tests need.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test test-slow quality app browser

# What the tests use is enough for it, too.
demo: $(firstword $(wildcard $(VENV)/.installed) $(VENV)/.demo)
	$(RUN) examples/demo.py

# The tests need a core each; two run at a time.
test: $(VENV)/.installed
	$(RUN) -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.installed
	$(RUN) -m pytest -m slow -n 2 --dist worksteal

quality: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

app: $(VENV)/.installed
	$(RUN) examples/app.py

browser:
	@for name in "$$MCVD_BROWSER" chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v "$$name" >/dev/null && exit 0; \
	done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; \
	else \
		echo "The demo's tests need a browser: install chromium or google-chrome, or name one by MCVD_BROWSER=..."; exit 1; \
	fi

$(VENV)/.demo: EXTRAS = digits,video
$(VENV)/.installed: EXTRAS = test,digits,video,plots,browser,docs

$(VENV)/.demo $(VENV)/.installed: setup.cfg pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mcvd-diffusers needs Python 3.11 or newer; choose one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c requirements/constraints.txt -e ".[$(EXTRAS)]"
	touch $@
