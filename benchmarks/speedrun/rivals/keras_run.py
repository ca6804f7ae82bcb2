"""A DLRM of keras-rs 0.4.0's layers on Keras with JAX in the race, see protocol.py.

keras-rs has no ready DLRM, its examples build one of its layers: so does this one, by `EmbedReduce` (lists, histories and
their ratings as means) and `DotInteraction` between all embeddings, with a top network of FuxiCTR's widths; `Model.fit`
trains, a quarter of an epoch a call. The histories are not attended to: the library has no DIN.
"""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import keras
import keras_rs
import numpy as np
from encode import load, save
from protocol import Reports, main

WIDTH, HIDDEN, BATCH = 16, (256, 128, 64), 1024
EVALUATIONS, EPOCHS, PATIENCE = 4, 30, 4


def dlrm(columns: dict, sizes: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> keras.Model:
    """The model on the columns by name."""
    shared = {name: of for of, name in columns["history"].items() if of in columns["single"]}
    tables = {
        name: keras_rs.layers.EmbedReduce(size, WIDTH, combiner="mean", name=f"{name}_table")
        for name, size in sizes.items()
    }
    inputs = {name: keras.Input(shape, name=name, dtype="int32") for name, shape in shapes.items()}
    embedded = []
    for name, one in inputs.items():
        weights = keras.ops.cast(one != 0, "float32") if shapes[name] else None
        embedded.append(tables[shared.get(name, name)](one, weights))
    x = keras.layers.Concatenate()([*embedded, keras_rs.layers.DotInteraction()(embedded)])
    for units in HIDDEN:
        x = keras.layers.Dense(units, "relu")(x)
    return keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(x))


def auc_of(labels: np.ndarray, scores: np.ndarray) -> float:
    """By its own metric, for its own patience."""
    metric = keras.metrics.AUC(num_thresholds=2000)
    metric.update_state(labels, scores)
    return float(metric.result())


def train(work: Path, _name: str, seed: int, _threads: int) -> None:
    reports = Reports(work)
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    columns, sizes, parts = load(work)
    labels = {part: arrays.pop(columns["label"]) for part, arrays in parts.items()}
    valid, shown = ({name: x.astype(np.int32) for name, x in parts[part].items()} for part in ("valid", "train"))
    model = dlrm(columns, sizes, {name: x.shape[1:] for name, x in shown.items()})
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="binary_crossentropy")
    best, stale = -1.0, 0
    reports.training()
    for _ in range(EPOCHS):
        order = random.permutation(len(labels["train"]))
        batches = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)  # the rest would be compiled anew
        for share in map(np.ravel, np.array_split(batches, EVALUATIONS)):
            model.fit(
                {name: x[share] for name, x in shown.items()}, labels["train"][share], batch_size=BATCH, verbose=0
            )
            with reports.evaluating():
                scores = model.predict(valid, batch_size=BATCH, verbose=0)[:, 0]
                auc = auc_of(labels["valid"], scores)
                stale = 0 if auc > best else stale + 1
                best = max(best, auc)
            if not reports.valid(scores, len(share)) or stale >= PATIENCE:
                return


if __name__ == "__main__":
    main(save, train)
