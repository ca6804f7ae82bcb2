"""Published systems that train an image encoder inside the click model, on planted pictures.

em3 prepare synthetic --raw --pictures category --items 12000 --interactions 120000 --users 60 --latent 3 \
    --split items:0.7,0.1,0.2 --out data/pictures
python train.py --config=configs/pictures.py:cscnn --config.data.unknown_floor.item=1 --workdir=runs/cscnn
python train.py --config=configs/pictures.py:id_only --config.data.unknown_floor.item=1 --workdir=runs/ids

Whole items are held out there, to which an ID that training has learnt is of no use: it meets `unknown` throughout.

DeepCTR (Chen et al. 2016), CSCNN (Liu et al. 2020) with SE and CBAM as its controls and the plain net,
DICM (Ge et al. 2018) and HCCM (Chen et al. 2022). What each reads of pictures is that of its paper.
The ranker is the same for all but DeepCTR, which has its own, and so are sizes and training.

Expected on test, 3 seeds (docs/pictures.md): cscnn 0.7734 ± 0.0043, cnn 0.7287 ± 0.0046, id_only 0.6794 ± 0.0043.
"""

import functools

from configs import base


def get_config(arg: str = ""):
    config = base.ranking()
    config.data.root = "data/pictures"
    config.data.features = ("raw_image",)
    config.data.history_length = 20
    config.data.batch_size = 256
    # As in configs/em3_synthetic.py: what is best for IDs alone on the planted data's validation.
    config.model.backbone_settings.dropout = 0.4
    config.tables.learning_rate = 0.05
    config.optim.learning_rate = 3e-3
    config.model.content = "raw"
    config.model.encoders = {"raw_image": "cnn:cnn"}
    config.model.fusion = "as_they_are"  # the net's own last layer is the last before the ranker
    config.model.cnn.stem_stride = 2  # of pictures of 16 x 16
    config.model.cic.weight = 0.0  # none of the systems has it
    config.train.epochs = 20.0
    config.train.eval_every = 250
    config.train.patience = 4
    return base.variant(config, arg, VARIANTS)


def candidates(config):
    """The candidate's picture alone, and batches with a bound on their pictures."""
    config.model.content_parts = ("item",)
    config.data.order = "by_item"
    config.data.items_per_batch = 64
    return config


def net(config, name: str):
    """An encoder of the candidate's pixels."""
    config.model.encoders = {"raw_image": f"cnn:{name}"}
    return candidates(config)


def residual(config, name: str):
    """The plain residual net, or a control of CSCNN.

    Chosen on validation of pictures by category, seed 0: with encoders at a third of the rate nothing is
    learnt of pictures in four epochs, at twice the rate they pass IDs after three and rise until ten.
    """
    config.optim.multipliers = (("^encoders/", 2.0),)
    config.data.augment.crop = 28  # of 32
    config.data.augment.mirror = True
    config.train.epochs = 10.0
    config.train.eval_every = 400
    config.train.patience = 0
    return net(config, name)


def cscnn(config):
    """Attention that is told the item's category."""
    config.model.encoder_prior = "category"
    return residual(config, "cscnn")


def deepctr(config):
    """No history at all."""
    config.model.backbone = "deepctr"
    config.data.history_length = 0
    config.model.cnn.output = 128
    return net(config, "deepctr")


def dicm(config):
    """Stored vectors of a net that stands still, of the candidate and of the behaviour."""
    config.data.features = ("image",)
    config.model.encoders = {"image": "cnn:dicm"}
    config.model.content_aggregator = "multi_query"
    return config


def hccm(config):
    """Stored maps, of 2 x 2 here, of a net that stands still, of the candidate and of the behaviour."""
    config.data.features = ("image",)
    config.model.encoders = {"image": "cnn:hccm"}
    config.model.encoder_prior = "category"
    config.model.cnn.stem_stride = 1
    config.model.cnn.widths = (32,)
    return config


def behaviour(config):
    """The past pictures too, for systems that read the candidate's alone: an ablation."""
    config.model.content_parts = ("item", "user")
    config.data.history_length = 20
    config.data.order = "shuffled"
    config.data.items_per_batch = 0
    return config


def id_only(config):
    """The same ranking model on IDs alone."""
    config.model.encoders = {}
    return base.id_only(config)


NETS = {name: functools.partial(residual, name=name) for name in ("cnn", "se", "cbam")}
SYSTEMS = {**NETS, "cscnn": cscnn, "deepctr": deepctr, "dicm": dicm, "hccm": hccm}
VARIANTS = {**SYSTEMS, "behaviour": behaviour, "id_only": id_only}
