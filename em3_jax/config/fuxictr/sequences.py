"""Users' sequences of FuxiCTR's long histories, of which each row reads a beginning, as a table of events."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from em3_jax.core.errors import UserError, nearest

SEQUENCE, USER = "full_item_seq", "user_index"


def write(user_info: Path, out: Path, user: str, item: str) -> None:
    """Writes an event a line: user, item, and its place in the user's sequence as its time.

    A row of the log whose time is its `seq_len` then reads as many events, those at places below.

    Args:
      user_info: .parquet with a list of items a user, in the column `full_item_seq`; user k is row k where no column says it.
      out: the file to write.
      user, item: names of the columns, as the log has them.

    Raises:
      UserError: the file cannot be read, or has no such column.
    """
    try:
        names = pq.read_schema(user_info).names
        if SEQUENCE not in names:
            raise UserError(f"{user_info}: no column '{SEQUENCE}' with the users' items; {nearest(SEQUENCE, names)}")
        key = user if user in names else USER
        table = pq.read_table(user_info, columns=[SEQUENCE, *([key] if key in names else [])])
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{user_info}: cannot be read ({str(error).splitlines()[0]}); check user_info") from None
    lists = table.column(SEQUENCE).combine_chunks()
    if not isinstance(lists, pa.ListArray | pa.LargeListArray):
        raise UserError(f"{user_info}: '{SEQUENCE}' holds {lists.type}, not lists of items; mend it")
    length = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    users = table.column(key).to_numpy() if key in names else np.arange(len(length))
    place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    columns = {user: np.repeat(users, length), item: pc.list_flatten(lists), "seq_len": place}
    pq.write_table(pa.table(columns), out, compression="zstd")
