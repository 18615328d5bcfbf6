"""Arrangement: lists made by hand for every rule, the plain reading of the rules beside it, and random requests.

`by_the_book` makes each place by looking at every item there is; `violations` says what is wrong with a list from the
list alone. Neither shares a line with what is tested.
"""

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from retrieval.arrangement import RESERVE_HEAD, Arranger
from retrieval.catalog import Catalog
from retrieval.errors import InvalidInput, InvalidRule
from retrieval.filters import AttributeRule, Eligible, Filter, Filters
from retrieval.inputs import Request
from retrieval.queries import Answer, Query
from retrieval.rules import NO_RULES, Cap, Freshness, Pin, Promotion, Rules
from retrieval.sequences import EMPTY, FloatArray

PROPERTY_REQUESTS = int(os.environ.get("SEQUITUR_PROPERTY_REQUESTS", "500"))
NOW = 1000.0

# Eight items, most popular first: a b c are red, d e f blue, g is both, h is neither. `published` falls from a on.
IDS = "abcdefgh"
CATALOG = Catalog.build(
    list(IDS),
    popularity=range(8, 0, -1),
    attributes={
        "categories": [["red"], ["red"], ["red"], ["blue"], ["blue"], ["blue"], ["red", "blue"], None],
        "brand": ["acme", "acme", None, "other", "other", "acme", None, "other"],
        "published": [NOW, NOW - 10, NOW - 20, NOW + 50, None, NOW - 10, NOW, NOW],
    },
)
# a b c point one way, d e f another, g lies between them, h nowhere.
ACROSS = 0.5**0.5
VECTORS = np.array([[0, 0], [1, 0], [2, 0], [3, 0], [0, 1], [0, 2], [0, 3], [ACROSS, ACROSS], [0, 0]], dtype=np.float32)
NO_OTHER = "no other promoted item is eligible and within the caps"
ALL_BREAK = "every eligible item left breaks a cap"


def rows_of(ids: str) -> np.ndarray:
    return CATALOG.rows(ids)


def asked(rules: Rules, k: int, eligible: str = IDS, exclude: str = "") -> Query:
    mask = np.zeros(len(CATALOG) + 1, dtype=np.bool_)
    mask[rows_of(eligible)] = True
    return Query(Request(EMPTY, NOW), k, Eligible.of(mask), rows_of(exclude), rules=rules)


def found(ids: str, scores: Sequence[float] | None = None) -> Answer:
    """Candidates, best first; 1.0, 0.9, ... where no scores are given."""
    given = np.linspace(1, 0.1, 10)[: len(ids)] if scores is None else scores
    return Answer.of(rows_of(ids), np.array(given, dtype=np.float32), "retrieval")


def arranged(query: Query, answer: Answer) -> Answer:
    return Arranger(CATALOG, VECTORS).arrange([query], [answer])[0]


def shown(answer: Answer) -> str:
    return "".join(CATALOG.ids[row] for row in answer.rows.tolist())


def arrange(rules: Rules, k: int, candidates: str, eligible: str = IDS, exclude: str = "") -> tuple[str, ...]:
    """What is shown, the reasons by their first letters, and what is unmet."""
    answer = arranged(asked(rules, k, eligible, exclude), found(candidates))
    return shown(answer), "".join(reason[:2] or "--" for reason in answer.reasons), *answer.unmet


class TestWithoutRules:
    def test_the_first_k_are_shown(self) -> None:
        answer = arranged(asked(NO_RULES, 3), found("hgfed"))
        assert (shown(answer), answer.reasons, answer.unmet) == ("hgf", (), ())

    def test_few_candidates_are_all_shown(self) -> None:
        few = found("hg")
        assert arranged(asked(NO_RULES, 3), few) is few


