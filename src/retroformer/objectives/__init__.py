"""What is learned from a trajectory: returns, baselines, importance weights and losses.

Pure functions of tensors and floats, none of which waits for the device. Notation, used in every name:

==================  ==========================================================================================
``b``, ``B``        trajectories of a batch, ``t``, ``T`` their steps (padded), ``a``, ``A`` a step's actions (padded)
``mask_bt``         True where trajectory b has a step t; whatever stands elsewhere has no effect
``rewards_bt``      r_t, the reward of step t
``returns_bt``      G_t = sum over k >= t of discount^(k - t) r_k, the discounted return-to-go
``logprobs_bt``     log pi(a_t | h_t) in nats of the action taken, under the policy that is trained (has a gradient)
``logprobs_bta``    the same for every admissible action of a step
``behaviour_...``   log mu(a_t | h_t) in nats, as recorded when the behaviour policy mu acted
``ratios_bt``       pi / mu of the action taken, without a gradient
``values_bt``       an estimate of E[G_t | h_t]
``baselines_bt``    b_t, subtracted from G_t; must not depend on the action a_t
``advantages_bt``   A_t = G_t - b_t
==================  ==========================================================================================

A policy loss is a surrogate: its gradient is stated, its value says nothing. See ``losses.OBJECTIVES``.
"""
