"""What the attention on content learns where clicks depend on the nearest past item, and what true weights would gain.

python -m benchmarks.attention --out runs/attention --scores mean,dot,cosine,true --seeds 3 --test

Makes the planted world (`prepare synthetic --interest nearest`), trains `configs/em3_synthetic.py` once for each score and seed,
and prints validation AUC, entropy, and what the attention sees at first and at the best step: the share of the embeddings
that differs between items, the spread of the scores within a history, and the gradient at the scores. With --test the test
split is opened once, at the end: gain over the mean, as a share of what the true weights gain, paired over the seeds.

`true` is the same model, whose weights of eq. 8 are those of the planted clicks: they are computed from latent vectors that
no other part of the model can read.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import base, em3_synthetic
from em3_jax import cli, metrics, train
from em3_jax.config.registry import score as score_part
from em3_jax.config.schema import Ranking
from em3_jax.core.errors import UserError
from em3_jax.data.features import write_features
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.data.readers.planted_interest import SHARPNESS
from em3_jax.data.readers.planted_world import make_world
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.models.fusion.fq_former import FusionQFormer
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.run import Run

WORLD = {"interactions": 30_000, "users": 900, "items": 1_000, "choices": 20.0, "image_tokens": 2, "text_tokens": 1}
WIDTH = 32  # of content: a run takes half a minute of a core
LATENT, TINY = "latent", 1e-4
TRUE = {"content_score": "benchmarks.attention:TrueScore", "fusion": "benchmarks.attention:WithLatent"}


class WithLatent(nn.Module):
    """The FQ-Former; behind its D numbers the latent vector, too small for anything but `TrueScore` to see."""

    settings: object

    @nn.compact
    def __call__(self, tokens: dict[str, jax.Array], mask: dict[str, jax.Array], *, train: bool) -> jax.Array:
        own = lambda tree: {name: x for name, x in tree.items() if name != LATENT}  # noqa: E731
        content = FusionQFormer(self.settings, name="inner")(own(tokens), own(mask), train=train)
        latent = tokens[LATENT][:, 0, : tokens[LATENT].shape[-1] // 2]
        latent = latent / jnp.linalg.norm(latent, axis=-1, keepdims=True)
        return jnp.concatenate([content, TINY * latent.astype(content.dtype)], axis=-1)


class TrueScore(nn.Module):
    """The planted scores: SHARPNESS <z_A, z_j>."""

    hidden: int = 0
    latent: int = 6

    @nn.compact
    def __call__(self, target: jax.Array, slots: jax.Array) -> jax.Array:
        z, past = target[:, -self.latent :], slots[..., -self.latent :]
        return SHARPNESS / TINY**2 * jnp.einsum("bk,btk->bt", z, past)


def planted_latent(dataset: Dataset) -> np.ndarray:
    """[I, k] f32 the latent vectors of a planted dataset's items."""
    names = ("seed", "users", "items", "latent", "cold_share", "new_users", "interest")
    arguments = {"interest": "taste"} | dataset.meta["arguments"]
    return make_world(*(arguments[name] for name in names)).content


def make_data(root: Path, interest: str = "nearest") -> Dataset:
    """The world, with its latent vectors as a feature set that `true` alone is given; made where it is not there."""
    if not root.exists():
        synthetic(root, **WORLD, interest=interest)
    dataset = open_dataset(root)
    if not (root / "features" / LATENT).exists():
        latent = planted_latent(dataset)
        tokens = np.concatenate([latent, -latent], axis=1)[:, None]  # its mean is zero: standardising keeps directions
        mask = np.ones(tokens.shape[:2], bool)
        write_features(root, LATENT, tokens, mask, {"encoder": "planted"}, dataset.meta["item_hash"])
    return dataset


def make_config(root: Path, score: str, seed: int, epochs: float, rate: float):
    """The shipped config of planted data with a score; content at a share of the learning rate."""
    config = em3_synthetic.get_config()
    config.data.root, config.seed = str(root), seed
    config.train.epochs = epochs
    config.model.backbone_settings.dropout = 0.0  # this and the rates: as of the numbers in NOTES.md
    config.tables.learning_rate, config.optim.learning_rate = 0.02, 1e-3
    config.model.fusion_settings.width = WIDTH
    config.model.fusion_settings.ffn_width = 2 * WIDTH
    config.model.update(TRUE if score == "true" else {"content_score": score})
    if score == "true":
        config.data.features = ("image", "text", LATENT)
    return base.slow_content(config, rate) if rate != 1 else config


def run(config, directory: Path) -> None:
    """Trains to the end, without a word; a finished run stays."""
    result = directory / "result.json"
    if not result.exists():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result.write_text(json.dumps(train.train(config.to_dict(), directory)))


