"""The report in a real browser: figures, filters, links, colours, print, and hostile text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from report_fixtures import GOOD, STEP, log_training, made_study, rated_by, rated_study

from xlift.disk import write_jsonl
from xlift.report.page import page_text, write_report

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> The answer is in English & "quoted" text.'
NASTY = "<img src=x onerror=alert(4)>"


def high_rate(run: Any) -> bool:
    return not run.config.untuned and run.config.learning_rate > 5e-4


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study whose texts, ratings and settings all try to run scripts."""

    def text(run: Any, prompt: Any) -> str:
        return HOSTILE if high_rate(run) and prompt["language"] == "fr" else GOOD[prompt["language"]]

    mixed = {"languages": ["en", "fr"], "validation": {"size": 2}, "test": {"size": 4}}
    settings = {"question": "<script>alert(3)</script> Is it safe?", "prompts": mixed}
    settings |= {"training": {"learning_rate": [1e-4, 1e-3], "system": NASTY, "instructions": {"name": "set-a"}}}
    folder = rated_study(tmp_path_factory.mktemp("hostile") / "study", text, **settings)
    for run in folder.runs:
        if run.trains:
            log_training(run, 2.0, {"fr": 0.5})
        step = STEP if run.trains else 0
        asked = [record for record in _ratings(run, step) if record["language"] == "fr"]
        person = {"facet": "helpfulness", "rater": f"human:{NASTY}", "value": 1, "signature": NASTY, "reason": NASTY}
        polite = person | {"facet": "politeness", "value": 4, "scale": [1, 5]}
        polite |= {"detail": {"spans": [{"start": 0, "end": 1, "label": NASTY, "text": "x"}]}}
        write_jsonl(run.ratings(step, "human"), [{**record, **one} for record in asked for one in (person, polite)])
    write_report(folder)
    return folder


def _ratings(run: Any, step: int) -> list[dict[str, Any]]:
    from xlift.records import read_records

    keys = ("id", "language", "run", "step", "response")
    return [{key: record[key] for key in keys} for record in read_records(run.ratings(step, "language"))]


def test_markdown_holds_no_html_of_anybody(workspace: Any) -> None:
    assert "Is it safe?" in (text := write_report(workspace, "md").read_text(encoding="utf-8"))
    assert not re.findall(r"<[a-z/!]", text)


@pytest.fixture
def noise() -> list[str]:
    """What a page should not do: errors, dialogs, requests."""
    return []


@pytest.fixture
def page(workspace: Any, browser: Any, noise: list[str]) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened.on("console", lambda message: noise.append(message.text) if message.type in {"error", "warning"} else None)
    opened.on("pageerror", lambda error: noise.append(str(error)))
    opened.on("dialog", lambda dialog: (noise.append(f"dialog {dialog.message}"), dialog.dismiss()))
    opened.on("request", lambda request: None if request.url.startswith("file:") else noise.append(request.url))
    visit(opened, workspace)
    yield opened
    opened.close()
    assert noise == []


def visit(page: Any, workspace: Any, fragment: str = "") -> None:
    page.goto("about:blank")
    page.goto((workspace.report / "index.html").resolve().as_uri() + fragment)
    page.wait_for_selector('#cards[aria-busy="false"]', state="attached")


def see(part: Any) -> None:
    """Scrolls to a part and waits until the browser has laid it out, which it does for what is in view alone."""
    frames = "requestAnimationFrame(() => requestAnimationFrame(done))"
    part.evaluate(f"one => new Promise(done => {{ one.scrollIntoView({{ block: 'nearest' }}); {frames}; }})")


def shown(page: Any) -> list[str]:
    """Ids of the prompts that are shown."""
    page.wait_for_selector('#cards[aria-busy="false"]', state="attached")
    return [text.split(" ")[0] for text in page.locator("article.prompt > header > .soft").all_inner_texts()]


def test_the_page_holds_no_address_to_load_from_and_allows_only_its_own_scripts(workspace: Any) -> None:
    page = (workspace.report / "index.html").read_text(encoding="utf-8")
    policy = page.split('Content-Security-Policy" content="')[1].split('"')[0].replace("&#39;", "'")
    assert policy.startswith("default-src 'none';")
    scripts = policy.split("script-src ")[1]
    assert "unsafe" not in scripts
    assert all(source.startswith("'sha256-") for source in scripts.split())
    assert "<script>alert" not in page
    assert NASTY not in page
    assert "<link" not in page
    assert 'src="' not in page


def test_hostile_text_is_shown_as_text_and_marked_as_the_rating_says(page: Any) -> None:
    assert page.locator(".question").inner_text() == "<script>alert(3)</script> Is it safe?"
    page.select_option("#language", "fr")
    page.select_option("#split", "test")
    marked = page.locator("article.prompt").first.locator(".answer").last
    assert marked.text_content() == HOSTILE
    assert "answer is in English" in " ".join(marked.locator("mark").all_text_contents())
    assert page.locator("#cards img, #cards script").count() == 0
    assert marked.locator("mark").first.get_attribute("title") == f"marked: {NASTY}"
    assert page.locator("article.prompt .chip", has_text="politeness 4 of 5").count() > 0
    raters = page.locator("article.prompt").first.locator(".raters").last
    raters.locator("summary").click()
    assert f"helpfulness 1 by human:{NASTY}, because: {NASTY} · {NASTY}" in raters.inner_text()


