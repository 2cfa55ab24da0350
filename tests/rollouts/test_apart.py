"""Environments in a process apart, against those that break it."""

from __future__ import annotations

import os
import re
import socket
import sys
import time

import psutil
import pytest

from retroformer.errors import EnvironmentFault
from retroformer.policies import open_agent
from retroformer.rollouts import apart
from retroformer.rollouts.apart import Apart
from retroformer.rollouts.engine import play
from retroformer.rollouts.episodes import Conditions, Episode
from retroformer.rollouts.lanes import Order
from retroformer.rollouts.processes import alone
from retroformer.types import Outcome, StopReason

GUILTY = {1, 4}
"""Of seeds 0 to 5, those that break in `chaos.One`."""


def conditions(**options):
    return Conditions(0, "compact", "token", **{"environments": 3, "max_step_seconds": 2.0, **options})


def run(task, count=6, **options):
    """By seed, what came of episodes of chaos.One, and the processes that were replaced."""
    told = conditions(**options)
    lanes = Apart(told)
    episodes = [Episode(f"chaos.One:{task}", seed, "train") for seed in range(count)]
    try:
        played = list(play(open_agent("scripted:random", slots=3), episodes, told, lanes))
    finally:
        lanes.close()
    assert len(played) == count
    return {one.episode.seed: one.trajectory for one in played}, dict(lanes.replaced)


@pytest.fixture(scope="module")
def sound():
    return run("sound")[0]


def alike(one, other):
    """The same but for the task's name, which is part of the chance."""
    return (one.outcome, [step.observation for step in one.steps]) == (
        other.outcome,
        [step.observation for step in other.steps],
    )


@pytest.mark.parametrize(
    ("task", "message", "replaced"),
    [
        ("hang", r"Hung: no answer within collect\.max_step_seconds = 2, in hang at chaos\.py:\d+ \(at st.*", "Hung"),
        ("segfault", r"Died: .* ended by SIG(?:SEGV|ABRT), in string_at at __init__\.py:\d+ \(at st.*", "Died"),
        ("exit", r"Died: its process exited with code 3 \(at step 1, .*\)", "Died"),
        ("closes", r"Died: it closed the connection of its process: .* \(at step 1, .*\)", "Died"),
        ("interrupts", r"KeyboardInterrupt: stop \(at step 1, the admissible action '\w+'\)", None),
        ("kill", r"Died: its process was ended by SIGKILL \(at step 1, .*\)", "Died"),
        ("forks", r"Died: an os\.fork\(\) of an environment returned twice: .* \(at step 1, .*\)", "Died"),
        ("quits", r"SystemExit: enough \(at step 1, the admissible action '\w+'\)", None),
        ("lies", r"ValueError: that cannot be done \(at step 1, the admissible action '\w+'\)", None),
        ("twice", r"ValueError: info.* has 'left' twice: name every action once \(at step 1, .*\)", None),
        ("none", r"ValueError: .* must hold at least one action: end the episode instead \(at step 1, .*\)", None),
        ("letters", r"TypeError: info\['admissible_actions'\] must be a tuple of str, got str \(at step 1, .*\)", None),
        ("hang_in_reset", r"Hung: .* in reset at chaos\.py:\d+ \(at its start\)", "Hung"),
        ("some_seeds", r"FileNotFoundError: no level \d", None),
    ],
)  # fmt: skip
def test_what_breaks_ends_its_own_episode_with_what_was_seen_and_no_other(task, message, replaced, sound):
    found, processes = run(task)
    for seed, one in found.items():
        if seed in GUILTY:
            assert (one.outcome, one.stop_reason) == (Outcome.ERROR, StopReason.EXCEPTION)
            assert one.error is not None
            assert re.fullmatch(message, one.error), one.error
        else:
            assert one.outcome is Outcome.SUCCESS
            assert alike(one, sound[seed])
    assert processes == ({replaced: len(GUILTY)} if replaced else {})


def test_a_process_that_ends_with_nothing_in_flight_costs_nobody_an_episode(sound):
    found, processes = run("thread")
    assert all(alike(one, sound[seed]) for seed, one in found.items() if one.outcome is Outcome.SUCCESS)
    assert all((one.error or "").startswith("Died: ") for one in found.values() if one.outcome is Outcome.ERROR)
    assert set(processes) <= {"Died"}


