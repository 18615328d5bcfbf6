"""Who is answered by what: files that mean something, shares that hold, and places that stay."""

import math
import shutil
from pathlib import Path

import pytest
import toy

from retrieval.errors import BundleMissing
from service import metrics
from service.errors import ConfigurationError
from service.schemas import RecommendationRequest
from service.variants import Plan, Variants, bundle_path, deal, place_of, unit_of

ROOT = Path(__file__).resolve().parents[2]
URL = "/v1/recommendations"
TWO = '[variants.other]\nbundle = "other"\n'
USERS = [f"user-{n}" for n in range(100_000)]


def plan(tmp_path: Path, text: str) -> Plan:
    file = tmp_path / "variants.toml"
    file.write_text(text)
    return Plan.read(file)


@pytest.fixture
def bundles(tmp_path: Path, toy_bundle: Path) -> Path:
    """A directory of two toys: `toy`, and `other` of another model's name."""
    shutil.copytree(toy_bundle, tmp_path / "bundles" / "toy")
    toy.write(tmp_path / "bundles" / "other", model="other-toy")
    return tmp_path / "bundles"


@pytest.fixture
def open_two(open_client, bundles: Path, tmp_path: Path):
    """Opens a client of an application with both, and whatever else the file says."""

    def opened(text: str = ""):
        file = tmp_path / "variants.toml"
        file.write_text(TWO + text)
        return open_client(bundles=bundles, variants=file)

    return opened


class TestTheFile:
    def test_without_one_there_is_the_default(self):
        assert Plan.read(None).names == ("default",)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[variants", "is not TOML"),
            ('[variants.default]\nbundle = "x"', "SEQUITUR_BUNDLE"),
            ("[variants.other]", r"variants\.other\.bundle: Field required"),
            ('[variants.Other]\nbundle = "x"', "pattern"),
            ("[experiments.e]\nshares = {}", "at least 1"),
            ("[experiments.e]\nshares = {other = 0.5}", "no variant 'other'; use default"),
            (TWO + "[experiments.e]\nshares = {other = 0.7, default = 0.4}", r"add up to 1\.1"),
            (TWO + "[experiments.e]\nshares = {other = 0}", "greater than 0"),
            (TWO + "[experiments.e]\nshare = {other = 1}", "share"),
            (TWO + '[shadow.other]\nof = "other"\nshare = 0.1', "its own shadow"),
            (TWO + '[shadow.nobody]\nof = "default"\nshare = 0.1', "no variant 'nobody'"),
            (TWO + '[shadow.other]\nof = "default"\nshare = 2', "less than or equal to 1"),
            ("[experiment.e]", "experiment"),
        ],
    )
    def test_what_means_nothing_is_refused_by_name_with_the_remedy(self, tmp_path, text, said):
        with pytest.raises(ConfigurationError, match=said) as refused:
            plan(tmp_path, text)
        assert "variants.toml" in str(refused.value)

    def test_a_file_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            Plan.read(tmp_path / "none.toml")

    def test_the_example_is_served_by_the_demo(self):
        assert Plan.read(ROOT / "deploy" / "variants.example.toml").names == ("default", "challenger")


class TestDealing:
    def test_shares_hold_within_what_chance_allows(self):
        shares = {"a": 0.1, "b": 0.25, "c": 0.4}
        dealt = [deal("e", user, shares) for user in USERS]
        expected = {**shares, None: 0.25}
        chi = sum((dealt.count(v) - len(USERS) * p) ** 2 / (len(USERS) * p) for v, p in expected.items())
        assert chi < 16.3  # 3 degrees of freedom: exceeded once in a thousand draws, and this one is fixed

    def test_two_experiments_know_nothing_of_each_other(self):
        half = {"a": 0.5}
        both = sum(deal("one", user, half) is not None and deal("two", user, half) is not None for user in USERS)
        assert abs(both - len(USERS) / 4) < 4 * math.sqrt(len(USERS) * 0.25 * 0.75)

    def test_a_larger_share_takes_in_users_and_lets_none_go(self):
        small = {user for user in USERS[:10_000] if deal("e", user, {"a": 0.1}) == "a"}
        large = {user for user in USERS[:10_000] if deal("e", user, {"a": 0.2}) == "a"}
        assert small < large

    def test_everybody_has_the_same_place_in_every_process_and_release(self):
        assert place_of("home", "uanna") == 0.5982398386218006  # another number would deal every running test anew

    def test_all_is_less_than_one(self):
        assert all(0 <= place_of("e", user) < 1 for user in USERS[:1000])
        assert {deal("e", user, {"a": 1.0}) for user in USERS[:1000]} == {"a"}

    def test_who_is_dealt(self):
        events = [{"item_id": "i02"}, "i03"]
        who = [
            unit_of(RecommendationRequest.model_validate({"history": history})) for history in (events, ["i02", "i03"])
        ]
        assert who[0] == who[1] is not None
        assert unit_of(RecommendationRequest.model_validate({"user_id": "a", "history": ["i01"]})) == "ua"
        assert unit_of(RecommendationRequest()) is None


