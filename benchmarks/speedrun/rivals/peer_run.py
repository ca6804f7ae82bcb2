"""EM3 written in PyTorch, eager or compiled, in the race, see protocol.py: benchmarks/peer_model.py in a training run.

It reads batches of distinct items from our own input pipeline, and starts from parameters that our model was given, made
in preparation; what trains is PyTorch. Importing the pipeline imports jax, some 1 s of processor time that is no one's
own; no program of jax is compiled. Batches, rates, dropout and evaluations are those of configs/em3_synthetic.py.
"""

from pathlib import Path

import numpy as np
from protocol import Reports, main

EVALUATE, VALID_BATCH = 250, 1024


def prepare(dataset: Path, work: Path) -> None:
    """The config, initial parameters, ID table and standardised features, as arrays; with our own interpreter."""
    import jax

    from configs import em3_synthetic
    from em3_jax.core import trees
    from em3_jax.training import experiment

    config = em3_synthetic.get_config()
    config.data.root = str(dataset)
    parts = experiment.build(config.to_dict())
    state, features = jax.device_get((parts.program.init(), parts.work.constants))
    np.savez(work / "params.npz", **trees.named_leaves(state.params))
    np.save(work / "table.npy", state.tables["embedding"])
    named = {
        f"{name}/{part}": x for name, pair in features.items() for part, x in zip(("tokens", "mask"), pair, strict=True)
    }
    np.savez(work / "features.npz", **named)
    (work / "dataset.txt").write_text(str(dataset.absolute()))


def train(work: Path, name: str, seed: int, threads: int) -> None:
    import torch

    from benchmarks.peer_model import Peer, PeerStep, tensors
    from configs import em3_synthetic
    from em3_jax import metrics
    from em3_jax.core import rng
    from em3_jax.data.batches import BatchBuilder
    from em3_jax.data.buckets import Buckets
    from em3_jax.data.format import open_dataset

    reports = Reports(work)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    config, dataset = em3_synthetic.get_config().to_dict(), open_dataset((work / "dataset.txt").read_text())
    data = config["data"]
    names = ("history_length", "unknown_alpha", "unknown_floor")
    builder = BatchBuilder(dataset, **{key: data[key] for key in names})
    arrays = np.load(work / "features.npz")
    features = {key: tuple(arrays[f"{key}/{part}"] for part in ("tokens", "mask")) for key in data["features"]}
    peer = Peer(config, dataset.fields, dict(np.load(work / "params.npz")), features)
    step = PeerStep(peer, np.load(work / "table.npy"), None, config, compiled=name == "compiled")
    parts = {part: np.asarray(dataset.split_rows(part)) for part in ("train", "valid")}

    def batch_of(rows: np.ndarray, key: np.uint64 | None) -> dict[str, torch.Tensor]:
        return tensors(builder(rows, buckets=Buckets(64, 64), key=key), dataset.fields.num_rows)

    @torch.no_grad()
    def scores() -> np.ndarray:
        peer.training, out = False, []
        for start in range(0, len(parts["valid"]), VALID_BATCH):
            batch = batch_of(parts["valid"][start : start + VALID_BATCH], None)
            out.append(peer.scores(step.table.index_select(0, batch["row_id"]), batch).numpy())
        peer.training = True
        return np.concatenate(out)

    size, best, stale, number = data["batch_size"], -np.inf, 0, 0
    labels = np.asarray(dataset.label("click"))[parts["valid"]]
    reports.training()
    for epoch in range(int(config["train"]["epochs"])):
        order = np.random.default_rng((seed, epoch)).permutation(parts["train"])
        for start in range(0, len(order) - size + 1, size):
            step(batch_of(order[start : start + size], rng.numpy_key(seed, "unknown", number)))
            number += 1
            if number % EVALUATE:
                continue
            with reports.evaluating():
                found = scores()
                auc = metrics.auc(labels, found)
                stale = 0 if auc > best else stale + 1
                best = max(best, auc)
            if not reports.valid(found, EVALUATE * size) or stale >= config["train"]["patience"]:
                return


if __name__ == "__main__":
    main(prepare, train)
