"""What a version learned from, what learned from a trajectory, and how a trajectory is forgotten."""
