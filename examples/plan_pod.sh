#!/usr/bin/env bash
# What a training step would cost on a pod that is not here: 16 TPU v5e chips, a billion table rows,
# 35 million items. Compiled by the TPU's own compiler, on any Linux machine with an x86 processor;
# batches of tens of thousands take it much longer.
#
#     make .venv/installed-test                # brings the compilers, into .venv/compilers
#     bash examples/plan_pod.sh v5e:4x4
#
# Without the compilers: bash examples/plan_pod.sh cpu:8. docs/devices.md says what the page means.
set -euo pipefail
target=${1:-v5e:4x4}
out=${2:-runs/examples/plan}
mkdir -p "$out"
# Exit code 3 says that it does not fit, which is an answer, too.
em3 plan --config=configs/em3_movielens.py --target "$target" --rows 1000000000 --items 35000000 \
    --json "$out/plan.json" || [ $? = 3 ]
