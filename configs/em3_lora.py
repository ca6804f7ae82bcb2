"""Long histories by LoRA on MovieLens-100K (EM3, section 3.3.2 and table 4): full training at T = 20, then adapters at T = 50.

python train.py --config=configs/em3_lora.py:full --workdir=runs/short
python train.py --config=configs/em3_lora.py --config.train.init_from=runs/short --workdir=runs/lora
python train.py --config=configs/em3_lora.py:200 --config.train.init_from=runs/short --workdir=runs/lora-200

The argument is T of the second phase: 50 by default, 200, 1000, ...

Expected on test, 3 seeds (docs/results.md): full 0.7610 ± 0.0010, then 50 0.7614 ± 0.0017.
"""

from configs import base, em3_movielens

VARIANTS = {
    "full": "the first phase: all of the model at T = 20",
    "50": "the second phase, the default: adapters at T = 50; set train.init_from",
    "200": "the same at T = 200, and so on for any number",
}


def get_config(arg: str = ""):
    config = em3_movielens.get_config()
    if arg == "full":
        config.data.history_length = 20
        return config
    if arg and not (arg.isascii() and arg.isdigit() and int(arg)):
        raise ValueError(f"no variant '{arg}'; give full, or T of the second phase as a number")
    config.data.history_length = int(arg or 50)
    return base.lora(config, rank=4)
