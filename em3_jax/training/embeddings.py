"""The embeddings of all items that a run has learnt: of their content, and of their ids."""

from collections.abc import Callable

import jax
import numpy as np

from em3_jax.config.schema import Retrieval
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.core.progress import Progress
from em3_jax.core.types import Batch, State
from em3_jax.data.catalogue import CataloguePass
from em3_jax.tables import memory_bank, packing
from em3_jax.training import step
from em3_jax.training.experiment import Experiment


def content_embeddings(parts: Experiment, state: State) -> tuple[np.ndarray, np.ndarray]:
    """([I, D] f32 content embeddings, [I] bool whether the item has content); of a run with a memory bank, the bank as it is."""
    items = parts.work.dataset.num_items
    if state.memory:
        return np.asarray(state.memory["vector"])[:items], np.asarray(state.memory["written"])[
            :items
        ] > memory_bank.NEVER
    embed = parts.program.embed
    assert embed is not None  # whoever calls this has asked whether there are any
    return _of_all_items(parts, lambda batch: embed(state, batch)), has_content(parts)


def content_codes(parts: Experiment, state: State) -> np.ndarray:
    """[I, L] i32 the codes that a run's quantiser gives all items."""
    work, program = parts.work, parts.program
    codes = step.make_apply(work.task, work.task.codes, program.mesh, work.shards)
    of_state = state.params, state.tables, state.memory, work.constants
    return _of_all_items(parts, lambda batch: codes(*of_state, program.place(batch)))


def _of_all_items(parts: Experiment, function: Callable[[Batch], jax.Array]) -> np.ndarray:
    """[I, ...] what `function` gives of batches of all items, [S, ...] each."""
    assert not isinstance(parts.config, Retrieval)  # which embeds nothing
    items = parts.work.dataset.num_items
    host_features = () if parts.work.constants else tuple(parts.work.content_sets)
    source = CataloguePass(np.arange(items), parts.config.eval.batch_size, host_features)
    progress, found = Progress(len(source), unit="batch"), []
    for k in range(len(source)):
        found.append(np.asarray(function(source[k])))
        progress.advance()
    progress.close()
    return np.concatenate(found)[:items]


def has_content(parts: Experiment, items: np.ndarray | slice = slice(None)) -> np.ndarray:
    """[n] bool: whether items [n], default all, have a token of any feature set in use."""
    have = np.stack([features.mask[items].any(axis=1) for features in parts.work.feature_sets])
    return np.asarray(have.any(axis=0))


def id_embeddings(parts: Experiment, state: State) -> np.ndarray:
    """[I, W] f32: the row of each item's own id in the embedding table; as it began, where training never showed the id."""
    fields, items = parts.work.dataset.fields, parts.work.dataset.num_items
    first = fields.offsets()["item"][fields.item[0].name] + FIRST_KNOWN - 1
    embedding = packing.plain(state.tables["embedding"])
    return np.asarray(jax.lax.slice_in_dim(embedding, first, first + items))
