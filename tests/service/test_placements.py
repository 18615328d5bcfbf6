"""Placements: the file, what a request says besides, and lists that keep to them."""

import asyncio
from pathlib import Path

import pytest

from retrieval.bundle import Bundle
from retrieval.errors import InvalidRule
from retrieval.filters import AttributeRule
from retrieval.recommenders import load
from retrieval.rules import NO_RULES, Cap, Freshness, Pin, Promotion, Rules
from service.errors import ConfigurationError, InvalidRequest
from service.placements import Placements, rules_of
from service.schemas import MAX_CAPS, MAX_IDS, MAX_PINS, Placement, RecommendationRequest
from tests.service.conftest import with_stages

ROOT = Path(__file__).resolve().parents[2]
URL = "/v1/recommendations"
FILE = """
[home]
k = 3
goals = {click = 1, like = 2.5}
caps = [{most = 2, values = ["red"]}, {attribute = "title", most = 1}]
pins = [{item_id = "i15"}, {item_id = "i09", position = 3}]
promotion = {share = 0.5, item_ids = ["i12"], where = {name = "price", op = ">=", value = 18}}
freshness = {attribute = "price", half_life_s = 3600, weight = 0.5}
diversity = 0.25
exclude_seen = false
filter = {categories = {any = ["red"]}}

["under the fold"]
"""
RULES = Rules(
    caps=(Cap(2, "categories", ("red",)), Cap(1, "title")),
    pins=(Pin("i15", 1), Pin("i09", 3)),
    promotion=Promotion(0.5, ("i12",), AttributeRule("price", ">=", 18)),
    freshness=Freshness(3600, "price", 0.5),
    diversity=0.25,
)


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


def reasons(answer) -> list[str]:
    """The rules that put items where they are."""
    said = [item.get("reason", {"kind": "near"})["kind"] for item in answer.json()["items"]]
    return ["" if kind == "near" else kind for kind in said]


def body(**fields) -> RecommendationRequest:
    return RecommendationRequest.model_validate(fields)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "placements.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def placements(file) -> Placements:
    return Placements.read(file)