class TestPins:
    def test_a_pin_has_its_place(self) -> None:
        assert arrange(Rules(pins=(Pin("h", 2),)), 4, "abcd") == ("ahbc", "--pi----")

    def test_a_candidate_may_be_pinned(self) -> None:
        assert arrange(Rules(pins=(Pin("d", 1), Pin("a", 3))), 4, "abcd") == ("dbac", "pi--pi--")

    def test_a_pinned_candidate_keeps_what_is_known_of_it(self) -> None:
        answer = arranged(asked(Rules(pins=(Pin("c", 1), Pin("h", 2))), 3), found("abc", [3, 2, 1]))
        assert (shown(answer), answer.scores.tolist()) == ("cha", [1, 1, 3])
        assert answer.sources == ("retrieval", "popular", "retrieval")

    def test_an_unknown_an_ineligible_an_excluded_and_a_late_pin_are_named(self) -> None:
        pins = Pin("nobody", 1), Pin("a", 2), Pin("b", 3), Pin("c", 30), Pin("d", 4)
        assert arrange(Rules(pins=pins), 5, "gfed", eligible="bcdefgh", exclude="b") == (
            "gfedc",
            "------pifi",
            "pin of 'nobody': not in the catalog",
            "pin of 'a': not eligible",
            "pin of 'b': excluded",
            "pin of 'c': position 30 is beyond the list of 5",
        )

    def test_a_pin_of_a_list_that_is_too_short_moves_up(self) -> None:
        assert arrange(Rules(pins=(Pin("a", 5), Pin("b", 4), Pin("d", 1))), 6, "cde", "abcde") == (
            "dceba",
            "pi----pipi",
        )

    def test_everything_pinned(self) -> None:
        pins = tuple(Pin(item, n) for n, item in enumerate("hcfa", start=1))
        rules = Rules(pins=pins, caps=(Cap(1),), promotion=Promotion(1.0, ("b",)), diversity=0.5)
        assert arrange(rules, 4, "abcd") == (
            "hcfa",
            "pipipipi",
            "promotion of 1: 0 of the first 4, 4 were asked for; pins hold the places",
            "cap of 1 on 'categories': 2 of 'red'; all of them pinned",
        )


class TestCaps:
    def test_what_would_break_a_cap_is_passed_over(self) -> None:
        assert arrange(Rules(caps=(Cap(1),)), 3, "abcdeh") == ("adh", "------")

    def test_an_item_of_several_words_counts_for_each(self) -> None:
        assert arrange(Rules(caps=(Cap(2),)), 4, "gabdeh") == ("gadh", "--------")

    def test_only_named_words_are_capped(self) -> None:
        assert arrange(Rules(caps=(Cap(1, values=("blue",)),)), 4, "abcdefgh") == ("abcd", "--------")

    def test_a_column_of_words_is_capped_and_items_without_one_are_not(self) -> None:
        assert arrange(Rules(caps=(Cap(1, "brand"),)), 4, "abdecg") == ("adcg", "--------")

    def test_pins_count_wherever_they_stand(self) -> None:
        assert arrange(Rules(caps=(Cap(1),), pins=(Pin("c", 3),)), 3, "abdh") == ("dhc", "----pi")

    def test_what_candidates_lack_comes_from_the_other_items_by_popularity(self) -> None:
        assert arrange(Rules(caps=(Cap(1),)), 3, "fde") == ("fah", "--fifi")

    def test_filled_items_have_the_lowest_score_and_no_steps(self) -> None:
        nan = float("nan")
        answer = replace(
            found("fde", [3, -1, -2]), steps=np.ones((3, 2), np.float32), tasks=np.ones((3, 1), np.float32)
        )
        filled = arranged(asked(Rules(caps=(Cap(1),)), 3), answer)
        assert (filled.scores.tolist(), filled.sources) == ([3, -2, -2], ("retrieval", "popular", "popular"))
        assert filled.reasons == ("", "filled", "filled")
        assert filled.steps is not None
        assert filled.tasks is not None
        assert np.array_equal(filled.steps, [[1, 1], [nan, nan], [nan, nan]], equal_nan=True)
        assert np.array_equal(filled.tasks, [[1], [nan], [nan]], equal_nan=True)

    def test_caps_give_way_only_when_every_item_left_breaks_one(self) -> None:
        assert arrange(Rules(caps=(Cap(1),)), 6, "fabd") == (
            "fahbdc",
            "----fi----fi",
            f"cap of 1 on 'categories': 2 of 'blue', 3 of 'red'; {ALL_BREAK}",
        )

    def test_each_cap_that_gave_way_is_named(self) -> None:
        caps = Cap(1, values=("red",)), Cap(1, "brand"), Cap(3, values=("blue",))
        assert arrange(Rules(caps=caps), 3, "ab", eligible="bad") == (
            "adb",
            "--fi--",
            f"cap of 1 on 'categories': 2 of 'red'; {ALL_BREAK}",
            f"cap of 1 on 'brand': 2 of 'acme'; {ALL_BREAK}",
        )

    def test_a_cap_on_a_column_that_cannot_be_capped_is_refused(self) -> None:
        with pytest.raises(InvalidRule, match=r"'genre', which the catalog does not have; .*: brand, categories"):
            arrange(Rules(caps=(Cap(1, "genre"),)), 3, "abc")
        with pytest.raises(InvalidRule, match="'published', which does not hold words or tags"):
            Arranger(CATALOG, VECTORS).check(Rules(caps=(Cap(1, "published"),)))


