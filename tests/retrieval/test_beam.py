"""Beam search: only what exists and may be shown, as much of it as was asked, and no false certificate."""

import os
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from oracles_beam import WORST, Asked, NoiseDecoder, brute_force, in_order, random_table

from retrieval import beam
from retrieval import trie as tries
from retrieval.beam import Found, Search, score_all, search, search_all
from retrieval.codes import CodeTable
from retrieval.errors import InvalidInput
from retrieval.trie import ConstraintTrie

REQUESTS = int(os.environ.get("SEQUITUR_PROPERTY_REQUESTS", "3000"))
NOBODY = np.zeros(0, dtype=np.int64)


def everything(trie: ConstraintTrie) -> np.ndarray:
    return np.ones(trie.size, dtype=np.bool_)


def asked(trie: ConstraintTrie, k: int = 5, beams: int = 5, *, mask=None, exclude=NOBODY, **rest) -> Search:
    """A search of everything unless it says otherwise."""
    return Search(k, beams, trie.live(everything(trie) if mask is None else mask), np.asarray(exclude), **rest)


def first_of(found: Found, k: int) -> Found:
    return replace(found, rows=found.rows[:k], scores=found.scores[:k], steps=found.steps[:k])


def same(one: Found, other: Found) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rows", "scores", "steps"))
    return arrays and (one.exact, one.beams, one.finished) == (other.exact, other.beams, other.finished)


def medium(seed: int = 0, items: int = 300) -> tuple[CodeTable, ConstraintTrie, NoiseDecoder]:
    """A table with collisions and gaps, its trie, and a decoder for it."""
    table = random_table(np.random.default_rng(seed), items=items, levels=3, codewords=9)
    return table, ConstraintTrie.build(table), NoiseDecoder(table.vocabulary, seed)


class Says:
    """A decoder that is a function of the prefixes."""

    def __init__(self, say) -> None:
        self.say = say

    def step(self, _memory, prefix: np.ndarray) -> np.ndarray:
        return self.say(prefix)


def keeps_its_promise(found: Found, wanted: Search, mask: np.ndarray, truth: tuple) -> bool:
    """Asserts all that holds for any finished answer; returns whether it is the true one."""
    rows, scores, steps = truth
    k = min(wanted.k, len(rows))
    assert found.finished
    assert (found.rows.dtype, found.scores.dtype, found.steps.dtype) == (np.int64, np.float32, np.float32)
    assert found.rows.shape == found.scores.shape == (k,), "exactly min(k, feasible) items"
    assert len(set(found.rows.tolist())) == k, "none twice"
    assert mask[found.rows].all(), "none outside the filter"
    assert set(found.rows.tolist()) <= set(rows), "none without a code, none excluded"
    place = {row: at for at, row in enumerate(rows)}
    at = [place[row] for row in found.rows.tolist()]
    assert at == sorted(at), "in the order of scoring everything, ties included"
    assert np.array_equal(found.scores, scores[at]), "its scores to the last bit"
    assert np.array_equal(found.steps, steps[at])
    is_true = at == list(range(k))
    assert is_true or not found.exact, "no false certificate"
    assert found.exact or found.beams < len(rows), "as wide as the catalogue it is exact"
    return is_true


