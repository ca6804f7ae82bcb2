"""The same training step in PyTorch eager: python -m benchmarks.peer_torch [--repeats 10]

EM3's ranking step at B 1024, T 50, D 64, N 6 content tokens 768 wide, on planted data: FQ-Former, target attention on content
and on ids, DNN, click loss and CIC, row-wise Adagrad on the touched rows, AdamW on the rest. The peer is written as one would
write one's own: each distinct item encoded once, only the query positions computed after the attention, one gradient per touched
row. Parameters, batch and settings are those of the JAX run; tests/test_peer_torch.py holds the two equal over several steps.

Letters: B batch, T history, S distinct items, R distinct rows, N tokens, Q queries, D width, W ID width.
"""

import sys

# Each variant runs in a process of its own, as in use: in one, the threads and the blocks of one library slow the other.
if __name__ in ("__main__", "__mp_main__") and "--default-malloc" not in sys.argv:
    from em3_jax import allocator

    allocator.keep_large_blocks()  # first: what is imported next starts threads

import argparse
import functools
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.ranking import Trainer, planted_config
from benchmarks.timing import milliseconds
from em3_jax import trees
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.fields import Fields, columns


def tensors(tree) -> dict:
    """A dict of arrays, nested or not, as tensors of their own memory; integers as i64, which torch indexes with."""
    if isinstance(tree, dict):
        return {name: tensors(value) for name, value in tree.items()}
    tensor = torch.from_numpy(np.array(tree))
    return tensor.long() if tensor.dtype == torch.int32 else tensor


