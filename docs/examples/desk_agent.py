"""An agent in production, as far as its logs tell: a scripted model behind an OpenAI-style client, tools over SQLite.

It serves customers of the order desk (`retroformer.environments.desk`) and errs now and then. Each run is logged as one
line of chat JSONL: what was said, what was called, what came back, whether the customer got what was asked for, and
nothing else; no probabilities. With --mlflow the same runs are traced into a store, as `mlflow.openai.autolog` would.

    python docs/examples/desk_agent.py --runs 4000 --out data/logs/desk.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retroformer.chat import ToolCall, read_action, write_action
from retroformer.environments.desk import Desk

TASKS = ("refund", "cancel")
RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)
Message = dict[str, Any]


class ScriptedModel:
    """Answers like a chat completion endpoint. It knows the desk's expert, and errs with probability `noise`."""

    def __init__(self, desk: Desk, noise: float, chance: random.Random):
        self.desk, self.noise, self.chance = desk, noise, chance

    def create(self, *, model: str, messages: list[Message]) -> dict[str, Any]:
        """One completion."""
        text = self.desk.expert_action()
        if self.chance.random() < self.noise:
            text = self.chance.choice(self.desk.possible_actions())
        said = read_action(text)
        message: Message = {"role": "assistant", "content": said.text or None}
        if said.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{len(messages)}_{number}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
                }
                for number, call in enumerate(said.calls)
            ]
        finish = "tool_calls" if said.calls else "stop"
        return {"model": model, "choices": [{"index": 0, "message": message, "finish_reason": finish}]}


def serve(task: str, seed: int, create: Callable[..., dict[str, Any]], desk: Desk) -> tuple[list[Message], bool]:
    """One customer: the tool-calling loop. Returns the messages and whether the table is as it should be."""
    told, info = desk.reset(seed=seed)
    messages: list[Message] = [{"role": "system", "content": info["task"]}, {"role": "user", "content": told}]
    while True:
        message = create(model="desk-agent-1", messages=list(messages))["choices"][0]["message"]
        messages.append(message)
        calls = message.get("tool_calls", [])
        action = write_action(
            message["content"] or "",
            [ToolCall(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls],
        )
        told, _, terminated, truncated, info = desk.step(action)
        for call, result in zip(calls, RESULT.findall(told), strict=False):
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        if terminated or truncated:
            return messages, info["success"]
        messages.append({"role": "user", "content": RESULT.sub("", told).strip()})


def main() -> None:
    """Serve customers and log it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0, help="other customers")
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--out", type=Path, help="chat JSONL to write")
    parser.add_argument("--mlflow", metavar="URI", help="store to trace into, e.g. sqlite:///traces.db")
    asked = parser.parse_args()
    solved = 0
    lines = []
    traced = Tracing(asked.mlflow) if asked.mlflow else None
    for number in range(asked.runs):
        task, seed = TASKS[number % len(TASKS)], 900_000_000 + 1_000_000 * asked.seed + number
        desk = Desk(task)
        model = ScriptedModel(desk, asked.noise, random.Random(seed))
        if traced:
            success = traced.serve(task, seed, model, desk)
        else:
            messages, success = serve(task, seed, model.create, desk)
            lines.append(
                {
                    "id": f"run-{number}",
                    "task": f"desk:{task}",
                    "task_id": str(seed),
                    "model": "desk-agent-1",
                    "messages": messages,
                    "success": success,
                }
            )
        desk.close()
        solved += success
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{asked.runs} runs, {solved / asked.runs:.2f} of them solved")


class Tracing:
    """The same loop under MLflow tracing: an agent span a run, a chat-model span a call, feedback for the outcome."""

    def __init__(self, uri: str):
        import mlflow

        self.mlflow = mlflow
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("desk")

    def serve(self, task: str, seed: int, model: ScriptedModel, desk: Desk) -> bool:
        """One traced run."""
        from mlflow.entities import AssessmentSource, SpanType

        mlflow = self.mlflow
        create = mlflow.trace(model.create, span_type=SpanType.CHAT_MODEL)

        @mlflow.trace(name="serve", span_type=SpanType.AGENT)
        def run() -> bool:
            mlflow.update_current_trace(tags={"retroformer.task": f"desk:{task}", "retroformer.task_id": str(seed)})
            return serve(task, seed, create, desk)[1]

        success = run()
        mlflow.flush_trace_async_logging()
        mlflow.log_feedback(
            trace_id=mlflow.get_last_active_trace_id(),
            name="solved",
            value=success,
            source=AssessmentSource(source_type="CODE", source_id="desk"),
        )
        return success


if __name__ == "__main__":
    main()
