# Everything runs in .venv, which the first target makes; only Python 3.11+ and make are needed.
#
#   make demo    optimise two real pretrained models and a sampler of digits, check them, and time them beside others
#   make test    the test-suite
#   make lint    ruff, and mypy --strict on the package as it is installed
#   make zoo     all 43 real models (or MODELS="id id") beside onnxsim, onnxslim and onnxoptimizer
#   make bench   the rewriting engine beside others; cost of verification; memory at 3 GB; schedules; whole samplers; pruning; low rank; experts; backends; ops on XLA; proofs
#   make tpu     compile denoisers and sampling loops for TPUs with libtpu (213 MB; no TPU is needed): tests and a table
#   make clean   remove .venv and what was built (fetched models in .zoo stay)

PYTHON ?= python3
# worksteal: a worker runs whole files, so that what a file's tests share is made once.
PYTEST_ARGS ?= -n 2 --dist worksteal
PIP_ARGS ?=
MODELS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: demo test lint ruff types zoo bench tpu clean
.DELETE_ON_ERROR:

demo: $(VENV)/all.stamp
	$(BIN)/python -m benchmarks.demo

# Bytecode is written even where the environment says no: else every process that tests start compiles the package.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/all.stamp
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: ruff types

ruff: $(VENV)/all.stamp
	$(BIN)/ruff check .

# mypy reads the wheel's content: the folders passes/, backends/ and tools/ are graphopt.* only once installed.
types: $(VENV)/all.stamp
	rm -rf build
	$(INSTALL) --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --strict -p graphopt

zoo: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.zoo $(MODELS)

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.verification
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.schedules
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.hoist
	$(BIN)/python -m benchmarks.pruning
	$(BIN)/python -m benchmarks.prune_zoo
	$(BIN)/python -m benchmarks.prune_and_tune
	$(BIN)/python -m benchmarks.low_rank
	$(BIN)/python -m benchmarks.moe
	$(BIN)/python -m benchmarks.backends
	$(BIN)/python -m benchmarks.xla_ops
	$(BIN)/python -m benchmarks.prove --every 8

tpu: $(VENV)/tpu.stamp
	$(BIN)/python -m pytest -m tpu tests
	$(BIN)/python -m benchmarks.tpu_aot

clean:
	rm -rf $(VENV) build *.egg-info

# A stamp is newer than what it was made from, so that the set-up runs again only when that changes.
$(VENV)/made.stamp:
	$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('graphopt needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/base.stamp: pyproject.toml constraints.txt $(VENV)/made.stamp
	$(INSTALL) -e .
	touch $@

$(VENV)/all.stamp: $(VENV)/base.stamp
	$(INSTALL) -e ".[all]"
	touch $@

$(VENV)/tpu.stamp: $(VENV)/all.stamp
	$(INSTALL) -e ".[all,tpu]"
	touch $@

$(VENV)/bench.stamp: $(VENV)/all.stamp
	$(INSTALL) -e ".[all,bench]"
	touch $@
