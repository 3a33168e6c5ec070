SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# ---- pinned tools and choices (make demo SEED=1 DEVICE=gpu ...)
PYTHON3 ?= python3.11
UV_VERSION := 0.13.9
DEVICE ?= cpu
VENV ?= .venv
SEED ?= 0
ROUNDS ?= 50
SIGNAL ?= KILL
DATA_REPO ?= demo-data
PYTHON := $(VENV)/bin/python
FUZZ ?= parse_score parse_prompts jsonl parameters read_partial
FUZZ_SECONDS ?= 600
READY := $(VENV)/.ready-$(DEVICE)
FLOW := argo/templates/self-reward.yaml
SCHEMA := helm/self-reward/values.schema.json

##@ Use

.PHONY: setup
setup: $(READY)  ## Make .venv with everything pinned in requirements/ (DEVICE=cpu or gpu)

# Bytecode is compiled here, since importing torch, trl and vllm from source costs 20 s at every stage otherwise.
$(READY): requirements/$(DEVICE).txt requirements/dev.txt pyproject.toml
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(VENV)/bin/uv pip install --python $(PYTHON) --no-deps --compile-bytecode -r requirements/$(DEVICE).txt -r requirements/dev.txt
	$(VENV)/bin/uv pip install --python $(PYTHON) --quiet --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: demo
demo: setup  ## Run the whole loop on this machine: a tiny model that learns, in about 10 minutes
	PYTHON=$(PYTHON) demo/run.sh "$(DATA_REPO)" $(SEED)

.PHONY: demo-data
demo-data: setup  ## Make only the demo's data repository: training data and tiny base model (DATA_REPO=...)
	$(PYTHON) -m demo.make_data --data_repo "$(DATA_REPO)" --seed $(SEED)

##@ Check

.PHONY: test
test: setup  ## Run all tests that need neither a GPU nor a cluster (PYTEST_ARGS=...)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --durations=15 $(PYTEST_ARGS)

.PHONY: test-server
test-server: setup  ## Run the tests of data on a server with a real server and nginx (OXEN_SERVER=path of an oxen-server 0.65.1)
	$(PYTHON) -m tests.support.servers
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --durations=15 $$(grep -rlE 'import .*servers' tests --include 'test_*.py') $(PYTEST_ARGS)

.PHONY: test-cluster
test-cluster: setup  ## Test a real cluster with Argo: KUBECONFIG= TAG= IMAGE_REGISTRY= (tests/real_cluster/README.md)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/real_cluster/checks.py --durations=0 --timeout 3600 $(PYTEST_ARGS)

.PHONY: test-kills
test-kills: setup  ## Kill a small loop ROUNDS=50 times at random moments and compare its results with an undisturbed one (SIGNAL=TERM)
	$(PYTHON) -m tests.hard.kills --rounds $(ROUNDS) --seed $(SEED) --signal $(SIGNAL)

.PHONY: test-remote-kills
test-remote-kills: ROUNDS = 200
test-remote-kills: setup  ## Kill stages, connections and a real server 200 times (OXEN_SERVER=path ROUNDS=200 SEED=0)
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.hard.remote_kills --rounds $(ROUNDS) --seed $(SEED)

.PHONY: fuzz
fuzz: setup  ## Fuzz the parsers and readers, guided by coverage (FUZZ_SECONDS=600 each; FUZZ=jsonl for one)
	$(VENV)/bin/uv pip install --python $(PYTHON) --quiet --no-deps -r requirements/fuzz.txt
	failed=0; for name in $(FUZZ); do $(PYTHON) fuzz/$$name.py -max_total_time=$(FUZZ_SECONDS) || failed=1; done; exit $$failed

.PHONY: bench-data
bench-data: setup  ## Measure a million rows: dedupe, 04_gen_preferences, push and pull of 1 GB (10 minutes, 15 GB of disk)
	$(PYTHON) -m bench.dedupe
	$(PYTHON) -m bench.preferences
	$(PYTHON) -m bench.store

.PHONY: bench-store
bench-store: setup  ## Measure 1 GB to a real server and back, compared with plain oxenai (OXEN_SERVER=path BENCH_ARGS="--size_gb 5 --shape 1")
	$(PYTHON) -m bench.store --server $(BENCH_ARGS)

.PHONY: test-disk
test-disk: setup  ## Fill the disk at every write of every stage, about an hour (DISK_ARGS="--only 05_dpo --step 8")
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.hard.disk_full --keep_going $(DISK_ARGS)

.PHONY: check
check: setup  ## Check format, lint, types, shell scripts, Dockerfiles, generated files, and scan with Trivy
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck self-reward.sh demo/*.sh images/*/*.sh .ci/run
	$(VENV)/bin/hadolint images/*/Dockerfile
	$(PYTHON) -m self_reward.parameters | diff docs/parameters.md - || { echo 'docs/parameters.md is stale: make docs'; exit 1; }
	$(PYTHON) -m self_reward.repository | diff docs/files.md - || { echo 'docs/files.md is stale: make docs'; exit 1; }
	$(PYTHON) -m self_reward.parameters --argo $(FLOW) | diff $(FLOW) - || { echo '$(FLOW) is stale: make docs'; exit 1; }
	$(PYTHON) -m self_reward.parameters --schema $(SCHEMA) | diff $(SCHEMA) - || { echo '$(SCHEMA) is stale: make docs'; exit 1; }
	$(MAKE) --no-print-directory scan

.PHONY: scan
scan: setup  ## Scan images/ and everything the chart renders with Trivy; high severity fails
	folder=$$(mktemp -d); trap 'rm -r "$$folder"' EXIT; \
	for values in helm/self-reward/ci/*-values.yaml; do \
	  $(VENV)/bin/helm template self-reward helm/self-reward --set checkArgo=false --values "$$values" > "$$folder/$${values##*/}" 2>"$$folder/log" \
	    || { cat "$$folder/log"; exit 1; }; \
	done; \
	for place in "$$folder" images; do \
	  $(VENV)/bin/trivy config --quiet --skip-check-update --skip-version-check --disable-telemetry --table-mode detailed \
	    --severity HIGH,CRITICAL --exit-code 1 "$$place"; \
	done

