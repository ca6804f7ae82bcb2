"""The events of users who have more of them as time goes on: each history stays one range, and old ranges stay as they are.

A user's events lie in a block with room for more, oldest first. Where it is full, they are written again into one of twice the
room, at the end, so that an event costs the same however many there are; column `original` says of each the first place that
stores it. An event that comes late is put in its place in time, in a block written anew: whoever reads an older range reads
what was known then.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from em3_jax.core import npy
from em3_jax.data.growing import Column

BLOCKS = ("start", "length", "room")


class EventBlocks:
    """The events of a dataset that is appended to.

    Args:
      root: of the dataset.
      dtypes: of the columns of the events, `item`, `time` and `original` among them.
      end: of what is committed.
      commit: number of the last commit.

    Attributes:
      end: places in use; what is committed with an append.
    """

    def __init__(self, root: Path, dtypes: Mapping[str, DTypeLike], end: int, commit: int):
        self.end, self._undo = end, root / "undo.npz"
        self._events = {name: Column(root / "events" / f"{name}.npy", dtype) for name, dtype in dtypes.items()}
        self._blocks = {name: Column(root / "blocks" / f"{name}.npy", np.int64) for name in BLOCKS}
        self._put_back(commit)

    def columns(self) -> dict[str, np.ndarray]:
        """Column -> [places in use], memory-mapped; places without an event hold anything."""
        return {name: column.first(self.end) for name, column in self._events.items()}

    def add(
        self, user: np.ndarray, time: np.ndarray, is_event: np.ndarray, of_event: Mapping[str, np.ndarray], commit: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) [n] i64 of the history of each row; the rows that are events are added to the events.

        Args:
          user, time, is_event: [n] i32, i64, bool of the new rows, in the order of arrival.
          of_event: column of the events, but `original` -> [n].
          commit: number of the last commit, after which this is.
        """
        for block in self._blocks.values():
            block.reserve(int(user.max(initial=-1)) + 1)
        users = np.unique(user)
        self._remember(users, commit)
        order = np.argsort(user, kind="stable")
        bounds = np.append(np.searchsorted(user[order], users), len(order))
        start, end = np.zeros(len(user), np.int64), np.zeros(len(user), np.int64)
        in_order = self._in_order(users, order, bounds, time, is_event)
        rows = order[np.repeat(in_order, np.diff(bounds))]
        if len(rows):
            start[rows], end[rows] = self._at_the_end(users[in_order], user, time, is_event, of_event, rows)
        for k in np.flatnonzero(~in_order):
            for row in order[bounds[k] : bounds[k + 1]]:
                values = {name: column[row] for name, column in of_event.items()}
                start[row], end[row] = self._in_its_place(int(user[row]), int(time[row]), bool(is_event[row]), values)
        return start, end

    def _in_order(
        self, users: np.ndarray, order: np.ndarray, bounds: np.ndarray, time: np.ndarray, is_event: np.ndarray
    ) -> np.ndarray:
        """[users] bool: those whose rows follow one another, and their last event, in time."""
        later = np.ones(len(order), bool)
        later[1:] = time[order][1:] >= time[order][:-1]
        later[bounds[:-1]] = True
        result = np.logical_and.reduceat(later, bounds[:-1])
        start, length = self._blocks["start"][users], self._blocks["length"][users]
        last = self._events["time"][np.maximum(start + length - 1, 0)]
        return result & ((length == 0) | (time[order[bounds[:-1]]] >= last))

    def _at_the_end(
        self,
        users: np.ndarray,
        user: np.ndarray,
        time: np.ndarray,
        is_event: np.ndarray,
        of_event: Mapping[str, np.ndarray],
        rows: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) of the rows [m], by user and time, whose events come after all that their users have."""
        who, event = np.searchsorted(users, user[rows]), is_event[rows]
        added = np.bincount(who, weights=event, minlength=len(users)).astype(np.int64)
        start, length, room = (self._blocks[name][users].copy() for name in BLOCKS)
        full = np.flatnonzero(length + added > room)
        if len(full):
            start[full], room[full] = self._new_blocks(start[full], length[full], length[full] + added[full])
        first = np.flatnonzero(np.diff(who, prepend=-1))
        until = np.cumsum(event)
        before = until - event  # events among the rows so far
        of_user = (until - event)[first][who]
        place = start[who] + length[who] + before - of_user
        # Events of the same moment are not before it: those among these rows, and those that were there.
        moment = np.flatnonzero(np.diff(who, prepend=-1) | np.diff(time[rows], prepend=time[rows[0]] - 1))
        at_moment = np.searchsorted(moment, np.arange(len(rows)), side="right") - 1
        end = start[who] + length[who] + before[moment][at_moment] - of_user
        is_first = moment[at_moment] == first[who]  # the user's first moment, maybe that of its last events, too
        end -= np.where(is_first, self._at_last_moment(start, length, time[rows[first]])[who], 0)
        events = np.flatnonzero(event)
        for name, column in of_event.items():
            self._events[name].put(place[events], column[rows[events]])
        self._events["original"].put(place[events], place[events])
        for name, values in (("start", start), ("length", length + added), ("room", room)):
            self._blocks[name].put(users, values)
        return start[who], end

    def _at_last_moment(self, start: np.ndarray, length: np.ndarray, time: np.ndarray) -> np.ndarray:
        """[users] i64: how many of the events at the end of each block are at a time [users]."""
        count, going = np.zeros(len(start), np.int64), np.flatnonzero(length > 0)
        while len(going):
            same = self._events["time"][start[going] + length[going] - 1 - count[going]] == time[going]
            going = going[same]
            count[going] += 1
            going = going[count[going] < length[going]]
        return count

    def _new_blocks(self, start: np.ndarray, length: np.ndarray, need: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(start, room) [n] of blocks at the end of the events with room for `need` [n] and some more, the old events in them."""
        room = np.maximum(2 ** np.ceil(np.log2(np.maximum(need, 1))).astype(np.int64), 2)
        end = self.end
        new = end + np.cumsum(room) - room
        self.end = end = int(end + room.sum())
        source = np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())
        target = np.repeat(new - np.cumsum(length) + length, length) + np.arange(length.sum())
        for name, column in self._events.items():
            column.reserve(end)
            if name == "original":  # what is not used is its own
                column.write(int(new[0]), np.arange(new[0], end))
            column.put(target, column[source])
        return new, room

    def _in_its_place(self, user: int, time: int, is_event: bool, values: Mapping[str, Any]) -> tuple[int, int]:
        """(start, end) of the history of a row; an event is put in its place in time, in a new block if need be."""
        start, length, room = (int(self._blocks[name][user]) for name in BLOCKS)
        of_user = self._events["time"][start : start + length]
        end = int(np.searchsorted(of_user, time, side="left"))
        if not is_event:
            return start, start + end
        place = int(np.searchsorted(of_user, time, side="right"))
        if place < length or length == room:  # ranges of earlier rows stay as they are
            old = np.array([start]), np.array([length])
            start, room = (int(array[0]) for array in self._new_blocks(*old, np.array([length + 1])))
            for column in self._events.values():
                column.write(start + place + 1, column[start + place : start + length].copy())
        for name, value in values.items():
            self._events[name].put(np.array([start + place]), value)
        self._events["original"].put(np.array([start + place]), start + place)
        for name, number in (("start", start), ("length", length + 1), ("room", room)):
            self._blocks[name].put(np.array([user]), number)
        return start, start + end

    def _remember(self, users: np.ndarray, commit: int) -> None:
        """Keeps the blocks of users as they are, until the next commit."""
        temporary = self._undo.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            blocks = {name: self._blocks[name][users] for name in BLOCKS}
            np.savez(file, commit=commit, users=users, **blocks)
        os.replace(temporary, self._undo)

    def _put_back(self, commit: int) -> None:
        """Puts back the blocks that an append changed which was not committed."""
        if not self._undo.exists():
            return
        kept = npy.archive(self._undo)
        if int(kept["commit"]) != commit:
            return
        for name in BLOCKS:
            self._blocks[name].reserve(int(kept["users"].max(initial=-1)) + 1)
            self._blocks[name].put(kept["users"], kept[name])
