# Everything a newcomer needs: `make demo` to see it, `make test` to trust it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 7860

.PHONY: venv demo test lint bench pictures soak docs clean

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kedit_hub needs Python 3.11 or newer: make venv PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# With a development hub beside it, so that pushing and pulling can be tried too; without DEMO_HUB the real Hub is used.
demo: venv
	DEMO_HUB=.cache/demo-hub PORT=$(PORT) $(BIN)/python app.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two workers of one thread each: on small tensors a second thread costs more than it brings, and where a test wants one it must not spin
# while the other worker has the core. Files in the order of their names: sorted by their number of tests, those with a few long ones
# (a browser, processes) would come last, and a worker would wait for the other.
test: lint chromium
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The browser test needs a Chromium; Debian and Ubuntu have one as a package. Where there is none and it cannot be installed,
# the browser test says that it was skipped.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } || \
	  echo "no Chromium found: the browser test will be skipped (install one with: sudo apt-get install chromium)"

# What runs on the embedded models; benchmarks/counterfact.py wants a model and records of your own.
bench: venv
	for script in single_edits stack paraphrases runtime_cost fingerprint artifact datasets evaluation \
	  unshadowing drift versus_peft packed gate_cost solve gate two_layers threads quality_curve memory_editors editors throughput; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$script.py || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.space

# The Space as it looks now, for review and for the documentation.
pictures: venv chromium
	$(BIN)/python -m benchmarks.space_pictures docs/images

# What is promised about hostile and damaged patches, at numbers too large for every change.
soak: venv
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

docs: venv
	$(BIN)/python -m pytest tests/docs

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