class TestPromotion:
    def test_every_beginning_of_the_list_has_its_share(self) -> None:
        rules = Rules(promotion=Promotion(0.5, ("e", "f", "h")))
        assert arrange(rules, 6, "abcdef") == ("aebfch", "--pr--pr--pr")

    def test_who_comes_by_score_needs_no_promotion(self) -> None:
        assert arrange(Rules(promotion=Promotion(0.5, ("b", "c"))), 4, "abcd") == ("abcd", "--------")

    def test_items_are_promoted_by_what_they_are(self) -> None:
        rules = Rules(promotion=Promotion(0.5, ("a",), AttributeRule("brand", "==", "other")))
        assert arrange(rules, 4, "cfbe") == ("cefa", "--pr--pr")

    def test_pinned_promoted_items_count(self) -> None:
        rules = Rules(promotion=Promotion(0.5, ("h", "g")), pins=(Pin("h", 1),))
        assert arrange(rules, 4, "abcd") == ("habg", "pi----pr")

    def test_promoted_items_come_early_where_other_pins_follow(self) -> None:
        rules = Rules(promotion=Promotion(0.5, ("h", "g")), pins=(Pin("c", 2), Pin("d", 4)))
        assert arrange(rules, 4, "ab") == ("gchd", "prpiprpi")

    def test_a_promoted_item_breaks_no_cap(self) -> None:
        rules = Rules(promotion=Promotion(0.5, ("b", "h")), caps=(Cap(1),))
        assert arrange(rules, 3, "aeb") == ("ahe", "--pr--")

    def test_once_caps_gave_way_nothing_is_promoted(self) -> None:
        rules = Rules(promotion=Promotion(0.34, ("g",)), caps=(Cap(1),))
        assert arrange(rules, 3, "ab", eligible="abcg") == (
            "abc",
            "----fi",
            f"promotion of 0.34: 0 of the first 3, 1 were asked for; {NO_OTHER}",
            f"cap of 1 on 'categories': 3 of 'red'; {ALL_BREAK}",
        )

    def test_promoted_items_that_run_out_are_missed(self) -> None:
        rules = Rules(promotion=Promotion(0.75, ("h", "g", "nobody", "c")))
        assert arrange(rules, 5, "abde", eligible="abdefgh", exclude="g") == (
            "ahbde",
            "--pr------",
            f"promotion of 0.75: 1 of the first 5, 3 were asked for; {NO_OTHER}",
        )

    def test_pins_that_leave_no_place_are_named(self) -> None:
        rules = Rules(promotion=Promotion(1.0, ("h", "g", "f")), pins=(Pin("a", 2),))
        assert arrange(rules, 3, "bc") == (
            "fag",
            "prpipr",
            "promotion of 1: 2 of the first 3, 3 were asked for; pins hold the places",
        )

    def test_a_promoted_item_whose_turn_it_was_anyway_is_filled(self) -> None:
        assert arrange(Rules(promotion=Promotion(1.0, ("c",))), 2, "a", eligible="abc") == (
            "ca",
            "pr--",
            f"promotion of 1: 1 of the first 2, 2 were asked for; {NO_OTHER}",
        )
        assert arrange(Rules(promotion=Promotion(0.5, ("b",))), 2, "a", eligible="abc") == ("ab", "--fi")

    def test_a_share_that_is_no_binary_fraction_is_not_short_by_one(self) -> None:
        assert math.floor(0.29 * 100) == 28  # what must not happen
        n = 100
        catalog = Catalog.build([f"i{i}" for i in range(2 * n)])
        rules = Rules(promotion=Promotion(0.29, tuple(f"i{i}" for i in range(n, 2 * n))))
        query = Query(Request(EMPTY), n, Eligible.of(catalog.available.copy()), np.zeros(0, np.int64), rules=rules)
        candidates = Answer.of(np.arange(1, n + 1), np.zeros(n, np.float32), "retrieval")
        (answer,) = Arranger(catalog, np.zeros((2 * n + 1, 1), np.float32)).arrange([query], [candidates])
        assert answer.reasons.count("promoted") == 29

    def test_a_promotion_of_a_column_that_is_absent_is_refused(self) -> None:
        with pytest.raises(InvalidRule, match="no item can be promoted: the catalog has no attribute 'genre'"):
            arrange(Rules(promotion=Promotion(0.5, where=AttributeRule("genre", "==", "x"))), 3, "abc")


