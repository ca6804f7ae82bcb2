"""EM3's ranking model and its training step written in PyTorch, as one would write one's own, on batches of distinct items.

What benchmarks/peer_torch.py times a step of, and benchmarks/speedrun trains; `tests/benchmarks/test_peer_torch.py` holds
losses, gradients and updated parameters equal to ours.

Letters: B batch, T history, S items, R distinct table rows, N content tokens, Q queries, H heads, D width, W ID width.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from configs import base
from em3_jax.core.batch import BY_ITEM
from em3_jax.core.fields import Field, Fields, columns
from em3_jax.core.types import Batch

# Settings that the peer has built in; with any other value of them it would be another model.
BUILT_IN = {
    "model": ("content", "content_parts", "content_score", "backbone", "fusion", "fusion_chunk", "loss"),
    "tables": ("optimizer", "l2"),
    "optim": ("warmup_steps", "decay_steps", "multipliers"),
}


def check(config: Mapping[str, Any]) -> None:
    """Refuses a config whose step is not the one written here."""
    ours = base.ranking()
    for section, keys in BUILT_IN.items():
        for key in keys:
            assert config[section][key] == ours[section][key], f"the peer knows config.{section}.{key} only as in base"
    fusion = config["model"]["fusion_settings"]
    assert fusion["layers"] == 1 and fusion["lora"]["rank"] == 0, "the peer has one plain layer in its fusion module"
    assert config["model"]["backbone_settings"]["attention_score"] == "mlp", "the peer's attention on IDs is DIN's"
    assert config["model"]["cic"]["negatives"] > 0, "the peer draws its negatives"


def arranged(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """JAX parameters, or their gradients, by name as the peer lays them out: key and value in one product."""
    out = {name: np.array(leaf) for name, leaf in named.items()}
    layer = "model/fusion/layer_0/attention"
    for part in ("kernel", "bias"):
        pair = [out.pop(f"{layer}/{name}/{part}") for name in ("key", "value")]
        out[f"{layer}/key_value/{part}"] = np.concatenate(pair, axis=-1)
    return out


def tensors(batch: Batch, table_rows: int) -> dict[str, torch.Tensor]:
    """The batch as tensors, indices as i64, without padding: eager code needs no static shapes.

    Args:
      batch: see `core/batch.py`.
      table_rows: V; `row_id` from there on is padding.
    """
    batch = {name: np.array(array) for name, array in batch.items()}
    items = 1 + max(batch["item_position"].max(), batch["history_position"].max())
    for name in BY_ITEM & set(batch):
        batch[name] = batch[name][:items]
    batch["row_id"] = batch["row_id"][batch["row_id"] < table_rows]
    out = {name: torch.from_numpy(array) for name, array in batch.items()}
    return {name: tensor.long() if tensor.dtype == torch.int32 else tensor for name, tensor in out.items()}


def take(rows: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """[*, D] rows[position]; the backward pass takes 2 ms of 51,200 x 64, that of an indexing 7, of F.embedding 4."""
    return rows.index_select(0, position.reshape(-1)).reshape(*position.shape, rows.shape[1])


def field_embeddings(rows: torch.Tensor, position: torch.Tensor, fields: tuple[Field, ...]) -> torch.Tensor:
    """[*, F W] the fields' embeddings side by side; of a multi-valued field the mean of its values.

    Args:
      rows: [R, W].
      position: [*, C] i64.
    """
    values, parts = take(rows, position), []
    for field, column in zip(fields, columns(fields).values(), strict=True):
        value = values[..., column, :]
        if field.length > 1:
            valid = (position[..., column] != 0)[..., None]
            value = (value * valid).sum(dim=-2) / valid.sum(dim=-2).clamp(min=1)
        parts.append(value.flatten(start_dim=position.ndim - 1))
    return torch.cat(parts, dim=-1)


def interest(score: torch.Tensor, slots: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, D] mean of the slots [B, T, D], weighted by the softmax of the score [B, T]; zeros for an empty history."""
    weight = score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(dim=1) * mask
    return torch.bmm(weight[:, None], slots)[:, 0]


