"""How fast the report's page opens and filters, in Chromium, with many responses: python benchmarks/report.py

Makes a synthetic study of RUNS × PROMPTS responses (a few hundred letters each in four languages, or in as many as
--languages says, with two ratings), writes its report, opens it from disk and measures what a reader waits for:

    opens     from the start of the navigation until the first responses are shown
    complete  until every response can be searched
    filter    from the change of a filter until the page has laid out what it leaves, the slowest of several
    search    the same for a word typed into the search box, over all runs
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from xlift.checkpoint import Checkpoint
from xlift.disk import write_jsonl
from xlift.report.page import write_pages
from xlift.report.reading import Material, material_of
from xlift.study.loading import parse_study
from xlift.workspace import RunFolder, open_study

LETTERS = {
    "en": "etaoinshrdlu", "fr": "esaitnrulodé", "pt": "aeosrindmtuç", "ru": "оеаинтсрвлкм", "de": "enisratdhulö",
    "es": "eaosrnidltcñ", "it": "eaionlrtscdù", "nl": "enatirodslgh", "tr": "aeinrlıkdmyş", "ar": "الينمتروبعدس",
    "hi": "कतनपमरलवसहयद", "zh": "的一是不了人我在有他这中",
    "ja": "いうのをたにかはしてとな", "ko": "이다는가에하고의지로도을", "id": "anietkdrsumg",
}  # fmt: skip
SPLITS = ("validation", "test")


def words(language: str, generator: random.Random) -> list[str]:
    """A vocabulary of made-up words."""
    letters = LETTERS[language]
    return ["".join(generator.choices(letters, k=generator.randint(2, 10))) for _ in range(4000)]


def text_of(vocabulary: list[str], generator: random.Random) -> str:
    """A reply of 40 to 90 words; a few of the words make up most of the text, as in any language."""
    count = generator.randint(40, 90)
    return " ".join(vocabulary[int(len(vocabulary) * generator.random() ** 3)] for _ in range(count)) + "."


def synthetic(runs: int, prompts: int, count: int, folder: Path) -> Material:
    """A study that nobody has run: an untuned model, and runs at several learning rates and amounts of data.

    The prompts are in the first `count` languages of LETTERS.
    """
    languages = list(LETTERS)[:count]
    tuned = {
        "learning_rate": [1e-5 * 1.1**power for power in range((runs - 1) // 3)],
        "instructions": [{"size": size} for size in (32, 64, 128)],
    }
    study = parse_study({"name": "synthetic", "training": tuned, "prompts": {"languages": languages}})
    workspace = open_study(study, folder)
    generator = random.Random(0)
    vocabularies = {language: words(language, generator) for language in languages}
    asked: list[Any] = []
    for number in range(prompts):
        request, language = number // count, languages[number % count]
        question = text_of(vocabularies[language], generator)[:90]
        asked.append(
            {"id": f"request-{request}.{language}", "parallel_id": f"request-{request}", "language": language,
             "split": SPLITS[request % 4 > 0], "category": "open", "messages": [{"role": "user", "content": question}]}
        )  # fmt: skip
    write_jsonl(workspace.prompts, asked)
    answered = []
    for run in workspace.runs:
        made = [_response(prompt, run, vocabularies, generator) for prompt in asked]
        checkpoint = Checkpoint(study, run, 0, tuple(asked))
        ratings = [rating for one in made for rating in _ratings(one, generator)]
        vars(checkpoint).update(responses=made, ratings=ratings, margins={})
        answered.append(checkpoint)
    return material_of(workspace, answered)


def _response(prompt: Any, run: RunFolder, vocabularies: dict[str, list[str]], generator: random.Random) -> Any:
    facts = {"run": run.id, "step": 0, "finish_reason": "stop", "prompt_tokens": 20, "new_tokens": 90}
    return {**prompt, **facts, "signature": "greedy", "text": text_of(vocabularies[prompt["language"]], generator)}


def _ratings(response: Any, generator: random.Random) -> list[Any]:
    facts = {key: response[key] for key in ("id", "language", "run", "step")} | {"response": "0"}
    value = generator.choice([0, 1, 2, 2, 2, None])
    told: dict[str, Any] = {"reason": "too little text"} if value is None else {}
    if value == 1:
        told = {"detail": {"spans": [{"start": 4, "end": 11, "language": "en"}]}}
    language = {**facts, "facet": "language", "rater": "language", "value": value, "signature": "v3", **told}
    return [language, {**facts, "facet": "fluency", "rater": "fluency", "value": 2, "signature": "v1"}]


# Looked up by id: a search through the whole page for what is not there yet would itself slow its opening.
OPENED = """async () => {
  while (!document.getElementById("cards")?.firstElementChild) await new Promise(done => setTimeout(done, 10));
  return performance.now() / 1000;
}"""
COMPLETE = """async () => {
  while (document.getElementById("cards").dataset.read !== "all") await new Promise(done => setTimeout(done, 10));
  return performance.now() / 1000;
}"""
FILTER = """async ([name, value]) => {
  const box = document.getElementById(name), start = performance.now();
  box.value = value;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  while (document.querySelector('#cards[aria-busy="true"]')) await new Promise(done => setTimeout(done));
  document.body.offsetHeight;
  return performance.now() - start;
}"""
FILTERS = [("language", "ru"), ("split", "test"), ("facet", "flanguage"), ("value", "0"), ("value", "m"), ("value", "")]


def measure(page: Path) -> dict[str, float]:
    """Seconds until the page is open and complete, milliseconds of its slowest filter and search."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        tab = browser.new_page()
        tab.goto(page.resolve().as_uri(), wait_until="commit")
        found = {"opens s": tab.evaluate(OPENED), "complete s": tab.evaluate(COMPLETE)}
        tab.evaluate("document.querySelectorAll('#runs input').forEach(box => { box.checked = true; })")
        searches = [("search", text) for text in ("e", "ta", "zzzzzz", "оеа", "")]
        found["filter ms"] = max(tab.evaluate(FILTER, list(one)) for one in FILTERS)
        for name in ("language", "split", "facet", "value"):
            tab.evaluate(FILTER, [name, ""])
        found["search ms"] = max(tab.evaluate(FILTER, list(one)) for one in searches)
        browser.close()
    return found


def main() -> None:
    """Prints one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--languages", type=int, default=4, choices=range(4, len(LETTERS) + 1))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        material = synthetic(arguments.runs, arguments.prompts, arguments.languages, Path(folder))
        start = time.monotonic()
        page = write_pages(material)
        row: dict[str, Any] = {"responses": sum(len(one.responses) for one in material.answered)}
        row |= {"write s": time.monotonic() - start, "file MB": page.stat().st_size / 1e6} | measure(page)
    print(" | ".join(row))
    print(" | ".join(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))


if __name__ == "__main__":
    main()
