# Plaudit's commands. `make demo` and `make test` set up .venv by themselves; nothing else has to be installed by hand.
# `make demo` and `make install` install what runs need; `make test` and `make lint` add what tests need.
#
#   ARGS      recipe keys for the demo, for example ARGS="seed=1"
#   PYTHON    the interpreter that makes .venv (3.11 or newer)
#   PIP_ARGS  passed through to pip, for a CPU-only index or a mirror

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
CODE := src tests benchmarks docs/ppo_by_hand.py

.PHONY: demo install test test-again test-plain test-long survive bench lint format docs clean

demo: $(READY)
	PLAUDIT_PIP_ARGS="$(PIP_ARGS)" $(BIN)/plaudit demo $(ARGS)

install: $(READY)
	@echo 'Plaudit is in $(VENV): activate it with `. $(BIN)/activate`, or call $(BIN)/plaudit'

# A process a core and one more; the tests of a file stay together, since they share what they have set up, and the longest files go
# first (tests/conftest.py). Byte code is kept, also where a container switches that off: else every process compiles
# all sources anew. Tensors this small gain nothing from a second thread.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest
SPREAD := -n auto --dist loadfile --no-loadscope-reorder

test: $(DEV)
	$(PYTEST) -m "not slow" $(SPREAD)

# What failed last, one after the other; nothing to run is a failure, too.
test-again: $(DEV)
	$(PYTEST) -m "not slow" -n 0 --last-failed --last-failed-no-failures none

# The tests of correctness once more, with everything left to the libraries that can be; without those that switch the
# libraries' own ways on and off themselves, those that compute nothing with a model, and whole runs that only learn.
test-plain: $(DEV)
	PLAUDIT_PLAIN=1 $(PYTEST) -m "not slow" $(SPREAD) $(addprefix --ignore ,$(NOT_PLAIN)) -k "not learns_a_simple_reward" \
		tests/models tests/rewards tests/rollout tests/stages/test_ppo_stage.py tests/stages/test_ppo_law.py \
		tests/stages/test_train.py
NOT_PLAIN := tests/rewards/texts tests/rewards/test_reward_sources.py tests/rollout/test_fused_decoder.py \
	$(addprefix tests/models/test_,fused.py short_attention.py adapter_only.py examine.py \
	checkpoint_files.py tokens.py optimiser.py)

# With the extra quantise, which makes every start some seconds slower: the fast tests go without its 4 bits.
test-long: $(DEV)
	$(PYTEST) -m slow
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[quantise]"
	$(PYTEST) tests/models/test_quantised.py

# The demo twice: unbroken, and killed every 60 to 90 seconds. Do not edit src meanwhile.
survive: $(READY)
	PLAUDIT_PIP_ARGS="$(PIP_ARGS)" $(BIN)/python benchmarks/survive.py --folder runs/survive --json $(ARGS)

# Ours and the peers' in turn: ARGS="--model FOLDER --trl112 PYTHON ..." (benchmarks/bench.py).
bench: $(READY)
	$(BIN)/python benchmarks/bench.py $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# The docs as a site that can be searched, in build/site; a link that leads nowhere fails it.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# torch goes first and by its pinned version: asked for through a dependency, pip would take the newest CUDA build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Plaudit needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[label]"
	touch $(READY)

$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev,label]"
	touch $(DEV)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
