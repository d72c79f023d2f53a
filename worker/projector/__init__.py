"""Beside ingest: the log becomes episodes and counts."""