class TestFreshness:
    def test_old_items_fall(self) -> None:
        """After one half-life of 10 s a half, after two a quarter; d lies ahead and e has no date: nothing is lost."""
        answer = arranged(asked(Rules(freshness=Freshness(10)), 5), found("bcdea", [1.0, 0.9, 0.8, 0.7, 0.6]))
        assert shown(answer) == "deabc"
        assert answer.scores.tolist() == pytest.approx([0.8, 0.7, 0.6, 1.0, 0.9])

    def test_weight_says_how_much_is_lost(self) -> None:
        rules = Rules(freshness=Freshness(10, weight=0.5))
        assert shown(arranged(asked(rules, 3), found("bca", [1.0, 0.9, 0.7]))) == "bac"  # 0.75, 0.5625, 0.7

    def test_negative_scores_are_shifted_so_that_nobody_gains_by_age(self) -> None:
        """Shifted 4, 3, 2, 0; kept 2, 3, 0.5, 0."""
        assert shown(arranged(asked(Rules(freshness=Freshness(10)), 4), found("bacf", [1, 0, -1, -3]))) == "abcf"

    def test_equal_scores_stay_in_order(self) -> None:
        assert shown(arranged(asked(Rules(freshness=Freshness(10)), 4), found("hgad", [1, 1, 1, 1]))) == "hgad"

    def test_a_later_source_with_higher_numbers_stays_behind(self) -> None:
        rules = Rules(freshness=Freshness(10), diversity=0.25)
        assert shown(arranged(asked(rules, 3), found("dha", [0.5, 0.4, 900.0]))) == "dha"

    def test_a_column_that_is_absent_or_no_numbers_is_refused(self) -> None:
        with pytest.raises(InvalidRule, match=r"freshness reads 'age', which the catalog does not have; .*: published"):
            arrange(Rules(freshness=Freshness(10, "age")), 3, "abc")
        with pytest.raises(InvalidRule, match=r"freshness reads 'brand', which does not hold numbers; .*: published"):
            arrange(Rules(freshness=Freshness(10, "brand")), 3, "abc")


class TestDiversity:
    def test_likeness_costs(self) -> None:
        """Relevance 1, 2/3, 1/3, 0. After a: b 1/3 - 1/2 < c likewise, d 1/6, g -0.35; then g with 0 - 0.35 last."""
        assert arrange(Rules(diversity=0.5), 4, "abdg") == ("adbg", "--------")

    def test_without_diversity_the_order_stays(self) -> None:
        assert arrange(Rules(caps=(Cap(9),)), 4, "abdg") == ("abdg", "--------")

    def test_all_diversity_looks_at_likeness_only_after_the_best(self) -> None:
        assert arrange(Rules(diversity=1.0), 5, "abdgh") == ("adhgb", "----------")

    def test_pins_further_up_are_looked_at(self) -> None:
        assert arrange(Rules(diversity=1.0, pins=(Pin("f", 1),)), 3, "dab") == ("fad", "pi----")

    def test_an_item_without_a_vector_is_like_nothing(self) -> None:
        assert arrange(Rules(diversity=0.9), 3, "abh") == ("ahb", "------")


class TestListsOfAnyLength:
    EVERYTHING = Rules(
        caps=(Cap(2),),
        pins=(Pin("d", 2),),
        promotion=Promotion(0.5, ("h",)),
        freshness=Freshness(10),
        diversity=0.5,
    )

    def test_empty_candidates_are_filled_from_everything_eligible(self) -> None:
        answer = arranged(asked(Rules(caps=(Cap(1),)), 5, eligible="bcdefgh", exclude="b"), found(""))
        assert (shown(answer), answer.reasons) == ("cdhef", ("filled",) * 5)
        assert (answer.scores.tolist(), answer.sources) == ([0] * 5, ("popular",) * 5)
        assert arrange(self.EVERYTHING, 4, "") == (
            "hdab",
            "prpififi",
            f"promotion of 0.5: 1 of the first 4, 2 were asked for; {NO_OTHER}",
        )

    def test_nothing_eligible_gives_an_empty_list(self) -> None:
        assert arrange(self.EVERYTHING, 4, "", eligible="") == ("", "", "pin of 'd': not eligible")

    def test_fewer_eligible_than_k_are_all_shown(self) -> None:
        assert arrange(Rules(caps=(Cap(1),)), 20, "a", eligible="abcd", exclude="b") == (
            "adc",
            "--fifi",
            f"cap of 1 on 'categories': 2 of 'red'; {ALL_BREAK}",
        )

    def test_requests_of_one_batch_do_not_disturb_each_other(self) -> None:
        """Other rules, other lengths, other eligible items: each gets what it would have got alone."""
        rules = [self.EVERYTHING, NO_RULES, Rules(diversity=0.5), Rules(caps=(Cap(1),)), self.EVERYTHING]
        lists = ["abcdefgh", "hgf", "", "e", "hg"]
        queries = [asked(r, k, eligible=IDS[n:]) for n, (r, k) in enumerate(zip(rules, [3, 8, 2, 4, 7], strict=True))]
        answers = [found("".join(c for c in ids if c in IDS[n:])) for n, ids in enumerate(lists)]
        together = Arranger(CATALOG, VECTORS).arrange(queries, answers)
        for query, answer, got in zip(queries, answers, together, strict=True):
            alone = arranged(query, answer)
            assert (shown(got), got.reasons, got.unmet) == (shown(alone), alone.reasons, alone.unmet)
            assert np.array_equal(got.scores, alone.scores)

    def test_the_reserve_is_searched_to_its_end(self) -> None:
        """The only item that breaks no cap is the least popular of thousands."""
        n = 20 * RESERVE_HEAD
        catalog = Catalog.build(
            [f"i{i}" for i in range(n)],
            popularity=range(n, 0, -1),
            attributes={"categories": [*[["red"]] * (n - 1), ["blue"]]},
        )
        arranger = Arranger(catalog, np.zeros((n + 1, 1), np.float32))
        query = Query(
            Request(EMPTY), 3, Eligible.of(catalog.available.copy()), np.zeros(0, np.int64), rules=Rules(caps=(Cap(1),))
        )
        (answer,) = arranger.arrange([query], [Answer.of(np.array([9]), np.ones(1, np.float32), "retrieval")])
        assert answer.rows.tolist() == [9, n, 1]

    def test_vectors_of_another_catalog_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="3 vectors for a catalog of 8 items"):
            Arranger(CATALOG, VECTORS[:3])


