"""What a plan says of a step: whether it fits, what it is bound by, what would change that."""

import dataclasses
import math
from typing import Any

import jax

from em3_jax.plan import cost, program
from em3_jax.plan.sizes import Arguments
from em3_jax.plan.targets import Target
from em3_jax.tables import packing

SHORTEST = 1e-6  # seconds, of a kernel
LARGEST = 5  # lines of the source that are shown
_ENCODERS = ("em3_jax/models/encoders/", "em3_jax/features/in_model")
_SHARE = 0.2  # of a device's memory, from which on a part of it is worth moving


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a step on a target; None = not known. Bytes and FLOPs are of one device.

    Attributes:
      target: as it was asked for.
      devices: how many.
      versions: of JAX and of the compiler.
      examples: B, of all devices.
      sizes: what else the step was compiled for, in words.
      memory: bytes by part: "state", "features", "batch", "temporaries", "all".
      room: bytes of a device.
      flops, bytes_accessed: of a step; `counted_by` says by whom.
      bytes_by_text: the same bytes as the program's text has them, which those of `items` are a part of.
      kernels: of a step.
      collectives: (kind, how many, bytes that a device holds after them).
      seconds: by part, at the chip's peak rates: "compute", "memory", "exchange", "host" (the batch).
      items: the lines of the source that move most.
      assumptions: what the times rest on.
      changes: what would help, in words.
      encoders: share of the bytes moved, by the program's text, that encoders in the model move;
        None without such.
    """

    target: str
    devices: int
    versions: dict[str, str]
    examples: int
    sizes: dict[str, int]
    memory: dict[str, int]
    room: float | None
    flops: float
    bytes_accessed: float
    counted_by: str
    bytes_by_text: float
    kernels: int
    collectives: list[tuple[str, int, int]]
    seconds: dict[str, float | None]
    items: list[cost.Item]
    assumptions: list[str]
    changes: list[str]
    encoders: float | None

    @property
    def fits(self) -> bool | None:
        """Whether it fits into a device; None where its memory is not known."""
        return None if self.room is None else self.memory["all"] <= self.room

    @property
    def bound_by(self) -> str | None:
        """The part that takes longest."""
        known = {name: value for name, value in self.seconds.items() if value is not None}
        return max(known, key=lambda name: known[name]) if known else None

    @property
    def step_seconds(self) -> float | None:
        """A step at best: compute and memory at once, the exchange beside neither; the next batch comes meanwhile."""
        if self.seconds["compute"] is None or self.seconds["memory"] is None:
            return None
        computed = max(self.seconds["compute"], self.seconds["memory"]) + (self.seconds["exchange"] or 0.0)
        return max(computed, self.seconds["host"] or 0.0)

    @property
    def is_small(self) -> bool:
        """Whether kernels would have to be so short that starting them is what takes the time."""
        return self.step_seconds is not None and self.step_seconds < self.kernels * SHORTEST

    def as_json(self) -> dict[str, Any]:
        """All of it, with what follows from it."""
        return dataclasses.asdict(self) | {
            "items": [item._asdict() for item in self.items],
            "fits": self.fits,
            "bound_by": self.bound_by,
            "is_small": self.is_small,
            "step_seconds": self.step_seconds,
            "examples_per_second": None if self.step_seconds is None else self.examples / self.step_seconds,
        }


def make(
    target: Target,
    compiled: Any,
    arguments: Arguments,
    *,
    examples: int,
    items: int,
    precision: str,
    versions: dict[str, str],
    assumptions: list[str],
) -> Plan:
    """The plan of a compiled step.

    Args:
      compiled: `jax.stages.Compiled` of the step.
      arguments: that it was compiled for.
      examples: B.
      items: of the catalogue.
      precision: of the activations, "f32" or "bf16".
      versions: see `Plan`.
      assumptions: what the sizes rest on.
    """
    read = program.read(compiled.as_text())
    chip, found = target.chip, cost.items(read)
    memory = _memory(compiled.memory_analysis(), arguments)
    counts = compiled.cost_analysis() or {}
    by_compiler = counts.get("flops", -1) > 0 and counts.get("bytes accessed", -1) > 0
    flops = counts["flops"] if by_compiler else float(sum(item.flops for item in found))
    by_text = float(sum(item.bytes for item in found))
    moved = counts["bytes accessed"] if by_compiler else by_text
    encoders = _encoders(found) if "encoders" in arguments.state.params else None
    kinds = program.exchanges(read)
    exchanged = sum(2 * size if kind == "all-reduce" else size for kind, (_, size) in kinds.items())
    peak = chip.bf16 if precision == "bf16" else chip.f32
    seconds = {
        "compute": flops / peak if peak else None,
        "memory": moved / chip.bandwidth if chip.bandwidth else None,
        "exchange": exchanged / chip.link if chip.link else None,
        "host": memory["batch"] / chip.host if chip.host else None,
    }
    return Plan(
        target=target.text,
        devices=target.size,
        versions=versions,
        examples=examples,
        sizes={"items": items, **_sizes(arguments)},
        memory=memory,
        room=chip.memory,
        flops=flops,
        bytes_accessed=moved,
        counted_by="the compiler" if by_compiler else "em3_jax, from the program's text",
        bytes_by_text=by_text,
        kernels=sum(times for _, times in read.kernels()),
        collectives=[(kind, number, size) for kind, (number, size) in sorted(kinds.items())],
        seconds=seconds,
        items=[item for item in found if item.source][:LARGEST],
        assumptions=[*assumptions, *_assumed(target, precision, kinds)],
        changes=_changes(memory, chip.memory, arguments, precision, seconds, items, encoders),
        encoders=encoders,
    )


def _assumed(target: Target, precision: str, kinds: dict) -> list[str]:
    chip = target.chip
    peak = chip.bf16 if precision == "bf16" else chip.f32
    if peak is None or chip.bandwidth is None or chip.link is None:
        return [f"peak rates: {chip.source}"]
    rates = (
        f"{chip.name}: {peak / 1e12:,.0f} TFLOP/s, {chip.bandwidth / 1e9:,.0f} GB/s of memory, "
        f"{chip.link / 1e9:,.0f} GB/s of links, a device ({chip.source})"
    )
    how = "products and memory at once at these rates, which no step reaches"
    found = [rates, how + ("; what is exchanged beside neither, an all-reduce moving each byte twice" if kinds else "")]
    if chip.host is None:
        found.append("how fast the host brings a batch is not known, and not counted")
    else:
        found.append(f"{chip.host / 1e9:,.0f} GB/s from the host, for the next batch while a step runs")
    if chip.machine is not None and target.size > chip.machine:
        found.append(f"links between machines of {chip.machine} are as fast as within one, which they are not")
    return found


def _encoders(items: list[cost.Item]) -> float:
    """See `Plan.encoders`."""
    own = sum(item.bytes for item in items if item.source.startswith(_ENCODERS))
    return own / max(sum(item.bytes for item in items), 1)


def _per_device(tree: Any) -> int:
    """Bytes of a tree on one device."""

    def part(leaf: Any) -> tuple[int, ...]:
        return leaf.sharding.shard_shape(leaf.shape) if getattr(leaf, "sharding", None) else leaf.shape

    return sum(leaf.dtype.itemsize * math.prod(part(leaf)) for leaf in jax.tree.leaves(tree))


def _memory(analysis: Any, arguments: Arguments) -> dict[str, int]:
    """Bytes of a device by part. What the program writes takes the place of what it was given, or counts too."""
    parts = {
        "state": _per_device(arguments.state),
        "features": _per_device(arguments.constants),
        "batch": _per_device(arguments.batch),
    }
    new = max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0)
    everything = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new
    return parts | {"temporaries": analysis.temp_size_in_bytes, "all": everything}


def _sizes(arguments: Arguments) -> dict[str, int]:
    found = {}
    if arguments.state.tables:
        found["table rows"] = len(arguments.state.tables["embedding"])
    if arguments.state.memory:
        found["memory bank rows"] = len(arguments.state.memory["vector"])
    batch = arguments.batch
    for name, room, block in (("items", "item_room", "item_id"), ("rows", "row_room", "row_id")):
        if block in batch:
            found[f"distinct {name} a step"] = len(batch[room] if room in batch else batch[block])
    return found


def _changes(
    memory: dict[str, int],
    room: float | None,
    arguments: Arguments,
    precision: str,
    seconds: dict,
    items: int,
    encoders: float | None,
) -> list[str]:
    changes, gb = [], 1e9
    share = lambda name: memory[name] / room if room else 0.0  # noqa: E731
    if share("features") > _SHARE:
        an_item = sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in jax.tree.leaves(arguments.constants))
        place = arguments.batch.get("item_room", arguments.batch.get("item_id"))
        a_step = an_item / max(items, 1) * math.prod(place.sharding.shard_shape(place.shape)) / gb
        changes.append(
            f"features on the host (config.data.placement=host): -{memory['features'] / gb:,.1f} GB, and "
            f"{a_step:,.2f} GB come from the host in each step"
        )
    tables = _per_device(arguments.state.tables)
    if room and tables / room > _SHARE:
        changes.append(f"twice the devices: -{tables / 2 / gb:,.1f} GB of tables each")
        if "mean" in arguments.state.tables["slots"]:
            slots = _per_device(packing.unpacked(arguments.state.tables["slots"]))
            changes.append(f"config.tables.optimizer=rowwise_adagrad: -{slots / gb:,.1f} GB of slots, or nearly")
    if share("temporaries") > _SHARE:
        changes.append(
            "a smaller config.data.batch_size, or config.model.fusion_chunk: temporaries grow with the batch"
        )
    others = max(memory[name] for name in ("state", "features", "batch"))
    if encoders and encoders > 0.5 and memory["temporaries"] > others:
        changes.append(
            "config.model.encoder_chunk=8: activations of so many pictures at once, computed again; or "
            "config.model.encoder_trains=head: those of what trains alone"
        )
    if precision == "f32":
        changes.append("config.model.precision=bf16: activations half as wide, sums still f32")
    known = {name: value for name, value in seconds.items() if value is not None}
    if known and max(known, key=lambda name: known[name]) == "exchange":
        changes.append("a larger config.data.batch_size: gradients are exchanged once a step, whatever its size")
    return changes
