"""The same training step in PyTorch eager: python -m benchmarks.peer_torch [--repeats 20] [--compile]

EM3's ranking step of benchmarks/ranking.py (B 1024, T 50, D 64, N 6 tokens of 768, planted data), written a second time as one
would write one's own in PyTorch: the same batch, parameters, losses, clipping, AdamW, and row-wise Adagrad on the touched rows.
`tests/benchmarks/test_peer_torch.py` holds losses, gradients and updated parameters of both equal.
Two forms: each distinct item encoded once, and each of the B x (1 + T) slots encoded. Results: benchmarks/NOTES.md.

Forms take turns, each in a process of its own, as a user has it. In one process PyTorch's blocks lie where XLA's 300 MB of
temporaries would, which are then mapped anew in every step (--one-process).
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.peer_model import Peer, PeerStep, tensors
from benchmarks.ranking import Trainer, planted_config
from benchmarks.timing import interleaved, milliseconds
from em3_jax.core import trees
from em3_jax.data.readers.synthetic import synthetic

JAX = "JAX, distinct items"
FORMS = [JAX, "torch, distinct items", "torch.compile, distinct", "torch, all slots"]


def peer_of(trainer: Trainer, config: Mapping[str, Any], **options) -> PeerStep:
    """The step that starts where `trainer` stands, on its batch; options as of `PeerStep`."""
    state, features, batch = jax.device_get((trainer.state, trainer.parts.work.constants, trainer.batch))
    table = state.tables["embedding"]
    peer = Peer(config, trainer.parts.work.dataset.fields, trees.named_leaves(state.params), features)
    return PeerStep(peer, table, tensors(batch, trainer.parts.work.dataset.fields.num_rows), config, **options)


def load(form: str, root: Path) -> Callable[[], Any]:
    """The step named `form`, one of FORMS, on the first batch of the planted data in `root`."""
    config = planted_config(root)
    trainer = Trainer(config, distinct_items=form != "torch, all slots")
    return trainer if form == JAX else peer_of(trainer, config.to_dict(), compiled=form == "torch.compile, distinct")


class Remote:
    """A form in a process of its own; a call lets it do one step, and the others wait."""

    def __init__(self, form: str, root: Path, *flags: str):
        command = [sys.executable, "-m", "benchmarks.peer_torch", "--serve", form, "--root", str(root), *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __call__(self) -> None:
        self.process.stdin.write("step\n")
        self.faults = int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Local:
    """A form in this process."""

    def __init__(self, form: str, root: Path, *flags: str):
        self.step = load(form, root)

    def __call__(self) -> None:
        before = page_faults()
        jax.block_until_ready(self.step())
        self.faults = page_faults() - before

    def close(self) -> None:
        del self.step


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def serve(form: str, root: Path) -> None:
    """Does a step for each line of stdin, and answers with the pages that it had to map."""
    step = Local(form, root)
    for _ in sys.stdin:
        step()
        print(step.faults, flush=True)


def compare(forms: list[str], root: Path, repeats: int, kind: Callable, flags: list[str]) -> None:
    """Prints the time of each form's step, and its ratio to that of the first."""
    variants = {form: kind(form, root, *flags) for form in forms}
    seconds = interleaved(variants, repeats)
    for form, value in seconds.items():
        least, middle = (f(value) / f(seconds[forms[0]]) for f in (np.min, np.median))
        print(
            f"{form:<24}{milliseconds(value):<30}{least:6.2f} x by minima, {middle:.2f} x by medians; "
            f"{variants[form].faults:,} page faults in the last step"
        )
        variants[form].close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="of the steps on distinct items; of all slots half")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; XLA takes all cores")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which needs a C++ compiler")
    parser.add_argument("--one-process", action="store_true", help="all forms in one process, and so in one heap")
    parser.add_argument("--default-malloc", action="store_true", help="without core.allocator, to compare")
    parser.add_argument("--serve", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.serve:
        return serve(args.serve, args.root)
    print(f"jax {jax.__version__}, {jax.devices()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    flags = [f"--threads={args.threads}", *["--default-malloc"] * args.default_malloc]
    kind = Local if args.one_process else Remote
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "planted"
        synthetic(root, interactions=500_000, users=20_000, items=7_500, token_width=768)
        compare(FORMS[: 3 if args.compile else 2], root, args.repeats, kind, flags)
        # Apart: a step with gigabytes of temporaries among them would cost the next one its caches.
        compare([JAX, FORMS[-1]], root, max(args.repeats // 2, 3), kind, flags)
    print("targets: torch, distinct items at least 1.0 x; torch, all slots at least 8 x")


if __name__ == "__main__":
    main()
