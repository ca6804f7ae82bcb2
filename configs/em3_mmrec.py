"""EM3 on TikTok as MMRec folders have it: clicks against drawn negatives, with picture and sound features.

python -m em3_jax.prepare mmrec --source <folder> --out data/tiktok --as-clicks --negatives 3 --seed 0
python train.py --config=configs/em3_mmrec.py --workdir=runs/em3
python train.py --config=configs/em3_mmrec.py:id_only --workdir=runs/id_only
"""

from configs import base


def get_config(arg: str = ""):
    config = base.ranking()
    config.data.root = "data/tiktok"
    config.data.features = ("image", "audio")
    return base.variant(config, arg)
