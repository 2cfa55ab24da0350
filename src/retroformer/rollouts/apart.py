"""Environments in a process of their own, which can hang, crash, exit or leak and takes nothing else with it.

The process holds the environments of all slots and answers one message a tick, so that the healthy case pays one
round trip for many steps. It says in shared memory which order is in flight and since when. Where it dies or takes too
long, that order's episode is the guilty one: it alone ends in error. A new process starts the others again and does
what they had done (the same seed and actions give the same episode, as the protocol asks), and the orders that are
open. Whoever then tells another story than before cannot be restored and ends in error too.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from retroformer.rollouts.episodes import Conditions
from retroformer.rollouts.lanes import Answer, Lanes, Order
from retroformer.rollouts.processes import CONTEXT, Garbled, Gone, Process, only_once

LOOK = 1.0
"""Seconds between looks at a process that has not answered yet, and at its memory."""
START = 120.0
"""Seconds that a process may take until it begins with its first order."""
CLOSE = 10.0
"""Seconds that environments may take to close."""
GROWTH = 1 << 30
"""Bytes that a process may grow by before it is replaced; by twice as much within one order, and that is to blame."""
STARTED = 3 << 30
"""The same for all that it started together: one Java machine of ScienceWorld's grows by 1.3 GiB and then no more."""
IN_VAIN = 8
"""A task whose environments ended their process so often, with no step done in between, is not tried again."""
NOBODY = -1
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
TAKEN = "it closed the connection of its process: close no file that is not the environment's own"


class Lost(Exception):
    """The process is gone, or was ended, with the order at `place` in flight."""

    def __init__(self, place: int, kind: str, seen: str):
        super().__init__(f"{kind}: {seen}")
        self.place, self.kind = place, kind


