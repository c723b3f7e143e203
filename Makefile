# Every target works on a fresh clone: the environment is made on first use and again when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

TRAINER_VENV := .venv-trainer

.PHONY: test test-trainer check lint types docs docs-check bench clean

test: $(VENV)/.installed
	$(BIN)/python -m pytest

# The trainer on the CPU, two ranks of gloo; no compiler is needed. Where the index has CUDA builds of torch only, name one with CPU
# builds: `PIP_EXTRA_INDEX_URL=... make test-trainer`. With LLMCHECK_TRAINER=required a package that is missing fails the tests; else they
# would be left out.
test-trainer: $(TRAINER_VENV)/.installed
	DS_ACCELERATOR=cpu DS_BUILD_OPS=0 CUDA_VISIBLE_DEVICES= LLMCHECK_TRAINER=required $(TRAINER_VENV)/bin/python -m pytest tests/trainer

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m pytest

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

docs-check: $(VENV)/.installed
	$(BIN)/python docs/generate.py --check

# Other estimators are left out where they are not installed: `make bench PEERS="python-with-accelerate python-with-fitcheck"`.
bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.accuracy.run
	$(BIN)/python -m benchmarks.holdout.run
	$(BIN)/python -m benchmarks.steptime.run
	$(BIN)/python -m benchmarks.logs.run
	$(BIN)/python -m benchmarks.published.run
	-$(BIN)/python -m benchmarks.speed.run
	$(BIN)/python -m benchmarks.peers.run $(foreach python,$(PEERS),--with $(python))

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# DeepSpeed comes as source: with DS_BUILD_OPS=0 it is built without torch and without a compiler.
$(TRAINER_VENV)/.installed: pyproject.toml tests/trainer/constraints.txt
	$(PYTHON) -m venv $(TRAINER_VENV)
	DS_BUILD_OPS=0 $(TRAINER_VENV)/bin/python -m pip install --quiet --constraint tests/trainer/constraints.txt --editable '.[test,train]' bitsandbytes
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(TRAINER_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
