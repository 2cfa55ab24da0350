"""Logs for the tests of the importers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from retroformer.environments.splits import of_instance
from retroformer.importers.conversation import Rules
from retroformer.importers.importing import import_logs
from retroformer.importers.outcomes import OutcomeRule

FIND = {"name": "find", "description": "Find an order.", "parameters": {"type": "object", "properties": {}}}
REFUND: dict[str, Any] = {
    "id": "r1",
    "task": "desk:refund",
    "model": "m-1",
    "temperature": 0.5,
    "reward": 1.0,
    "tools": [{"type": "function", "function": FIND}],
    "messages": [
        {"role": "system", "content": "You run the order desk."},
        {"role": "user", "content": "Refund order 7."},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Find it first.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"id": 7}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"status": "open"}'},
        {"role": "assistant", "content": "It is open, so no refund."},
    ],
}
"""One sound run of two steps."""


def rules(highest: float = math.inf, **names: str) -> Rules:
    return Rules(OutcomeRule(highest=highest, **names), of_instance)


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def import_chat(tmp_path: Path, records: list[Any], highest: float = math.inf, **options: Any) -> dict[str, Any]:
    """Import records as chat JSONL into ``out``."""
    path = write_lines(tmp_path / "log.jsonl", records)
    options = {"max_quarantined": 1.0, **options}
    return import_logs([path], "openai-chat", tmp_path / "out", rules(highest), **options)


def quarantined(out: Path) -> list[dict[str, Any]]:
    text = (out / "quarantine/records.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
