"""LEMUR: click prediction with an encoder inside the ranker, and histories read from a bank.

L = L_ranking + lambda L_SQDC (+ alpha L_CIC, which LEMUR found to be of no use once the encoder
trains jointly). Han et al., LEMUR: Large scale End-to-end MUltimodal Recommendation (2025).
Letters: B examples, S distinct items of a batch, C of them that may be encoded, D width of a
representation.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax import losses
from em3_jax.config import parse, registry
from em3_jax.config.schema.lemur import LemurSettings, Sqdc
from em3_jax.core import exchange, rng
from em3_jax.core.amounts import Amount
from em3_jax.core.fields import Fields
from em3_jax.core.labels import Labels
from em3_jax.core.numbers import NO_NUMBERS, Numbers
from em3_jax.core.types import Batch
from em3_jax.models.encoders.fields import FieldEncoder
from em3_jax.models.lemur import Lemur, Representations
from em3_jax.models.numbers import NumberSettings
from em3_jax.models.similarity import cosine
from em3_jax.tables.memory_bank import Stored, Writes
from em3_jax.tasks import CONTENT, Inputs, Intermediates, Logged, Loss, Params, Task, gathered, gathered_to_encode
from em3_jax.tasks.cic import ContentIdContrast, content_id_contrast
from em3_jax.tasks.clicks import LossOfClicks, check_logit, ranking_loss
from em3_jax.tasks.heads import FurtherLabels, further_labels
from em3_jax.tasks.lemur import encoders
from em3_jax.tasks.lemur.encoders import Layouts
from em3_jax.tasks.lemur.seen import Seen, see
from em3_jax.tasks.lemur.settings import check, encoder_settings
from em3_jax.tasks.raw import RawEncoders


@dataclasses.dataclass(frozen=True, eq=False)
class LemurTask(Task):
    """The task.

    Attributes:
      settings: of config.model.
      encoder: of items.
      query_encoder: of queries; None where there are none.
      ranker: from IDs and representations to logits.
      loss_of_clicks: see `clicks.ranking_loss`.
      sqdc: of the contrast of query and document.
      contrast: CIC of the items encoded in the step; None where its weight is 0.
      further: the labels that are learnt besides; None without any.
    """

    settings: LemurSettings
    encoder: encoders.ItemEncoder
    query_encoder: encoders.QueryEncoder | None
    ranker: Lemur
    loss_of_clicks: LossOfClicks
    sqdc: Sqdc
    contrast: ContentIdContrast | None
    further: FurtherLabels | None = None

    @property
    def labels(self) -> Labels:
        return Labels() if self.further is None else self.further.names

    @property
    def uses_content(self) -> bool:
        return True

    @property
    def can_be_served(self) -> bool:
        """Only with a bank, and without queries: services pass ids, and no words of a query."""
        return self.settings.encode == "candidates" and self.query_encoder is None

    def inputs(self, rows: jax.Array | None, constants: Any, batch: Batch) -> Inputs:
        """Inputs whose tokens are those of the items that may be encoded, [C, N, E]."""
        if "encode_position" not in batch:  # a pass over the catalogue is about all of its items
            return gathered(rows, constants, batch)
        return gathered_to_encode(rows, constants, batch)

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        keys = jax.random.split(key, 4)
        params = self.encoder.init(keys[0], inputs)
        if self.query_encoder is not None:
            params |= self.query_encoder.init(keys[3], inputs.batch)
        seen = see(self.encoder.represent_all(params, inputs), inputs.batch)
        items = self._represented(seen)
        arguments = (inputs.rows, items, self._query(params, inputs.batch), inputs.batch)
        (logit, out), variables = self.ranker.init_with_output(keys[1], *arguments, train=False)
        check_logit(logit, inputs.batch)
        params["model"] = variables["params"]
        if self.further is not None and (own := self.further.init()):
            params["heads"] = own
        if self.contrast is not None:
            params["cic"] = self.contrast.init(keys[2], out | {"content": items.candidate})
        return params

    def loss(self, params: Params, inputs: Inputs, key: jax.Array, step: jax.Array) -> Loss:
        """See `Task.loss`; "writes" are what was encoded, with their gradient cut off."""
        batch = inputs.batch
        inputs = self.encoder.viewed(inputs, key, step)
        drawn = rng.stream(key, "encoded items", step)
        writes = self.encoder.represent_some(params, inputs, drawn)
        seen = see(writes, batch, step)
        rngs = {"dropout": rng.stream(key, "dropout", step)}
        with_gradient = self.settings.ranking_gradient
        items = self._represented(seen if with_gradient else jax.lax.stop_gradient(seen))
        logit, out = self._rank(params, inputs, items, train=True, rngs=rngs)
        value, aux = ranking_loss(self.loss_of_clicks, logit, out, batch)
        if self.further is not None:
            value, of_labels = self.further.loss(params.get("heads", {}), value, logit, out, batch)
            aux |= of_labels
        total = self.settings.ranking_weight * value
        if self.sqdc.weight:
            # Seen anew where that is no exchange: so gradients meet in `writes`, and one device adds
            # them in the order in which it always has, to the same bits.
            again = seen if "item_route" in batch else see(writes, batch, step)
            value, of_sqdc = self._sqdc(again, out, batch)
            total, aux = total + value, aux | of_sqdc
        if self.contrast is not None:
            out = {**out, "content": items.candidate, "item_counts": seen.counts, "item_has_content": seen.fresh}
            drawn = rng.stream(key, "negatives", step)
            value, of_contrast = self.contrast.loss(params["cic"], inputs, out, drawn)
            total, aux = total + value, aux | of_contrast
        writes = jax.lax.stop_gradient(writes)
        return total, aux | _staleness(writes, seen, batch) | {"writes": writes}

    def predict(self, params: Params, inputs: Inputs) -> jax.Array:
        return self._final_score(params, inputs, self._predicted(params, inputs))

    def predict_all(self, params: Params, inputs: Inputs) -> jax.Array:
        assert self.further is not None  # or there is one label
        items = self._predicted(params, inputs)
        return self.further.beside(params, *self._rank(params, inputs, items, train=False))

    def _predicted(self, params: Params, inputs: Inputs) -> Representations:
        """What is known of the items where nothing trains."""
        writes = self.encoder.represent_all(params, inputs)
        seen = see(writes, inputs.batch, stored=self.settings.encode == "candidates")
        items = self._represented(seen)
        if seen.stored is not None:
            # What a history reads must not depend on the other candidates of the batch.
            items = items._replace(history=seen.stored, history_present=seen.age >= 0)
        return items

    def attend(self, params: Params, inputs: Inputs) -> tuple[jax.Array, Mapping[str, Any]]:
        """([B] what `predict` gives, the weights of attentions by the paths of their modules).

        Those of the encoder, of its C items, are under "encoder", the others the ranker's.
        """
        items = self._predicted(params, inputs)
        arguments = (inputs.rows, items, self._query(params, inputs.batch), inputs.batch)
        variables: Any = {"params": params["model"]}
        applied: Any = self.ranker.apply(variables, *arguments, train=False, mutable=["intermediates"])
        (logit, out), kept = applied
        of_encoder = {"encoder": self.encoder.attend(params, inputs)}
        return self._scored(logit, out), {**kept.get("intermediates", {}), **of_encoder}

    def lookup(self, params: Params, inputs: Inputs) -> dict[str, jax.Array]:
        """The fresh representation and the stored one; "written" [S, 1] = 1 if there is such."""
        stored: Stored = inputs.batch["stored"]
        written = (stored.present & inputs.batch["item_mask"])[:, None]
        return {
            CONTENT: self.encoder.represent(params, inputs),
            "bank": jnp.where(written, stored.vector, 0.0),
            "written": written.astype(jnp.float32),
        }

    def score(self, params: Params, inputs: Inputs) -> jax.Array:
        return self._final_score(params, inputs, _looked_up(inputs))

    def score_all(self, params: Params, inputs: Inputs) -> jax.Array:
        assert self.further is not None  # or there is one label
        return self.further.beside(params, *self._rank(params, inputs, _looked_up(inputs), train=False))

    def _represented(self, seen: Seen) -> Representations:
        """The fresh representations in the place of the stored ones, in histories too."""
        with_gradient = self.settings.history_gradient
        history = seen.vector if with_gradient else jax.lax.stop_gradient(seen.vector)
        return Representations(seen.vector, history, seen.present, seen.present)

    def _query(self, params: Params, batch: Batch) -> jax.Array | None:
        """[B, D] representations of the queries; None without."""
        if self.query_encoder is None:
            return None
        return self.query_encoder.represent(params, batch)

    def _rank(
        self,
        params: Params,
        inputs: Inputs,
        items: Representations,
        *,
        train: bool,
        rngs: dict[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, Intermediates]:
        """(logit [B], named intermediates) of the ranker."""
        query = self._query(params, inputs.batch)
        arguments = (inputs.rows, items, query, inputs.batch)
        variables = {"params": params["model"]}
        result: Any = self.ranker.apply(variables, *arguments, train=train, rngs=rngs)
        return result

    def _final_score(self, params: Params, inputs: Inputs, items: Representations) -> jax.Array:
        """[B] the logit; T s(q, d) where the ranker does not train."""
        return self._scored(*self._rank(params, inputs, items, train=False))

    def _scored(self, logit: jax.Array, out: Intermediates) -> jax.Array:
        """[B] of what the ranker gives."""
        if self.settings.ranking_weight:
            return logit
        return self.sqdc.scale * cosine(out["query"], out["document"])

    def _sqdc(self, seen: Seen, out: Intermediates, batch: Batch) -> Loss:
        """(lambda L_SQDC [] f32, what to log), whose gradient reaches the encoder in any case.

        Args:
          seen: the representations, with their gradient.
          out: "query" [B, D].
          batch: the batch.
        """
        candidate = batch["item_position"]
        takes_part = (batch["weight"] > 0) & exchange.picked(seen.present, candidate)
        document = exchange.rows(seen.vector, candidate)
        value, aux = losses.query_document_contrastive(
            out["query"],
            document,
            batch["label"] > 0,
            exchange.picked(batch["item_id"], candidate),
            batch["group"] if self.sqdc.mask_group else None,
            takes_part,
            scale=self.sqdc.scale,
            log_q=batch.get("log_expected"),
        )
        return self.sqdc.weight * value, {"sqdc_loss": value} | aux


def _looked_up(inputs: Inputs) -> Representations:
    """Of `LemurTask.lookup`."""
    known = inputs.tokens
    present = jnp.ones(known["bank"].shape[0], bool)
    return Representations(known[CONTENT], known["bank"], present, known["written"][:, 0] > 0)


def lemur(
    fields: Fields,
    layouts: Layouts,
    raw: RawEncoders,
    settings: LemurSettings,
    *,
    has_queries: bool,
    numbers: Numbers = NO_NUMBERS,
    amounts: Mapping[str, Amount] = MappingProxyType({}),
    last: int = 1 << 30,
) -> LemurTask:
    """The task of a config.

    Args:
      fields: the dataset's categorical fields.
      layouts: of the feature sets.
      raw: converted encoders, whose weights are among the parameters.
      settings: config.model.
      has_queries: whether the dataset has a field of queries.
      numbers: those that are read as values.
      amounts: the further labels that are amounts, as they begin.
      last: how many of a history's last slots hold the last events.

    Raises:
      UserError: a setting contradicts another, or the dataset.
    """
    check(settings)
    sizes = encoder_settings(settings.encoder)
    module = FieldEncoder(sizes, tuple(layouts.items()))
    shares = (settings.forward_percent, settings.backward_percent)
    return LemurTask(
        settings=settings,
        encoder=encoders.ItemEncoder(module, raw, *shares),
        query_encoder=encoders.query_encoder(settings.query if has_queries else None, sizes),
        ranker=_ranker(settings, fields, numbers, last),
        loss_of_clicks=registry.loss(settings.loss),
        sqdc=settings.sqdc,
        contrast=content_id_contrast(settings.cic, fields, numbers),
        further=further_labels(settings.heads, amounts),
    )


def _ranker(settings: LemurSettings, fields: Fields, numbers: Numbers, last: int) -> Lemur:
    return Lemur(
        fields=fields,
        backbone=registry.backbone(settings.backbone, settings.backbone_settings, settings.heads),
        short=min(settings.short_history, last),  # before these stand events that are sought
        modules=tuple(settings.history_modules),
        decoder_layers=settings.decoder_layers,
        decoder_hidden=settings.decoder_hidden,
        query_history=settings.query_history,
        numbers=numbers,
        number_settings=NumberSettings(**parse.entries(settings.number_settings)),
        last=last,
    )


def _staleness(writes: Writes, seen: Seen, batch: Batch) -> Logged:
    """How far what histories read is behind, each [] f32.

    "staleness_steps": mean age of what they read, in steps. "staleness_cosine": mean cosine of the
    stored and the fresh representations of what was encoded now, NaN where nothing was stored.
    "encoded_items": how many items were encoded, each once.
    """
    stored: Stored = batch["stored"]
    age = exchange.picked(seen.age, batch["history_position"])
    slots = batch["history_mask"] & (age >= 0)
    again = seen.once & exchange.picked(stored.present, writes.position)
    old = exchange.picked(stored.vector, writes.position)
    norm = jnp.linalg.norm(old, axis=1) * jnp.linalg.norm(writes.vector, axis=1)
    cosines = jnp.sum(old * writes.vector, axis=1) / jnp.maximum(norm, 1e-12)
    count = again.sum()
    mean_age = jnp.where(slots, age, 0).sum() / jnp.maximum(slots.sum(), 1)
    is_known = count > 0
    mean_cosine = jnp.where(again, cosines, 0.0).sum() / jnp.maximum(count, 1)
    return {
        "staleness_steps": mean_age,
        "staleness_cosine": jnp.where(is_known, mean_cosine, jnp.nan),
        "encoded_items": seen.once.sum().astype(jnp.float32),
    }
