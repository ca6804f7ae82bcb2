"""The ranking defaults, one comment a key; the other configs change a few of them.

Model sizes are those of the paper where it gives them (section 4.1): 2 queries, 1 layer, 4 heads, CIC weight and
temperature 0.1.
"""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict


def ranking() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "task": "ranking",  # or pretraining: the fusion module alone, on the catalogue
            "data": {
                "root": "",  # a folder made by `python -m em3_jax.prepare`
                "label": "click",  # or a further label of the dataset
                "features": (),  # feature sets that make the content tokens; "image[0]" takes one token slot
                "placement": "auto",  # of the features: device, host, or auto = device if they fit
                "history_length": 50,  # T
                "batch_size": 1024,  # B
                "distinct": "auto",  # items computed once per batch, or per shard of it; auto = shard with several processes
                "order": "shuffled",  # or chronological
                "most_rows_per_user": 0,  # training rows of a user, drawn once; 0 = all
                "unknown_alpha": 0.25,  # an id seen n times becomes `unknown` with probability alpha / (alpha + n)
                "unknown_floor": {"user": 0.0},  # field -> least such probability
            },
            "model": {
                "content": "end_to_end",  # or none: the ID-only baseline; pre_extracted: vectors as they are; raw: with encoders
                "content_parts": ("item", "user"),  # c_A, u_A (table 6); similarity: cosines with the history
                "content_score": "dot",  # target attention on content: dot or mlp
                "content_hidden": 32,
                "encoders": {},  # raw feature set -> folder of its encoder; "" = not used
                "backbone": "din",  # or deepfm, dcnv2, wide_deep
                "backbone_settings": {
                    "hidden": (64, 32),  # the DNN
                    "dropout": 0.0,
                    "attention_score": "mlp",  # DIN's target attention on IDs: mlp or dot
                    "attention_hidden": 32,
                    "cross_layers": 2,  # of DCN v2
                },
                "fusion": "fq_former",  # or masked_fq_former, one_flow, two_flow, mean (table 3)
                "fusion_settings": {
                    "width": 64,
                    "queries": 2,
                    "layers": 1,
                    "heads": 4,
                    "ffn_width": 128,
                    "dropout": 0.0,
                    "lora": {"rank": 0, "stop_gradient": "output"},  # adapters on every FC layer (eq. 9); or "weights"
                },
                "fusion_chunk": 0,  # most items at once in training, computed again in the backward pass; 0 = all, kept
                "cic": {
                    "weight": 0.1,  # alpha; 0 leaves CIC out
                    "temperature": 0.1,
                    "negatives": 64,  # H; 0 = all other items of the batch
                    "width": 64,
                    "id_fields": ("item",),
                },
                "loss": "binary_cross_entropy",
                "precision": "f32",  # or bf16: activations; parameters, logits and losses stay f32
            },
            "tables": {
                "width": 16,
                "init_scale": 0.05,
                "optimizer": "rowwise_adagrad",  # or lazy_adam
                "learning_rate": 0.02,
                "l2": 0.0,  # on the rows a batch touches
            },
            "optim": {
                "learning_rate": 1e-3,
                "warmup_steps": 0,
                "decay_steps": 0,  # cosine to zero; 0 = constant
                "weight_decay": 0.0,
                "clip_norm": 10.0,  # 0 = none
                "multipliers": (),  # (regex on a parameter's name, learning-rate factor); 0 freezes
            },
            "train": {
                "epochs": 10.0,
                "log_every": 50,
                "steps_per_dispatch": 1,  # more where a step is short beside the time to start it
                "eval_every": 200,
                "init_from": "",  # workdir of a run to start from, its parameters and tables
                "patience": 3,  # evaluations without a better one; 0 = never stop early
                "deterministic": False,  # on GPUs; CPUs always are
                "compilation_cache": "",  # folder of compiled programs, for the next run to start faster
                "grow": False,  # whether a resumed run may go on with a dataset that has grown
            },
            "eval": {"batch_size": 1024, "metric": "auc", "popular_share": 0.1},
            "mesh": {
                "data": 0,  # 0 = all devices
                "model": 1,
                "by_rows": ("tables/.*",),  # regexes of what of the state is cut by rows over all devices
                "coordinator": "",  # of several processes: host:port of number 0, or auto where JAX finds them itself
                "processes": 1,
                "process_id": 0,
                "connect_seconds": 300,  # until a process gives up looking for the others
                "heartbeat_seconds": 60,  # of silence after which one counts as lost
            },
            "pretraining": {"temperature": 0.1, "hold_out": 0.1},  # of the items, for validation
        }
    )