class TestChoosing:
    def asked(self, **fields) -> RecommendationRequest:
        return RecommendationRequest.model_validate(fields)

    def chosen(self, served, tmp_path, text: str, **fields) -> str:
        both = {"default": served, "other": served}
        return Variants(both, plan(tmp_path, TWO + text)).choose(self.asked(**fields)).name

    def test_an_experiment_of_one_place_leaves_the_others_alone(self, served, tmp_path):
        text = '[experiments.home]\nshares = {other = 1.0}\nplacements = ["home"]'
        assert self.chosen(served, tmp_path, text, user_id="u", placement="home") == "other"
        assert self.chosen(served, tmp_path, text, user_id="u", placement={"name": "home", "k": 3}) == "other"
        assert self.chosen(served, tmp_path, text, user_id="u", placement="cart") == "default"
        assert self.chosen(served, tmp_path, text, user_id="u") == "default"

    def test_whoever_is_left_out_of_one_goes_to_the_next(self, served, tmp_path):
        first, second = "[experiments.a]\nshares = {default = 0.5}\n", "[experiments.b]\nshares = {other = 1.0}\n"
        alone = {u: self.chosen(served, tmp_path, first, user_id=u) for u in USERS[:50]}
        both = {u: self.chosen(served, tmp_path, first + second, user_id=u) for u in USERS[:50]}
        assert set(alone.values()) == {"default"}
        assert set(both.values()) == {"default", "other"}
        assert all(both[u] == ("default" if deal("a", f"u{u}", {"default": 0.5}) else "other") for u in both)

    def test_nobody_in_particular_gets_the_default(self, served, tmp_path):
        assert self.chosen(served, tmp_path, "[experiments.a]\nshares = {other = 1.0}") == "default"

    def test_a_name_in_the_request_stands_above_experiments(self, served, tmp_path):
        text = "[experiments.a]\nshares = {other = 1.0}"
        for name in ("default", "toy"):
            assert self.chosen(served, tmp_path, text, user_id="u", model=name) == "default"


class TestPaths:
    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../toy", "/etc", "toy/", "toy/../toy", "a\\b", ".toy", "x\0", "no"]
    )
    def test_a_name_that_leads_elsewhere_is_no_bundle(self, bundles, name):
        with pytest.raises(BundleMissing):
            bundle_path(bundles, name)

    def test_a_link_may_lead_to_a_neighbour_and_nowhere_else(self, bundles, tmp_path):
        (bundles / "current").symlink_to("toy")
        assert bundle_path(bundles, "current") == bundles.resolve() / "toy"
        shutil.copytree(bundles / "toy", tmp_path / "outside")
        (bundles / "away").symlink_to(tmp_path / "outside")
        with pytest.raises(BundleMissing):
            bundle_path(bundles, "away")


@pytest.mark.anyio
class TestServing:
    async def test_each_variant_answers_by_its_name_and_by_that_of_its_model(self, open_two):
        async with open_two() as client:
            for name, model in (("default", "toy"), ("other", "other-toy")):
                for said in (name, model):
                    answer = (await client.post(URL, json={"history": ["i03"], "model": said})).json()
                    assert (answer["model"]["variant"], answer["model"]["name"]) == (name, model)
                    assert answer["model"]["bundle"].startswith("toy@" if name == "default" else "other@")
                    assert answer["recommendation_id"].endswith(f".{name}")
            ranked = await client.post(
                "/v1/rankings", json={"candidates": ["i01"], "history": ["i03"], "model": "other"}
            )
            assert ranked.json()["model"]["variant"] == "other"
            refused = await client.post(URL, json={"model": "nobody"})
            assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, "model")
            assert "use default, other" in refused.json()["detail"]
            about = (await client.get("/v1/model")).json()["variants"]
            assert [one["name"] for one in about] == ["default", "other"]

    async def test_the_get_form_is_dealt_like_the_post(self, open_two):
        async with open_two("[experiments.all]\nshares = {other = 0.5}") as client:
            for user in USERS[:20]:
                got = (await client.get(f"/v1/users/{user}/recommendations")).json()["model"]["variant"]
                posted = (await client.post(URL, json={"user_id": user})).json()["model"]["variant"]
                assert got == posted == (deal("all", f"u{user}", {"other": 0.5}) or "default")

    async def test_a_click_counts_for_the_variant_that_listed_it(self, open_two):
        def clicks(name: str) -> float:
            return metrics.REGISTRY.get_sample_value("sequitur_attributed_clicks_total", {"variant": name}) or 0.0

        before = clicks("other")
        async with open_two() as client:
            listed = (await client.post(URL, json={"model": "other"})).json()["recommendation_id"]
            event = {"user_id": "u", "item_id": "i01", "recommendation_id": listed}
            await client.post("/v1/events", json={"events": [event]})
        assert clicks("other") == before + 1

    async def test_items_change_in_every_variant(self, open_two):
        async with open_two() as client:
            await client.delete("/v1/items/i04")
            for name in ("default", "other"):
                answer = await client.post(URL, json={"history": ["i03"], "k": 50, "model": name})
                assert "i04" not in [item["item_id"] for item in answer.json()["items"]]

    async def test_a_variant_whose_bundle_is_missing_is_no_start(self, open_client, bundles, tmp_path):
        file = tmp_path / "variants.toml"
        file.write_text('[variants.gone]\nbundle = "gone"')
        with pytest.raises(BundleMissing, match="no bundle 'gone'"):
            async with open_client(bundles=bundles, variants=file):
                pytest.fail("it was served")
