"""An agent inside an application: what it chooses, in what order, and what is known of it afterwards."""

from __future__ import annotations

import gc
import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

import retroformer
from retroformer.errors import ConfigError, DataError, PinMismatch, PolicyError
from retroformer.evaluation.off_policy.logs import score
from retroformer.importers.importing import import_logs
from retroformer.pins import Pin, Pins, policy_hash, write_pins
from retroformer.policies.checkpoints import build
from retroformer.serving.agent import Episode, ServingAgent
from retroformer.storage import read_trajectories
from retroformer.types import Outcome, StopReason, Trajectory
from tiny import WORDS
from tiny_logs import rules
from tiny_round import tiny_config


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines()]


def imported(root: Path, out: str = "out") -> dict[str, Trajectory]:
    report = import_logs([root / "runs"], "recorded", root / out, rules(), max_quarantined=0.0)
    assert report["read"] == report["accepted"] + report["open"]
    return {one.id: one for one in read_trajectories(root / out)}


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(count))


def play(agent: ServingAgent, episodes: list[Episode], steps: int, *, text: bool = False) -> list[str]:
    """Some steps of every episode, in turn, of choices or of words."""
    chance, said = random.Random(0), []
    for _ in range(steps):
        for episode in episodes:
            observation = words(chance, chance.randint(1, 5))
            actions = None if text else tuple(chance.sample(WORDS, chance.randint(1, 6)))
            said.append(episode.act(observation, actions))
            assert actions is None or said[-1] in actions
    return said


@pytest.mark.parametrize("text", [False, True])
def test_what_is_recorded_is_what_training_scores(make_agent: Any, tmp_path: Path, text: bool) -> None:
    """Interleaved episodes, more than there are slots, longer than the window: the log-probabilities are the policy's
    own, as the code that trains recomputes them."""
    agent = make_agent(text=text)
    episodes = [agent.episode("w0 w1", task="app:A", task_id=n) for n in range(3)]
    play(agent, episodes, steps=14, text=text)
    for place, episode in enumerate(episodes):
        episode.finish(success=place > 0)
    found = list(imported(tmp_path).values())
    policy = agent._policy.policy
    assert len(policy.windows(found[0])) > 1, "the window is cut somewhere"
    scored = score(policy, found, None)
    steps = [step for one in found for step in one.steps]
    chosen = [0 if step.admissible_actions is None else step.admissible_actions.index(step.action) for step in steps]
    assert len(steps) == 42
    assert all((step.token_ids is not None) == text for step in steps)
    own = [float(row[place]) for row, place in zip(scored.logprobs_sa, chosen, strict=True)]
    assert [step.logprob for step in steps] == pytest.approx(own, abs=1e-4)
    assert {(one.policy, one.temperature) for one in found} == {("p" * 16, 0.7)}


def test_slots_change_nothing_but_the_work(make_agent: Any) -> None:
    """One slot for three episodes reads them anew whenever they go on; the actions are the same."""
    said = []
    for slots in (1, 2, 3):
        agent = make_agent(slots=slots)
        said.append(play(agent, [agent.episode("w0 w1") for _ in range(3)], steps=6))
    assert said[0] == said[1] == said[2]
    assert len(set(said[0])) > 3


def test_several_episodes_are_decided_together(make_agent: Any) -> None:
    agent, calls = make_agent(slots=2), []
    act = agent._policy.act
    agent._policy.act = lambda decisions: calls.append(len(decisions)) or act(decisions)
    episodes = [agent.episode("w0") for _ in range(3)]
    actions = agent.act_many([(one, "w1", ["w2", "w3"]) for one in episodes])
    assert calls == [2, 1], "as many at once as there are slots"
    assert [one.last.action for one in episodes] == actions
    with pytest.raises(PolicyError, match="two actions at once"):
        agent.act_many([(episodes[0], "w1", ["w2"]), (episodes[0], "w1", ["w2"])])


def test_threads_share_an_agent(make_agent: Any, tmp_path: Path) -> None:
    """Each thread plays episodes of its own; what waits while the model runs goes into its next forward."""
    agent, calls, wrong = make_agent(slots=4), [], []
    act = agent._policy.act
    agent._policy.act = lambda decisions: calls.append(len(decisions)) or act(decisions)

    def application(number: int) -> None:
        try:
            for turn in range(4):
                with agent.episode("w0 w1", task_id=f"{number} {turn}") as episode:
                    play(agent, [episode], steps=5)
                    episode.finish(success=turn % 2 == 0)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=application, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(calls) == 6 * 4 * 5
    found = imported(tmp_path).values()
    assert len(found) == 24
    assert {len(one.steps) for one in found} == {5}
    scored = score(agent._policy.policy, list(found), None)
    steps = [step for one in found for step in one.steps]
    chosen = [step.admissible_actions.index(step.action) for step in steps if step.admissible_actions]
    own = [float(row[place]) for row, place in zip(scored.logprobs_sa, chosen, strict=True)]
    assert [step.logprob for step in steps] == pytest.approx(own, abs=1e-4)


