from __future__ import annotations

import json
from pathlib import Path

import pytest

from retroformer.errors import ConfigError
from retroformer.importers.importing import import_logs
from retroformer.importers.redaction import PATTERNS, Redactor
from retroformer.storage import read_trajectories
from tiny_logs import REFUND, import_chat, rules

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


@pytest.mark.parametrize(
    "number",
    [
        "+49 170 1234567",
        "(555) 123-4567",
        "+1 (555) 123-4567",
        "1-555-123-4567",
        "555-123-4567",
        "555.123.4567",
        "555 123 4567",
        "+15551234567",
        "+44 (0)20 7946 0958",
        "+44 20 7946 0958",
        "020 7946 0958",
        "020-7946-0958",
        "0049 170 1234567",
        "0170 1234567",
        "0170/1234567",
        "(030) 123456-78",
        "+33 6 12 34 56 78",
        "06 12 34 56 78",
        "06.12.34.56.78",
        "+45 12 34 56 78",
        "+86 138 0013 8000",
        "+81-90-1234-5678",
        "(11) 91234-5678",
    ],
)
def test_a_phone_number_in_the_ways_of_many_countries(number: str) -> None:
    redactor = Redactor(["phone"])
    for text in ("call {} now", "tel:{}, please", '{{"phone": "{}"}}', "{}, 12 times", "{}."):
        assert redactor.text(text.format(number)) == text.format("[phone]")


@pytest.mark.parametrize(
    "text",
    [
        "1234567",
        "123456789012",
        "12 345 678",
        "612 345 678",
        "100 200 300 400",
        "1,234,567,890.12",
        "1.234.567.890,12",
        "+1.5 2.5 3.5 4.5 5.5",
        "+12.50 13.75 14.25",
        "[1, 22, 333, 4444, 55555]",
        "2026-11-22 10:30:00",
        "2026-11-22T10:30:00.123456+01:00",
        "22.11.2026 10.30",
        "22/11/2026",
        "01-02-2026 03:04:05",
        "05/2026 1234 items",
        "20261122-103000",
        "1764000000000",
        "order 900000000",
        "order 2026-0012345",
        "order #112-3456789-1234567",
        "item 4006381333931",
        "ISBN 978-3-16-148410-0",
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "run-000123-0456-789",
        "v10.200.3000.40000",
        "$1 234 567 890",
        "EUR 12 345 678,90",
        "from 09:30 to 17:45, 8.5 h",
        "x = (100) 200 300",
        "f(555) 123-4567",
        "score -0.25 0.75 1.25 10.5",
        "0.0123 0.4567 0.8910",
        "10 20 30 40 50",
        "3.14159 26535 89793",
    ],
)
def test_what_is_no_phone_number_stays(text: str) -> None:
    for written in (text, f"it is {text} now", json.dumps({"value": text})):
        assert Redactor(["phone"]).text(written) == written


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
    assert report["redacted"] == {"bearer": 3, "email": 4}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"ann@" not in path.read_bytes(), path
            assert b"abcdef0123456789" not in path.read_bytes(), path


def test_ids_keep_runs_and_instances_apart_and_are_not_written(tmp_path: Path) -> None:
    made = [
        {**REFUND, "id": f"user{n}@example.org", "task_id": f"user{n % 20}@example.org", "attempt": n // 20}
        for n in range(40)
    ]
    report = import_chat(tmp_path, made, redact=["all"])
    assert (report["episodes"], report["repeated"], report["redacted"]) == (40, 0, {})
    assert len({one.task.seed for one in read_trajectories(tmp_path / "out")}) == 20
    for path in (tmp_path / "out").rglob("*.parquet"):
        assert b"example.org" not in path.read_bytes()


def test_times_are_no_cards() -> None:
    redactor = Redactor(["all"])
    times = [1764000000000 + 977 * n for n in range(200)] + [1764000000000000000 + 7919 * n for n in range(200)]
    assert redactor.value(times) == times
    assert redactor.value(list(map(str, times))) == list(map(str, times))
    assert not redactor.found


def test_what_was_sampled_is_dropped_where_its_text_is_no_longer_its_own(tmp_path: Path) -> None:
    said = [
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "ann@example.org", "token_ids": [1, 2], "logprobs": [-1.0, -0.5]},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "nobody", "token_ids": [3], "logprobs": [-0.25]},
    ]
    import_chat(tmp_path, [{"messages": said, "success": True}], redact=["email"])
    (found,) = read_trajectories(tmp_path / "out")
    assert [(step.action, step.token_ids, step.logprob) for step in found.steps] == [
        ("[email]", None, None),
        ("nobody", (3,), -0.25),
    ]


def test_the_projects_own_tables_are_redacted_too(tmp_path: Path) -> None:
    import_chat(tmp_path, [{**json.loads(json.dumps(REFUND).replace("order 7", "order 7 of ann@example.org"))}])
    report = import_logs([tmp_path / "out"], "parquet", tmp_path / "again", rules(), redact=["email"])
    assert report["redacted"]["email"] > 0
    for path in (tmp_path / "again").rglob("*.parquet"):
        assert b"ann@" not in path.read_bytes()


def test_an_escape_in_a_broken_line_hides_nothing() -> None:
    assert "[email]" in Redactor(["email"]).hidden('{"to": "ann\\u0040example.org", "x": ')


def test_an_unknown_pattern() -> None:
    with pytest.raises(ConfigError, match="no pattern 'mail' to redact; known: private_key, jwt"):
        Redactor(["mail"])
