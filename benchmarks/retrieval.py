"""Speed of sparse products and of the retrieval models' training steps: python -m benchmarks.retrieval [--only forms,steps]

Random values at the sizes of Amazon Baby and Sports and of TikTok: popular items, pruned graphs for the models that prune
(share 0.8), item graphs of 10 neighbours, B 2048, width 64. Forms take turns in one process. Steps are timed alone, on a batch
that stays the same; for whole epochs with input and evaluation see benchmarks/retrieval_epochs.py. Results: benchmarks/NOTES.md.
"""

import argparse
import functools
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import sparse

from benchmarks.timing import interleaved, milliseconds
from configs import retrieval as configs
from em3_jax.config import parse, registry
from em3_jax.config.schema import Retrieval
from em3_jax.core.sparse import Adjacency, Entries, group_width, grouped, transposed
from em3_jax.data.item_graph import item_graph
from em3_jax.models.retrieval import Graphs, ItemGraph
from em3_jax.models.retrieval.propagation import product, propagate

BATCH, WIDTH, NEIGHBOURS, EDGE_DROPOUT = 2048, 64, 10, 0.8


class Size(NamedTuple):
    """Users, items, training pairs, and the widths of the features."""

    users: int
    items: int
    pairs: int
    widths: dict[str, int]

    @property
    def nodes(self) -> int:
        return self.users + self.items


SIZES = {
    "baby": Size(19_445, 7_050, 118_551, {"image": 4096, "text": 384}),
    "sports": Size(35_598, 18_357, 218_409, {"image": 4096, "text": 384}),
    "tiktok": Size(9_308, 6_710, 59_541, {"audio": 128, "image": 128}),
}
TWO_QUERIES = "em3, 2 queries"
NAMES = [*configs.MODELS, TWO_QUERIES]


def random_pairs(size: Size, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """(user [pairs], item [pairs]), each pair once; the n-th item is taken with probability ~ n^-0.7."""
    random = np.random.default_rng(0)
    share = np.arange(1, size.items + 1) ** -0.7
    key = random.integers(0, size.users, 2 * pairs) * size.items
    key = np.unique(key + random.choice(size.items, 2 * pairs, p=share / share.sum()))
    return np.divmod(random.permutation(key)[:pairs], size.items)


def user_item_graph(size: Size, pairs: int) -> Entries:
    """D^-1/2 A D^-1/2 of random pairs."""
    user, item = random_pairs(size, pairs)
    receiver, sender = np.append(user, item + size.users), np.append(item + size.users, user)
    degree = np.bincount(receiver, minlength=size.nodes)
    order = np.lexsort((sender, receiver))
    weight = 1 / np.sqrt(degree[receiver] * degree[sender])
    return Entries(*(x[order].astype(kind) for x, kind in ((receiver, "i4"), (sender, "i4"), (weight, "f4"))))


def random_item_graph(items: int, seed: int) -> Entries:
    random = np.random.default_rng(seed)
    sender = random.integers(0, items, items * NEIGHBOURS).astype(np.int32)
    receiver = np.repeat(np.arange(items, dtype=np.int32), NEIGHBOURS)
    return Entries(receiver, sender, np.full(len(sender), 1 / NEIGHBOURS, np.float32))


def on_device(entries: Entries, nodes: int, width: int) -> Adjacency:
    return jax.device_put(grouped(entries, nodes, width=width))


def segments(receiver: jax.Array, sender: jax.Array, weight: jax.Array, x: jax.Array) -> jax.Array:
    return jax.ops.segment_sum(weight[:, None] * x[sender], receiver, len(x), indices_are_sorted=True)


def bcoo(receiver: jax.Array, sender: jax.Array, weight: jax.Array, x: jax.Array) -> jax.Array:
    indices = jnp.stack([receiver, sender], axis=1)
    matrix = sparse.BCOO((weight, indices), shape=(len(x), len(x)), indices_sorted=True, unique_indices=True)
    return matrix @ x


def forms(size: Size, repeats: int) -> None:
    """The product with each form, and the gradient by autodiff and by a product with the transpose, as the models have it."""
    graphs = {
        "all pairs": (user_item_graph(size, size.pairs), True),
        "pruned": (user_item_graph(size, int(size.pairs * (1 - EDGE_DROPOUT))), True),
        "item graph": (random_item_graph(size.items, 0), False),
    }
    for name, (graph, symmetric) in graphs.items():
        for width in (WIDTH, 2 * WIDTH):
            nodes = size.nodes if symmetric else size.items
            x = jnp.asarray(np.random.default_rng(1).normal(size=(nodes, width)).astype(np.float32))
            calls = {}
            for form in (segments, bcoo):
                calls[form.__name__] = functools.partial(jax.jit(form), *graph, x)
            own = group_width(len(graph.receiver), nodes) if symmetric else NEIGHBOURS
            for group in sorted({2, 4, 8, 16, own}):
                label = f"groups of {group}{' (ours)' if group == own else ''}"
                calls[label] = functools.partial(jax.jit(product), on_device(graph, nodes, group), x)
            matrix = on_device(graph, nodes, own)
            transpose = matrix if symmetric else on_device(transposed(graph), nodes, own)
            calls["segments, gradient"] = functools.partial(_gradient(lambda *a: segments(*a)), *graph, x)
            calls["groups, gradient"] = functools.partial(_gradient(product), matrix, x)
            calls["propagate, gradient"] = functools.partial(_gradient(propagate), matrix, transpose, x)
            print(f"{name}: {len(graph.receiver):,} entries, {nodes:,} nodes, {width} wide")
            for call, seconds in interleaved(calls, repeats).items():
                print(f"  {call:<24}{milliseconds(seconds)}", flush=True)


def _gradient(form: Callable) -> Callable:
    """Jitted gradient of |A x|^2 / 2 with respect to x, the last argument, A^T A x: a product, and what its transpose takes."""

    def gradient(*args):
        return jax.grad(lambda x: 0.5 * jnp.sum(jnp.square(form(*args[:-1], x))))(args[-1])

    return jax.jit(gradient)


def config_of(name: str) -> Retrieval:
    config = parse.parse(configs.get_config(name.partition(",")[0]))
    assert isinstance(config, Retrieval)
    return config


def step_of(name: str, size: Size, graphs: Graphs, features: dict[str, jax.Array]) -> Callable:
    """() -> loss: an Adam step of the model, compiled."""
    settings: Any = config_of(name).model.retrieval_settings
    if hasattr(settings, "modality_weights"):
        settings = replace(settings, modality_weights={})  # equal ones
    if name == TWO_QUERIES:
        settings = replace(settings, fusion_settings=replace(settings.fusion_settings, queries=2))
    model = registry.retrieval(name.partition(",")[0], settings, size.users, size.items)
    random = np.random.default_rng(2)
    batch = [jnp.asarray(random.integers(0, count, BATCH), "i4") for count in (size.users, size.items, size.items)]
    keys = {stream: jax.random.key(k) for k, stream in enumerate(("params", "dropout", "negatives"))}
    params = jax.jit(functools.partial(model.init, method="loss"))(keys, features, graphs, *batch)["params"]
    optimizer = optax.adam(1e-3)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, keys, features, graphs, batch):
        def loss(params):
            return model.apply({"params": params}, features, graphs, *batch, method="loss", rngs=keys)

        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(state[0])
        updates, opt_state = optimizer.update(gradient, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), value

    state = params, optimizer.init(params)

    def call():
        nonlocal state
        state, value = step(state, keys, features, graphs, batch)
        return state, value

    return call


