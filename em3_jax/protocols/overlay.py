"""Dataset folders made of links to another, in which a share of the items lacks a modality.

The items are drawn by a hash of their original ids: those that lack it at 10 % lack it at 30 %,
too, and an item is drawn or not whatever others there are. Tokens are never copied; a mask says
what is not there.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from em3_jax.core import strict_json
from em3_jax.core.errors import UserError, nearest
from em3_jax.data import canonical
from em3_jax.data.codes import read_codes
from em3_jax.data.format import Dataset
from em3_jax.data.readers.splits import numbers_of_ids
from em3_jax.trials import runs as trials


def drawn(dataset: Dataset, rate: float, seed: int) -> np.ndarray:
    """[I] bool: the items that lack the modality, a share of `rate` of them."""
    ids = canonical.texts(dataset.item_table.column("id")).to_pylist()
    return numbers_of_ids(ids, f"missing {seed}") < rate


def without(dataset: Dataset, modalities: tuple[str, ...], rate: float, seed: int, root: Path) -> Path:
    """The folder `root`: `dataset` whose drawn items lack the modalities; what is there is kept.

    Args:
      dataset: the whole one.
      modalities: names of feature sets; the same items lack all of them.
      rate: share of the items, 0 to 1.
      seed: of the draw.
      root: the folder to make.

    Raises:
      UserError: there is no such feature set, or the folder holds another dataset.
    """
    trials.overlay(dataset.root, root, modalities)
    gone = drawn(dataset, rate, seed)
    for name in modalities:
        features, folder = dataset.features(name), root / "features" / name
        facts = {"of": features.manifest["hash"], "rate": rate, "seed": seed}
        path = folder / "manifest.json"
        if path.exists():
            there = json.loads(path.read_text(encoding="utf-8")).get("missing")
            if there != facts:
                raise UserError(f"{folder}: made of other data ({there}); choose another --out, or delete it")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        tokens = folder / "tokens.npy"
        if not tokens.is_symlink():
            tokens.symlink_to((dataset.root / "features" / name / "tokens.npy").absolute())
        mask = np.asarray(features.mask) & ~gone[:, None]
        np.save(folder / "mask.npy", mask)
        # The hash of the whole set stands for the tokens, which are not read again.
        digest = hashlib.sha256(features.manifest["hash"].encode() + np.packbits(mask).tobytes()).hexdigest()
        counts = features.manifest.get("counts", {}) | {"items_with_content": int(mask.any(axis=1).sum())}
        manifest = features.manifest | {"hash": digest, "counts": counts, "missing": facts}
        temporary = path.with_suffix(".tmp")  # last, and whole: it says that the folder is complete
        temporary.write_text(strict_json.dumps(manifest, indent=1), encoding="utf-8")
        temporary.replace(path)
    return root


def check_codes(dataset: Dataset, codes: tuple[str, ...], modalities: tuple[str, ...]) -> None:
    """Refuses code sets that are made of the modalities: they would tell what is meant to be missing.

    Args:
      dataset: whose they are.
      codes: config.data.codes.
      modalities: names of feature sets.
    """
    for name in codes:
        made_of = {one.partition("[")[0] for one in read_codes(dataset, name).manifest["features"]}
        if told := made_of & set(modalities):
            raise UserError(
                f"--modality {min(told)}: the run reads codes '{name}', made of it, which would still tell it; give a "
                "run without them"
            )


def check_modalities(names: tuple[str, ...], used: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The modalities; refuses such as a run does not read.

    Args:
      names: as given.
      used: config.data.features, each with or without token slots.
      where: the run's folder.
    """
    sets = [one.partition("[")[0] for one in used]
    for name in names:
        if name not in sets:
            raise UserError(f"--modality {name}: {where} reads no such content; {nearest(name, sets)}")
    if not names:
        raise UserError(f"--modality: names none; {where} reads {', '.join(sets)}")
    return tuple(dict.fromkeys(names))
