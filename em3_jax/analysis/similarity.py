"""Tables 8 and 9: how alike an item and its nearest neighbours are, found in one space and measured in another.

Table 8: neighbours of cold items by ID embedding, alike in frozen content, which the model under analysis reads itself, and
in content as it does not read it? Table 9: neighbours of popular items by content
embedding, alike in the baseline's IDs? The space that measures has seen neither what the model has learnt nor its search.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from em3_jax import metrics
from em3_jax.analysis.spaces import BASELINE_IDS, CONTENT, FROZEN, IDS, Analysed, Space
from em3_jax.core.errors import UserError
from em3_jax.serving.neighbours import Neighbours


class Choice(NamedTuple):
    """Which items are measured, and how.

    Attributes:
      cold_most: an item is cold with 1 to so many training showings; with none, its ID embedding is untrained noise.
      popular_share: of the items searched, those with most training clicks are popular.
      neighbours: of each item.
      sample: items of a table at most, drawn at random.
      seed: of the draw.
      approximate: neighbours by a graph instead of by all products, for millions of items.
    """

    cold_most: int = 10
    popular_share: float = 0.3
    neighbours: int = 3
    sample: int = 2000
    seed: int = 0
    approximate: bool = False

    def check(self) -> None:
        """Refuses values that mean nothing."""
        for name, least in (("cold_most", 1), ("neighbours", 1), ("sample", 2), ("seed", 0)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {getattr(self, name)}: give {least} or more")
        if not 0 < self.popular_share <= 1:
            raise UserError(f"--popular-share {self.popular_share}: give a share above 0 and up to 1")


def cold_items(analysed: Analysed, choice: Choice) -> np.ndarray:
    """[n] i64 rows of the items that training has shown, but hardly."""
    pool, shown = analysed.pool, analysed.shown
    cold = np.flatnonzero(pool & (shown <= choice.cold_most))
    if len(cold) < 2:
        fewest = np.sort(shown[pool])[:2]
        if len(fewest) < 2:
            raise UserError(
                f"{analysed.dataset.root}: fewer than two trained items have content; nothing can be compared"
            )
        raise UserError(
            f"--cold-most {choice.cold_most}: {len(cold)} of {pool.sum():,} items with content have 1 to {choice.cold_most} "
            f"training showings, too few to compare; give --cold-most {fewest[1]} or more"
        )
    return cold


def popular_items(analysed: Analysed, choice: Choice) -> np.ndarray:
    """[n] i64 rows, ascending, of the items with most training clicks; of equal ones those of lower rows."""
    pool = np.flatnonzero(analysed.pool)
    clicks = analysed.clicks[pool]
    clicked = int((clicks > 0).sum())
    popular = pool[np.argsort(-clicks, kind="stable")[: min(int(choice.popular_share * len(pool)), clicked)]]
    if len(popular) < 2:
        share = f"{2 / len(pool):.2g}" if clicked >= 2 else None
        hint = f"give --popular-share {share} or more" if share else "its training rows hold no clicks on two of them"
        raise UserError(
            f"--popular-share {choice.popular_share}: {len(popular)} of {len(pool):,} items with content are popular, too few "
            f"to compare; {hint}"
        )
    return np.sort(popular)


def sampled(items: np.ndarray, choice: Choice) -> np.ndarray:
    """[m] i64, ascending: at most `choice.sample` of the items."""
    if len(items) <= choice.sample:
        return items
    return np.sort(np.random.default_rng(choice.seed).choice(items, choice.sample, replace=False))


def measure(
    searched: Space, measured: Space, items: np.ndarray, pool: np.ndarray, count: int, approximate: bool = False
) -> np.ndarray:
    """[n] f64: of each item, the mean cosine in one space with its nearest neighbours in another.

    Args:
      searched: where neighbours are found.
      measured: where cosines are taken.
      items: [n] rows of items.
      pool: [I] bool, the items that may be neighbours.
      count: neighbours of an item.
    """
    index = Neighbours(searched.vectors, pool & searched.present, approximate)
    found, _ = index.search(searched.vectors[items], count, leave_out=items)
    unit = measured.vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    cosine = np.einsum("nkd,nd->nk", unit[found], unit[items])
    return np.nanmean(np.where(found >= 0, cosine, np.nan), axis=1)


def chance(measured: Space, items: np.ndarray, pool: np.ndarray) -> float:
    """The mean cosine of the items with all others of the pool: what neighbours drawn at random would have."""
    unit = measured.vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    total, own = unit[items] @ unit[pool].sum(axis=0), np.where(pool[items], (unit[items] ** 2).sum(axis=1), 0.0)
    return float(((total - own) / (pool.sum() - pool[items])).mean())


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): the mean of [n] values and its 95 % confidence interval by Student's t; NaN where n < 2."""
    n = len(values)
    half = special.stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def compared(
    analysed: Analysed, number: int, items: np.ndarray, choice: Choice, measured: Space | None = None
) -> dict[str, Any]:
    """Table 8 or 9 as JSON values; the second row is the model under analysis, `difference` is second minus first.

    Args:
      number: 8 or 9.
      items: [n] rows of all cold or popular items; a sample is drawn.
      measured: where cosines are taken, in place of the table's own space.
    """
    keys, own = {8: ((BASELINE_IDS, IDS), FROZEN), 9: ((FROZEN, CONTENT), BASELINE_IDS)}[number]
    measured = measured or analysed.spaces[own]
    pool = analysed.pool & measured.present
    taken = sampled(items[pool[items]], choice)
    if len(taken) < 2:
        raise UserError(f"{measured.name}: fewer than two items of table {number} are in it; name another space")
    spaces = [analysed.spaces[key] for key in keys]
    values = [measure(space, measured, taken, pool, choice.neighbours, choice.approximate) for space in spaces]
    intervals = [interval(of_items) for of_items in values]
    rows = [
        {"space": space.key, "name": space.name, "mean": mean, "low": low, "high": high}
        for space, (mean, low, high) in zip(spaces, intervals, strict=True)
    ]
    first, second = values
    mean, low, high = interval(second - first)
    of_first, lowest, _ = intervals[0]
    # A share of what may be nothing says nothing.
    gain = mean / of_first if lowest > 0 else float("nan")
    return {
        "table": number,
        "items": len(items),
        "sample": len(taken),
        "pool": int(pool.sum()),
        "neighbours": choice.neighbours,
        "measured_in": measured.key,
        "measured_name": measured.name,
        "read_by_model": measured.key == FROZEN,
        "chance": chance(measured, taken, pool),
        "rows": rows,
        "gain": gain,
        "difference": {"mean": mean, "low": low, "high": high, "p": metrics.paired_t_test(second, first).p},
    }