def test_an_error_of_the_model_reaches_every_thread_that_waited(make_agent: Any, tmp_path: Path) -> None:
    agent = make_agent()
    started, go_on = threading.Event(), threading.Event()

    def broken(decisions: Any) -> Any:
        started.set()
        go_on.wait(10)
        raise RuntimeError("out of memory")

    agent._policy.act = broken
    raised = []

    def application() -> None:
        with pytest.raises(RuntimeError, match="out of memory"), agent.episode("w0") as episode:
            episode.act("w1", ["w2", "w3"])
        raised.append(True)

    threads = [threading.Thread(target=application) for _ in range(3)]
    threads[0].start()
    started.wait(10)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(raised) == 3
    found = imported(tmp_path).values()
    assert [(one.outcome, one.steps) for one in found] == [(Outcome.ERROR, ())] * 3
    assert all("out of memory" in (one.error or "") for one in found)


def test_the_ways_that_an_episode_ends(make_agent: Any, tmp_path: Path) -> None:
    agent = make_agent(slots=4)
    ids: dict[str, str] = {}

    def episode(name: str) -> Episode:
        made = agent.episode("w0", task=f"app:{name}")
        made.act("w1", ["w2", "w3"])
        made.act("w4", ["w2", "w3"])
        ids[name] = made.id
        return made

    episode("success").finish(success=True)
    episode("failure").finish(success=False)
    episode("reward").finish(reward=0.25)
    episode("truncated").finish(truncated=True)
    one = episode("steps")
    one.reward(0.5)
    one.reward(0.25)
    one.finish(success=True)
    one = episode("both")
    one.reward(0.5)
    one.finish(success=True, reward=1.0)
    with episode("later"):
        pass
    with episode("never"):
        pass
    with pytest.raises(KeyError), episode("raised"):
        raise KeyError("a tool")
    dropped = episode("dropped")
    del dropped, one
    gc.collect()
    agent.report(ids["later"], success=False)
    agent.report(ids["later"], success=True, reward=0.75)
    retroformer.report(tmp_path / "runs", ids["dropped"], reward=-1)
    agent.report(ids["truncated"], success=True)
    agent.report(ids["raised"], success=False)
    found = imported(tmp_path)
    told = {one.task.name: (one.outcome, one.stop_reason, one.rewards) for one in found.values()}
    ended = StopReason.TERMINATED
    assert told == {
        "success": (Outcome.SUCCESS, ended, (0, 1)),
        "failure": (Outcome.FAILURE, ended, (0, 0)),
        "reward": (Outcome.SUCCESS, ended, (0, 0.25)),
        "truncated": (Outcome.TRUNCATED, StopReason.TIME_LIMIT, (0, 0)),
        "steps": (Outcome.SUCCESS, ended, (0, 0.75)),
        "both": (Outcome.SUCCESS, ended, (0, 1.5)),
        "later": (Outcome.SUCCESS, ended, (0, 0.75)),
        "dropped": (Outcome.FAILURE, StopReason.LOG_END, (0, -1)),
        "raised": (Outcome.ERROR, StopReason.EXCEPTION, (0, 0)),
    }
    assert found[ids["raised"]].error == "KeyError: 'a tool'"
    assert ids["never"] not in found
    assert len(agent._free) + len(agent._slots) == 4


def test_an_episode_that_was_dropped_gives_its_slot_back(make_agent: Any) -> None:
    agent = make_agent(slots=2)
    for _ in range(5):
        agent.episode("w0").act("w1", ["w2"])
    gc.collect()
    agent.episode("w0").act("w1", ["w2"])
    assert len(agent._policy.transcripts) == 1


def test_a_greedy_agent_takes_the_likeliest_and_draws_nothing(make_agent: Any, tmp_path: Path) -> None:
    agent = make_agent(temperature=1.0, greedy=True)
    with agent.episode("w0") as episode:
        action = episode.act("w1", WORDS)
        assert episode.last is not None
        assert action == WORDS[max(range(len(WORDS)), key=episode.last.probabilities.__getitem__)]
        episode.finish(success=True)
    start, step, _ = events(tmp_path / "runs")
    assert (start["temperature"], step["logprob"]) == (0, None)
    (found,) = imported(tmp_path).values()
    assert (found.steps[0].logprob, found.temperature) == (None, 1.0)


def test_what_the_policy_cannot_do_ends_the_episode_as_an_error(make_agent: Any, tmp_path: Path) -> None:
    agent = make_agent()
    episode = agent.episode("w0")
    episode.act("w1", ["w2"])
    with pytest.raises(PolicyError, match="step 1: the task and one observation need"):
        episode.act("w1 " * 100, ["w2"])
    with pytest.raises(PolicyError, match=f"episode {episode.id} is over: step 1"):
        episode.act("w1", ["w2"])
    other = agent.episode("w0")
    other.act("w1", ["w2"])
    other.finish(success=True)
    episode.finish(success=False)  # the application does not know better
    with pytest.raises(PolicyError, match="is over"):
        episode.finish()
    found = imported(tmp_path)
    assert (found[episode.id].outcome, len(found[episode.id].steps)) == (Outcome.ERROR, 1)
    assert found[other.id].outcome is Outcome.SUCCESS


