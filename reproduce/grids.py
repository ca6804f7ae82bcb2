"""Table 10 of the EM3 paper as data: for each model the settings that are tried, and the numbers that were published.

The paper's own row was chosen by its score on test. The logs released with it tell what validation would have chosen, which is
printed beside it where it is known.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
SETTINGS = "model.retrieval_settings."


class Model(NamedTuple):
    """A row of the table.

    Attributes:
      name: argument of configs/retrieval.py.
      label: on the page.
      grid: config key -> values to try; all combinations are.
    """

    name: str
    label: str
    grid: Mapping[str, tuple]

    def points(self) -> dict[str, dict[str, Any]]:
        """{name of a grid point: {config key: value}}; the first is the one that wins ties."""
        result = {}
        for values in itertools.product(*self.grid.values()):
            changes = dict(zip(self.grid, values, strict=True))
            parts = [f"{key.rpartition('.')[2]}{value}" for key, value in changes.items()]
            result["_".join([self.name, *parts])] = changes
        return result


_EM3 = {"queries": (1, 2), "dropout": (0.5, 0.8), "cic_temperature": (0.5, 0.1)}  # the paper's grid
_EM3_KEYS = {"queries": "fusion_settings.queries", "dropout": "fusion_settings.dropout"}  # where they stand in `clean`

MODELS = (
    Model("bpr", "BPR", {f"{SETTINGS}l2": (0.1, 0.2, 0.5, 0.01)}),
    Model("lightgcn", "LightGCN", {f"{SETTINGS}layers": (2, 3), f"{SETTINGS}l2": (1e-4, 1e-2)}),
    Model("vbpr", "VBPR", {f"{SETTINGS}l2": (0.1, 0.01), f"{SETTINGS}l2_content": (0.1, 1.0)}),
    Model("slmrec", "SLMRec", {f"{SETTINGS}ssl_weight": (0.01, 0.1), f"{SETTINGS}temperature": (0.2, 0.1)}),
    Model("lattice", "LATTICE", {"optim.learning_rate": (5e-4, 1e-3), f"{SETTINGS}l2": (1e-5, 0.0)}),
    Model("bm3", "BM3", {f"{SETTINGS}layers": (1, 2), f"{SETTINGS}l2": (1e-3, 1e-4)}),
    Model("freedom", "FREEDOM", {"data.edge_dropout": (0.8, 0.9), f"{SETTINGS}content_weight": (1e-3, 0.0)}),
    Model("em3", "EM3", {SETTINGS + _EM3_KEYS.get(key, key): values for key, values in _EM3.items()}),
    Model("em3_as_released", "EM3, as released", {SETTINGS + key: values for key, values in _EM3.items()}),
)
BASELINE = "freedom"  # which the gains are counted against

PRINTED = {  # the paper's table 10
    "baby": {
        "bpr": (0.0357, 0.0575, 0.0192, 0.0249),
        "lightgcn": (0.0479, 0.0754, 0.0257, 0.0328),
        "vbpr": (0.0423, 0.0663, 0.0223, 0.0285),
        "slmrec": (0.0521, 0.0772, 0.0289, 0.0354),
        "lattice": (0.0551, 0.0852, 0.0292, 0.0369),
        "bm3": (0.0564, 0.0883, 0.0301, 0.0383),
        "freedom": (0.0624, 0.0980, 0.0324, 0.0416),
        "em3": (0.0646, 0.1032, 0.0336, 0.0435),
        "em3_as_released": (0.0646, 0.1032, 0.0336, 0.0435),
    },
    "sports": {
        "bpr": (0.0432, 0.0653, 0.0241, 0.0298),
        "lightgcn": (0.0569, 0.0864, 0.0311, 0.0387),
        "vbpr": (0.0560, 0.0854, 0.0307, 0.0383),
        "slmrec": (0.0663, 0.0990, 0.0365, 0.0450),
        "lattice": (0.0621, 0.0957, 0.0335, 0.0421),
        "bm3": (0.0656, 0.0980, 0.0355, 0.0438),
        "freedom": (0.0713, 0.1075, 0.0384, 0.0477),
        "em3": (0.0726, 0.1099, 0.0391, 0.0488),
        "em3_as_released": (0.0726, 0.1099, 0.0391, 0.0488),
    },
}

# Recall@20 and NDCG@20 (None = not in the logs) on test of the grid point that validation chooses in the released logs.
CHOSEN_ON_VALIDATION: dict[str, dict[str, tuple[float, float | None]]] = {
    "baby": {"freedom": (0.0984, 0.0420), "em3": (0.1003, 0.0426), "em3_as_released": (0.1003, 0.0426)},
    "sports": {"freedom": (0.1063, None), "em3": (0.1099, 0.0488), "em3_as_released": (0.1099, 0.0488)},
}


def published_name(folder: str) -> str:
    """ "baby", "sports" or "": which of the paper's datasets a folder's name speaks of."""
    return next((name for name in PRINTED if name in folder.lower()), "")
