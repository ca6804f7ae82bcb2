"""Where the rows of a file went: none is lost without a word."""

from typing import Any


def rows_of_file(read: int, kept: int, dropped: dict[str, int]) -> dict[str, Any]:
    """What dataset.json keeps of a file's rows.

    Args:
      read: rows of the file, by its line ends or footer.
      kept: rows that became interactions.
      dropped: reason -> rows.

    Raises:
      AssertionError: a row is in neither.
    """
    dropped = {why: count for why, count in dropped.items() if count}
    if read != kept + sum(dropped.values()):
        raise AssertionError(f"{read} rows were read, {kept} kept and {dropped} dropped: some are lost")
    return {"read": read, "kept": kept, "dropped": dropped}


def told(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each file of `rows` in dataset.json."""
    lines = []
    for name, account in rows.items():
        whys = "".join(f"; {count:,} dropped: {why}" for why, count in account["dropped"].items())
        lines.append(f"{account['read']:,} in {name}, {account['kept']:,} of them interactions{whys}")
    return lines
