"""What comes one by one, made in a thread ahead of its use."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], size: int = 2) -> Iterator[T]:
    """The items in their order, at most `size` of them waiting; what goes wrong with one is raised in its place."""
    made: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(size)
    stopped = threading.Event()

    def put(is_item: bool, value: T | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                made.put((is_item, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(True, item):
                    return
            put(False, None)
        except BaseException as error:  # raised again where it is waited for
            put(False, error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = made.get()
            if is_item:
                yield value  # type: ignore[misc]
            elif isinstance(value, BaseException):
                raise value
            else:
                return
    finally:
        stopped.set()
        thread.join()
