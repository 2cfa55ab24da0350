"""Batched collection: many environments at once, limits, failures as data."""
