"""The grammar of tasks, over a log of two event types whose values are known."""

import numpy as np
import pytest

from models.errors import InvalidOption
from models.histories import Histories
from models.tasks import DEFAULT, outcomes, parse
from retrieval.sequences import History
from retrieval.tasks import Task

TYPES = ("view", "purchase")
# Views are worth 1 to 10, purchases 0, 20 and nothing.
LOG = Histories(
    offsets=np.array([0, 13]),
    rows=np.arange(1, 14),
    event_types=np.array([1] * 10 + [2] * 3),
    values=np.array([*range(1, 11), 0, 20, np.nan], dtype=np.float32),
    timestamps=np.arange(13.0),
    user_ids=("u",),
)
EVENTS = LOG.span(0, 13)


def test_a_bare_name_is_any_event() -> None:
    (task,) = parse(DEFAULT, TYPES, LOG)
    assert task == Task("click")
    assert task.holds(EVENTS).all()


def test_every_form_of_the_grammar() -> None:
    text = "click; like: value >= 4;purchase:event_type == purchase ; buy: event_type == purchase and value > 0"
    click, like, purchase, buy = parse(text, TYPES, LOG)
    assert (click.op, click.event_type) == (None, None)
    assert (like.op, like.value, like.event_type) == (">=", 4.0, None)
    assert (purchase.op, purchase.event_type) == (None, 2)
    assert (buy.op, buy.value, buy.event_type) == (">", 0.0, 2)
    assert buy.holds(EVENTS).sum() == 1
    assert purchase.holds(EVENTS).sum() == 3


@pytest.mark.parametrize("text", ["t: value > 0 and event_type == purchase", "t: event_type == purchase and value > 0"])
def test_the_order_of_comparisons_does_not_matter(text: str) -> None:
    (task,) = parse(text, TYPES, LOG)
    assert (task.event_type, task.op, task.value) == (2, ">", 0.0)


def test_a_quantile_becomes_a_number_of_the_training_part() -> None:
    (long_view,) = parse("long_view: value >= q0.8 and event_type == view", TYPES, LOG)
    assert long_view.value == 8.0  # 8 of the 10 views are worth at most 8
    (of_all,) = parse("long: value >= q1", TYPES, LOG)
    assert of_all.value == 20.0
    assert Task.parse(long_view.to_json()) == long_view


def test_an_event_type_may_have_blanks() -> None:
    assert parse("cart: event_type == add to cart", ("add to cart",), LOG)[0].event_type == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("click; sold: event_type == sale", "event type 'sale' is not in this log, which has view, purchase"),
        ("click; click: value > 1", "'click' stands twice"),
        ("click; like; ", "'' at character 14 cannot be read"),
        ("like: value => 4", "'value => 4' at character 7"),
        ("click; like: value >= 4 and rating > 2", "'rating > 2' at character 29"),
        ("like: value >= 4 and value < 5", "'value < 5' at character 22"),
        ("like: value >= q1.5", "a share from q0 to q1"),
        ("two words", "a name of letters"),
        ("like:", "'' at character 6"),
        ("all: value > 1", "'all' is the name of the whole history"),
        ("like: value > 20", "no training event fulfils 'like'"),
    ],
)
def test_what_cannot_be_is_named(text: str, says: str) -> None:
    with pytest.raises(InvalidOption, match="tasks: ") as refused:
        parse(text, TYPES, LOG)
    assert says in str(refused.value)


def test_empty() -> None:
    with pytest.raises(InvalidOption, match="character 1 "):
        parse("", TYPES, LOG)


def test_a_log_without_values_has_nothing_to_compare() -> None:
    bare = Histories.from_rows([[1, 2]])
    with pytest.raises(InvalidOption, match="no training event has one"):
        parse("like: value >= 4", TYPES, bare)
    only_views = LOG.keep(LOG.event_types == 1)
    with pytest.raises(InvalidOption, match="no training event of type 'purchase' has one"):
        parse("buy: event_type == purchase and value > q0.5", TYPES, only_views)


def test_an_event_without_the_value_to_judge_by_leaves_the_question_open() -> None:
    events = History.of_events(np.array([1, 2, 3, 4]), [1, 1, 1, 2], [5, 2, None, None], range(4))
    tasks = (Task("click"), Task("like", op=">=", value=4.0), Task("big view", 1, ">", 3.0), Task("click", 2))
    nan = np.nan
    np.testing.assert_array_equal(
        outcomes(tasks, events), [[1, 1, 1, 0], [1, 0, 0, 0], [1, nan, nan, 0], [1, nan, 0, 1]]
    )
