"""Every setting of a run, once: a frozen dataclass a section, a line a setting.

The line has what the setting may be, as a `kinds.Kind` in its type, its default, and a comment
that `em3 train --help` and docs/settings.md repeat, at its end or above it. Recipes start from
these defaults (`parse.editable`), and `parse.parse` makes of a recipe, or of what a run has saved,
one of the configs below, which is all that the program reads.
"""

from dataclasses import dataclass
from typing import Annotated

from em3_jax.config.kinds import Choice, Whole
from em3_jax.config.schema.course import Eval, Mesh, Optim, Pretraining, Stream, Tables, Train
from em3_jax.config.schema.lemur import LemurSettings
from em3_jax.config.schema.ranking import Data, RankingSettings
from em3_jax.config.schema.retrieval import EvalRetrieval, Pairs, RetrievalSettings

TASKS = ("ranking", "lemur", "pretraining", "retrieval")
Seed = Annotated[int, Whole(0, 2**32 - 1)]
Task = Annotated[str, Choice(TASKS)]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A run of task ranking or pretraining."""

    seed: Seed = 0  # of all that is drawn
    task: Task = "ranking"  # or pretraining; lemur and retrieval have recipes of their own
    data: Data = Data()
    model: RankingSettings = RankingSettings()
    tables: Tables = Tables()
    optim: Optim = Optim()
    train: Train = Train()
    eval: Eval = Eval()
    mesh: Mesh = Mesh(by_rows=("tables/.*",))
    pretraining: Pretraining = Pretraining()
    stream: Stream | None = None


@dataclass(frozen=True, kw_only=True)
class Lemur:
    """A run of task lemur."""

    seed: Seed = 0  # of all that is drawn
    task: Task = "lemur"  # what is optimized
    data: Data = Data()
    model: LemurSettings = LemurSettings()
    tables: Tables = Tables()
    optim: Optim = Optim()
    train: Train = Train()
    eval: Eval = Eval()
    mesh: Mesh = Mesh(by_rows=("tables/.*", "memory/.*"))
    pretraining: Pretraining = Pretraining()
    stream: Stream | None = None


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """A run of task retrieval."""

    seed: Seed = 0  # of all that is drawn
    task: Task = "retrieval"  # what is optimized
    data: Pairs = Pairs()
    model: RetrievalSettings = RetrievalSettings()
    optim: Optim = Optim(clip_norm=0.0)
    train: Train = Train(epochs=1000.0, log_every=1000, eval_every=0, patience=21)
    eval: EvalRetrieval = EvalRetrieval()
    mesh: Mesh = Mesh()


OnClicks = Ranking | Lemur
Config = Ranking | Lemur | Retrieval
