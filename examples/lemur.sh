#!/usr/bin/env bash
# LEMUR: the encoder trains inside the ranker, from words and pixels, and histories are read from a
# memory bank; at the end the bank becomes a feature set of the dataset.
#
#     bash examples/lemur.sh
#
# Small and short, to see the way; docs/lemur.md has the sizes that learn something.
set -euo pipefail
out=${1:-runs/examples/lemur}
em3 prepare synthetic --raw --interactions 4000 --users 120 --items 150 --out "$out/data" \
    --overwrite
em3 train --config=configs/lemur.py --config.data.root="$out/data" --config.data.history_length=20 \
    --config.data.batch_size=128 --config.train.epochs=2 --workdir="$out/run"
em3 eval --workdir="$out/run"
em3 vectors --workdir="$out/run" --name=bank --overwrite   # the bank as it is, for another ranker
em3 features --data "$out/data"                            # which now lists it