class TestTheFile:
    def test_everything_is_read(self, placements):
        wanted = placements.wanted(body(placement="home"))
        assert (wanted.k, wanted.exclude_seen, wanted.is_known) == (3, False, True)
        assert wanted.filter.categories.any == ["red"]
        assert wanted.goals == {"click": 1.0, "like": 2.5}
        assert wanted.rules == RULES
        plain = placements.wanted(body(placement="under the fold"))
        assert (plain.k, plain.exclude_seen, plain.goals, plain.rules) == (20, None, {}, NO_RULES)

    def test_without_a_file_any_name_is_accepted_and_means_nothing(self):
        wanted = Placements.read(None).wanted(body(placement="anything", k=4))
        assert (wanted.k, wanted.goals, wanted.rules) == (4, {}, NO_RULES)

    def test_gone_file_is_named(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"SEQUITUR_PLACEMENTS: \S+none\.toml cannot be read"):
            Placements.read(tmp_path / "none.toml")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "holds no placement; write a table for each, or unset it"),
            ("[home\n", r"is not TOML: .*line 1"),
            ("k = 3\n", r"'k' stands outside of a placement; write \[NAME\] above it"),
            ("[home]\nkk = 3\n", r"placement 'home': kk: Extra inputs are not permitted.*a placement has goals, caps"),
            ("[home]\nname = 'home'\n", "placement 'home': name: Extra inputs"),
            ("[home]\nk = 501\n", r"placement 'home': k: .*less than or equal to 500; got 501"),
            ("[home]\nk = '3'\n", r"placement 'home': k: .*valid integer; got '3'"),
            ("[home]\ndiversity = 1.5\n", "placement 'home': diversity: .* less than or equal to 1; got 1.5"),
            ("[home]\ngoals = {click = 'much'}\n", "placement 'home': goals.click: .*valid number; got 'much'"),
            ("[home]\ngoals = {click = inf}\n", "placement 'home': goals.click: .*1000000; got inf"),
            ("[home]\ncaps = [{most = 0}]\n", r"caps\[0\]\.most: .*greater than or equal to 1; got 0"),
            ("[home]\ncaps = [{values = ['a']}]\n", r"caps\[0\]\.most: Field required"),
            ("[home]\npins = [{item_id = 'a', position = 0}]\n", r"pins\[0\]\.position: .*got 0"),
            (
                "[home]\npins = [{item_id = 'a'}, {item_id = 'b'}]\n",
                "placement 'home': position 1 is pinned twice; pin each once; correct it or take it out",
            ),
            (
                "[home]\npromotion = {share = 0.5}\n",
                "a promotion names neither item_ids nor where",
            ),
            ("[home]\npromotion = {share = 0, item_ids = ['a']}\n", "promotion.share: .*greater than 0; got 0"),
            (
                "[home]\npromotion = {share = 1, where = {name = 'price', op = 'in', value = 3}}\n",
                "placement 'home': 'price' in 3.0: `in` takes a list",
            ),
            ("[home]\nfreshness = {half_life_s = nan}\n", "freshness.half_life_s: .*got nan"),
            ("[home]\nfilter = {fliter = 1}\n", "filter.fliter: Extra inputs"),
            (f"['{'x' * 65}']\nk = 3\n", "at most 64 characters"),
        ],
    )
    def test_what_cannot_be_meant_is_named_with_its_file_and_placement(self, tmp_path, text, reason):
        path = tmp_path / "bad.toml"
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=reason) as refused:
            Placements.read(path)
        assert str(path) in str(refused.value)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("goals = {sale = 1}", "goal 'sale' is no task of this ranker, which predicts click, like"),
            ("goals = {click = 0}", "no goal has a weight other than 0"),
            ("caps = [{attribute = 'colour', most = 1}]", "'colour', which the catalog does not have"),
            ("caps = [{attribute = 'price', most = 1}]", "'price', which does not hold words or tags"),
            ("freshness = {half_life_s = 60}", "'published', which the catalog does not have"),
            ("freshness = {attribute = 'title', half_life_s = 60}", "'title', which does not hold numbers"),
            ("promotion = {share = 1, where = {name = 'colour', op = '==', value = 'x'}}", "no attribute 'colour'"),
            ("filter = {attributes = [{name = 'colour', op = '==', value = 'x'}]}", "no attribute 'colour'"),
        ],
    )
    @pytest.mark.anyio
    async def test_what_means_nothing_for_the_bundle_is_not_served(self, tmp_path, open_client, ranked, text, reason):
        path = tmp_path / "foreign.toml"
        path.write_text(f"[fine]\nk = 3\n[home]\n{text}\n")
        with pytest.raises(ConfigurationError, match=reason) as refused:
            async with open_client(app={"served": ranked}, placements=path):
                pytest.fail("it was served")
        assert f"{path}, placement 'home': " in str(refused.value)
        assert str(refused.value).endswith("correct it or take it out")

    @pytest.mark.anyio
    async def test_goals_without_a_ranker_are_not_served(self, file, open_client):
        with pytest.raises(ConfigurationError, match=r"'home': goals \(click, like\) .* this bundle has none"):
            async with open_client(placements=file):
                pytest.fail("it was served")

    def test_the_example_is_served_by_the_demo(self):
        example = Placements.read(ROOT / "deploy" / "placements.example.toml")
        example.check(load(Bundle.open(ROOT / "artifacts" / "demo")))
        wanted = example.wanted(body(placement="home"))
        assert wanted.rules.caps
        assert wanted.rules.pins
        assert wanted.rules.promotion
        shown = (ROOT / "README.md").read_text().split("```toml\n", 1)[1].split("```", 1)[0]
        assert shown in (ROOT / "deploy" / "placements.example.toml").read_text()


class TestWhatARequestSaysBesides:
    def test_its_own_fields_stand_in_place_of_those_of_the_placement(self, placements):
        wanted = placements.wanted(
            body(placement="home", k=20, diversity=0, exclude_seen=True, filter={"exclude_ids": ["i01"]})
        )
        assert (wanted.k, wanted.exclude_seen, wanted.rules.diversity) == (20, True, 0)
        assert wanted.filter.categories.any == []
        assert wanted.rules.pins == RULES.pins

    def test_a_placement_of_its_own_changes_what_it_names_and_keeps_the_rest(self, placements):
        own = {"name": "home", "k": 7, "caps": [], "promotion": None, "goals": {"like": 1}}
        wanted = placements.wanted(body(placement=own))
        assert (wanted.k, wanted.goals, wanted.rules.caps, wanted.rules.promotion) == (7, {"like": 1.0}, (), None)
        assert (wanted.rules.pins, wanted.rules.diversity, wanted.exclude_seen) == (RULES.pins, 0.25, False)
        assert not wanted.is_known

    def test_a_placement_without_a_name_begins_with_nothing(self, placements):
        wanted = placements.wanted(body(placement={"diversity": 0.5}))
        assert (wanted.k, wanted.goals, wanted.rules) == (20, {}, Rules(diversity=0.5))

    def test_diversity_needs_no_placement(self, placements):
        assert placements.wanted(body(diversity=0.5)).rules == Rules(diversity=0.5)

    @pytest.mark.parametrize(
        ("own", "where"), [("nowhere", "placement"), ({"name": "nowhere", "k": 3}, "placement.name")]
    )
    def test_an_unknown_name_is_refused_with_those_that_exist(self, placements, own, where):
        expected = rf"{where}: there is no placement 'nowhere'; use home, under the fold, or leave it out"
        with pytest.raises(InvalidRequest, match=expected):
            placements.wanted(body(placement=own))
        with pytest.raises(InvalidRequest, match=expected):
            placements.goals(body(placement=own).placement)

    def test_rules_that_contradict_each_other_are_refused(self):
        twice = Placement.model_validate({"pins": [{"item_id": "a", "position": n} for n in (1, 2)]})
        with pytest.raises(InvalidRule, match="item_id 'a' is pinned twice"):
            rules_of(twice)


