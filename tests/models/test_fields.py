"""Tokens of fields: pooling, buckets, absence."""

import made_lists
import numpy as np
import pytest
import torch

from models.errors import InvalidOption
from models.fields import Amounts, Fields, Words
from retrieval.features import Category


def test_words_keep_the_order_of_their_fields_and_pool_those_with_several() -> None:
    fields = (Category("a", 3), Category("b", 2, 1, 3), Category("c", 4), Category("d", 1))
    words = Words(fields, 2)
    assert words.table is not None
    assert len(words.table) == sum(field.size for field in fields)
    codes = torch.tensor([[2, 1, 0, 3, 5, 0], [0, 0, 0, 0, 1, 2]])
    tokens = torch.cat(words(codes), dim=1)
    table = words.table
    assert tokens.shape == (2, 4, 2)
    assert torch.equal(tokens[0, 0], table[2])
    assert torch.allclose(tokens[0, 1], (table[5 + 1] + table[5 + 3]) / 2)
    assert torch.equal(tokens[0, 2], table[5 + 4 + 5])
    assert torch.equal(tokens[0, 3], table[5 + 4 + 6])  # absent, as a word of its own
    assert not tokens[1, 1].any()  # none of several
    some = torch.cat(words(codes[:, [1, 2, 3, 5]], (1, 3)), dim=1)
    assert torch.equal(some, tokens[:, [1, 3]])


def test_no_words_and_no_numbers_are_no_tokens() -> None:
    assert Words((), 4)(torch.zeros(2, 0, dtype=torch.long)) == []
    assert Amounts(0, 4, numbers="both", buckets=4)(torch.zeros(2, 0)) == []


def test_buckets_lie_between_quantiles_and_absence_has_its_own() -> None:
    amounts = Amounts(2, 3, numbers="buckets", buckets=4)
    values = np.full((50, 8, 2), np.nan, dtype=np.float32)
    values[:, :5, 0] = np.arange(250).reshape(50, 5)  # absent in padding
    amounts.learn(values)
    assert amounts.boundaries[0].tolist() == pytest.approx([-np.inf, 62.25, 124.5, 186.75])
    assert amounts.boundaries[1].tolist() == pytest.approx([-np.inf, -2, 0, 2])  # never seen: as it was
    assert amounts.table is not None
    table = amounts.table.unflatten(0, (2, 5))
    asked = torch.tensor([[torch.nan, torch.nan], [-9, -9], [62.25, 1.9], [1e30, 1e30]])
    (tokens,) = amounts(asked)
    assert torch.equal(tokens[:, 0], table[0, [0, 1, 2, 4]])
    assert torch.equal(tokens[:, 1], table[1, [0, 1, 3, 4]])


def test_a_line_goes_through_its_number_alone_and_absence_is_none() -> None:
    amounts = Amounts(2, 3, numbers="linear", buckets=4)
    assert amounts.slopes is not None
    (tokens,) = amounts(torch.tensor([[2.0, torch.nan], [3.0, 1.0]]))
    assert torch.allclose(tokens[1, 0] - tokens[0, 0], amounts.slopes[0])
    (nothing,) = amounts(torch.tensor([[torch.nan, 0.0]]))
    assert amounts.table is not None
    assert torch.equal(nothing[0, 0], amounts.table[0])
    assert torch.equal(nothing[0, 1], amounts.table[3])


def test_boundaries_are_saved_with_the_weights() -> None:
    one, other = (Fields(made_lists.features(), 4, numbers="both", buckets=8) for _ in range(2))
    one.learn(made_lists.feeds(30, 10, 3))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.candidate_amounts.boundaries, other.candidate_amounts.boundaries)
    assert not torch.equal(one.candidate_amounts.boundaries[0, 1:], torch.linspace(-2, 2, 7))


def test_events_and_candidates_read_the_same_table() -> None:
    fields = Fields(made_lists.features(), 4, numbers="both", buckets=8)
    feeds = made_lists.feeds(2, 3, 3)
    codes = torch.from_numpy(feeds["candidate_codes"])
    as_candidate = torch.cat(fields.candidate(codes, torch.from_numpy(feeds["candidate_numbers"])), dim=2)
    as_event = torch.cat(fields.events(codes), dim=2)
    assert (fields.of_candidate, fields.of_request, fields.of_event) == (5, 3, 2)
    assert torch.equal(as_candidate[:, :, :2], as_event)


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(InvalidOption, match="numbers 'log' is none of buckets, linear, both"):
        Fields(made_lists.features(), 4, numbers="log", buckets=8)
    with pytest.raises(InvalidOption, match="buckets 1 must be at least 2"):
        Fields(made_lists.features(), 4, numbers="both", buckets=1)
