# Each target sets up what it needs; a second run re-uses it.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check bench fuzz torture setup sample clean
.DELETE_ON_ERROR:

demo: .venv/.ready  ## the main job on the embedded default: Fashion-MNIST, a residual CNN, three targets
	$(BIN)/edgewright demo --out reports/demo

test: .venv/.ready  ## the whole test suite, with coverage
	$(BIN)/python -m pytest -n auto --cov --cov-report=term:skip-covered

check: .venv/.ready  ## what pre-commit and CI run first
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -n auto -m "not slow"

bench: .venv/.ready-bench  ## side by side with the field's other tools; prints ratios
	for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

MINUTES ?= 60
SEED ?= $(shell date +%s)
ORACLES ?= all
fuzz: .venv/.ready  ## random small networks against independent oracles: make fuzz MINUTES=60 ORACLES=graph SEED=1
	$(BIN)/python -m tests.fuzz --seed $(SEED) --minutes $(MINUTES) --oracles $(ORACLES) --json reports/fuzz/$(SEED).json

torture: .venv/.ready  ## hours of kills, full disks, damaged stores, damaged and hostile files, and runs that share a store
	$(BIN)/python -m tests.torture kills --count 200
	$(BIN)/python -m tests.torture disk --count 40
	$(BIN)/python -m tests.torture store --count 200 --pairs 15
	$(BIN)/python -m tests.torture models --count 10000
	$(BIN)/python -m tests.torture hostile

sample: demo  ## refresh the committed sample reports, from the demo's run and the detection demo's
	$(BIN)/edgewright demo --task detection --out reports/detection
	mkdir -p reports/sample/detection
	cp reports/demo/report.json reports/demo/report.html reports/sample/
	cp reports/detection/report.json reports/detection/report.html reports/sample/detection/

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[all,dev]'
	touch $@

.venv/.ready-bench: .venv/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[all,dev,bench]'
	touch $@

clean:
	rm -rf .venv reports/demo reports/.store
