#!/usr/bin/env bash
# The whole grid of studies/transfer-270m.yaml in one go, and its answers and ratings in one file to take home.
#   bash studies/transfer-270m.sh [KEY=VALUE …]        ends with results/transfer-270m.tar.xz, or $OUT/… where that is set
#   bash studies/transfer-270m.sh prompts.test.size=40 decoding.max_new_tokens=256      for a machine with a GPU: minutes
# It wants python3 with what pip install '.[train,report,embedded]' brings, and studies/data/lima.en.jsonl (see the study
# file; without it the runs on LIMA fail, and the others are made). Started again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-results}"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
xlift() { "${PYTHON:-python3}" -m xlift "$@"; }
failed=0
xlift run studies/transfer-270m.yaml "$@" --out "$out/transfer-270m" || failed=$?
rm -f "$out/transfer-270m.tar.xz"
xlift export "$out/transfer-270m" --archive --to "$out/transfer-270m.tar.xz"
exit "$failed"
