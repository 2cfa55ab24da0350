"""What a trajectory must be to be believed: predicates on records, a contract on the tables."""
