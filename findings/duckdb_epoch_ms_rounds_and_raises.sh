#!/usr/bin/env bash
# duckdb 2.0.1: epoch_ms(t) rounds microseconds to the nearest millisecond, where date_trunc, extract and epoch_us
# cut them off, and raises on TIMESTAMP_NS and TIMESTAMP_S.
#
# So the last half millisecond of a second, a day or a year is counted to the next: a row of 23:59:59.999600 has the
# epoch_ms of the next midnight, and falls on the other side of a border in milliseconds than on one in timestamps.
# pyarrow, pandas, Polars and Spark cut off. Casts to TIMESTAMP_MS and TIMESTAMP_S round, too. TIMESTAMP_NS is what
# a Parquet file of pandas has; the error names two types of integers, neither the function nor the type.
#
# Output seen:
#   duckdb 2.0.1
#   of 2020-09-13 23:59:59.999600
#     epoch_ms(t)                                     1600041600000
#     epoch_ms(date_trunc('milliseconds', t))         1600041599999
#     epoch_us(t) // 1000                             1600041599999
#     epoch_ms(TIMESTAMP '2020-09-14 00:00:00')       1600041600000
#   pyarrow, as milliseconds                          1600041599999
#   epoch_ms(t::TIMESTAMP_NS): Conversion Error: Unimplemented type for cast (INT64 -> INT64)
#   epoch_ms(t::TIMESTAMP_S): Conversion Error: Unimplemented type for cast (INT64 -> INT64)
#   rounds and raises, as described
#
# What to do: epoch_us(t) // 1000 of microseconds, epoch_ns(t) // 1000000 of nanoseconds (both cut off; of moments
# before 1970 // goes towards zero).
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 and its package index.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder/packages" duckdb==2.0.1 pyarrow==26.0.1

cat >"$folder/epochs.py" <<'PYTHON'
"""Asks DuckDB for the milliseconds of one moment in several ways."""
import datetime
import sys

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

moment = "2020-09-13 23:59:59.999600"
print("duckdb", duckdb.__version__)
print("of", moment)
found = []
for asked in (
    "epoch_ms(t)",
    "epoch_ms(date_trunc('milliseconds', t))",
    "epoch_us(t) // 1000",
    "epoch_ms(TIMESTAMP '2020-09-14 00:00:00')",
):
    ((value,),) = duckdb.sql(f"SELECT {asked} FROM (SELECT TIMESTAMP '{moment}' AS t)").fetchall()
    found.append(value)
    print(f"  {asked:<48}{value}")
column = pa.array([datetime.datetime.fromisoformat(moment)], pa.timestamp("us"))
cut = pc.cast(column, pa.timestamp("ms"), safe=False).cast(pa.int64())[0].as_py()
print(f"{'pyarrow, as milliseconds':<50}{cut}")
raised = 0
for kind in ("TIMESTAMP_NS", "TIMESTAMP_S"):
    try:
        duckdb.sql(f"SELECT epoch_ms(t::{kind}) FROM (SELECT TIMESTAMP '{moment}' AS t)").fetchall()
        print(f"epoch_ms(t::{kind}) gives a number")
    except duckdb.Error as error:
        said = str(error).splitlines()[0]
        raised += "Unimplemented type for cast (INT64 -> INT64)" in said
        print(f"epoch_ms(t::{kind}): {said}")
holds = found == [1600041600000, 1600041599999, 1600041599999, 1600041600000] and cut == found[1] and raised == 2
print("rounds and raises, as described" if holds else "this has changed")
sys.exit(not holds)
PYTHON

PYTHONPATH="$folder/packages" python3 "$folder/epochs.py"
