"""Makes codes of items' content, semantic IDs, and keeps them beside a dataset's features.

em3 codes --data data/shop --features image,text --name sid
em3 codes --data data/shop-new --name sid --from data/shop/codes/sid
em3 codes --workdir runs/em3 --name trained

A ranking model reads them as item fields with --config.data.codes=sid. By default they take 6 bytes
an item, 24 codes of 4: of ways to spend these, that is best on planted data of 100,000 rows, for
what is learnt of a code is learnt from all items that share it; larger codebooks need more rows.

When the catalogue grows, --from keeps the codebooks of an earlier code set and the codes of every
item whose content is as it was, and codes the others; so a run goes on with them. --workdir takes
the codes that a run has trained with the clicks (config.model.quantiser), of the catalogue that it
was trained on or one grown from it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from em3_jax import cli
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError
from em3_jax.data.codes import MOST_CODES, CodeSet, check_free, read_codes, read_kept, write_codes
from em3_jax.data.features import set_folder
from em3_jax.data.format import Dataset, FeatureSet, open_dataset
from em3_jax.export.command import facts_of
from em3_jax.export.items import digests
from em3_jax.features.codes import KINDS, Coder, has_content, load_sets
from em3_jax.training import embeddings, growth
from em3_jax.training.run import Run

_DIGESTED = 4096  # items at once


def make(
    data: Path,
    name: str,
    features: Sequence[str],
    *,
    levels: int = 24,
    size: int = 4,
    kind: str = "rq_kmeans",
    seed: int = 0,
    overwrite: bool = False,
) -> CodeSet:
    """Fits codebooks to the content of a dataset's items, and adds their codes as a set.

    Args:
      data: dataset folder.
      name: of the code set.
      features: the feature sets that are coded together, with or without token slots.
      levels, size: L codes an item, each of K.
      kind: rq_kmeans or rq_vae, see `em3_jax.features`.
      seed: of all that is drawn.
      overwrite: replace a code set of that name.

    Raises:
      UserError: whatever of it the user can mend.
    """
    if kind not in KINDS:
        raise UserError(f"--kind '{kind}': choose one of {', '.join(KINDS)}")
    if levels < 1 or not 2 <= size <= MOST_CODES:
        raise UserError(f"--levels {levels} --size {size}: give 1 level or more, of 2 to {MOST_CODES:,} codes")
    dataset = open_dataset(data)
    check_free(set_folder(dataset.root, "codes", name), overwrite)
    sets = load_sets(dataset, tuple(features))
    coder = Coder.fitted(kind, sets, levels, size, seed)
    mask = has_content(sets)
    codes = np.zeros((dataset.num_items, levels), np.int32)
    codes[mask] = coder.codes(sets, np.flatnonzero(mask))
    manifest = {
        "kind": kind,
        "levels": levels,
        "size": size,
        "seed": seed,
        "features": {given: _described(one) for given, one in zip(features, sets, strict=True)},
    }
    return _write(dataset, name, sets, coder, codes, mask, manifest, overwrite)


def update(data: Path, name: str, from_: Path, overwrite: bool = False) -> CodeSet:
    """Adds the code set of an earlier one's codebooks: items whose content is as it was keep their codes, bit for bit.

    Args:
      data: dataset folder, whose feature sets have to be those of the same encoders.
      name: of the code set.
      from_: folder of the earlier one; it may be the one that is replaced.
      overwrite: replace a code set of that name.

    Raises:
      UserError: whatever of it the user can mend.
    """
    dataset, kept = open_dataset(data), read_kept(from_)
    check_free(set_folder(dataset.root, "codes", name), overwrite)
    if kept.manifest["kind"] == "run":
        raise UserError(
            f"{from_}: has codes of the run {kept.manifest['run']}, which alone can code further items; make them with "
            "--workdir and --data"
        )
    sets = load_sets(dataset, tuple(kept.manifest["features"]))
    for given, one in zip(kept.manifest["features"], sets, strict=True):
        if _described(one)["facts"] != kept.manifest["features"][given]["facts"]:
            raise UserError(
                f"{dataset.root}: the features '{one.name}' were made otherwise than those of {from_}; make them with the "
                "same encoder, or make the codes afresh, without --from"
            )
    mask, digest = has_content(sets), _digests(sets, dataset.num_items)
    row = np.array([kept.place.get(str(item), -1) for item in dataset.item_table.column("id").to_pylist()], np.int64)
    known = (row >= 0) & mask
    known[known] = kept.mask[row[known]] & (kept.digest[row[known]] == digest[known]).all(axis=1)
    codes = np.zeros((dataset.num_items, kept.manifest["levels"]), np.int32)
    codes[known] = kept.codes[row[known]]
    coder, new = Coder(kept.manifest["kind"], kept.codebooks), np.flatnonzero(mask & ~known)
    codes[new] = coder.codes(sets, new)
    manifest = {key: kept.manifest[key] for key in ("kind", "levels", "size", "seed")} | {
        "features": {given: _described(one) for given, one in zip(kept.manifest["features"], sets, strict=True)}
    }
    print(f"{int(known.sum()):,} items keep their codes, {len(new):,} are coded")
    return _write(dataset, name, sets, coder, codes, mask, manifest, overwrite)


def of_run(directory: Path, name: str, data_root: Path | None = None, overwrite: bool = False) -> CodeSet:
    """Adds the codes that a run's best checkpoint gives the items of its dataset, or of one that has grown from it.

    Args:
      directory: the run's folder.
      name: of the code set.
      data_root: the dataset folder, if it is not where it was in training.
      overwrite: replace a code set of that name.

    Raises:
      UserError: the run has no quantiser; its dataset is another.
    """
    run = Run.open(directory, data_root)
    settings = getattr(run.config.model, "quantiser", None)
    if settings is None or not settings.levels:
        raise UserError(
            f"{directory}: has trained no codes; train with --config.model.quantiser.levels=24, or give --data and "
            "--features to code its inputs"
        )
    parts = run.experiment
    run.check_data(grown=True)
    dataset, sets = parts.work.dataset, parts.work.feature_sets
    check_free(set_folder(dataset.root, "codes", name), overwrite)
    state, _ = growth.restore(run.checkpoints, directory, parts)
    codes = embeddings.content_codes(parts, state)
    manifest = {
        "kind": "run",
        "run": f"{run.folder.name}, step {int(state.step):,}",
        "levels": settings.levels,
        "size": settings.size,
        "seed": run.config.seed,
        "features": {},
        "inputs": parts.feature_hashes,
    }
    arrays = {"codebooks": np.asarray(state.params["model"]["quantiser"]["codebooks"])}
    digest = _digests(sets, dataset.num_items)
    write_codes(dataset, name, codes, embeddings.has_content(parts), arrays, digest, manifest, overwrite)
    return read_codes(dataset, name)


def _write(
    dataset: Dataset,
    name: str,
    sets: Sequence[FeatureSet],
    coder: Coder,
    codes: np.ndarray,
    mask: np.ndarray,
    manifest: dict,
    overwrite: bool,
) -> CodeSet:
    explained = coder.explained(sets, codes[mask], np.flatnonzero(mask))
    manifest = manifest | {"statistics": {"r2": round(explained, 4) if np.isfinite(explained) else None}}
    digest = _digests(sets, dataset.num_items)
    write_codes(dataset, name, codes, mask, coder.arrays, digest, manifest, overwrite)
    return read_codes(dataset, name)


def _digests(sets: Sequence[FeatureSet], items: int) -> np.ndarray:
    """[I, 16] u8 of what the sets hold of each item."""
    starts = range(0, items, _DIGESTED)
    blocks = [digests(sets, np.arange(start, min(start + _DIGESTED, items))) for start in starts]
    return np.concatenate(blocks).view(np.uint8).reshape(items, -1)


def _described(features: FeatureSet) -> dict:
    return {"hash": features.manifest["hash"], "facts": facts_of(features)}


def report(codes: CodeSet) -> str:
    """What is worth knowing of a code set, a line each."""
    found = codes.manifest["statistics"]
    items, r2 = found["items"], found.get("r2")
    share = found["colliding"] / items if items else 0.0
    lines = [
        codes.describe(),
        f"usage by level       {'  '.join(f'{one:.1%}' for one in found['usage'])}",
        f"perplexity by level  {'  '.join(f'{one:.1f}' for one in found['perplexity'])} of {codes.manifest['size']}",
        f"collisions           {found['colliding']:,} items ({share:.1%}) share all codes with another, "
        f"{found['largest_collision']:,} at most",
    ]
    if r2 is not None:
        lines.append(f"variance explained   {r2:.1%}")
    return "\n  ".join(lines)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--data", type=paths.local, help="dataset folder; of a run, if it has moved or grown")
    parser.add_argument("--name", required=True, help="of the code set to write")
    parser.add_argument("--features", type=cli.as_list, help="feature sets to code together, e.g. image,text")
    parser.add_argument("--levels", type=int, help="codes of an item (default 24)")
    parser.add_argument("--size", type=int, help="codes of a level (default 4, which 2 bits say)")
    parser.add_argument("--kind", help=f"how codebooks are made: {' or '.join(KINDS)} (default {KINDS[0]})")
    parser.add_argument("--seed", type=int, help="of all that is drawn (default 0)")
    parser.add_argument(
        "--from", dest="from_", type=paths.local, help="folder of a code set whose codebooks, and codes, are kept"
    )
    parser.add_argument("--workdir", type=paths.local, help="the folder of a run that has trained codes")
    parser.add_argument("--overwrite", action="store_true", help="replace a code set of that name")
    args = parser.parse_args()
    own = {name: getattr(args, name) for name in ("features", "levels", "size", "kind", "seed")}
    own = {name: value for name, value in own.items() if value is not None}
    given = [f"--{name}" for name in own] + ["--from"] * bool(args.from_)
    if args.workdir and given:
        raise UserError(f"{given[0]}: --workdir takes the codes as the run has them; leave it out")
    if args.from_ and own:
        raise UserError(f"{given[0]}: --from keeps what that code set was made with; leave it out")
    if not (args.data or args.workdir):
        raise UserError("--data is missing; see `em3 codes --help`")
    if args.workdir:
        done = of_run(args.workdir, args.name, args.data, args.overwrite)
    elif args.from_:
        done = update(args.data, args.name, args.from_, args.overwrite)
    else:
        done = make(args.data, args.name, own.pop("features", ()), **own, overwrite=args.overwrite)
    text = f"{report(done)}\nuse it with --config.data.codes={args.name}"
    terminal.result(text, name=args.name, **done.manifest["statistics"])
