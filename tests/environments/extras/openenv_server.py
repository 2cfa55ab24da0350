"""Three environments made with OpenEnv's own classes, on a free port of the loopback, which is printed.

At ``/`` a game of guessing, whose actions have fields; at ``/words`` one whose action is a text; at ``/till`` one that
speaks MCP. The first argument is how many sessions each may have.
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Literal

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

MOST = 4


class Guess(Action):
    """Guess the number."""

    number: int = Field(ge=1, le=9, description="From 1 to 9.")
    tone: Literal["sure", "unsure"] = "sure"

    @field_validator("number")
    @classmethod
    def not_seven(cls, number: int) -> int:
        """No JSON schema knows this."""
        if number == 7:
            raise PydanticCustomError("seven", "seven is not for guessing")
        return number


class Hint(Observation):
    hint: str
    left: int
    solved: bool = False


class Guessing(Environment[Guess, Hint, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.secret = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None) -> Hint:
        if seed == 666:
            raise OSError("the level is missing")
        self.secret, self.left = 1 + (seed or 0) % 6, MOST
        return Hint(hint="guess", left=MOST, done=seed == 13)

    def step(self, action: Guess) -> Hint:
        if not self.secret:
            raise RuntimeError("not reset")
        if action.number == 9 and action.tone == "unsure":
            time.sleep(2)
        if action.number == 8 and action.tone == "unsure":
            raise RuntimeError("the table fell over")
        self.left -= 1
        solved = action.number == self.secret
        hint = "right" if solved else "more" if action.number < self.secret else "less"
        return Hint(hint=hint, left=self.left, solved=solved, done=solved or self.left == 0, reward=float(solved))

    @property
    def state(self) -> State:
        return State()

    def get_metadata(self) -> EnvironmentMetadata:
        return EnvironmentMetadata(name="guessing", description="Find the number from 1 to 9.")


class Word(Action):
    word: str = Field(description="One word.")


class Echo(Observation):
    echo: str = ""


class Words(Environment[Word, Echo, State]):
    """Say a word with the letter; it never ends by itself."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None) -> Echo:
        self.letter = "abc"[(seed or 0) % 3]
        return Echo(echo=self.letter)

    def step(self, action: Word) -> Echo:
        return Echo(echo=action.word, reward=0.25 if self.letter in action.word else None)

    @property
    def state(self) -> State:
        return State()


class Till(MCPEnvironment):
    """Tools that know nothing of an end."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        tools = FastMCP("till")

        @tools.tool
        def give(coin: int) -> str:
            """Give a coin."""
            if coin not in (1, 2, 5):
                raise ValueError(f"there is no coin of {coin}")
            return f"given {coin}"

        super().__init__(tools)

    def reset(self, seed: int | None = None, episode_id: str | None = None) -> Observation:
        return Observation()

    def _step_impl(self, action: Action, timeout_s: float | None = None, **kwargs: object) -> Observation:
        raise NotImplementedError

    @property
    def state(self) -> State:
        return State()


def main(sessions: int) -> None:
    app = create_fastapi_app(Guessing, Guess, Hint, max_concurrent_envs=sessions)
    app.mount("/words", create_fastapi_app(Words, Word, Echo, max_concurrent_envs=sessions))
    app.mount("/till", create_fastapi_app(Till, CallToolAction, CallToolObservation, max_concurrent_envs=sessions))
    bound = socket.create_server(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0))
    print(bound.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[bound])


if __name__ == "__main__":
    main(int(sys.argv[1]))
