"""Retrieval on MMRec folders (EM3, section 4.6): eight models. All items are ranked, Recall@20 chooses on validation.

em3 prepare mmrec --source <folder> --out data/baby
python train.py --config=configs/retrieval.py:em3 --config.data.root=data/baby --workdir=runs/em3-baby
python eval.py --workdir=runs/em3-baby --split=test

The argument is the model: em3 (the default), em3_as_released, freedom, bm3, lattice, slmrec, vbpr, lightgcn or bpr. Settings are
those of MMRec's configs (Zhou, MM Asia 2023 Workshops) and of the code released with EM3, where they tell; an L2 weight is that
of squared norms, as the models' papers have it. Table 10 tries the grids: `em3 reproduce --table 10`.

Expected Recall@20 on tiktok, 3 seeds (docs/results.md): em3 0.0918 ± 0.0026, freedom 0.0884 ± 0.0012.
"""

import inspect

from em3_jax.config import parse, schema
from em3_jax.config.schema.retrieval import MODELS, RetrievalSettings

VARIANTS = {name: (inspect.getdoc(model) or "").rstrip(".") for name, model in MODELS.items()}
VARIANTS["em3"] = f"the default: {VARIANTS['em3']}"
WITHOUT_CONTENT = ("bpr", "lightgcn")
ON_ITEM_GRAPHS = ("lattice", "freedom", "em3", "em3_as_released")
PRUNED = ("freedom", "em3", "em3_as_released")


def get_config(arg: str = "em3"):
    arg = arg or "em3"
    if arg not in MODELS:
        raise ValueError(f"no model '{arg}'; there are: {', '.join(MODELS)}")
    model = RetrievalSettings(retrieval=arg, retrieval_settings=MODELS[arg]())
    config = parse.editable(schema.Retrieval(model=model))
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
