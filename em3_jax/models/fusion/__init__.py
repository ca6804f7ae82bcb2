"""Fusion of an item's modality tokens into one content embedding: the variants of table 3 behind one signature.

Each is a Linen module with one attribute, `settings`, and `__call__(tokens, mask, *, train)`: {modality: [S, N_m, E_m]} and
{modality: [S, N_m] bool} -> [S, D]. An item without any token gets a finite embedding.

Letters: S items, N content tokens of all modalities, Q queries, D width, H heads, E encoder width of a modality.
"""

from typing import NamedTuple

from em3_jax.models.lora import LoRA


class FusionSettings(NamedTuple):
    """What all variants are built from; each uses what it knows.

    Attributes:
      width: D.
      queries: Q.
      layers, heads: of the transformer.
      ffn_width: hidden width of the FFN.
      dropout: rate on the tokens and on the residual branches.
      lora: of every FC layer.
      layer_chunk: items that a transformer layer sees at once in training, see `chunks`; 0 = all.
    """

    width: int
    queries: int
    layers: int
    heads: int
    ffn_width: int
    dropout: float
    lora: LoRA = LoRA()
    layer_chunk: int = 0