# Random requests. What follows knows items as plain values.


@dataclass
class Item:
    id: str
    row: int
    popularity: float
    available: bool
    words: dict[str, list[str]]
    published: float | None
    vector: np.ndarray


@dataclass
class Case:
    """One random request, and what a person would read from it."""

    items: list[Item]
    query: Query
    answer: Answer
    reachable: set[int]

    @property
    def promoted(self) -> set[int]:
        promotion = self.query.rules.promotion
        if promotion is None:
            return set()
        where = promotion.where
        return {
            item.row
            for item in self.items
            if item.id in promotion.item_ids
            or (where is not None and item.available and where.value in item.words[where.name])
        }

    def pins(self) -> tuple[dict[int, int], list[str]]:
        """Place -> row of the pins that can be met, and the ids of the others."""
        rows = {item.id: item.row for item in self.items}
        met, missed = {}, []
        for pin in self.query.rules.pins:
            row = rows.get(pin.item_id, 0)
            if row in self.reachable and pin.position <= self.query.k:
                met[pin.position] = row
            else:
                missed.append(pin.item_id)
        return met, missed

    def capped(self, row: int) -> set[tuple[Cap, str]]:
        words = self.items[row - 1].words
        return {
            (cap, word)
            for cap in self.query.rules.caps
            for word in words[cap.attribute]
            if not cap.values or word in cap.values
        }

    def breaks(self, row: int, listed: Sequence[int]) -> bool:
        return any(
            1 + sum((cap, word) in self.capped(other) for other in listed) > cap.most for cap, word in self.capped(row)
        )


def asked_for(share: float, n: int) -> int:
    return math.floor(Fraction(str(share)) * n)


def by_the_book(case: Case) -> tuple[list[int], list[str]]:
    """Rows and reasons, each place by looking at every item."""
    rules, k = case.query.rules, case.query.k
    n = min(k, len(case.reachable))
    scores = case.answer.scores.tolist()
    lowest_yet = [min(scores[: i + 1]) for i in range(len(scores))]
    candidates = list(zip(case.answer.rows.tolist(), lowest_yet, strict=True))
    if rules.freshness is not None and candidates:
        shift = min(0.0, *[score for _, score in candidates], 0.0)
        aged = []
        for row, score in candidates:
            published, factor = case.items[row - 1].published, 1.0
            if published is not None:
                age = max(0.0, case.query.request.time - published)
                factor = 1 - rules.freshness.weight * (1 - 2 ** (-age / rules.freshness.half_life_s))
            aged.append((row, (score - shift) * factor))
        candidates = sorted(aged, key=lambda pair: -pair[1])
    values = [score for _, score in candidates]
    low, span = min(values, default=0), max(values, default=0) - min(values, default=0)
    relevance = {row: (score - low) / (span or 1) for row, score in candidates}
    order = [row for row, _ in candidates]
    reserve = sorted(case.reachable - set(order), key=lambda row: (-case.items[row - 1].popularity, row))
    met, _ = case.pins()
    pinned: dict[int, int] = {}
    for position in sorted(met, reverse=True):
        pinned[min(position, n, *(place - 1 for place in pinned))] = met[position]
    promoted = case.promoted

    listed: list[int] = []
    reasons: list[str] = []
    for place in range(1, n + 1):
        if place in pinned:
            listed.append(pinned[place])
            reasons.append("pinned")
            continue
        coming = [row for at, row in pinned.items() if at > place]
        taken = listed + coming

        def value(row: int) -> float:
            likeness = max((cosine(case, row, other) for other in listed), default=0.0)
            return (1 - rules.diversity) * relevance[row] - rules.diversity * likeness

        def best(rows: list[int]) -> int | None:
            """The best candidate among rows, else the first of the reserve."""
            inside = [row for row in order if row in rows]
            if inside:
                return max(inside, key=value) if rules.diversity else inside[0]
            return next((row for row in reserve if row in rows), None)

        left = [row for row in [*order, *reserve] if row not in taken]
        fitting = [row for row in left if not case.breaks(row, taken)]
        natural = best(fitting)
        chosen, reason = natural, "filled" if natural in reserve else ""
        if natural is None:
            chosen = best(left)
            reason = "filled" if chosen in reserve else ""
        elif rules.promotion is not None and too_few(case, listed, pinned, place, n):
            helping = best([row for row in fitting if row in promoted])
            if helping is not None and helping != natural:
                chosen, reason = helping, "promoted"
        assert chosen is not None
        listed.append(chosen)
        reasons.append(reason)
    return listed, reasons


