"""Every layout on the real data it is named after: the counts that the data's own description states."""

import pytest

from models.events import read_log
from models.layouts import layouts


@pytest.mark.data
@pytest.mark.parametrize(
    ("layout", "path", "users", "items", "events"),
    [
        ("sasrec-txt", "ml-1m/sasrec_ml-1m.txt.gz", 6_040, 3_416, 999_611),
        ("ml-100k", "ml-100k", 943, 1_682, 100_000),
        ("s3rec", "amazon-beauty-2014/Beauty.txt", 22_363, 12_101, 198_502),
        ("serenade", "serenade-clicks/train.tsv.gz", 23_753, 18_009, 113_601),
        ("microlens", "microlens-50k", 50_000, 19_220, 359_708),
        ("windows", "amazon-industrial-2018", 4_533, 3_217, 27_001),
    ],
)
def test_counts(shared_data, layout, path, users, items, events):
    log = read_log(layout, shared_data(path))
    assert (log.report.users, log.report.items, log.report.rows_kept) == (users, items, events)
    assert log.report.rows_read == log.events.height
    assert log.ordered_only == layouts()[layout].is_ordered_only


@pytest.mark.data
def test_movielens_1m_with_its_missing_times_and_ratings(shared_data):
    log = read_log("ml-1m", shared_data("ml-1m"))
    assert log.report.rows_read == 1_000_209
    assert log.report.dropped == {"no time (ts_kind none)": 249}
    assert log.events.height == 1_000_209 - 249
    assert log.events["value"].null_count() == 39_723 + 255_459 + 8_049
    assert (log.items.height, log.users.height) == (3_883, 6_040)
    assert log.items.row(0)[:2] == ("1", "Toy Story")


@pytest.mark.data
def test_beauty_is_its_own_5_core(shared_data):
    log = read_log("s3rec", shared_data("amazon-beauty-2014"), core=5)
    assert log.report.core_removed == {"events": 0, "users": 0, "items": 0, "rounds": 0}
    assert log.items["title"].null_count() == 0


def test_every_layout_says_what_it_reads():
    for name, layout in layouts().items():
        assert layout.name == name
        assert layout.summary
        assert layout.columns
