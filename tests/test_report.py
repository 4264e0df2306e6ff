"""The report in a real browser, with hostile responses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xlift.records import response_signatures, write_jsonl
from xlift.report.page import consistency_table, share_table
from xlift.results import study_prompts
from xlift.stages import prepare, rate_stage, report_stage
from xlift.study import parse_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> The answer is in English & "quoted" text.'
GOOD = {
    "en": "The leaves turn yellow because the days become shorter.",
    "fr": "Les feuilles jaunissent parce que les jours raccourcissent.",
}


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    study = parse_study(
        {
            "name": "<b>hostile".replace("<b>", ""),
            "question": "<script>alert(3)</script> Is it safe?",
            "prompts": {"languages": ["en", "fr"], "validation": {"size": 1}, "test": {"size": 4}},
            "training": {"learning_rate": [1e-4, 1e-3]},
            "report": {"bootstrap": 100},
        }
    )
    folder = prepare(study, tmp_path / "study")
    prompts = study_prompts(folder)
    signatures = response_signatures(prompts, study.decoding.signature)
    for number, run in enumerate(folder.runs):
        step = 0 if run.config.untuned else 5
        if step:
            run.checkpoint(step).mkdir(parents=True)
        made = [
            {
                **prompt,
                "run": run.id,
                "step": step,
                "text": HOSTILE if number == 2 and prompt["language"] == "fr" else GOOD[prompt["language"]],
                "finish_reason": "stop",
                "prompt_tokens": 5,
                "new_tokens": 9,
                "signature": signatures[prompt["id"]],
            }
            for prompt in prompts
        ]
        write_jsonl(run.responses(step), made)
    rate_stage(folder)
    report_stage(folder)
    return folder


def test_the_table_counts_what_was_answered_in_the_users_language(workspace: Any) -> None:
    cells = {(row["run"], row["language"]): row["mean"] for row in share_table(workspace, "language")}
    assert cells == {
        ("base", "en"): 1.0,
        ("base", "fr"): 1.0,
        ("lora-r16-lr1e-4", "en"): 1.0,
        ("lora-r16-lr1e-4", "fr"): 1.0,
        ("lora-r16-lr1e-3", "en"): 1.0,
        ("lora-r16-lr1e-3", "fr"): 0.0,
    }


def test_the_page_holds_no_address_to_load_from(workspace: Any) -> None:
    page = (workspace.report / "index.html").read_text(encoding="utf-8")
    assert "src=x" not in page.replace("\\u003cimg src=x", "")
    assert "<script>alert" not in page
    assert "<link" not in page
    assert 'src="http' not in page


@pytest.fixture
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        yield started
        started.close()


def test_the_report_works_in_a_browser_and_hostile_text_is_inert(workspace: Any, browser: Any) -> None:
    page = browser.new_page()
    noise: list[str] = []
    page.on("console", lambda message: noise.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: (noise.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: None if request.url.startswith("file:") else noise.append(request.url))
    page.goto((workspace.report / "index.html").resolve().as_uri())
    assert page.locator("article.prompt").count() == 10
    assert page.locator("figure svg").count() == 1
    assert page.get_by_text("<img src=x onerror=alert(2)>").count() == 5
    page.select_option("#language", "fr")
    page.select_option("#split", "test")
    assert page.locator("article.prompt").count() == 4
    page.select_option("#value", "0")
    assert page.locator("#count").inner_text() == "4 of 10 prompts"
    # What is marked as foreign is exactly what the rating says, and no letter of the response is lost.
    card = page.locator("article.prompt").first
    marked = card.locator(".answer").last
    assert marked.inner_text().strip() == HOSTILE
    assert "answer is in English" in " ".join(card.locator("mark").all_inner_texts())
    assert card.locator("mark").count() >= 1
    page.fill("#search", "no such words")
    assert page.locator("article.prompt").count() == 0
    assert noise == []


def test_facts_are_compared_over_languages(tmp_path: Path) -> None:
    source = {"source": "builtin:facts", "size": 3}
    settings = {"languages": ["en", "fr"], "validation": source, "test": source}
    study = parse_study({"name": "facts", "prompts": settings, "training": {}, "raters": ["answers"]})
    folder = prepare(study, tmp_path / "study")
    base, prompts = folder.runs[0], study_prompts(folder)
    signatures = response_signatures(prompts, study.decoding.signature)
    facts = {"run": base.id, "step": 0, "finish_reason": "stop", "prompt_tokens": 5, "new_tokens": 9}
    first = next(prompt["parallel_id"] for prompt in prompts if prompt["split"] == "test")
    made = []
    for prompt in prompts:
        right = prompt["language"] == "en" or prompt["parallel_id"] == first
        text = prompt["reference"] if right else "Je ne sais pas."
        made.append({**prompt, **facts, "text": text, "signature": signatures[prompt["id"]]})
    write_jsonl(base.responses(0), made)
    rate_stage(folder)
    report_stage(folder)
    (row,) = [row for row in consistency_table(folder) if row["rated"]]
    assert (row["first"], row["second"], row["rated"]) == ("en", "fr", 3)
    assert [row[key] for key in ("alike", "first_only", "lost")] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    page = (folder.report / "index.html").read_text(encoding="utf-8")
    assert "right in English, wrong here" in page
    assert (folder.report / "facts.csv").is_file()