def test_a_first_step_that_failed_is_in_nobodys_way(make_agent: Any) -> None:
    agent = make_agent(slots=1)
    broken = agent.episode("w0")
    with pytest.raises(PolicyError, match="step 0"):
        broken.act("w1", ["w2", "unknown", "unheard"])  # both are <unk>, and cannot be told apart
    other = agent.episode("w0")
    assert [other.act("w1", ["w2"]) for _ in range(2)] == ["w2"] * 2
    assert broken.id != other.id


def test_an_action_that_cannot_be_written_is_not_returned(
    make_agent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()
    episode = agent.episode("w0")
    episode.act("w1", ["w2"])

    def full(file: int, text: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("retroformer.serving.recording.os.write", full)
        with pytest.raises(OSError, match="No space left"):
            episode.act("w1", ["w2"])
    episode.finish(success=True)
    (found,) = imported(tmp_path).values()
    assert (found.outcome, len(found.steps)) == (Outcome.ERROR, 1), "a step is missing: no success may be learned"


def test_what_a_caller_can_mend_is_one_sentence(make_agent: Any, tmp_path: Path) -> None:
    agent = make_agent()
    episode = agent.episode("w0")
    for arguments, told in (
        ((3, ["w1"]), "the observation is int, expected text"),
        ((" ", ["w1"]), "the observation is empty"),
        (("\ud800", ["w1"]), "half of a surrogate pair"),
        (("w1", []), r"admissible_actions is \[\], expected at least one"),
        (("w1", "w1"), "admissible_actions is 'w1'"),
        (("w1", ["w1", "w1"]), "an action twice"),
        (("w1", ["w1", 2]), "an admissible action is int"),
    ):
        with pytest.raises(ConfigError, match=told):
            episode.act(*arguments)
    with pytest.raises(PolicyError, match="no action yet"):
        episode.reward(1)
    episode.act("w1", ["w1"])
    for call, told in (
        (lambda: episode.reward(float("nan")), "the reward is nan"),
        (lambda: episode.finish(success="yes"), "success is 'yes', expected True or False"),
        (lambda: agent.report(episode.id), "nothing is said"),
        (lambda: agent.report(3, success=True), "the episode is 3"),
        (lambda: agent.episode(3), "description is int"),
        (lambda: agent.episode("w0", attempt=-1), "attempt -1"),
        (lambda: make_agent(seed=1).act_many([(episode, "w1", ["w1"])]), "another agent's"),
        (lambda: retroformer.load_agent("x", temperature=-1), "temperature is -1"),
        (lambda: retroformer.load_agent("x", slots=0), "slots is 0"),
    ):
        with pytest.raises(ConfigError, match=told):
            call()
    assert [one["event"] for one in events(tmp_path / "runs")] == ["start", "step"], "nothing of this was recorded"


def test_a_policy_is_opened_by_whatever_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data/history/round-0001/challenger"
    folder.mkdir(parents=True)
    build(tiny_config().policy, WORDS, seed=0).save(folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    agent = retroformer.load_agent(folder, record="runs", seed=0)
    assert agent.version == policy_hash(str(folder))[:16]
    relative = folder.relative_to(tmp_path).as_posix()
    pins = Pins(1, Pin(relative, policy_hash(relative, tmp_path)), None)
    write_pins(tmp_path / "data/champion.json", pins)
    pinned = retroformer.load_agent("../data/champion.json", seed=0)
    assert pinned.version == agent.version
    asked = ("w1 w2", ["w3", "w4", "w5"])
    with agent.episode("w0") as one, pinned.episode("w0") as other:
        assert [one.act(*asked) for _ in range(4)] == [other.act(*asked) for _ in range(4)]
    assert len(events(Path("runs"))) == 6, "only one of them records"
    with pytest.raises(ConfigError, match="records nothing"):
        pinned.report(other.id, success=True)
    (folder / "retroformer.json").write_text("{}")
    with pytest.raises(PinMismatch, match="has hash"):
        retroformer.load_agent(tmp_path / "data/champion.json")
    with pytest.raises(DataError, match=r"no mlruns/mlflow\.db in"):
        retroformer.load_agent("models:/retroformer@champion")
    with pytest.raises(DataError, match="names no version"):
        retroformer.load_agent("models:/retroformer")


def test_a_scripted_agent_is_one_too(tmp_path: Path) -> None:
    agent = retroformer.load_agent("scripted:random", record=tmp_path / "runs", slots=1)
    episodes = [agent.episode("w0") for _ in range(2)]
    play(agent, episodes, steps=3)
    for episode in episodes:
        episode.finish(success=True)
    found = imported(tmp_path).values()
    assert {one.policy for one in found} == {"scripted:random"}
    assert all(step.logprob is not None for one in found for step in one.steps)
    with pytest.raises(PolicyError, match="has no temperature"):
        retroformer.load_agent("scripted:random", temperature=0)


def test_an_unknown_attribute_of_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_agnet'"):
        retroformer.load_agnet  # noqa: B018
