"""Steps held to their contract: python -m tests.step_contracts <target> <names, with commas> <planted dataset> <pairs dataset>

Prints, as JSON, {name: {"breaches": [...], "contended": [...], "seconds": ...}}: what of the compiled step breaks the contract,
with tables of two lengths, and what of a real batch queues for one row.
"""

import json
import sys
import time

from em3_jax.plan import targets

RANKING = {
    "din": {"content_parts": ("item", "user", "similarity"), "content_events": True},
    "deepfm": {"fusion": "two_flow", "fusion_settings.lora.rank": 2},
    "dcnv2": {"fusion": "mean", "cic.over": "samples"},
    "wide_deep": {"fusion": "one_flow", "fusion_chunk": 64},
    "ids": {"content": "none"},
}
QUEUEING = ("din", "lemur", "freedom")
RETRIEVAL = ("em3", "freedom", "bm3", "lightgcn")


def config_of(name: str, planted: str, pairs: str):
    from configs import base, lemur, retrieval

    if name in RETRIEVAL:
        config = retrieval.get_config(name)
        config.data.root, config.data.batch_size = pairs, 32
        config.model.retrieval_settings.width = 8
        return config
    config = lemur.get_config() if name == "lemur" else base.ranking()
    if name == "pretraining":
        config = base.pretraining(config)
    config.data.root, config.data.features = planted, ("image", "text")
    config.data.batch_size = 64
    if name == "lemur":
        config.model.encoder.update({"width": 16, "layers": 1, "mlp_width": 16, "output": 16})
        config.model.cic.weight = 0.1
        return config
    config.data.history_length = 8
    config.model.precision = "bf16"
    config.model.fusion_settings.update({"width": 16, "ffn_width": 32})
    if name in RANKING:
        config.model.update_from_flattened_dict(RANKING[name])
        config.model.backbone = name if name != "ids" else "din"
    return config


def held(name: str, target, devices, planted: str, pairs: str) -> dict:
    import jax

    from em3_jax.plan import contract, program, sizes
    from em3_jax.training import experiment

    began = time.perf_counter()
    config = config_of(name, planted, pairs)
    parts = experiment.build(config.to_dict(), devices)

    def read(arguments) -> program.Program:
        return program.read(targets.compiled(target, parts.program.train_step, arguments).as_text())

    at_hand = sizes.at_hand(parts)
    has_tables = bool(at_hand.state.tables)
    rows = {"rows": 1 << 18} if has_tables else {}
    now = read(sizes.resized(parts, **rows))
    longer = read(sizes.resized(parts, rows=1 << 21)) if has_tables else None
    donated = len(jax.tree.leaves(at_hand.state))
    found = contract.breaches(now, longer, donated=donated)
    contended = []
    if name in QUEUEING and target.platform != "cpu":  # which scatters one row after the other
        here = experiment.build(config.to_dict(), jax.devices("cpu")[:1])
        step = here.program.train_step
        arguments = (here.program.init(), here.work.constants, here.program.place(here.work.source[0]))
        scatters = contract.contention(step, *arguments, platform=target.platform)
        contended = [str(one.breach) for one in scatters if one.breach]
    seconds = round(time.perf_counter() - began, 1)
    return {"breaches": list(map(str, found)), "contended": contended, "seconds": seconds}


def main() -> None:
    target = targets.parse(sys.argv[1])
    targets.prepare(target)
    with targets.quietly():
        devices = targets.devices(target)
        result = {name: held(name, target, devices, *sys.argv[3:5]) for name in sys.argv[2].split(",")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
