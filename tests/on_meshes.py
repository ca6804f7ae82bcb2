"""Steps of one config on several meshes: python -m tests.on_meshes <config as JSON> <meshes> <a key of the batch that is split>

On each mesh, a step from the same state, and one from a checkpoint that the mesh before has written. Prints a JSON list.
Of the last mesh also the largest array that devices exchange, as it is and with tables and features 64 times as long.
"""

import json
import re
import sys
import tempfile

import jax
import numpy as np

from em3_jax import experiment, trees
from em3_jax.checkpoint import Checkpoints
from em3_jax.data.pipeline import batches

COLLECTIVE = re.compile(r"= (.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


def largest_collective(program: str) -> int:
    """Elements of the largest array that devices exchange at once."""
    shapes = re.findall(r"\[([\d,]*)\]", " ".join(COLLECTIVE.findall(program)))
    return int(max((np.prod([int(n) for n in shape.split(",") if n]) for shape in shapes), default=0))


def report(state, aux) -> dict[str, float]:
    """The scalars of a step and the norms of its state."""
    norms = {name: float(np.linalg.norm(np.asarray(leaf))) for name, leaf in trees.named_leaves(state).items()}
    return {name: float(value) for name, value in aux.items()} | norms


def growing(tree):
    """Shapes of a tree whose arrays cut by rows are 64 times as long."""

    def one(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        longer = not leaf.sharding.is_fully_replicated
        shape = (64 * len(leaf), *leaf.shape[1:]) if longer else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(one, tree)


def on_mesh(config: dict, mesh: tuple[int, int], key: str, before: str | None, after: str, last: bool) -> dict:
    config = config | {"mesh": config["mesh"] | {"data": mesh[0], "model": mesh[1]}}
    parts = experiment.build(config, lambda rows, size: 2)
    fresh, random = parts.init(), np.random.default_rng(0)

    def value(leaf: jax.Array) -> jax.Array:
        # Of the size that training has: large parameters would make rounding visible. None negative, as optimizer slots are.
        drawn = np.abs(random.normal(0.0, 0.1, leaf.shape)).astype(leaf.dtype)
        return jax.device_put(drawn, leaf.sharding)

    state = jax.tree.map(value, fresh).replace(step=fresh.step)
    stream = iter(batches(parts.source, place=parts.place))
    first, second = next(stream), next(stream)
    assert len(first[key].sharding.device_set) == parts.mesh.size
    result = {"by_rows": [n for n, leaf in trees.named_leaves(state).items() if not leaf.sharding.is_fully_replicated]}
    result["constants_by_rows"] = sum(
        not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(parts.constants)
    )
    if last:
        step = parts.train_step
        result["largest_collective"] = [
            largest_collective(step.func.lower(*step.args, *arguments, first).compile().as_text())
            for arguments in ((state, parts.constants), (growing(state), growing(parts.constants)))
        ]
    state, aux = parts.train_step(state, parts.constants, first)
    assert all(len(leaf.sharding.device_set) == parts.mesh.size for leaf in jax.tree.leaves(state))
    result["first"] = report(state, aux)
    checkpoints = Checkpoints(after)
    checkpoints.save("latest", state, {})
    checkpoints.close()
    if before:
        state, _ = Checkpoints(before).restore_latest(fresh)
    result["second"] = report(*parts.train_step(state, parts.constants, second))
    return result


def main() -> None:
    config, meshes, key = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory() as root:
        folders = [f"{root}/{k}" for k in range(len(meshes))]
        calls = zip(meshes, [None, *folders[:-1]], folders, [False] * (len(meshes) - 1) + [True], strict=True)
        print(json.dumps([on_mesh(config, tuple(mesh), key, *arguments) for mesh, *arguments in calls]))


if __name__ == "__main__":
    main()
