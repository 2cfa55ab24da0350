from __future__ import annotations

import json
from pathlib import Path

import pytest

from retroformer.errors import ConfigError
from retroformer.importers.redaction import PATTERNS, Redactor
from tiny_logs import REFUND, import_chat

SECRETS = {
    "email": "write to ann.b+c@mail.example.org now",
    "phone": "call +44 20 7946 0958 now",
    "card": "pay with 4111 1111 1111 1111 now",
    "api_key": "key sk-abcdefghijklmnop1234 now",
    "bearer": "header Bearer abcdef0123456789abcdef now",
    "jwt": "token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def now",
    "ip": "from 192.168.10.254 now",
    "iban": "to GB82 WEST 1234 5698 7654 32 now",
    "private_key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- now",
}


def test_every_pattern_is_tried() -> None:
    assert SECRETS.keys() == PATTERNS.keys()


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_replaced_by_its_name_and_counted(name: str) -> None:
    redactor = Redactor(["all"])
    text = redactor.text(SECRETS[name])
    assert f"[{name}] now" in text
    assert redactor.found == {name: 1}
    assert Redactor([]).text(SECRETS[name]) == SECRETS[name]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # no card: its check digit is wrong
        "2026-11-22 10:30:00",
        "order 1234567890123",
        "version 10.2.3, sk-learn, a@b, 12-34",
        '{"total": 12.50, "items": [1, 2, 3, 4]}',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor(["all"]).text(text) == text


def test_a_secret_behind_escapes_in_nested_json_and_as_a_number() -> None:
    redactor = Redactor(["email", "card"])
    nested = json.dumps({"to": json.dumps({"mail": "ann@example.org"}).replace("@", "\\u0040")})
    assert json.loads(redactor.value(nested)) == {"to": '{"mail": "[email]"}'}
    assert redactor.value([4111111111111111, 7, {"ann@example.org": None}]) == ["[card]", 7, {"[email]": None}]
    assert redactor.found == {"email": 2, "card": 1}


def test_nothing_that_is_written_holds_the_secret(tmp_path: Path) -> None:
    def secretive(id: str, **more: object) -> dict[str, object]:
        text = json.dumps(REFUND).replace("order 7", "order 7 of ann@example.org, Bearer abcdef0123456789abcdef")
        return {**json.loads(text), "id": id, **more}

    broken = json.dumps(secretive("r4"))[:-30]
    (tmp_path / "more.jsonl").write_text(broken + "\n")
    records = [secretive("r1"), secretive("r2", reward="ann@example.org"), secretive("ann@example.org")]
    report = import_chat(tmp_path, [*records, broken], redact=["email", "bearer"])
    assert report["quarantined"] == 2
    assert report["redacted"] == {"bearer": 4, "email": 6}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"ann@" not in path.read_bytes(), path
            assert b"abcdef0123456789" not in path.read_bytes(), path


def test_an_unknown_pattern() -> None:
    with pytest.raises(ConfigError, match="no pattern 'mail' to redact; known: private_key, jwt"):
        Redactor(["mail"])
