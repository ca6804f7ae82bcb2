"""A plan as text."""

import textwrap

from em3_jax.core import terminal
from em3_jax.plan import chips
from em3_jax.plan.report import Plan

_WIDTH = terminal.WIDTH


def text(plan: Plan) -> str:
    """One page."""
    lines = [f"{plan.target}: {plan.devices:,} device{'s' if plan.devices > 1 else ''}; {_versions(plan)}"]
    sizes = "; ".join(f"{value:,} {name}" for name, value in {"examples a step": plan.examples, **plan.sizes}.items())
    lines += [sizes, "", *_memory(plan), "", *_cost(plan), "", *_exchange(plan), *_items(plan)]
    if plan.changes:
        lines += ["", "what would change it"] + [f"  {change}" for change in plan.changes]
    lines += ["", "assumed"] + [f"  {line}" for line in plan.assumptions]
    return "\n".join(part for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    """A line in as many as the page is wide, those that follow further in."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]


def size(count: float) -> str:
    """1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _versions(plan: Plan) -> str:
    return ", ".join(f"{name} {version}" for name, version in plan.versions.items())


def _memory(plan: Plan) -> list[str]:
    verdict = {True: "fits", False: "DOES NOT FIT", None: "room not known"}[plan.fits]
    of = "" if plan.room is None else f" of {size(plan.room)}, {plan.memory['all'] / plan.room:.1%}"
    parts = [f"{name} {size(plan.memory[name])}" for name in ("state", "features", "batch", "temporaries")]
    lines = [f"memory       {verdict}: {size(plan.memory['all'])} a device{of}", f"             {', '.join(parts)}"]
    is_gpu = plan.target.lower().partition(":")[0] in chips.CHIPS and _chip(plan).gpu is not None
    if is_gpu and plan.fits and plan.room and plan.memory["all"] > 0.75 * plan.room:
        lines.append("             of which JAX takes 75 % unless XLA_PYTHON_CLIENT_MEM_FRACTION=.95, say, is set")
    return lines


def _chip(plan: Plan) -> chips.Chip:
    return chips.CHIPS[plan.target.lower().partition(":")[0]]


def _cost(plan: Plan) -> list[str]:
    lines = [
        f"a step       {plan.flops / 1e9:,.1f} GFLOP, {size(plan.bytes_accessed)} moved a device, counted by {plan.counted_by}"
    ]
    if plan.encoders is not None:
        lines.append(
            f"             {plan.encoders:.0%} of what the program's text moves is moved by encoders in the model"
        )
    if plan.step_seconds is None:
        return [*lines, "             time not known: nor are this target's peak rates"]
    parts = [f"{name} {value * 1e3:,.2f} ms" for name, value in plan.seconds.items() if value is not None]
    speed = plan.examples / plan.step_seconds
    best = f"             at best {plan.step_seconds * 1e3:,.2f} ms, {speed:,.0f} examples/s; bound by {plan.bound_by}"
    if plan.is_small:
        best = f"             too small to tell how fast: {plan.kernels:,} kernels, whose starting takes the time"
    return [*lines, best, f"             {', '.join(parts)}"]


def _exchange(plan: Plan) -> list[str]:
    if not plan.collectives:
        return ["exchange     none", ""]
    lines = [f"{number:>4} {kind:<20}{size(total):>12}" for kind, number, total in plan.collectives]
    return ["exchange     in a step, bytes that a device holds afterwards", *(f"        {line}" for line in lines), ""]


def _items(plan: Plan) -> list[str]:
    total = plan.bytes_by_text
    lines = [
        f"largest      lines of the source, of {size(total)} moved by the program's text, in {plan.kernels:,} kernels"
    ]
    for item in plan.items:
        traced = item.traced.rsplit("/", 1)[-1].strip("()")
        what = f"  ({traced})" if traced else ""
        lines.append(f"        {size(item.bytes):>10} {item.bytes / max(total, 1):>5.0%}  {item.source}{what}"[:_WIDTH])
    return lines
