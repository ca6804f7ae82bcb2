"""Where rows come from that are appended to a dataset: a file that grows, a folder of files, a topic of Kafka.

A source is asked for what comes after a position, and says with it the position after that: JSON values, which are committed with
the rows. It remembers nothing of its own that matters.
"""

from pathlib import Path
from typing import Any

from em3_jax.core import paths
from em3_jax.core.errors import UserError
from em3_jax.data.sources.arrived import Source


def open_source(mapping: str, interactions: Any) -> Source:
    """The source that a mapping names.

    Args:
      mapping: its path, for messages.
      interactions: a .csv or .tsv file, a folder, or kafka://host:port/topic.

    Raises:
      UserError: it is something else, or what it needs is not installed.
    """
    if not isinstance(interactions, str | Path) or not str(interactions):
        raise UserError(f"{mapping}: interactions: name one file, folder or topic, kafka://host:port/topic")
    if str(interactions).startswith("kafka://"):
        from em3_jax.data.sources.kafka import Topic  # an extra

        return Topic(str(interactions))
    from em3_jax.data.sources.files import Folder, GrowingFile

    path = paths.local(interactions)
    if path.is_dir():
        return Folder(path)
    if path.suffix in (".csv", ".tsv"):
        return GrowingFile(path)
    raise UserError(
        f"{mapping}: interactions is '{interactions}'; a log that is appended to is a .csv or .tsv file, a folder, or a topic, "
        "kafka://host:port/topic"
    )
