# Everything runs in .venv, which the first target makes; only Python 3.11+ and make are needed.
#
#   make demo    optimise two real pretrained models and a sampler of digits, check them, and time them beside others
#   make test    the test-suite
#   make lint    ruff, and mypy --strict on the package as it is installed
#   make zoo     all 43 real models (or MODELS="id id") beside onnxsim, onnxslim and onnxoptimizer
#   make bench   the rewriting engine beside others; cost of verification; memory at 3 GB; schedules; whole samplers; pruning; low rank; experts; backends; ops on XLA; proofs
#   make tpu     compile denoisers and sampling loops for TPUs with libtpu (213 MB; no TPU is needed): tests and a table
#   make test-torch-xla  run models by torch_xla, in .venv-torch-xla of its own (7.7 GB: torch 2.9.1 and torch_xla 2.9.0), on the CPU
#   make test-lowest  test ONNX models with the least versions that pyproject.toml allows and without torch, in .venv-lowest
#   make clean   remove .venv, .venv-torch-xla, .venv-lowest and what was built (fetched models in .zoo stay)

PYTHON ?= python3
# worksteal: a worker runs whole files, so that what a file's tests share is made once.
PYTEST_ARGS ?= -n 2 --dist worksteal
PIP_ARGS ?=
MODELS ?=

VENV := .venv
TORCH_XLA := .venv-torch-xla
LOWEST := .venv-lowest
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: demo test lint ruff types zoo bench tpu test-torch-xla test-lowest clean
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

test-torch-xla: $(TORCH_XLA)/made.stamp
	PJRT_DEVICE=CPU $(TORCH_XLA)/bin/python -m pytest -s -p no:logging -m torch_xla tests/backends/xla/test_torch_xla.py

# Tests that need no torch and reach what older versions of the dependencies lack.
test-lowest: $(LOWEST)/made.stamp
	$(LOWEST)/bin/python -m pytest -k "not fx" --ignore tests/ir/onnx/test_onnx_graphsurgeon.py tests/ir/onnx \
		tests/axes/test_invalid_nodes.py tests/passes/test_fuse_attention.py tests/passes/lower_moe/test_moe_contrib.py \
		tests/tools/test_command_line.py tests/tools/test_run_calibration.py tests/tools/test_verify_command.py \
		tests/verify/test_empty_axes.py tests/verify/test_prove_models.py

clean:
	rm -rf $(VENV) $(TORCH_XLA) $(LOWEST) build *.egg-info

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

# torch 2.9 has no other build than CUDA's on PyPI, and does not import without the libraries that it needs.
$(TORCH_XLA)/made.stamp: pyproject.toml constraints-torch-xla.txt
	$(PYTHON) -m venv $(TORCH_XLA)
	$(TORCH_XLA)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-torch-xla.txt $(PIP_ARGS) -e ".[torch-xla,diffusers,dev]"
	touch $@

$(LOWEST)/made.stamp: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
		| sed 's/>=/==/' > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt $(PIP_ARGS) -e . pytest pytest-timeout hypothesis
	touch $@

$(VENV)/bench.stamp: $(VENV)/all.stamp
	$(INSTALL) -e ".[all,bench]"
	touch $@