def evaluate(folders: list[Path], split: str) -> list[dict]:
    """Slice -> metric -> value of the best step of each run; they differ by seed alone, so one program scores them all."""
    parts = Run.open(folders[0]).experiment
    reports = []
    for folder in folders:
        checkpoints = Checkpoints(folder)
        reports.append(parts.evaluate(checkpoints.restore(parts.program.shapes)[0], split)[0])
        checkpoints.close()
    return reports


def describe(directory: Path) -> str:
    """Validation AUC and the entropy of the run's attention, at first, least and last."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    logged = lambda name: [line[name] for line in lines if line.get(name) is not None]  # noqa: E731
    entropy, uniform = (logged(f"train/content_attention_entropy{end}") for end in ("", "_uniform"))
    return (
        f"valid AUC {max(logged('valid/auc')):.4f}  entropy {entropy[0]:.2f} -> {entropy[-1]:.2f}, "
        f"uniform {uniform[-1]:.2f}"
    )


def inside(directory: Path) -> list[str]:
    """What the attention sees of one training batch: with fresh parameters and at the best step."""
    run = Run.open(directory)
    parts = run.experiment
    assert isinstance(run.config, Ranking)
    model = run.config.model
    batch, checkpoints = parts.work.source[0], Checkpoints(directory)
    best = checkpoints.restore(parts.program.shapes)[0]
    checkpoints.close()
    module = score_part(model.content_score)(model.content_hidden)
    mask, lines = batch["history_mask"], []
    for when, state in {"at first": parts.program.init(), "best": best}.items():
        content = np.asarray(parts.program.embed(state, parts.program.place(batch)), np.float32)
        valid = content[batch["item_mask"]]
        own = np.square(valid - valid.mean(axis=0)).sum() / np.square(valid).sum()
        params = next(iter(state.params["model"]["content_attention"].values()))
        target, slots = content[batch["item_position"]], content[batch["history_position"]]
        score = np.asarray(module.apply({"params": params}, target, slots))
        spread = np.sqrt(np.mean([row[some].var() for row, some in zip(score, mask, strict=True) if some.any()]))
        lines.append(
            f"  {when:9} root mean square of c {np.sqrt(np.square(valid).mean()):.3f}, {own:4.0%} of it differs between items; "
            f"sd of the scores within a history {spread:.4f}"
        )
    return lines


def report(name: str, found: dict[str, list[float]]) -> list[str]:
    """AUC by score; gain over the mean, as a share of that of the true weights; p of the paired t-test."""
    lines = [f"{name}:"]
    gain = {score: np.subtract(values, found["mean"]) for score, values in found.items()}
    for score, values in found.items():
        line = f"  {score:7} {' '.join(f'{value:.4f}' for value in values)}  mean {np.mean(values):.4f}"
        if score != "mean":
            test = metrics.paired_t_test(values, found["mean"])
            line += f"  gain {np.mean(gain[score]):+.4f} (p {test.p:.2g})"
            line += f"  share {np.mean(gain[score]) / np.mean(gain['true']):.0%}" if "true" in gain else ""
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the data and the runs; what is there stays")
    parser.add_argument("--scores", default="mean,dot,cosine,true", help="of config.model.content_score, or true")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ...")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--rate", type=float, default=1.0, help="learning rate of content, as a share of all else")
    parser.add_argument("--interest", default="nearest", help="of the planted world: nearest or taste")
    parser.add_argument("--test", action="store_true", help="open the test split, once everything is trained")
    args = parser.parse_args()
    out, scores = Path(args.out), args.scores.split(",")
    if "mean" not in scores:
        raise UserError("--scores: has no mean, which the others are compared with; add it")
    data = make_data(out / f"data-{args.interest}", interest=args.interest)
    print(f"Bayes AUC {data.meta['bayes_auc']}")
    folders = {}
    for score in scores:
        for seed in range(args.seeds):
            folder = folders[score, seed] = out / f"{args.interest}-{score}-{args.rate:g}-{args.epochs:g}-{seed}"
            run(make_config(data.root, score, seed, args.epochs, args.rate), folder)
            print(f"{score:7} seed {seed}  {describe(folder)}", flush=True)
        if score not in ("mean", "true"):
            print("\n".join(inside(folders[score, 0])), flush=True)
    for split in ("valid", "test") if args.test else ("valid",):
        reports = {score: evaluate([folders[score, seed] for seed in range(args.seeds)], split) for score in scores}
        for name in ("all", "cold items") if split == "test" else ("all",):
            found = {score: [slices[name]["auc"] for slices in reports[score]] for score in scores}
            print("\n".join(report(f"{split}, {name}", found)))


if __name__ == "__main__":
    cli.run(main)
