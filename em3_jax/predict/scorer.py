"""A run, opened to score rows that are not in its dataset. Letters: n rows, H further labels."""

import functools
from pathlib import Path

import numpy as np

from em3_jax.config.schema import Lemur
from em3_jax.core import amounts
from em3_jax.core.calibration import probabilities
from em3_jax.core.errors import UserError
from em3_jax.core.labels import parted
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import FeatureSet
from em3_jax.data.pipeline import EvaluationSource
from em3_jax.evaluation import calibration
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.predict.rows import Rows, with_unknown
from em3_jax.protocols import runs


class Scorer:
    """A run's logits of rows, computed as `em3 eval` does, so that rows of a split get the same bits.

    Features that lie on the devices hold the dataset's items alone. Rows whose candidate is new are scored by a program
    whose features come with the batches; by a run of task lemur, which reads content and a memory bank of the dataset's
    items, none is.

    Args:
      directory: the run's folder, of task ranking or lemur.
      data_root: the dataset folder, if it was moved since training.
      step: checkpoint to score; None = the best on validation.

    Attributes:
      run, config, dataset, step: of the run.
      what: its further labels.
      calibrations: that it keeps.
      history_length: T.
    """

    def __init__(self, directory: str | Path, data_root: str | Path | None, step: int | None):
        self._args, self._step = runs.scoring(directory, data_root), step
        self.run, self.config = self._args
        self.run.check_data()
        self._opened = runs.Opened(self.run, self.config, self.run.experiment, self.run.state(step))
        work = self._opened.parts.work
        self.dataset, self.what = work.dataset, work.task.labels
        self.step = int(self._opened.state.step)
        self.calibrations = calibration.read(self.run.folder, self.step)
        builder = _builder(self._opened)
        self.history_length = builder.history_length
        self._builder = with_unknown(builder, builder.host_features)

    def __call__(self, rows: Rows) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """([n] f32 logits, {further label: [n] of it}), see `core.labels.parted`.

        Raises:
          UserError: a candidate is new, and the run is of task lemur.
        """
        if rows.has_new_items and isinstance(self.config, Lemur):
            raise UserError(
                f"{self.run.folder}: a run of task lemur scores items of its dataset alone, whose content it encodes; leave rows "
                "of new items out, or let it grow (--config.train.grow=True) with a dataset that has them"
            )
        on_host = rows.has_new_items and len(self._builder.host_features) < len(_sets(self._opened))
        opened, builder = self._on_host if on_host else (self._opened, self._builder)
        builder = rows.read_by(builder)
        program, work = opened.parts.program, opened.parts.work
        assert work.evaluation is not None  # as runs that score clicks have it
        buckets, n = work.evaluation("test").buckets, len(rows.interactions["user"])
        source = EvaluationSource(builder, range(n), self.config.eval.batch_size, buckets, work.shards)
        predict = program.predict_all or program.predict
        logits = ranking_evaluation.predict(source, lambda batch: predict(opened.state, batch), program.place)
        return parted(logits, self.what)

    def probabilities(self, logits: np.ndarray, further: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{"": [n] of a click, further label: [n]} of what a call gives, calibrated; amounts are not among it."""
        scored = {name: one for name, one in further.items() if name not in self.what.amounts}
        found = probabilities(self.calibrations, logits, scored)
        return {name: one for name, one in found.items() if name or not self.what.first}

    def expected(self, logits: np.ndarray, further: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Label -> [n] expected amounts of what a call gives; "" is the first one, where it is an amount."""
        first = {"": amounts.expected(self.what.first, logits)} if self.what.first else {}
        return first | {name: amounts.expected(loss, further[name]) for name, loss in self.what.amounts.items()}

    @functools.cached_property
    def _on_host(self) -> tuple[runs.Opened, BatchBuilder]:
        """The run with features that come with the batches, and what builds these."""
        opened = runs.opened_on_host(*self._args, self._step)
        return opened, with_unknown(_builder(opened), _sets(opened))


def _sets(opened: runs.Opened) -> tuple[FeatureSet, ...]:
    work = opened.parts.work
    return tuple(work.feature_sets) if work.task.uses_content else ()


def _builder(opened: runs.Opened) -> BatchBuilder:
    work = opened.parts.work
    assert work.builder is not None  # as runs that score clicks have it
    builder: BatchBuilder = work.builder(work.dataset)
    return builder
