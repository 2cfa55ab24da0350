"""An order desk: a tool-calling environment over SQLite, with an end state that can be checked.

Customers have orders, each open or sent. The agent is told what one customer wants, looks the orders up, calls a tool
that changes one of them, and says that it is done; a message without a call ends the episode. Success is a table that
looks as it should: the right order changed, no other touched. What is done cannot be undone.

Tasks: ``refund`` (a sent order), ``cancel`` (an open one), ``move`` (to another city), and ``undo``, which is to cancel
or to refund, depending on what the look-up says. In compact text each order is one word, ``lamp_o3_open``, and the
wish stands last in each observation, as small models need it (see `babyai_text`).
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from retroformer.chat import ToolCall, describe_tools, read_action, write_action, write_result
from retroformer.environments.protocol import Mission
from retroformer.errors import EnvironmentFault

CUSTOMERS = ("ada", "ben", "cleo", "dan", "eve", "finn", "gil", "hal")
ITEMS = ("lamp", "chair", "table", "rug", "vase", "clock", "shelf", "mirror")
CITIES = ("paris", "rome", "oslo", "cairo", "lima", "delhi")
ORDERS = tuple(f"o{n}" for n in range(1, 10))
STATES = {"open": "cancelled", "sent": "refunded"}
"""What an order may be at first, and what it then can become."""
UNDOES = {"cancel": "open", "refund": "sent"}
"""The state that an order must have for the tool."""
TASKS = ("cancel", "move", "refund", "undo")
EACH = 3
"""Customers of an episode, and orders of each."""
MAX_STEPS = 6
"""Twice what the expert needs."""
TOOLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "find": ("List the orders of a customer.", ("customer",)),
    "cancel": ("Cancel an open order.", ("order",)),
    "refund": ("Refund an order that was sent.", ("order",)),
    "move": ("Deliver an order to another city.", ("order", "city")),
}
ERRORS = {
    "call": "The call is not JSON with a name and arguments.",
    "tool": "There is no such tool.",
    "arguments": "The arguments are not those of the tool.",
    "order": "There is no such order.",
    "state": "The order is not in a state that allows this.",
    "customer": "There is no such customer.",
}
"""In compact text ``error call`` and so on; in plain text the sentence."""
DONE = "done"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a customer wants."""

    verb: str
    customer: str
    item: str
    city: str = ""

    @property
    def compact(self) -> str:
        """``move paris ada lamp``: what is to be found in the look-up stands last."""
        return " ".join(part for part in (self.verb, self.city, self.customer, self.item) if part)

    @property
    def plain(self) -> str:
        """``Move the lamp of ada to paris.``"""
        return f"{self.verb.capitalize()} the {self.item} of {self.customer}{f' to {self.city}' if self.city else ''}."


@dataclass(frozen=True, slots=True)
class Order:
    """A row of the table."""

    id: str
    customer: str
    item: str
    state: str
    city: str

    @property
    def compact(self) -> str:
        """``lamp_o3_open``."""
        return f"{self.item}_{self.id}_{self.state}"


def known() -> tuple[str, ...]:
    """Task names, sorted."""
    return TASKS


def make(task: str, text: str) -> Desk:
    """The desk for one kind of wish."""
    return Desk(task, text)


def lexicon(text: str) -> tuple[str, ...]:
    """Every word that the desk can say or be told, sorted."""
    orders = [
        Order(id, "ada", item, state, "") for id, item, state in product(ORDERS, ITEMS, (*STATES, *STATES.values()))
    ]
    wishes = [Wish(*parts) for parts in product(TASKS, CUSTOMERS, ITEMS, ("", *CITIES))]
    calls = [ToolCall("find", {"customer": name}) for name in CUSTOMERS]
    calls += [ToolCall(name, {"order": id}) for name in ("cancel", "refund") for id in ORDERS]
    calls += [ToolCall("move", {"order": id, "city": city}) for id, city in product(ORDERS, CITIES)]
    pieces = [write_action(DONE, [call]) for call in calls]
    if text == "compact":
        pieces += [one.compact for one in (*orders, *wishes)] + [reason(one, text) for one in orders]
        pieces += ["> error nothing", *ERRORS, write_result(DONE)]
    else:
        pieces += [one.plain for one in wishes]
        pieces += [told for order in orders for told in (json.dumps([plain(order)] * 2), reason(order, "plain"))]
        pieces += [*ERRORS.values(), "[]", rules(wishes[0]), describe_tools(schemas())]
        pieces += [
            write_result(json.dumps({"order": id, "state": state, "city": city}))
            for id, state, city in product(ORDERS, (*STATES, *STATES.values()), CITIES)
        ]
    return tuple(sorted({word for piece in pieces for word in piece.split()}))