def too_few(case: Case, listed: list[int], pinned: dict[int, int], place: int, n: int) -> bool:
    """Whether some beginning of the list would lack promoted items even if all free places behind this one got one."""
    promotion = case.query.rules.promotion
    assert promotion is not None
    have = sum(row in case.promoted for row in listed)
    for end in range(place, n + 1):
        behind = range(place + 1, end + 1)
        hope = sum(at not in pinned or pinned[at] in case.promoted for at in behind)
        if have + hope < asked_for(promotion.share, end):
            return True
    return False


def cosine(case: Case, one: int, other: int) -> float:
    a, b = (case.items[row - 1].vector.astype(np.float64) for row in (one, other))
    lengths = float(np.sqrt(a @ a) * np.sqrt(b @ b))
    return float(a @ b) / lengths if lengths else 0.0


def violations(case: Case, got: Answer) -> list[str]:
    """What is wrong with a list, by the promises alone."""
    rules, k = case.query.rules, case.query.k
    rows, n, wrong = got.rows.tolist(), min(k, len(case.reachable)), []
    if len(rows) != n or len(set(rows)) != n:
        wrong.append(f"{len(rows)} items, {len(set(rows))} of them distinct, {n} were possible")
    if not set(rows) <= case.reachable:
        wrong.append("an item that is not eligible or excluded")
    if rules == NO_RULES:
        return wrong
    candidates = case.answer.rows.tolist()
    if not (len(got.scores) == len(got.sources) == len(got.reasons) == n) or not np.isfinite(got.scores).all():
        wrong.append("arrays of another length, or a score that is no number")
    for row, score, source, reason in zip(rows, got.scores.tolist(), got.sources, got.reasons, strict=True):
        inside = row in candidates
        if inside and score != case.answer.scores[candidates.index(row)]:
            wrong.append(f"the score of {row} changed")
        if (source == "retrieval") != inside or (reason == "filled" and inside) or (not reason and not inside):
            wrong.append(f"{row} is from {source} for the reason {reason!r}")
        if reason == "promoted" and row not in case.promoted:
            wrong.append(f"{row} is not promoted")
    # Pins: at their place; else every place from theirs to it, or to the end, holds pins.
    met, missed = case.pins()
    held = {place for place, row in enumerate(rows, start=1) if row in met.values()}
    for position, row in met.items():
        place = rows.index(row) + 1 if row in rows else 10**6
        if place > position or not set(range(place, min(position, n) + 1)) <= held:
            wrong.append(f"pin {row} for {position} is at {place} of {n}")
    if held != {place for place, reason in enumerate(got.reasons, start=1) if reason == "pinned"}:
        wrong.append("other items than the pins are said to be pinned")
    for item_id in missed:
        if not any(f"pin of {item_id!r}" in text for text in got.unmet):
            wrong.append(f"nothing is said of the pin of {item_id}")
    # Caps: broken by pins, or where no item that was left broke none.
    for at, row in enumerate(rows):
        before = [*rows[:at], *(other for other in met.values() if other not in rows[:at])]
        if row not in met.values() and case.breaks(row, before):
            fitting = [r for r in case.reachable - set(before) if not case.breaks(r, before)]
            if fitting:
                wrong.append(f"{row} breaks a cap at place {at + 1}, and {fitting} would not")
    counts = {pair: sum(pair in case.capped(row) for row in rows) for row in rows for pair in case.capped(row)}
    over = {cap for (cap, _), count in counts.items() if count > cap.most}
    said = {
        cap for cap in rules.caps if any(t.startswith(f"cap of {cap.most} on {cap.attribute!r}") for t in got.unmet)
    }
    if over != said:
        wrong.append(f"caps broken: {over}, caps said to be: {said}")
    # Promotion: too few only where all free places went to promoted items, or no promoted item was left that fits.
    short = False
    for end in range(1, n + 1) if rules.promotion is not None else ():
        begin = rows[:end]
        if sum(row in case.promoted for row in begin) >= asked_for(rules.promotion.share, end):
            continue
        short = True
        before = {*begin, *met.values()}
        left = [r for r in case.promoted & case.reachable - before if not case.breaks(r, [*before])]
        if left and not all(row in case.promoted for row in begin if row not in met.values()):
            wrong.append(f"too few promoted among the first {end}, and {left} are left")
    if short != any(text.startswith("promotion of") for text in got.unmet):
        wrong.append(f"promotion too short: {short}; said: {got.unmet}")
    if len(got.unmet) != len(missed) + len(over) + short:
        wrong.append(f"more is said than is so: {got.unmet}")
    return wrong


