"""Trains a model: python train.py --config=configs/em3_movielens.py --workdir=runs/em3; see em3_jax/train.py."""

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("train")