def schemas() -> list[dict[str, Any]]:
    """The tools as JSON schemas."""
    return [
        {
            "name": name,
            "description": told,
            "parameters": {
                "type": "object",
                "properties": {parameter: {"type": "string"} for parameter in parameters},
                "required": list(parameters),
            },
        }
        for name, (told, parameters) in TOOLS.items()
    ]


def rules(wish: Wish) -> str:
    """The task in plain text."""
    return (
        "You work at an order desk. An open order can be cancelled, a sent one can be refunded; to undo an order is "
        f"whichever of the two can be done. {wish.plain} When it is done, say {DONE}."
    )


def plain(order: Order) -> dict[str, str]:
    """An order as the look-up tells it in plain text."""
    return {"order": order.id, "item": order.item, "state": order.state}


def reason(order: Order, text: str) -> str:
    """What the expert says before it changes an order."""
    return f"{order.id} {order.state}" if text == "compact" else f"The {order.item} is order {order.id}, {order.state}."


class Desk:
    """The desk as a TextEnvironment in text mode, see `retroformer.environments.protocol`."""

    family = "desk"

    def __init__(self, task: str, text: str = "compact"):
        self.task, self.text = task, text
        self._table = sqlite3.connect(":memory:")
        self._table.execute(
            "CREATE TABLE orders (id TEXT PRIMARY KEY, customer TEXT, item TEXT, state TEXT, city TEXT)"
        )
        self._running = False

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start episode `seed`; ``info["mission"]`` says which mission is told."""
        mission: Mission = (options or {}).get("mission", "true")
        orders, self.wish = draw(self.task, seed)
        self._told = self.wish
        if mission == "other":
            self._told = another_here(self.wish, orders)
        elif mission == "shuffled":
            others = (draw(self.task, int(other))[1] for other in np.random.SeedSequence(seed).generate_state(32))
            self._told = next(wish for wish in others if wish != self.wish)
        with self._table:
            self._table.execute("DELETE FROM orders")
            rows = [(one.id, one.customer, one.item, one.state, one.city) for one in orders]
            self._table.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", rows)
        self._goal = next(one for one in orders if (one.customer, one.item) == (self.wish.customer, self.wish.item))
        self._wanted = {one.id: changed(one, self.wish) if one is self._goal else one for one in orders}
        self._listed: list[Order] = []
        self._steps, self._running = 0, True
        info: dict[str, Any] = {"mission": mission}
        if self.text == "compact":
            return f"> {self._told.compact}", {**info, "task": self._told.compact}
        return self._told.plain, {**info, "task": rules(self._told), "tools": schemas()}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do the calls of an action in their order; one without any ends the episode. The reward is 1.0 for success."""
        if not self._running:
            raise EnvironmentFault(f"desk:{self.task} is not running: reset it before a step")
        self._steps += 1
        said = read_action(action)
        results = [self._error("call") for _ in said.malformed] + [self._call(call) for call in said.calls]
        terminated = not results
        truncated = not terminated and self._steps >= MAX_STEPS
        success = terminated and {one.id: one for one in self._orders()} == self._wanted
        self._running = not (terminated or truncated)
        info: dict[str, Any] = {} if self._running else {"success": success}
        told = "\n".join(map(write_result, results or [DONE]))
        if self.text == "compact":
            told += f"\n> {self._told.compact}"
        return told, float(success), terminated, truncated, info

    def close(self) -> None:
        """Free the table."""
        self._table.close()

    def expert_action(self) -> str:
        """What serves the true wish now, judged by what was looked up; done, also where it is past mending."""
        goal = next((one for one in self._listed if one.id == self._goal.id), None)
        if goal is None:
            return write_action(calls=[ToolCall("find", {"customer": self.wish.customer})])
        if goal == self._wanted[goal.id] or goal != self._goal:
            return DONE
        verb = self.wish.verb
        name = next(tool for tool, state in UNDOES.items() if state == goal.state) if verb == "undo" else verb
        arguments = {"order": goal.id} | ({"city": self.wish.city} if self.wish.city else {})
        return write_action(reason(goal, self.text), [ToolCall(name, arguments)])

    def possible_actions(self) -> tuple[str, ...]:
        """What somebody might do who knows the tools and what was looked up, but not what is wanted."""
        city = CITIES[self._steps % len(CITIES)]
        changes = [
            write_action(reason(one, self.text), [ToolCall(name, {"order": one.id} | more)])
            for one in self._listed[-EACH:]
            for name, more in (("cancel", {}), ("refund", {}), ("move", {"city": city}))
        ]
        customers = sorted({one.customer for one in self._orders()})
        return (*(write_action(calls=[ToolCall("find", {"customer": name})]) for name in customers), *changes, DONE)

    def _orders(self) -> list[Order]:
        return [Order(*row) for row in self._table.execute("SELECT * FROM orders ORDER BY id")]

    def _error(self, name: str) -> str:
        return f"error {name}" if self.text == "compact" else ERRORS[name]

    def _call(self, call: ToolCall) -> str:
        if call.name not in TOOLS:
            return self._error("tool")
        if set(call.arguments) != set(TOOLS[call.name][1]) or not all(
            isinstance(one, str) for one in call.arguments.values()
        ):
            return self._error("arguments")
        if call.name == "find":
            return self._find(call.arguments["customer"])
        order = next((one for one in self._orders() if one.id == call.arguments["order"]), None)
        if order is None:
            return self._error("order")
        if call.name == "move":
            new = replace(order, city=call.arguments["city"])
        elif order.state == UNDOES[call.name]:
            new = replace(order, state=STATES[order.state])
        else:
            return self._error("state")
        with self._table:
            self._table.execute("UPDATE orders SET state = ?, city = ? WHERE id = ?", (new.state, new.city, new.id))
        self._listed = [new if one.id == new.id else one for one in self._listed]
        return DONE if self.text == "compact" else json.dumps({"order": new.id, "state": new.state, "city": new.city})

    def _find(self, customer: str) -> str:
        found = [one for one in self._orders() if one.customer == customer]
        self._listed = [one for one in self._listed if one.customer != customer] + found
        if not found:
            return self._error("customer")
        return " ".join(one.compact for one in found) if self.text == "compact" else json.dumps(list(map(plain, found)))


