"""LEMUR on MovieLens-100K, from raw titles, genres and posters.

em3 prepare movielens --source <folder> --out data/ml-100k
em3 raw --data data/ml-100k --text title=12,genres=8 --vocabulary 2000 --name raw_text
em3 raw --data data/ml-100k --image-size 32 --name raw_image
em3 reproduce --table lemur --config configs/lemur_movielens.py --data data/ml-100k --seeds 3 --out reports/lemur-ml

Expected on test, 3 seeds (docs/results.md): LEMUR 0.7658 ± 0.0006, IDs alone 0.7628 ± 0.0028.
"""

from configs import lemur

VARIANTS = lemur.VARIANTS


def get_config(arg: str = ""):
    config = lemur.get_config(arg)
    config.data.root = "data/ml-100k"
    config.data.batch_size = 512
    config.data.history_length = 200
    config.data.unknown_floor.user = 0.3  # 86 % of the test rows have a user that training does not know
    config.model.backbone_settings.dropout = 0.0  # IDs alone on validation: 0.7482, as on planted data 0.7447
    config.tables.learning_rate = 0.02
    config.optim.learning_rate = 1e-3
    config.train.eval_every = 40
    config.train.patience = 8
    return config
