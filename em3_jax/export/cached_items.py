"""What a publisher has of each item for services to look up, and the rules by which it is made anew.

Letters: I items, n some of them, W width.
"""

import numpy as np

from em3_jax.config.schema.course import Stream
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.data.append import Appended
from em3_jax.data.catalogue import CataloguePass
from em3_jax.export.items import digests, make_lookup, nothing_known
from em3_jax.export.model import original_ids
from em3_jax.serving.id_index import IdIndex
from em3_jax.serving.vectors import PREFIX, SCALE, Vectors, stored
from em3_jax.serving.version import Version
from em3_jax.training import embeddings
from em3_jax.training.experiment import Experiment

BATCH = 512
"""Items encoded at once: a few at each version, as a rule."""
BLOCK = 4096  # items whose content is read at once
NEVER = -1


class CachedItems:
    """The vectors of all items, and of one of which nothing is known.

    Args:
      parts: of the run.
      rules: config.stream, how old they may become.
      before: the version that the run has published before, from which they are taken over.
    """

    def __init__(self, parts: Experiment, rules: Stream, before: Version | None):
        self._parts, self._rules, self._lookup = parts, rules, make_lookup(parts)
        self._items, self._sets = parts.work.dataset.num_items, parts.work.content_sets
        self._nothing = nothing_known(parts, BATCH)
        self._has_content = np.zeros(self._items + 1, bool)
        self._digest = np.zeros((self._items, 2), np.uint64)
        self._step = np.full(self._items, NEVER, np.int32)
        self._vectors: dict[str, Vectors] = {}
        self._before, self._named = before, 0  # items that rows have named, whose content is there
        self._grows = isinstance(parts.work.dataset, Appended)
        if not self._grows:
            self._name(self._items)

    def _name(self, items: int) -> None:
        """Takes up the content of the items before number `items`."""
        for start in range(self._named, items, BLOCK) if self._sets else ():
            some = np.arange(start, min(start + BLOCK, items))
            self._has_content[some] = embeddings.has_content(self._parts, some)
            self._digest[some] = digests(self._sets, some)
        self._named = items

    @property
    def widths(self) -> dict[str, int]:
        """Name -> W of what is looked up; known once there is a state."""
        return {name: one.width for name, one in self._vectors.items()}

    def due(self, step: int, shown: np.ndarray, written: np.ndarray | None) -> np.ndarray:
        """[n] i64 the items whose vectors are made anew in the version of a step.

        Args:
          step: of the version.
          shown: [I] how often training has shown each item so far.
          written: [I] i32 the step of the last write to each item's row of a memory bank; None without one.
        """
        rules, age = self._rules, step - self._step
        is_due = self._step == NEVER
        number = max(int(rules.hot_share * np.count_nonzero(shown)), 1)
        threshold = np.partition(shown, -number)[-number] if number <= len(shown) else 0
        is_hot = shown >= max(threshold, 1)
        is_due |= is_hot & (age >= rules.refresh_hot)
        if rules.refresh_cold:
            is_due |= age >= rules.refresh_cold
        if written is not None:
            is_due |= written >= self._step  # a step's writes bear the number of the steps before it
        return np.flatnonzero(is_due[: self._named])

    def after(self, state: State, shown: np.ndarray, items: int) -> dict[str, np.ndarray]:
        """The arrays of a version, with what is due by the rules made anew; see `due`.

        Args:
          items: how many there are; the places after them are for items to come.

        Raises:
          UserError: a vector is not finite in the store's dtype.
        """
        step = int(state.step)
        self._name(items)
        of_nothing = {name: np.asarray(one)[0] for name, one in self._lookup(state, self._nothing).items()}
        if not self._vectors and of_nothing:
            self._take_up({name: len(one) for name, one in of_nothing.items()})
        if self._vectors and self._sets:
            written = np.asarray(state.memory["written"])[: self._items] if state.memory else None
            self._encode(state, self.due(step, np.asarray(shown)[: self._items], written))
        for name, one in of_nothing.items():
            self._vectors[name].write(self._items, one)
        own = {"has_content": self._has_content, "content_digest": self._digest, "content_step": self._step}
        arrays = {name: array.copy() for name, array in own.items()}  # the version before is compared with the next
        for name, one in self._vectors.items():
            arrays[f"{PREFIX}{name}"] = one.values.copy()
            if one.scale is not None:
                arrays[f"{SCALE}{name}"] = one.scale.copy()
        return arrays

    def _encode(self, state: State, todo: np.ndarray) -> None:
        source = CataloguePass(todo, BATCH, () if self._parts.work.constants else tuple(self._sets))
        for k in range(len(source)):
            members = todo[k * BATCH : (k + 1) * BATCH]
            for name, one in self._lookup(state, source[k]).items():
                self._vectors[name].write(members, np.asarray(one)[: len(members)])
                if not np.isfinite(self._vectors[name].rows(members)).all():
                    raise UserError(
                        f"config.stream.publish: some vectors '{name}' are not finite in {self._rules.publish_dtype}; choose "
                        "--config.stream.publish_dtype=float32, or look at the run"
                    )
        self._step[todo] = int(state.step)

    def _take_up(self, widths: dict[str, int]) -> None:
        """Room for all vectors, with those of the version before whose items' content is as it was, by original id."""
        dtype = np.dtype(self._rules.publish_dtype)
        for name, width in widths.items():
            scale = np.zeros(self._items + 1, np.float32) if dtype == np.int8 else None
            self._vectors[name] = Vectors(np.zeros((self._items + 1, width), dtype), scale)
        before = self._before
        if (
            before is None
            or before.manifest["dtype"] != self._rules.publish_dtype
            or "content_step" not in before.arrays
        ):
            return
        there = stored(before.starting_with(PREFIX), before.starting_with(SCALE))
        if {name: one.width for name, one in there.items()} != widths:
            return
        if self._grows:  # they keep their numbers
            row = np.arange(self._items)
            row[len(before["item_words"]) :] = -1
        else:
            is_text = before.manifest["serving"]["item_ids"] == "text"
            index = IdIndex(before["item_words"], before["item_slots"], is_text)
            row = index.find(original_ids(self._parts.work.dataset.item_table))
        same = row >= 0
        same[same] = (before["content_digest"][row[same]] == self._digest[same]).all(axis=1)
        kept = np.flatnonzero(same)
        self._step[kept] = before["content_step"][row[kept]]
        for name, one in self._vectors.items():
            one.copy_rows(kept, there[name], row[kept])
