"""Who races, on what, and by which commands.

A rival is its library's requirements, a script in rivals/ and a name that the script knows. Ours are recipes of configs/,
as they are shipped. Settings of both are listed at the head of benchmarks/SPEEDRUN.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.speedrun import race
from em3_jax.data.format import open_dataset

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TORCH = "torch==2.13.0"
MOVIELENS, PLANTED = "movielens", "planted"
Command = list[object]


@dataclass(frozen=True)
class World:
    """What contenders run in.

    Attributes:
      data: "movielens" or "planted".
      source: the MovieLens folder; unused by planted data.
      out: folder for everything that is written.
      environments: folder of the rivals' environments.
      cores: that each contender may use.
    """

    data: str
    source: Path
    out: Path
    environments: Path
    cores: int

    @property
    def dataset(self) -> Path:
        """Ours, which also is what the labels of validation are read from."""
        return self.out / self.data / "dataset"

    @property
    def rows(self) -> Path:
        """Of the rivals."""
        return self.out / self.data / "rows"

    def labels(self) -> np.ndarray:
        """[rows] u8 of validation, in time order."""
        dataset = open_dataset(self.dataset)
        return np.asarray(dataset.label("click"))[np.asarray(dataset.split_rows("valid"))]


@dataclass(frozen=True)
class Rival:
    """A contender that is not ours, or does not train with JAX.

    Attributes:
      name: of the contender.
      script: in rivals/; "" = none is written yet, so that the table says why.
      model: that the script knows.
      requirements: pinned, of its environment.
      environment: its folder's name; contenders of one library share it.
      data: on which it runs.
      imports_ours: the script reads our dataset with our own pipeline, and is prepared by our own interpreter.
    """

    name: str
    script: str
    model: str
    requirements: tuple[str, ...]
    environment: str
    data: tuple[str, ...] = (MOVIELENS, PLANTED)
    imports_ours: bool = False
    is_ours = False

    @property
    def python_path(self) -> str:
        return str(ROOT) if self.imports_ours else ""

    def _python(self, world: World) -> Path:
        return world.environments / self.environment / "bin" / "python"

    def _work(self, world: World) -> Path:
        work = world.out / world.data / self.environment
        work.mkdir(parents=True, exist_ok=True)
        return work

    def preparations(self, world: World) -> list[Command]:
        """The rows as plain files, where there are raw ones, and the library's own encoding of them."""
        script, from_raw = HERE / "rivals" / self.script, []
        if self.imports_ours:
            return [[sys.executable, script, "prepare", world.dataset, self._work(world)]]
        if world.data == MOVIELENS:
            from_raw = [[self._python(world), HERE / "rows.py", world.source, world.rows]]
        return [*from_raw, [self._python(world), script, "prepare", world.rows, self._work(world)]]

    def run(self, world: World, seed: int, **options) -> race.Run:
        work = self._work(world)
        script = HERE / "rivals" / self.script
        command = [self._python(world), script, "train", work, self.model, seed, world.cores]
        reader = race.Rival(work, world.labels())
        messages = world.out / world.data / f"{self.name}.txt"
        return race.train(
            command, reader, messages, cores=world.cores, python_path=self.python_path, cwd=work, **options
        )