def steps(size: Size, names: list[str], repeats: int) -> None:
    random = np.random.default_rng(3)
    features = {
        name: jnp.asarray(random.standard_normal((size.items, width), np.float32))
        for name, width in size.widths.items()
    }
    items = {}
    for k, name in enumerate(features):
        entries = random_item_graph(size.items, k)
        items[name] = ItemGraph(*(on_device(x, size.items, NEIGHBOURS) for x in (entries, transposed(entries))))
    full, pruned = (
        Graphs(
            on_device(entries, size.nodes, group_width(len(entries.receiver), size.nodes)),
            items,
            {name: jax.numpy.ones(size.items, bool) for name in items},
        )
        for entries in (user_item_graph(size, int(size.pairs * share)) for share in (1, 1 - EDGE_DROPOUT))
    )
    count = -(-size.pairs // BATCH)
    for name in names:
        seconds = interleaved(
            {name: step_of(name, size, pruned if config_of(name).data.edge_dropout else full, features)}, repeats
        )[name]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        epoch = f"{count * seconds.min():.2f} s (median {count * np.median(seconds):.2f}) an epoch of {count}"
        print(f"  {name:<18}{milliseconds(seconds):<32}{epoch}; peak so far {peak:.2f} GB", flush=True)


def build_item_graph(size: Size) -> None:
    features = np.random.default_rng(4).standard_normal((size.items, max(size.widths.values())), np.float32)
    start = time.perf_counter()
    item_graph(features, neighbours=NEIGHBOURS, include_self=True, weights="binary", normalisation="rows")
    print(f"  item graph of {features.shape[1]} wide features: {time.perf_counter() - start:.1f} s, once a dataset")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="forms,steps,item_graph")
    parser.add_argument("--sizes", default="baby,sports,tiktok")
    parser.add_argument("--models", default=";".join(NAMES), help="names with ; between them")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    only = args.only.split(",")
    print(f"jax {jax.__version__}, {jax.devices()}")
    for name in args.sizes.split(","):
        size = SIZES[name]
        print(f"\n{name}: {size.users:,} users, {size.items:,} items, {size.pairs:,} pairs")
        if "forms" in only:
            forms(size, args.repeats)
        if "steps" in only:
            steps(size, args.models.split(";"), args.repeats)
        if "item_graph" in only:
            build_item_graph(size)


if __name__ == "__main__":
    main()
