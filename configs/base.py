"""What recipes share: the defaults, which stand in `em3_jax/config/schema`, and variants."""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from em3_jax.config import parse, schema


def ranking() -> ConfigDict:
    """The defaults of a ranking run, see `em3_jax.config.schema`."""
    return parse.editable(schema.Ranking())


def slow_content(config: ConfigDict, factor: float) -> ConfigDict:
    """The content part learns at a fraction of the learning rate: at full rate it overfits before the ids have learnt."""
    content = ("^model/(fusion|content_attention)/", factor)
    config.optim.multipliers = (*config.optim.multipliers, content)
    return config


def online(config: ConfigDict) -> ConfigDict:
    """One pass over the clicks in their order, in small steps, as a model that learns online sees them (table 1, CTR)."""
    config.data.order = "chronological"
    config.data.batch_size = 128
    config.train.epochs = 1.0
    config.train.eval_every = 1000
    config.train.patience = 0
    return config


def stream(config: ConfigDict, window: str) -> ConfigDict:
    """The log as a stream: each window is scored, then trained on, once, which leaves nothing to choose of these settings."""
    with config.unlocked():
        config.stream = parse.plain(schema.Stream(window=window))
    config.data.order = "chronological"
    config.data.most_rows_per_user = 0
    config.train.epochs = 1.0
    config.train.eval_every = 0
    config.train.patience = 0
    config.train.steps_per_dispatch = 1
    config.train.grow = True
    config.eval.metric = "auc"
    return config


def conversion(config: ConfigDict) -> ConfigDict:
    """The second label of the same rows, in epochs (table 1, CVR)."""
    config.data.label = "conversion"
    return config


def raw(config: ConfigDict, **folders: str) -> ConfigDict:
    """The same model with the encoders of its raw feature sets in the training step, frozen.

    Args:
      folders: feature set -> folder of its encoder; "" for one that the command line may set.
    """
    config.model.content = "raw"
    config.model.encoders = folders
    config.optim.multipliers = (("^encoders/", 0.0), *config.optim.multipliers)
    return config


def lora(config: ConfigDict, rank: int) -> ConfigDict:
    """Phase 2 of section 3.3.2: the fusion module stands still but for adapters of that rank; set train.init_from."""
    config.model.fusion_settings.lora.rank = rank
    config.model.fusion_chunk = 1024
    adapters = (("^model/fusion/.*/lora_[ab]$", 1.0), ("^model/fusion/", 0.0))
    config.optim.multipliers = (*adapters, *config.optim.multipliers)
    return config


def pretraining(config: ConfigDict) -> ConfigDict:
    """The fusion module alone, on the catalogue: no clicks (table 7, PE)."""
    config.task = "pretraining"
    config.mesh.by_rows = ()  # there are no tables
    config.optim.multipliers = ()
    config.data.batch_size = 256
    config.eval.batch_size = 256
    config.eval.metric = "contrast_loss"
    config.train.epochs = 200.0
    config.train.eval_every = 50
    config.train.patience = 5
    return config


def categories(config: ConfigDict) -> ConfigDict:
    """The fusion module, and the encoders if content is raw, learn the items' category: no clicks (DeepCTR)."""
    config = pretraining(config)
    config.pretraining.loss = "category"
    config.eval.metric = "category_accuracy"
    return config


def variant(config: ConfigDict, arg: str, variants: dict[str, Callable[[ConfigDict], ConfigDict]]) -> ConfigDict:
    """The config with the changes that `--config=file.py:name,name` names, in that order."""
    for name in filter(None, arg.split(",")):
        if name not in variants:
            raise ValueError(f"no variant '{name}'; there are: {', '.join(variants)}")
        config = variants[name](config)
    return config


def id_only(config: ConfigDict) -> ConfigDict:
    """The same ranking model on IDs alone."""
    config.model.content = "none"
    config.optim.multipliers = ()  # those of content have nothing to match
    return config


def heads(config: ConfigDict, kind: str, labels: tuple[str, ...], losses: dict[str, str] | None = None) -> ConfigDict:
    """Further labels are learnt beside the first, sharing the model as config.model.heads.kind says.

    Args:
      losses: label that is an amount -> how it is learnt.
    """
    config.model.heads.kind, config.model.heads.labels = kind, labels
    with config.unlocked():
        config.model.heads.losses = losses or {}
    return config


VARIANTS = {
    "id_only": id_only,
    "pretraining": pretraining,
    "categories": categories,
    "online": online,
    "lora": functools.partial(lora, rank=4),
}
"""Of every ranking recipe; `--help` lists those of a recipe."""
