"""Logs of agents that ran elsewhere, as trajectories: one file a format.

records.py reads files, each format turns a record into runs (`conversation.Run`), conversation.py alone decides how a
run becomes a trajectory, outcomes.py where its outcome is read, redaction.py what is blotted out, importing.py writes.
"""
