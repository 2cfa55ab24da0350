"""Conditions, on rows made by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import make_trajectory
from retroformer.errors import ConfigError
from retroformer.lineage.sources import by_file, place_of, ranges
from retroformer.lineage.where import matching, parse
from retroformer.storage import write_trajectories


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seeds 0 to 5, those above 2 of another task, the odd ones failures."""
    names = ("P6N3", "P6N3", "P6N3", "P5N2", "P5N2", "P5N2")
    made = [
        make_trajectory(
            (0.0, float(seed % 2 == 0)),
            seed=seed,
            name=name,
            id=f"t{seed}",
            source=f"a.jsonl:{seed}",
            error="cut" * (seed == 4),
        )
        for seed, name in enumerate(names)
    ]
    write_trajectories(tmp_path, made)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["task=P6N3"], {0, 1, 2}),
        (["task!=P6N3", "seed<5"], {3, 4}),
        (["seed>=1", "seed<=3", "outcome=failure"], {1, 3}),
        (["source~:[25]$"], {2, 5}),
        (["id=t3"], {3}),
        (["round=7", "seed=2"], {2}),
        (["round!=7"], set()),
        (["text~cut"], {4}),
        (["text~^o0$", "text~go to"], {0, 1, 2, 3, 4, 5}),
        (["text~o0", "text~nobody said this"], set()),
        (["seed > 3", "total_reward=0"], {5}),
    ],
)
def test_all_conditions_must_hold(folder: Path, words: list[str], seeds: set[int]) -> None:
    found = matching(folder, 7, [parse(one) for one in words])
    assert found == {f"t{seed}": f"a.jsonl:{seed}" for seed in seeds}


def test_the_lines_of_a_file_may_stand_for_a_value(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a.jsonl:1\na.jsonl:4\n\n")
    assert set(matching(folder, 1, [parse(f"source=@{tmp_path}/lines.txt")])) == {"t1", "t4"}


def test_steps_that_no_episode_claims_are_found_by_their_text(folder: Path) -> None:
    episodes = pq.read_table(folder / "episodes.parquet")
    others = [id != "t2" for id in episodes["trajectory_id"].to_pylist()]
    pq.write_table(episodes.filter(pa.array(others)), folder / "episodes.parquet")
    assert matching(folder, 1, [parse("text~^o0$"), parse("id=t2")]) == {"t2": ""}
    assert "t2" not in matching(folder, 1, [parse("text~^o0$"), parse("seed=2")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed", "is no condition"),
        ("colour=red", "no column colour"),
        ("seed=many", "seed is a number, got 'many'"),
        ("seed~1", "seed is a number; compare it with ="),
        ("task<P6", "task is text"),
        ("text=hello", "text is text; compare it with ~"),
        ("text~(", "is no regular expression"),
        ("source=@nowhere.txt", "nowhere.txt cannot be read"),
    ],
)
def test_mistakes_name_what_is_expected(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", "\\(")):
        parse(text)


def test_what_was_said_is_kept_as_a_hash() -> None:
    assert parse("seed<3").kept() == "seed<3"
    # printf ACME | sha256sum
    assert parse("text~ACME").kept().startswith("text~sha256:a8308e8e2e4b7330")
    assert "ACME" not in parse("description~ACME").kept()


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("data/logs/a.jsonl:17", ("data/logs/a.jsonl", 17, "")),
        ("data/logs/a.jsonl:17#3", ("data/logs/a.jsonl", 17, "")),
        ("data/logs/a.json:1[3]", ("data/logs/a.json", 1, "[3]")),
        ("logs/episodes.parquet:5 old/a.jsonl:9", ("logs/episodes.parquet", 5, "")),
        ("rollout", None),
        ("sqlite:///mlruns/traces.db:tr-12", None),
    ],
)
def test_a_source_is_a_file_and_a_line(source: str, place: tuple[str, int, str] | None) -> None:
    assert place_of(source) == place


def test_lines_are_told_in_ranges() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    found = by_file(["a:2", "a:1", "rollout", "rollout"])
    assert found == {"a": {"trajectories": 2, "lines": [1, 2]}, "rollout": {"trajectories": 2, "lines": []}}
