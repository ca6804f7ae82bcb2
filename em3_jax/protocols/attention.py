"""How much of its attention a fusion module gives each modality, beside what uniform weights give.

Attention is no proof of importance: a token may be looked at and not used. It stands beside what
permuting shows.

Letters: S items, H heads, M positions that ask, N tokens that are read, of all modalities, Q
queries.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.config.schema import Ranking
from em3_jax.core.types import State
from em3_jax.data.catalogue import CataloguePass
from em3_jax.models.attention import WEIGHTS
from em3_jax.models.fusion import FusionSettings
from em3_jax.protocols import page
from em3_jax.tasks import Inputs, Params
from em3_jax.tasks.ranking.task import RankingTask
from em3_jax.training import step
from em3_jax.training.experiment import Experiment

QUERIES = "learnt queries"
Shares = dict[str, dict[str, dict[str, jax.Array]]]
"""Layer -> "layers" and "equal" -> modality -> [S] share of an item's attention."""


def mass(parts: Experiment, state: State, rows: np.ndarray) -> dict[str, Any] | None:
    """The mean attention to each modality's tokens, over the candidates of some rows.

    Args:
      parts: of a run on one device whose features come with the batches.
      state: its state.
      rows: [n] interaction rows; an item counts once for each, one without any content not at all.

    Returns:
      {"rows": those that count, "layers": {layer: {modality: share}}, "equal": {layer: {modality:
      share}}}, shares of a layer sum to 1; None where there is one modality, where encoders are in
      the model, and where the fusion module is none that attends to the tokens of all modalities at
      once (fq_former, masked_fq_former and one_flow do).
    """
    task = parts.work.task
    if not isinstance(task, RankingTask) or not task.uses_content or len(parts.work.feature_sets) < 2:
        return None
    assert isinstance(parts.config, Ranking)  # as its task says
    items, count = np.unique(parts.work.dataset.interactions["item"][rows], return_counts=True)
    some = [np.asarray(one.mask[items]).any(axis=1) for one in parts.work.feature_sets]
    kept = np.stack(some).any(axis=0)
    items, count = items[kept], count[kept]
    if not len(items):
        return None
    apply = step.make_apply(task, functools.partial(_of_items, task), parts.program.mesh, parts.work.shards)
    source = CataloguePass(items, parts.config.eval.batch_size, tuple(parts.work.feature_sets))
    found: list[dict[str, Any]] = []
    for k in range(len(source)):
        found.append(jax.device_get(apply(state.params, state.tables, state.memory, {}, source[k])))
    if not found[0]:
        return None
    result: dict[str, Any] = {"rows": int(count.sum()), "layers": {}, "equal": {}}
    for layer in found[0]:
        for kind in ("layers", "equal"):
            names = found[0][layer][kind]
            of_item = {name: np.concatenate([one[layer][kind][name] for one in found])[: len(items)] for name in names}
            result[kind][layer] = {name: float(np.average(of, weights=count)) for name, of in of_item.items()}
    return result


def _of_items(task: RankingTask, params: Params, inputs: Inputs) -> Shares:
    """Layer -> "layers" and "equal" -> modality -> [S] share of an item's attention."""
    content = (inputs.tokens, inputs.tokens_mask)
    variables = {"params": params["model"]}
    _, kept = task.whole.apply(variables, *content, method="embed", mutable=["intermediates"])
    return shares(task, kept.get("intermediates", {}), inputs)


def shares(task: RankingTask, kept: Mapping[str, Any], inputs: Inputs) -> Shares:
    """Layer of the fusion module -> "layers" and "equal" -> modality -> [S] share of an item's attention.

    Args:
      task: whose model it is.
      kept: the weights of the model's attentions by the paths of their modules.
      inputs: of which they are.

    Returns:
      Of "equal" the shares if all tokens were read alike. {} where the fusion module does not attend
      to the tokens of all modalities at once.
    """
    settings, result = getattr(task.model.fusion, "settings", None), {}
    if not isinstance(settings, FusionSettings):
        return {}
    for layer, weights in attentions(kept.get("fusion", {})).items():
        read = _read(weights.shape, inputs.tokens, settings.queries)
        if read is None:
            return {}
        result[layer] = _shares(weights, read, inputs.tokens_mask, settings.queries)
    return result


def attentions(tree: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Layer -> weights [S, H, M, N] of its attention."""
    layers = {name: sub.get("attention", {}) for name, sub in tree.items() if isinstance(sub, Mapping)}
    return {name: sub[WEIGHTS][0] for name, sub in layers.items() if WEIGHTS in sub}


def _read(shape: tuple[int, ...], tokens: Mapping[str, jax.Array], queries: int) -> list[str] | None:
    """[N] the modality, or `QUERIES`, of each token read; None where not all modalities are."""
    everything = [name for name in sorted(tokens) for _ in range(tokens[name].shape[1])]
    if shape[-1] == len(everything):
        return everything
    return [QUERIES] * queries + everything if shape[-1] == queries + len(everything) else None


def _shares(
    weights: jax.Array, read: list[str], masks: Mapping[str, jax.Array], queries: int
) -> dict[str, dict[str, jax.Array]]:
    """{"layers", "equal"}: modality -> [S] share of an item's attention, and of its tokens."""
    valid = jnp.concatenate([masks[name] for name in sorted(masks)], axis=1)
    if QUERIES in read:  # what the queries ask for; the masked FQ-Former reads none of them
        of_item = weights.astype(jnp.float32)[:, :, :queries].mean(axis=(1, 2))  # [S, N]
        readable = (of_item[:, :queries] > 0).any()
        valid = jnp.concatenate([jnp.broadcast_to(readable, (len(valid), queries)), valid], axis=1)
    else:  # what the tokens themselves do, those that there are
        asks = valid[:, None, :, None] / jnp.maximum(valid.sum(axis=1), 1)[:, None, None, None]
        of_item = (weights.astype(jnp.float32) * asks).sum(axis=2).mean(axis=1)
    equal = valid / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
    names = list(dict.fromkeys(read))
    places = {name: np.flatnonzero(np.array(read) == name) for name in names}
    return {
        "layers": {name: of_item[:, place].sum(axis=1) for name, place in places.items()},
        "equal": {name: equal[:, place].sum(axis=1) for name, place in places.items()},
    }


def table(found: dict[str, Any]) -> page.Table:
    """A line a layer and modality."""
    header = ["layer", "attention to", "share", "were all tokens read alike"]
    cells = [
        [layer if not k else "", name, f"{share:.1%}", f"{found['equal'][layer][name]:.1%}"]
        for layer, shares in found["layers"].items()
        for k, (name, share) in enumerate(shares.items())
    ]
    title = f"Attention of the fusion module, mean over the candidates of {found['rows']:,} rows"
    return page.Table(title, header, cells)
