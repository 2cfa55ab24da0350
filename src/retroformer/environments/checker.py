"""The contract of `retroformer.environments.protocol`, executed: plays an environment and says what breaks it."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from itertools import cycle
from typing import Any

import numpy as np

from retroformer.chat import ToolCall, write_action
from retroformer.environments import make, split_name, start
from retroformer.environments.packages import find
from retroformer.environments.protocol import MOST_TEXT, TextEnvironment, section
from retroformer.environments.watched import Doing, Watched
from retroformer.errors import EnvironmentFault

SEEDS = (*range(10), 1_000_100_000, 5_999_999_999)
"""Of the episodes that are played; the last is the largest that a round has."""
FEW = 4
"""How many of them are played again in other ways."""
MAX_STEPS = 2000
"""An episode that goes on for longer does not end."""
MAX_ACTIONS = 40
"""How many of the first admissible actions are each tried on their own."""
SECONDS = 60.0
"""No new episode of random play is started after this many."""
SHOWN = 3
"""Places shown for one paragraph of the contract."""
NONSENSE = "\u2603 what nobody offers"
WRONG_CALLS = (write_action(calls=[ToolCall("no_such_tool", {})]), "<tool_call>\n{nonsense\n</tool_call>", NONSENSE)


@dataclass(frozen=True, slots=True)
class Moment:
    """What an environment said at one point of an episode."""

    observation: str
    admissible: tuple[str, ...] | None
    reward: float
    ends: tuple[bool, ...]
    """terminated, truncated"""
    success: bool | None


@dataclass(slots=True)
class Record:
    """An episode as it was played."""

    seed: int
    task: str = ""
    tools: tuple[str, ...] = ()
    moments: list[Moment] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    raised: str | None = None
    """What stopped it before its end."""


@dataclass(slots=True)
class Report:
    """What was found: problems by paragraph of the contract, and facts about the environment."""

    name: str
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    facts: list[str] = field(default_factory=list)

    def add(self, paragraph: str, what: str) -> None:
        """Note what breaks a paragraph of the contract."""
        if what not in self.problems[paragraph]:
            self.problems[paragraph].append(what)

    def lines(self) -> Iterator[str]:
        """The report as a person reads it."""
        yield f"{self.name}: {'; '.join(self.facts) or 'could not be played'}"
        for paragraph, found in self.problems.items():
            yield from (f"  {paragraph}: {what}" for what in found[:SHOWN])
            if len(found) > SHOWN:
                yield f"  {paragraph}: and {len(found) - SHOWN} more of this kind"
            yield f"    the contract says: {section(paragraph)}"
        if not self.problems:
            yield "  nothing was found that breaks the contract"


def check_environment(
    name: str, *, text: str = "compact", actions: str = "token", doing: Callable[..., None] = lambda what, calls=1: None
) -> Report:
    """Play the environment that ``package:task`` names, and report what breaks the contract.

    `doing` is told what is done next, and how many calls that takes. Raises EnvironmentFault where the environment is
    unknown or cannot start.
    """
    report, telling = Report(name), {"text": text, "actions": actions}
    with opened(report, telling, doing) as environment:
        if not isinstance(environment.family, str) or not environment.family:
            report.add("Episode", f"family is {environment.family!r}, expected a word")
        expect_raise(report, "Episode", "a step before the first reset", lambda: environment.step(NONSENSE))
        records = play_randomly(report, environment)
        if records:
            check_actions(report, environment, records[0])
            if found := report.problems.keys() & {"Texts", "Task", "Reward"}:
                report.facts.append(f"missions are tried where nothing breaks {' and '.join(sorted(found))}")
            else:
                check_missions(report, environment, [one for one in records if one.raised is None][:FEW])
            check_expert(report, environment, [one.seed for one in records])
    if records:
        doing("played again in another process", 2 + len(records) + FEW)
        check_determinism(report, telling, records)
        check_lexicon(report, telling, records)
    return report


@contextmanager
def opened(report: Report, telling: dict[str, str], doing: Doing = lambda what: None) -> Iterator[TextEnvironment]:
    """A new environment of the report's name, closed afterwards."""
    doing("its start")
    try:
        environment: Any = Watched(make(report.name, **telling), doing, lambda what: report.add("Episode", what))
    except SystemExit as error:
        raise EnvironmentFault(f"{report.name} cannot start: it called sys.exit({error.code!r})") from None
    try:
        yield environment
    finally:
        try:
            environment.close()
        except Exception as error:
            report.add("Episode", f"close raised {told(error)}")


