"""One trainer: policy gradient on replayed trajectories."""
