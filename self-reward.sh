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
# again later, 1 a bug, 143 ended from outside, 130 by Ctrl-C.
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

# Programs run in the background so that a signal to this script reaches them at once, and not when they have ended.
end() {
  for job in $(jobs -p); do
    kill -TERM "$job" 2>/dev/null || true
  done
  wait || true
  exit "$1"
}
trap 'end 143' TERM HUP
trap 'end 130' INT

# What plan and the stages tell this script, in files without a name, so that not even kill -9 leaves them behind.
new_file() {
  file=$(mktemp) || {
    echo "try again: no file could be made in ${TMPDIR:-/tmp}; make room there, or set TMPDIR to another folder" >&2
    exit 75
  }
}
new_file
exec 3<>"$file"
rm "$file"
new_file
exec 4<>"$file"
rm "$file"
told=/dev/fd/3 committed=/dev/fd/4

wait_for() { # wait_for NAME: for the program begun last; ends the run with its exit code when it failed
  local code=0
  wait "$!" || code=$?
  if ((code > 128)); then
    echo "$1 was killed (exit code $code). Run the same command again to resume from what is on disk" >&2
  fi
  ((code == 0)) || exit "$code"
}

# Checks every parameter and the data before anything is run, and hands the parameters on to the stages.
"$PYTHON" "$stages/plan.py" "$@" --base_model "$model" --start_iteration "$start" >|"$told" &
wait_for plan
iterations='' data_repo='' commit=''
eval "$(cat "$told")"
: >|"$told"

# Each stage reads the commit of the one before it, so that a commit of somebody else in between is found and named.
run() {
  "$PYTHON" "$stages/$1.py" --iteration "$2" --revision "$commit" --commit_file "$committed" --stop_file "$told" &
  wait_for "M$2 $1"
  commit=$(cat "$committed")
  if [[ -s "$told" ]]; then
    echo "stopped after M$2 $1: $(cat "$told")"
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
echo "done: the model is M$last/dpo; everything is in $data_repo, one commit per stage"
