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
class _Run:
    """What a run of any task has."""

    seed: Seed = 0  # seed of all that is drawn
    task: Task = "ranking"  # what is optimized; lemur and retrieval have recipes of their own
    optim: Optim = Optim()
    train: Train = Train()
    mesh: Mesh = Mesh()


@dataclass(frozen=True, kw_only=True)
class _OnClicks(_Run):
    """What a run that ranks clicks has."""

    data: Data = Data()
    tables: Tables = Tables()
    eval: Eval = Eval()
    pretraining: Pretraining = Pretraining()
    stream: Stream | None = None


@dataclass(frozen=True, kw_only=True)
class Ranking(_OnClicks):
    """A run of task ranking or pretraining."""

    model: RankingSettings = RankingSettings()
    mesh: Mesh = Mesh(by_rows=("tables/.*",))


@dataclass(frozen=True, kw_only=True)
class Lemur(_OnClicks):
    """A run of task lemur."""

    task: Task = "lemur"  # what is optimized
    model: LemurSettings = LemurSettings()
    mesh: Mesh = Mesh(by_rows=("tables/.*", "memory/.*"))


@dataclass(frozen=True, kw_only=True)
class Retrieval(_Run):
    """A run of task retrieval."""

    task: Task = "retrieval"  # what is optimized
    data: Pairs = Pairs()
    model: RetrievalSettings = RetrievalSettings()
    optim: Optim = Optim(clip_norm=0.0)
    train: Train = Train(epochs=1000.0, log_every=1000, eval_every=0, patience=21)
    eval: EvalRetrieval = EvalRetrieval()


OnClicks = Ranking | Lemur
Config = Ranking | Lemur | Retrieval