def told(error: Exception) -> str:
    """An exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def expect_raise(report: Report, paragraph: str, what: str, act: Callable[[], Any]) -> None:
    """Note `what` where `act` does not raise."""
    try:
        act()
    except Exception:
        return
    report.add(paragraph, f"{what} does not raise")


def unpacked(result: Any, method: str, parts: str) -> Sequence[Any]:
    """What `method` gave. Raises TypeError where it is not a tuple of these parts."""
    if not isinstance(result, tuple) or len(result) != parts.count(",") + 1:
        size = f" of {len(result)}" if isinstance(result, tuple) else ""
        raise TypeError(f"{method} gave a {type(result).__name__}{size}, expected ({parts})")
    return result


def play(
    report: Report, environment: TextEnvironment, seed: int, choose: Callable[[Moment, int], str | None]
) -> Record:
    """One episode, until it ends or `choose` says None, with everything that is said held against the contract."""
    record = Record(seed)
    try:
        result = environment.reset(seed=seed, options={"mission": "true"})
        observation, info = unpacked(result, "reset", "observation, info")
    except Exception as error:
        record.raised = told(error)
        return record
    where = f"seed {seed}, reset"
    told_of = info if isinstance(info, dict) else {}
    record.task = told_of.get("task", "")
    if not isinstance(record.task, str) or not record.task:
        report.add("Task", f"{where}: info['task'] is {told_of.get('task')!r}, expected what the agent is to do")
    record.tools = check_tools(report, where, told_of.get("tools", ()))
    choice = "admissible_actions" in told_of
    record.moments.append(observed(report, where, observation, info, choice))
    while not any(record.moments[-1].ends):
        t = len(record.actions)
        where = f"seed {seed}, step {t}"
        if t >= MAX_STEPS:
            report.add("End", f"seed {seed}: {MAX_STEPS} steps and no end")
            return record
        action = choose(record.moments[-1], t)
        if action is None:
            return record
        record.actions.append(action)
        try:
            result = environment.step(action)
        except Exception as error:
            record.raised = told(error)
            admissible = f"the {'admissible' if choice else 'written'} action {action!r}"
            report.add("Actions", f"{where}: {admissible} raised {record.raised}")
            return record
        try:
            observation, reward, *ends, info = unpacked(
                result, "step", "observation, reward, terminated, truncated, info"
            )
        except TypeError as error:
            record.raised = told(error)
            report.add("Episode", f"{where}: {error}")
            return record
        record.moments.append(observed(report, where, observation, info, choice, reward, tuple(ends)))
    expect_raise(report, "Episode", "a step after the end", lambda: environment.step(record.actions[-1]))
    return record


def observed(
    report: Report,
    where: str,
    observation: Any,
    info: Any,
    choice: bool,
    reward: Any = 0.0,
    ends: tuple[Any, ...] = (False, False),
) -> Moment:
    """What was said at one point, held against the contract."""
    if not isinstance(observation, str) or not observation:
        report.add("Texts", f"{where}: the observation is {observation!r:.80}, expected a str with something in it")
    elif len(observation) > MOST_TEXT:
        report.add("Texts", f"{where}: the observation has {len(observation):,} characters, at most {MOST_TEXT:,}")
    elif observation.encode(errors="replace").decode() != observation:
        report.add("Texts", f"{where}: the observation has characters that UTF-8 cannot hold")
    if not isinstance(info, dict):
        report.add("Texts", f"{where}: info is a {type(info).__name__}, expected a dict")
        info = {}
    try:
        finite = math.isfinite(reward)
    except (TypeError, OverflowError):
        finite = False
    if not finite:
        report.add("Reward", f"{where}: the reward is {reward!r:.80}, expected a finite number")
    for name, value in zip(("terminated", "truncated"), ends, strict=True):
        if not isinstance(value, (bool, np.bool_)):
            report.add("End", f"{where}: {name} is {value!r:.80}, expected true or false")
    admissible, success = None, info.get("success")
    if any(ends):
        if not isinstance(success, (bool, np.bool_)):
            report.add("End", f"{where}: the episode ends and info['success'] is {success!r:.80}")
        elif success and not ends[0]:
            report.add("End", f"{where}: the episode is truncated and a success")
    elif choice:
        admissible = check_admissible(report, where, info.get("admissible_actions"))
    elif "admissible_actions" in info:
        report.add("Actions", f"{where}: info['admissible_actions'] is there, which it was not at reset")
    return Moment(
        str(observation),
        admissible,
        float(reward) if finite else 0.0,
        tuple(bool(one) for one in ends),
        None if success is None else bool(success),
    )


def check_admissible(report: Report, where: str, actions: Any) -> tuple[str, ...]:
    """The admissible actions that can be used."""
    if not isinstance(actions, (tuple, list)):
        report.add("Actions", f"{where}: info['admissible_actions'] is {actions!r:.80}, expected a tuple of str")
        return ()
    wrong = [one for one in actions if not isinstance(one, str) or not one.split()]
    if wrong:
        report.add("Actions", f"{where}: an admissible action is {wrong[0]!r:.80}, expected a str with words in it")
    sound = tuple(one for one in actions if isinstance(one, str) and one.split())
    if not sound:
        report.add("Actions", f"{where}: no action is admissible and the episode goes on")
    twice = [one for one, count in Counter(sound).items() if count > 1]
    if twice:
        report.add("Actions", f"{where}: {twice[0]!r} is admissible twice")
    words: dict[str, str] = {}
    for one in sound:
        if (other := words.setdefault(" ".join(one.split()), one)) != one:
            report.add("Actions", f"{where}: {other!r} and {one!r} differ in white space alone, which few models see")
    return sound


def check_tools(report: Report, where: str, tools: Any) -> tuple[str, ...]:
    """The names of the tools."""
    names = []
    for tool in tools if isinstance(tools, (list, tuple)) else [tools]:
        sound = isinstance(tool, dict) and set(tool) == {"name", "description", "parameters"} and tool["name"]
        if not sound or not isinstance(tool["parameters"], dict) or tool["parameters"].get("type") != "object":
            report.add("Tools", f"{where}: a tool is {tool!r:.120}")
            continue
        try:
            json.dumps(tool)
        except (TypeError, ValueError) as error:
            report.add("Tools", f"{where}: tool {tool['name']} cannot be written as JSON: {error}")
        names.append(tool["name"])
    return tuple(names)


def play_randomly(report: Report, environment: TextEnvironment) -> list[Record]:
    """A random episode for every seed, as long as there is time; those that started."""

    def anything(chance: np.random.Generator) -> Callable[[Moment, int], str | None]:
        def choose(moment: Moment, t: int) -> str | None:
            if moment.admissible is None:
                return WRONG_CALLS[min(t, 2)]
            return moment.admissible[chance.integers(len(moment.admissible))] if moment.admissible else None

        return choose

    records, began = [], time.monotonic()
    for seed in SEEDS:
        if time.monotonic() - began < SECONDS:
            records.append(play(report, environment, seed, anything(np.random.default_rng(seed))))
    seconds = time.monotonic() - began
    failed = [one for one in records if not one.moments]
    if failed:
        seeds = ", ".join(str(one.seed) for one in failed)
        first = failed[0].raised
        report.add("Episode", f"reset fails for {len(failed)} of {len(records)} seeds ({seeds}), first with {first}")
    started = [one for one in records if one.moments]
    if started:
        steps = [len(one.actions) for one in started]
        counts = [len(moment.admissible) for one in started for moment in one.moments if moment.admissible]
        solved = [one.moments[-1].success for one in started if any(one.moments[-1].ends)]
        mode = f"{min(counts)} to {max(counts)} admissible actions" if counts else "text mode"
        report.facts += [
            f"{len(started)} episodes of {min(steps)} to {max(steps)} steps, {sum(steps) / seconds:,.0f} steps/s",
            mode + (f", tools {', '.join(started[0].tools)}" if started[0].tools else ""),
            f"random actions solve {sum(map(bool, solved))} of {len(solved)}",
        ]
    return started


def check_actions(report: Report, environment: TextEnvironment, record: Record) -> None:
    """What may be chosen can be done and nothing else can; in text mode nothing raises. At the first step."""
    admissible = record.moments[0].admissible
    tries = [write_action(calls=[ToolCall(tool, {})]) for tool in record.tools]
    if admissible is not None:
        environment.reset(seed=record.seed, options={"mission": "true"})
        expect_raise(report, "Actions", "an action that is not admissible", lambda: environment.step(NONSENSE))
        tries = [*admissible[:MAX_ACTIONS]]
    for action in tries:
        play(report, environment, record.seed, lambda _, t, only=action: only if t == 0 else None)


def check_missions(report: Report, environment: TextEnvironment, records: Iterable[Record]) -> None:
    """A swapped mission changes what is told, not what happens."""
    for record in records:
        for mission in ("shuffled", "other"):
            where = f"seed {record.seed}, mission {mission}"
            try:
                _, info = start(environment, record.seed, mission)
            except EnvironmentFault as error:
                report.facts.append(str(error))
                return
            except Exception as error:
                report.add("Mission", f"{where}: reset raised {told(error)}")
                return
            if info.get("task") == record.task:
                report.add("Mission", f"{where}: the agent is told the true one, {record.task!r:.80}")
            rewards = []
            try:
                for action in record.actions:
                    rewards.append(float(environment.step(action)[1]))
            except Exception as error:
                report.add("Mission", f"{where}: what could be done with the true one raised {told(error)}")
                continue
            if rewards != [moment.reward for moment in record.moments[1:]]:
                report.add("Mission", f"{where}: the same actions are rewarded otherwise than with the true one")


def check_expert(report: Report, environment: TextEnvironment, seeds: Sequence[int]) -> None:
    """What the expert says can be done. How often it succeeds is for the reader to judge."""
    ask = getattr(environment, "expert_action", None)
    if ask is None:
        return
    silent = 0

    def choose(moment: Moment, t: int) -> str | None:
        nonlocal silent
        action = ask()
        if action is None:
            silent += 1
        elif moment.admissible is not None and action not in moment.admissible:
            report.add("Expert", f"step {t}: it says {action!r:.80}, which is not admissible")
        return action

    records = [play(report, environment, seed, choose) for seed in seeds[:FEW]]
    solved = sum(bool(one.moments and one.moments[-1].success) for one in records)
    report.facts.append(f"its expert solves {solved} of {len(records)}" + (f", silent in {silent}" if silent else ""))


def replay(name: str, telling: dict[str, str], records: Sequence[Record]) -> list[Record]:
    """The same seeds and actions on another instance, the last first: an episode must not depend on the one before."""
    with opened(Report(name), telling) as environment:
        return [
            play(Report(name), environment, one.seed, lambda _, t, actions=one.actions: (*actions, None)[t])
            for one in reversed(records)
        ][::-1]


def replay_beside(name: str, telling: dict[str, str], records: Sequence[Record]) -> list[Record]:
    """The same while another instance plays in the same process, one call of each in turn, as collection does it."""
    with opened(Report(name), telling) as environment, opened(Report(name), telling) as other:
        calls = calls_of(other, records[::-1])

        def play_one(one: Record) -> Record:
            def choose(moment: Moment, t: int) -> str | None:
                next(calls)
                return (*one.actions, None)[t]

            return play(Report(name), environment, one.seed, choose)

        return [play_one(one) for one in records]


def calls_of(environment: TextEnvironment, records: Sequence[Record]) -> Iterator[None]:
    """These episodes over and over, a call each time that the next is asked for."""
    for one in cycle(records):
        with suppress(Exception):  # what breaks here is told where it is played alone
            environment.reset(seed=one.seed, options={"mission": "true"})
            for action in one.actions:
                yield
                environment.step(action)
        yield


def check_determinism(report: Report, telling: dict[str, str], records: Sequence[Record]) -> None:
    """The same in another process, whose sets are in another order, and there beside another instance."""
    from joblib.externals.loky import ProcessPoolExecutor

    # An episode's own calls are what the other one's come between.
    few = [one for one in records if one.actions][:FEW]
    try:
        with ProcessPoolExecutor(1, env={"PYTHONHASHSEED": "1"}) as executor:
            again = executor.submit(replay, report.name, telling, records).result()
            beside = executor.submit(replay_beside, report.name, telling, few).result() if few else []
    except BrokenExecutor:
        report.add("Determinism", "played again in another process, it ended that process")
        return
    compare(report, records, again, "played again in another process")
    if "Determinism" not in report.problems:
        compare(report, few, beside, "played while another instance plays in the same process")


def compare(report: Report, records: Sequence[Record], again: Sequence[Record], how: str) -> None:
    """Note where an episode was another when it was played again."""
    for one, other in zip(records, again, strict=True):
        where = f"seed {one.seed}, {how}"
        if other.raised != one.raised:
            report.add("Determinism", f"{where}: it raised {other.raised}, before {one.raised}")
        elif one.task != other.task:
            report.add("Determinism", f"{where}: the task was {one.task!r:.80}, then {other.task!r:.80}")
        for t, (before, after) in enumerate(zip(one.moments, other.moments, strict=False)):
            differing = [
                entry.name for entry in fields(Moment) if getattr(before, entry.name) != getattr(after, entry.name)
            ]
            if differing:
                was, became = (getattr(moment, differing[0]) for moment in (before, after))
                report.add("Determinism", f"{where}, step {t}: {differing[0]} was {was!r:.80}, then {became!r:.80}")
                break


def check_lexicon(report: Report, telling: dict[str, str], records: Sequence[Record]) -> None:
    """A package that lists its words lists all of them."""
    words = set(find(split_name(report.name)[0]).lexicon(**telling))
    said = {word for one in records for moment in one.moments for word in moment.observation.split()}
    said |= {word for one in records for word in one.task.split()}
    said |= {word for one in records for moment in one.moments for word in " ".join(moment.admissible or ()).split()}
    lacking = said - words - {word for call in WRONG_CALLS for word in call.split()}
    if words and lacking:
        report.add("Lexicon", f"it lacks {', '.join(sorted(lacking)[:10])}")
