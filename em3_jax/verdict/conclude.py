"""What a climbed ladder says: numbers as JSON values. `words` makes sentences of them, `page` a page."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from em3_jax import metrics
from em3_jax.protocols.importance import importance
from em3_jax.protocols.inputs import ALL_CONTENT, CONTENT
from em3_jax.verdict import forecast as ahead
from em3_jax.verdict import popularity
from em3_jax.verdict.climb import METRIC, Climb
from em3_jax.verdict.ladder import FUSION, IDS, POPULARITY
from em3_jax.verdict.measure import Rows, Spread, holm, spread

PAYS, NO_DIFFERENCE, HARMS = "pays", "no difference", "harms"
TIMES = 4.0  # the data
CHEAP = "similarity"
REPEATS = 3  # draws of a permutation


def conclude(climbed: Climb, chosen: str, finalists: Sequence[str], test: Rows) -> dict[str, Any]:
    """The verdict.

    Args:
      climbed: the ladder.
      chosen: the content rung that validation chose.
      finalists: the content rungs of the last stage.
      test: rows of the test split, which is read here for the first time.
    """
    top = climbed.plan.shares[-1]
    of = {name: climbed.scores(name, top, "test") for name in (IDS, *finalists)}
    moved = spread([test.value(one, METRIC) for one in of.values()])
    rows = [_rung(climbed, rung.name, test, moved) for rung in climbed.rungs]
    corrected = holm({row["name"]: row["gain"]["p"] for row in rows if row["gain"]})
    for row in rows:
        row["p_corrected"] = corrected.get(row["name"])
    rows.insert(0, _popularity(climbed, test, of[IDS], moved))
    gain = test.gain(of[chosen], of[IDS], METRIC, moved)
    verdict = PAYS if gain.is_there else HARMS if gain.high < 0 else NO_DIFFERENCE
    parts = _importance(climbed, chosen) if verdict == PAYS else []
    return {
        "data": _data(climbed),
        "metric": METRIC,
        "verdict": verdict,
        "best": chosen,
        "recommended": chosen if verdict == PAYS else IDS,
        "gain": gain._asdict(),
        "seeds": climbed.plan.seeds,
        "seed_sd": moved.sd,
        "by": test.by,
        "top": top,
        "settings": climbed.tried,
        "slow": sorted(climbed.own),
        "ladder": rows,
        "importance": parts,
        "slices": _slices(of[chosen], of[IDS], test, moved),
        **_curves(climbed, chosen, test, moved),
    }


def _importance(climbed: Climb, chosen: str) -> list[dict[str, Any]]:
    """What AUC the best rung loses on the test split where a feature set is permuted among the items."""
    rung = climbed.rung(chosen)
    if rung.vectors_of or rung.codes:
        return []  # it reads all sets as one
    folder = climbed.folders[chosen, climbed.plan.shares[-1]][0]
    inputs = importance(folder, "test", repeats=REPEATS)["inputs"]
    of_sets = [one for one in inputs if one["kind"] == CONTENT and one["name"] != ALL_CONTENT]
    return [
        {"name": one["name"], "value": one[METRIC]["drop"], "low": one[METRIC]["low"], "high": one[METRIC]["high"]}
        for one in of_sets
    ]


def _data(climbed: Climb) -> dict[str, Any]:
    meta = climbed.dataset.meta
    splits = meta["summary"]["splits"]
    facts = {split: {key: of[key] for key in ("rows", "users", "items", "click_rate")} for split, of in splits.items()}
    return {"name": meta["name"], "root": str(climbed.dataset.root), "hash": meta["data_hash"], "splits": facts}


def _rung(climbed: Climb, name: str, test: Rows, moved: Spread) -> dict[str, Any]:
    """A rung at the largest share that it has got to, against IDs there."""
    share = max(share for rung, share in climbed.folders if rung == name)
    model, base = climbed.scores(name, share, "test"), climbed.scores(IDS, share, "test")
    rung, values = climbed.rung(name), test.value(model, METRIC)
    gain = None if name == IDS else test.gain(model, base, METRIC, moved)
    first = climbed.folders[name, climbed.plan.shares[0]][0]
    finished = json.loads((first / "finished.json").read_text("utf-8"))
    return {
        "name": name,
        "label": rung.label,
        "about": rung.about + (", which learns slowly" if climbed.is_slow(name) else ""),
        "share": share,
        "seeds": len(model),
        "auc": float(values.mean()),
        "gauc": float(test.value(model, "gauc").mean()),
        "logloss": float(test.value(model, "logloss").mean()),
        "gain": gain._asdict() if gain else None,
        "gauc_gain": test.gain(model, base, "gauc", moved)._asdict() if gain else None,
        "gigaflops": finished["cost"]["gigaflops"] if "cost" in finished else None,
    }


def _popularity(climbed: Climb, test: Rows, ids: np.ndarray, moved: Spread) -> dict[str, Any]:
    """The row of what needs no model; it is no way for content, and none of the looks that p is corrected for."""
    logits = popularity.logits(climbed.dataset, "test", climbed.label)[None]
    values = {metric: float(test.value(logits, metric)[0]) for metric in ("auc", "gauc", "logloss")}
    gains = {
        name: test.gain(logits, ids, metric, moved)._asdict()
        for name, metric in (("gain", "auc"), ("gauc_gain", "gauc"))
    }
    about = "the item's rate of clicks in training, drawn to the mean where it has few rows"
    row = {"name": POPULARITY, "label": "popularity", "about": about, "share": 1.0, "seeds": 1}
    return row | values | gains | {"p_corrected": None, "gigaflops": None}


def _slices(model: np.ndarray, base: np.ndarray, test: Rows, moved: Spread) -> list[dict[str, Any]]:
    """The gain by how often training shows the candidate, and each slice's share of the gain in log-loss."""
    losses = lambda logits: np.mean([metrics.losses_of_rows(test.label, one) for one in logits], axis=0)  # noqa: E731
    less = losses(base) - losses(model)
    result = []
    for name, keep in test.slices().items():
        if not keep.any():
            continue
        row: dict[str, Any] = {"name": name, "rows": int(keep.sum()), "share_of_rows": float(keep.mean())}
        row["share_of_gain"] = float(less[keep].sum() / less.sum()) if less.sum() > 0 else None
        row["auc"] = {"ids": _mean(test, base, keep), "content": _mean(test, model, keep)}
        gain = test.gain(model, base, METRIC, moved, keep)
        result.append(row | {"gain": gain._asdict() if np.isfinite(gain.low) else None})
    return result


