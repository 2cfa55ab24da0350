"""The stages of a round, one module and one function of the same name each: files in, files out."""

STAGES = ("collect", "validate", "curate", "train", "evaluate", "decide")
"""In the order of the flow; module, function, DVC stage, subcommand and task run share the name."""
