"""Steps of one config on several meshes: python -m tests.on_meshes <config as JSON> <meshes> <a key of the batch that is split>

A mesh is [data, model], or [data, model, changes of config.data].

On each mesh, a step from the same state, and one from a checkpoint that the mesh before has written. Prints a JSON list.
Also the largest array that devices exchange on the last mesh, with tables and features 64 times as long, and 4,096 times.
"""

import json
import sys
import tempfile

import jax
import numpy as np

from em3_jax.core import trees
from em3_jax.data.pipeline import batches
from em3_jax.plan.program import read
from em3_jax.tables import packing
from em3_jax.training import experiment
from em3_jax.training.checkpoint import Checkpoints


def report(state, aux, states: list) -> dict[str, float]:
    """The scalars of a step, and how far each leaf of the state is at most from that of the first in `states`, which it joins."""
    states.append(jax.device_get(packing.unpacked(state)))
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max(initial=0.0)), states[0], states[-1])
    return {name: float(value) for name, value in aux.items()} | trees.named_leaves(apart)


def growing(tree, times: int):
    """Shapes of a tree whose arrays cut by rows are longer."""

    def one(leaf) -> jax.ShapeDtypeStruct | packing.Rows:
        if packing.is_table(leaf):
            return packing.shapes(times * leaf.length, leaf)
        longer = not leaf.sharding.is_fully_replicated
        shape = (times * len(leaf), *leaf.shape[1:]) if longer else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(one, tree, is_leaf=packing.is_table)


def on_mesh(
    config: dict, mesh: list, key: str, before: str | None, after: str, states: tuple[list, list], last: bool
) -> dict:
    data, model, *changes = mesh
    config = config | {"mesh": config["mesh"] | {"data": data, "model": model}}
    if changes:
        config["data"] = config["data"] | changes[0]
    parts = experiment.build(config)
    fresh, random = parts.program.init(), np.random.default_rng(0)

    def value(leaf: jax.Array) -> jax.Array:
        # Of the size that training has: large parameters would make rounding visible, most of all in a softmax, whose scores they
        # enter several times over. None negative, as optimizer slots are.
        drawn = np.abs(random.normal(0.0, 0.05, leaf.shape)).astype(leaf.dtype)
        return jax.device_put(drawn, leaf.sharding)

    state = packing.packed_as(fresh, jax.tree.map(value, packing.unpacked(fresh)).replace(step=fresh.step))
    stream = iter(batches(parts.work.source, place=parts.program.place))
    first, second = next(stream), next(stream)
    assert len(first[key].sharding.device_set) == parts.program.mesh.size
    leaves = trees.named_leaves(packing.unpacked(state))
    result = {"by_rows": [name for name, leaf in leaves.items() if not leaf.sharding.is_fully_replicated]}
    result["constants_by_rows"] = sum(
        not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(parts.work.constants)
    )
    step = parts.program.train_step
    program = step.compile(state, parts.work.constants, first).program
    result["flops"] = program.cost_analysis()["flops"]  # of one device
    if last:
        shapes = [(growing(state, times), growing(parts.work.constants, times)) for times in (64, 4096)]
        programs = [step.compile(*arguments, first).program for arguments in shapes]
        result["largest_collective"] = [
            max((array.elements for one in read(program.as_text()).collectives() for array in one.results), default=0)
            for program in programs
        ]
    state, aux = parts.program.train_step(state, parts.work.constants, first)
    assert all(len(leaf.sharding.device_set) == parts.program.mesh.size for leaf in jax.tree.leaves(state))
    result["first"] = report(state, aux, states[0])
    checkpoints = Checkpoints(after)
    checkpoints.save("latest", state, {})
    checkpoints.close()
    if before:
        state, _ = Checkpoints(before).restore_latest(fresh)
    result["second"] = report(*parts.program.train_step(state, parts.work.constants, second), states[1])
    return result


def main() -> None:
    config, meshes, key = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory() as root:
        folders = [f"{root}/{k}" for k in range(len(meshes))]
        states = [], []
        calls = zip(meshes, [None, *folders[:-1]], folders, strict=True)
        results = [on_mesh(config, mesh, key, *paths, states, mesh is meshes[-1]) for mesh, *paths in calls]
        print(json.dumps(results))


if __name__ == "__main__":
    main()
