"""MiniWoB++ (Liu et al. 2018, arXiv 1802.08802; Farama's package): real web pages in Chromium, without a server.

The observation is the page's leaves, one a line with the reference that actions use: ``9 button: ok``. The actions are
tool calls in the form of `retroformer.chat`, a click on each leaf and, for what can be typed into, each of the texts
that the task's own field extractor finds in its sentence. A call that was not listed may be made too, as long as its
reference is on the page. Tasks that need dragging, drawing or coordinates are left out.

The reward is MiniWoB's raw one, in -1..1, without its decay by the clock; its clock is stopped, so that an episode does
not depend on how fast the agent is. Success is a positive reward. Each environment holds a browser, so let few advance
together (``collect.environments``).
"""

from __future__ import annotations

import os
import re
import shutil
from typing import Any

import gymnasium
import miniwob  # pyright: ignore[reportMissingImports]  # registers the tasks
from miniwob.action import ActionTypes  # pyright: ignore[reportMissingImports]

from retroformer.chat import ToolCall, read_action, write_action
from retroformer.environments.packages import EXTRAS
from retroformer.errors import EnvironmentFault

MAX_STEPS = 20
NEEDS_A_MOUSE = re.compile(
    r"drag|draw|resize|highlight|slider|colorwheel|angle|circle-center|midpoint|hot-cold|text-editor|^flight\."
)
PROGRAMS = {
    "MINIWOB_CHROME_BINARY": ("chromium", "chromium-browser", "google-chrome"),
    "MINIWOB_CHROMEDRIVER": ("chromedriver",),
}
TYPED = re.compile(r"input_(?!checkbox|radio|button|submit|range)|textarea|select")
TRIES = 2
"""How often a browser that does not start is started again."""

gymnasium.register_envs(miniwob)


def known() -> tuple[str, ...]:
    """The tasks that clicks and typing can solve."""
    names = (name.removeprefix("miniwob/").removesuffix("-v1") for name in gymnasium.registry if "miniwob/" in name)
    return tuple(name for name in names if not NEEDS_A_MOUSE.search(name))


def make(task: str) -> MiniWoB:
    """One of the tasks that `known` names. Raises EnvironmentFault where there is no Chromium or no driver."""
    for variable, names in PROGRAMS.items():
        found = os.environ.get(variable) or next((path for name in names if (path := shutil.which(name))), None)
        if found is None or not os.path.exists(found):
            missing = f"{variable} is {found}, which does not exist" if found else f"there is no {names[0]} on PATH"
            raise EnvironmentFault(f"miniwob needs Chromium and its driver, and {missing}: {EXTRAS['miniwob']}")
        os.environ[variable] = found
    return MiniWoB(task)


def click(ref: int) -> str:
    """The action that clicks an element."""
    return write_action(calls=[ToolCall("click", {"ref": ref})])


def focus_and_type(ref: int, text: str) -> str:
    """The action that clicks an element and types."""
    return write_action(calls=[ToolCall("focus_and_type", {"ref": ref, "text": text})])


class MiniWoB:
    """A task as a TextEnvironment, see `retroformer.environments.protocol`."""

    def __init__(self, task: str):
        self.task = task
        self.family = "miniwob"
        self.page: Any = gymnasium.make(f"miniwob/{task}-v1").unwrapped
        self.page.set_record_screenshots(False)
        self.refs: frozenset[int] = frozenset()
        self.admissible: tuple[str, ...] = ()
        self._open = False

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start episode `seed`."""
        if not self._open:
            self._start_browser()
        # Else what the last episode clicked has the focus.
        self.page.instance.driver.execute_script("document.activeElement && document.activeElement.blur();")
        seen, _ = self.page.reset(seed=seed)
        self._texts = tuple(dict.fromkeys(value for _, value in seen["fields"] if value))
        self._steps = 0
        observation = self._look(seen)
        return observation, {"task": seen["utterance"], "admissible_actions": self.admissible}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Make a call on an element of the page."""
        if not self.admissible:
            raise EnvironmentFault(f"miniwob:{self.task} is not running: reset it before a step")
        seen, _, terminated, _, info = self.page.step(self._parsed(action))
        self._steps += 1
        truncated = not terminated and self._steps >= MAX_STEPS
        reward = float(info["raw_reward"]) if terminated else 0.0
        if terminated or truncated:
            self.admissible = ()
            return "The page is gone.", reward, bool(terminated), truncated, {"success": reward > 0}
        observation = self._look(seen)
        return observation, reward, False, False, {"admissible_actions": self.admissible}

    def close(self) -> None:
        """End the browser."""
        if self._open:
            self.page.close()
            self._open = False

    def _start_browser(self) -> None:
        for attempt in range(TRIES):
            try:
                self.page.reset(seed=0)
                break
            except Exception as error:  # selenium raises several kinds: a port that is taken, a page not loaded in time
                if attempt == TRIES - 1:
                    raise EnvironmentFault(
                        f"miniwob:{self.task}: Chromium does not start: {str(error).splitlines()[0]}"
                    ) from error
        self._open = True
        # In ms. By MiniWoB's clock an agent that thinks for ten seconds has failed.
        self.page.instance.driver.execute_script("core.EPISODE_MAX_TIME = 86400000;")

    def _parsed(self, action: str) -> Any:
        """The action as MiniWoB's. Raises EnvironmentFault where it is none."""
        calls = read_action(action).calls
        arguments = calls[0].arguments if len(calls) == 1 else {}
        ref, text = arguments.get("ref"), arguments.get("text")
        if ref in self.refs and not isinstance(ref, bool):
            if calls[0].name == "click" and set(arguments) == {"ref"}:
                return self.page.create_action(ActionTypes.CLICK_ELEMENT, ref=ref)
            if calls[0].name == "focus_and_type" and isinstance(text, str) and len(arguments) == 2:
                return self.page.create_action(ActionTypes.FOCUS_ELEMENT_AND_TYPE_TEXT, ref=ref, text=text)
        raise EnvironmentFault(
            f"miniwob:{self.task} cannot do {action!r:.200} now: expected one call of click(ref) or "
            f"focus_and_type(ref, text) with ref among {', '.join(map(str, sorted(self.refs)))}"
        )

    def _look(self, seen: dict[str, Any]) -> str:
        """The page's leaves as lines; sets what can be done."""
        elements = seen["dom_elements"]
        parents = {one["parent"] for one in elements}
        lines, actions = [], []
        for one in elements:
            ref, tag, text = one["ref"], one["tag"], " ".join((one["text"] or str(one["value"])).split())
            if ref in parents:
                continue
            marks = f" #{one['id']}" * bool(one["id"]) + " focused" * bool(one["flags"][0])
            if ref < 0:  # a text among other elements
                lines.append(text)
                continue
            lines.append(f"{ref} {tag}{marks}: {text}" if text else f"{ref} {tag}{marks}")
            actions.append(click(ref))
            if TYPED.match(tag):
                actions += [focus_and_type(ref, typed) for typed in self._texts]
        self.refs = frozenset(one["ref"] for one in elements if one["ref"] > 0)
        self.admissible = tuple(actions) or tuple(click(ref) for ref in sorted(self.refs))
        return "\n".join(line for line in lines if line)