WORDS = {"categories": ["red", "blue", "green", "grey", "pink"], "brand": ["acme", "other", "third"]}
SHARES = [0.1, 0.25, 0.29, 0.3, 0.5, 0.7, 1.0]


def random_items(rng: random.Random) -> tuple[list[Item], Catalog, FloatArray]:
    """Between 1 and 60 items; vectors of ones and minus ones, whose cosines floating point gets exactly."""
    size = rng.choice([rng.randint(1, 8), rng.randint(5, 25), rng.randint(20, 60)])
    several = rng.randint(1, 3)
    items = [
        Item(
            id=f"i{row}",
            row=row,
            popularity=float(rng.randint(0, 9)),
            available=rng.random() < 0.9,
            words={
                # A tag may stand there twice; it counts once.
                "categories": rng.choices(WORDS["categories"], k=rng.randint(0, several)),
                "brand": rng.choices(WORDS["brand"], k=rng.randint(0, 1)),
            },
            published=None if rng.random() < 0.2 else NOW - 64 * rng.randint(-1, 3),
            vector=np.array([rng.choice([-1, 1]) for _ in range(4)], np.float32) * rng.choice([0, 1, 1, 2]),
        )
        for row in range(1, size + 1)
    ]
    items[-1].published = NOW  # a column without any number would be one of words
    catalog = Catalog.build(
        [item.id for item in items],
        popularity=[item.popularity for item in items],
        available=[item.available for item in items],
        attributes={
            "categories": [item.words["categories"] for item in items],
            "brand": [next(iter(item.words["brand"]), None) for item in items],
            "published": [item.published for item in items],
        },
    )
    vectors = np.concatenate([np.zeros((1, 4), np.float32), [item.vector for item in items]]).astype(np.float32)
    return items, catalog, vectors


def random_rules(rng: random.Random, items: list[Item], k: int) -> Rules:
    some = [item.id for item in items] + ["nobody"]
    caps: dict[tuple[str, int], Cap] = {}
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        name, most = rng.choice(list(WORDS)), rng.randint(1, 4)
        values = tuple(rng.sample(WORDS[name], 2)) if rng.random() < 0.3 else ()
        caps[name, most] = Cap(most, name, values)
    pinned = rng.sample(some, min(len(some), rng.choice([0, 0, 1, 2, 5])))
    positions = rng.sample(range(1, k + 4), min(k + 3, len(pinned)))
    promotion = None
    if rng.random() < 0.5:
        where = rng.choice([None, AttributeRule("categories", "contains", rng.choice(WORDS["categories"]))])
        ids = tuple(rng.choices(some, k=rng.randint(int(where is None), 6)))
        promotion = Promotion(rng.choice(SHARES), ids, where)
    return Rules(
        caps=tuple(caps.values()),
        pins=tuple(Pin(item, position) for item, position in zip(pinned, positions, strict=False)),
        promotion=promotion,
        freshness=Freshness(64, weight=rng.choice([0.5, 1.0])) if rng.random() < 0.3 else None,
        diversity=rng.choice([0, 0, 0.25, 0.5, 1]),
    )


def random_filter(rng: random.Random, items: list[Item]) -> Filter:
    """Half of them allow everything."""
    if rng.random() < 0.5:
        return Filter()
    kind = rng.randrange(4)
    if kind == 0:
        return Filter(any_categories=tuple(rng.sample(WORDS["categories"], 2)))
    if kind == 1:
        return Filter(no_categories=(rng.choice(WORDS["categories"]),))
    if kind == 2:
        return Filter(attributes=(AttributeRule("published", ">=", NOW - 64 * rng.randint(0, 2)),))
    return Filter(include_ids=tuple(item.id for item in items if rng.random() < 0.6))


