"""From an application that plays through the agent to a policy trained on what it recorded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import retroformer
from retroformer import cli
from retroformer.environments import lexicon, make
from retroformer.evaluation.off_policy.logs import score
from retroformer.files import read_json
from retroformer.policies.checkpoints import build, load
from retroformer.serving.agent import ServingAgent
from retroformer.stages.curate import curate
from retroformer.stages.validate import validate
from retroformer.storage import read_trajectories
from tiny_round import pin, run_collect, run_train, tiny_config

TASK = "babyai:GoToLocalS5N2"
REPORTER = """
import sys
import retroformer
for line in sys.stdin:
    id, solved = line.split()
    retroformer.report(sys.argv[1], id, success=solved == "True")
"""


def application(agent: ServingAgent, episodes: int, most: int = 8) -> dict[str, bool]:
    """Somebody's own loop around BabyAI, two episodes at a time; what it knows of the outcomes in the end."""
    solved: dict[str, bool] = {}
    worlds = [make(TASK), make(TASK)]
    for seed in range(0, episodes, 2):
        state = []
        for place, world in enumerate(worlds):
            observation, info = world.reset(seed=seed + place)
            episode = agent.episode(info["task"], task=TASK, task_id=seed + place)
            state.append((world, episode, observation, info))
        for _ in range(most):
            going_on = []
            for world, episode, observation, info in state:
                action = episode.act(observation, info["admissible_actions"])
                observation, _, terminated, truncated, info = world.step(action)
                if terminated or truncated:
                    episode.finish()
                    solved[episode.id] = bool(info["success"])
                else:
                    going_on.append((world, episode, observation, info))
            state = going_on
        for _, episode, _, _ in state:
            episode.finish()
            solved[episode.id] = False
    return solved


def test_what_an_application_recorded_trains_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(
        collect__source="import", collect__format="recorded", tasks__train=[TASK], train__objective="topr",
        train__updates=4, train__checkpoints=1,
    )  # fmt: skip
    build(config.policy, lexicon([TASK]), seed=0).save(tmp_path / "policy")
    agent = retroformer.load_agent(tmp_path / "policy", record="logs/here", seed=0)
    solved = application(agent, 60)
    assert len(solved) == 60
    assert 0 < sum(solved.values()) < 60
    assert cli.main(["import", "logs", "--format", "recorded", "--out", "early"]) == 0
    assert "import: read 60, accepted 0, repeated 0, open 60, quarantined 0" in capsys.readouterr().out
    # Hours later another process says how they ended.
    said = "".join(f"{id} {success}\n" for id, success in solved.items())
    subprocess.run([sys.executable, "-c", REPORTER, "logs/checker"], input=said, text=True, check=True)
    assert cli.main(["import", "logs", "--format", "recorded", "--out", "early"]) == 0
    assert "import: read 60, accepted 60, repeated 0, quarantined 0, episodes 60" in capsys.readouterr().out

    (tmp_path / "data").mkdir()
    (tmp_path / "logs").rename(tmp_path / "data/logs")
    pin(tmp_path, "policy")
    run_collect(tmp_path, config)
    data = tmp_path / "data"
    totals = validate(config.validate_, rollouts=data / "rollouts", out=data / "validated")
    assert totals == {"read": 60, "accepted": 60, "quarantined": 0}
    paths = {"champion": data / "champion.json", "validated": data / "validated", "history": data / "history"}
    curate(config.curate, **paths, out=data / "batches")
    run_train(tmp_path, config)
    found = read_trajectories(data / "batches")
    assert {one.outcome.value == "success" for one in found} == {True, False}
    assert {one.policy for one in found} == {agent.version}
    assert {one.task.split for one in found} == {"train", "checkpoint"}
    assert {one.task.split for one in read_trajectories(data / "batches/evaluation")} == {"evaluation"}
    assert read_json(data / "training/train.json")["updates"] == 4

    policy = load(tmp_path / "policy")
    scored = score(policy, found, None)
    steps = [step for one in found for step in one.steps]
    own = [
        float(row[step.admissible_actions.index(step.action)])
        for row, step in zip(scored.logprobs_sa, steps, strict=True)
        if step.admissible_actions
    ]
    assert [step.logprob for step in steps] == pytest.approx(own, abs=1e-4)
