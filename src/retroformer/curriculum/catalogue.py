"""``catalogue.csv``: one row per trajectory, what it is worth and how often it is to be sampled."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from retroformer.errors import DataError
from retroformer.storage import EPISODES, read_table

COLUMNS = {
    "trajectory_id": "str",
    "round": "int64",
    "family": "str",
    "task": "str",
    "split": "str",
    "outcome": "str",
    "total_reward": "float64",
    "steps": "int64",
    "quality": "float64",
    "tier": "int64",
    "probability": "float64",
    "policy": "str",
}


def write_catalogue(path: Path, catalogue: pd.DataFrame) -> None:
    """Write the catalogue; ten significant digits, so that the last bit of a logarithm does not change the file."""
    catalogue[list(COLUMNS)].to_csv(path, index=False, float_format="%.10g", lineterminator="\n")


def read_catalogue(path: Path) -> pd.DataFrame:
    """Read the catalogue. Raises DataError that names what is missing or not a number, and the line of a torn row.

    Ids are read as text: some have digits alone, or look like a number with an exponent. Each stands once, and where
    the tables lie beside the catalogue, they have what may be sampled.
    """
    catalogue = read_text_cells(Path(path))
    missing = [name for name in COLUMNS if name not in catalogue]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}")
    if catalogue.empty:
        raise DataError(f"{path} has no row below its header; run curate again")
    ids: Any = catalogue["trajectory_id"]
    if ids.duplicated().any():
        raise DataError(f"{path} has {ids[ids.duplicated()].iloc[0]} more than once")
    try:
        catalogue = catalogue.reindex(columns=list(COLUMNS)).astype(COLUMNS)
    except ValueError as error:
        raise DataError(f"{path} has a cell that is not a number: {error}") from None
    # What may not be sampled is listed too, and the tables may lack it.
    ids = catalogue.loc[catalogue["probability"] > 0, "trajectory_id"]
    episodes = Path(path).with_name("episodes.parquet")
    if episodes.exists():
        unknown = ids[~ids.isin(read_table(episodes, EPISODES)["trajectory_id"].to_pylist())]
        if len(unknown):
            raise DataError(f"{path} has {unknown.iloc[0]}, which {episodes} does not have; run curate again")
    return catalogue


def read_text_cells(path: Path) -> pd.DataFrame:
    """Every cell as text. Not by pandas, which takes the first cell of a row with one too many for an index."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file, strict=True)
            head = next(lines, None)
            if head is None:
                raise DataError(f"{path} is not a catalogue: it is empty")
            rows = []
            for cells in lines:
                if cells and len(cells) != len(head):
                    raise DataError(f"{path}, line {lines.line_num}: got {len(cells)} cells, expected {len(head)}")
                rows += [cells] if cells else []
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run curate") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a catalogue: {error}") from None
    return pd.DataFrame(rows, columns=pd.Index(head), dtype="str")