class Apart:
    """`Lanes` in a process of its own, which is replaced as often as it takes.

    `names`: the tasks that will be played, whose packages are worth importing beforehand.
    """

    def __init__(self, conditions: Conditions, questions: Iterable[str] = (), names: Iterable[str] = ()):
        self.limit = conditions.max_step_seconds
        self.telling = (conditions.text, conditions.actions, tuple(questions))
        self.names = tuple(names)
        self.replaced: Counter[str] = Counter()
        """How many processes hung, died or grew and had to be replaced."""
        self._served: Served | None = None
        self._history: dict[int, list[tuple[Order, Answer]]] = {}
        """Of each running episode, all that was done."""
        self._lost: dict[int, str] = {}
        """Slots whose episode could not be restored, and why."""
        self._in_vain: Counter[str] = Counter()

    def do(self, orders: Sequence[Order]) -> list[Answer]:
        """The answers to orders for different slots, whatever happens to the process."""
        answers: dict[int, Answer] = {}
        one_by_one = False
        while waiting := [order for order in orders if not self._answered(order, answers)]:
            waiting = waiting[:1] if one_by_one else waiting
            try:
                served = self._served or self._restored()
                if any(order.slot in self._lost for order in waiting):
                    continue
                found = served.ask(waiting, self.limit)
            except Lost as lost:
                self._end(lost.kind)
                if lost.place == NOBODY and not one_by_one:
                    one_by_one = True  # it may have been ended from outside; if it happens again, it is known at which
                    continue
                guilty, done = waiting[max(lost.place, 0)], waiting[: max(lost.place, 0)]
                answers[guilty.slot] = Answer(error=f"{lost} (at {described(guilty)})")
                self._blame(guilty, done)
                continue
            answers |= {order.slot: answer for order, answer in zip(waiting, found, strict=True)}
            self._remember(waiting, found)
            if served.grown() > 1.0:
                self._end("Grew")
        return [answers[order.slot] for order in orders]

    def release(self, slot: int) -> None:
        """The slot's episode is given up."""
        self._history.pop(slot, None)
        self._lost.pop(slot, None)

    def close(self) -> None:
        """Let the environments close, and end the process."""
        served, self._served = self._served, None
        if served is not None:
            served.leave()

    def _answered(self, order: Order, answers: dict[int, Answer]) -> bool:
        """Whether the order has its answer, also where that is known without trying."""
        if order.slot in answers:
            return True
        if order.episode is None and order.slot in self._lost:
            answers[order.slot] = Answer(error=self._lost.pop(order.slot))
        elif order.episode is not None and self._in_vain[order.episode.name] >= IN_VAIN:
            answers[order.slot] = Answer(error=f"Died: not tried, as the last {IN_VAIN} ended their process")
        return order.slot in answers

    def _remember(self, orders: Sequence[Order], answers: Sequence[Answer]) -> None:
        for order, answer in zip(orders, answers, strict=True):
            if answer.reward is not None:
                self._in_vain[self._name(order)] = 0
            if answer.error is not None or answer.ended is not None:
                self._history.pop(order.slot, None)
            elif order.episode is not None:
                self._history[order.slot] = [(order, answer)]
            else:
                self._history[order.slot].append((order, answer))

    def _blame(self, guilty: Order, done: Sequence[Order]) -> None:
        for order in done:
            if order.episode is None:
                self._in_vain[self._name(order)] = 0
        self._in_vain[self._name(guilty)] += 1
        self._history.pop(guilty.slot, None)

    def _name(self, order: Order) -> str:
        first = order if order.episode is not None else self._history[order.slot][0][0]
        assert first.episode is not None
        return first.episode.name

    def _end(self, kind: str) -> None:
        self.replaced[kind] += 1
        served, self._served = self._served, None
        if served is not None:
            served.process.end()

    def _restored(self) -> Served:
        """A new process in which the running episodes are where they were. Raises Lost where nobody is to blame."""
        while True:
            served = self._served = Served(self.telling, self.names)
            done = [(slot, order, answer) for slot, own in self._history.items() for order, answer in own]
            try:
                found = served.ask([order for _, order, _ in done], self.limit) if done else []
            except Lost as lost:
                if lost.place == NOBODY:
                    raise
                slot, order, _ = done[lost.place]
                self._end(lost.kind)
                self._lost[slot] = f"{lost} (at {described(order)}, done again after its process was replaced)"
                del self._history[slot]
                continue
            for (slot, order, before), now in zip(done, found, strict=True):
                if now != before and slot in self._history:
                    self._lost[slot] = (
                        "Unrestorable: its process was replaced, and then it went another way at "
                        f"{described(order)}: {difference(before, now)}"
                    )
                    del self._history[slot]
            return served