class Peer:
    """The EM3 ranking model and its loss.

    Args:
      config: whose model is built; see `check`.
      fields: the dataset's categorical fields.
      params: JAX parameters by name, copied.
      features: {modality: (tokens [I, N, E], mask [I, N])}, standardised and zero where masked.

    Attributes:
      training: whether it drops out.
    """

    def __init__(
        self, config: Mapping[str, Any], fields: Fields, params: Mapping[str, Any], features: Mapping[str, Any]
    ):
        check(config)
        self.fields, self.model, self.training = fields, config["model"], True
        self.params = {name: torch.from_numpy(leaf).requires_grad_() for name, leaf in arranged(params).items()}
        self.features = {
            name: tuple(torch.from_numpy(np.array(array)) for array in pair) for name, pair in sorted(features.items())
        }

    def loss(
        self, rows: torch.Tensor, batch: dict[str, torch.Tensor], draw: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """{"loss": [], and its parts "ranking_loss" and "cic_loss"} (eq. 14).

        Args:
          rows: [R, W] the batch's rows of the ID table.
          batch: see `tensors`.
          draw: (items that count [n] i64) -> positions [1 + negatives] among them, distinct.
        """
        ids = field_embeddings(rows, batch["item_row"], self.fields.item)  # [S, F W]
        content, has_content = self._fusion(batch["item_id"])  # [S, D], [S]
        logit = self._logit(rows, ids, content, batch)
        ranking = F.binary_cross_entropy_with_logits(logit, batch["label"], batch["weight"], reduction="sum")
        ranking = ranking / batch["weight"].sum()
        counts = (batch["item_mask"] & batch["item_is_known"] & has_content).nonzero()[:, 0]
        contrast = self._contrast(take(content, counts), take(ids, counts), draw(counts))
        total = ranking + self.model["cic"]["weight"] * contrast
        return {"loss": total, "ranking_loss": ranking, "cic_loss": contrast}

    def scores(self, rows: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B] the logits of a batch, see `loss`."""
        ids = field_embeddings(rows, batch["item_row"], self.fields.item)
        return self._logit(rows, ids, self._fusion(batch["item_id"])[0], batch)

    def _drop(self, rate: float, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, rate) if rate and self.training else x

    def _dense(self, name: str, x: torch.Tensor) -> torch.Tensor:
        # The kernel lies as [E, D], for which the gradient was faster than for nn.Linear's [D, E]: 52 against 59 ms a step.
        kernel, bias, flat = self.params[f"{name}/kernel"], self.params.get(f"{name}/bias"), x.reshape(-1, x.shape[-1])
        y = flat @ kernel if bias is None else torch.addmm(bias, flat, kernel)
        return y.reshape(*x.shape[:-1], -1)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale, bias = self.params[f"{name}/scale"], self.params[f"{name}/bias"]
        return F.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-6)

    def _fusion(self, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(content embeddings [S, D], has any token [S]) of the items [S]: FQ-Former, query positions alone (eq. 2-6)."""
        settings, name, parts, masks = self.model["fusion_settings"], "model/fusion", [], []
        for modality, (tokens, mask) in self.features.items():
            x = take(tokens.flatten(1), item).reshape(len(item), *tokens.shape[1:]).float()
            parts.append(self._dense(f"{name}/modalities/{modality}_fc", x))
            parts[-1] = parts[-1] + self.params[f"{name}/modalities/{modality}_embedding"]
            masks.append(take(mask, item))
        drop = functools.partial(self._drop, settings["dropout"])
        content, mask = drop(torch.cat(parts, dim=1)), torch.cat(masks, dim=1)  # [S, N, D], [S, N]
        queries, layer = self.params[f"{name}/queries"], f"{name}/layer_0"
        mixed = self._attention(f"{layer}/attention", queries, content, mask)
        x = self._norm(f"{layer}/attention_norm", queries + drop(mixed))  # [S, Q, D]
        y = self._dense(f"{layer}/ffn_out", F.gelu(self._dense(f"{layer}/ffn_in", x), approximate="tanh"))
        x = self._norm(f"{layer}/ffn_norm", x + drop(y))
        return self._dense(f"{name}/join", x.flatten(1)), mask.any(dim=1)

    def _attention(self, name: str, queries: torch.Tensor, content: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[S, Q, D] the queries [Q, D] read themselves and the content [S, N, D] where the mask [S, N] is True."""
        (number, width), items, heads = queries.shape, len(content), self.model["fusion_settings"]["heads"]
        # The queries are the same for all items, and are projected once.
        both = [self._dense(f"{name}/key_value", x) for x in (queries, content)]
        both = torch.cat([both[0].expand(items, -1, -1), both[1]], dim=1)  # [S, Q + N, 2 D]
        key, value = both.reshape(items, -1, 2, heads, width // heads).unbind(dim=2)
        query = self._dense(f"{name}/query", queries).reshape(number, heads, -1)
        readable = torch.cat([torch.ones(items, number, dtype=torch.bool), mask], dim=1)[:, None, None]
        # Products by hand: so short, scaled_dot_product_attention takes a quarter longer.
        score = torch.einsum("qhd,snhd->shqn", query, key) / (width // heads) ** 0.5
        weight = score.masked_fill(~readable, torch.finfo(score.dtype).min).softmax(dim=-1)
        return self._dense(f"{name}/output", torch.einsum("shqn,snhd->sqhd", weight, value).flatten(2))

    def _logit(
        self, rows: torch.Tensor, ids: torch.Tensor, content: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """[B] DIN on IDs, with the content of the candidate and the user's content interest (eq. 7-8)."""
        candidate, history, mask = (batch[name] for name in ("item_position", "history_position", "history_mask"))
        target, slots = take(content, candidate), take(content, history)
        name = "model/content_attention/DotScore_0"
        query = self._dense(f"{name}/key", self._dense(f"{name}/query", target))  # W_k^T W_q c: nothing per slot
        score = (slots * query[:, None]).sum(dim=-1) / target.shape[1] ** 0.5
        user = interest(score, slots, mask)
        of_content = [target, user, target * user]

        items = self._dense("model/backbone/item", ids)  # [S, W]
        target, slots = take(items, candidate), take(items, history)
        for position in batch["history_row"].unbind(dim=-1):
            slots = slots + take(rows, position)
        user = interest(self._mlp_score(target, slots), slots, mask)
        groups = ((self.fields.user, "user_row"), (self.fields.context, "context_row"))
        others = [field_embeddings(rows, batch[key], fields) for fields, key in groups if fields]
        x = torch.cat([take(ids, candidate), user, user * target, *others, *of_content], dim=1)
        settings = self.model["backbone_settings"]
        for k in range(len(settings["hidden"])):
            x = F.relu(self._dense(f"model/backbone/dnn/Dense_{k}", x))
            x = self._drop(settings["dropout"], x)
        return self._dense(f"model/backbone/dnn/Dense_{len(settings['hidden'])}", x)[:, 0]

    def _mlp_score(self, target: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """[B, T] w . relu(W [c, h, c - h, c * h] + b), as a matrix per candidate: affine in h, see `MLPScore`."""
        name = "model/backbone/attention/MLPScore_0"
        kernel, bias, out = (self.params[f"{name}/{part}"] for part in ("kernel", "bias", "out"))
        of_target, of_history, of_difference, of_product = kernel.chunk(4)
        matrix = of_history - of_difference + target[:, :, None] * of_product  # [B, W, K]
        offset = torch.addmm(bias, target, of_target + of_difference)
        return (F.relu(torch.baddbmm(offset[:, None], slots, matrix)) @ out)[..., 0]

    def _contrast(self, content: torch.Tensor, ids: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """[] L_CIC of the n items that count (eq. 10-13), content [n, D] against ids [n, F W].

        Args:
          drawn: [1 + negatives] i64; an item that is among them leaves itself out, any other the last.
        """
        names = [field.name for field in self.fields.item]
        chosen = [names.index(name) for name in self.model["cic"]["id_fields"]]
        ids = ids.reshape(len(ids), len(names), -1)[:, chosen].flatten(1)
        content, ids = (F.normalize(self._dense(f"cic/{name}", x)) for name, x in (("content", content), ("ids", ids)))
        out = drawn == torch.arange(len(ids))[:, None]  # [n, 1 + negatives]
        out[:, -1] |= ~out.any(dim=1)
        positive, losses = (content * ids).sum(dim=1, keepdim=True), 0.0
        for one, other in ((content, ids), (ids, content)):
            negative = (one @ take(other, drawn).T).masked_fill(out, -torch.inf)
            logits = torch.cat([positive, negative], dim=1) / self.model["cic"]["temperature"]
            losses = losses + 0.5 * (logits.logsumexp(dim=1) - logits[:, 0]).mean()
        return losses


class PeerStep:
    """A training step; `__call__(batch)` -> named scalars.

    Args:
      peer: the model.
      table: [V, W] the ID table, copied.
      batch: see `tensors`; of calls that bring none.
      config: of which optim and tables are read.
      draw: see `Peer.loss`; without, negatives are drawn anew in each step.
      compiled: by torch.compile, else eager.
    """

    def __init__(self, peer: Peer, table, batch: dict[str, torch.Tensor] | None, config, draw=None, compiled=False):
        self.peer, self.batch, self.table = peer, batch, torch.from_numpy(np.array(table))
        self.accumulator = torch.zeros(len(self.table))
        self.rate, self.clip_norm = config["tables"]["learning_rate"], config["optim"]["clip_norm"]
        number = config["model"]["cic"]["negatives"]
        self.draw = draw or (lambda counts: torch.randperm(len(counts))[: number + 1])
        matrices, others = ([x for x in peer.params.values() if (x.ndim > 1) == wide] for wide in (True, False))
        groups = [{"params": matrices, "weight_decay": config["optim"]["weight_decay"]}, {"params": others}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config["optim"]["learning_rate"], weight_decay=0.0, eps=1e-8, fused=True
        )
        self.loss = torch.compile(peer.loss) if compiled else peer.loss

    def __call__(self, batch: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        batch = self.batch if batch is None else batch
        rows = self.table.index_select(0, batch["row_id"]).requires_grad_()
        out = self.loss(rows, batch, self.draw)
        self.optimizer.zero_grad()
        out["loss"].backward()
        if self.clip_norm:
            out["gradient_norm"] = torch.nn.utils.clip_grad_norm_(self.peer.params.values(), self.clip_norm)
        self.optimizer.step()
        self._update(batch["row_id"][1:], rows.grad[1:])  # the padding row comes first, and stays
        return {name: value.detach() for name, value in out.items()}

    @torch.no_grad()
    def _update(self, row_id: torch.Tensor, gradient: torch.Tensor) -> None:
        """Row-wise Adagrad on the touched rows."""
        accumulator = self.accumulator[row_id] + gradient.square().mean(dim=1)
        self.accumulator[row_id] = accumulator
        self.table.index_add_(0, row_id, gradient / (accumulator.sqrt() + 1e-8)[:, None], alpha=-self.rate)
