"""The spaces in which items have neighbours: the ids of two runs, their content before and after training, and a
view of the content that the model never had, to measure in."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from em3_jax.config.schema import Retrieval
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.types import State
from em3_jax.core.values import canonical
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.features import placement
from em3_jax.features.tokens import standardise
from em3_jax.training import embeddings
from em3_jax.training.experiment import Experiment
from em3_jax.training.run import Run

MODELS = {"ranking": "EM3", "lemur": "LEMUR"}  # task -> what its model is called in tables
BASELINE_IDS, IDS, FROZEN, CONTENT = "baseline_ids", "ids", "frozen", "content"
INDEPENDENT = "independent"
WORDS = "words"  # in place of a feature set: the items' texts as bags of words
_BLOCK = 4096  # items standardised at once


class Space(NamedTuple):
    """One embedding of every item.

    Attributes:
      key: BASELINE_IDS, IDS, FROZEN, CONTENT or INDEPENDENT.
      name: in tables.
      about: what nearness means in it, in a line.
      vectors: [I, D] f32.
      present: [I] bool, whether the item has a place in it: its id was trained, or it has content.
    """

    key: str
    name: str
    about: str
    vectors: np.ndarray
    present: np.ndarray


class Analysed(NamedTuple):
    """Two runs on one dataset, and what they make of its items.

    Attributes:
      dataset: the dataset.
      model: what the model under analysis is called.
      runs: "baseline" and "model" -> the run's folder and step, in words.
      spaces: key -> space.
      frozen_sets: feature sets that make the frozen space.
      independent: a space of content that the model does not read, to measure in; None without one.
      shown: [I] i64, training showings: rows that have the item as candidate, and events that the model read in
        training histories.
      clicks: [I] i64, clicks among the former.
    """

    dataset: Dataset
    model: str
    runs: dict[str, str]
    spaces: dict[str, Space]
    frozen_sets: list[str]
    independent: Space | None
    shown: np.ndarray
    clicks: np.ndarray

    @property
    def pool(self) -> np.ndarray:
        """[I] bool: the items among which neighbours are searched: in all four spaces."""
        return np.all([space.present for space in self.spaces.values()], axis=0)


def read(
    directory: str | Path,
    baseline: str | Path,
    data_root: str | Path | None = None,
    frozen: tuple[str, ...] = (),
    independent: tuple[str, ...] = (),
) -> Analysed:
    """The spaces of a run and its baseline, from their best checkpoints.

    Args:
      directory: the folder of a run with content and ids.
      baseline: the folder of a run on the same dataset with ids.
      data_root: the dataset folder, if it is not where it was in training.
      frozen: feature sets that make the frozen space; empty: those that the run reads, or where it reads raw content alone,
        all of the dataset that an encoder has made.
      independent: feature sets that the run does not read, or "words"; empty: all of the dataset that there are, else
        "words" where the items have texts.

    Raises:
      UserError: one of them is no run, has no checkpoint, no ids or no content, or they do not belong together.
    """
    run, base = Run.open(directory, data_root), Run.open(baseline, data_root)
    if base.data_hash != run.data_hash:
        raise UserError(
            f"--baseline {baseline}: belongs to another dataset (hash {base.data_hash[:12]}, that of {directory} is "
            f"{run.data_hash[:12]}); give a run on the dataset of --workdir"
        )
    parts = _opened(run)
    if parts.program.embed is None and not parts.program.shapes.memory:
        raise UserError(
            f"{directory}: it has no content embeddings, as no run on IDs alone has; give one with content as --workdir"
        )
    state = _restored(run)
    dataset, ids = parts.work.dataset, embeddings.id_embeddings(parts, state)
    content, has_content = embeddings.content_embeddings(parts, state)
    base_parts = _opened(base)
    base_state = _restored(base)
    base_ids = embeddings.id_embeddings(base_parts, base_state)

    sets = _frozen_sets(parts, frozen)
    assert not isinstance(run.config, Retrieval)  # which embeds nothing
    shown, clicks = _counted(dataset, run.config.data.label)
    model, trained = MODELS.get(run.config.task, "model"), shown > 0
    frozen_vectors, frozen_present = frozen_content(sets)
    spaces = [
        Space(BASELINE_IDS, "Baseline IDs",
              "learnt from clicks alone; near ones are liked by the same people",
              base_ids, trained),
        Space(IDS, f"{model} IDs",
              "learnt from clicks, in a model that sees the content as well",
              ids, trained),
        Space(FROZEN, "Frozen content",
              "as the encoder sees it, before any click; near ones look and read alike",
              frozen_vectors, frozen_present),
        Space(CONTENT, f"{model} content",
              "as clicks have taught to see it; near ones are alike in what people care about",
              content.astype(np.float32), has_content),
    ]  # fmt: skip
    return Analysed(
        dataset=dataset,
        model=model,
        runs={"baseline": _in_words(baseline, base_state), "model": _in_words(directory, state)},
        spaces={space.key: space for space in spaces},
        frozen_sets=[features.name for features in sets],
        independent=_independent(parts, sets, independent),
        shown=shown,
        clicks=clicks,
    )


def _opened(run: Run) -> Experiment:
    parts = run.experiment
    run.check_data()
    if not parts.program.shapes.tables:
        raise UserError(
            f"{run.folder}: it has no table of ID embeddings (task {run.config.task}); give a run that ranks clicks"
        )
    return parts


def _restored(run: Run) -> State:
    state = run.state()
    run.checkpoints.close()
    return state


def _in_words(directory: str | Path, state: State) -> str:
    return f"{Path(directory)}, step {int(state.step):,}"


def _frozen_sets(parts: Experiment, names: tuple[str, ...]) -> list[FeatureSet]:
    dataset = parts.work.dataset
    if names:
        sets = placement.load_features(dataset, names)
        for features in sets:
            if features.is_raw:
                raise UserError(
                    f"--frozen {features.name}: is raw content; name a feature set that an encoder has made"
                )
        return sets
    used = [features for features in parts.work.feature_sets if not features.is_raw]
    if used:
        return used
    made = _made_by_encoders(dataset)
    if not made:
        raise UserError(
            f"{dataset.root}: has raw content alone, and no frozen encoder's features to measure in; make some with "
            "`em3 extract` and name them with --frozen"
        )
    return placement.load_features(dataset, tuple(made))


def _made_by_encoders(dataset: Dataset) -> list[str]:
    """The feature sets of a dataset that no run has learnt."""
    names = sorted(path.name for path in (dataset.root / "features").glob("[!.]*") if path.is_dir())
    known = [features for features in map(dataset.features, names) if not features.is_raw]
    return [features.name for features in known if features.manifest.get("kind") != "run"]


def _independent(parts: Experiment, frozen: list[FeatureSet], names: tuple[str, ...]) -> Space | None:
    """Content as the model does not read it; None where there is no such view and none was asked for."""
    dataset = parts.work.dataset
    read = {features.name.partition("[")[0] for features in (*parts.work.feature_sets, *frozen)}
    for name in names:
        if name.partition("[")[0] in read:
            raise UserError(f"--independent {name}: the run reads it, or --frozen names it; name another, or {WORDS}")
    texts = dataset.meta["text_columns"]
    chosen = names or tuple(name for name in _made_by_encoders(dataset) if name not in read)
    chosen = chosen or ((WORDS,) if texts else ())
    if not chosen:
        return None
    views = []
    if WORDS in chosen:
        if not texts:
            raise UserError(f"--independent {WORDS}: the items of {dataset.root} have no texts; name a feature set")
        views.append(bag_of_words(dataset, texts))
    if sets := [name for name in chosen if name != WORDS]:
        views.append(frozen_content(placement.load_features(dataset, tuple(sets))))
    vectors, present = np.concatenate([view[0] for view in views], axis=1), np.any([view[1] for view in views], axis=0)
    about = "content as the model does not read it, so that what it has learnt of its own input counts for nothing"
    return Space(INDEPENDENT, f"Independent content ({', '.join(chosen)})", about, vectors, present)


def bag_of_words(dataset: Dataset, columns: list[str], width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """([I, width] f32 of unit length, [I] bool): the items' texts by the words in them, no network involved.

    Words count by how rare they are (TF-IDF); the leading singular vectors of that make the columns (latent semantic
    analysis, Deerwester et al. 1990).
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [" ".join(text for text in row if text) for row in zip(
        *(dataset.item_table.column(name).to_pylist() for name in columns), strict=True
    )]  # fmt: skip
    try:
        counts = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    except ValueError:
        raise UserError(f"{dataset.root}: the texts of its items hold no words; name a feature set") from None
    rank = min(width, min(counts.shape) - 1)
    vectors = TruncatedSVD(rank, random_state=0).fit_transform(counts) if rank > 0 else counts.toarray()
    return unit(vectors), np.asarray(counts.sum(axis=1)).ravel() > 0


