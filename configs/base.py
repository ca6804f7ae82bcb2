"""The ranking defaults, one comment a key; the other configs change a few of them.

Model sizes are those of the paper where it gives them (section 4.1): 2 queries, 1 layer, 4 heads, CIC weight and
temperature 0.1.
"""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict


def ranking() -> ConfigDict:
    """The defaults of a ranking run: all sections, in the order of the manual."""
    config = _general()
    _data(config)
    _model(config)
    _updates(config)
    _run(config)
    _of_pretraining(config)
    return config


def _general() -> ConfigDict:
    """What stands in no section."""
    return ConfigDict(
        {
            "seed": 0,  # of all that is drawn
            "task": "ranking",  # lemur and retrieval have recipes of their own
        }
    )


def _data(config: ConfigDict) -> None:
    """The rows that are read, and in which batches."""
    config.data = {
        "root": "",  # a folder made by `em3 prepare`
        "label": "click",  # or a further label of the dataset
        "features": (),  # feature sets that make the content tokens; "image[0]" takes one token slot
        "placement": "auto",  # where the features lie; auto: on the device if they fit
        "history_length": 50,  # T, past events of a user that an example reads
        "batch_size": 1024,  # B, examples of all devices together
        "distinct": "auto",  # items computed once per batch, or per shard of it; auto = shard with several processes
        "order": "shuffled",  # of the training rows
        "most_rows_per_user": 0,  # training rows of a user, drawn once; 0 = all
        "unknown_alpha": 0.25,  # an id seen n times becomes `unknown` with probability alpha / (alpha + n)
        "unknown_floor": {  # field -> least such probability
            "user": 0.0
        },
    }


def _model(config: ConfigDict) -> None:
    """The model and its losses."""
    config.model = {
        "content": "end_to_end",  # none: IDs alone; pre_extracted: vectors as they are; raw: with encoders
        "content_parts": ("item", "user"),  # c_A, u_A (table 6); similarity: cosines with the history
        "content_score": "dot",  # of the target attention on content
        "content_hidden": 32,  # hidden width of that score, if it is an mlp
        "content_events": False,  # whether that attention reads the history's event fields, a rating say
        "encoders": {},  # raw feature set -> folder of its encoder
        "backbone": "din",  # the ranking model that content plugs into
        "backbone_settings": {
            "hidden": (64, 32),  # widths of the DNN
            "dropout": 0.0,  # in the DNN
            "attention_score": "mlp",  # of DIN's target attention on IDs
            "attention_hidden": 32,  # its hidden width
            "cross_layers": 2,  # of DCN v2
        },
        "fusion": "fq_former",  # how an item's tokens become one vector (table 3)
        "fusion_settings": {
            "width": 64,  # D, of the content embedding
            "queries": 2,  # Q, learnt queries of the FQ-Former
            "layers": 1,  # of the transformer
            "heads": 4,  # of its attention; they divide the width
            "ffn_width": 128,  # hidden width of its FFN
            "dropout": 0.0,  # on tokens and residual branches
            "lora": {
                "rank": 0,  # of the adapters on every FC layer (eq. 9); 0 = none
                "stop_gradient": "output",  # where an adapter stops the gradient: the paper's way; weights: classical
            },
        },
        "fusion_chunk": 0,  # most items at once in training, computed again in the backward pass; 0 = all, kept
        "cic": {
            "weight": 0.1,  # alpha; 0 leaves CIC out
            "temperature": 0.1,  # of the contrast of content and IDs
            "negatives": 64,  # H; 0 = all other items of the batch
            "width": 64,  # of the space that both are projected to
            "id_fields": ("item",),  # item fields whose embeddings stand for the ID
            "over": "items",  # the mean is over distinct items, or over samples' candidates
        },
        "loss": "binary_cross_entropy",  # of the logits
        "precision": "f32",  # of activations; parameters, logits and losses stay f32
    }


