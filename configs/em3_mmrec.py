"""EM3 on TikTok as MMRec folders have it: clicks against drawn negatives, with picture and sound features.

em3 prepare mmrec --source <folder> --out data/tiktok --as-clicks --negatives 3 --seed 0
python train.py --config=configs/em3_mmrec.py --workdir=runs/em3
python train.py --config=configs/em3_mmrec.py:id_only --workdir=runs/id_only

Expected on test, 3 seeds (docs/results.md): EM3 0.7989 ± 0.0016, id_only 0.7971 ± 0.0002.
"""

from configs import base

VARIANTS = base.VARIANTS


def get_config(arg: str = ""):
    config = base.ranking()
    config.data.root = "data/tiktok"
    config.data.features = ("image", "audio")
    config.data.history_length = 5  # validation histories hold two items in the median
    config.data.most_rows_per_user = 40  # else 71 % of the rows belong to users with more than 50 clicks
    config.data.unknown_floor.user = 0.9
    config.model.fusion_settings.width = 32
    config.model.fusion_settings.ffn_width = 64
    config.model.fusion_settings.dropout = 0.3
    config.train.epochs = 15.0
    config.train.eval_every = 70
    config.eval.batch_size = 4096
    return base.variant(config, arg, VARIANTS)
