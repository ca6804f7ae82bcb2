"""Retrieval on MMRec folders (EM3, section 4.6): eight models. All items are ranked, Recall@20 chooses on validation.

em3 prepare mmrec --source <folder> --out data/baby
python train.py --config=configs/retrieval.py:em3 --config.data.root=data/baby --workdir=runs/em3-baby
python eval.py --workdir=runs/em3-baby --split=test

The argument is the model: em3 (the default), em3_as_released, freedom, bm3, lattice, slmrec, vbpr, lightgcn or bpr. Settings are
those of MMRec's configs (Zhou, MM Asia 2023 Workshops) and of the code released with EM3, where they tell; an L2 weight is that
of squared norms, as the models' papers have it. Table 10 tries the grids: `em3 reproduce --table 10`.
"""

from ml_collections import ConfigDict

MODALITY_WEIGHTS = {"image": 0.1, "text": 0.9, "audio": 0.9}  # of those the data have, scaled to sum 1


def _defaults() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "task": "retrieval",
            "data": {
                "root": "data/baby",  # a folder made by `em3 prepare mmrec`, without --as-clicks
                "features": ("*",),  # feature sets, e.g. image,text; * = all that the dataset has; () = none
                "batch_size": 2048,  # B, pairs
                "edge_dropout": 0.0,  # share of the training pairs that an epoch's user-item graph does without
            },
            "model": {
                "retrieval": "",
                "retrieval_settings": {"width": 64},
                "item_graph": {  # one a feature set
                    "neighbours": 0,  # k; 0 = no item graphs
                    "include_self": True,  # whether an item is its own nearest neighbour
                    "weights": "binary",  # or cosine
                    "normalisation": "rows",  # or both
                },
            },
            "optim": {  # Adam
                "learning_rate": 1e-3,
                "warmup_steps": 0,
                "decay_steps": 0,  # constant
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # none
                "multipliers": (),  # (regex on a parameter's name, learning-rate factor); 0 freezes
            },
            "train": {
                "epochs": 1000.0,
                "log_every": 1000,  # steps; evaluations log as well
                "eval_every": 0,  # steps; 0 = once an epoch
                "init_from": "",  # workdir of a run to start from
                "patience": 21,  # evaluations without a better one; 0 = never stop early
                "steps_per_dispatch": 1,  # more where a step is short beside the time to start it
                "deterministic": False,  # on GPUs; CPUs are, by their number of cores
                "compilation_cache": "",  # folder of compiled programs, for the next run to start faster
                "grow": False,  # ID tables alone can
            },
            "eval": {
                "metric": "recall@20",  # chooses the best step
                "user_block": 512,  # users and items at once; results do not depend on them
                "item_block": 8192,
                "activity": (1, 5, 10, 20),  # slices of users, from so many training pairs on
            },
            "mesh": {
                "data": 0,  # 0 = all devices
                "model": 1,
                "by_rows": (),  # regexes of what of the state is cut by rows over all devices, such as params/.*_embedding
                "coordinator": "",  # of several processes: host:port of number 0, or auto where JAX finds them itself
                "processes": 1,
                "process_id": 0,
                "connect_seconds": 300,  # until a process gives up looking for the others
                "heartbeat_seconds": 60,  # of silence after which one counts as lost
            },
        }
    )


def _bpr() -> dict:
    return {"l2": 0.1}


def _lightgcn() -> dict:
    return {"layers": 2, "l2": 1e-4}


def _vbpr() -> dict:
    return {"content_width": 64, "l2": 0.1, "l2_content": 0.1}


def _slmrec() -> dict:
    return {"layers": 3, "temperature": 0.2, "ssl_temperature": 0.5, "ssl_weight": 0.01}


def _lattice() -> dict:
    return {"layers": 2, "item_layers": 1, "neighbours": 10, "frozen_share": 0.9, "l2": 1e-5}


def _bm3() -> dict:
    return {"layers": 1, "dropout": 0.5, "content_weight": 2.0, "l2": 1e-3}


def _freedom() -> dict:
    return {
        "layers": 2,  # of the user-item graph
        "item_layers": 1,
        "modality_weights": MODALITY_WEIGHTS,
        "content_weight": 1e-3,  # of the two modality losses
    }


def _em3() -> dict:
    return {
        "layers": 2,
        "item_layers": 1,
        "modality_weights": MODALITY_WEIGHTS,
        "fusion": "fq_former",  # or masked_fq_former, one_flow, two_flow, mean
        "fusion_settings": {
            "queries": 1,
            "layers": 1,
            "heads": 4,
            "ffn_width": 128,
            "dropout": 0.5,
            "layer_chunk": 8192,  # most items at once, computed again in the backward pass; 0 = all, kept
        },
        "cic_weight": 1e-3,  # alpha
        "cic_temperature": 0.5,
        "cic_negatives": 16,  # H, of the batch's distinct items; 0 = all of them
    }


def _em3_as_released() -> dict:
    return {
        "layers": 2,
        "modality_weights": MODALITY_WEIGHTS,
        "queries": 1,
        "dropout": 0.5,
        "cic_weight": 1e-3,
        "cic_temperature": 0.5,
    }


MODELS = {
    "bpr": _bpr,
    "lightgcn": _lightgcn,
    "vbpr": _vbpr,
    "slmrec": _slmrec,
    "lattice": _lattice,
    "bm3": _bm3,
    "freedom": _freedom,
    "em3": _em3,
    "em3_as_released": _em3_as_released,
}
VARIANTS = {
    "em3": "EM3 as the paper has it, the default: its fusion and CIC inside FREEDOM",
    "em3_as_released": "EM3 as its public code computes it",
    "freedom": "FREEDOM: frozen item graphs, a denoised user-item graph",
    "bm3": "BM3: views of dropout, no negatives",
    "lattice": "LATTICE: item graphs that are learnt",
    "slmrec": "SLMRec: self-supervision over modalities",
    "vbpr": "VBPR: BPR with a part that reads content",
    "lightgcn": "LightGCN: interactions alone, over the user-item graph",
    "bpr": "BPR: interactions alone, matrix factorisation",
}
WITHOUT_CONTENT = ("bpr", "lightgcn")
ON_ITEM_GRAPHS = ("lattice", "freedom", "em3", "em3_as_released")
PRUNED = ("freedom", "em3", "em3_as_released")


def get_config(arg: str = "em3"):
    arg = arg or "em3"
    if arg not in MODELS:
        raise ValueError(f"no model '{arg}'; there are: {', '.join(MODELS)}")
    config = _defaults()
    config.model.retrieval = arg
    config.model.retrieval_settings.update(MODELS[arg]())
    if arg in WITHOUT_CONTENT:
        config.data.features = ()
    if arg in ON_ITEM_GRAPHS:
        config.model.item_graph.neighbours = 10
    if arg == "lattice":
        config.model.item_graph.weights = "cosine"
        config.optim.learning_rate = 5e-4
    if arg in PRUNED:
        config.data.edge_dropout = 0.8
    return config
