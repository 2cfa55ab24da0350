"""What every process of a measured round loads."""
