"""LEMUR: the encoder trains inside the ranker, from raw content, and histories are read from a memory bank.

em3 prepare synthetic --out data/raw --raw
python train.py --config=configs/lemur.py --config.data.root=data/raw --workdir=runs/lemur
python eval.py --workdir=runs/lemur

A converted checkpoint in the place of the scratch encoder's reading, its top layer training:

em3 extract --data data/ml-100k --modality text --encoder <folder> --raw
python train.py --config=configs/lemur.py --config.data.root=data/ml-100k --config.data.features=text \
    --config.model.encoders.text=<folder> --config.optim.multipliers="(('^encoders/text/(?!layer5/)', 0.0),)" --workdir=runs/top1
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = ""):
    config = base.ranking()
    config.task = "lemur"
    config.data.root = "data/raw"
    config.data.features = ("raw_image", "raw_text")
    config.data.batch_size = 256
    config.data.history_length = 100  # T of the long history; half of the planted users have no more than 60 events
    config.mesh.by_rows = ("tables/.*", "memory/.*")
    config.model = ConfigDict(
        {
            "encoder": {
                "width": 64,  # of its layers
                "layers": 2,  # of the transformer
                "heads": 4,  # they divide the width
                "mlp_width": 128,  # hidden width of the FFN
                "output": 64,  # of an item's representation
                "means": True,  # the representation reads the mean of each feature set beside the class token
            },
            "layout": {
                "patch": 8,  # side of picture patches, in pixels
                "lengths": {},  # text field -> how many of its tokens are read; all of a field that is not named
            },
            # Raw feature set -> folder of a converted encoder that reads it first.
            "encoders": {"text": "", "image": ""},
            "encode": "candidates",  # or all: every history item in every step, what the bank saves
            "forward_percent": 100.0,  # p: share of a batch's distinct candidates that are encoded; the others come from the bank
            "backward_percent": 100.0,  # q: share of them that take a gradient
            "ranking_weight": 1.0,  # 0: the encoder alone, on SQDC
            "ranking_gradient": True,  # whether the click's gradient reaches the encoder
            "history_gradient": True,  # whether it does through history slots whose items are encoded in this step
            "history_modules": ("short", "long", "similarity"),  # see the README
            "short_history": 50,  # last events for target attention and the backbone
            "query": {
                "field": "query",  # context field whose values are the queries' texts, if the dataset has it
                "length": 10,  # words read of each
                "vocabulary": 8192,  # numbers that words are hashed to
                "layers": 2,  # of the query encoder
            },
            "query_history": 30,  # last events that stand in for the query
            "decoder_layers": 2,  # of the cross-attention over the long history
            "decoder_hidden": 64,  # hidden width of its FFN
            "backbone": "din",
            "backbone_settings": config.model.backbone_settings.to_dict(),
            "sqdc": {  # the contrast of query and document
                "weight": 0.03,  # lambda; 0 leaves it out
                "scale": 10.0,  # T, of the cosines
                "mask_group": True,  # whether rows of one query are no negatives of each other
            },
            "cic": config.model.cic.to_dict() | {"weight": 0.0},
            "loss": "binary_cross_entropy",
        }
    )
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
