"""Retroformer: turn the runs an LLM agent has already made into a better agent, and prove it.

`load_agent` opens a policy inside an application and records what it does, `report` says later how an episode ended.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retroformer.serving import load_agent, report

__version__ = "0.1.0"
__all__ = ["load_agent", "report"]


def __getattr__(name: str) -> Any:
    # What needs them imports them: the command line and the stages must start fast.
    if name in __all__:
        from retroformer import serving

        return getattr(serving, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
