import random

from retroformer.policies.tree import Window
from retroformer.training import windows as module
from retroformer.training.windows import WindowStore


def window(generator, place):
    """Some steps of a few known action sets, and a generated one."""
    sets = [((1,), (2, 3)), ((4, 5), (6,), (70_000,)), ((9,),)]
    steps = generator.randrange(1, 5)
    tokens = [generator.randrange(100_000) for _ in range(generator.randrange(1, 50))]
    actions = [*(generator.choice(sets) for _ in range(steps)), ((7, 8, 9),)]
    return Window(place, generator.randrange(3), tokens, list(range(steps + 1)), actions, [0] * (steps + 1), {steps})


def test_windows_come_back_as_they_were_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KNOWN", 2)
    generator = random.Random(0)
    written = [[window(generator, place) for _ in range(place % 3)] for place in range(40)]
    store = WindowStore(tmp_path / "new")
    for some in written:
        store.add(some)
    for place in generator.sample(range(40), 40):
        assert store[place] == written[place]
    assert list(store.lengths) == [sum(len(one.tokens) for one in some) for some in written]
    assert list((tmp_path / "new").iterdir()) == []


def test_a_set_of_actions_is_written_once(tmp_path):
    actions = tuple((number, number + 1) for number in range(1000))
    once, often = WindowStore(tmp_path), WindowStore(tmp_path)
    once.add([Window(0, 0, [1], [0], [actions], [0])])
    often.add([Window(0, 0, [1], [0] * 100, [actions] * 100, [0] * 100)])
    size = once.file.seek(0, 2)
    assert often.file.seek(0, 2) < 1.2 * size
    assert often[0][0].actions == [actions] * 100
