#!/usr/bin/env bash
# duckdb 2.0.1: over a Parquet file, isnan(x) is false for NaN, and x < 1000 is true, where the file has
# statistics: the writer leaves NaN out of a column's minimum and maximum, as the format asks, and DuckDB
# takes these for bounds of all values.
#
# The optimizer replaces what the bounds decide by a constant. So one query gives different answers for one
# column, in a file with statistics, in one without, and in a table: NaN, which DuckDB sorts above all
# numbers, is "below 1000" here and is no NaN. isfinite(x) is right in all three. Parquet's own
# specification says that statistics with NaN must not be written, and that readers ignore NaN in them;
# a column's bounds then say nothing of rows that are NaN, and pyarrow, pandas, Polars and Spark write them so.
#
# Output seen (1,000 rows, 500 of them NaN, written by pyarrow 26.0.1):
#   duckdb 2.0.1
#   where                     isnan(x)  x < 1000  not isfinite(x)
#   a file with statistics           0      1000              500
#   the same without               500       500              500
#   the same as a table            500       500              500
#   after SET disabled_optimizers = 'statistics_propagation'
#   a file with statistics         500       500              500
#   by statistics, as described
#
# What to do: ask isfinite(x) where NaN is missing, write nulls for what is missing, or
# SET disabled_optimizers = 'statistics_propagation'.
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 and its package index.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder/packages" duckdb==2.0.1 pyarrow==26.0.1

cat >"$folder/bounds.py" <<'PYTHON'
"""Counts NaN in one column of 500 numbers and 500 NaN, as DuckDB sees it in a file and in a table."""
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

folder = sys.argv[1]
column = pa.table({"x": [float(k) if k % 2 else float("nan") for k in range(1000)]})
pq.write_table(column, f"{folder}/with.parquet")
pq.write_table(column, f"{folder}/without.parquet", write_statistics=False)
asked = ("isnan(x)", "x < 1000", "NOT isfinite(x)")


def counted(connection, source):
    # As a column of the result: what the optimizer makes of a condition alone may differ.
    shown = ", ".join(f"CASE WHEN {one} THEN 1 ELSE 0 END" for one in asked)
    rows = connection.sql(f"SELECT {shown} FROM {source}").fetchall()
    return tuple(sum(values) for values in zip(*rows))


print("duckdb", duckdb.__version__)
print(f"{'where':<24}{'isnan(x)':>10}{'x < 1000':>10}{'not isfinite(x)':>17}")
connection = duckdb.connect()
connection.execute(f"CREATE TABLE log AS SELECT * FROM '{folder}/without.parquet'")
sources = {
    "a file with statistics": f"'{folder}/with.parquet'",
    "the same without": f"'{folder}/without.parquet'",
    "the same as a table": "log",
}
found = {}
for name, source in sources.items():
    found[name] = counted(connection, source)
    print(f"{name:<24}" + "".join(f"{n:>{w}}" for n, w in zip(found[name], (10, 10, 17))))
connection.execute("SET disabled_optimizers = 'statistics_propagation'")
print("after SET disabled_optimizers = 'statistics_propagation'")
mended = counted(connection, sources["a file with statistics"])
print(f"{'a file with statistics':<24}" + "".join(f"{n:>{w}}" for n, w in zip(mended, (10, 10, 17))))
right = (500, 500, 500)
holds = found["a file with statistics"] == (0, 1000, 500) and mended == right
holds &= found["the same without"] == found["the same as a table"] == right
print("by statistics, as described" if holds else "this has changed")
sys.exit(not holds)
PYTHON

PYTHONPATH="$folder/packages" python3 "$folder/bounds.py" "$folder"