class TestProperties:
    """SEQUITUR_PROPERTY_REQUESTS random requests in waves that share nothing but their length."""

    def test_random_waves(self, monkeypatch):
        rng = np.random.default_rng(20)
        done = true = certified = 0
        while done < REQUESTS:
            monkeypatch.setattr(tries, "DENSE_CELLS", int(rng.choice([0, 40, 1 << 18])))
            monkeypatch.setattr(beam, "BLOCKS_FROM", int(rng.choice([1, 64, 2048])))
            levels, size = int(rng.integers(1, 5)), int(rng.integers(1, 250))
            table = random_table(rng, items=size, levels=levels, codewords=int(rng.integers(1, 13)))
            priority = rng.integers(0, 3, size + 1).astype(float)
            trie, order = ConstraintTrie.build(table, priority=priority), in_order(table, priority)
            decoder = NoiseDecoder(
                table.vocabulary,
                int(rng.integers(1 << 30)),
                scale=float(rng.choice([0.1, 3.0, 50.0])),
                grain=float(rng.choice([0.0, 0.0, 1.0])),
                holes=float(rng.choice([0.0, 0.0, 0.2])),
            )
            masks = [rng.random(size + 1) < share for share in (0.02, 0.3, 1.0)]
            lives = [trie.live(mask) for mask in masks]
            for _ in range(10):
                chosen = rng.integers(0, 3, rng.integers(1, 7))
                searches = [
                    Search(
                        k=int(rng.integers(1, 15)),
                        beams=int(rng.choice([1, 3, 10, 40, 300])),
                        live=lives[which],
                        exclude=rng.integers(0, size + 1, rng.integers(0, size // 2 + 1)),
                    )
                    for which in chosen
                ]
                names = rng.integers(0, 1 << 40, len(searches)).tolist()
                options = {"widen": int(rng.integers(0, 3)), "exact_below": int(rng.choice([0, 20]))}
                found = search(decoder, Asked.of(*names), trie, searches, **options)
                for name, which, wanted, own in zip(names, chosen, searches, found, strict=True):
                    truth = brute_force(decoder, name, table, order, masks[which], wanted.exclude)
                    true += keeps_its_promise(own, wanted, masks[which], truth)
                    certified += own.exact
                    done += 1
                one = int(rng.integers(len(searches)))
                (alone,) = search(decoder, Asked.of(names[one]), trie, [searches[one]], **options)
                assert same(alone, found[one]), "batched as alone"
                (longer,) = search(decoder, Asked.of(names[one]), trie, [replace(searches[one], ahead=9)], **options)
                assert same(first_of(longer, len(alone.rows)), alone), "what lies ahead changes nothing before it"
                assert len(set(longer.rows.tolist())) == len(longer.rows) <= len(alone.rows) + 9
        assert done * 0.3 < certified <= true < done, "a test of narrow beams as well as of wide ones"


class TestTheCut:
    """The one step that is neither a gather nor a sum."""

    @pytest.mark.parametrize("size", [1, 50, 2047, 2048, 12_800, 40_001])
    def test_it_equals_a_sort(self, size):
        rng = np.random.default_rng(size)
        for grain, masked in ((0, 0.0), (0, 0.9), (1.0, 0.3), (100.0, 0.0), (0, 1.0)):
            values = -10 * rng.random(size, dtype=np.float32)
            values = np.round(values / grain) * np.float32(grain) if grain else values
            values[rng.random(size) < masked] = -np.inf
            for width in (1, 7, 50, 2000):
                order = np.argsort(-values, kind="stable")
                order = order[values[order] > -np.inf]
                best, left_out = beam._best(values.copy(), width)
                assert best.tolist() == sorted(order[:width].tolist())
                assert left_out == (values[order[width]] if len(order) > width else -np.inf)


class TestAWave:
    def test_permuting_requests_permutes_answers(self):
        _, trie, decoder = medium()
        rng = np.random.default_rng(2)
        wanted = [asked(trie, int(k), int(m), mask=rng.random(301) < 0.5) for k, m in rng.integers(1, 40, (8, 2))]
        found = search(decoder, Asked.of(*range(8)), trie, wanted)
        shuffled = rng.permutation(8)
        again = search(decoder, Asked.of(*shuffled.tolist()), trie, [wanted[r] for r in shuffled])
        assert all(same(again[at], found[r]) for at, r in enumerate(shuffled))

    def test_requests_share_every_step_of_the_decoder(self):
        _, trie, decoder = medium()
        search(decoder, Asked.of(1, 2, 3), trie, [asked(trie, 3, 20), asked(trie, 9, 17), asked(trie, 1, 30)])
        assert [shape[2] for shape in decoder.calls] == [0, 1, 2]
        assert decoder.calls[0] == (3, 1, 0)

    def test_a_wide_search_does_not_widen_the_narrow_ones(self):
        _, trie, decoder = medium()
        search(decoder, Asked.of(1, 2, 3), trie, [asked(trie, 5, 5), asked(trie, 5, 200), asked(trie, 5, 6)])
        assert sorted(shape[0] for shape in decoder.calls) == [1, 1, 1, 2, 2, 2]
        assert max(shape[1] for shape in decoder.calls if shape[0] == 2) <= 6

    def test_no_request_is_no_answer(self):
        _, trie, decoder = medium()
        assert search(decoder, Asked.of(), trie, []) == []
        assert decoder.calls == []

    def test_beams_carry_their_own_prefix_and_score(self):
        # Teacher forcing: what the decoder says of an item's own codes is what the search counted for it.
        table, trie, decoder = medium()
        (found,) = search(decoder, Asked.of(4), trie, [asked(trie, 20, 20)])
        for row, steps in zip(found.rows, found.steps, strict=True):
            codes = table.codes[row].astype(np.int64)
            forced = [decoder.step(Asked.of(4), codes[None, None, :t])[0, 0, codes[t]] for t in range(3)]
            assert steps.tolist() == forced

    def test_one_distribution_for_all_beams_is_as_good_as_a_copy_for_each(self):
        table, trie, _ = medium()
        rng = np.random.default_rng(0)
        tables = [-rng.random((2, 1, v), dtype=np.float32) for v in table.vocabulary]

        def of(prefix):
            return tables[prefix.shape[2]]

        def each(prefix):
            return of(prefix).repeat(prefix.shape[1], axis=1)

        wanted = [asked(trie, 8, 30), asked(trie, 3, 25)]
        shared, copied = (search(Says(say), Asked.of(0, 1), trie, wanted) for say in (of, each))
        assert all(same(one, other) for one, other in zip(shared, copied, strict=True))

    def test_the_stages_are_timed(self):
        _, trie, decoder = medium()
        names = []

        def stage(name):
            names.append(name)
            return nullcontext()

        search(decoder, Asked.of(1), trie, [asked(trie)], stage=stage)
        assert set(names) == {"decode", "beam"}
        assert names.count("decode") == 3


class TestFilters:
    def test_an_empty_filter_gives_an_empty_list_and_asks_no_decoder(self):
        _, trie, decoder = medium()
        (found,) = search(decoder, Asked.of(1), trie, [asked(trie, mask=~everything(trie))])
        assert (len(found.rows), found.exact, found.finished, found.steps.shape) == (0, True, True, (0, 3))
        assert decoder.calls == []

    def test_everything_excluded_gives_an_empty_list(self):
        _, trie, decoder = medium()
        (found,) = search(decoder, Asked.of(1), trie, [asked(trie, exclude=np.arange(301))])
        assert len(found.rows) == 0
        assert found.exact

    def test_a_filter_of_one_item_finds_it_at_any_width(self):
        _, trie, decoder = medium()
        for row in trie.rows[::29].tolist():
            mask = np.arange(301) == row
            (found,) = search(decoder, Asked.of(1), trie, [asked(trie, 10, 1, mask=mask)])
            assert found.rows.tolist() == [row]
            assert found.exact

    def test_all_start_codes_masked_but_one(self):
        table, trie, decoder = medium()
        for code in range(table.vocabulary[0]):
            mask = table.codes[:, 0] == code
            (found,) = search(decoder, Asked.of(1), trie, [asked(trie, 400, 400, mask=mask)])
            assert sorted(found.rows.tolist()) == np.flatnonzero(mask).tolist()

    @pytest.mark.parametrize("cells", [0, 1 << 18])
    def test_excluding_all_but_one_of_a_node_leaves_the_one(self, cells, monkeypatch):
        monkeypatch.setattr(tries, "DENSE_CELLS", cells)
        _, trie, decoder = medium()
        for row in trie.rows[::37].tolist():
            (found,) = search(decoder, Asked.of(1), trie, [asked(trie, 5, 1, exclude=np.delete(np.arange(301), row))])
            assert found.rows.tolist() == [row]

    def test_repeats_padding_and_rows_that_nobody_knows_do_no_harm(self):
        table, trie, decoder = medium()
        uncoded = np.flatnonzero(~table.coded)
        odd = np.concatenate([uncoded, uncoded, [0, 0, 301, 10**9, -1, -(10**9)]])
        seen = trie.rows[:20]
        plain, noisy = (
            search(decoder, Asked.of(1), trie, [asked(trie, 20, 20, exclude=exclude)])[0]
            for exclude in (seen, np.concatenate([odd, seen, seen[::-1]]))
        )
        assert same(plain, noisy)

    def test_what_a_filter_forbids_may_be_excluded_as_well(self):
        table, trie, decoder = medium()
        mask = np.random.default_rng(0).random(301) < 0.3
        exclude = np.flatnonzero(np.random.default_rng(1).random(301) < 0.5)
        truth = brute_force(decoder, 1, table, in_order(table), mask, exclude)
        (found,) = search(decoder, Asked.of(1), trie, [asked(trie, 300, 1, mask=mask, exclude=exclude)])
        assert found.rows.tolist() == truth[0]

    def test_fewer_left_than_beams_gives_them_all_and_nothing_else(self):
        _, trie, decoder = medium()
        mask = np.isin(np.arange(301), trie.rows[::60])
        (found,) = search(decoder, Asked.of(1), trie, [asked(trie, 10, 10, mask=mask)])
        assert sorted(found.rows.tolist()) == sorted(trie.rows[::60].tolist())


class TestOrder:
    def test_differences_at_the_deepest_level_only(self):
        codes = np.array([[-1, -1, -1], *([2, 5, code] for code in range(8))])
        table = CodeTable(codes, (4, 6, 8))
        trie, decoder = ConstraintTrie.build(table), NoiseDecoder((4, 6, 8), 3)
        (found,) = search(decoder, Asked.of(1), trie, [asked(trie, 4, 1)])
        last = decoder.step(Asked.of(1), np.array([[[2, 5]]]))[0, 0]
        assert found.rows.tolist() == (np.argsort(-last)[:4] + 1).tolist()
        assert found.exact

    def test_ties_go_by_the_order_of_the_trie(self):
        table, trie, _ = medium()
        flat = NoiseDecoder(table.vocabulary, scale=0.0)
        for k, beams in ((1, 1), (7, 3), (20, 20), (400, 400)):
            (found,) = search(flat, Asked.of(1), trie, [asked(trie, k, beams)])
            assert found.rows.tolist() == in_order(table)[:k]

    def test_equal_scores_at_the_cut_are_no_proof(self):
        table, trie, _ = medium()
        flat = NoiseDecoder(table.vocabulary, scale=0.0)
        assert not search(flat, Asked.of(1), trie, [asked(trie, 5, 5)])[0].exact
        assert search(flat, Asked.of(1), trie, [asked(trie, 5, 300)])[0].exact

    def test_items_that_share_a_tuple_stand_together_by_priority(self):
        table = CodeTable(np.array([[-1, -1], [0, 0], [1, 1], [1, 1], [1, 1], [0, 1]]), (2, 2))
        trie = ConstraintTrie.build(table, priority=[0, 0, 1, 3, 2, 0])
        decoder = NoiseDecoder((2, 2), 1)
        (found,) = search(decoder, Asked.of(1), trie, [asked(trie, 5, 5)])
        at = found.rows.tolist().index(3)
        assert found.rows.tolist()[at : at + 3] == [3, 4, 2]
        assert len(set(found.scores[at : at + 3].tolist())) == 1
        (cut,) = search(decoder, Asked.of(1), trie, [asked(trie, at + 2, 5, exclude=[4])])
        assert cut.rows.tolist()[at:] == [3, 2]

    def test_a_catalogue_of_one_tuple_fills_the_list(self):
        table = CodeTable(np.array([[-1, -1], *([0, 1],) * 30]), (2, 2))
        trie = ConstraintTrie.build(table)
        (found,) = search(NoiseDecoder((2, 2)), Asked.of(1), trie, [asked(trie, 20, 1, exclude=[2, 5])])
        assert found.rows.tolist() == [row for row in range(1, 31) if row not in (2, 5)][:20]

    def test_a_prefix_with_few_siblings_gains_nothing_by_it(self):
        # Renormalised over what exists, item 1 would have probability 0.4 and lead; unrenormalised it has 0.04.
        log = np.log(np.array([0.4, 0.6]))
        below = {0: np.log(np.array([0.1, 0.9])), 1: np.log(np.array([0.5, 0.5]))}

        def known(prefix):
            return log[None, None] if prefix.shape[2] == 0 else np.stack([below[c] for c in prefix[0, :, 0]])[None]

        trie = ConstraintTrie.build(CodeTable(np.array([[-1, -1], [0, 0], [1, 0], [1, 1]]), (2, 2)))
        (found,) = search(Says(known), Asked.of(1), trie, [asked(trie, 3, 3)])
        assert found.rows.tolist() == [2, 3, 1]
        assert np.exp(found.scores) == pytest.approx([0.3, 0.3, 0.04])


class TestTheCertificate:
    def test_widening_ends_in_proof(self):
        table, trie, decoder = medium()
        narrow, wide = (search(decoder, Asked.of(9), trie, [asked(trie, 5, 5)], widen=times)[0] for times in (0, 8))
        assert (narrow.exact, narrow.beams) == (False, 5)
        assert wide.exact
        assert wide.beams > 5
        assert wide.rows.tolist() == brute_force(decoder, 9, table, in_order(table), everything(trie), NOBODY)[0][:5]

    def test_only_what_lacks_proof_is_searched_again(self):
        _, trie, decoder = medium()
        sure = asked(trie, 5, 5, mask=np.isin(np.arange(301), trie.rows[:5]))
        found = search(decoder, Asked.of(1, 9), trie, [sure, asked(trie, 5, 5)], widen=1)
        assert [own.beams for own in found] == [5, 10]
        assert [shape[0] for shape in decoder.calls] == [2, 2, 2, 1, 1, 1]

    def test_few_items_left_are_all_scored(self):
        _, trie, decoder = medium()
        mask = np.isin(np.arange(301), trie.rows[::5])
        count = trie.live(mask).count
        below, above = (
            search(decoder, Asked.of(9), trie, [asked(trie, 3, 3, mask=mask)], exact_below=limit)[0]
            for limit in (count, count - 1)
        )
        assert (below.exact, below.beams) == (True, count)
        assert (above.exact, above.beams) == (False, 3)


class TestTime:
    @staticmethod
    def times(count: int):
        """Says yes so many times."""
        left = iter([True] * count)
        return lambda: next(left, False)

    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_late_searches_give_nothing_and_leave_the_others_alone(self, steps):
        _, trie, decoder = medium()
        fine = asked(trie, 5, 20)
        late = replace(fine, in_time=self.times(steps))
        found = search(decoder, Asked.of(1, 2, 3), trie, [fine, late, fine])
        assert [own.finished for own in found] == [True, False, True]
        assert len(found[1].rows) == 0
        assert not found[1].exact
        for name, own in ((1, found[0]), (3, found[2])):
            assert same(own, search(decoder, Asked.of(name), trie, [fine])[0])

    def test_late_for_all_the_decoder_rests(self):
        _, trie, decoder = medium()
        (found,) = search(decoder, Asked.of(1), trie, [asked(trie, in_time=lambda: False)])
        assert not found.finished
        assert decoder.calls == []

    @pytest.mark.parametrize("asking", [3, 4, 5])
    def test_late_while_widening_the_narrow_list_stays(self, asking):
        _, trie, decoder = medium()
        narrow = search(decoder, Asked.of(9), trie, [asked(trie, 5, 5)])[0]
        (found,) = search(decoder, Asked.of(9), trie, [asked(trie, 5, 5, in_time=self.times(asking))], widen=3)
        assert found.finished
        assert same(found, narrow)


class TestNumbers:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("widen", [0, 2])
    def test_what_is_no_number_ends_only_its_own_search(self, value, widen):
        _, trie, decoder = medium()
        wanted = [asked(trie, 5, 20)] * 3
        sound = search(decoder, Asked.of(1, 2, 3), trie, wanted, widen=widen)
        decoder.broken[2] = value
        found = search(decoder, Asked.of(1, 2, 3), trie, wanted, widen=widen)
        assert [own.finished for own in found] == [True, False, True]
        assert len(found[1].rows) == 0
        assert same(found[0], sound[0])
        assert same(found[2], sound[2])

    def test_impossible_items_come_last_and_stay_allowed(self):
        table, trie, _ = medium()
        decoder = NoiseDecoder(table.vocabulary, 1, holes=0.5)
        rows, scores, _ = brute_force(decoder, 1, table, in_order(table), everything(trie), NOBODY)
        assert (scores <= WORST).any()
        (found,) = search(decoder, Asked.of(1), trie, [asked(trie, 400, 400)])
        assert found.rows.tolist() == rows
        assert np.isfinite(found.scores).all()

    def test_a_model_that_says_never_to_everything_is_defined(self):
        table, trie, _ = medium()
        (found,) = search(NoiseDecoder(table.vocabulary, holes=1.0), Asked.of(1), trie, [asked(trie, 9, 9)])
        assert found.rows.tolist() == in_order(table)[:9]

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_other_precisions_are_taken_as_float32(self, dtype):
        _, trie, decoder = medium()

        cast = Says(lambda prefix: decoder.step(Asked.of(1), prefix).astype(dtype))
        (found,) = search(cast, Asked.of(1), trie, [asked(trie, 9, 400)])
        assert found.scores.dtype == np.float32
        assert found.exact

    def test_rounding_above_zero_is_forgiven_and_logits_are_not(self):
        table, trie, _ = medium()

        def constant(value):
            return Says(lambda prefix: np.full((1, prefix.shape[1], table.vocabulary[prefix.shape[2]]), value))

        (found,) = search(constant(1e-6), Asked.of(1), trie, [asked(trie)])
        assert found.scores.tolist() == [0.0] * 5
        with pytest.raises(InvalidInput, match="lacks a log_softmax"):
            search(constant(2.5), Asked.of(1), trie, [asked(trie)])

    def test_log_probabilities_of_another_shape_are_refused(self):
        _, trie, _ = medium()
        with pytest.raises(InvalidInput, match=r"shape \(1, 7, 9\)"):
            search(Says(lambda _prefix: np.zeros((1, 7, 9))), Asked.of(1), trie, [asked(trie)])

    @pytest.mark.parametrize(("k", "beams"), [(0, 5), (5, 0), (-1, 5)])
    def test_no_items_and_no_beams_are_refused(self, k, beams):
        _, trie, decoder = medium()
        with pytest.raises(InvalidInput, match="must be at least 1"):
            search(decoder, Asked.of(1), trie, [asked(trie, k, beams)])


class TestAMovingCatalogue:
    def test_a_new_item_is_found_at_once_and_the_old_edition_serves_on(self):
        table, old, decoder = medium()
        longer = table.extended(np.array([[1, 1, 1]]))
        new = ConstraintTrie.build(longer, version=old.version + 1)
        fresh = np.arange(302) == 301
        (found,) = search(decoder, Asked.of(1), new, [asked(new, 5, 5, mask=fresh)])
        assert (found.rows.tolist(), new.version) == ([301], 1)
        (before,) = search(decoder, Asked.of(1), old, [asked(old, 400, 400)])
        assert 301 not in before.rows

    def test_a_removed_item_is_gone_with_the_next_filter(self):
        _, trie, decoder = medium()
        (found,) = search(decoder, Asked.of(1), trie, [asked(trie, 5, 300)])
        without = everything(trie)
        without[found.rows[0]] = False
        (next_found,) = search(decoder, Asked.of(1), trie, [asked(trie, 4, 300, mask=without)])
        assert next_found.rows.tolist() == found.rows.tolist()[1:]

    def test_a_filter_of_another_edition_is_refused(self):
        _, trie, decoder = medium()
        _, other, _ = medium(seed=1)
        with pytest.raises(InvalidInput, match="the filter was made for"):
            search(decoder, Asked.of(1), trie, [asked(other)])


class TestParallelCodes:
    @staticmethod
    def distributions(rng, table: CodeTable, requests: int, *, scale: float = 5.0, grain: float = 0.0) -> np.ndarray:
        """float32 (R, L, V), none above zero; wider than any level needs."""
        drawn = -scale * rng.random((requests, table.levels, max(table.vocabulary) + 1), dtype=np.float32)
        return np.round(drawn / grain) * np.float32(grain) if grain else drawn

    def test_every_item_is_scored_by_its_codes(self):
        table, _, _ = medium()
        given = self.distributions(np.random.default_rng(0), table, 3)
        given[1, 0, 2] = -np.inf
        scores = score_all(given, table)
        assert scores.shape == (3, 301)
        assert scores.dtype == np.float32
        for r in range(3):
            for row in range(301):
                expected = np.float32(0) if table.coded[row] else -np.inf
                for level, code in enumerate(table.codes[row]):
                    expected = expected + max(given[r, level, code], WORST) if table.coded[row] else expected
                assert scores[r, row] == expected

    def test_the_best_of_all_items_to_the_last_tie(self, monkeypatch):
        rng = np.random.default_rng(8)
        narrow = 0
        for trial in range(150):
            monkeypatch.setattr(tries, "DENSE_CELLS", int(rng.choice([0, 1 << 18])))
            table = random_table(rng, items=200, levels=int(rng.integers(1, 5)), codewords=9)
            trie = ConstraintTrie.build(table, priority=rng.random(201))
            given = self.distributions(rng, table, 3, grain=float(trial % 2))
            masks = [rng.random(201) < share for share in (0.02, 0.4, 1.0)]
            wanted = [
                asked(trie, int(k), int(k), mask=m, exclude=rng.integers(0, 201, 60))
                for k, m in zip(rng.integers(1, 30, 3), masks, strict=True)
            ]
            scores = score_all(given, table)
            longer = search_all(given, trie, [replace(one, ahead=20) for one in wanted])
            for more, found in zip(longer, search_all(given, trie, wanted), strict=True):
                assert same(first_of(more, len(found.rows)), found), "what lies ahead changes nothing before it"
            for own, asking, mask, found in zip(scores, wanted, masks, search_all(given, trie, wanted), strict=True):
                allowed = mask.copy()
                allowed[asking.exclude] = False
                rows = trie.rows[allowed[trie.rows]]
                rows = rows[np.argsort(-own[rows], kind="stable")[: asking.k]]
                assert found.rows.tolist() == rows.tolist()
                assert np.array_equal(found.scores, own[rows])
                assert found.exact
                assert found.finished
                narrow += found.beams < allowed[trie.rows].sum()
        assert narrow > 150, "most beams were narrower than what they chose from"

    def test_one_that_is_no_number_or_late_finishes_nothing(self):
        table, trie, _ = medium()
        given = self.distributions(np.random.default_rng(0), table, 3)
        given[1, 2, 0] = np.nan
        found = search_all(given, trie, [asked(trie), asked(trie), asked(trie, in_time=lambda: False)])
        assert [own.finished for own in found] == [True, False, False]

    def test_another_shape_is_refused(self):
        table, trie, _ = medium()
        for shape in ((1, 2, 9), (1, 3, 2), (3, 9)):
            with pytest.raises(InvalidInput, match="distributions have shape"):
                score_all(np.zeros(shape, np.float32), table)
            with pytest.raises(InvalidInput, match="distributions have shape"):
                search_all(np.zeros(shape, np.float32), trie, [asked(trie)])
