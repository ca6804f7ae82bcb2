"""Runs that belong together: planned, run once a seed, resumed, and shared between tables and verdicts."""