@pytest.mark.anyio
class TestLists:
    """Over HTTP, on a bundle without a ranker."""

    async def test_pins_promotions_and_caps_hold_together_with_a_filter_and_say_why(self, client):
        placement = {
            "pins": [{"item_id": "i15", "position": 2}],
            "promotion": {"share": 0.5, "where": {"name": "price", "op": ">=", "value": 16}},
            "caps": [{"most": 2, "values": ["red"]}],
        }
        asked = {"history": ["i05"], "k": 6, "filter": {"attributes": [{"name": "price", "op": "<=", "value": 18}]}}
        answer = await client.post(URL, json={**asked, "placement": placement})
        assert answer.status_code == 200
        assert len(ids(answer)) == 6
        assert (ids(answer)[1], reasons(answer)[1]) == ("i15", "pinned")
        prices = [item["attributes"]["price"] for item in answer.json()["items"]]
        assert max(prices) <= 18
        for n in range(1, 7):
            assert sum(price >= 16 for price in prices[:n]) >= n // 2
        assert "promoted" in reasons(answer)
        assert sum("red" in item["attributes"]["categories"] for item in answer.json()["items"]) <= 2
        assert "unmet" not in answer.json()
        assert "arrange" in answer.json()["timings_ms"]
        plain = await client.post(URL, json=asked)
        assert not any(reasons(plain))

    async def test_what_cannot_be_had_is_said_without_being_asked(self, client):
        placement = {"pins": [{"item_id": "i20"}, {"item_id": "unheard of", "position": 2}]}
        answer = await client.post(URL, json={"history": ["i05"], "k": 3, "placement": placement})
        assert ids(answer) == ids(await client.post(URL, json={"history": ["i05"], "k": 3}))
        first, second = answer.json()["unmet"]
        assert ("i20" in first, "unheard of" in second) == (True, True)

    async def test_diversity_spreads_a_list(self, client):
        near = await client.post(URL, json={"history": ["i05"], "k": 4})
        wide = await client.post(URL, json={"history": ["i05"], "k": 4, "diversity": 0.9})
        numbers = [[int(item_id[1:]) for item_id in ids(answer)] for answer in (near, wide)]
        assert numbers[0][0] == numbers[1][0]
        assert max(abs(n - 5) for n in numbers[0]) < max(abs(n - 5) for n in numbers[1])

    async def test_age_costs_an_item_its_place(self, client):
        for item_id, published in (("i04", 1.0), ("i06", 1.7e9)):
            await client.put(f"/v1/items/{item_id}", json={"attributes": {"published": published}})
        only = {"history": ["i05"], "filter": {"include_ids": ["i04", "i06", "i15"]}}
        fresh = {"placement": {"freshness": {"half_life_s": 86_400}}}
        assert ids(await client.post(URL, json=only))[-1] == "i15"
        assert ids(await client.post(URL, json={**only, **fresh}))[0] == "i06"

    async def test_a_named_placement_is_used_by_both_forms(self, tmp_path, open_client):
        path = tmp_path / "placements.toml"
        path.write_text("[home]\nk = 4\npins = [{item_id = 'i15'}]\n[cart]\nexclude_seen = false\n")
        async with open_client(placements=path) as client:
            posted = await client.post(URL, json={"history": ["i05"], "placement": "home"})
            assert (ids(posted)[0], len(ids(posted))) == ("i15", 4)
            simple = await client.get("/v1/users/anna/recommendations", params={"placement": "home"})
            assert (ids(simple)[0], len(ids(simple)), reasons(simple)[0]) == ("i15", 4, "pinned")
            longer = await client.get("/v1/users/anna/recommendations", params={"placement": "home", "k": 6})
            assert len(ids(longer)) == 6
            seen = await client.post(URL, json={"history": ["i05"], "placement": "cart"})
            assert "i05" in ids(seen)
            for unknown in (
                await client.post(URL, json={"placement": "nowhere"}),
                await client.get("/v1/users/anna/recommendations", params={"placement": "nowhere"}),
                await client.post("/v1/rankings", json={"candidates": ["i01"], "placement": "nowhere"}),
            ):
                assert (unknown.status_code, unknown.json()["code"]) == (422, "invalid_request")
                assert "there is no placement 'nowhere'; use home, cart" in unknown.json()["detail"]
        async with open_client() as client:
            labelled = await client.post(URL, json={"history": ["i05"], "placement": "nowhere"})
            assert labelled.status_code == 200

    async def test_empty_history_and_failed_model_keep_to_the_rules(self, open_client, served):
        class Broken:
            name = "broken"

            def recommend(self, queries, stage):
                if is_broken:
                    raise RuntimeError("no")
                return served.recommender.first.recommend(queries, stage)

        is_broken = False
        placement = {"pins": [{"item_id": "i15", "position": 2}], "caps": [{"most": 1, "values": ["red"]}]}
        async with open_client(app={"served": with_stages(served, first=Broken())}) as client:
            is_broken = True
            for asked, reason in (({}, "no_history"), ({"history": ["i05"]}, "encoder_failed")):
                answer = await client.post(URL, json={**asked, "k": 4, "placement": placement})
                assert answer.json()["degraded_reasons"] == [reason]
                assert ids(answer) == ["i01", "i15", "i02", "i04"]
                assert reasons(answer) == ["", "pinned", "", ""]

    async def test_empty_when_nothing_is_eligible_and_what_was_pinned_is_unmet(self, client):
        asked = {"history": ["i05"], "filter": {"categories": {"any": ["green"]}}}
        answer = await client.post(URL, json={**asked, "placement": {"pins": [{"item_id": "i15"}]}})
        assert (answer.status_code, ids(answer), len(answer.json()["unmet"])) == (200, [], 1)

    @pytest.mark.parametrize(
        ("placement", "code", "reason"),
        [
            ({"caps": [{"most": 1, "attribute": "colour"}]}, "invalid_rule", "'colour'"),
            ({"freshness": {"half_life_s": 60}}, "invalid_rule", "'published'"),
            ({"promotion": {"share": 0.5}}, "invalid_rule", "neither item_ids nor where"),
            ({"pins": [{"item_id": "a"}, {"item_id": "b"}]}, "invalid_rule", "position 1 is pinned twice"),
            (
                {"promotion": {"share": 1, "where": {"name": "price", "op": "in", "value": 3}}},
                "invalid_filter",
                "`in` takes a list",
            ),
            ({"goal": {"click": 1}}, "invalid_request", "placement.goal: Extra inputs"),
            (
                {"caps": [{"most": 1}] * (MAX_CAPS + 1)},
                "invalid_request",
                "List should have at most 16",
            ),
            (
                {"pins": [{"item_id": "a"}] * (MAX_PINS + 1)},
                "invalid_request",
                "List should have at most 100",
            ),
            ({"caps": [{"most": 1, "values": ["a"] * (MAX_IDS + 1)}]}, "invalid_request", "at most 10000 items"),
            ({"goals": {f"t{n}": 1 for n in range(33)}}, "invalid_request", "at most 32 items"),
            ({"diversity": 2}, "invalid_request", "placement.diversity"),
            (3, "invalid_request", "placement: Input should be an object"),
            ("", "invalid_request", "at least 1 character"),
        ],
    )
    async def test_what_cannot_be_meant_is_named(self, client, placement, code, reason):
        answer = await client.post(URL, json={"history": ["i05"], "placement": placement})
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert reason in answer.json()["detail"]

    async def test_the_rules_of_others_in_a_batch_are_theirs(self, open_client):
        async with open_client(batch_wait_ms=100, max_batch=3) as client:
            pins = [[{"item_id": item_id}] if item_id else [] for item_id in ("i15", None, "i12")]
            answers = await asyncio.gather(
                *(client.post(URL, json={"history": ["i05"], "k": 2, "placement": {"pins": own}}) for own in pins)
            )
        assert [ids(answer)[0] for answer in answers] == ["i15", "i06", "i12"]
