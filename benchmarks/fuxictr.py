"""FuxiCTR's own DIN and DCN v2 against the same YAML by way of `em3 convert-config fuxictr`, on the same rows of MovieLens-100K.

    python -m benchmarks.fuxictr --source ../shared/data/ml-100k-posters --out runs/fuxictr [--seeds 3] [--models DIN,DCNv2]

Writes the rows once, as CSV that both read: label rating >= 4, chronological 80,000 / 10,000 / 10,000,
user_id, age, gender, occupation, item_id, year and the last 50 items that the user rated at a strictly
earlier second. FuxiCTR runs in a virtual environment of its own (--venv, else one that is made here and
installs it, pinned); it is no dependency of ours. Seeds take turns. Whole loop: examples/s of training
epochs, reading included and evaluation left out, the median of a run's epochs on either side, for ours
without the first, which compiles. Further arguments change our runs, e.g. --config.tables.l2=0.
"""

import argparse
import csv
import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import yaml

PINNED = ("torch==2.13.0", "fuxictr==2.3.10", "polars<2")  # it calls what polars 2 has no more
HISTORY = 50
COLUMNS = ("user_id", "age", "gender", "occupation", "item_id", "year")
BASE = {
    "model_root": "checkpoints", "num_workers": 1, "verbose": 0, "early_stop_patience": 2, "save_best_only": True,
    "pickle_feature_encoder": False, "eval_steps": None, "group_id": None, "loss": "binary_crossentropy",
    "metrics": ["logloss", "AUC"], "task": "binary_classification", "optimizer": "adam", "learning_rate": 1.0e-3,
    "net_regularizer": 0, "embedding_regularizer": 1.0e-5, "batch_size": 1024, "embedding_dim": 16, "net_dropout": 0,
    "batch_norm": False, "epochs": 20, "shuffle": True, "seed": 0, "monitor": "AUC", "monitor_mode": "max",
    "dataset_id": "ml100k", "din_target_field": "item_id", "din_sequence_field": "history",
}  # fmt: skip
MODELS = {
    "DIN": {
        "model": "DIN", "dnn_hidden_units": [256, 128, 64], "dnn_activations": "relu", "attention_hidden_units": [64],
        "attention_hidden_activations": "Dice", "attention_output_activation": None, "attention_dropout": 0,
        "din_use_softmax": False,
    },
    "DCNv2": {
        "model": "DCNv2", "model_structure": "parallel", "use_low_rank_mixture": False, "num_cross_layers": 3,
        "parallel_dnn_hidden_units": [256, 128, 64], "stacked_dnn_hidden_units": [], "dnn_activations": "relu",
    },
}  # fmt: skip


def write_rows(source: Path, out: Path) -> None:
    """train.csv, valid.csv, test.csv."""

    def read(name: str) -> list[dict[str, str]]:
        with open(source / name, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))

    users, items = ({row[f"{kind}_id"]: row for row in read(f"{kind}s.tsv")} for kind in ("user", "item"))
    ratings, seen = read("ratings.tsv"), {}
    ends = {"train": 80_000, "valid": 90_000, "test": len(ratings)}
    start = 0
    for part, end in ends.items():
        with open(out / f"{part}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*COLUMNS, "history", "click"])
            for row in ratings[start:end]:
                past, time = seen.setdefault(row["user_id"], []), int(row["timestamp"])
                history = [item for item, earlier in past if earlier < time][-HISTORY:]
                known = users[row["user_id"]] | items[row["item_id"]] | row
                values = [known[name] or "none" for name in COLUMNS]
                writer.writerow([*values, "^".join(history), int(float(row["rating"]) >= 4)])
                past.append((row["item_id"], time))
        start = end


def write_configs(out: Path) -> None:
    """The two YAML files."""
    plain = {"name": list(COLUMNS), "active": True, "dtype": "str", "type": "categorical"}
    history = {
        "name": "history",
        "active": True,
        "dtype": "str",
        "type": "sequence",
        "splitter": "^",
        "max_len": HISTORY,
    }
    history |= {"padding": "pre", "share_embedding": "item_id"}
    data = {"data_root": str(out / "encoded"), "data_format": "csv", "min_categr_count": 1}
    data |= {f"{part}_data": str(out / f"{part}.csv") for part in ("train", "valid", "test")}
    data |= {"feature_cols": [plain, history], "label_col": {"name": "click", "dtype": "float"}}
    (out / "dataset_config.yaml").write_text(yaml.safe_dump({"ml100k": data}))
    base = BASE | {"model_root": str(out / "checkpoints")}
    (out / "model_config.yaml").write_text(yaml.safe_dump({"Base": base} | MODELS))


def environment(folder: Path) -> Path:
    """The Python of a virtual environment that has FuxiCTR."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINNED], check=True)
    return python


def theirs(python: Path, out: Path, model: str, seed: int, threads: int) -> dict:
    """A run of FuxiCTR."""
    for old in (out / "encoded").rglob("*.npz"):
        old.unlink()
    script = Path(__file__).with_name("fuxictr_run.py")
    done = subprocess.run(
        [python, "-P", script, out, model, str(seed), str(threads)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def em3(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "em3_jax", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def ours(out: Path, model: str, seed: int, changes: list[str]) -> dict:
    """The run of the converted config."""
    moved, run = out / f"moved_{model}", out / f"run_{model}_{seed}"
    if not moved.exists():
        em3("convert-config", "fuxictr", out / "model_config.yaml", out / "dataset_config.yaml", "--experiment", model,
            "--out", moved)  # fmt: skip
    if not (out / f"data_{model}").exists():
        em3("prepare", "table", "--mapping", moved / "mapping.toml", "--out", out / f"data_{model}")
    em3("train", f"--config={moved / 'recipe.py'}", f"--config.data.root={out / f'data_{model}'}", f"--config.seed={seed}",
        f"--workdir={run}", *changes)  # fmt: skip
    em3("eval", f"--workdir={run}", "--split=test")
    report = json.loads((run / "eval_test.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["time/examples_per_second"] for line in lines if "time/examples_per_second" in line]
    valid = [line["valid/auc"] for line in lines if "valid/auc" in line]
    return {
        "auc": report["slices"]["all"]["auc"],
        "valid_auc": max(valid),
        "epochs": len(valid),
        "examples_per_second": float(np.median(speeds[1:])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--models", default="DIN,DCNv2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    args, changes = parser.parse_known_args()
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    write_rows(args.source, out)
    write_configs(out)
    python = environment((args.venv or out / "venv").absolute())
    for model in args.models.split(","):
        runs: dict[str, list[dict]] = {"FuxiCTR": [], "em3": []}
        for seed in range(args.seeds):
            runs["FuxiCTR"].append(theirs(python, out, model, seed, args.threads))
            runs["em3"].append(ours(out, model, seed, changes))
            print(model, seed, json.dumps({name: found[-1] for name, found in runs.items()}), flush=True)
        auc = {name: np.array([one["auc"] for one in found]) for name, found in runs.items()}
        speed = {name: np.median([one["examples_per_second"] for one in found]) for name, found in runs.items()}
        shown = ", ".join(
            f"{name} {of.mean():.4f} ± {of.std(ddof=min(1, len(of) - 1)):.4f}" for name, of in auc.items()
        )
        print(f"{model}: test AUC {shown}, difference {auc['em3'].mean() - auc['FuxiCTR'].mean():+.4f}; "
              f"{speed['em3']:,.0f} against {speed['FuxiCTR']:,.0f} examples/s: {speed['em3'] / speed['FuxiCTR']:.1f} x",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
