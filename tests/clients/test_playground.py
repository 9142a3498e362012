"""The playground in a real browser against a real server: every page used as people do, on a desk and a phone."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from e2e.serving import Server, serving
from trefoil.hyperparameters import METHODS, OfHead

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
SLOWLY_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=SLOWLY_MS)
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as `make serve` starts it, with its worker."""
    with serving(tmp_path_factory.mktemp("playground") / "stderr", env={"TREFOIL_NO_WORKER": "0"}) as running:
        yield running


@pytest.fixture(params=[(1280, 800), (390, 844)], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, demo: Server) -> Iterator[Page]:
    """A page that must ask nobody but its server, and fall silent without an error."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, locale="en-US")
    own = context.new_page()
    own.set_default_timeout(SLOWLY_MS)
    wrong: list[str] = []
    own.on("pageerror", lambda error: wrong.append(str(error)))
    own.on(
        "console",
        lambda said: wrong.append(said.text) if said.type == "error" and "status of 4" not in said.text else None,
    )
    own.on("request", lambda asked: None if asked.url.startswith(demo.url) else wrong.append(asked.url))
    own.goto(demo.url)
    expect(own.get_by_role("button", name="capital of France")).to_be_enabled()
    yield own
    assert own.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    context.close()
    assert wrong == []


def picture(page: Page, name: str) -> None:
    """Keep a screenshot where TREFOIL_PICTURES names a folder."""
    if folder := os.environ.get("TREFOIL_PICTURES"):
        size = page.viewport_size or {}
        page.screenshot(path=Path(folder, f"{name}-{size.get('width')}.png"))


def served(page: Page, demo: Server, task: str) -> bool:
    models = page.request.get(f"{demo.url}/v1/models").json()["data"]
    return any(task in model["tasks"] for model in models)


def test_chat_streams_and_shows_what_else_was_considered(page: Page) -> None:
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Say something").fill("What is the capital of France?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant")).to_contain_text("Paris")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.locator(".turn.assistant .piece").first.click()
    expect(page.locator(".alternatives .bars li")).not_to_have_count(0)
    before = page.locator(".alternatives h4").inner_text()
    page.locator(".turns").press("ArrowRight")
    expect(page.locator(".alternatives h4")).not_to_have_text(before)
    picture(page, "chat")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    picture(page, "openings")
    page.get_by_role("button", name="opposite of hot").click()
    expect(page.locator(".turn.assistant")).to_contain_text("cold")


def test_an_answer_is_stopped_by_the_keyboard(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: None)  # an answer that takes its time, whatever is drawn
    page.get_by_label("Say something").fill("Tell me a story.")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_label("Say something").press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".problem")).to_have_count(0)


def test_a_refusal_of_the_server_is_shown_and_the_words_are_kept(page: Page) -> None:
    page.get_by_label("Temperature").fill("3")
    page.get_by_label("Say something").fill("hello")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("temperature")
    expect(page.locator(".turn.user")).to_contain_text("hello")


def test_pages_are_reached_by_keyboard(page: Page) -> None:
    page.get_by_role("link", name="Engine").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Engine")).to_have_attribute("aria-current", "page")
    page.go_back()
    expect(page.get_by_label("Say something")).to_be_visible()


def test_masks_are_filled_with_candidates(page: Page, demo: Server) -> None:
    page.get_by_role("link", name="Fill").click()
    if not served(page, demo, "fill-mask"):
        expect(page.get_by_text("No served model can do this")).to_be_visible()
        return
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".bars li")).to_have_count(8)
    picture(page, "fill")


def test_gaps_are_filled_with_candidates(page: Page) -> None:
    page.get_by_role("link", name="Fill").click()
    page.get_by_label("Model").select_option("demo-encoder-decoder")
    expect(page.get_by_label("Text")).to_have_value("The capital of France is ___.")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("p.result")).to_have_text("The capital of France is Paris.")
    page.get_by_label("Text").fill("The capital of ___ is Paris, and the opposite of hot is ___.")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".card mark")).to_have_text(["France", "cold"])
    expect(page.locator(".card ol li")).to_have_count(4)
    picture(page, "spans")
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_text("片段 1")).to_be_visible()
    picture(page, "spans-zh")


def test_entities_are_coloured_in_the_text(page: Page, demo: Server) -> None:
    page.get_by_role("link", name="Entities").click()
    if not served(page, demo, "token-classification"):
        expect(page.get_by_text("No served model can do this")).to_be_visible()
        return
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".result mark")).not_to_have_count(0)
    picture(page, "entities")


def test_labels_are_bars(page: Page, demo: Server) -> None:
    page.get_by_role("link", name="Classify").click()
    if not served(page, demo, "text-classification"):
        expect(page.get_by_text("No served model can do this")).to_be_visible()
        return
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".bars li")).not_to_have_count(0)
    picture(page, "classify")


@pytest.mark.parametrize("page", [(1280, 800)], indirect=True, ids=["desk"])
def test_a_policy_asks_for_a_reward_model(page: Page) -> None:
    page.get_by_role("link", name="Train").click()
    note = page.get_by_text("No served model can do this")
    expect(note).not_to_be_visible()
    page.get_by_label("Method").select_option("grpo")
    expect(note).to_be_visible()


@pytest.mark.parametrize("page", [(1280, 800)], indirect=True, ids=["desk"])
def test_every_method_is_offered_and_an_adapter_where_the_method_takes_one(page: Page) -> None:
    page.get_by_role("link", name="Train").click()
    methods = page.get_by_label("Method")
    assert set(methods.locator("option").all_inner_texts()) == set(METHODS)
    for name, kind in METHODS.items():
        methods.select_option(name)
        expect(page.get_by_label("LoRA rank")).to_be_visible(visible=not issubclass(kind, OfHead))


@pytest.mark.parametrize("page", [(1280, 800)], indirect=True, ids=["desk"])
def test_a_job_is_started_watched_and_its_result_asked(page: Page) -> None:
    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am clover."}]
    rows = "\n".join([json.dumps({"messages": turns})] * 8).encode()
    page.get_by_role("link", name="Train").click()
    page.locator("input[type=file]").set_input_files({"name": "rows.jsonl", "mimeType": "text/plain", "buffer": rows})
    page.get_by_label("Epochs").fill("12")
    page.get_by_label("Learning rate").fill("0.002")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".chart").first).to_contain_text("Loss", timeout=4 * SLOWLY_MS)
    picture(page, "training")
    page.get_by_role("button", name="Ask the result").click(timeout=6 * SLOWLY_MS)
    expect(page.get_by_label("Model")).to_have_value(re.compile("^ft:demo-decoder:mine:"))
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Say something").fill("Who are you?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant")).to_contain_text("I am clover.")
    picture(page, "asked")


def test_the_engine_page_shows_what_was_done(page: Page) -> None:
    page.get_by_role("link", name="Engine").click()
    expect(page.locator(".engine h2").first).to_have_text("demo-decoder")
    expect(page.locator(".engine dt")).to_contain_text(["Running", "Waiting", "Pages used"])
    expect(page.locator(".engine .chart").first).to_be_visible()
    picture(page, "engine")


def test_the_page_speaks_chinese_and_remembers_it(page: Page) -> None:
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("link", name="对话")).to_be_visible()
    page.reload()
    expect(page.get_by_role("link", name="训练")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "zh")
    page.get_by_role("link", name="训练").click()
    picture(page, "train-zh")


def test_the_reference_is_our_own(page: Page, demo: Server) -> None:
    page.goto(f"{demo.url}/docs")
    expect(page.get_by_text("/v1/chat/completions").first).to_be_visible()
    picture(page, "docs")
