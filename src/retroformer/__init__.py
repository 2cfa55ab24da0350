"""Retroformer: turn the runs an LLM agent has already made into a better agent, and prove it."""

__version__ = "0.1.0"
