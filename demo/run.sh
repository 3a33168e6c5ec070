#!/usr/bin/env bash
# The demo: a tiny world and a tiny base model, then the real loop over them, then a table.
# Usage: demo/run.sh DATA_REPO SEED, where DATA_REPO is a folder or a server's address (made there where it is missing).
# Any further words are parameters of the loop, such as --shuffle_preferences for the control experiment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data_repo=$1 seed=$2
shift 2
PYTHON=${PYTHON:-.venv/bin/python}
export PYTHON

begin=$SECONDS
"$PYTHON" -m demo.make_data --data_repo "$data_repo" --seed "$seed"
./self-reward.sh stages oxen:models/base M0 --iterations 3 --seed "$seed" \
  --data_repo "$data_repo" --parameter_file presets/demo.yaml "$@"
"$PYTHON" -m demo.table --data_repo "$data_repo"
echo "demo: $((SECONDS - begin)) s"
