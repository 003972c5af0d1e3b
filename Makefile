# Every target sets up what it needs in .venv, and again whenever pyproject.toml changes. Needs make and Python 3.11 or newer.

PYTHON ?= python3
FUZZ_SEED ?= 6
BIN := .venv/bin
DEMO := .venv/for-the-demo
DEVELOPER := .venv/for-the-gate
WEB := .venv-web
DEPENDENCIES := .venv-dependencies
FLOORS := .venv-floors
RELEASE := build/release
CPU_BUILD := $(BIN)/pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-web soak fuzz check check-deps check-floors check-release results ship map format clean

help:
	@echo "make demo    train, evaluate and picture a small CeiT in runs/demo (about eight minutes on two cores with fast bf16)"
	@echo "make test    run the tests"
	@echo "make test-web  the tests in a browser: needs Chromium; makes an environment of its own, fetches onnxruntime-web once"
	@echo "make soak    commands killed, disks filled, files damaged, by the hundred (half an hour; Linux)"
	@echo "make check   the gate: format, lint and types of all code, tests"
	@echo "make fuzz    give 100,000 damaged files and requests to all that reads them; FUZZ_SEED=N gives others"
	@echo "make check-deps     advisories and licences of all that a user installs, and a list of it in build/sbom.json"
	@echo "make check-floors   the tests with the oldest dependencies that are allowed; on Linux 8 GB, with torch for CUDA"
	@echo "make check-release  builds wheel and sdist, installs each in an empty environment, trains and predicts with it"
	@echo "make results write the tables of README and docs anew, from the runs under studies and from the code"
	@echo "make ship    put the weights of a finished run into the package: make ship RUN=runs/NAME AS=MODEL.TAG"
	@echo "make map     draw the map of the code anew, the table of its rooms in CONTRIBUTING.md, and the names that ceit list prints"
	@echo "make format  rewrite the code as the gate wants it, where that can be done by a machine"
	@echo "make clean   remove everything that these targets made, except runs/"

demo: $(DEMO)
	$(BIN)/ceit demo --output runs/demo

# One thread a worker: torch would otherwise start as many as there are cores in each of them.
test: $(DEVELOPER)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile

# gradio asks for an older Pillow than the newest, so these tests have an environment of their own.
test-web: $(WEB)/ready
	@command -v chromium >/dev/null || { echo "error: no chromium found; install it: apt-get install chromium" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(WEB)/bin/python -m pytest --quiet -m browser tests/browser tests/web

# With a small disk in memory, which Linux lets every user have.
soak: $(DEVELOPER)
	@command -v unshare >/dev/null || { echo "error: no unshare found; it comes with util-linux, on Linux" >&2; exit 1; }
	$(BIN)/python -m tests.faults --output studies/trust/faults.json

check: $(DEVELOPER)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright --pythonpath $(BIN)/python --warnings
	$(MAKE) --no-print-directory test

# Goes on where it was stopped; --help tells how to run a part.
fuzz: $(DEVELOPER)
	$(BIN)/python -m tests.fuzz --inputs 100000 --seed $(FUZZ_SEED) --processes 2

# Three environments of their own: what is asked about must be what a user gets, and nothing else.
check-deps: $(DEPENDENCIES)/ready
	$(DEPENDENCIES)-tools/bin/python -m tools.dependencies $(DEPENDENCIES)/bin/python

# Warnings are no errors here: the oldest versions use what has been deprecated since.
check-floors: $(FLOORS)/ready
	$(FLOORS)/bin/python -m tools.tried studies/trust/floors.json -W default

check-release: $(DEVELOPER)
	rm -rf $(RELEASE)
	$(BIN)/python -m hatchling build --directory $(RELEASE)
	$(BIN)/python -m tools.release $(RELEASE)

results: $(DEVELOPER) map
	$(BIN)/python -m tools.results README.md studies/demo
	$(BIN)/python -m tools.results README.zh-CN.md studies/demo
	$(BIN)/python -m tools.results docs/decisions/small-images.md studies/demo_translate_1
	$(BIN)/python -m tools.measured
	$(BIN)/python -m tools.overview studies
	$(BIN)/python -m tools.pages README.md README.zh-CN.md SECURITY.md docs/*.md docs/decisions/*.md docs/recipes/*.md

# make ship RUN=runs/nano AS=ceit_nano_patch4_32.cifar10
ship: $(DEVELOPER)
	$(BIN)/python -m tools.ship $(RUN) $(AS)

map: $(DEVELOPER)
	$(BIN)/python -m tools.map docs/map.svg
	$(BIN)/python -m tools.names src/ceit/names.json
	$(BIN)/python -m tools.pages CONTRIBUTING.md

format: $(DEVELOPER)
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean:
	rm -rf .venv $(WEB) $(DEPENDENCIES) $(DEPENDENCIES)-tools $(FLOORS) build dist .coverage .hypothesis .pytest_cache .ruff_cache
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment keeps the Python that made it.
.PHONY: same-python
same-python:
ifneq ($(origin PYTHON),file)
	@test ! -x $(BIN)/python || test "$$($(BIN)/python -V)" = "$$($(PYTHON) -V)" || { \
	    echo "error: .venv is of $$($(BIN)/python -V), not of $$($(PYTHON) -V): make clean first" >&2; exit 1; }
endif

# Linux gets torch with CUDA, several gigabytes, unless another build is there already.
$(DEMO): pyproject.toml | same-python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test "$$(uname)" != Linux || command -v nvidia-smi >/dev/null || ls .venv/lib/python*/site-packages/torch >/dev/null 2>&1 || \
	    echo "no GPU found: for torch's small CPU build stop here, run '$(PYTHON) -m venv .venv && $(CPU_BUILD)', and then make again"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[viz]'
	@touch $@

$(DEVELOPER): $(DEMO)
	$(BIN)/python -m pip install --quiet --editable '.[dev,viz]'
	@touch $@

$(WEB)/ready: pyproject.toml
	$(PYTHON) -m venv $(WEB)
	$(WEB)/bin/python -m pip install --quiet --editable '.[viz,test-web]'
	@touch $@

$(DEPENDENCIES)/ready: pyproject.toml
	$(PYTHON) -m venv $(DEPENDENCIES)
	$(DEPENDENCIES)/bin/python -m pip install --quiet '.[data,viz,export,tensorboard,web,heif]'
	$(PYTHON) -m venv $(DEPENDENCIES)-tools
	$(DEPENDENCIES)-tools/bin/python -m pip install --quiet 'pip-audit>=2.10' 'cyclonedx-bom>=7.5'
	@touch $@

$(FLOORS)/ready: pyproject.toml
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet 'uv>=0.9'
	$(FLOORS)/bin/uv pip install --quiet --python $(FLOORS)/bin/python --resolution lowest-direct --editable '.[dev,viz]'
	@touch $@
