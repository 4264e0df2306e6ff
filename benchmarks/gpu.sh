#!/usr/bin/env bash
# Correctness and speed on a CUDA machine, at most 8 minutes: results/gpu.json and results/gpu.md, or $OUT/… where set.
# It wants python3 with torch >= 2.11, transformers >= 5.17, peft, accelerate and pydantic (which newer transformers
# bring by themselves); nothing is downloaded.
#   bash benchmarks/gpu.sh            on a machine with a GPU
#   bash benchmarks/gpu.sh --smoke    on any machine, tiny shapes: shows that all of it runs
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
exec "${PYTHON:-python3}" benchmarks/gpu.py --out "${OUT:-results}" "$@"