def draw(task: str, seed: int) -> tuple[list[Order], Wish]:
    """The orders and the wish of an episode: EACH customers with EACH orders of distinct items, the ids shuffled."""
    chance = np.random.default_rng([TASKS.index(task), seed])
    ids = iter(chance.permutation(ORDERS).tolist())
    orders = []
    for customer in chance.permutation(CUSTOMERS)[:EACH].tolist():
        items = chance.permutation(ITEMS)[:EACH].tolist()
        # Each customer has orders of both states, so that each can have each wish.
        states = ["open", "sent", *chance.choice(tuple(STATES), EACH - 2).tolist()]
        cities = chance.choice(CITIES, EACH).tolist()
        orders += [Order(next(ids), customer, *rest) for rest in zip(items, states, cities, strict=True)]
    possible = [one for one in orders if allowed(task, one)]
    return orders, wish_of(task, possible[chance.integers(len(possible))], int(chance.integers(1, len(CITIES))))


def allowed(task: str, order: Order) -> bool:
    """Whether a customer may wish this of an order."""
    return task not in UNDOES or order.state == UNDOES[task]


def wish_of(task: str, order: Order, shift: int) -> Wish:
    """The wish of that kind about an order; its city is another than the order's."""
    city = CITIES[(CITIES.index(order.city) + shift) % len(CITIES)] if task == "move" else ""
    return Wish(task, order.customer, order.item, city)


def changed(order: Order, wish: Wish) -> Order:
    """The order as the wish wants it."""
    return replace(order, city=wish.city) if wish.verb == "move" else replace(order, state=STATES[order.state])


def another_here(wish: Wish, orders: list[Order]) -> Wish:
    """The same wish about another order, of the same customer where that can be."""
    others = [
        one for one in orders if allowed(wish.verb, one) and (one.customer, one.item) != (wish.customer, wish.item)
    ]
    chosen = next((one for one in others if one.customer == wish.customer), others[0])
    return replace(wish, customer=chosen.customer, item=chosen.item)
