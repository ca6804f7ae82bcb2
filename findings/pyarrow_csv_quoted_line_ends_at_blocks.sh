#!/usr/bin/env bash
# pyarrow 26.0.1: csv.read_csv reads a valid CSV file wrong, without an error, where a line end in
# quotes meets the end of a block (block_size, 1 MiB unless told).
#
# The file is quoted as RFC 4180 has it and was written by Python's csv module: one value has a line
# end and a comma, all others are plain; it starts close to the 1,048,576th byte.
#
# 1. With the options as they are (newlines_in_values=False), the value is right in a small file.
#    Across the end of a block it is cut in two at its line end. The quote that is open at the
#    end of the block and the one that closes in the next are both accepted. What follows the line
#    end is a row of its own where it has as many cells as there are columns, with a part of the
#    text as its id; in one place the row that the value belongs to vanishes as well. What a file
#    yields depends on block_size. Expected: the value, or an error, as there is in other places.
# 2. With newlines_in_values=True, a value with the line end \r\n loses its \n where the block ends
#    between the two.
#
# Output seen:
#   pyarrow 26.0.1
#   small file: 3 rows, the value is right
#   default, the quote opens 25 bytes before the end of the block:
#     2001 rows of 2001, ids lost: ['x'], ids invented: ['The end']
#   default, the quote opens 12 bytes before the end of the block:
#     2002 rows of 2001, ids lost: [], ids invented: ['The end']
#   default, one block: 2001 rows, all right
#   newlines_in_values: 2001 rows, all right
#   newlines_in_values, \r\n across blocks: 'Great film.\rThe end, though.'
#   newlines_in_values, \r\n in one block: 'Great film.\r\nThe end, though.'
#   read wrong, as described
#
# What to do: set newlines_in_values=True for any file whose values may be quoted, and a
# block_size with which no block ends in \r (one larger than the file will do).
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 and its package index.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder/packages" pyarrow==26.0.1

cat >"$folder/blocks.py" <<'PYTHON'
"""Reads one CSV file in several ways and compares with what was written."""
import csv
import io
import sys

import pyarrow as pa
import pyarrow.csv

BLOCK = pa.csv.ReadOptions().block_size


def written(start=None, end="\n", after=1000):
    """(bytes, rows) of a file in which a value's quote opens at byte `start`."""
    rows = [("x", f"Great film.{end}The end, though.")]
    if start is not None:  # header 8, the row's id 2, other rows 1,000 and the rest
        row, count = divmod(start - 10, 1000)[0], 1000
        texts = ["." * (row - 8)] * count
        texts[0] += "." * (start - 10 - row * count)
        rows = [(f"i{k:05d}", text) for k, text in enumerate(texts)] + rows
    rows += [(f"j{k:05d}", "plain") for k in range(after)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("id", "text"), *rows])
    return text.getvalue().encode(), rows


def read(data, newlines=False, block=BLOCK):
    parse = pa.csv.ParseOptions(newlines_in_values=newlines)
    table = pa.csv.read_csv(pa.BufferReader(data), pa.csv.ReadOptions(block_size=block), parse)
    return list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


print("pyarrow", pa.__version__)
data, rows = written(after=2)
small = read(data) == rows
print(f"small file: {len(read(data))} rows, the value is {'right' if small else 'wrong'}")
holds = [small]
for before in (25, 12):
    data, rows = written(BLOCK - before)
    assert data.index(b'"') == BLOCK - before
    got = read(data)
    lost = sorted({row[0] for row in rows} - {row[0] for row in got})
    invented = sorted({row[0] for row in got} - {row[0] for row in rows})
    print(
        f"default, the quote opens {before} bytes before the end of the block:\n"
        f"  {len(got)} rows of {len(rows)}, ids lost: {lost}, ids invented: {invented}"
    )
    holds.append(got != rows and "The end" in invented)
for name, got in {
    "default, one block": read(data, block=2 * BLOCK),
    "newlines_in_values": read(data, newlines=True),
}.items():
    print(f"{name}: {len(got)} rows, {'all right' if got == rows else 'not all right'}")
    holds.append(got == rows)
data, rows = written(BLOCK - 13, end="\r\n")
assert data.index(b"\r") == BLOCK - 1
for name, block, right in (("across blocks", BLOCK, False), ("in one block", 2 * BLOCK, True)):
    got = dict(read(data, True, block))["x"]
    print(f"newlines_in_values, \\r\\n {name}: {got!r}")
    holds.append((got == dict(rows)["x"]) == right)
print("read wrong, as described" if all(holds) else "this has changed")
sys.exit(not all(holds))
PYTHON

PYTHONPATH="$folder/packages" python3 "$folder/blocks.py"