class PeerStep:
    """A training step on one batch after the other; `__call__(batch)` -> its scalars.

    Args:
      config: of the run, with the default model: FQ-Former of one layer, DIN, dot score on content.
      fields: the dataset's categorical fields.
      params: {name: array} dense parameters of a JAX state.
      table: [V, W] the ID table.
      features: {modality: (tokens [I, N, E], mask [I, N])}, standardised.
      draw: (mask [S], step) -> (drawn [H + 1], used [S, H + 1]), see `losses.in_batch_negatives`; torch's own by default.
    """

    def __init__(self, config, fields: Fields, params: dict, table, features: dict, draw: Callable | None = None):
        self.config, self.fields, self.step = config, fields, 0
        self.params = {name: torch.nn.Parameter(tensors(leaf)) for name, leaf in params.items()}
        self.table, self.features = tensors(table), {name: tuple(map(tensors, pair)) for name, pair in features.items()}
        self.accumulator = torch.zeros(len(self.table))
        self.draw = draw or self._draw
        optim = config["optim"]
        self.optimizer = torch.optim.AdamW(
            self.params.values(), lr=optim["learning_rate"], weight_decay=optim["weight_decay"], eps=1e-8, fused=True
        )

    def __call__(self, batch: dict) -> dict[str, float]:
        row_id = batch["row_id"]
        known = row_id[: int((row_id < len(self.table)).sum())]  # what lies beyond the table reads as zeros
        rows = self.table[known].requires_grad_()
        padded = F.pad(rows, (0, 0, 0, len(row_id) - len(known)))
        logit, content, item_fields = self._forward(padded, batch)
        click = F.binary_cross_entropy_with_logits(logit, batch["label"], batch["weight"], reduction="sum")
        click = click / batch["weight"].sum()
        contrast = self._contrast(content, item_fields, batch)
        loss = click + self.config["model"]["cic"]["weight"] * contrast
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.params.values(), self.config["optim"]["clip_norm"])
        self.optimizer.step()
        self._update(known, rows.grad)
        self.step += 1
        return {"loss": loss, "ranking_loss": click, "cic_loss": contrast, "gradient_norm": norm}

    @torch.no_grad()
    def _update(self, row_id: torch.Tensor, gradient: torch.Tensor) -> None:
        """Row-wise Adagrad; the padding row comes first and stays."""
        row_id, gradient = row_id[1:], gradient[1:]
        accumulator = self.accumulator[row_id] + gradient.square().mean(dim=1)
        self.accumulator[row_id] = accumulator
        change = gradient / (accumulator.sqrt() + 1e-8)[:, None]
        self.table.index_add_(0, row_id, change, alpha=-self.config["tables"]["learning_rate"])

    def _dense(self, name: str, x: torch.Tensor) -> torch.Tensor:
        kernel, bias = self.params[f"{name}/kernel"], self.params.get(f"{name}/bias")
        flat = x.reshape(-1, x.shape[-1])
        y = flat @ kernel if bias is None else torch.addmm(bias, flat, kernel)
        return y.reshape(*x.shape[:-1], -1)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale, bias = self.params[f"{name}/scale"], self.params[f"{name}/bias"]
        return F.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-6)

    def _fusion(self, item: torch.Tensor) -> torch.Tensor:
        """[S, D] content embeddings of the items [S]."""
        name, heads = "model/fusion", self.config["model"]["fusion_settings"]["heads"]
        tokens, masks = [], []
        for modality in sorted(self.features):
            values, mask = (array[item] for array in self.features[modality])
            x = self._dense(f"{name}/modalities/{modality}_fc", values.float().masked_fill(~mask[..., None], 0.0))
            tokens.append(x + self.params[f"{name}/modalities/{modality}_embedding"])
            masks.append(mask)
        content, queries = torch.cat(tokens, dim=1), self.params[f"{name}/queries"]
        layer, items, (number, width) = f"{name}/layer_0", len(item), queries.shape
        mask = torch.cat([torch.ones(items, number, dtype=torch.bool), *masks], dim=1)[:, None, None, :]

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(*x.shape[:-1], heads, width // heads).transpose(-3, -2)

        # The queries are the same for all items, and are projected once.
        key, value = (
            torch.cat(
                [self._dense(f"{layer}/attention/{part}", queries).expand(items, -1, -1),
                 self._dense(f"{layer}/attention/{part}", content)], dim=1,
            )
            for part in ("key", "value")
        )  # fmt: skip
        query = split(self._dense(f"{layer}/attention/query", queries)).expand(items, -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, split(key), split(value), attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(items, number, width)
        x = self._norm(f"{layer}/attention_norm", queries + self._dense(f"{layer}/attention/output", mixed))
        y = F.gelu(self._dense(f"{layer}/ffn_in", x), approximate="tanh")
        x = self._norm(f"{layer}/ffn_norm", x + self._dense(f"{layer}/ffn_out", y))
        return self._dense(f"{name}/join", x.reshape(items, -1))

    def _embed(self, rows: torch.Tensor, position: torch.Tensor, specs) -> torch.Tensor:
        """[*, F, W] field embeddings; of a multi-valued field the mean of its values."""
        values, parts = rows[position], []
        for field, column in zip(specs, columns(specs).values(), strict=True):
            if field.length == 1:
                parts.append(values[..., column, :])
                continue
            valid = (position[..., column] != 0)[..., None]
            total = (values[..., column, :] * valid).sum(dim=-2, keepdim=True)
            parts.append(total / valid.sum(dim=-2, keepdim=True).clamp(min=1))
        return torch.cat(parts, dim=-2)

    @staticmethod
    def _interest(score: torch.Tensor, slots: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, D] mean of the slots [B, T, D] by softmax of the score [B, T]; zeros without a history."""
        weight = score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(dim=1) * mask
        return torch.bmm(weight[:, None], slots)[:, 0]

    def _forward(self, rows: torch.Tensor, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logit [B], content [S, D], item field embeddings [S, F, W])."""
        candidate, history, mask = (batch[name] for name in ("item_position", "history_position", "history_mask"))
        fields = self.fields
        items = self._embed(rows, batch["item_row"], fields.item)
        groups = [(fields.user, "user_row"), (fields.context, "context_row")]
        others = [self._embed(rows, batch[name], specs).flatten(1) for specs, name in groups if specs]

        content = self._fusion(batch["item_id"])
        target, slots = content[candidate], content[history]
        name = "model/content_attention/DotScore_0"
        query = self._dense(f"{name}/key", self._dense(f"{name}/query", target))
        score = torch.bmm(slots, query[:, :, None])[:, :, 0] / target.shape[1] ** 0.5
        interest = self._interest(score, slots, mask)
        of_content = [target, interest, target * interest]

        flat = items.flatten(1)
        embedded = self._dense("model/backbone/item", flat)
        target, slots = embedded[candidate], embedded[history]
        for k in range(len(fields.event)):
            slots = slots + rows[batch["history_row"][..., k]]
        interest = self._interest(self._mlp_score(target, slots), slots, mask)
        x = torch.cat([flat[candidate], interest, interest * target, *others, *of_content], dim=1)
        layers = len(self.config["model"]["backbone_settings"]["hidden"])
        for k in range(layers):
            x = F.relu(self._dense(f"model/backbone/dnn/Dense_{k}", x))
        return self._dense(f"model/backbone/dnn/Dense_{layers}", x)[:, 0], content, items

    def _mlp_score(self, target: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """[B, T] DIN's w . relu(W [c, h, c - h, c * h] + b), affine in h with a matrix per candidate."""
        name = "model/backbone/attention/MLPScore_0"
        kernel, bias, out = (self.params[f"{name}/{part}"] for part in ("kernel", "bias", "out"))
        of_target, of_history, of_difference, of_product = kernel.chunk(4)
        matrix = of_history - of_difference + target[:, :, None] * of_product  # [B, W, K]
        offset = target @ (of_target + of_difference) + bias
        return (F.relu(torch.baddbmm(offset[:, None], slots, matrix)) @ out)[..., 0]

    def _contrast(self, content: torch.Tensor, item_fields: torch.Tensor, batch: dict) -> torch.Tensor:
        """L_CIC (eq. 10-13) over the items that have content and an id of their own."""
        settings, item = self.config["model"]["cic"], batch["item_id"]
        has_content = torch.stack([mask[item].any(dim=1) for _, mask in self.features.values()]).any(dim=0)
        valid = batch["item_mask"] & batch["item_is_known"] & has_content
        names = [field.name for field in self.fields.item]
        ids = item_fields[:, [names.index(name) for name in settings["id_fields"]]].flatten(1)
        content, ids = (
            F.normalize(self._dense(f"cic/{name}", x).masked_fill(~valid[:, None], 0.0), eps=1e-6)
            for name, x in (("content", content), ("ids", ids))
        )
        drawn, used = self.draw(valid, self.step)
        positive = (content * ids).sum(dim=1, keepdim=True)
        losses = []
        for one, other in ((content, ids), (ids, content)):
            negative = (one @ other[drawn].T).masked_fill(~used, -torch.inf)
            logits = torch.cat([positive, negative], dim=1) / settings["temperature"]
            losses.append(logits.logsumexp(dim=1) - logits[:, 0])
        return (0.5 * (losses[0] + losses[1]) * valid).sum() / valid.sum().clamp(min=1)

    def _draw(self, valid: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        number = self.config["model"]["cic"]["negatives"]
        drawn = torch.rand(len(valid)).masked_fill(~valid, -1.0).topk(number + 1).indices
        itself = drawn == torch.arange(len(valid))[:, None]
        last = torch.arange(number + 1) == number
        return drawn, torch.where(itself.any(dim=1, keepdim=True), ~itself, ~last) & valid[drawn]


def peer_of(trainer: Trainer, config: dict, draw: Callable | None = None) -> PeerStep:
    """The peer that starts where the trainer stands."""
    state, parts = jax.device_get(trainer.state), trainer.parts
    features = jax.device_get(parts.constants)
    params = trees.named_leaves(state.params)
    return PeerStep(config, parts.dataset.fields, params, state.tables["embedding"], features, draw)


VARIANTS = {
    "JAX, distinct items": {"distinct_items": True, "torch": False},
    "torch, distinct items": {"distinct_items": True, "torch": True},
    "torch, all slots": {"distinct_items": False, "torch": True},
}


def serve(pipe, root: Path, threads: int, distinct_items: bool, torch_: bool) -> None:
    """One variant in a process of its own: a step for each message, answered by its seconds."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    config = planted_config(root)
    call = Trainer(config, distinct_items)
    if torch_:
        call = functools.partial(peer_of(call, config.to_dict()), tensors(jax.device_get(call.batch)))
    jax.block_until_ready(call())
    pipe.send("ready")
    while pipe.recv():
        start = time.perf_counter()
        jax.block_until_ready(call())
        pipe.send(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--default-malloc", action="store_true", help="without em3_jax.allocator, to compare")
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()}; torch {torch.__version__}, {args.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "planted"
        synthetic(root, interactions=500_000, users=20_000, items=7_500, token_width=768)
        context, pipes = multiprocessing.get_context("spawn"), {}
        for name, variant in VARIANTS.items():
            pipes[name], end = context.Pipe()
            arguments = (end, root, args.threads, variant["distinct_items"], variant["torch"])
            context.Process(target=serve, args=arguments, daemon=True).start()
            pipes[name].recv()
        seconds = {name: np.empty(args.repeats) for name in pipes}
        for k in range(args.repeats):
            for name, pipe in pipes.items():  # in turns, so that a slow minute hits all
                pipe.send(True)
                seconds[name][k] = pipe.recv()
    ours = seconds["JAX, distinct items"]
    for name, value in seconds.items():
        least, middle = (f(value) / f(ours) for f in (np.min, np.median))
        print(f"{name:<24}{milliseconds(value):<34}{least:6.2f} x by minima, {middle:.2f} x by medians")
    print("targets: torch, distinct items at least 1.0 x; torch, all slots at least 8 x")


if __name__ == "__main__":
    main()