def test_figures_come_to_life_and_stay_within_the_policy(page: Any, workspace: Any) -> None:
    drawings = page.locator(".drawing:visible")
    names = [drawings.nth(i).get_attribute("data-figure") for i in range(drawings.count())]
    assert {"heat-map-language", "learning-rate-language", "transfer-language", "heldout-loss"} <= set(names)
    for i in range(len(names)):
        drawings.nth(i).scroll_into_view_if_needed()
        drawings.nth(i).locator(".live svg").wait_for()
        assert drawings.nth(i).locator(".static").is_hidden()
    heat_map = page.locator('.drawing[data-figure="heat-map-language"] .live')
    assert {"English", "French", "base"} <= set(heat_map.locator("text").all_text_contents())
    see(heat_map)
    heat_map.locator("path[aria-label*='French']").first.hover(force=True)
    assert "language: French" in page.locator("#tip").inner_text()
    for name in names:
        assert (workspace.report / "figures" / f"{name}.svg").is_file()
        assert (workspace.report / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_no_line_breaks_a_learning_rate_in_the_table_of_lost_languages(page: Any) -> None:
    cells = page.locator("#table-flips-language + .wide td").all_inner_texts()
    assert any("1e\N{NON-BREAKING HYPHEN}3" in text for text in cells)
    assert not any("-" in text for text in cells)


def test_another_rater_shows_other_figures_and_tables(page: Any) -> None:
    page.select_option("#scale", "helpfulness-people")
    assert page.locator('.drawing[data-figure="heat-map-helpfulness-people"]').is_visible()
    assert page.locator('.drawing[data-figure="heat-map-language"]').is_hidden()


def test_a_long_table_is_made_when_it_is_opened_and_a_long_row_as_it_is_scrolled(tmp_path: Path, browser: Any) -> None:
    languages = ["en", "fr", "ru", "de", "es", "it", "nl", "pt", "tr", "id"]
    prompts = {"languages": languages, "validation": {"size": 1}, "test": {"size": 1}}
    rates = {"learning_rate": [1e-5 * 1.2**power for power in range(22)]}
    study = made_study(tmp_path / "study", lambda *_: GOOD["en"], prompts=prompts, training=rates)
    rated = rated_by(study, {("language", "language"): lambda run, prompt: 2.0 * (prompt["language"] < "fr")})
    (path := tmp_path / "page.html").write_text(page_text(rated), encoding="utf-8")
    for script in (True, False):
        opened = browser.new_context(java_script_enabled=script).new_page()
        opened.goto(path.as_uri())
        rows = opened.locator("#table-shares-language tbody tr")
        assert rows.count() == (0 if script else 23)
        if script:
            opened.goto(path.as_uri() + "#table-shares-language")  # as the summary's links do
        else:
            opened.locator("#table-shares-language summary").click()
        rows.first.wait_for()
        before = rows.locator("th").all_inner_texts()
        assert len(before) == 23
        if script:
            for _ in range(2):
                opened.locator("#table-shares-language thead button").first.click()
            assert rows.locator("th").all_inner_texts() == sorted(before, reverse=True) != before
            opened.evaluate("document.querySelectorAll('#runs input').forEach(box => { box.checked = true; })")
            opened.select_option("#language", "fr")
            shown(opened)
            answers = opened.locator("article.prompt").first.locator(".answers > div")
            assert answers.count() == 20
            answers.last.scroll_into_view_if_needed()
            answers.nth(22).wait_for(state="attached")
            assert len(set(answers.locator(".who").all_text_contents())) == 23
        opened.context.close()


def test_filters_leave_what_they_name(page: Any) -> None:
    assert len(shown(page)) == 12
    assert page.locator("#count").inner_text() == "12 of 12 prompts"
    page.select_option("#language", "fr")
    assert {id.rsplit(".", 1)[1] for id in shown(page)} == {"fr"}
    page.select_option("#split", "test")
    assert page.locator("#count").inner_text() == "4 of 12 prompts"
    page.select_option("#facet", "flanguage")
    page.select_option("#value", "0")
    assert page.locator("#count").inner_text() == "4 of 12 prompts"
    # Only the runs that are shown count.
    page.locator("#runs").get_by_label("lora-r16-lr1e-3").uncheck()
    assert page.locator("#count").inner_text() == "0 of 12 prompts"
    page.select_option("#value", "2")
    assert page.locator("#count").inner_text() == "4 of 12 prompts"
    assert page.locator("article.prompt").first.locator(".answers > div").count() == 2
    page.select_option("#value", "m")
    assert shown(page) == []


def test_search_finds_prompts_and_responses_whatever_the_case(page: Any) -> None:
    page.fill("#search", "QUOTED")
    assert {id.rsplit(".", 1)[1] for id in shown(page)} == {"fr"}
    assert page.locator("#count").inner_text() == "6 of 12 prompts"
    page.fill("#search", "no such words")
    assert shown(page) == []
    page.fill("#search", "")
    assert len(shown(page)) == 12


def test_a_link_leads_to_one_response(page: Any, workspace: Any) -> None:
    run = workspace.runs[2]
    wanted = page.locator("article.prompt").nth(3)
    id = wanted.locator("header > .soft").inner_text().split(" ")[0]
    address = wanted.locator(".who a").last.get_attribute("href")
    assert address == f"#response={run.id}/{STEP}/{quote(id)}"
    visit(page, workspace, address)
    assert shown(page) == [id]
    assert page.locator(".here .who").inner_text().startswith(run.label)
    page.get_by_role("button", name="Show all prompts").click()
    assert len(shown(page)) == 12
    page.evaluate("location.hash = '#response=gone/1/gone'")
    page.get_by_text("the linked response is not in this report").wait_for()


def colour(page: Any, selector: str, name: str) -> tuple[float, ...]:
    text = page.evaluate(f"getComputedStyle(document.querySelector('{selector}'))['{name}']")
    return tuple(float(part) for part in text.removeprefix("rgb(").removesuffix(")").split(",")[:3])


def test_dark_is_dark_by_the_system_or_the_switch(page: Any) -> None:
    assert sum(colour(page, "body", "backgroundColor")) > 700
    page.emulate_media(color_scheme="dark")
    assert sum(colour(page, "body", "backgroundColor")) < 150
    assert sum(colour(page, "body", "color")) > 600
    # Labels of a figure have the colour of the text.
    assert colour(page, ".static .role-axis-label text", "fill") == colour(page, "body", "color")
    page.select_option("#theme", "light")
    assert sum(colour(page, "body", "backgroundColor")) > 700
    page.emulate_media(color_scheme="light")
    page.select_option("#theme", "dark")
    assert sum(colour(page, "body", "backgroundColor")) < 150


def test_print_is_light_complete_and_without_controls(page: Any, tmp_path: Path) -> None:
    page.select_option("#theme", "dark")
    page.locator(".drawing:visible").first.locator(".live svg").wait_for()
    closed = page.locator("details:not([open])").count()
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert page.locator("details:not([open])").count() == closed
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert sum(colour(page, "body", "backgroundColor")) > 700
    assert page.locator("details:not(.raters, .long):not([open])").count() == 0
    assert page.locator(".live:visible, nav:visible, .filters:visible").count() == 0
    # The heat maps of every rater are printed, still and whole, and all else of the one that is chosen.
    for part, wanted in (("#results", ""), ("main > section:not(#results)", ":not([data-scale][hidden] *)")):
        printed, there = page.locator(f"{part} .static:visible"), page.locator(f"{part} .drawing{wanted}")
        assert printed.count() == there.count() > 0
    assert page.locator("article.prompt:visible").count() == 6
    # No figure is higher than a page with its heading and caption, 212 mm.
    heights = page.evaluate("[...document.querySelectorAll('.static svg')].map(one => one.clientHeight)")
    assert max(heights) <= 212 / 25.4 * 96 + 1


def test_a_narrow_screen_does_not_scroll_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    answers = page.locator("article.prompt").first.locator(".answers > div")
    tops = [answers.nth(i).bounding_box()["y"] for i in range(answers.count())]
    assert tops == sorted(tops)
    assert len(set(tops)) == len(tops)


def test_what_is_wider_than_a_phone_says_that_it_scrolls(page: Any) -> None:
    told = "one => one.classList.contains('more') === one.scrollWidth > one.clientWidth + 1"
    for width, state in ((390, "visible"), (1280, "hidden")):
        page.set_viewport_size({"width": width, "height": 800})
        page.locator(".drawing.more:visible").first.wait_for(state=state)
        for part in page.locator(".drawing:visible, .wide:visible").all():
            see(part)
            assert part.evaluate(told)


def test_the_keyboard_reaches_everything(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the summary"
    page.focus("#search")
    page.keyboard.type("quoted")
    assert page.locator("#count").inner_text() == "6 of 12 prompts"
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.type || document.activeElement.textContent"
            )
        )
    assert {"language", "split", "facet", "value", "checkbox", "¶"} <= reached
    page.focus("#runs input")
    page.keyboard.press("Space")
    assert page.locator("article.prompt").first.locator(".answers > div").count() == 2
    assert page.evaluate("[...document.querySelectorAll('select, input')].every(box => box.labels.length === 1)")


def test_without_javascript_figures_and_tables_are_there(workspace: Any, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto((workspace.report / "index.html").resolve().as_uri())
    assert opened.locator(".static svg:visible").count() == opened.locator(".drawing").count() > 3
    assert opened.locator("#responses noscript").is_visible()
    context.close()


def test_ids_of_figures_do_not_clash(page: Any) -> None:
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
