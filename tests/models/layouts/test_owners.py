"""Who left what: against the obvious way, word by word."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_log import erased, event, merged, write

from models.layouts.owners import Owners, Word


def test_an_erasure_takes_what_came_before_it_and_in_its_moment():
    owners = Owners([Word(5, "anna", None)])
    assert [owners.owner("anna", time) for time in (4, 5, 6)] == [None, None, "anna"]
    assert owners.owner("bert", 1) == "bert"


def test_what_was_merged_goes_with_whom_it_was_merged_into():
    owners = Owners([Word(5, "anonymous", "anna"), Word(9, "anna", None)])
    assert owners.owner("anonymous", 4) is None
    assert owners.owner("anonymous", 6) == "anonymous"
    only = Owners([Word(3, "anna", None), Word(5, "anonymous", "anna")])
    assert only.owner("anonymous", 1) == "anna"


def test_users_who_were_merged_to_and_fro_are_somebody():
    owners = Owners([Word(5, "a", "b"), Word(5, "b", "a"), Word(7, "a", "b")])
    assert owners.owner("a", 1) == "b"


Names = st.sampled_from("abc")


@given(st.lists(st.tuples(st.integers(0, 6), Names, st.none() | Names), max_size=8), Names, st.integers(0, 7))
def test_it_is_what_carrying_out_every_word_in_turn_gives(said, user, time):
    owners = Owners(Word(float(at), who, into) for at, who, into in said)
    now = user
    for word in owners.words:
        if word.time >= time and word.user_id == now:
            now = word.into
    assert owners.owner(user, float(time)) == now


def test_words_of_all_segments_count_for_all_records(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", event(1, "x", "erased"), erased(5, "anna"), end='{"kind":"erased","ti'),
        write(tmp_path / "b.jsonl", merged(6, "guest", "bert")),
    ]
    owners = Owners.of(files)
    assert sorted(owners.names) == ["anna", "guest"]
    frame = pl.DataFrame(
        {
            "user_id": ["anna", "anna", "guest", None, "guest", "guest"],
            "time": [4.0, 6.0, 1.0, 1.0, 9.0, 9.0],
            "since": [None, None, None, None, None, 5.0],
        }
    )
    users, gone = owners.settled(frame)
    assert users.to_list() == [None, "anna", "bert", None, "guest", "bert"]
    assert gone.to_list() == [True, False, False, False, False, False]


@pytest.mark.parametrize("word", [Word(1.0, "a\nb", None), Word(1.0, "a", "b")])
def test_a_word_comes_back_from_its_line(tmp_path, word):
    (tmp_path / "a.jsonl").write_bytes(word.line)
    assert Owners.of([tmp_path / "a.jsonl"]).words == [word]
