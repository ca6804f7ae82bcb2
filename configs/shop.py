"""One model for a planted shop's log: three labels, five numbers, two histories, sessions. Some minutes on 2 CPU cores.

em3 shop --out shop
em3 prepare table --mapping shop/shop.toml --out data/shop
python train.py --config=configs/shop.py --workdir=runs/shop
python train.py --config=configs/shop.py:alone --config.data.label=buy --workdir=runs/shop-buy
python train.py --config=configs/shop.py:esmm --workdir=runs/shop-esmm

Expected over models of one label each, 3 seeds (benchmarks/NOTES.md): click +0.0022, buy +0.0164, long +0.0185.
"""

from ml_collections import ConfigDict

from configs import base


def alone(config: ConfigDict) -> ConfigDict:
    """One label, that of config.data.label."""
    config.model.heads.labels = ()
    return config


def esmm(config: ConfigDict) -> ConfigDict:
    """A click and the purchase that follows, over all rows."""
    config.model.heads.labels = ("buy",)
    config.model.heads.kind = "esmm"
    return config


VARIANTS = base.VARIANTS | {"alone": alone, "esmm": esmm}


def get_config(arg: str = ""):
    config = base.ranking()
    config.data.root = "data/shop"
    config.data.features = ("image", "text")
    config.data.batch_size = 256
    config.data.histories_by = "action"
    config.data.histories = {"buy": 20}
    config.model.all_numbers = "piecewise"
    config.model.heads.labels = ("buy", "long")
    config.model.heads.kind = "mmoe"
    config.model.backbone_settings.dropout = 0.4
    config.tables.learning_rate = 0.05
    config.optim.learning_rate = 3e-3
    config.model.fusion_settings.dropout = 0.3
    config.model.cic.id_fields = ("item", "category")
    config.train.epochs = 6.0
    config.train.eval_every = 300
    config.train.patience = 4
    return base.variant(config, arg, VARIANTS)
