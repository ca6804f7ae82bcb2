"""Steps held to their contract: python -m tests.step_contracts <target, or "queues"> <names, with commas> <folder with the data>

Prints, as JSON, {name: {"found": [...], "seconds": ...}}: what of the step that is compiled for a target breaks the contract,
for some with tables of two lengths; or what of a real batch queues for one row on a GPU or a TPU, which takes no compiler
of theirs; and the processor's time.
"""

import contextlib
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from em3_jax.plan import targets

_SCORES = {"content_score": "cosine", "backbone_settings.attention_score": "mlp"}
RANKING = {
    "din": {"content_parts": ("item", "user", "similarity"), "content_events": True},
    "deepfm": {"fusion": "two_flow", "fusion_settings.lora.rank": 2},
    "dcnv2": {"fusion": "mean", "cic.over": "samples"},
    "wide_deep": {"fusion": "one_flow", "fusion_chunk": 64},
    "deepctr": {"content_aggregator": "multi_query"},
    "ids": {"content": "none"},
    "lora": {"fusion": "masked_fq_former", "fusion_settings.layer_chunk": 32, "cic.negatives": 0, **_SCORES},
    "frozen": {"content": "pre_extracted"},
    "raw": {},
}
RETRIEVAL = ("bpr", "lightgcn", "vbpr", "slmrec", "lattice", "bm3", "freedom", "em3", "em3_as_released")
NAMES = (*RANKING, "lemur", "pretraining", *RETRIEVAL)
GROWING = {
    "din": (1 << 14, 1 << 17),
    "lemur": (1 << 14, 1 << 17),
    "ids": None,
}  # the others have their tables from the same hands
ENCODERS = {"image": "swin", "text": "bert"}


def write_data(root: Path) -> None:
    """The data of all names: planted clicks, with raw content too; pairs; and items with encoders."""
    from em3_jax.data.readers.synthetic import synthetic
    from em3_jax.features import extract
    from tests import raw_items
    from tests.features import test_convert
    from tests.planted_pairs import planted_pairs

    synthetic(root / "planted", interactions=4000, users=120, items=400, seed=1, raw=True)
    planted_pairs(root / "pairs")
    raw_items.write_items(root)
    raw_items.write_swin(root / "swin")
    bert = test_convert.write(root / "bert", test_convert.bert_tensors())
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *raw_items.WORDS[:4]]))
    raw_items.prepare(root, root / "raw")
    settings = {"image": {"random_weights": 0, "images": root / "photos"}, "text": {"fields": ("title", "tag")}}
    for modality, encoder in ENCODERS.items():
        extract.extract(root / "raw", modality=modality, encoder=str(root / encoder), raw=True, **settings[modality])


def config_of(name: str, root: Path):
    from configs import base, lemur, retrieval

    if name in RETRIEVAL:
        config = retrieval.get_config(name)
        config.data.root, config.data.batch_size = str(root / "pairs" / "data"), 256
        config.model.retrieval_settings.width = 8
        return config
    config = lemur.get_config() if name == "lemur" else base.ranking()
    if name == "pretraining":
        config = base.pretraining(config)
    config.data.root, config.data.batch_size = str(root / "planted"), 64
    if name == "lemur":
        config.model.encoder.update({"width": 16, "layers": 1, "mlp_width": 16, "output": 16})
        config.model.cic.weight = 0.1
        return config
    config.data.features, config.data.history_length = ("image", "text"), 8
    config.model.precision = "bf16"
    config.model.fusion_settings.update({"width": 16, "ffn_width": 32})
    if name == "lora":
        config = base.lora(config, rank=2)
    if name == "raw":
        base.raw(config, **{modality: str(root / encoder) for modality, encoder in ENCODERS.items()})
        config.data.root, config.optim.multipliers = str(root / "raw"), ()  # encoders train, too
    if name in RANKING:
        config.model.update_from_flattened_dict(RANKING[name])
        config.model.backbone = name if name in ("deepfm", "dcnv2", "wide_deep", "deepctr") else "din"
    return config


def breaches(name: str, target, devices, root: Path) -> list[str]:
    import jax

    from em3_jax.plan import contract, program, sizes
    from em3_jax.training import experiment

    parts = experiment.build(config_of(name, root).to_dict(), devices)

    def read(arguments) -> program.Program:
        return program.read(targets.compiled(target, parts.program.train_step, arguments).as_text())

    at_hand = sizes.at_hand(parts)
    few, many = GROWING.get(name) or (None, None)  # items, where feature tables and the bank grow, too
    if name == "lemur" and target.platform == "tpu":  # which brings the masks of raw content into its fast memory
        few = many = None
    now = read(sizes.resized(parts, 1 << 18, few) if name in GROWING else at_hand)
    longer = read(sizes.resized(parts, 1 << 21, many)) if name in GROWING else None
    donated = len(jax.tree.leaves(at_hand.state))
    return list(map(str, contract.breaches(now, longer, donated=donated)))


def contended(name: str, root: Path) -> list[str]:
    """Rows that GPUs and TPUs, which scatter one row after the other, would queue for; in a batch of 256 and more."""
    import jax

    from em3_jax.plan import contract
    from em3_jax.training import experiment

    config = config_of(name, root)
    config.data.batch_size = 256
    parts = experiment.build(config.to_dict(), jax.devices("cpu")[:1])
    random = np.random.default_rng(0)  # which rows are named does not depend on parameters; a graph that is learnt does

    def filled(shape):
        is_float = np.issubdtype(shape.dtype, np.floating)
        return (random.standard_normal(shape.shape) if is_float else np.zeros(shape.shape)).astype(shape.dtype)

    state = jax.tree.map(filled, parts.program.shapes)
    arguments = (state, parts.work.constants, parts.program.place(parts.work.source[0]))
    found = []
    for platform in ("gpu", "tpu"):
        scatters = contract.contention(parts.program.train_step, *arguments, platform=platform)
        found += [f"{platform}: {one.breach}" for one in scatters if one.breach]
    return found


def main() -> None:
    queues, names, root = sys.argv[1] == "queues", sys.argv[2].split(","), Path(sys.argv[3])
    target = targets.parse("cpu" if queues else sys.argv[1])
    targets.prepare(target)
    warnings.simplefilter("ignore")
    if not root.exists():
        with contextlib.redirect_stdout(sys.stderr):
            write_data(root)
    result = {}
    with targets.quietly():
        devices = targets.devices(target)
        for name in names:
            began = time.process_time()
            found = contended(name, root) if queues else breaches(name, target, devices, root)
            result[name] = {"found": found, "seconds": round(time.process_time() - began, 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
