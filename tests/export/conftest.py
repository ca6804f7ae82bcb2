"""The runs that are exported, for all tests here."""

from tests.export.served_runs import runs as runs
