# Everything runs in a virtual environment of its own, made on first use from pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ZOO := .venv-zoo

.PHONY: docs demo test fuzz zoo lint format bench bench-pet bench-pet-study bench-ct-study bench-zoo bench-step bench-delta bench-adapt clean
.DEFAULT_GOAL := test

$(VENV)/.installed: pyproject.toml constraints.txt benchmarks/adapt/files.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/adapt/files.txt
	touch $@

demo: $(VENV)/.installed
	$(BIN)/tgd pet demo

# Small tensors in a process per core: one thread each is faster than several that wait for each other.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto

# Damaged files of every format: each is accepted or refused, in 20 s and 2 GB. Tests read a tenth of them.
fuzz: export OMP_NUM_THREADS ?= 1
fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz.run 10000

# The networks people use, in an environment of its own: several gigabytes, kept from run to run.
$(ZOO)/.installed: pyproject.toml tests/zoo/requirements.txt tests/zoo/files.txt
	$(PYTHON) -m venv --clear $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/zoo/requirements.txt
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/zoo/files.txt
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

zoo: export OMP_NUM_THREADS ?= 1
zoo: $(ZOO)/.installed
	$(ZOO)/bin/python -m pytest -n auto --dist worksteal tests/zoo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.kse
	$(BIN)/python -m benchmarks.traffic

bench-pet: $(VENV)/.installed
	$(BIN)/python -m benchmarks.pet_batch_norm

# docs/pet.md says how long it takes; interrupted, it goes on where it stopped.
bench-pet-study: $(VENV)/.installed
	$(BIN)/python -m benchmarks.pet_study

# docs/ct_study.md says how long it takes; interrupted, it goes on where it stopped.
bench-ct-study: export OMP_NUM_THREADS ?= 1
bench-ct-study: $(VENV)/.installed
	$(BIN)/python -m benchmarks.ct_study

bench-zoo: $(ZOO)/.installed
	$(ZOO)/bin/python -m benchmarks.zoo

bench-step: $(ZOO)/.installed
	$(ZOO)/bin/python -m benchmarks.step

# Takes hours; interrupted, it goes on where it stopped.
bench-adapt: export OMP_NUM_THREADS ?= 1
bench-adapt: $(VENV)/.installed
	$(BIN)/python -m benchmarks.adapt.study
	$(BIN)/python -m benchmarks.adapt.slack
	$(BIN)/python -m benchmarks.adapt.page

bench-delta: $(VENV)/.installed
	$(BIN)/python -m benchmarks.delta_switch

clean:
	rm -rf $(VENV) $(ZOO) runs site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict --site-dir site
