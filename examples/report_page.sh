#!/usr/bin/env bash
# Two runs side by side, as a table with intervals and as a page that needs no network.
#
#     bash examples/report_page.sh
#
# Small and short, to see the way; `make demo` has ten times the data and trains to the end.
set -euo pipefail
out=${1:-runs/examples}
em3 prepare synthetic --interactions 4000 --users 120 --items 150 --out "$out/planted" --overwrite
for model in id_only em3; do
    recipe=configs/em3_synthetic.py
    [ "$model" = em3 ] || recipe+=":$model"
    em3 train --config="$recipe" --config.data.root="$out/planted" --config.train.epochs=3 \
        --workdir="$out/$model"
    em3 eval --workdir="$out/$model" --plots > "$out/$model.txt"
done
em3 compare id_only="$out/id_only" em3="$out/em3"
em3 plot id_only="$out/id_only" em3="$out/em3" --out "$out/report"
echo "open $out/report.html, and $out/em3/eval_test_calibration.html"
