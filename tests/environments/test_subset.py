from collections import Counter

from retroformer.environments.subset import subset

ACTIONS = [f"{verb} {thing}" for verb in ("open", "take", "look at") for thing in "abcdefghijklmnop"]


def test_a_short_list_is_left_alone() -> None:
    assert subset(ACTIONS[:5], "take a", 5, (0,)) == tuple(ACTIONS[:5])


def test_half_is_what_shares_most_with_the_context() -> None:
    chosen = subset(ACTIONS, "you are to take b; there is a c", 8, (3, 0))
    assert len(chosen) == len(set(chosen)) == 8
    assert list(chosen) == sorted(chosen, key=ACTIONS.index)
    # take a, b, c share the verb and a thing; of the other verbs, a thing alone is worth most in the shorter action.
    assert {"take a", "take b", "take c"} <= set(chosen)
    assert sum(action in ("open a", "open b", "open c") for action in chosen) >= 1


def test_a_rare_word_weighs_more_than_a_common_one() -> None:
    actions = [*(f"use {n}" for n in range(30)), "grind b"]
    assert "grind b" in subset(actions, "use grind", 4, (0,))


def test_the_rest_is_drawn_by_the_seed_alone() -> None:
    draws = [subset(ACTIONS, "take b", 8, (1, t)) for t in range(400)]
    assert draws == [subset(ACTIONS, "take b", 8, (1, t)) for t in range(400)]
    counts = Counter(action for draw in draws for action in draw)
    # 4 of the 44 that are not retrieved, or a bit more where ties are drawn: each is offered now and then.
    assert set(counts) == set(ACTIONS)
    assert min(counts.values()) > 15
    assert counts["take b"] == 400
