"""Scores of candidates and similar items from an exported store: a service in 20 lines.

    em3 prepare synthetic --interactions 4000 --users 120 --items 150 \
        --out runs/examples/planted --overwrite
    em3 train --config=configs/em3_synthetic.py --config.data.root=runs/examples/planted \
        --config.train.epochs=3 --workdir=runs/examples/em3
    em3 export --workdir runs/examples/em3 --out runs/examples/store
    python examples/score.py runs/examples/store
"""

import sys

from em3_jax import Service

store = sys.argv[1] if len(sys.argv) > 1 else "runs/examples/store"
candidates = [2, 3, 5, 8, 13, 99_999]  # original item ids; the store does not know the last one
with Service(store) as service:  # follows the store: a new version takes over between two calls
    model = service.model
    scores = model.score(user=1, history=[21, 34, 55], candidates=candidates)
    order = sorted(range(len(candidates)), key=lambda n: -scores.probability[n])
    print(f"version {model.name}")
    for n in order:
        known = "" if scores.known[n] else "  (unknown item)"
        print(f"item {candidates[n]:>6}  p(click) {scores.probability[n]:.4f}{known}")
    similar = ", ".join(f"{item} ({cosine:.2f})" for item, cosine in model.similar(2, count=3))
    print(f"most similar to item 2 by content: {similar}")
