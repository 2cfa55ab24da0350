"""Measure the project beside its peers and the machine's limits; no part of the installed package."""