def markdown(tables: list[dict[str, Any]], analysed: Analysed, choice: Choice) -> str:
    """Both tables, with what they are made of."""
    runs = analysed.runs
    lines = [
        "# Item embeddings, told by their neighbours",
        "",
        f"{analysed.model}: {runs['model']}. Baseline: {runs['baseline']}. Dataset: {analysed.dataset.root}. Frozen content: "
        f"{', '.join(analysed.frozen_sets)}.",
    ]
    of_items = {
        8: ("Material similarity of cold items", f"1 to {choice.cold_most} training showings", "ID embeddings"),
        9: (
            "Behavioural similarity of popular items",
            f"the {choice.popular_share:.0%} with most training clicks",
            "content embeddings",
        ),
    }
    for table in tables:
        title, which, searched = of_items[table["table"]]
        measured = table["measured_name"] + (f", which {analysed.model} reads itself" if table["read_by_model"] else "")
        lines += ["", f"**Table {table['table']}. {title}** ({which}): cosine in the space '{measured}' with the "
                  f"{table['neighbours']} nearest by {searched}. {table['sample']:,} of {table['items']:,} such items, "
                  f"neighbours among {table['pool']:,}.", ""]  # fmt: skip
        lines += ["| searched in | similarity | 95 % interval | gain | p |", "|---|---|---|---|---|"]
        lines += [f"| any item, by chance | {table['chance']:.4f} | | | |"]
        for k, row in enumerate(table["rows"]):
            gain = f"{table['gain']:+.2%}" if np.isfinite(table["gain"]) else "-"
            against = f"{gain} | {table['difference']['p']:.2g}" if k else "- | -"
            lines.append(f"| {row['name']} | {row['mean']:.4f} | {row['low']:.4f} to {row['high']:.4f} | {against} |")
    lines += [
        "",
        _of_independence(analysed),
        "",
        "Intervals and p (paired t-test) are over the items of one run each; they know nothing of other seeds.",
        "",
    ]
    return "\n".join(lines)


def _of_independence(analysed: Analysed) -> str:
    """What table 8 can tell: near in what the model reads may be no more than its input, learnt by heart."""
    if analysed.independent is None:
        return (
            f"{analysed.model} reads the frozen content that table 8 is measured in, and there is no other view of the content; "
            "name one with --independent."
        )
    return f"{analysed.independent.name} is not among what {analysed.model} reads."
