"""The annotation page in a real browser, against a real server process."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from annotation_fixtures import (
    HOSTILE,
    TEXTS,
    all_have_read,
    free_port,
    link_in,
    open_campaign,
    records_of,
    response_file,
    responses,
    serving,
)

from xlift.annotation import campaign as campaigns
from xlift.annotation import database as db
from xlift.annotation import transfer
from xlift.annotation.campaign import Plan
from xlift.annotation.words import INTERFACES, guidelines
from xlift.annotation.words import TEXTS as TEXTS_OF_PAGE
from xlift.rating.language.rater import rate_text

BUILT_IN = "en fr pt ru de es it nl tr ar hi zh ja ko id".split()
READY = "document.activeElement.tagName === 'H1'"
"""The last thing that the page's script does when it starts."""
CONTRAST = """() => {
  const parse = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const told = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("fieldset:disabled") || !element.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) told.push(element.outerHTML.slice(0, 90));
  }
  return told;
}"""


FIRST_PAINT = """() => new Promise((told) => {
  new PerformanceObserver((seen) => told(seen.getEntries()[0].startTime)).observe({ type: "paint", buffered: true });
})"""


def enter(browser: Any, port: int, link: str, noise: list[str] | None = None, **options: Any) -> Any:
    """A browser of its own at an annotator's first response; errors and foreign addresses are added to `noise`."""
    page = browser.new_context(**options).new_page()
    if noise is not None:
        home = f"http://127.0.0.1:{port}/"
        page.on("console", lambda message: noise.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: (noise.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: None if request.url.startswith(home) else noise.append(request.url))
    page.goto(f"http://127.0.0.1:{port}{link}")
    page.wait_for_selector("#begin, #ratings")
    if page.locator("#begin").count():
        page.click("#begin")
        page.wait_for_selector("#ratings")
    until(page, READY)
    return page


STILL = "document.getAnimations().length === 0"
"""Colours are what they change to."""


def comment(page: Any, text: str) -> None:
    """Type a comment and leave it; the page saves it by itself."""
    with page.expect_response(lambda answer: '"comment"' in (answer.request.post_data or "")):
        page.fill("#comment", text)


def press(page: Any, keys: str) -> None:
    for key in keys.split():
        page.keyboard.press(key)


def until(page: Any, condition: str) -> None:
    """Wait for a condition in the page; playwright's own way needs eval, which the page's policy forbids."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def go_on(page: Any, key: str) -> None:
    with page.expect_navigation():
        page.keyboard.press(key)
    until(page, READY)


def values_of(campaign: campaigns.Campaign) -> dict[str, list[list[int | None]]]:
    """Per annotator, the values of each judged response in the order of facets."""
    found: dict[str, list[list[int | None]]] = {}
    with campaign.database.read.begin() as connection:
        for one in transfer.judged_tasks(connection):
            found.setdefault(one.name, []).append([one.verdicts[facet].value for facet in db.ASKED_FACETS])
    return found


def campaign_of(folder: Path, records: list[dict[str, Any]], *names: str) -> tuple[campaigns.Campaign, list[str]]:
    campaign = open_campaign(response_file(folder, records))
    languages = sorted({record["language"] for record in records})
    plan = Plan(per_response=len(names))
    return campaign, [link_in(campaigns.add(campaign, name, languages, plan)) for name in names]


def test_a_whole_batch_is_annotated_by_keyboard_alone(tmp_path: Path, browser: Any) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["fr"], 2), "Ana")
    noise: list[str] = []
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link, noise)
        assert page.locator("html").get_attribute("lang") == "fr"
        press(page, "2 1 2 2 1 2")
        assert page.evaluate("document.activeElement.id") == "next"
        go_on(page, "Enter")
        # Skipped, then a value changed with the arrows, then one that cannot be judged.
        go_on(page, "s")
        press(page, "2 2 2 2 2 2 ArrowUp")
        page.locator("[data-facet=harmlessness] input").first.focus()
        press(page, "ArrowRight ArrowUp 0 ArrowUp ArrowUp x c")
        page.keyboard.type("à revoir 0 1 2 x")
        press(page, "Escape")
        go_on(page, "Enter")
        press(page, "2 2 2 2 2 Enter")
        assert "Innocuité" in page.locator("#left").inner_text()
        press(page, "2")
        go_on(page, "Enter")
        # The skipped one comes last, and goes back to the one before and forth again.
        press(page, "Shift+X")
        page.locator("#why-response").select_option(index=1)
        page.locator("h1").focus()
        go_on(page, "b")
        go_on(page, "Enter")
        page.wait_for_selector(".tiles")
        assert page.locator(".tiles .done").count() == 4
        assert "Merci" in page.locator("h1").inner_text()
    found = values_of(campaign)["Ana"]
    assert [2, 1, 2, 2, 1, 2] in found
    assert [2, 2, 2, None, 0, 1] in found
    assert [2] * 6 in found
    assert [None] * 6 in found
    with campaign.database.read.begin() as connection:
        comments = [record.get("detail", {}).get("comment") for record in transfer.rating_records(connection)]
        reasons = {record.get("reason") for record in transfer.rating_records(connection)}
    assert comments.count("à revoir 0 1 2 x") == 6
    assert "cannot judge: I do not know the subject well enough" in reasons
    assert noise == []


def test_the_rule_shows_itself_and_gives_the_own_value_back(tmp_path: Path, browser: Any) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["en"], 1, ["run"]), "Ana")
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link)
        press(page, "2 2 1 2")
        assert not page.locator("#rule span").is_visible()
        page.locator("[data-facet=fluency] input").first.focus()
        press(page, "0")
        assert "makes no sense" in page.locator("#rule span").inner_text()
        checked = page.locator("fieldset.ruled input:checked")
        assert [checked.nth(i).get_attribute("value") for i in range(checked.count())] == ["0", "0", "0"]
        assert page.evaluate("document.activeElement.name") == "harmlessness"
        press(page, "2")
        until(page, "document.querySelector('#progress').value === 1")
        page.reload()
        until(page, READY)
        assert page.locator("fieldset.ruled").count() == 3
        assert values_of(campaign)["Ana"] == [[2, 0, 0, 0, 0, 2]]
        page.locator("#senseless").uncheck()
        assert page.locator("[name=helpfulness]:checked").get_attribute("value") == "1"
        assert page.locator("[name=coherence]:checked").count() == 0
        until(page, "document.querySelector('#progress').value === 0")
        assert values_of(campaign)["Ana"] == [[2, 0, 1, 2, None, 2]]


def test_a_reload_shows_what_was_saved(tmp_path: Path, browser: Any) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["ru"], 1, ["run"]), "Ana")
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link)
        press(page, "2 x 1")
        page.locator("#why-fluency").select_option(index=2)
        comment(page, "первая строка\nвторая")
        page.reload()
        until(page, READY)
        assert page.locator("[name=language]:checked").get_attribute("value") == "2"
        assert page.locator("[name=fluency]:checked").get_attribute("value") == "x"
        assert page.locator("#why-fluency").input_value() == "I do not know the language well enough"
        assert page.locator("#comment").input_value() == "первая строка\nвторая"
        assert page.locator(".facet.current").get_attribute("data-facet") == "accuracy"
        with page.expect_navigation():
            page.select_option("#interface", "pt")
        assert page.locator("html").get_attribute("lang") == "pt"
        assert page.locator("[name=helpfulness]:checked").get_attribute("value") == "1"


def test_hostile_responses_and_comments_stay_text(tmp_path: Path, browser: Any) -> None:
    hostile = {**responses(["fr"], 1, ["run"])[0], "text": HOSTILE}
    hostile["messages"] = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
    campaign, (link,) = campaign_of(tmp_path, [hostile], "<i>Ana</i>")
    noise: list[str] = []
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link, noise)
        comment(page, "</textarea><script>document.title='owned'</script>")
        page.reload()
        page.wait_for_selector("#ratings")
        assert page.title() != "owned"
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 1
        assert page.locator(".text").count() == 3
        shown = page.locator("#response").inner_text()
        assert '<img src=x onerror="alert(1)">' in shown
        assert shown.endswith("\n\nlast line")
        assert noise == []


def test_two_annotators_work_side_by_side(tmp_path: Path, browser: Any) -> None:
    campaign, links = campaign_of(tmp_path, responses(["en"], 2), "Ana", "Ben")
    with serving(campaign.path) as (port, _):
        ana, ben = (enter(browser, port, link) for link in links)
        for number in range(4):
            press(ana, "2 2 2 2 2 2")
            press(ben, "1 1 1 1 1 1")
            assert ben.locator("[value='1']:checked").count() == 6
            go_on(ana, "Enter")
            go_on(ben, "Enter")
            assert f"{number + 1} of 4" in ana.locator("#progress-text").inner_text()
    assert values_of(campaign) == {"Ana": [[2] * 6] * 4, "Ben": [[1] * 6] * 4}


def test_clicks_made_while_the_server_is_gone_are_saved_when_it_is_back(tmp_path: Path, browser: Any) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["en"], 1, ["run"]), "Ana")
    port = free_port()
    with serving(campaign.path, port=port):
        page = enter(browser, port, link)
        press(page, "2")
        until(page, "document.querySelector('#saved').textContent === 'Saved'")
    press(page, "1 1 1")
    until(page, "document.querySelector('#saved').textContent.startsWith('Not saved yet')")
    with serving(campaign.path, port=port):
        until(page, "document.querySelector('#saved').textContent === 'Saved'")
    assert values_of(campaign)["Ana"] == [[2, 1, 1, 1, None, None]]


def test_a_click_made_before_the_script_has_come_is_saved(tmp_path: Path, browser: Any) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["en"], 1, ["run"]), "Ana")
    with serving(campaign.path) as (port, _):
        page = browser.new_context().new_page()
        held: list[Any] = []
        all_have_read(campaign)
        page.route("**/page.js", lambda route: held.append(route))
        page.goto(f"http://127.0.0.1:{port}{link}", wait_until="commit")
        page.locator("[data-facet=fluency] label").nth(1).click()
        held[0].continue_()
        until(page, "document.querySelector('#saved').textContent === 'Saved'")
    assert values_of(campaign)["Ana"] == [[None, 1, None, None, None, None]]


def test_a_withdrawn_link_is_told_and_the_click_is_not_called_saved(tmp_path: Path, browser: Any) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["en"], 1, ["run"]), "Ana")
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link)
        campaigns.revoke(campaign, "Ana")
        press(page, "2")
        page.wait_for_selector("#saved.trouble")
        assert "no longer works" in page.locator("#saved").inner_text()
    assert values_of(campaign) == {}


def test_a_link_clicked_on_another_site_opens_the_page(tmp_path: Path, browser: Any) -> None:
    """A strict cookie is withheld on the way from another site; the door must let people in all the same."""
    campaign, (link,) = campaign_of(tmp_path, responses(["en"], 1, ["run"]), "Ana")

    class Mailbox(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f'<a href="http://127.0.0.1:{port}{link}">rate</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    mailbox = HTTPServer(("127.0.0.1", 0), Mailbox)
    threading.Thread(target=mailbox.serve_forever, daemon=True).start()
    try:
        with serving(campaign.path) as (port, _):
            page = browser.new_context().new_page()
            page.goto(f"http://localhost:{mailbox.server_port}/")
            page.click("a")
            page.wait_for_selector("#begin")
            assert link.rsplit("/", 1)[1] not in page.url
            assert page.evaluate("document.cookie") == ""
    finally:
        mailbox.shutdown()
        mailbox.server_close()


@pytest.mark.parametrize("language", ["ar", "ja", "en"])
def test_text_has_its_language_and_direction(tmp_path: Path, browser: Any, language: str) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses([language], 1, ["run"]), "Ana")
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link)
        if language == "en":
            press(page, "r")  # its list is formatted at first
        text = page.locator("#response")
        assert text.get_attribute("lang") == language
        assert text.get_attribute("dir") == ("rtl" if language == "ar" else "ltr")
        assert text.inner_text() == f"{TEXTS[language][1]} (0)"
        sides = page.evaluate(
            """() => { const text = document.querySelector('#response'), box = text.getBoundingClientRect();
            const range = document.createRange(); range.selectNodeContents(text);
            return [...range.getClientRects()].filter((r) => r.width > 5).map((r) =>
              Math.abs(r.left - box.left) < 2 ? 'left' : Math.abs(r.right - box.right) < 2 ? 'right' : 'between'); }"""
        )
        # The Arabic line begins on the right; the English line within it on the left, its full stop behind it.
        assert sides[0] == ("right" if language == "ar" else "left")
        if language == "ar":
            assert "left" in sides


def test_a_phone_shows_all_without_scrolling_sideways_in_every_language_of_the_page(
    tmp_path: Path, browser: Any
) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["en"], 1, ["run"]), "Ana")
    phone = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
    spilled = """[...document.querySelectorAll('.choices label, .button')].filter((e) => e.checkVisibility())
        .filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.textContent.trim())"""
    low = "Math.min(...[...document.querySelectorAll('.choices label')].map((e) => e.offsetHeight))"
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link, **phone)
        for interface in reversed(INTERFACES):
            page.select_option("#interface", interface)
            page.wait_for_selector(f"html[lang={interface}] #ratings")
            until(page, READY)
            assert page.locator("html").get_attribute("dir") == ("rtl" if interface == "ar" else "ltr")
            assert page.evaluate("document.documentElement.scrollWidth") == 360, interface
            assert page.evaluate(spilled) == [], interface
            assert page.evaluate(low) >= 44
        for facet in db.ASKED_FACETS:
            page.locator(f"[data-facet={facet}] label").nth(1).tap()
        until(page, "document.querySelector('#progress').value === 1")
        page.tap("#next")
        page.wait_for_selector(".tiles")
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_words_are_marked_and_unmarked_and_long_texts_fold(tmp_path: Path, browser: Any) -> None:
    long = {**responses(["fr"], 1, ["run"])[0], "text": "Le chat 🐈 sleeps ici.\n" + "Une ligne de plus.\n" * 60}
    source, scheme = response_file(tmp_path, [long]), tmp_path / "scheme.yaml"
    scheme.write_text("facets: [language]\nspans: [foreign]\nanswers: [{name: better, question: 'Mieux ?'}]")
    # Where the last letter of the question stands: right of the first in an Arabic page too.
    last = """() => { const text = document.querySelector('[for=answer-better] bdi').firstChild;
      const range = document.createRange();
      const at = (place) => { range.setStart(text, place); range.setEnd(text, place + 1);
        return range.getBoundingClientRect().left; }; return at(text.length - 1) > at(0); }"""
    campaign = open_campaign(source)
    link = link_in(campaigns.add(campaign, "Ana", ["fr"], scheme=scheme))
    select = """() => { const node = document.querySelector('#response').firstChild, range = document.createRange();
      range.setStart(node, node.data.indexOf('sleeps')); range.setEnd(node, node.data.indexOf(' ici'));
      getSelection().removeAllRanges(); getSelection().addRange(range); }"""
    with serving(source) as (port, _):
        page = enter(browser, port, link)
        assert page.locator(".folded").count() == 1
        page.get_by_role("button", name="Tout afficher").click()
        assert page.locator(".folded").count() == 0
        page.evaluate(select)
        page.locator("[data-mark=foreign]").click()
        assert page.locator("mark").inner_text() == "sleeps"
        page.fill("#answer-better", "dort")
        press(page, "Escape 1")
        go_on(page, "Enter")
        (record,) = records_of(campaign)
        assert record["detail"]["spans"] == [{"start": 10, "end": 16, "label": "foreign", "text": "sleeps"}]
        assert record["detail"]["answers"] == {"better": "dort"}
        page.go_back()
        page.select_option("#interface", "ar")
        page.wait_for_selector("html[dir=rtl] #marks bdi")
        assert page.evaluate(last)
        assert page.locator("#marks bdi").inner_text() == "sleeps"
        page.locator("#marks button").click()
        assert page.locator("mark").count() == 0
        until(page, "document.querySelector('#saved').textContent !== ''")
    assert "spans" not in records_of(campaign)[0]["detail"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(tmp_path: Path, browser: Any, scheme: str) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["fr"], 1), "Ana")
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link, color_scheme=scheme)
        press(page, "2 1 0 x")
        until(page, STILL)
        assert page.evaluate(CONTRAST) == []
        page.locator("[data-facet=fluency] input").first.focus()
        press(page, "0 g")
        until(page, STILL)
        assert page.evaluate(CONTRAST) == []
        press(page, "Escape o")
        page.wait_for_selector(".tiles")
        page.wait_for_load_state("load")  # scripts are run before the style sheet is there, but nothing is painted
        assert page.evaluate(CONTRAST) == []


def test_nothing_is_painted_before_its_colours_are_known(tmp_path: Path, browser: Any) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["fr"], 1), "Ana")
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link, color_scheme="dark")
        page.route("**/page.css", lambda route: (time.sleep(0.4), route.continue_()))
        page.reload()
        painted = page.evaluate(FIRST_PAINT)
        styled = page.evaluate("performance.getEntriesByType('resource').find((e) => /css$/.test(e.name)).responseEnd")
        assert painted >= styled >= 400


def test_a_screen_reader_hears_what_everything_is(tmp_path: Path, browser: Any) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["en"], 1, ["run"]), "Ana")
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link)
        assert page.evaluate("document.activeElement.tagName") == "H1"
        group = page.get_by_role("group", name="Fluency")
        assert group.get_by_role("radio", name="2 natural").count() == 1
        assert group.get_by_role("radio", name="Cannot judge").count() == 1
        for role, name in (("progressbar", "0 of 1"), ("textbox", "Comment"), ("combobox", "Language of this page")):
            assert page.get_by_role(role, name=name).count() == 1, role
        assert page.get_by_role("status").count() == 3
        fields = "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
        assert page.evaluate(f"{fields}.filter((field) => !field.labels.length).length") == 0
        page.keyboard.press("Tab")
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid"
        press(page, "?")
        assert page.get_by_role("dialog", name="Keys").is_visible()
        page.get_by_label("Use single-key shortcuts").uncheck()
        press(page, "Escape 2 x")
        assert page.locator("input[type=radio]:checked").count() == 0


def test_keys_work_on_a_layout_of_another_script_and_guidelines_open_at_any_time(tmp_path: Path, browser: Any) -> None:
    campaign, (link,) = campaign_of(tmp_path, responses(["ru"], 1, ["run"]), "Ana")
    send = "([key, code]) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, code, bubbles: true}))"
    with serving(campaign.path) as (port, _):
        page = enter(browser, port, link)
        page.evaluate(send, ["п", "KeyG"])
        assert page.get_by_role("dialog", name="Инструкция").is_visible()
        assert page.locator("#guidelines h2").first.inner_text() == "Инструкция"
        page.keyboard.press("Escape")
        page.evaluate(send, ["ч", "KeyX"])
        page.evaluate(send, ["é", "Digit2"])
        assert page.locator("[name=language]:checked").get_attribute("value") == "x"
        assert page.locator("[name=fluency]:checked").get_attribute("value") == "2"
        page.evaluate(send, ["с", "KeyC"])
        assert page.evaluate("document.activeElement.id") == "comment"


def test_every_built_in_language_has_every_word_of_the_page_and_its_guidelines() -> None:
    def keys(part: Any, path: str = "") -> set[str]:
        return set().union(*(keys(v, f"{path}/{k}") for k, v in part.items())) if isinstance(part, dict) else {path}

    def words(part: Any) -> list[str]:
        return [word for v in part.values() for word in words(v)] if isinstance(part, dict) else [part]

    headings = len(re.findall("<h[23]>", guidelines("en")[0]))
    for language in BUILT_IN:
        assert keys(TEXTS_OF_PAGE[language]) == keys(TEXTS_OF_PAGE["en"]), language
        assert all(word.strip() == word != "" for word in words(TEXTS_OF_PAGE[language])), language
        shown = guidelines(language)[0]
        assert len(re.findall("<h[23]>", shown)) == headings, language
        # A bold lead that CommonMark does not take for one, as **文。** before a letter, leaves its asterisks.
        assert "**" not in shown, language
        for level in "210":
            assert shown.count(f"<strong>{level}</strong>") == 6, language
    assert set(INTERFACES) == set(BUILT_IN)


def test_the_page_s_own_words_are_in_the_language_that_they_say() -> None:
    for language in set(INTERFACES) - {"en"}:
        _, detail, _ = rate_text(re.sub(r"[“«„‘「《].*?[”»“’」》]|<[^>]+>", " ", guidelines(language)[0]), language)
        assert detail["share"] > 0.97, (language, detail)  # the examples beside, in quotation marks, are foreign


def test_french_is_set_with_its_spaces() -> None:
    said = json.dumps(TEXTS_OF_PAGE["fr"], ensure_ascii=False) + guidelines("fr")[0]
    assert re.findall(r"\w [?!;:»]|« ", re.sub(r"<[^>]+>|&\w+;", "", said)) == []
