# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
DEEPSPEED := $(shell sed -n 's/^deepspeed==//p' constraints.txt)

# DeepSpeed compiles its kernels once; another release must not find them.
export TORCH_EXTENSIONS_DIR := $(VENV)/torch_extensions/deepspeed-$(DEEPSPEED)
export PATH := $(BIN):$(PATH)
export DS_ACCELERATOR ?= cpu
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint unit real clean

demo: $(VENV)/.validate
	planner plan cluster_configs/qwen2-72b-64xh100.yaml
	planner validate cluster_configs/this-machine-cpu.yaml

test: lint unit real

lint: $(VENV)/.ci
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	codespell

unit: $(VENV)/.ci
	pytest -m "not real and not ray and not gpu" -n 2 -q

real: $(VENV)/.ci
	pytest -m "(real or ray) and not gpu" -n 2 --dist loadfile -q tests

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "planner needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.validate: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[validate]'
	touch $@

$(VENV)/.ci: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[validate,report,test,lint]'
	touch $@ $(VENV)/.validate
