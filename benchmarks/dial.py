"""What config.model.encoder_trains costs: memory, arithmetic and time of a step of EfficientNet-Lite0 by the dial.

python -m benchmarks.dial [--images 8] [--side 224] [--large 1024] [--chunk 8]

The step is that of training: pictures of bytes through `features.in_model`, a logit each, gradients, Adam by the rules of
the dial. Weights are random, which makes no difference to any of it. A last table is of `--large` pictures of 224 px,
compiled and not run: memory is what XLA's memory analysis says of the program.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from em3_jax.config import parse
from em3_jax.config.schema.course import Optim
from em3_jax.core import trees
from em3_jax.features import convert, in_model
from em3_jax.models import lora
from em3_jax.models.encoders import STATISTICS, Given
from em3_jax.training import optim

DIAL = ("none", "head", "last 2", "adapters", "all")
CONFIG = {"model_type": "efficientnet_lite", "variant": 0}
FULL_SIDE = 224
RANK = 4
REPEATS = 3


class Step(NamedTuple):
    """A training step of the encoder and a logit on top of it.

    Attributes:
      update: (state, pixels [B, 1, bytes] u8, labels [B] f32) -> (state, loss []).
      state: (parameters, the optimizer's state).
    """

    update: Any
    state: Any


def encoder() -> tuple[Any, dict]:
    """EfficientNet-Lite0 and random parameters."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        module, params, _ = convert.random_encoder(folder, 0)
    return module, params


def step(module: Any, params: dict, trains: str, side: int, chunk: int = 0) -> Step:
    """The step with a position of the dial, for pictures of `side` x `side`, `chunk` at once."""

    def function(params, pixels, given):
        images = pixels.astype(jnp.float32) / 128 - 1
        found, changed = module.apply({"params": params}, images, given, mutable=[STATISTICS])
        return (found.mean[:, None].astype(jnp.float32), found.mask[:, :1]), changed.get(STATISTICS, {})

    how = in_model.How(trains={"image": trains}, rank=RANK, chunk=chunk)
    one = in_model.of_images("image", params, module.parts(), function, (side, side, 3), how)
    tree: Any = {"encoders": {"image": params}, "logit": {"kernel": jnp.zeros((1280, 1))}}
    if one.rank:
        tree["adapters"] = {"image": lora.fresh(jax.random.key(0), params, one.rank)}
    optimizer = optim.dense_optimizer(tree, **parse.entries(Optim()) | {"multipliers": one.rules})
    frozen = optim.frozen(tree, one.rules)

    def loss(tree, pixels, labels):
        hold = lambda name, leaf: jax.lax.stop_gradient(leaf) if frozen[name] else leaf  # noqa: E731
        tree = trees.map_named(hold, tree)
        own = lora.adapted(tree["encoders"]["image"], tree.get("adapters", {}).get("image"))
        found = one.encode(own, pixels, jnp.ones((len(pixels), 1), bool), Given(trains=one.trains))
        logit = (found.tokens[:, 0] @ tree["logit"]["kernel"])[:, 0]
        return optax.sigmoid_binary_cross_entropy(logit, labels).mean(), found.statistics

    def update(state, pixels, labels):
        tree, slots = state
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(tree, pixels, labels)
        change, slots = optimizer.update(gradient, slots, tree)
        tree = trees.replaced(optax.apply_updates(tree, change), {"encoders": {"image": statistics}})
        return (tree, slots), value

    return Step(jax.jit(update, donate_argnums=0), (tree, optimizer.init(tree)))


def compiled(made: Step, images: int, side: int) -> tuple[Any, dict[str, float]]:
    """(the program, {"temporary MB", "state MB", "GFLOP"}) of a step over so many pictures."""
    pixels = jax.ShapeDtypeStruct((images, 1, side * side * 3), jnp.uint8)
    program = made.update.lower(made.state, pixels, jax.ShapeDtypeStruct((images,), jnp.float32)).compile()
    memory, cost = program.memory_analysis(), program.cost_analysis()
    return program, {
        "temporary MB": memory.temp_size_in_bytes / 1e6,
        "state MB": trees.num_bytes(made.state) / 1e6,
        "GFLOP": cost["flops"] / 1e9,
    }


def seconds(program: Any, made: Step, images: int, side: int) -> float:
    """The shortest of some steps."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, 1, side * side * 3), np.uint8)
    labels = random.integers(0, 2, images).astype(np.float32)
    state, found = jax.tree.map(jnp.array, made.state), []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        state, value = jax.block_until_ready(program(state, pixels, labels))
        found.append(time.perf_counter() - began)
    assert np.isfinite(value)
    return min(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=FULL_SIDE)
    parser.add_argument(
        "--large", type=int, default=1024, help="pictures of 224 px of the last table; 0 = leave it out"
    )
    parser.add_argument("--chunk", type=int, default=8, help="encoder_chunk of the last table")
    args = parser.parse_args()
    module, params = encoder()
    print(f"{args.images} pictures of {args.side} px, all at once; rank {RANK}")
    print(f"{'dial':<10}{'temporary MB':>14}{'state MB':>10}{'GFLOP':>8}{'ms':>9}", flush=True)
    found = {}
    for trains in DIAL:
        made = step(module, params, trains, args.side)
        program, facts = compiled(made, args.images, args.side)
        found[trains] = facts["temporary MB"]
        shown = 1e3 * seconds(program, made, args.images, args.side)
        print(
            f"{trains:<10}{facts['temporary MB']:>14,.1f}{facts['state MB']:>10.1f}{facts['GFLOP']:>8.1f}{shown:>9,.0f}",
            flush=True,
        )
    print(f"temporaries, head / all: {found['head'] / found['all']:.3f}")
    if not args.large:
        return
    pixels = args.large * FULL_SIDE**2 * 3 / 1e6
    print(f"\n{args.large:,} pictures of {FULL_SIDE} px ({pixels:,.0f} MB of bytes), compiled only")
    for trains, chunk in (("all", args.chunk), ("all", 0), ("head", args.chunk), ("head", 0)):
        facts = compiled(step(module, params, trains, FULL_SIDE, chunk), args.large, FULL_SIDE)[1]
        whole = facts["temporary MB"] + facts["state MB"] + pixels
        print(f"{trains:<10} encoder_chunk {chunk:>3}: temporaries {facts['temporary MB']:>10,.0f} MB, with state and pixels "
              f"{whole:>10,.0f} MB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