def slow_content(config: ConfigDict, factor: float) -> ConfigDict:
    """The content part learns at a fraction of the learning rate: at full rate it overfits before the ids have learnt."""
    content = ("^model/(fusion|content_attention)/", factor)
    config.optim.multipliers = (*config.optim.multipliers, content)
    return config


def online(config: ConfigDict) -> ConfigDict:
    """One pass over the clicks in their order, in small steps, as a model that learns online sees them (table 1, CTR)."""
    config.data.order = "chronological"
    config.data.batch_size = 128
    config.train.epochs = 1.0
    config.train.eval_every = 1000
    config.train.patience = 0
    return config


def stream(config: ConfigDict, window: str) -> ConfigDict:
    """The log as a stream: each window is scored, then trained on, once."""
    config.stream = {
        "window": window,  # "1 days", "6 hours", "5000 examples"
        "follow": "",  # a mapping for `prepare table`, whose interactions are a file that grows
        "poll_seconds": 5.0,  # between two looks at it
        "idle_seconds": 0.0,  # without growth after which the run ends; 0 = never
        "most_windows": 0,  # after which the run ends; 0 = all
    }
    config.train.patience = 0
    return config


def conversion(config: ConfigDict) -> ConfigDict:
    """The second label of the same rows, in epochs (table 1, CVR)."""
    config.data.label = "conversion"
    return config


def raw(config: ConfigDict, **folders: str) -> ConfigDict:
    """The same model with the encoders of its raw feature sets in the training step, frozen.

    Args:
      folders: feature set -> folder of its encoder; "" for one that the command line may set.
    """
    config.model.content = "raw"
    config.model.encoders = folders
    config.optim.multipliers = (("^encoders/", 0.0), *config.optim.multipliers)
    return config


def lora(config: ConfigDict, rank: int) -> ConfigDict:
    """Phase 2 of section 3.3.2: the fusion module stands still but for adapters of that rank; set train.init_from."""
    config.model.fusion_settings.lora.rank = rank
    config.model.fusion_chunk = 1024
    adapters = (("^model/fusion/.*/lora_[ab]$", 1.0), ("^model/fusion/", 0.0))
    config.optim.multipliers = (*adapters, *config.optim.multipliers)
    return config


def pretraining(config: ConfigDict) -> ConfigDict:
    """The fusion module alone, on the catalogue: no clicks (table 7, PE)."""
    config.task = "pretraining"
    config.mesh.by_rows = ()  # there are no tables
    config.optim.multipliers = ()
    config.data.batch_size = 256
    config.eval.batch_size = 256
    config.eval.metric = "contrast_loss"
    config.train.epochs = 200.0
    config.train.eval_every = 50
    config.train.patience = 5
    return config


def variant(config: ConfigDict, arg: str, **own: Callable[[ConfigDict], ConfigDict]) -> ConfigDict:
    """The config with the changes that `--config=file.py:name,name` names, in that order.

    Args:
      own: changes that this config has besides those of all.
    """
    known = {
        "id_only": id_only,
        "pretraining": pretraining,
        "online": online,
        "lora": functools.partial(lora, rank=4),
    } | own
    for name in filter(None, arg.split(",")):
        if name not in known:
            raise ValueError(f"no variant '{name}'; there are: {', '.join(known)}")
        config = known[name](config)
    return config


def id_only(config: ConfigDict) -> ConfigDict:
    """The same ranking model on IDs alone."""
    config.model.content = "none"
    config.optim.multipliers = ()  # those of content have nothing to match
    return config
