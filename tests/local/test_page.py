"""The page in a real browser: its stories, its buttons, and what a reload shows.

Playwright drives Debian's Chromium. Without Chromium the tests are skipped with a message; with
REQUIRE_CHROMIUM=1 they fail. SOAK=1 plays the stories at full length.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from local.page.stories import STORIES
from local.processes import running
from tests.harness.processes import skip_if_none_may_start

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
IS_FULL = os.environ.get("SOAK") == "1"
PATIENCE = 90_000  # ms; a story at full length takes a minute
FATES = ("on_its_way", "once", "parked", "twice", "lost")
LAPTOP = ViewportSize(width=1366, height=768)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The page's address. Both functions run in processes of their own."""
    skip_if_none_may_start()
    if CHROMIUM is None:
        lacking = "there is no chromium (Debian: apt-get install chromium)"
        if os.environ.get("REQUIRE_CHROMIUM") == "1":
            pytest.fail(f"REQUIRE_CHROMIUM=1, but {lacking}")
        pytest.skip(f"NOT TESTED: the page in a browser: {lacking}")
    command = [sys.executable, "-m", "tests.local.serve_page"]
    with running(command, ready="The page: ", cwd=ROOT, limit=60) as server:
        yield server.ready_line.split()[-1]


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Browser]:
    """One browser for all tests."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, freshly opened. Its console must stay empty."""
    said: list[str] = []
    context = browser.new_context(viewport=LAPTOP, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    yield page
    context.close()
    assert not said


@pytest.fixture
def relay(page: Page) -> Page:
    """The page, with a relay that has started over."""
    start_over(page, "relay")
    return page


def start_over(page: Page, lane: str) -> None:
    """Choose this function, and let its stack start over."""
    choose(page, lane)
    button(page, "Start over").click()
    expect(page.locator("#instances tr.starting")).to_have_count(2, timeout=PATIENCE)
    expect(page.locator("#instances tr.up")).to_have_count(2, timeout=PATIENCE)
    expect(cell(page, lane, "published")).to_have_text("0", timeout=PATIENCE)


def choose(page: Page, lane: str) -> None:
    """Show this function, and let the buttons act on it."""
    page.locator(f"#verdict-{lane} input").check()


def cell(page: Page, lane: str, fate: str) -> Any:
    """One number of the first table."""
    return page.locator(f"#verdict-{lane} .{fate}")


def verdict(page: Page, lane: str) -> dict[str, int]:
    """The numbers of the first table."""
    texts = {fate: cell(page, lane, fate).inner_text() for fate in ("published", *FATES)}
    return {fate: int(text.replace(",", "")) for fate, text in texts.items()}


def button(page: Page, name: str) -> Any:
    """A button of the controls."""
    return page.locator("#controls").get_by_role("button", name=name, exact=True)


def trouble(page: Page, name: str) -> None:
    """Choose what is wrong with Svix."""
    said = {"works": "none", "fails: 500": "fails", "refuses: 429": "refuses", "is down": "down"}
    page.get_by_role("radio", name=name, exact=True).check()
    expect(page.locator("#svix-trouble")).to_have_text(said.get(name, name), timeout=PATIENCE)


@pytest.mark.time_limit(200)
@pytest.mark.parametrize("story", [story.name for story in STORIES])
def test_each_story_ends_with_its_verdict(page: Page, story: str) -> None:
    """The verdict is shown for both functions.

    The relay loses no event and sends none twice, even if some are still on their way.
    """
    page.locator(f"#story-{story}").click()
    text = page.locator("#story-text")
    expect(text).to_have_attribute("data-state", "playing", timeout=PATIENCE)
    expect(text).to_contain_text(", 1 of ")
    assert button(page, "kill -9").is_disabled()
    expect(text).to_have_attribute("data-state", "ended", timeout=PATIENCE)
    outcomes = text.locator(".outcome").all_inner_texts()
    assert [outcome.split(":")[0] for outcome in outcomes] == ["The relay", "The obvious function"]
    for lane, outcome in zip(("relay", "obvious"), outcomes, strict=True):
        numbers = verdict(page, lane)
        assert numbers["published"] > 0
        assert numbers["published"] == sum(numbers[fate] for fate in FATES)
        assert f" of {numbers['published']:,} delivered once" in outcome
    relays = verdict(page, "relay")
    assert relays["lost"] == relays["twice"] == 0
    if story == "crashes":
        assert verdict(page, "obvious")["lost"] > 0, (
            "the obvious function lost no event, although it was killed"
        )
    if IS_FULL:
        assert relays["once"] == relays["published"]


def test_a_kill_with_calls_in_flight_loses_nothing(relay: Page) -> None:
    """An instance is killed while Svix hangs. At the end each event is delivered once."""
    trouble(relay, "hangs")
    button(relay, "100").click()
    expect(relay.locator("#outstanding")).to_have_text("100", timeout=PATIENCE)
    before = relay.locator("#instances tr.up td:first-child").all_inner_texts()
    button(relay, "kill -9").click()
    expect(relay.locator("#nacks")).not_to_have_text("0", timeout=PATIENCE)
    trouble(relay, "works")
    expect(cell(relay, "relay", "once")).to_have_text("100", timeout=PATIENCE)
    assert verdict(relay, "relay") == {"published": 100, "once": 100} | dict.fromkeys(
        ("on_its_way", "parked", "twice", "lost"), 0
    )
    expect(relay.locator("#instances tr.up")).to_have_count(2, timeout=PATIENCE)
    assert relay.locator("#instances tr.up td:first-child").all_inner_texts() != before


def test_a_reload_loses_nothing(relay: Page) -> None:
    """The numbers, the events, the chart, Svix's limit and the chosen function stay."""
    button(relay, "100").click()
    button(relay, "the last 100 again").click()
    relay.get_by_role("slider").fill("4")
    expect(relay.locator("#svix-limit")).to_have_text("25/s")
    expect(cell(relay, "relay", "once")).to_have_text("100", timeout=PATIENCE)
    expect(relay.locator("#outstanding")).to_have_text("0", timeout=PATIENCE)
    rows = relay.locator("#rows tr").all_inner_texts()
    relay.reload()
    expect(relay.locator("#connection")).to_have_text("Live")
    assert verdict(relay, "relay")["once"] == 100
    assert relay.locator("#rows tr").all_inner_texts() == rows
    assert relay.locator("#limit-words").inner_text() == "25"
    assert relay.locator("#chart path.accepted").get_attribute("d")
    choose(relay, "obvious")
    relay.reload()
    expect(relay.locator("#function-title")).to_have_text("The obvious function")
    assert relay.locator("#verdict-obvious input").is_checked()


def test_events_that_can_never_be_sent_are_parked(relay: Page) -> None:
    button(relay, "one too large for Svix").click()
    button(relay, "a broken one").click()
    button(relay, "1").click()
    expect(cell(relay, "relay", "parked")).to_have_text("2", timeout=PATIENCE)
    expect(cell(relay, "relay", "once")).to_have_text("1", timeout=PATIENCE)


def test_the_life_of_an_event(relay: Page) -> None:
    """The list of an event's steps begins with publishing and ends with the ack.

    The keyboard opens and closes it.
    """
    button(relay, "1").click()
    expect(cell(relay, "relay", "once")).to_have_text("1", timeout=PATIENCE)
    relay.locator("#rows button").focus()
    relay.keyboard.press("Enter")
    entries = relay.locator("#life-entries")
    expect(entries).to_contain_text("received", timeout=PATIENCE)
    expect(entries).to_contain_text("settled", timeout=PATIENCE)
    steps = [row.split("\t") for row in entries.inner_text().split("\n") if "\t" in row]
    said = [what.split(" ")[0] for *_, what in steps]
    order = ["published", "pushed", "arrived", "claimed", "sent", "accepted", "settled"]
    assert [word for word in said if word in order] == order
    assert said[-1] == "acknowledged"
    relay.keyboard.press("Escape")
    expect(relay.get_by_role("dialog")).to_be_hidden()


def test_instances_come_go_freeze_and_are_replaced(relay: Page) -> None:
    up = relay.locator("#instances tr.up")
    button(relay, "add an instance").click()
    expect(up).to_have_count(3, timeout=PATIENCE)
    button(relay, "remove one").click()
    expect(up).to_have_count(2, timeout=PATIENCE)
    button(relay, "freeze for 8 s").click()
    expect(relay.locator("#instances tr.frozen")).to_have_count(1, timeout=PATIENCE)
    expect(up).to_have_count(2, timeout=PATIENCE)
    before = up.locator("td:first-child").all_inner_texts()
    button(relay, "deploy again").click()
    expect(relay.locator("#instances tr.ending")).not_to_have_count(0, timeout=PATIENCE)
    expect(relay.locator("#instances tr.ending")).to_have_count(0, timeout=PATIENCE)
    expect(up).to_have_count(2, timeout=PATIENCE)
    assert not set(up.locator("td:first-child").all_inner_texts()) & set(before)


def test_svix_fails_and_recovers(relay: Page) -> None:
    """Each event arrives once, whatever was wrong."""
    troubles = ["refuses: 429", "fails: 500", "loses answers", "is down"]
    for count, name in enumerate(troubles, 1):
        trouble(relay, name)
        button(relay, "100").click()
        expect(relay.locator("#outstanding")).to_have_text("100", timeout=PATIENCE)
        trouble(relay, "works")
        expect(cell(relay, "relay", "once")).to_have_text(f"{count}00", timeout=PATIENCE)


def test_a_failing_endpoint_is_retried(relay: Page) -> None:
    """An event in Svix counts as on its way until its customer has it."""
    relay.get_by_role("checkbox", name="answer 500").check()
    button(relay, "1").click()
    expect(relay.locator("#failing")).to_have_text("1", timeout=PATIENCE)
    assert verdict(relay, "relay")["on_its_way"] == 1
    relay.get_by_role("checkbox", name="answer 500").uncheck()
    expect(cell(relay, "relay", "once")).to_have_text("1", timeout=PATIENCE)
    expect(relay.locator("#failing")).to_have_text("0", timeout=PATIENCE)


def test_a_story_can_be_ended(page: Page) -> None:
    page.locator("#story-outage").click()
    expect(page.locator("#story-text")).to_have_attribute("data-state", "playing", timeout=PATIENCE)
    page.get_by_role("button", name="End the story").click()
    expect(page.locator("#story-text")).to_contain_text("You ended the story.")
    assert button(page, "kill -9").is_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_laptop_and_does_not_jump(page: Page, scheme: Any) -> None:
    """Every part of the page has its place before the first event, and keeps it."""
    start_over(page, "relay")
    page.emulate_media(color_scheme=scheme)
    parts = page.locator("main > section, aside, .station")
    before = [part.bounding_box() for part in parts.all()]
    button(page, "2,000").click()
    expect(cell(page, "relay", "published")).to_have_text("2,000", timeout=PATIENCE)
    expect(page.locator("#accepted")).not_to_have_text("0", timeout=PATIENCE)
    assert [part.bounding_box() for part in parts.all()] == before
    assert page.evaluate("document.documentElement.scrollWidth") <= LAPTOP["width"]


def test_the_page_needs_its_token(address: str) -> None:
    """A wrong token, no token, and a request to another host name are refused."""
    origin, token = address.rsplit("/", 2)[:2]
    with httpx.Client() as client:
        assert client.get(address).status_code == 200
        assert client.get(f"{origin}/").status_code == 404
        assert client.get(f"{origin}/{token[::-1]}/page").status_code == 404
        assert client.get(f"{origin}/page").status_code == 404
        action = {"action": "publish", "lane": "relay", "count": 1}
        assert client.post(f"{origin}/do", json=action).status_code == 404
        elsewhere = {"Host": "elsewhere.example"}
        assert client.get(address, headers=elsewhere).status_code == 400


@pytest.mark.parametrize(
    "action",
    [{"action": "explode", "lane": "relay"}, {"action": "kill", "lane": "third"}, {}],
)
def test_an_invalid_action_is_refused(address: str, action: dict[str, str]) -> None:
    with httpx.Client() as client:
        assert client.post(f"{address.rsplit('/', 1)[0]}/do", json=action).status_code == 400
