"""Published systems that train an image encoder inside the click model, on planted pictures.

em3 prepare synthetic --out data/pictures --raw
python train.py --config=configs/pictures.py:deepctr --workdir=runs/deepctr
python train.py --config=configs/pictures.py:id_only --workdir=runs/ids
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


def net(config, name: str):
    """The encoder of the pictures."""
    config.model.encoders = {"raw_image": f"cnn:{name}"}
    return config


def deepctr(config):
    """DeepCTR: the candidate's picture alone."""
    config.model.content_parts = ("item",)
    config.model.cnn.output = 128
    return net(config, "deepctr")


def dicm(config):
    """DICM: stored vectors of a net that stands still, of the candidate and of the behaviour."""
    config.data.features = ("image",)
    config.model.encoders = {"image": "cnn:dicm"}
    return config


def id_only(config):
    """The same ranking model on IDs alone."""
    config.model.encoders = {}
    return base.id_only(config)


NETS = {name: functools.partial(net, name=name) for name in ("cnn", "se", "cbam")}
VARIANTS = {**NETS, "deepctr": deepctr, "dicm": dicm, "id_only": id_only}
