"""Say that trajectories arrived: `python flows/arrived.py [PATH ...]`, from the project's root.

Files and folders that are named are copied to the inbox, data/inbox. Then the event goes to the server that
PREFECT_API_URL names, and starts a round there (prefect.yaml, deployment `arrived`). An application can send the same
event itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from retroformer.arrivals import INBOX, receive
from retroformer.config import load_config
from retroformer.errors import RetroformerError

EVENT = "retroformer.trajectories.arrived"
RESOURCE = "retroformer.logs"


def main() -> int:
    """Copy the files, send the event. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="logs to copy to the inbox first")
    asked = parser.parse_args()
    try:
        received = receive(asked.paths, load_config().collect.format)
    except RetroformerError as error:
        print(f"arrived: error: {error}", file=sys.stderr)
        return 2
    for path in received:
        print(f"received {path}")
    if not os.environ.get("PREFECT_API_URL"):
        kept = "; the files wait for the next run" if received else ""
        print(f"arrived: error: PREFECT_API_URL names no server, nobody was told{kept}", file=sys.stderr)
        return 2

    import improve  # noqa: F401  before Prefect, whose settings it makes

    told = asyncio.run(tell([path.relative_to(INBOX).as_posix() for path in received]))
    print(f"told {os.environ['PREFECT_API_URL']}" if not told else f"arrived: error: {told}", file=sys.stderr)
    return 2 if told else 0


async def tell(names: list[str]) -> str:
    """Send the event. Returns why it could not be sent, empty where it was."""
    from prefect.client.orchestration import get_client
    from prefect.events import Event, Resource
    from prefect.events.clients import get_events_client

    async with get_client() as client:
        if error := await client.api_healthcheck():
            return f"{client.api_url} does not answer ({error}); is `make serve` running?"
    async with get_events_client() as events:
        await events.emit(
            Event(event=EVENT, resource=Resource({"prefect.resource.id": RESOURCE}), payload={"files": names})
        )
    return ""


if __name__ == "__main__":
    sys.exit(main())
