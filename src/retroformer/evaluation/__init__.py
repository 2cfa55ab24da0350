"""Knowing that a policy is better: intervals, paired comparison, the gate, the report."""
