"""Value of a policy from logs that another one made: estimators, action value, scoring, and what they are worth."""
