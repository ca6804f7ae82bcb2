"""Memory and step time of long histories, full training against LoRA (EM3, section 3.3.2): python -m benchmarks.lora

Planted data with 1,000 and more events before every row, so that all T slots of every history are filled; sizes as in
`benchmarks/ranking.py` but for B and the number of users. Memory is XLA's own account of the compiled step: arguments +
outputs + temporaries, less what outputs share with donated arguments. It is exact, so what does not fit is compiled and
not run. On an accelerator the allocator's peak stands beside it, of a process for each case. Results: benchmarks/NOTES.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.ranking import Trainer, planted_config
from benchmarks.timing import interleaved, milliseconds
from configs import base
from em3_jax.core import trees
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.training import experiment

FORMS = ("distinct items", "all slots")
FUSIONS = ("fq_former", "masked_fq_former", "one_flow", "two_flow", "mean")
RANK, CHUNK = 4, 1024


class Case(NamedTuple):
    """History length T; how the fusion module trains: "full", or stop_gradient of LoRA; most items at once, 0 = all."""

    length: int
    training: str
    chunk: int = 0

    def __str__(self) -> str:
        training = "full" if self.training == "full" else f"LoRA, {self.training}"
        return f"T {self.length} {training}" + ", chunks" * bool(self.chunk)


CASES = (
    Case(20, "full"),
    Case(50, "full"),
    Case(50, "output"),
    Case(50, "weights"),
    Case(50, "full", CHUNK),
    Case(50, "output", CHUNK),
    Case(200, "output", CHUNK),
    Case(1000, "output", CHUNK),
)


def config_of(root: Path, case: Case, batch_size: int):
    config = planted_config(root)
    config.data.batch_size, config.data.history_length = batch_size, case.length
    if case.training != "full":
        config = base.lora(config, RANK)
        config.model.fusion_settings.lora.stop_gradient = case.training
    config.model.fusion_chunk = case.chunk
    return config


def trainable(parts: experiment.Experiment) -> dict[str, int]:
    """Parameters that train: of the "fusion" module, and of all dense "layers"; ID tables are not counted."""
    leaves = trees.named_leaves(jax.eval_shape(parts.program.init).params)
    sizes = {name: leaf.size for name, leaf in leaves.items() if not parts.program.frozen[name]}
    fusion = sum(size for name, size in sizes.items() if name.startswith("model/fusion/"))
    return {"fusion": fusion, "layers": sum(sizes.values())}


def measure(root: Path, case: Case, form: str, batch_size: int, limit: float) -> dict:
    """What is known of a case without timing it; on an accelerator it takes two steps, for the peak, if `limit` GB allow."""
    trainer = Trainer(config_of(root, case, batch_size), distinct_items=form == "distinct items")
    memory = trainer.compiled.program.memory_analysis()
    result = {
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "items": len(trainer.batch["item_id"]),
        "filled": float(np.mean(trainer.batch["history_mask"])),
        "compile": trainer.compile_seconds,
        "trainable": trainable(trainer.parts),
        "peak": None,
    }
    result["total"] = result["temporaries"] + result["arguments"] + result["outputs"]
    device = jax.local_devices()[0]
    if device.memory_stats() and result["total"] < limit * 1e9:
        for _ in range(2):
            jax.block_until_ready(trainer())
        result["peak"] = device.memory_stats()["peak_bytes_in_use"]
    return result


def in_own_process(arguments: list[str], case: Case, form: str) -> dict:
    """`measure` in a process of its own: an allocator's peak never falls again."""
    command = [sys.executable, "-m", "benchmarks.lora", *arguments, "--measure", str(CASES.index(case)), form]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def time_form(root: Path, form: str, cases: list[Case], batch_size: int, repeats: int) -> dict[Case, np.ndarray]:
    """Seconds of each case's steps, the cases in turns."""
    if not (cases and repeats):
        return {}
    trainers = {case: Trainer(config_of(root, case, batch_size), form == "distinct items") for case in cases}
    return interleaved(trainers, repeats)


