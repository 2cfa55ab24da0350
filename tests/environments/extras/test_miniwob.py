import pytest

from retroformer.environments import known
from retroformer.environments.checker import check_environment
from retroformer.environments.packages import find
from retroformer.errors import EnvironmentFault


def click_on(observation: str, text: str) -> str:
    from retroformer.environments.miniwob import click

    return click(int(next(line for line in observation.splitlines() if line.endswith(text)).split()[0]))


def test_a_page_is_solved_by_a_tool_call(made) -> None:
    environment = made("miniwob:click-button")
    for seed in range(3):
        observation, info = environment.reset(seed=seed)
        target = info["task"].split('"')[1]
        action = click_on(observation, f"button: {target}")
        assert action in info["admissible_actions"]
        assert environment.step(action)[1:] == (1.0, True, False, {"success": True})


def test_a_wrong_click_is_a_failure_with_minus_one(made) -> None:
    environment = made("miniwob:click-test-2")
    observation, _ = environment.reset(seed=0)
    assert environment.step(click_on(observation, ": TWO"))[1:] == (-1.0, True, False, {"success": False})


def test_text_is_typed_into_the_element(made) -> None:
    environment = made("miniwob:enter-text")
    from retroformer.environments.miniwob import focus_and_type

    observation, info = environment.reset(seed=1)
    text = info["task"].split('"')[1]
    field = int(observation.split()[0])
    typed = focus_and_type(field, text)
    assert typed in info["admissible_actions"]
    observation, reward, *_, info = environment.step(typed)
    assert text in observation
    assert reward == 0.0
    assert environment.step(click_on(observation, ": Submit"))[1:] == (1.0, True, False, {"success": True})


@pytest.mark.parametrize("task", ["click-button", "enter-text"])
def test_it_keeps_the_contract(made, task: str) -> None:
    made(f"miniwob:{task}")
    report = check_environment(f"miniwob:{task}")
    assert report.problems == {}, list(report.lines())


def test_a_call_on_nothing_raises(made) -> None:
    environment = made("miniwob:click-button")
    from retroformer.environments.miniwob import click

    environment.reset(seed=0)
    for action in (click(999), "click 4", '<tool_call>\n{"name": "click", "arguments": {"ref": true}}\n</tool_call>'):
        with pytest.raises(EnvironmentFault, match=r"cannot do .* now: expected one call of click"):
            environment.step(action)


def test_tasks_for_a_mouse_are_left_out(made) -> None:
    made("miniwob:click-button")
    names = known("miniwob")
    assert "click-checkboxes" in names
    assert not {"drag-box", "draw-line", "flight.AA", "use-slider"} & set(names)


def test_a_browser_that_is_not_there_is_told_with_what_installs_it(made, monkeypatch) -> None:
    made("miniwob:click-button")
    monkeypatch.setenv("MINIWOB_CHROMEDRIVER", "/nowhere/chromedriver")
    with pytest.raises(EnvironmentFault, match=r"MINIWOB_CHROMEDRIVER is /nowhere/chromedriver.*apt-get install"):
        find("miniwob").make("click-button")
    monkeypatch.delenv("MINIWOB_CHROMEDRIVER")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentFault, match="there is no chromedriver on PATH"):
        find("miniwob").make("click-button")
