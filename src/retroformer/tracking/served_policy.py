"""A registered version at work, as ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` run it.

MLflow executes this file when it logs and when it loads a model; nothing else imports it.
"""

from __future__ import annotations

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from pydantic import BaseModel


class Situation(BaseModel):
    """One decision to be made, with what led to it."""

    description: str
    """The task, as the agent is told it."""
    history: list[list[str]] = []
    """Earlier steps, each as [observation, action], oldest first."""
    observation: str
    admissible_actions: list[str] | None = None
    """What may be chosen; without it the policy writes its action."""


class ServedPolicy(PythonModel):
    """Chooses the likeliest admissible action, or writes one: ``predict([situation, ...])``.

    Gives for each situation the action and the probability of every admissible one, in their order.
    """

    def load_context(self, context: Any) -> None:
        """Load the checkpoint that was registered."""
        from retroformer.policies.checkpoints import load

        self.policy = load(context.artifacts["checkpoint"])

    def predict(self, model_input: list[Situation], params: dict[str, Any] | None = None):
        """Score all situations, each by one forward over its whole history."""
        return [self.choose(situation) for situation in model_input]

    def choose(self, situation: Situation) -> dict[str, Any]:
        """The last step of a trajectory is the question; training's own code scores it."""
        import torch

        from retroformer.types import Outcome, Step, StopReason, Task, Trajectory

        asked = situation.admissible_actions
        if asked is None:
            return {"action": self.write(situation), "probabilities": {}}
        if not asked:
            raise ValueError("admissible_actions is empty: there is nothing to choose from")
        # A policy conditioned on its return reads the trajectory's; what is asked for is the target.
        steps = [Step(observation, action, 0.0, (action,)) for observation, action in situation.history]
        steps.append(Step(situation.observation, asked[0], self.policy.layout.target_return, tuple(asked)))
        task = Task("", "", "", situation.description, 0, "")
        trajectory = Trajectory("served", task, tuple(steps), StopReason.LOG_END, Outcome.UNKNOWN, self.policy.version)
        window = self.policy.windows(trajectory)[-1]
        with torch.inference_mode():
            scores = self.policy.score(self.policy.collate([window]))[0, len(window.roots) - 1, : len(asked)]
        probabilities = scores.exp().tolist()
        return {"action": asked[int(scores.argmax())], "probabilities": dict(zip(asked, probabilities, strict=True))}

    def write(self, situation: Situation) -> str:
        """The action in words of the policy's own. Raises PolicyError where it cannot write."""
        from retroformer.errors import PolicyError
        from retroformer.policies.agent import Decision

        agent = self.policy.agent(1, greedy=True)
        told, step = situation.description, len(situation.history)
        agent.recall(0, told, [(observation, action) for observation, action in situation.history])
        (choice,) = agent.act([Decision(0, step, told, situation.observation, None, 0.0)])
        if isinstance(choice, PolicyError):
            raise choice
        return choice.action


set_model(ServedPolicy())
