import hashlib
import json
import math

import pytest

from retroformer.errors import DataError, PinMismatch
from retroformer.files import hash_directory, write_json
from retroformer.pins import Pin, Pins, policy_hash, read_pins, verify, write_pins

SCRIPTED = "scripted:babyai-bot?noise=0.7"


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "data" / "policy"
    folder.mkdir(parents=True)
    (folder / "model.txt").write_text("weights")
    return Pin("data/policy", hash_directory(folder))


def test_pins_come_back_as_they_were_written(tmp_path, checkpoint):
    scripted = Pin(SCRIPTED, policy_hash(SCRIPTED), "models:/retroformer/1")
    for pins in (Pins(0, scripted, None), Pins(3, checkpoint, checkpoint)):
        write_pins(tmp_path / "champion.json", pins)
        assert read_pins(tmp_path / "champion.json") == pins
    assert pins.round == 4


def test_a_scripted_agent_is_its_name():
    assert policy_hash(SCRIPTED) == hashlib.sha256(SCRIPTED.encode()).hexdigest()
    pin = Pin(SCRIPTED, policy_hash(SCRIPTED))
    assert (pin.scripted, pin.version) == (True, SCRIPTED)
    assert verify(pin) is pin


def test_a_checkpoint_is_its_content(tmp_path, checkpoint):
    assert verify(checkpoint, tmp_path) is checkpoint
    assert checkpoint.version == checkpoint.hash[:16]


def test_an_edited_policy_is_refused_with_got_and_expected(tmp_path, checkpoint):
    (tmp_path / "data/policy/model.txt").write_text("other weights")
    found = hash_directory(tmp_path / "data/policy")[:16]
    with pytest.raises(PinMismatch, match=f"data/policy has hash {found}, .* pins {checkpoint.hash[:16]}"):
        verify(checkpoint, tmp_path)


def test_an_edited_name_is_refused():
    with pytest.raises(PinMismatch, match="noise=0"):
        verify(Pin("scripted:babyai-bot?noise=0", policy_hash(SCRIPTED)))


def test_a_missing_policy_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"data/policy, .* does not exist; try `dvc pull`"):
        verify(Pin("data/policy", "0" * 64), tmp_path)


GOOD = {"policy": SCRIPTED, "hash": "x"}


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ([], "it is [], expected an object with closed_rounds, champion, train_from"),
        ({"closed_rounds": 0, "champion": GOOD}, "it lacks train_from"),
        ({"closed_rounds": 0, "champion": GOOD, "train_from": None, "train_form": None}, "it has train_form"),
        (
            {"closed_rounds": 0, "champion": 5, "train_from": None},
            "champion is 5, expected an object with policy, hash",
        ),
        ({"closed_rounds": 0, "champion": {"policy": SCRIPTED}, "train_from": None}, "champion lacks hash"),
        ({"closed_rounds": 0, "champion": GOOD, "train_from": {**GOOD, "url": ""}}, "train_from has url"),
    ],
)
def test_a_file_that_holds_no_pins_is_named(tmp_path, value, wrong):
    write_json(tmp_path / "champion.json", value)
    with pytest.raises(DataError, match=r"champion\.json is not a lockfile of pins \(closed_rounds, champion") as told:
        read_pins(tmp_path / "champion.json")
    assert str(told.value).endswith(f": {wrong}")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("closed_rounds", "a", "closed_rounds is 'a', expected a whole number from 0"),
        ("closed_rounds", math.inf, "closed_rounds is inf, expected"),
        ("closed_rounds", -3, "closed_rounds is -3, expected"),
        ("closed_rounds", True, "closed_rounds is True, expected"),
        ("closed_rounds", 1.5, r"closed_rounds is 1\.5, expected"),
        ("champion", {"policy": 5, "hash": "x"}, r"champion\.policy is 5, expected text"),
        ("champion", {"policy": "", "hash": "x"}, r"champion\.policy is '', expected text"),
        ("champion", {"policy": SCRIPTED, "hash": None}, r"champion\.hash is None, expected text"),
        ("train_from", {"policy": SCRIPTED, "hash": []}, r"train_from\.hash is \[\], expected text"),
        ("train_from", {"policy": SCRIPTED, "hash": "x", "uri": None}, r"train_from\.uri is None, expected text"),
    ],
)
def test_a_field_that_is_no_pin_is_named(tmp_path, field, value, message):
    pins = {"closed_rounds": 0, "champion": {"policy": SCRIPTED, "hash": "x"}, "train_from": None} | {field: value}
    (tmp_path / "champion.json").write_text(json.dumps(pins))
    with pytest.raises(DataError, match=rf"champion\.json: {message}"):
        read_pins(tmp_path / "champion.json")