@dataclass(frozen=True)
class Ours:
    """A recipe.

    Attributes:
      name: of the contender.
      recipes: data -> recipe, as --config takes it.
      raw: data -> further commands of `python -m em3_jax`, of which "DATA" is the dataset; more preparation than `prepare`.
      changes: settings of the command line.
    """

    name: str
    recipes: dict[str, str]
    raw: dict[str, tuple[tuple[str, ...], ...]] | None = None
    changes: tuple[str, ...] = ()
    requirements = ()
    environment = "ours"
    is_ours = True
    python_path = str(ROOT)

    @property
    def data(self) -> tuple[str, ...]:
        return tuple(self.recipes)

    def preparations(self, world: World) -> list[Command]:
        """`em3 prepare movielens`; planted data are there."""
        more = [
            [sys.executable, "-m", "em3_jax", *(str(world.dataset) if part == "DATA" else part for part in command)]
            for command in (self.raw or {}).get(world.data, ())
        ]
        return [*([movielens(world)] if world.data == MOVIELENS else []), *more]

    def run(self, world: World, seed: int, **options) -> race.Run:
        workdir = world.out / world.data / "runs" / f"{self.name}-{seed}"
        command = [
            sys.executable, ROOT / "train.py", f"--config={ROOT / self.recipes[world.data]}", f"--config.seed={seed}",
            f"--config.data.root={world.dataset}", f"--workdir={workdir}", *self.changes,
        ]  # fmt: skip
        messages = world.out / world.data / f"{self.name}.txt"
        return race.train(
            command, race.Ours(workdir), messages, cores=world.cores, python_path=self.python_path, **options
        )


def movielens(world: World) -> Command:
    """Makes our dataset of the MovieLens folder."""
    return [
        sys.executable, "-m", "em3_jax", "prepare", "movielens", "--source", world.source, "--out", world.dataset,
        "--overwrite",
    ]  # fmt: skip


FUXICTR = (TORCH, "fuxictr==2.3.10", "polars<2")  # it calls what polars 2 has no more
RECHUB = (TORCH, "torch-rechub==0.9.0")
RECBOLE = (TORCH, "recbole==1.2.1", "numpy<2", "pandas<2.3", "setuptools<81")  # it uses what later ones have no more
KERAS = ("keras-rs==0.4.0", "keras==3.15.1", "jax==0.10.2")
RECML = ("recml==0.1.1",)
# EM3 written in PyTorch, and what our input pipeline imports.
PEER = (
    TORCH,
    "jax==0.10.2",
    "flax==0.12.8",
    "ml_collections==1.1.0",
    "pyarrow==26.0.1",
    "pyyaml==6.0.4",
    "tqdm==4.70.1",
)
_LEMUR_RAW = (
    ("raw", "--data", "DATA", "--text", "title=12,genres=8", "--vocabulary", "2000", "--name", "raw_text"),
    ("raw", "--data", "DATA", "--image-size", "32", "--name", "raw_image"),
)
CONTENDERS: tuple[Rival | Ours, ...] = (
    Ours("em3_jax DIN", {MOVIELENS: "configs/em3_movielens.py:id_only", PLANTED: "configs/em3_synthetic.py:id_only"}),
    Ours("em3_jax EM3", {MOVIELENS: "configs/em3_movielens.py", PLANTED: "configs/em3_synthetic.py"}),
    Ours(
        "em3_jax LEMUR",
        {MOVIELENS: "configs/lemur_movielens.py", PLANTED: "configs/lemur.py"},
        raw={MOVIELENS: _LEMUR_RAW},
    ),
    Rival("FuxiCTR DIN", "fuxictr_run.py", "DIN", FUXICTR, "fuxictr"),
    Rival("FuxiCTR DCNv2", "fuxictr_run.py", "DCNv2", FUXICTR, "fuxictr"),
    Rival("torch-rechub DIN", "rechub_run.py", "DIN", RECHUB, "rechub"),
    Rival("RecBole DIN", "recbole_run.py", "DIN", RECBOLE, "recbole"),
    Rival("keras-rs DLRM", "keras_run.py", "DLRM", KERAS, "keras"),
    Rival("RecML DLRM", "", "DLRM", RECML, "recml"),  # asks for Python 3.12; nothing of it has been seen to run
    Rival("PyTorch EM3 eager", "peer_run.py", "eager", PEER, "peer", (PLANTED,), imports_ours=True),
    Rival("PyTorch EM3 compiled", "peer_run.py", "compiled", PEER, "peer", (PLANTED,), imports_ours=True),
)
