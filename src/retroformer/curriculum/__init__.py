"""Which trajectories to learn from, how often, and when the harder ones are admitted."""