class Served:
    """One such process, seen from the one that it serves."""

    def __init__(self, telling: tuple[str, str, tuple[str, ...]], names: Iterable[str]):
        self.flight = CONTEXT.RawArray("d", 3)
        """The place of the order in flight, since when, and 1 where it has taken the connection away."""
        self.flight[0] = NOBODY
        self.process = Process(serve, self.flight, telling, names=names)
        self.connection = self.process.connection
        self._looked = time.monotonic()
        self._number = 0
        """Of the orders that were sent last."""
        self._made: set[tuple[int, str]] = set()
        """Environments, by slot and task."""
        self._settled: tuple[int, float] | None = None
        """Bytes that it held when its first orders were done, and that what it started did for each environment."""
        self._growth = 0.0

    def ask(self, orders: Sequence[Order], limit: float) -> list[Answer]:
        """Its answers. Raises Lost where it dies, or takes more than `limit` seconds for one of them."""
        sent = time.monotonic()
        self._number += 1
        first = not self._made
        self._made |= {(order.slot, order.episode.name) for order in orders if order.episode is not None}
        with suppress(ConnectionError):  # it is gone, as is told where its answer is received
            self.connection.send((self._number, orders))
        while not self.connection.poll(min(LOOK, limit / 4)):
            self._look(orders, sent, limit)
        try:
            number, answers = self.process.receive()
        except Garbled as garbled:  # while it goes on with the orders behind the one that wrote this
            raise Lost(NOBODY, "Died", str(garbled)) from None
        except Gone as gone:
            raise Lost(self._place(orders), "Died", TAKEN if self.flight[2] else str(gone)) from None
        if number != self._number:
            raise Lost(NOBODY, "Died", f"its process answered orders {number}, expected {self._number}")
        if first:
            self._settle()
        return answers

    def grown(self) -> float:
        """What it has grown by as of the last look, as a multiple of what it may."""
        if time.monotonic() - self._looked > LOOK:
            self._measure()
        return self._growth

    def leave(self) -> None:
        """Let it close its environments, and end it."""
        with suppress(ConnectionError):
            self.connection.send(None)
            self.process.process.join(CLOSE)
        self.process.end()

    def _settle(self) -> None:
        """What it holds now is what it needs, and another environment as much as one of those that there are."""
        own, started = self.process.memory()
        self._settled, self._growth = (own, started / max(1, len(self._made))), 0.0

    def _measure(self) -> None:
        self._looked = time.monotonic()
        own, started = self.process.memory()
        before, each = self._settled or (own, GROWTH)
        self._settled = before, each
        self._growth = max((own - before) / GROWTH, (started - each * len(self._made)) / STARTED)

    def _place(self, orders: Sequence[Order]) -> int:
        """Of the order in flight, or NOBODY, also where an environment has written over it."""
        place = self.flight[0]
        return int(place) if 0 <= place < len(orders) else NOBODY

    def _look(self, orders: Sequence[Order], sent: float, limit: float) -> None:
        """Raise Lost where the order in flight takes too long or too much."""
        place, since, now = self._place(orders), self.flight[1], time.monotonic()
        if place == NOBODY:
            if now - sent > max(START, limit):
                raise Lost(NOBODY, "Hung", f"a process for environments did not begin within {START:g} s")
            return
        if now - since > limit:
            at = self.process.where_it_is()
            raise Lost(place, "Hung", f"no answer within collect.max_step_seconds = {limit:g}{at}")
        self._measure()
        if self._growth > 2.0:
            own, started = self.process.memory()
            raise Lost(
                place, "Grew", f"its process grew to {own >> 20:,} MiB, what it started to {started >> 20:,} MiB"
            )


def serve(connection: Connection, flight: Any, telling: tuple[str, str, tuple[str, ...]]) -> None:
    """Answer orders until None comes. Runs in the process apart."""
    lanes = Lanes(*telling, caught=(BaseException,))
    line = os.fstat(connection.fileno())
    while (message := received(connection)) is not None:
        number, orders = message
        answers = []
        for place, order in enumerate(orders):
            flight[1] = time.monotonic()
            flight[0] = place
            answers.append(lanes.one(order))
            only_once()
            for timer in TIMERS:  # one that it left would go off in another's step
                signal.setitimer(timer, 0)
            if not still(connection, line):
                flight[2] = 1
                os._exit(1)
        flight[0] = NOBODY
        connection.send((number, answers))
    lanes.close()


def received(connection: Connection) -> Any:
    """The next message; where who sends them is gone, this process ends without a word."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        sys.exit(1)


def still(connection: Connection, line: os.stat_result) -> bool:
    """Whether a connection's descriptor is what it was."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(connection.fileno()), line)
    return False


def described(order: Order) -> str:
    """An order as an error tells of it."""
    return "its start" if order.episode is not None else f"step {order.t}, the action {order.action[:200]!r}"


def difference(before: Answer, now: Answer) -> str:
    """What differs between two answers to the same order."""
    if now.error is not None:
        return now.error
    name = next(name for name in Answer.__dataclass_fields__ if getattr(before, name) != getattr(now, name))
    return f"its {name} was {getattr(before, name)!r:.200}, then {getattr(now, name)!r:.200}"
