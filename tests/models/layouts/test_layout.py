"""A path finds its files by name, and what cannot be decided is asked back."""

import pytest

from models.errors import MissingData
from models.layouts import Sources, layouts


def touch(folder, *names):
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def test_a_directory_of_tables_takes_every_event_file(tmp_path):
    events = touch(tmp_path, "a.csv", "b.csv.gz")
    items, users = touch(tmp_path, "items.csv", "users.csv")
    touch(tmp_path, "notes.txt")
    assert layouts()["csv"].find(tmp_path) == Sources(tuple(events), items, users)


def test_a_table_given_by_name_is_the_log_alone(tmp_path):
    (events, _) = touch(tmp_path, "a.csv", "items.csv")
    assert layouts()["csv"].find(events) == Sources((events,))


def test_a_known_layout_finds_items_beside_its_file(tmp_path):
    events, items, users = touch(tmp_path, "ratings.dat", "movies.dat", "users.dat")
    assert layouts()["ml-1m"].find(events) == Sources((events,), items, users)


def test_the_published_file_goes_before_the_table_of_interactions(tmp_path):
    events, _ = touch(tmp_path, "ratings.dat", "interactions.tsv.gz")
    assert layouts()["ml-1m"].find(tmp_path).events == (events,)


def test_negatives_of_an_evaluation_are_no_log(tmp_path):
    events, _ = touch(tmp_path, "LastFM.txt", "LastFM_sample.txt")
    assert layouts()["s3rec"].find(tmp_path).events == (events,)


def test_several_files_that_could_be_meant(tmp_path):
    touch(tmp_path, "one.txt", "two.txt")
    with pytest.raises(MissingData, match=r"one\.txt, two\.txt; name the one"):
        layouts()["s3rec"].find(tmp_path)


@pytest.mark.parametrize("name", sorted(layouts()))
def test_missing_directory(tmp_path, name):
    with pytest.raises(MissingData, match="does not exist"):
        layouts()[name].find(tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(layouts()))
def test_empty_directory(tmp_path, name):
    with pytest.raises(MissingData, match="holds no"):
        layouts()[name].find(tmp_path)
