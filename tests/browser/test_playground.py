"""The page at `/`, driven as a reader would: over a bundle without authors and over the demo catalogue."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "service" / "static"
RECOMMEND = "**/v1/recommendations"
FINGER_PX = 44  # least side of a target, WCAG 2.5.5
CONTRAST = 4.5  # WCAG 1.4.3
Opens = Callable[..., tuple[Any, Any]]


def cards(page: Any) -> list[str]:
    """The ids in the list, best first."""
    return page.locator("#follows > li").evaluate_all("all => all.map(one => one.dataset.id)")


def past(page: Any) -> list[str]:
    """The ids in the history, newest first."""
    return page.locator("#history > li").evaluate_all("all => all.map(one => one.dataset.id)")


def settled(page: Any) -> None:
    """Waits until the list is there and nothing is asked any more."""
    page.locator("#follows:not([aria-busy]) .card").first.wait_for()


def press(page: Any, place: int = 0) -> str:
    """Presses a card, waits for the list that follows, and returns the id."""
    item_id = cards(page)[place]
    with page.expect_response(RECOMMEND):
        page.locator("#follows .card").nth(place).click()
    page.wait_for_function("() => !document.querySelector('.thumb.pending')")
    settled(page)
    return item_id


def problem(status: int, **told: Any) -> dict[str, Any]:
    """What `route.fulfill` takes for a problem."""
    body = {"type": "urn:sequitur:error:x", "status": status, "request_id": "r", **told}
    return {"status": status, "content_type": "application/problem+json", "body": json.dumps(body)}


def test_list_appears_with_ranks_sources_scores_and_stage_times(open_page: Opens, origin: str) -> None:
    page, seen = open_page(origin)
    settled(page)
    assert cards(page) == [f"i{n:02d}" for n in range(1, 20)]  # the popular ones; i20 is unavailable
    first = page.locator("#follows .card").first
    assert first.get_attribute("aria-label") == "1. Item 1, from popular, score 20"
    assert first.locator(".source").inner_text() == "popular"
    stages = page.locator("#stages dt").all_inner_texts()
    assert {"filter", "state", "retrieve", "respond"} <= set(stages)
    assert re.search(r"[\d.]+ ms in the service · [\d.]+ ms round trip", page.locator("#total").inner_text())
    assert page.locator("#model").inner_text().split("\n")[:2] == ["Model", "toy (encoder)"]
    assert "recall@10" in page.locator("#model").inner_text()
    assert not seen.complaints


def test_empty_history_is_said_to_be_degraded_with_its_reason(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    notice = page.locator("#degraded")
    assert notice.is_visible()
    assert "nothing is known of this reader yet" in notice.inner_text()
    press(page)
    assert not notice.is_visible()


def test_click_joins_the_history_and_changes_the_list(open_page: Opens, origin: str) -> None:
    page, seen = open_page(origin)
    settled(page)
    before = cards(page)
    clicked = press(page, 4)
    after = cards(page)
    assert past(page) == [clicked]
    assert clicked not in after
    assert after[:2] != before[:2]
    assert set(after[:2]) == {"i04", "i06"}  # the neighbours of i05 on the toy's circle
    assert page.locator("#follows .source").first.inner_text() == "retrieval"
    assert page.locator("#follows .move").count() > 0
    assert "19" not in page.locator("#announcement").inner_text()
    assert page.locator("#announcement").inner_text().startswith("18 items")
    (_, sent), *_ = [(url, body) for url, body in seen.bodies if url.endswith("/v1/events")]
    assert sent["events"][0]["recommendation_id"]
    assert not seen.complaints


def test_each_card_says_because_of_which_book_it_is_there(open_page: Opens, origin: str) -> None:
    page, seen = open_page(origin)
    settled(page)
    assert page.locator("#follows .because").count() == 0  # what is popular is there for nobody's sake
    press(page, 4)
    assert page.locator("#follows [data-id=i04] .because").inner_text() == "because of Item 5"
    assert "because of Item 5" in str(page.locator("#follows [data-id=i04] .card").get_attribute("aria-label"))
    press(page, cards(page).index("i14"))
    reasons = page.locator("#follows .because").all_inner_texts()
    assert set(reasons) == {"because of Item 5", "because of Item 14"}
    assert not seen.complaints


def test_clicks_in_quick_succession_are_all_kept_in_their_order(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    page.evaluate("""() => {
      for (const id of ["i03", "i09", "i15"]) document.querySelector(`#follows [data-id=${id}] button`).click();
    }""")
    page.wait_for_function("() => document.querySelectorAll('.thumb:not(.pending)').length === 3")
    page.reload()
    page.locator("#history .thumb").first.wait_for()
    assert past(page) == ["i15", "i09", "i03"]


def test_reload_keeps_the_history_and_another_visit_has_its_own(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    clicked = [press(page), press(page)]
    page.reload()
    page.locator("#history .thumb").first.wait_for()
    assert past(page) == clicked[::-1]
    other, _ = open_page(origin)
    settled(other)
    assert past(other) == []


def test_forgetting_takes_two_presses_and_empties(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    clicked = press(page)
    button = page.get_by_role("button", name="Forget me")
    button.click()
    assert past(page) == [clicked]
    with page.expect_request(lambda request: request.method == "DELETE"):
        page.get_by_role("button", name="Really forget everything?").click()
    page.locator("#history-empty").wait_for()
    page.reload()
    settled(page)
    assert past(page) == []
    assert page.locator("#degraded").is_visible()


def test_first_press_of_forget_is_taken_back_by_escape(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    page.get_by_role("button", name="Forget me").click()
    page.keyboard.press("Escape")
    assert page.locator("#forget").inner_text() == "Forget me"


def test_keyboard_alone_reaches_moves_clicks_and_finds(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    stops = []
    for _step in range(60):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if stops[-1] == "card":
            break
    assert stops[0] == "skip"
    assert {"find", "chip", "price", "k", "consent", "forget", "card"} <= set(stops)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    where = "document.activeElement.closest('li').dataset.id"
    assert page.evaluate(where) == "i01"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(where) == "i02"
    page.keyboard.press("ArrowDown")
    below = page.evaluate(where)
    assert below not in ("i01", "i02", "i03")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(where) == "i02"
    with page.expect_response(RECOMMEND):
        page.keyboard.press("Enter")
    page.locator("#history .thumb:not(.pending)").wait_for()
    page.wait_for_function("() => !document.querySelector('#follows [data-id=i02]')")
    assert past(page) == ["i02"]
    assert page.evaluate("document.activeElement.className") == "card"  # one goes on from where one was
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.type("item 7/")
    assert page.locator("#find").input_value() == "item 7/"  # inside a field it is a letter


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_has_no_sideways_scroll_and_targets_for_fingers(open_page: Opens, books_origin: str, scheme: str) -> None:
    page, _ = open_page(books_origin, viewport={"width": 360, "height": 780}, color_scheme=scheme, has_touch=True)
    settled(page)
    press(page)
    page.locator("#history .thumb").first.click()
    page.locator("#similar .card").first.wait_for()
    page.locator("#filter summary").click()
    page.locator("#served summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    small = page.evaluate(
        """least => [...document.querySelectorAll("button, a, input, select, summary, label.switch")]
          .filter(node => node.checkVisibility() && !node.closest("[hidden]") && !node.matches(".skip, .switch input"))
          .map(node => [node.outerHTML.slice(0, 80), node.getBoundingClientRect()])
          .filter(([, box]) => box.width < least || box.height < least).map(([text]) => text)""",
        FINGER_PX,
    )
    assert small == []


def test_no_request_leaves_the_origin_and_nothing_complains(open_page: Opens, books_origin: str) -> None:
    page, seen = open_page(books_origin)
    settled(page)
    press(page)
    page.locator("#history .thumb").first.click()
    page.locator("#similar .card").first.click()
    page.wait_for_function("() => document.querySelectorAll('.thumb:not(.pending)').length === 2")
    settled(page)
    assert seen.urls
    assert [url for url in seen.urls if not url.startswith((books_origin + "/", "data:"))] == []
    assert seen.complaints == []  # the content security policy would complain here, too


def test_reader_is_picked_with_a_past_and_forgotten_readers_can_begin_again(
    open_page: Opens, books_origin: str
) -> None:
    page, _ = open_page(books_origin)
    settled(page)
    readers = json.loads((STATIC / "readers.json").read_text())
    assert page.locator(".reader b").all_inner_texts() == ["Somebody new", *[one["name"] for one in readers]]
    chosen = readers[0]
    button = page.get_by_role("button", name=chosen["name"])
    button.click()
    page.locator(f"#history > li:nth-child({len(chosen['history'])})").wait_for()
    assert past(page) == chosen["history"][::-1]
    assert button.get_attribute("aria-pressed") == "true"
    settled(page)
    assert not set(cards(page)) & set(chosen["history"])
    page.locator("#forget").click()
    page.locator("#forget").click()
    page.locator("#history-empty").wait_for()
    button.click()
    page.locator(f"#history > li:nth-child({len(chosen['history'])})").wait_for()
    page.reload()
    page.locator("#history .thumb").first.wait_for()
    assert past(page) == chosen["history"][::-1]


def test_readers_are_those_of_the_demo_and_are_hidden_where_their_books_are_unknown(
    open_page: Opens, origin: str
) -> None:
    personas = ROOT / "models" / "demo" / "personas.json"
    assert json.loads((STATIC / "readers.json").read_text()) == json.loads(personas.read_text())
    page, _ = open_page(origin)
    settled(page)
    assert not page.locator("#reading").is_visible()


def test_filter_wants_categories_leaves_them_out_and_bounds_the_price(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    red = page.locator(".chip", has_text="red")

    def change(act: Callable[[], object]) -> list[str]:
        with page.expect_response(RECOMMEND):
            act()
        settled(page)
        return cards(page)

    assert change(red.click) == ["i03", "i06", "i09", "i12", "i15", "i18"]
    assert red.get_attribute("aria-label") == "red: only these"
    assert page.locator("#short").inner_text() == "Only 6 items are left to show here."
    without = change(red.click)
    assert len(without) == 13
    assert not set(without) & {"i03", "i06", "i09", "i12", "i15", "i18"}
    assert change(lambda: page.locator("#price").fill("4")) == ["i01", "i02", "i04"]
    page.locator("#filter-state", has_text="2 conditions").wait_for()
    assert len(change(page.locator("#clear").click)) == 19
    assert change(lambda: page.locator("#k").select_option("6")) == [f"i{n:02d}" for n in range(1, 7)]


def test_find_narrows_to_titles_and_says_when_nothing_fits(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    page.locator("#find").fill("ITEM 17")
    page.wait_for_function("() => document.querySelectorAll('#follows > li').length === 1")
    assert cards(page) == ["i17"]
    page.locator("#find").fill("no such thing")
    page.get_by_text("No item that this page knows has “no such thing”").wait_for()
    assert cards(page) == []


def test_similar_items_open_from_the_history(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    press(page, 4)
    page.locator("#history .thumb").first.click()
    page.get_by_role("heading", name="Like Item 5").wait_for()
    assert page.locator("#similar .source").first.inner_text() == "similar"
    assert set(page.locator("#similar li").evaluate_all("all => all.slice(0, 2).map(one => one.dataset.id)")) == {
        "i04",
        "i06",
    }
    page.keyboard.press("Escape")
    assert not page.locator("#similar").is_visible()


def test_without_consent_nothing_is_stored_and_the_history_stays_in_the_page(open_page: Opens, origin: str) -> None:
    page, seen = open_page(origin)
    settled(page)
    with page.expect_response(RECOMMEND):
        page.get_by_role("switch").uncheck()
    settled(page)
    seen.bodies.clear()
    seen.urls.clear()
    clicked = press(page)
    assert past(page) == [clicked]
    assert [url for url in seen.urls if "/v1/events" in url or "/v1/users" in url] == []
    assert [(body["consent"], body["history"], "user_id" in body) for _, body in seen.bodies] == [
        (False, [clicked], False)
    ]
    assert clicked not in cards(page)
    page.reload()
    settled(page)
    assert not page.get_by_role("switch").is_checked()
    assert past(page) == []


def test_problem_is_shown_as_its_sentence_and_can_be_tried_again(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    told = problem(422, title="The request cannot mean anything", detail="k: too large", code="invalid_request")
    page.route(RECOMMEND, lambda route: route.fulfill(**told), times=1)
    before = cards(page)
    page.locator("#k").select_option("12")
    page.get_by_text("The request cannot mean anything: k: too large.").wait_for()
    assert cards(page) == before
    page.get_by_role("button", name="Try again").click()
    page.wait_for_function("() => document.querySelectorAll('#follows > li').length === 12")
    assert not page.locator("#trouble").is_visible()


def test_lost_click_leaves_the_history_as_it_was_and_says_so(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    page.route("**/v1/events", lambda route: route.abort(), times=1)
    page.locator("#follows .card").first.click()
    page.get_by_text("The service did not answer").wait_for()
    assert past(page) == []
    page.get_by_role("button", name="Try again").click()
    page.locator("#history .thumb:not(.pending)").wait_for()
    assert past(page) == ["i01"]


def test_overload_is_tried_once_more_after_the_time_it_asks_for(open_page: Opens, origin: str) -> None:
    page, seen = open_page(origin)
    settled(page)
    refused = {**problem(503, title="Too many requests at once", detail="wait"), "headers": {"retry-after": "0"}}
    page.route(RECOMMEND, lambda route: route.fulfill(**refused), times=1)
    page.locator("#k").select_option("6")
    page.wait_for_function("() => document.querySelectorAll('#follows > li').length === 6")
    page.unroute(RECOMMEND)
    page.route(RECOMMEND, lambda route: route.fulfill(**refused))
    seen.bodies.clear()
    page.locator("#k").select_option("12")
    page.get_by_text("Too many requests at once: wait.").wait_for()
    assert len(seen.bodies) == 2  # the question and its one repetition


def test_late_answer_does_not_overwrite_a_newer_one(open_page: Opens, origin: str) -> None:
    # A withdrawn question cannot be answered; so that this one can, the page here withdraws nothing.
    deaf = "AbortController.prototype.abort = () => {};"
    page, _ = open_page(origin, prepare=lambda page: page.add_init_script(deaf))
    settled(page)
    held: list[Any] = []
    page.route(RECOMMEND, lambda route: held.append(route), times=1)
    page.locator("#k").select_option("6")
    page.wait_for_function("() => document.querySelector('#follows').hasAttribute('aria-busy')")
    page.locator("#k").select_option("12")
    page.wait_for_function("() => document.querySelectorAll('#follows > li').length === 12")
    with page.expect_event("requestfinished", lambda request: request == held[0].request):
        held[0].continue_()
    with page.expect_response("**/similar**"):  # a whole round trip later
        page.evaluate("fetch('/v1/items/i01/similar')")
    assert len(cards(page)) == 12


def test_overtaken_question_is_withdrawn(open_page: Opens, origin: str) -> None:
    page, _ = open_page(origin)
    settled(page)
    held: list[Any] = []  # the first question; `times=1` may take the second one, too, where that comes at once
    page.route(RECOMMEND, lambda route: route.continue_() if held else held.append(route))
    with page.expect_event("requestfailed") as failed:
        page.locator("#k").select_option("6")
        page.locator("#k").select_option("12")
    assert failed.value.failure == "net::ERR_ABORTED"
    page.wait_for_function("() => document.querySelectorAll('#follows > li').length === 12")
    assert not page.locator("#trouble").is_visible()  # a question that was withdrawn is no trouble


def test_api_key_is_asked_for_only_when_the_service_wants_one(
    open_page: Opens, tmp_path: Path, toy_bundle: Path, serve: Callable[..., Any]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"page:read,write:{hashlib.sha256(b'sesame').hexdigest()}\n")
    with serve(tmp_path, bundle_dir=toy_bundle, api_keys_file=str(keys)) as url:
        page, _ = open_page(url)
        page.get_by_text("An API key is needed").wait_for()
        page.get_by_label("API key").fill("sesame")
        page.get_by_role("button", name="Use this key").click()
        settled(page)
        assert not page.locator("#key-form").is_visible()
        press(page)
        assert page.evaluate("JSON.stringify({...sessionStorage, ...localStorage})").find("sesame") == -1


def test_catalogue_of_bare_ids_is_served_as_well(
    open_page: Opens, tmp_path: Path, bare_bundle: Path, serve: Callable[..., Any]
) -> None:
    with serve(tmp_path, bundle_dir=bare_bundle) as url:
        page, seen = open_page(url)
        settled(page)
        assert page.locator("#follows .title").first.inner_text() == "42"
        assert not page.locator("#categories").is_visible()
        assert not page.locator("#priced").is_visible()
        strange = cards(page)[1:5]
        for item_id in strange:
            press(page, cards(page).index(item_id))
        page.reload()
        page.locator("#history .thumb").first.wait_for()
        assert past(page) == strange[::-1]
        page.locator("#history .thumb").nth(3).click()
        page.get_by_role("heading", name="Like a/b?c=d&e#f").wait_for()
        assert seen.complaints == []


def test_movement_is_left_out_where_it_is_not_wanted(open_page: Opens, origin: str) -> None:
    moving = "window.moved = 0; const real = Element.prototype.animate;" + (
        "Element.prototype.animate = function (...all) { window.moved += 1; return real.apply(this, all); };"
    )
    for wish, expected in (("reduce", False), ("no-preference", True)):
        page, _ = open_page(origin, reduced_motion=wish, prepare=lambda page: page.add_init_script(moving))
        settled(page)
        press(page)
        assert bool(page.evaluate("window.moved")) is expected


MEASURE = """least => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = colour => rgba(colour).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const grounds = node => {
    const cover = node.closest(".cover");
    if (cover) {
      const under = ["--ground", "--a", ...(cover.dataset.design === "bands" ? ["--panel"] : [])];
      return under.map(name => getComputedStyle(cover).getPropertyValue(name));
    }
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (rgba(colour)[3] === 255) return [colour];
    }
  };
  const poor = [];
  let seen = 0;
  for (const node of document.body.querySelectorAll("*")) {
    const hasText = [...node.childNodes].some(one => one.nodeType === 3 && one.data.trim());
    if (!hasText || !node.checkVisibility() || node.closest(".ghost, .unseen, .skip")) continue;
    seen += 1;
    const { color } = getComputedStyle(node);
    for (const ground of grounds(node)) {
      const value = ratio(color, ground);
      if (value < least) poor.push(`${node.className || node.tagName} ${value.toFixed(2)}: ${color} on ${ground}`);
    }
  }
  return [seen, [...new Set(poor)]];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast_the_words_of_covers_too(open_page: Opens, books_origin: str, scheme: str) -> None:
    page, _ = open_page(books_origin, color_scheme=scheme, reduced_motion="reduce")
    settled(page)
    with page.expect_response(RECOMMEND):
        page.locator("#k").select_option("96")
    page.locator("#follows > li:nth-child(96)").wait_for()
    press(page)
    page.locator("#history .thumb").first.click()
    page.locator("#similar .card").first.wait_for()
    page.locator(".chip").nth(0).click()
    page.locator(".chip").nth(1).click()
    page.locator(".chip").nth(1).click()
    page.locator("#forget").click()
    seen, poor = page.evaluate(MEASURE, CONTRAST)
    assert seen > 200
    assert poor == []


@pytest.mark.skipif(
    os.environ.get("SEQUITUR_TEST_SCREENSHOTS") != "1",
    reason="set SEQUITUR_TEST_SCREENSHOTS=1 for pictures in .screens/",
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width", "height"), [("wide", 1440, 900), ("narrow", 360, 780)])
def test_pictures(open_page: Opens, books_origin: str, scheme: str, name: str, width: int, height: int) -> None:
    folder = ROOT / ".screens"
    folder.mkdir(exist_ok=True)
    # Without movement: a picture shows where things are and not where they are going.
    page, _ = open_page(
        books_origin, viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    settled(page)
    page.screenshot(path=folder / f"{name}-{scheme}-empty.png")
    page.locator(".reader").nth(2).click()
    page.locator("#history .thumb").first.wait_for()
    settled(page)
    press(page, 1)
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=folder / f"{name}-{scheme}-reader.png")
    page.screenshot(path=folder / f"{name}-{scheme}-page.png", full_page=True)
    page.locator("#history .thumb").nth(1).click()
    page.locator("#similar .card").first.wait_for()
    page.screenshot(path=folder / f"{name}-{scheme}-similar.png")
    assert len(list(folder.glob(f"{name}-{scheme}-*.png"))) >= 4
