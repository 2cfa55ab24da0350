import pytest

from retroformer.environments import known, lexicon, make
from retroformer.errors import EnvironmentFault


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("babyai:P6N33", r"babyai has no task 'P6N33'; nearest: .*P6N3"),
        ("babyai:GoToLocalS6N9", r"nearest: .*GoToLocalS6N"),
        ("babyay:P6N3", r"no environment package 'babyay'; nearest: babyai"),
        ("P6N3", r"'P6N3' is not of the form package:task"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name, message):
    with pytest.raises(EnvironmentFault, match=message):
        make(name)
    with pytest.raises(EnvironmentFault, match=message):
        lexicon([name])


def test_an_unknown_text_or_kind_of_actions_is_told():
    with pytest.raises(EnvironmentFault, match="text is 'short', allowed: compact, plain"):
        make("babyai:P6N3", text="short")
    with pytest.raises(EnvironmentFault, match="actions is 'tokens', allowed: token, words"):
        lexicon(["babyai:P6N3"], actions="tokens")


def test_known_names_hold_the_default_levels_and_no_room_too_full():
    names = known("babyai")
    assert {"P5N2", "P6N4", "D6N4", "P8N5", "GoToLocalS8N5", "PickupDist"} <= set(names)
    assert "P5N6" not in names
    assert list(names) == sorted(names)