.PHONY: format
format: setup  ## Format the code and fix what the linter can fix
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

##@ Images

IMAGES ?= data model oxen-server proxy
PREFIX := self-reward
DIRTY = $(shell [[ -z "$$(git status --porcelain)" ]] || echo -dirty)
TAG ?= $(shell git rev-parse --short HEAD)$(DIRTY)
ENGINE ?= $(firstword $(foreach name,docker podman buildah,$(if $(shell $(name) info >/dev/null 2>&1 && echo yes),$(name))))
NO_ENGINE = no docker, podman or buildah answers here ("docker info" fails, say); install or start one, or name it: ENGINE=...
# What an image is called here: podman and buildah say where from, docker does not.
LOCAL = $(if $(filter docker,$(notdir $(ENGINE))),,localhost/)$(PREFIX)
SERVER_BINARY ?=
GIVEN := images/oxen-server/oxen-server
LOAD ?= $(if $(KIND_CLUSTER),kind load docker-image --name $(KIND_CLUSTER))

# Without SERVER_BINARY oxen-server is built from its crate, which takes 45 minutes on two cores. A program that was put
# at $(GIVEN) by hand is taken, and never removed or replaced here.
.PHONY: build-images
build-images:  ## Build the images (DEVICE=cpu|gpu IMAGES="data model" TAG=... ENGINE=docker|podman|buildah SERVER_BINARY=path)
	engine="$(or $(ENGINE),$(error $(NO_ENGINE)))"; tag=$(TAG); revision=$(shell git rev-parse HEAD)$(DIRTY); \
	binary="$(if $(filter oxen-server,$(IMAGES)),$(SERVER_BINARY))"; \
	if [[ -n "$$binary" && ! "$$binary" -ef $(GIVEN) ]]; then \
	  [[ ! -e $(GIVEN) ]] || { echo "build-images: $(GIVEN) is there; remove it, or leave out SERVER_BINARY" >&2; exit 2; }; \
	  trap 'rm -f $(GIVEN)' EXIT; \
	  install "$$binary" $(GIVEN); \
	fi; \
	for name in $(IMAGES); do \
	  flags=(--build-arg "REVISION=$$revision"); \
	  if [[ $$name == model ]]; then flags+=(--build-arg DEVICE=$(DEVICE)); fi; \
	  if [[ $$name == oxen-server && -n "$$binary" ]]; then \
	    flags+=(--build-arg BUILDER=docker.io/library/debian:bookworm-slim); \
	  fi; \
	  $$engine build $(if $(filter buildah,$(notdir $(ENGINE))),--layers) $(BUILD_FLAGS) "$${flags[@]}" \
	    --file images/$$name/Dockerfile --tag $(LOCAL)/$$name:$$tag .; \
	done

.PHONY: push-images
push-images:  ## Push the images to REGISTRY/self-reward/NAME:TAG (REGISTRY=ghcr.io/me; PUSH_FLAGS=--tls-verify=false for plain http)
	engine="$(or $(ENGINE),$(error $(NO_ENGINE)))"; tag=$(TAG); \
	registry=$(patsubst %/,%,$(or $(REGISTRY),$(error push-images: where to? REGISTRY=host/folder))); \
	for name in $(IMAGES); do \
	  $$engine tag $(LOCAL)/$$name:$$tag $$registry/$(PREFIX)/$$name:$$tag; \
	  $$engine push $(PUSH_FLAGS) $$registry/$(PREFIX)/$$name:$$tag; \
	done

.PHONY: load-images
load-images:  ## Copy the images onto a cluster's nodes (KIND_CLUSTER=name, or LOAD=command that takes an image's name)
	tag=$(TAG); for name in $(IMAGES); do \
	  $(or $(LOAD),$(error load-images: which cluster? KIND_CLUSTER=name, or LOAD=command)) $(LOCAL)/$$name:$$tag; \
	done

##@ Maintain

.PHONY: docs
docs: setup  ## Write what is generated: docs/parameters.md, docs/files.md, parts of argo/ and helm/
	$(PYTHON) -m self_reward.parameters > docs/parameters.md
	$(PYTHON) -m self_reward.repository > docs/files.md
	$(PYTHON) -m self_reward.parameters --argo $(FLOW) > $(VENV)/made && cp $(VENV)/made $(FLOW)
	$(PYTHON) -m self_reward.parameters --schema $(SCHEMA) > $(VENV)/made && cp $(VENV)/made $(SCHEMA)

# torchvision, torchaudio and torchcodec of the registry do not fit torch's CUDA build and break trl and peft.
.PHONY: pins
pins:  ## Resolve the pinned versions of requirements/*.in again
	for name in cpu dev gpu; do \
	  $(VENV)/bin/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_34 --no-header --no-annotate \
	    --override requirements/overrides.txt requirements/$$name.in | grep -vE '^(torchvision|torchaudio|torchcodec)==' > $(VENV)/pins; \
	  mv $(VENV)/pins requirements/$$name.txt; \
	done
	$(VENV)/bin/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_34 --no-header --no-annotate \
	  --excludes requirements/data-excludes.in requirements/data.in -o requirements/data.txt

.PHONY: clean
clean:  ## Remove what make demo and the tests leave behind (not .venv)
	rm -rf demo-data .fuzz .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help
help:  ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
