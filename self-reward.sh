#!/usr/bin/env bash
# The whole loop on one machine: plan, then the stages in order, for each iteration.
#
#   ./self-reward.sh stages mistralai/Mistral-7B-v0.1 M0                     iteration M0
#   ./self-reward.sh stages mistralai/Mistral-7B-v0.1 M0 --iterations 3      M0, M1, M2
#   ./self-reward.sh stages mistralai/Mistral-7B-v0.1 M1 --data_repo DIR --parameter_file presets/paper.yaml
#
# STAGES is the folder of the stage programs, MODEL the base model (a hub id, a folder, or oxen:<path in the data
# repository>), M<k> the first iteration. Every parameter of every stage is a flag: docs/parameters.md lists them.
# Run again: finished stages are skipped. Exit codes: 0 done (also when a stop rule fired), 2 change something, 75 try
# again later, 1 a bug, 143 ended from outside.
set -euo pipefail

usage() {
  sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit "$1"
}
for word in "$@"; do
  case $word in -h | --help) usage 0 ;; esac
done
if [[ $# -lt 3 || ! $3 =~ ^M([0-9]+)$ ]]; then
  echo "expected: ./self-reward.sh STAGES MODEL M<k> [--PARAMETER VALUE ...]; got: $*" >&2
  usage 2 >&2
fi
stages=$1 model=$2 start=$((10#${3#M}))
shift 3

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=$here/.venv/bin/python
  [[ -x $PYTHON ]] || PYTHON=python3
fi
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}

# Checks every parameter and the data before anything is run, and hands the parameters on to the stages.
settings=$("$PYTHON" "$stages/plan.py" "$@" --base_model "$model" --start_iteration "$start")
iterations='' data_repo=''
eval "$settings"

stop_file=$(mktemp)
trap 'rm -f "$stop_file"' EXIT
# A stage runs in the background so that a signal to this script reaches it at once, and not when the stage has ended.
trap 'kill -TERM "${child:-}" 2>/dev/null || true; wait "${child:-}" 2>/dev/null || true; exit 143' TERM INT HUP
run() {
  "$PYTHON" "$stages/$1.py" --iteration "$2" --stop_file "$stop_file" &
  child=$!
  wait "$child"
  if [[ -s $stop_file ]]; then
    echo "stopped after M$2 $1: $(cat "$stop_file")"
    exit 0
  fi
}
for ((k = start; k < start + iterations; k++)); do
  run 00_sft "$k"
  run 01_gen_prompts "$k"
  run 02_gen_responses "$k"
  run 03_gen_scores "$k"
  run 04_gen_preferences "$k"
  run 05_dpo "$k"
  run 06_evaluate "$k"
done
last=$((start + iterations - 1))
run 07_export "$last"
echo "done: the model is M$last/dpo; everything is in $data_repo, one commit a stage"
