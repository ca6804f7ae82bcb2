"""EM3 and LEMUR on a stream: trained once over time, each window of the log scored before it is trained on.

em3 prepare synthetic --out data/drift --raw --drift 1 --arrivals 0.5 --cold-share 0 --users 800 --items 2000 \
    --interactions 160000 --choices 10
python train.py --config=configs/online.py:em3 --config.data.root=data/drift --workdir=runs/stream-em3
python train.py --config=configs/online.py:lemur --config.data.root=data/drift --workdir=runs/stream-lemur
em3 curves em3=runs/stream-em3 lemur=runs/stream-lemur --out curves.png

A log that grows, mapping.toml holding the options of `em3 prepare table`:

python train.py --config=configs/online.py:id_only --config.stream.follow=mapping.toml --config.stream.window="1 hours" \
    --config.data.root=data/followed --workdir=runs/followed

Expected in the last quarter of this stream, seed 0 (docs/results.md): em3 0.779, lemur 0.766, id_only 0.625.
"""

from configs import base, em3_synthetic, lemur

VARIANTS = {
    "em3": "EM3, the default",
    "id_only": "the ranking model on IDs alone",
    "lemur": "LEMUR: the encoder trains in the stream",
    "frozen": "LEMUR with an encoder that stands still; set train.init_from",
    "contrast_only": "the encoder on its contrast alone, for `frozen` to start from",
}


def get_config(arg: str = "em3"):
    arg = arg or "em3"
    if arg not in VARIANTS:
        raise ValueError(f"no model '{arg}'; there are: {', '.join(VARIANTS)}")
    if arg in ("em3", "id_only"):
        config = em3_synthetic.get_config("id_only" if arg == "id_only" else "")
        config.model.cic.id_fields = ("item",)
    else:  # frozen: an encoder as train.init_from has it; contrast_only: what trains that one
        config = lemur.get_config("" if arg == "lemur" else arg)
    config.data.root = "data/drift"
    config.data.batch_size = 128
    config.data.history_length = 50  # of a stream, the recent past
    config.model.backbone_settings.dropout = 0.0  # each row is seen once
    config.tables.learning_rate = 0.02
    config.optim.learning_rate = 1e-3
    return base.stream(config, "8000 examples")