def row(case: Case, found: dict, seconds: np.ndarray | None) -> str:
    sizes = "".join(f"{found[name] / 1e6:>12,.0f}" for name in ("temporaries", "arguments", "outputs", "total"))
    peak = "" if found["peak"] is None else f"   peak {found['peak'] / 1e6:,.0f} MB"
    time = "not run" if seconds is None else milliseconds(seconds)
    counts = f"{found['trainable']['fusion']:>10,}{found['trainable']['layers']:>10,}"
    return f"{case!s:<26}{found['items']:>10,}{sizes}{counts}   {time}{peak}"


def ratios(found: dict[Case, dict], seconds: dict[Case, np.ndarray]) -> list[str]:
    """What the paper claims to be at most 1 (table 4): LoRA at T = 50 against full training at T = 20; and at T = 50."""
    lines = []
    pairs = [(Case(50, "output", CHUNK), 20), (Case(50, "output"), 20), (Case(50, "weights"), 20)]
    for one, length in [*pairs, (Case(50, "output"), 50), (Case(50, "weights"), 50)]:
        other = Case(length, "full")
        parts = [f"{name} {found[one][name] / found[other][name]:.2f}" for name in ("total", "temporaries")]
        if one in seconds and other in seconds:
            parts.append(f"time {seconds[one].min() / seconds[other].min():.2f} (minima)")
        lines.append(f"{one} / {other}: " + ", ".join(parts))
    return lines


def table(root: Path, arguments: list[str], batch_size: int, limit: float, repeats: int) -> None:
    """The table of all cases, and the ratios, of each form."""
    found = {form: {case: in_own_process(arguments, case, form) for case in CASES} for form in FORMS}
    print(f"jax {jax.__version__}, {jax.devices()}, B {batch_size}, rank {RANK}; MB; trainable parameters")
    for form in FORMS:
        fit = [case for case in CASES if found[form][case]["total"] < limit * 1e9]
        seconds = time_form(root, form, fit, batch_size, repeats)
        print(f"\n{form:<26}{'items':>10}{'temporaries':>12}{'arguments':>12}{'outputs':>12}{'total':>12}"
              f"{'fusion':>10}{'layers':>10}   a step")  # fmt: skip
        for case in CASES:
            print(row(case, found[form][case], seconds.get(case)))
        print("\n".join(ratios(found[form], seconds)))
    filled = {case: value["filled"] for case, value in found[FORMS[0]].items()}
    print("\nfilled history slots: " + ", ".join(f"T {case.length} {share:.2%}" for case, share in filled.items()))


def budgets(root: Path) -> None:
    """Parameters of each fusion variant at the same settings, and of its adapters."""
    print(f"\nparameters of the fusion variants{'':>4}{'full':>10}{f'rank {RANK}':>10}")
    for fusion in FUSIONS:
        counts = []
        for training in ("full", "output"):
            config = config_of(root, Case(20, training), 64)
            config.model.fusion = fusion
            counts.append(trainable(experiment.build(config.to_dict()))["fusion"])
        print(f"{fusion:<37}" + "".join(f"{count:>10,}" for count in counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each case; 0 = memory alone")
    parser.add_argument("--limit", type=float, default=8.0, help="GB; a case that needs more is not run")
    parser.add_argument(
        "--data", type=Path, help="the planted dataset; made here if it is not there (default: made anew)"
    )
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        case, form = CASES[int(args.measure[0])], args.measure[1]
        print(json.dumps(measure(args.data, case, form, args.batch_size, args.limit)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = args.data or Path(folder) / "planted"
        if not root.exists():
            synthetic(root, interactions=100_000, users=2_000, items=7_500, token_width=768, choices=1200.0)
        print(f"{open_dataset(root).num_items:,} items")
        shared = [f"--data={root}", f"--batch-size={args.batch_size}", f"--limit={args.limit}"]
        table(root, shared, args.batch_size, args.limit, args.repeats)
        budgets(root)


if __name__ == "__main__":
    main()