def frozen_content(sets: list[FeatureSet]) -> tuple[np.ndarray, np.ndarray]:
    """([I, D] f32, [I] bool): each set's tokens, standardised as models see them, their mean, unit length; side by side.

    A set that an item lacks is zero, so that the cosine of two items is the mean of those of their sets where both have all.
    Nothing is centred over the catalogue: what all items share stays in, and `chance` in the tables says how much it is.
    """
    columns = []
    for features in sets:
        means = []
        for start in range(0, len(features.mask), _BLOCK):
            part = slice(start, start + _BLOCK)
            mask = np.asarray(features.mask[part])
            tokens = np.asarray(standardise(np.asarray(features.tokens[part]), mask), np.float32)
            means.append(tokens.sum(axis=1) / np.maximum(mask.sum(axis=1, keepdims=True), 1))
        columns.append(unit(np.concatenate(means)))
    return np.concatenate(columns, axis=1), np.any([features.mask.any(axis=1) for features in sets], axis=0)


def unit(vectors: np.ndarray) -> np.ndarray:
    """[n, D] f32 of length 1; zeros stay zeros."""
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1.0)).astype(np.float32)


def _counted(dataset: Dataset, label: str) -> tuple[np.ndarray, np.ndarray]:
    """(training showings [I] i64, training clicks [I] i64) under the label that the run learns."""
    rows = np.asarray(dataset.split_rows("train", label))
    item, clicked = dataset.interactions["item"][rows], dataset.label(label)[rows] == 1
    shown = np.bincount(item, minlength=dataset.num_items) + dataset.counts["item_history"]
    return shown, np.bincount(item[clicked], minlength=dataset.num_items)


def rows_of(dataset: Dataset, ids: tuple[str, ...], option: str) -> np.ndarray:
    """[n] i64 rows of items by their original ids."""
    wanted = [canonical(one) or one for one in ids]
    known = {canonical(item): row for row, item in enumerate(dataset.item_table.column("id").to_pylist())}
    for item in wanted:
        if item not in known:
            names = [name for name in known if name is not None][:10_000]
            raise UserError(f"{option}: the dataset has no item '{item}'; {nearest(item, names)}")
    return np.array([known[item] for item in wanted], np.int64)
