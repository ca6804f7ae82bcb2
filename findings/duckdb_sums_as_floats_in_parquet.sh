#!/usr/bin/env bash
# duckdb 2.0.1: sum() of whole numbers, and every other 128-bit integer, becomes a column of doubles
# in Parquet, without an error or a warning; from 2**53 on, different values become one.
#
# Nothing in such a query speaks of 128 bits: the sum of a BIGINT is a HUGEINT, arithmetic with a
# literal beyond 64 bits gives one, and md5_number() a UHUGEINT. Keys that are made of these are
# right within DuckDB, in its CSV and as Arrow (decimal128), and not in Parquet: whoever reads the
# file finds a column of floats with fewer keys in it. Expected: an error, or a decimal, which
# Parquet has for whole numbers of up to 38 digits.
#
# Output seen (pyarrow 26.0.1 reads the file):
#   duckdb 2.0.1
#   sum(id): HUGEINT -> double
#     1000 values -> 5, of which 4 were among them
#   10000000000000000000 + id: HUGEINT -> double
#     1000 values -> 1, of which 1 were among them
#   md5_number(id::VARCHAR): UHUGEINT -> double
#     1000 values -> 1000, of which 0 were among them
#   sum(id)::BIGINT: BIGINT -> int64
#     1000 values -> 1000, of which 1000 were among them
#   sum(id)::DECIMAL(38, 0): DECIMAL(38,0) -> decimal128(38, 0)
#     1000 values -> 1000, of which 1000 were among them
#   floats, as described
#
# What to do: cast to BIGINT, UBIGINT, DECIMAL(38, 0) or VARCHAR before COPY ... TO a Parquet file,
# and look for columns of floats of 2**53 and more where ids are read.
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 and its package index.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder/packages" duckdb==2.0.1 pyarrow==26.0.1

cat >"$folder/sums.py" <<'PYTHON'
"""Writes columns of whole numbers with DuckDB, and says what pyarrow finds in the files."""
import sys

import duckdb
import pyarrow.parquet as pq

folder = sys.argv[1]
print("duckdb", duckdb.__version__)
duckdb.sql("CREATE TABLE log AS SELECT 1700000000000000000 + range AS id FROM range(1000)")
seen = {}
for value in (
    "sum(id)",
    "10000000000000000000 + id",
    "md5_number(id::VARCHAR)",
    "sum(id)::BIGINT",
    "sum(id)::DECIMAL(38, 0)",
):
    query = f"SELECT {value} AS key FROM log GROUP BY id"
    facts = f"SELECT typeof(any_value(key)), count(DISTINCT key) FROM ({query})"
    kind, count = duckdb.sql(facts).fetchall()[0]
    values = {int(key) for (key,) in duckdb.sql(query).fetchall()}
    duckdb.sql(f"COPY ({query}) TO '{folder}/keys.parquet'")
    column = pq.read_table(f"{folder}/keys.parquet")["key"]
    read = {int(key) for key in column.to_pylist()}
    seen[value] = kind, str(column.type), len(read), len(read & values)
    print(f"{value}: {kind} -> {column.type}")
    print(f"  {count} values -> {len(read)}, of which {len(read & values)} were among them")
*wide, narrow, decimal = seen.values()
holds = all("HUGEINT" in kind and stored == "double" for kind, stored, _, _ in wide)
holds &= all(kept < 1000 for *_, kept in wide) and wide[0][2] < 1000
holds &= narrow == ("BIGINT", "int64", 1000, 1000)
holds &= decimal == ("DECIMAL(38,0)", "decimal128(38, 0)", 1000, 1000)
print("floats, as described" if holds else "this has changed")
sys.exit(not holds)
PYTHON

PYTHONPATH="$folder/packages" python3 "$folder/sums.py" "$folder"
