# Two commands on a fresh machine: `make run` serves, ready for `docker push`; `make test` passes.
# They need python >= 3.11 with venv, make and a package index. Everything is installed below this
# directory; the system's Python is left as it is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# `make run` needs only Mayfly's dependencies: no linter, no test tool.
RUN_VENV := .cache/run
RUN_STAMP := $(RUN_VENV)/.installed
OLDEST := .cache/oldest

.PHONY: run test test-oldest test-browser test-kubelet test-signatures test-packages lint format benchmark soak audit dist packages release clean

run: $(RUN_STAMP)
	$(RUN_VENV)/bin/mayfly serve --root .cache/store --state-dir .cache/state $(ARGS)

# Side by side where they may; python -m tests says which. ARGS are options of pytest.
test: lint
	$(BIN)/python -m tests $(ARGS)

# Tests left out of `make test`, since their programs take long to build: .ci/programs.toml has
# them.
test-kubelet: $(STAMP)
	bash .ci/install
	bash .ci/install test-kubelet
	MAYFLY_REQUIRE_ALL=1 $(BIN)/pytest tests/kubelet $(ARGS)

test-browser: $(STAMP)
	bash .ci/install
	bash .ci/install test-browser
	MAYFLY_REQUIRE_ALL=1 $(BIN)/pytest tests/browser $(ARGS)

test-signatures: $(STAMP)
	bash .ci/install
	bash .ci/install test-signatures
	MAYFLY_REQUIRE_ALL=1 $(BIN)/pytest tests/signatures $(ARGS)

test-packages: $(STAMP)
	bash .ci/install
	bash .ci/install test-packages
	MAYFLY_REQUIRE_ALL=1 $(BIN)/pytest tests/packages $(ARGS)

# With the oldest version of each dependency that pyproject.toml allows; `make test` has the newest.
# CI runs the tests in SHORT, which use every dependency: aiohttp (http, api), bcrypt and pyjwt (auth),
# aiofiles (audit), cryptography (certificate), pyyaml (lists), prometheus-client (metrics), zstandard
# and click (seekable, by the commands it runs). ARGS are other tests.
SHORT := tests/http/test_aiohttp_internals.py tests/http/test_framing.py tests/http/test_connection.py \
	tests/http/test_response.py tests/http/test_http.py tests/api tests/auth \
	tests/access/test_audit.py tests/pki/test_certificate.py tests/upstream/test_lists.py \
	tests/telemetry/test_metrics.py tests/bundle/test_seekable.py
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/pytest --numprocesses=auto --dist=loadscope $(or $(ARGS),$(SHORT))

$(OLDEST)/.installed: pyproject.toml
	$(call make_venv,$(OLDEST))
	$(PYTHON) -B .ci/oldest >$(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt \
		--editable '.[dev]' --config-settings editable_mode=compat
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml
	$(call make_venv,$(VENV))
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --config-settings editable_mode=compat
	touch $@

$(RUN_STAMP): pyproject.toml
	$(call make_venv,$(RUN_VENV))
	$(RUN_VENV)/bin/python -m pip install --quiet --editable . --config-settings editable_mode=compat
	touch $@

# Debian splits venv off, and `python3 -m venv` then fails halfway.
define make_venv
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) makes no virtual environments: install its venv module (Debian and Ubuntu:" \
			"apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(1)
endef

benchmark: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

# The long form of the tests that hammer a server: seconds of clients at work, sequences for each
# model, networks for each client, servers killed. -s shows what each did.
soak: $(STAMP)
	MAYFLY_SOAK=1 MAYFLY_SOAK_SECONDS=60 MAYFLY_SOAK_EXAMPLES=200 MAYFLY_SOAK_SEEDS=5 MAYFLY_SOAK_ROUNDS=1000 \
		$(BIN)/pytest -s tests/registry/test_collecting.py tests/bundle/test_interrupted.py tests/faults tests/clients/test_faults.py tests/clients/test_node_script.py tests/hostile $(ARGS)
	MAYFLY_FUZZ_REQUESTS=10000 MAYFLY_FUZZ_EXAMPLES=2000 $(BIN)/pytest -s tests/fuzz $(ARGS)

# Known vulnerabilities of the installed packages; exit code 2 where nobody could be asked.
audit: $(STAMP)
	$(BIN)/python -B .ci/audit

# One file that runs without Python: dist/mayfly-VERSION-linux-ARCH (docs/install.md), for this
# machine's architecture, or for ARCH=aarch64.
ifdef ARCH
dist:
	deploy/onefile/foreign.sh $(ARCH)
else
dist: $(RUN_STAMP)
	$(RUN_VENV)/bin/python deploy/onefile/build.py
endif

# Packages of it for distributions, for pip and for container runtimes, with checksums.
packages: $(RUN_STAMP) dist
	$(RUN_VENV)/bin/python deploy/packages/build.py

# Build and check a release of the last commit; ARGS=--tag also writes the changelog and tags it.
release:
	$(PYTHON) -B .ci/release $(ARGS)

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
