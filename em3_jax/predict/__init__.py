"""Scores of rows that a file names: what a run says of tomorrow, and which items it would show whom."""