def _mean(test: Rows, logits: np.ndarray, keep: np.ndarray) -> float:
    return float(test.value(logits, METRIC, keep).mean())


def _curves(climbed: Climb, chosen: str, test: Rows, moved: Spread) -> dict[str, Any]:
    """The learning curves of the rungs' gains, the forecast of the chosen one's, and where fusion passes a cheaper one."""
    shares = climbed.plan.shares
    curves = {
        rung.name: [
            _point(climbed, rung.name, share, test, moved) for share in shares if (rung.name, share) in climbed.folders
        ]
        for rung in climbed.rungs
        if rung.name != IDS
    }
    result: dict[str, Any] = {
        "curves": {
            name: [{"share": p.share, "gain": p.value, "low": _low(p), "high": _high(p)} for p in points]
            for name, points in curves.items()
        }
    }
    predicted = ahead.forecast(curves[chosen], TIMES) if len(curves[chosen]) > 1 else None
    result["forecast"] = predicted._asdict() if predicted else None
    trained, fusion = FUSION in chosen, curves.get(FUSION, [])
    both = [p for p in curves[chosen] if p.share in {q.share for q in fusion}]
    fusion = [p for p in fusion if p.share in {q.share for q in both}]
    times = None if trained or len(both) < 2 else ahead.crossing(fusion, both)
    whole = climbed.dataset.meta["summary"]["splits"]["train"]["rows"]
    result["fusion_passes_at_rows"] = None if times is None else int(times * both[-1].share * whole)
    cheap = [p for p in curves.get(CHEAP, []) if p.share in {q.share for q in curves[chosen]}]
    result["cosines"] = None
    if cheap and chosen != CHEAP:
        best = next(p for p in curves[chosen] if p.share == cheap[-1].share)
        if best.value > 0:
            result["cosines"] = {"share_of_gain": cheap[-1].value / best.value, "at": cheap[-1].share}
    return result


def _low(point: ahead.Point) -> float:
    return float(np.quantile(point.drawn, 0.025))


def _high(point: ahead.Point) -> float:
    return float(np.quantile(point.drawn, 0.975))


def _point(climbed: Climb, name: str, share: float, test: Rows, moved: Spread) -> ahead.Point:
    model, base = climbed.scores(name, share, "test"), climbed.scores(IDS, share, "test")
    value = float(test.value(model, METRIC).mean() - test.value(base, METRIC).mean())
    drawn = value + test.replicates(model, base, METRIC) + moved.draw(round(1e6 * share), len(model), len(base))
    return ahead.Point(share, value, drawn)
