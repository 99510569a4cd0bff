# Everything that is installed goes into .venv; everything that is made goes into data/ and runs/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first Python that is new enough. Another one: make test BASE_PYTHON=/path/to/python
BASE_PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PYTHON := .venv/bin/python
STAMP := .venv/.installed
DEMO_RAW := data/raw/demo/hidden_truth/world.json
SIMULATED := bert_simulated_seq bert_simulated_skip recurrent_simulated_seq recurrent_simulated_skip blends_simulated \
	ddpg_simulated_seq ddpg_simulated_skip losses_simulated rare_simulated
COMMA := ,

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## set up .venv (the other targets do it by themselves)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(BASE_PYTHON)" || { echo "error: no Python 3.11 or newer was found; install one, \
	or name it: make $(or $(MAKECMDGOALS),install) BASE_PYTHON=/path/to/python" >&2; exit 2; }
	@test -x $(PYTHON) || $(BASE_PYTHON) -m venv .venv || { echo "error: $(BASE_PYTHON) cannot make a virtual \
	environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf .venv; exit 2; }
	@echo "installing into .venv (some minutes, once) ..."
	@$(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# Several processes compute at the same time (utils/core/threads.py).
test: export OMP_WAIT_POLICY := passive
test: $(STAMP)  ## run the tests (2 at a time; another number: make test N=8)
	$(PYTHON) -m pytest -n $(or $(N),2)

lint: $(STAMP)  ## check style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(STAMP)  ## put the code in its standard form
	$(PYTHON) -m ruff check --fix --quiet .
	$(PYTHON) -m ruff format .

demo: $(STAMP) data/demo/dataset.json  ## simulate, preprocess, train a small ladder on both tasks, report
	$(PYTHON) train_baselines.py --config configs/baselines/demo_skip.yml
	$(PYTHON) train_baselines.py --config configs/baselines/demo_seq.yml
	$(PYTHON) train_transformer_skip.py --config configs/transformer_skip/demo.yml
	$(PYTHON) train_transformer_skip.py --config configs/transformer_skip/demo_hidden.yml
	$(PYTHON) train_transformer_seq.py --config configs/transformer_seq/demo.yml
	$(PYTHON) -m utils.simulator.oracle --raw data/raw/demo --data.folder data/demo
	$(PYTHON) report.py --runs runs

# What is asked for on the command line only: some systems set NAME for every program.
ifneq ($(origin NAME),command line)
NAME := mine
endif
ifneq ($(origin SOURCE),command line)
SOURCE := spotify
endif
TIME_ZONE ?= UTC
MINE_DATA = data/$(NAME)
MINE_RUNS = runs/$(NAME)
MINE_TO = --data.folder "$(MINE_DATA)" --run.folder "$(MINE_RUNS)"

mine: export HISTORY := $(value HISTORY)
mine: history-given $(STAMP)  ## your own listening: make mine HISTORY=my_spotify_data.zip (docs/your_listening.md)
	@echo "1 of 6: the history becomes sessions in $(MINE_DATA)"
	@sum="$(SOURCE) $$(find -L "$$HISTORY" -type f -exec cksum {} + | cut -d' ' -f1,2 | sort | cksum)"; \
	if [ "$$(cat "$(MINE_DATA)/.history" 2>/dev/null)" = "$$sum" ]; then \
		echo "$(MINE_DATA) was made from this very history before: it is taken as it is"; \
	elif [ -e "$(MINE_DATA)" ]; then \
		echo "error: $(MINE_DATA) was made from another history; keep both with another name (make mine HISTORY=... \
	NAME=newer), or remove $(MINE_DATA) and $(MINE_RUNS) first" >&2; exit 2; \
	else \
		$(PYTHON) -m utils.datapreprocessing --source "$(SOURCE)" "$$HISTORY" --out "$(MINE_DATA)" \
			--max_session_length 20 && echo "$$sum" > "$(MINE_DATA)/.history"; \
	fi
	@if grep -q '"has_skips": true' "$(MINE_DATA)/dataset.json"; then $(MAKE) --no-print-directory mine-skips; else \
		echo "2 to 4 of 6: the history does not tell what was skipped, so only the next tracks are predicted"; fi
	@echo "5 of 6: which tracks come next"
	$(PYTHON) train_baselines.py $(MINE_TO) --task seq --data.history_size 20 --data.every_prefix true
	$(PYTHON) train_gru_seq.py --config configs/gru_seq/personal.yml $(MINE_TO)
	@echo "6 of 6: what came out"
	$(PYTHON) report.py --runs "$(MINE_RUNS)"
	$(PYTHON) -m utils.reporting.listening --data "$(MINE_DATA)" --html "$(MINE_RUNS)/listening.html" --time_zone "$(TIME_ZONE)"
	@echo "open in a browser (all of it is on this machine only):" "$(MINE_RUNS)"/*.html

mine-skips:
	@echo "2 of 6: what is skipped, for baselines that know the session only"
	$(PYTHON) train_baselines.py $(MINE_TO) --task skip --use_ids false
	@echo "3 of 6: the same for baselines that know the listener's past"
	$(PYTHON) train_baselines.py --config configs/baselines/personal.yml $(MINE_TO)
	@echo "4 of 6: and for small networks that know it, too"
	$(PYTHON) train_lstm_skip.py --config configs/lstm_skip/personal.yml $(MINE_TO)
	$(PYTHON) train_transformer_skip.py --config configs/transformer_skip/personal.yml $(MINE_TO)

history-given:
	@test -n "$$HISTORY" || { echo "error: which history? make mine HISTORY=my_spotify_data.zip (a zip, a file or a \
	folder; other services: SOURCE=..., see docs/your_listening.md)" >&2; exit 2; }
	@test -e "$$HISTORY" || { echo "error: there is no $$HISTORY; give the path of the export: make mine \
	HISTORY=my_spotify_data.zip" >&2; exit 2; }
history-given: export HISTORY := $(value HISTORY)

tables: $(STAMP) runs/simulated/.baselines runs/word2vec/sim/track_embeddings.safetensors runs/rare/.oracle  ## the tables of all sweeps on simulated sessions (many hours; goes on where it stopped)
	$(PYTHON) sweep.py --jobs $(or $(N),2) --sweep '[$(subst $() $(),$(COMMA),$(SIMULATED:%=sweeps/%.yml))]'

runs/simulated/.baselines: | data/sim/dataset.json
	$(PYTHON) train_baselines.py --data.folder data/sim --data.scored '[test]' --run.folder runs/simulated
	$(PYTHON) -m utils.simulator.oracle --raw data/raw/sim --data.folder data/sim --data.scored '[test]' --run.folder runs/simulated
	touch $@

runs/rare/.oracle: | data/rare/dataset.json data/rare_unknown/dataset.json
	$(PYTHON) -m utils.simulator.oracle --raw data/raw/rare --data.folder data/rare --task skip --data.scored '[test]' --run.folder runs/rare
	touch $@

data/rare/dataset.json: | data/raw/rare/hidden_truth/world.json
	$(PYTHON) -m utils.datapreprocessing --raw data/raw/rare --out data/rare --valid_days 1 --test_days 3 --min_count 0

data/rare_unknown/dataset.json: | data/raw/rare/hidden_truth/world.json
	$(PYTHON) -m utils.datapreprocessing --raw data/raw/rare --out data/rare_unknown --valid_days 1 --test_days 3

data/raw/rare/hidden_truth/world.json: | $(STAMP)
	$(PYTHON) -m utils.simulator --out data/raw/rare --sessions 40000 --test_sessions 100 --tracks 103000 --days 10

runs/word2vec/sim/track_embeddings.safetensors: | data/sim/dataset.json
	$(PYTHON) -m utils.track_vectors.word2vec --data.folder data/sim --d_model 128

data/sim/dataset.json: | data/raw/sim/hidden_truth/world.json
	$(PYTHON) -m utils.datapreprocessing --raw data/raw/sim --out data/sim

data/raw/sim/hidden_truth/world.json: | $(STAMP)
	$(PYTHON) -m utils.simulator --out data/raw/sim --sessions 250000 --tracks 20000 --days 10

# Both commands leave either the whole folder or nothing new, so what exists is finished. It is made again when the code
# that makes it has changed: an oracle that knows another simulator than the one that wrote the data would be wrong.
data/demo/dataset.json: $(DEMO_RAW) $(wildcard utils/datapreprocessing.py utils/preprocessing/*.py) | $(STAMP)
	$(PYTHON) -m utils.datapreprocessing --raw data/raw/demo --out data/demo --overwrite true

$(DEMO_RAW): $(wildcard utils/simulator/*.py) utils/data/schema.py | $(STAMP)
	$(PYTHON) -m utils.simulator --out data/raw/demo --overwrite true

bench: $(STAMP)  ## measure everything beside straightforward references (some 40 minutes; docs/benchmarks.md)
	$(PYTHON) -m benchmarks

bench-quick: $(STAMP)  ## the same with fewer contenders and rounds (under five minutes)
	$(PYTHON) -m benchmarks --quick true

bench-gpu: $(STAMP)  ## measure on a GPU the training step of every model that fit trains (under nine minutes)
	$(PYTHON) -m benchmarks.gpu

clean:  ## remove the demo's data, the runs and the caches; keep .venv and other datasets
	rm -rf data/demo data/raw/demo runs build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: help install test lint format demo mine mine-skips history-given tables bench bench-quick bench-gpu clean
