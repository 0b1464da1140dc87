"""Replicated state for Python programs that already have a Redis."""
