"""LEMUR: the encoder trains inside the ranker, from raw content, and histories are read from a memory bank.

em3 prepare synthetic --out data/raw --raw
python train.py --config=configs/lemur.py --config.data.root=data/raw --workdir=runs/lemur
python eval.py --workdir=runs/lemur

A converted checkpoint in the place of the scratch encoder's reading, its top layer training:

em3 extract --data data/ml-100k --modality text --encoder <folder> --raw
python train.py --config=configs/lemur.py --config.data.root=data/ml-100k --config.data.features=text \
    --config.model.encoders.text=<folder> --config.optim.multipliers="(('^encoders/text/(?!layer5/)', 0.0),)" --workdir=runs/top1

Expected on test, 3 seeds (docs/results.md): 0.7889 ± 0.0016, IDs alone 0.7126 ± 0.0089, Bayes 0.8529.
Cost (benchmarks/NOTES.md): default 177 s of processors and 1.2 GB.
"""

from configs import base
from em3_jax.config import parse, schema


def get_config(arg: str = ""):
    config = parse.editable(schema.Lemur())
    config.data.root = "data/raw"
    config.data.features = ("raw_image", "raw_text")
    config.data.batch_size = 256
    config.data.history_length = 100  # T of the long history; half of the planted users have no more than 60 events
    config.train.epochs = 20.0
    config.train.eval_every = 250
    config.train.patience = 4
    return base.variant(config, arg, VARIANTS)


def id_only(config):
    """The ranker on IDs alone; it reads as long a history as LEMUR."""
    plain = base.id_only(base.ranking())
    plain.model.backbone_settings = config.model.backbone_settings
    plain.data, plain.train = config.data, config.train
    plain.data.features = ()
    # As in configs/em3_synthetic.py: what is best for IDs alone on the planted data's validation.
    plain.model.backbone_settings.dropout = 0.4
    plain.tables.learning_rate = 0.05
    plain.optim.learning_rate = 3e-3
    return plain


def contrast_only(config):
    """The first of two stages: the encoder on SQDC alone, with LEMUR's budget.

    The step that is kept is the one whose T s(q, d) orders validation best within users.
    """
    config.model.ranking_weight = 0.0
    config.model.sqdc.weight = 1.0
    config.eval.metric = "gauc"
    return config


def frozen(config):
    """The second: the ranker on what that encoder gives; set train.init_from."""
    config.optim.multipliers = (("^(query_)?encoders?/", 0.0),)
    config.model.sqdc.weight = 0.0
    return config


VARIANTS = {"id_only": id_only, "online": base.online, "contrast_only": contrast_only, "frozen": frozen}
