"""How much of what content is worth for cold items a few bytes of codes keep, on planted data.

python -m benchmarks.codes --out runs/codes --seeds 3 --test

Makes planted worlds (`prepare synthetic`, one a seed, some of whose items appear in validation for the first time), trains
`configs/em3_synthetic.py` without CIC once for each way to read content, and prints AUC on validation; with --test also
on the test split, which is opened once, at the end: cold items, all rows, and the share of the gain over IDs that the full
vector has. All ways have the same epochs, history and seeds; all codes take 6 bytes an item.

    ids            no content
    full           the content vectors as they are (content pre_extracted)
    <L>x<K>        RQ-KMeans, L codes of K, as item fields (--splits chooses among them, by validation)
    rq_vae         RQ-VAE, split as the best of those
    click-<L>x<K>  a fusion module with a quantiser that trains with the click (--click-splits)
    click_fields   the codes of the best of those runs, as item fields of another run
    end_to_end     the same fusion module without quantiser
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

import numpy as np

from configs import base, em3_synthetic
from em3_jax import cli, train
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.export import codes
from em3_jax.training.run import Run

WORLD = {"interactions": 100_000, "users": 2_000, "items": 4_000, "arrivals": 0.3}
SPLITS = ("6x256", "8x64", "12x16", "16x8", "24x4")  # of 48 bits
SETS = ("image", "text")
FUSION = "mean"  # with the FQ-Former, codes that the click trains are worse on validation (seed 0: 0.7431, 0.7665)
CLICK, CLICK_SPLITS = "click-", ("24x4",)
OTHERS = ("rq_vae", "click_fields", "end_to_end")


def settings(root: Path, seed: int, content: str, code_set: str = "", quantiser: tuple[int, int] = (0, 0)):
    """The config of a run; its fusion module is `FUSION`, where content has one."""
    config = em3_synthetic.get_config()
    config = base.id_only(config) if content == "none" else config
    config.data.root, config.seed = str(root), seed
    config.data.history_length, config.data.batch_size = 20, 512
    config.data.codes = (code_set,) if code_set else ()
    config.model.content, config.model.cic.weight = content, 0.0
    config.model.fusion = FUSION
    if quantiser[0]:
        config.model.quantiser.levels, config.model.quantiser.size = quantiser
    config.train.epochs, config.train.eval_every, config.train.patience = 6.0, 156, 4
    return config


class Bench:
    """Runs of one seed, each made where it is not there yet.

    Args:
      out: folder of worlds, runs and results.
      seed: of world, codes and runs.
    """

    def __init__(self, out: Path, seed: int):
        self.out, self.seed, self.root = out, seed, out / f"world-{seed}"
        if not self.root.exists():
            with contextlib.redirect_stdout(io.StringIO()):
                synthetic(self.root, seed=seed, **WORLD)

    def coded(self, name: str, make) -> str:
        """The code set `name`, made by `make` where it is not there; its report is printed."""
        folder = self.root / "codes" / name
        if not folder.exists():
            print(codes.report(make(name)), flush=True)
        return name

    def split(self, way: str) -> tuple[int, int]:
        """(L, K) of "12x16"."""
        levels, size = way.split("x")
        return int(levels), int(size)

    def run(self, way: str, best: str = "") -> Path:
        """The folder of the run of a way, trained where it is not there yet.

        Args:
          best: the split, or the run, that a way without one of its own takes.
        """
        folder = self.out / f"{way}-{self.seed}"
        if not (folder / "done").exists():
            with contextlib.redirect_stdout(io.StringIO()):
                train.train(self.config(way, best), folder)
            (folder / "done").touch()
        return folder

    def config(self, way: str, best: str):
        """The config of the run of a way, whose codes are made."""
        if way in ("ids", "full", "end_to_end"):
            content = {"ids": "none", "full": "pre_extracted", "end_to_end": "end_to_end"}[way]
            return settings(self.root, self.seed, content)
        if way.startswith(CLICK):
            return settings(self.root, self.seed, "end_to_end", quantiser=self.split(way.removeprefix(CLICK)))
        if way == "click_fields":
            name = self.coded("trained", lambda name: codes.of_run(self.run(best), name))
            return settings(self.root, self.seed, "none", name)
        levels, size = self.split(best if way == "rq_vae" else way)
        kind = "rq_vae" if way == "rq_vae" else "rq_kmeans"
        options = {"kind": kind, "levels": levels, "size": size, "seed": self.seed}
        name = self.coded(f"{kind}{levels}x{size}", lambda name: codes.make(self.root, name, SETS, **options))
        return settings(self.root, self.seed, "none", name)

    def auc(self, way: str, split: str, best: str = "") -> dict[str, float]:
        """{"all", "cold items", "warm items": AUC} of the best step of a way's run."""
        run = Run.open(self.run(way, best))
        slices = run.experiment.evaluate(run.state(), split, False).slices
        return {name: slices[name]["auc"] for name in ("all", "cold items", "warm items")}


def table(found: dict[str, list[dict[str, float]]], name: str, to: str) -> list[str]:
    """Lines of a slice: mean AUC of each way, sd, the gain over IDs as a share of that of `full`, and minus `to`, paired."""
    of = {way: np.array([one[name] for one in runs]) for way, runs in found.items()}
    lines = []
    for way, auc in of.items():
        gain, full = auc - of["ids"], of["full"] - of["ids"]
        share = f"{gain.mean() / full.mean():.1%}" if full.mean() > 0 else "-"
        beyond = auc - of[to]
        spread = auc.std(ddof=1) if len(auc) > 1 else float("nan")
        lines.append(f"  {way:<14}{auc.mean():.4f} +- {spread:.4f}   {share:>7}   {np.round(beyond, 4).tolist()}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for worlds, runs and results.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=cli.as_list, default=SPLITS, help="ways to spend 6 bytes, as 12x16")
    parser.add_argument(
        "--click-splits", type=cli.as_list, default=CLICK_SPLITS, help="the same, of codes that the click trains"
    )
    parser.add_argument("--test", action="store_true", help="also open the test split")
    args = parser.parse_args()
    benches = [Bench(args.out, seed) for seed in range(args.seeds)]
    clicks = [f"{CLICK}{split}" for split in args.click_splits]
    valid = {way: [bench.auc(way, "valid") for bench in benches] for way in ("ids", "full", *args.splits, *clicks)}
    best, click = (
        max(some, key=lambda way: np.mean([one["all"] for one in valid[way]])) for some in (args.splits, clicks)
    )
    takes = {"rq_vae": best, "click_fields": click}
    valid |= {way: [bench.auc(way, "valid", takes.get(way, "")) for bench in benches] for way in OTHERS}
    found = {"valid": valid}
    if args.test:
        found["test"] = {way: [bench.auc(way, "test", takes.get(way, "")) for bench in benches] for way in valid}
    for split, results in found.items():
        for name in ("cold items", "all"):
            print(f"{split}, {name}: AUC, share of the gain of full over ids, difference from {best} by seed")
            print("\n".join(table(results, name, best)), flush=True)
    (args.out / "results.json").write_text(json.dumps({"best": best} | found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
