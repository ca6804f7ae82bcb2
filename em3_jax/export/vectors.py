"""Writes the content embeddings that a run has learnt as a feature set: em3 vectors --workdir runs/em3 --name em3

One vector an item, from the run's best checkpoint; of a run with a memory bank, the bank as it is. A ranking model reads them
as frozen features with --config.model.content=pre_extracted --config.data.features=em3.
"""

from pathlib import Path

from em3_jax import cli
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError
from em3_jax.data.features import write_features
from em3_jax.training import embeddings
from em3_jax.training.run import Run


def export_vectors(
    directory: str | Path, name: str, data_root: str | Path | None = None, overwrite: bool = False
) -> Path:
    """Adds the feature set `name` to the dataset of a run, or to another copy of it; returns its folder.

    Args:
      directory: the run's folder.
      name: of the feature set.
      data_root: the dataset folder, if it is not where it was in training.
      overwrite: replace a feature set of that name.
    """
    run = Run.open(directory, data_root)
    parts = run.experiment
    run.check_data()
    if parts.program.embed is None and not parts.program.shapes.memory:
        raise UserError(
            f"{directory}: it has no content embeddings, as no run on IDs alone or on retrieval has; choose another --workdir"
        )
    state = run.state()
    vectors, has_content = embeddings.content_embeddings(parts, state)
    root = parts.work.dataset.root
    manifest = {
        "kind": "run",
        "encoder": f"{run.folder.name}, step {int(state.step):,}",
        "commit": run.record["commit"],
        "inputs": parts.feature_hashes,
    }
    write_features(
        root, name, vectors[:, None], has_content[:, None], manifest, parts.work.dataset.meta["item_hash"], overwrite
    )
    return root / "features" / name


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", type=paths.local, required=True, help="the folder of a training run with content")
    parser.add_argument("--name", required=True, help="of the feature set to write")
    parser.add_argument("--data", type=paths.local, help="the dataset folder, if it was moved since training")
    parser.add_argument("--overwrite", action="store_true", help="replace a feature set of that name")
    args = parser.parse_args()
    folder = export_vectors(args.workdir, args.name, args.data, args.overwrite)
    options = f"--config.data.features={args.name} --config.model.content=pre_extracted"
    terminal.result(f"{folder}: written; use it with {options}", folder=str(folder), options=options)
