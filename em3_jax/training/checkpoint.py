"""Checkpoints of a run with Orbax: the newest two, to go on from, and the best one, to evaluate.

    <workdir>/checkpoints/latest/<step>    <workdir>/checkpoints/best/<step>

A checkpoint is the training state, leaf by leaf under its name, and a small JSON with what the
loop remembers and which data the rows of its tables belong to. Tables are saved as no device in
particular has them, see `tables.packing`. Orbax writes beside the final place and renames, so a run
killed while saving leaves the older checkpoints untouched.
"""

import contextlib
import errno
import functools
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from em3_jax.core import trees
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.tables import id_table, packing
from em3_jax.training import processes, rundir

StateT = TypeVar("StateT", State, dict[str, jax.Array])  # or its leaves by name

KEEP_LATEST = 2
_COUNT, _VARIANCE = "tables.slots.count", "tables.slots.variance"  # of lazy Adam
_LOOKS = 20  # at a folder that another process changes


class Checkpoints:
    """Saves and restores the state of one run.

    Args:
      directory: the run's folder.
      data_hash: of the dataset in use; it is noted in what is saved, and what was saved with another is refused. None: neither.
    """

    def __init__(self, directory: str | Path, data_hash: str | None = None):
        # Orbax fails in the background on a relative path. What it logs as an error it also raises.
        self._root = Path(directory).absolute() / "checkpoints"
        self.data_hash = data_hash
        for name in ("absl", "concurrent.futures"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._saving = 0  # the step of the newest save
        self._managers = {kind: self._manager(kind) for kind in ("latest", "best")}

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        keep = KEEP_LATEST if kind == "latest" else 1
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()}
        look = functools.partial(ocp.CheckpointManager, self._root / kind, options=options, item_handlers=handlers)
        for _ in range(_LOOKS):  # a run that still trains may replace a checkpoint that was just listed
            with contextlib.suppress(FileNotFoundError):
                return look()
        return look()

    def steps(self, kind: str) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return sorted(self._managers[kind].all_steps())

    def save(self, kind: str, state: State, notes: dict[str, Any]) -> None:
        """Starts saving; returns when the state has been copied, so that its buffers may be donated.

        Args:
          kind: "latest" or "best".
          notes: JSON values the loop wants back.
        """
        step = int(state.step)
        manager = self._managers[kind]
        self.wait()
        if step in manager.all_steps():
            return  # a resumed run repeats the steps since its last checkpoint, to the same state
        try:
            self._saving = step
            self._check_space(state)
            notes = notes | ({"data_hash": self.data_hash} if self.data_hash else {})
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(_flat(packing.unpacked(state))), notes=ocp.args.JsonSave(notes)
            )
            if not manager.save(step, args=args, force=True):
                raise OSError(f"Orbax refused step {step}")
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_saved(kind, step, error) from error

    def _check_space(self, state: State) -> None:
        free, need = shutil.disk_usage(self._root).free, trees.num_bytes(state)
        if free < need:
            raise OSError(errno.ENOSPC, f"no disk space: {need / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")

    def _not_saved(self, kind: str, step: int, error: Exception) -> Exception:
        """What to raise; that another process is gone is no fault of the place."""
        if processes.is_loss(error):
            return error
        kept = self.steps("latest")
        kept_text = f"the checkpoint of step {kept[-1]} is kept" if kept else "no earlier checkpoint exists"
        return UserError(
            f"{self._root / kind}: could not save step {step} ({_reason(error)}); {kept_text}; free space and run again to resume"
        )

    def wait(self) -> None:
        """Returns when all saving is done; raises if it failed."""
        for kind, manager in self._managers.items():
            try:
                manager.wait_until_finished()
            except (OSError, ValueError, RuntimeError) as error:
                raise self._not_saved(kind, self._saving, error) from error

    def restore_latest(
        self, template: State, of_other_data: Callable[[str], State] | None = None
    ) -> tuple[State, dict[str, Any]] | None:
        """The newest readable checkpoint, or None without any; an unreadable one is set aside with a warning.

        Args:
          template: a state of the same shapes, dtypes and shardings (arrays or `ShapeDtypeStruct`).
          of_other_data: data hash -> template of a checkpoint that was saved with other data; None refuses it.
        """
        for step in reversed(self.steps("latest")):
            try:
                return self._restore("latest", step, template, of_other_data)
            except UserError:
                raise
            except Exception as error:
                self._set_aside(step, error)
        return None

    def newest_notes(self) -> dict[str, Any]:
        """The notes of the newest checkpoint, whatever its data; {} without one, or where they cannot be read."""
        for step in reversed(self.steps("latest")):
            with contextlib.suppress(Exception):  # `restore_latest` says why
                return self._notes("latest", step, other_data=True)
        return {}

    def restore(self, template: StateT, step: int | None = None) -> tuple[StateT, dict[str, Any]]:
        """The best checkpoint, the newest where none was chosen as best, or the one of `step` wherever it is kept."""
        return self._of_first(step, "choose another --step", lambda kind, found: self._restore(kind, found, template))

    def read(self, sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
        """Leaf name ("params/model/item/kernel") -> array of the best checkpoint, or the newest if none was best."""

        def leaves(kind: str, step: int) -> dict[str, jax.Array]:
            self._notes(kind, step)
            saved = dict(self._managers[kind].item_metadata(step)["state"])
            wanted = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for n, leaf in saved.items()}
            args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            state = _counted(self._managers[kind].restore(step, args=args)["state"], sharding)
            return {name.replace(".", "/"): leaf for name, leaf in state.items()}

        return self._of_first(None, "train that run again", leaves)

    def _of_first(self, step: int | None, hint: str, read: Callable[[str, int], Any]) -> Any:
        """`read` of (kind, step) of the best checkpoint, the newest without one, or that of `step`.

        A run that still trains may have replaced it by a better one meanwhile: then that one is read.
        """
        failed: tuple[tuple[str, int], Exception] | None = None  # (kind, step), and why
        while True:
            have = [(kind, one) for kind in ("best", "latest") for one in reversed(self.steps(kind))]
            found = next(((kind, one) for kind, one in have if step in (None, one)), None)
            if failed is not None and found in (failed[0], None):
                (kind, number), cause = failed
                where = self._root / kind / str(number)
                raise UserError(f"{where}: unreadable ({_reason(cause)}); {hint}") from cause
            if found is None:
                which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
                there = ", ".join(str(one) for one in sorted({one for _, one in have})) or "none, train first"
                raise UserError(f"{self._root}: {which}; there are: {there}")
            try:
                return read(*found)
            except UserError:
                raise
            except Exception as error:
                failed = found, error
                for manager in self._managers.values():
                    manager.reload()

    def forget_best(self, after: int) -> None:
        """Removes what was best later than step `after`: a run that takes another way from there would find it in its own way."""
        for step in self.steps("best"):
            if step > after:
                self._managers["best"].delete(step)

    def _notes(self, kind: str, step: int, other_data: bool = False) -> dict[str, Any]:
        """The notes of a checkpoint, "data_hash" among them; unless `other_data`, its data have to be those in use."""
        args = ocp.args.Composite(notes=ocp.args.JsonRestore())
        notes = self._managers[kind].restore(step, args=args)["notes"]
        if self.data_hash:
            saved = notes.setdefault("data_hash", rundir.first_data(self._root.parent) or self.data_hash)
            if saved != self.data_hash and not other_data:
                raise UserError(
                    f"{self._root / kind / str(step)}: was trained before the dataset grew (hash {saved[:12]}, now "
                    f"{self.data_hash[:12]}), its table rows stand for other ids; train on until an evaluation has found a new "
                    "best, or choose a later --step"
                )
        return notes

    def _restore(
        self, kind: str, step: int, template: StateT, of_other_data: Callable[[str], StateT] | None = None
    ) -> tuple[StateT, dict[str, Any]]:
        notes = self._notes(kind, step, other_data=of_other_data is not None)
        if notes.get("data_hash") != self.data_hash and of_other_data is not None:
            template = of_other_data(notes["data_hash"])
        unpacked = jax.tree.map(_abstract, packing.unpacked(template))
        wanted = _flat(unpacked)
        manager = self._managers[kind]
        saved = manager.item_metadata(step)["state"]
        if saved is None:
            raise OSError("the state is missing")
        here = dict(wanted)
        if _COUNT in wanted and _COUNT not in saved and _VARIANCE in saved:
            del here[_COUNT]  # a run of an earlier version
        self._check_same_model(kind, step, here, saved)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(here))
        state = manager.restore(step, args=args)["state"]
        if len(here) < len(wanted):
            state = _counted(state, wanted[_COUNT].sharding)
        leaves = [state[name] for name in wanted]
        plainly = jax.tree.unflatten(jax.tree.structure(unpacked), leaves)
        return packing.packed_as(template, plainly), notes

    def _check_same_model(self, kind: str, step: int, wanted: dict, saved) -> None:
        """Orbax would cast dtypes and cut shapes in silence."""
        saved = {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in dict(saved).items()}
        for name in sorted(set(wanted) | set(saved)):
            have = saved.get(name)
            want = (tuple(wanted[name].shape), np.dtype(wanted[name].dtype)) if name in wanted else None
            if have != want:
                raise UserError(
                    f"{self._root / kind / str(step)}: checkpoint of another model: {name} is {_text(have)} there and "
                    f"{_text(want)} here; use the config it was trained with, or another --workdir"
                )

    def _set_aside(self, step: int, error: Exception) -> None:
        folder = self._root / "latest" / str(step)
        warnings.warn(
            f"checkpoint {folder} is unreadable ({_reason(error)}); going back to the one before", stacklevel=3
        )
        self._managers["latest"].close()
        aside = self._root / "unreadable" / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        shutil.move(folder, aside)
        self._managers["latest"] = self._manager("latest")

    def close(self) -> None:
        self.wait()
        for manager in self._managers.values():
            manager.close()


def _counted(state: dict[str, Any], sharding: jax.sharding.Sharding | None) -> dict[str, Any]:
    """The leaves of a checkpoint; lazy Adam of earlier versions had no counts, see `tables`."""
    if _VARIANCE not in state or _COUNT in state:
        return state
    count = jax.jit(id_table.counts_of_moments, out_shardings=sharding)
    return state | {_COUNT: count(state[_VARIANCE], state["step"])}


def _flat(state: State | dict[str, jax.Array]) -> dict[str, Any]:
    return {name.replace("/", "."): leaf for name, leaf in trees.named_leaves(state).items()}


def _reason(error: Exception) -> str:
    """The first line of an error's text, of a bearable length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _abstract(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _text(spec: tuple | None) -> str:
    return "absent" if spec is None else f"{spec[1]}{list(spec[0])}"
