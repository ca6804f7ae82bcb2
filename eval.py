"""Evaluates a run: python eval.py --workdir=runs/em3 --split=test; see em3_jax/evaluate.py."""

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("eval")
