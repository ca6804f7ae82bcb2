"""How often `em3 verdict` is right, on planted worlds whose content says all, some or nothing of clicks.

python -m benchmarks.verdict --out /tmp/verdict --rows 20000,50000 --shares 0,0.25,0.5,1 --worlds 3

A world is a draw of the planted data (`em3 prepare synthetic`) with its own seed. Where content says nothing, "it pays"
is a false alarm. Where it says something the verdict is right if it finds that, or if the gain on 4 times the rows,
measured by training IDs and the best rung on a log that is 4 times as long, is smaller than what it could have seen.
The same long log tells whether the forecast was right. Stopped and called again, it goes on.
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.data.format import open_dataset
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.verdict import climb, words
from em3_jax.verdict.command import CONFIG, verdict
from em3_jax.verdict.conclude import PAYS, TIMES
from em3_jax.verdict.ladder import IDS, LADDER
from em3_jax.verdict.measure import Rows


@dataclasses.dataclass(frozen=True)
class World:
    """A planted world: rows, the share of content that is about clicks, and a seed."""

    rows: int
    share: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.rows}-{self.share:g}-{self.seed}"

    def make(self, folder: Path, times: int = 1) -> Path:
        """The dataset, of so many times the rows: the same users and items, a longer log."""
        if not (folder / "dataset.json").is_file():
            people = max(self.rows // 40, 100)
            synthetic(
                folder, interactions=self.rows * times, users=people, items=people, seed=self.seed,
                content_share=self.share, overwrite=True,
            )  # fmt: skip
        return folder


def tried(world: World, out: Path, budget: float, forecast: bool) -> dict[str, Any]:
    """What the verdict says of a world, and what is so."""
    began = time.perf_counter()
    data = world.make(out / "data" / world.name)
    found = verdict(data, out / "reports" / world.name, budget_seconds=budget)
    result: dict[str, Any] = dataclasses.asdict(world) | {"seconds": time.perf_counter() - began}
    result |= {key: found[key] for key in ("verdict", "best", "recommended", "gain", "forecast")}
    result["headline"] = words.headline(found)
    if forecast and found["forecast"]:
        result["long"] = _on_long_log(world, out, found)
    return result


def _on_long_log(world: World, out: Path, found: dict[str, Any]) -> dict[str, float]:
    """The gain of the best rung on a log that is `TIMES` as long."""
    data = world.make(out / "data" / f"{world.name}-long", int(TIMES))
    dataset, plan = open_dataset(data), climb.Plan(1.0, 2, 0.0)
    ladder = climb.Climb(dataset, CONFIG, {}, LADDER, plan, out / "reports" / f"{world.name}-long", 2)
    ladder.settings = next(one["settings"] for one in found["settings"] if one["chosen"])
    ladder.own = {name: climb.SLOW for name in found["slow"]}
    ladder.stage(dict.fromkeys([IDS, found["best"]], 2), 1.0)
    test = Rows.of(dataset, "test")
    values = {name: test.value(ladder.scores(name, 1.0, "test"), "auc") for name in (IDS, found["best"])}
    return {"gain": float(values[found["best"]].mean() - values[IDS].mean())}


def is_right(one: dict[str, Any]) -> bool:
    """Whether the verdict is what a world of so much content deserves."""
    pays = one["verdict"] == PAYS
    if one["share"] == 0:
        return not pays
    unseen = (one["gain"]["high"] - one["gain"]["low"]) / 2
    true = one.get("long", {}).get("gain", np.inf)
    return pays or true < unseen


def summary(results: list[dict[str, Any]]) -> list[str]:
    null = [one for one in results if one["share"] == 0]
    alarms = sum(one["verdict"] == PAYS for one in null)
    long = [one for one in results if "long" in one]
    within = sum(one["forecast"]["low"] <= one["long"]["gain"] <= one["forecast"]["high"] for one in long)
    return [
        f"{len(results)} worlds: {sum(map(is_right, results))} right",
        f"{len(null)} without content: {alarms} false alarms",
        f"{len(long)} with a log {TIMES:g} times as long: the gain was within the interval of {within}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", default="20000,50000,100000")
    parser.add_argument("--shares", default="0,0.25,0.5,0.75,1")
    parser.add_argument("--worlds", type=int, default=1, help="of each kind")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds")
    parser.add_argument("--no-forecast", action="store_true", help="do not train on longer logs")
    args = parser.parse_args()
    kinds = [(int(rows), float(share)) for rows in args.rows.split(",") for share in args.shares.split(",")]
    worlds = [
        World(rows, share, 100 * k + seed) for seed in range(args.worlds) for k, (rows, share) in enumerate(kinds)
    ]
    results = []
    for world in worlds:
        place = args.out / "results" / f"{world.name}.json"
        if not place.is_file():
            one = tried(world, args.out, args.budget, not args.no_forecast)
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_suffix(".tmp")
            temporary.write_text(json.dumps(one, indent=1))
            os.replace(temporary, place)
        results.append(json.loads(place.read_text()))
        one = results[-1]
        long = f", {TIMES:g} x: {one['long']['gain']:+.4f} of {one['forecast']['value']:+.4f}" if "long" in one else ""
        print(f"{world.name}: {one['headline']} {one['seconds']:.0f} s{long}", flush=True)
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