def allows(filter: Filter, item: Item) -> bool:
    categories = set(item.words["categories"])
    return (
        item.available
        and (not filter.any_categories or bool(categories & set(filter.any_categories)))
        and not categories & set(filter.no_categories)
        and (filter.include_ids is None or item.id in filter.include_ids)
        and all(item.published is not None and item.published >= rule.value for rule in filter.attributes)
    )


def random_cases(rng: random.Random, requests: int) -> tuple[Arranger, list[Case]]:
    """A catalog and requests of few different rules and filters, so that they meet in groups."""
    items, catalog, vectors = random_items(rng)
    filters = Filters(catalog)
    rules = [(random_rules(rng, items, k), k) for k in (rng.randint(1, 12) for _ in range(2))] + [(NO_RULES, 5)]
    allowed = [random_filter(rng, items) for _ in range(2)]
    cases = []
    for _ in range(requests):
        (wanted, k), filter = rng.choice(rules), rng.choice(allowed)
        k = rng.choice([k, k, rng.randint(1, 30)])
        excluded = [rng.randint(0, len(items)) for _ in range(rng.choice([0, 0, 3, 10]))]
        reachable = {item.row for item in items if allows(filter, item)} - set(excluded)
        rows = rng.sample(sorted(reachable), len(reachable))
        size = rng.randint(min(k, len(rows)) if wanted == NO_RULES else 0, len(rows))
        scores = sorted((rng.randint(-4, 12) / 4 for _ in range(size)), reverse=True)
        if rng.random() < 0.2:  # a second source, on a scale of its own
            scores = scores[: size // 2] + [score + 100 for score in scores[size // 2 :]]
        query = Query(
            Request(EMPTY, NOW), k, filters.eligible(filter), np.array(excluded, dtype=np.int64), rules=wanted
        )
        answer = Answer.of(np.array(rows[:size], np.int64), np.array(scores, np.float32), "retrieval")
        cases.append(Case(items, query, answer, reachable))
    return Arranger(catalog, vectors), cases


def replies(arranger: Arranger, cases: list[Case]) -> list[tuple[Case, Answer]]:
    answers = arranger.arrange([case.query for case in cases], [case.answer for case in cases])
    return list(zip(cases, answers, strict=True))


def told(case: Case, got: Answer, seed: int) -> dict[str, Any]:
    """What is needed to see what went wrong."""
    return {
        "seed": seed,
        "k": case.query.k,
        "rules": case.query.rules,
        "reachable": case.reachable,
        "candidates": list(zip(case.answer.rows.tolist(), case.answer.scores.tolist(), strict=True)),
        "got": list(zip(got.rows.tolist(), got.reasons, strict=False)),
        "unmet": got.unmet,
    }


def test_lists_are_those_of_the_plain_reading_of_the_rules() -> None:
    for seed in range(max(750, PROPERTY_REQUESTS // 4)):
        for case, got in replies(*random_cases(random.Random(seed), requests=4)):
            if case.query.rules != NO_RULES:
                rows, reasons = by_the_book(case)
                assert (rows, reasons) == (got.rows.tolist(), list(got.reasons)), told(case, got, seed)


def test_what_lies_ahead_changes_nothing_before_it_repeats_nothing_and_keeps_to_caps_page_by_page() -> None:
    for seed in range(300):
        arranger, cases = random_cases(random.Random(seed), requests=3)
        pages = random.Random(seed).choice([1, 3])
        longer = [replace(case.query, ahead=pages * case.query.k) for case in cases]
        every = arranger.arrange(longer, [case.answer for case in cases])
        for (case, first), got in zip(replies(arranger, cases), every, strict=True):
            k, n = case.query.k, len(first)
            assert got.rows[:n].tolist() == first.rows.tolist(), told(case, got, seed)
            assert got.scores[:n].tobytes() == first.scores.tobytes()
            assert (got.reasons[:n], got.unmet) == (first.reasons, first.unmet)
            rows = got.rows.tolist()
            left = set(case.answer.rows.tolist()) - set(rows[:n])
            assert (len(rows), len(set(rows))) == (n + min(pages * k, len(left)),) * 2
            assert set(rows[n:]) <= left
            if case.query.rules == NO_RULES:
                continue
            for start in range(n, len(rows), k):
                page, rest = rows[start : start + k], sorted(left - set(rows[n : start + k]))
                kept = [row for place, row in enumerate(page) if not case.breaks(row, page[:place])]
                assert kept == page or all(case.breaks(row, kept) for row in rest), told(case, got, seed)


def test_promotions_caps_and_pins_hold_in_random_requests_with_filters_and_the_list_is_full() -> None:
    done, seed = 0, 10**6
    while done < PROPERTY_REQUESTS:
        seed += 1
        for case, got in replies(*random_cases(random.Random(seed), requests=random.Random(seed).randint(1, 16))):
            assert not violations(case, got), (violations(case, got), told(case, got, seed))
            done += 1