def _updates(config: ConfigDict) -> None:
    """The ID tables, and how tables and parameters are updated."""
    config.tables = {
        "width": 16,  # of a row
        "init_scale": 0.05,  # standard deviation of a fresh row
        "optimizer": "rowwise_adagrad",  # of the rows a batch touches
        "learning_rate": 0.02,  # of the rows
        "l2": 0.0,  # on the rows a batch touches
    }
    config.optim = {
        "learning_rate": 1e-3,  # of all parameters but the tables
        "warmup_steps": 0,  # linear
        "decay_steps": 0,  # cosine to zero; 0 = constant
        "weight_decay": 0.0,  # decoupled, on matrices
        "clip_norm": 10.0,  # most that the gradient's norm may be; 0 = no bound
        "multipliers": (),  # (regex on a parameter's name, learning-rate factor); 0 freezes
    }


def _run(config: ConfigDict) -> None:
    """The course of a run: training, evaluation, devices."""
    config.train = {
        "epochs": 10.0,  # passes over the training rows
        "log_every": 50,  # steps between two log lines
        "steps_per_dispatch": 1,  # more where a step is short beside the time to start it
        "eval_every": 200,  # steps between two evaluations on validation, each followed by a checkpoint
        "init_from": "",  # workdir of a run to start from, its parameters and tables
        "patience": 3,  # evaluations without a better one
        "deterministic": False,  # on GPUs; CPUs are, by their number of cores
        "compilation_cache": "",  # folder of compiled programs, for the next run to start faster
        "grow": False,  # go on with a dataset that has grown: `epochs` passes over its new rows alone
    }
    config.eval = {
        "batch_size": 1024,  # of all devices together
        "metric": "auc",  # chooses the best step on validation
        "popular_share": 0.1,  # of the items, by training showings: the slice of popular ones
    }
    config.mesh = {
        "data": 0,  # devices that examples are cut over
        "model": 1,  # devices beside, over which tables and features are cut as well
        "by_rows": ("tables/.*",),  # regexes of what of the state is cut by rows over all devices
        "coordinator": "",  # of several processes: host:port of number 0, or auto where JAX finds them itself
        "processes": 1,  # how many there are
        "process_id": 0,  # which of them this is
        "connect_seconds": 300,  # until a process gives up looking for the others
        "heartbeat_seconds": 60,  # of silence after which one counts as lost
    }


def _of_pretraining(config: ConfigDict) -> None:
    """Settings of task pretraining alone."""
    config.pretraining = {  # of task pretraining alone
        "temperature": 0.1,  # of the contrast of two views
        "hold_out": 0.1,  # share of the items, for validation
    }


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
    """The log as a stream: each window is scored, then trained on, once, which leaves nothing to choose of these settings."""
    config.stream = {
        "window": window,  # what is scored before it is trained on: "1 days", "6 hours", "5000 examples"
        "follow": "",  # a mapping for `prepare table`, whose interactions are a file that grows
        "poll_seconds": 5.0,  # between two looks at it
        "idle_seconds": 0.0,  # without growth after which the run ends; 0 = never
        "most_windows": 0,  # after which the run ends; 0 = all
    }
    config.data.order = "chronological"
    config.data.most_rows_per_user = 0
    config.train.epochs = 1.0
    config.train.eval_every = 0
    config.train.patience = 0
    config.train.steps_per_dispatch = 1
    config.train.grow = True
    config.eval.metric = "auc"
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


def variant(config: ConfigDict, arg: str, variants: dict[str, Callable[[ConfigDict], ConfigDict]]) -> ConfigDict:
    """The config with the changes that `--config=file.py:name,name` names, in that order."""
    for name in filter(None, arg.split(",")):
        if name not in variants:
            raise ValueError(f"no variant '{name}'; there are: {', '.join(variants)}")
        config = variants[name](config)
    return config


def id_only(config: ConfigDict) -> ConfigDict:
    """The same ranking model on IDs alone."""
    config.model.content = "none"
    config.optim.multipliers = ()  # those of content have nothing to match
    return config


VARIANTS = {"id_only": id_only, "pretraining": pretraining, "online": online, "lora": functools.partial(lora, rank=4)}
"""Of every ranking recipe; `--help` lists those of a recipe."""
