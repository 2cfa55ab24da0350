import pytest

from retroformer.errors import PolicyError
from retroformer.policies.layout import Layout, Transcript


def encode(content, before="", after=""):
    """One token a word: the word's number."""
    return tuple(int(word) for word in (before + content + after).split())


def transcript(limit, **options):
    return Transcript(Layout(), encode, "1 2", limit, **options)


def test_task_observation_action_in_their_order_by_hand():
    told = transcript(100)
    assert told.observe("10 11", 1) is False
    told.act((20,))
    assert told.observe("12", 1) is False
    assert told.tokens == [1, 2, 10, 11, 20, 12]
    assert told.starts == [2, 5]


def test_a_window_that_is_full_starts_anew_with_the_task_and_whole_last_steps():
    told = transcript(10)
    for observation in ("10 10", "11 11"):
        assert told.observe(observation, 1) is False
        told.act((20,))
    assert len(told.tokens) == 8
    # 8 + 2 + 1 > 10. Half of the window holds 5 tokens: one whole step of 3, not two.
    assert told.observe("12 12", 1) is True
    assert told.tokens == [1, 2, 11, 11, 20, 12, 12]
    assert told.starts == [2, 5]


def test_a_window_is_used_to_its_last_token():
    told = transcript(10)
    told.observe("10 10 10 10 10", 3)
    assert len(told.tokens) + 3 == 10
    shorter = transcript(9)
    with pytest.raises(PolicyError, match=r"need 10 tokens, the model's window has 9"):
        shorter.observe("10 10 10 10 10", 3)


def test_what_is_kept_leaves_room_for_a_long_observation():
    told = transcript(10)
    for observation in ("10", "11", "12"):
        told.observe(observation, 1)
        told.act((20,))
    # The task, 5 tokens and an action of 1 leave room for 2 tokens: one step.
    assert told.observe("13 13 13 13 13", 1) is True
    assert told.tokens == [1, 2, 12, 20, 13, 13, 13, 13, 13]


def test_an_observation_without_tokens_is_refused():
    with pytest.raises(PolicyError, match="observation ' ' has no tokens"):
        transcript(10).observe(" ", 1)


@pytest.mark.parametrize(
    ("reached", "text"), [(None, "return 1.0 go"), (0.75, "return 0.8 go"), (-0.04, "return 0.0 go")]
)
def test_the_opening_names_the_return_to_reach_where_asked(reached, text):
    assert Layout(condition_on_return=True).opening("go", reached) == (text, "", "")
    assert Layout().opening("go", reached) == ("go", "", "")


def test_sentences_put_markers_around_the_pieces():
    layout = Layout.sentences(condition_on_return=True)
    assert layout.opening("go", 0.0) == ("return 0.0 go", "Task: ", "\n")
    assert layout.piece("action", "turn {left}") == ("turn {left}", " ", "\n")
