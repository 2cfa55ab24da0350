import pandas as pd
import pytest

from builders import make_trajectory
from retroformer.curriculum.catalogue import COLUMNS, read_catalogue, write_catalogue
from retroformer.errors import DataError
from retroformer.storage import write_trajectories

ROW = ["0012", 1, "strict", "P6N3", "train", "success", 1 / 3, 3, 0.1, 1, 1e-12, "scripted:bot?noise=0.3,seed=1"]


def one(**overrides):
    return pd.DataFrame([dict(zip(COLUMNS, ROW, strict=True)) | overrides])


def test_ids_that_look_like_numbers_come_back_as_they_were(tmp_path):
    ids = ["0012345678901234", "12e4567890123456", "nan"]
    write_catalogue(tmp_path / "catalogue.csv", pd.concat([one(trajectory_id=id) for id in ids]))
    found = read_catalogue(tmp_path / "catalogue.csv")
    assert found["trajectory_id"].tolist() == ids
    assert found["policy"].tolist() == ["scripted:bot?noise=0.3,seed=1"] * 3
    assert found["probability"].tolist() == [1e-12] * 3


def test_the_last_bits_of_a_number_do_not_show(tmp_path):
    write_catalogue(tmp_path / "a.csv", one(quality=0.1 + 0.2))
    write_catalogue(tmp_path / "b.csv", one(quality=0.3))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a catalogue"),
        ("trajectory_id,round\na,1\n", "lacks the columns family"),
        (",".join(COLUMNS) + "\n", "has no row below its header"),
        ("\n".join([",".join(COLUMNS), *[",".join([*map(str, ROW[:11]), "p"])] * 2]), "has 0012 more than once"),
        ("\n".join([",".join(COLUMNS), ",".join([*map(str, ROW[:11]), "p", ""])]), "line 2: got 13 cells, expected 12"),
        ("\n".join([",".join(COLUMNS), ",".join(map(str, ROW[:11]))]), "line 2: got 11 cells, expected 12"),
        (",".join(COLUMNS) + "\n" + '"a', "is not a catalogue: unexpected end of data"),
        (",".join(COLUMNS) + "\n" + ",".join(["a", "one", *map(str, ROW[2:11]), "p"]), "not a number"),
    ],
)
def test_a_damaged_catalogue_is_named(tmp_path, text, message):
    (tmp_path / "catalogue.csv").write_text(text)
    with pytest.raises(DataError, match=rf"catalogue\.csv {message}|catalogue\.csv.*{message}"):
        read_catalogue(tmp_path / "catalogue.csv")


def test_an_id_that_the_tables_lack_is_named(tmp_path):
    known = make_trajectory()
    write_trajectories(tmp_path, [known])
    write_catalogue(tmp_path / "catalogue.csv", one(trajectory_id=known.id))
    assert read_catalogue(tmp_path / "catalogue.csv")["trajectory_id"].tolist() == [known.id]
    write_catalogue(tmp_path / "catalogue.csv", pd.concat([one(trajectory_id=known.id), one(trajectory_id="gone")]))
    with pytest.raises(DataError, match=r"catalogue\.csv has gone, which .*episodes\.parquet does not have"):
        read_catalogue(tmp_path / "catalogue.csv")


def test_a_missing_catalogue_is_named(tmp_path):
    with pytest.raises(DataError, match="run curate"):
        read_catalogue(tmp_path / "catalogue.csv")
