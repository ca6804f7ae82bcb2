"""An MMRec folder of a few hundred users who like items near their own taste; picture and text show it, with noise."""

from pathlib import Path

import numpy as np

from em3_jax.data.format import Dataset
from em3_jax.data.readers.mmrec import mmrec

USERS, ITEMS, WIDTH = 220, 90, 6
NEW_USERS, COLD_ITEMS = 4, 5  # without a training pair: the last ones


def write_folder(root: Path, seed: int = 0) -> Path:
    """interactions.tsv, image_feat.npy and text_feat.npy in `root`."""
    random = np.random.default_rng(seed)
    taste, item = random.standard_normal((USERS, WIDTH)), random.standard_normal((ITEMS, WIDTH))
    score = taste @ item.T + 0.3 * random.gumbel(size=(USERS, ITEMS))
    root.mkdir(parents=True)
    lines = ["userID\titemID\tx_label\n"]
    for user in range(USERS):
        warm = score[user, : ITEMS - COLD_ITEMS].argsort()[::-1][: random.integers(4, 14)]
        split = np.zeros(len(warm), int) if user < USERS - NEW_USERS else np.ones(len(warm), int)
        split[random.permutation(len(warm))[:2]] = 1, 2
        lines += [f"{user}\t{i}\t{x}\n" for i, x in zip(warm, split, strict=True)]
        if user % 9 == 0:
            lines.append(f"{user}\t{ITEMS - COLD_ITEMS + score[user, -COLD_ITEMS:].argmax()}\t{1 + user % 2}\n")
    (root / "interactions.tsv").write_text("".join(lines))
    for name, noise in (("image", 0.5), ("text", 0.3)):
        features = item @ random.standard_normal((WIDTH, 10)) + noise * random.standard_normal((ITEMS, 10))
        np.save(root / f"{name}_feat.npy", features.astype(np.float32))
    return root


def planted_pairs(root: Path, seed: int = 0) -> Dataset:
    """The dataset made of such a folder."""
    return mmrec(root / "data", source=write_folder(root / "source", seed))