def test_what_is_no_message_is_that_of_the_step_that_wrote_it_and_of_no_slow_neighbour(monkeypatch, sound):
    monkeypatch.setattr("retroformer.rollouts.processes.WHOLE", 1)
    found, processes = run("writes")
    for seed, one in found.items():
        if seed in GUILTY:
            assert re.match(r"Died: it wrote into a file that is not its own, .* \(at step 1, ", one.error or ""), (
                one.error
            )
        else:
            assert alike(one, sound[seed])
    assert set(processes) == {"Died"}


def test_an_alarm_that_is_left_goes_off_in_nobody_elses_step(sound):
    found, processes = run("alarm")
    assert all(alike(one, sound[seed]) for seed, one in found.items())
    assert processes == {}


def test_a_default_timeout_of_sockets_is_not_the_connections():
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5.0)
    try:
        lanes = Apart(conditions())
        lanes.do([Order(0, Episode("chaos.One:sound", 0, "train"))])
        assert lanes._served is not None
        assert os.get_blocking(lanes._served.connection.fileno())
        lanes.close()
    finally:
        socket.setdefaulttimeout(default)


def test_one_that_cannot_be_restored_says_so():
    found, _ = run("unlike", count=3)
    assert found[1].error.startswith("Died: its process exited with code 9")
    for seed in (0, 2):
        assert found[seed].outcome is Outcome.ERROR
        assert "Unrestorable: its process was replaced, and then it went another way at its start" in found[seed].error


def test_a_port_that_is_taken_is_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("CHAOS_PORT", str(server.getsockname()[1]))
        found, _ = run("port", count=3)
    assert {one.outcome for one in found.values()} == {Outcome.ERROR}
    for one in found.values():
        assert "Address already in use" in one.error


@pytest.mark.parametrize(("task", "limit", "mebibytes"), [("leak", "GROWTH", 30), ("leak_outside", "STARTED", 60)])
def test_a_process_that_leaks_is_replaced_and_nobody_notices(task, limit, mebibytes, monkeypatch, sound):
    monkeypatch.setattr(apart, "LOOK", 0.0)
    monkeypatch.setattr(apart, limit, mebibytes << 20)
    found, processes = run(task)
    assert all(alike(one, sound[seed]) for seed, one in found.items())
    assert processes["Grew"] >= 1


def test_a_task_that_always_ends_its_process_is_given_up():
    found, processes = run("exit_in_reset", count=12)
    assert {one.outcome for one in found.values()} == {Outcome.ERROR}
    assert processes == {"Died": apart.IN_VAIN}
    assert "Died: not tried" in found[11].error


DAEMONS_NEED = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere daemons are nobody's children")


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ("leaves", "Hung"),
        pytest.param("daemon", None, marks=DAEMONS_NEED),
        pytest.param("daemon_exits", "Died: its process exited with code 3", marks=DAEMONS_NEED),
    ],
)
def test_what_an_environment_started_ends_with_it(task, error, tmp_path, monkeypatch):
    monkeypatch.setenv("LEAVES", str(tmp_path / "pids"))
    found, _ = run(task, count=2, max_step_seconds=1.0)
    assert found[1].error is None if error is None else found[1].error.startswith(error)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 1
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_an_environment_that_does_not_close_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(apart, "CLOSE", 0.2)
    found, _ = run("hang_in_close")
    assert {one.outcome for one in found.values()} == {Outcome.SUCCESS}


def hang():
    time.sleep(3600)


def test_what_is_called_alone_may_do_anything():
    assert alone(max, 3, 5, what="it", seconds=60) == 5
    with pytest.raises(EnvironmentFault, match=r"it does not answer within 2 s"):
        alone(hang, what="it", seconds=2)
    with pytest.raises(EnvironmentFault, match="it cannot be used: its process exited with code 4"):
        alone(os._exit, 4, what="it", seconds=60)
    with pytest.raises(EnvironmentFault, match="it cannot be used: ValueError: invalid literal"):
        alone(int, "x", what="it", seconds=60)
