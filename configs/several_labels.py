"""Clicks, purchases, likes and seconds on one model, on planted data: a variant for each kind of heads.

em3 prepare synthetic --labels --amounts --out data/labels
python train.py --config=configs/several_labels.py:mmoe --workdir=runs/mmoe
python train.py --config=configs/several_labels.py:id_only,ple,dwell --workdir=runs/ple
python train.py --config=configs/several_labels.py:esmm --workdir=runs/esmm
em3 eval --workdir=runs/mmoe --at 10 --bootstrap 1000 --plots

The settings are those of configs/em3_synthetic.py. What the kinds are worth there: docs/several_labels.md.

Expected on test, 3 seeds (docs/several_labels.md): id_only, a model of its own for each label, click 0.7035 ± 0.0097, buy
0.6093 ± 0.0022; esmm +0.0305 on buy.
Cost (benchmarks/NOTES.md): mmoe 86 s of processors and 1.0 GB.
"""

from configs import base, em3_synthetic


def shared_bottom(config):
    """All layers but a tower a label are shared."""
    return base.heads(config, "shared_bottom", ("buy", "like"))


def mmoe(config):
    """Experts that all labels share, which each label weighs by a gate of its own (Ma et al. 2018)."""
    return base.heads(config, "mmoe", ("buy", "like"))


def ple(config):
    """As mmoe, and experts of each label's own beside those of all (Tang et al. 2020, one layer)."""
    return base.heads(config, "ple", ("buy", "like"))


def esmm(config):
    """Purchases, which clicked rows alone have, over all rows: P(click) P(purchase given a click) (Ma et al. 2018)."""
    return base.heads(config, "esmm", ("buy",))


def learnt_weights(config):
    """Each label's loss has a weight that trains, after one of the kinds (Kendall et al. 2018)."""
    config.model.heads.learn_weights = True
    return config


def dwell(config):
    """The seconds of a click beside the other labels, learnt as an amount with zeros and a long tail."""
    labels = tuple(config.model.heads.labels)
    return base.heads(config, config.model.heads.kind, (*labels, "dwell"), {"dwell": "tweedie"})


VARIANTS = base.VARIANTS | {
    "shared_bottom": shared_bottom,
    "mmoe": mmoe,
    "ple": ple,
    "esmm": esmm,
    "learnt_weights": learnt_weights,
    "dwell": dwell,
}


def get_config(arg: str = ""):
    config = em3_synthetic.get_config()
    config.data.root = "data/labels"
    return base.variant(config, arg, VARIANTS)
