"""What a campaign asks, practice, and the coordinator's page: the application itself, on a database of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from annotation_fixtures import HOSTILE, link_in, open_campaign, records_of, response_file, responses
from starlette.testclient import TestClient

from xlift.annotation import campaign as campaigns
from xlift.annotation import coordination
from xlift.annotation import database as db
from xlift.annotation.app import build_app
from xlift.annotation.campaign import Plan
from xlift.annotation.door import ANNOTATOR_COOKIE, csrf_of
from xlift.annotation.rendering import formatted
from xlift.annotation.scheme import Scheme, guidelines_of, read_scheme, shown_facets
from xlift.annotation.words import TEXTS
from xlift.errors import ConfigError, DataError

OWN = """
facets:
  - fluency
  - name: politeness
    title: {en: Politeness, fr: Politesse}
    question: {en: "Is it polite?"}
    help: A tone that could be taken amiss is 1.
    scale: {3: polite, 2: {en: neutral, fr: neutre}, 1: rude}
spans: [{name: amiss, title: taken amiss, facet: politeness}]
answers: [{name: better, question: "What would you have written?"}]
guidelines: {en: own.md, fr: "# Consignes à nous"}
"""
CONTROL = {"id": "c1", "language": "fr", "prompt": "2 + 2 ?", "text": "Cinq.", "practice": True, "why": "C’est quatre."}


class Reader:
    """Somebody with a personal link, who has read the guidelines."""

    def __init__(self, campaign: campaigns.Campaign, told: str) -> None:
        self.token = link_in(told).rsplit("/", 1)[1]
        self.client = TestClient(build_app(campaign.database), "http://127.0.0.1")
        self.client.cookies.set(ANNOTATOR_COOKIE, self.token)
        self.client.post("/begin", data={"csrf": csrf_of(self.token)})

    def open(self, path: str = "/") -> Any:
        return self.client.get(path)

    def task(self) -> str:
        return str(self.open().url).rsplit("/", 1)[1]

    def save(self, task: str, **values: Any) -> list[int]:
        sent = {"X-CSRF-Token": csrf_of(self.token), "Content-Type": "application/json"}
        bodies = [json.dumps({"field": field, "value": value, "seconds": 2}) for field, value in values.items()]
        return [self.client.post(f"/task/{task}", content=body, headers=sent).status_code for body in bodies]


def begun(folder: Path, records: list[dict[str, Any]], scheme: str = "", **options: Any) -> tuple[Any, Reader]:
    path = None
    if scheme:
        path = folder / "scheme.yaml"
        path.write_text(scheme, encoding="utf-8")
        (folder / "own.md").write_text("# Our guidelines\n\nBe kind.", encoding="utf-8")
    campaign = open_campaign(response_file(folder, records))
    plan = Plan(per_response=1, qualify=options.pop("qualify", None))
    return campaign, Reader(campaign, campaigns.add(campaign, "Ana", ["fr"], plan, scheme=path, **options))


def control_file(folder: Path, **expected: Any) -> Path:
    path = folder / "controls.jsonl"
    path.write_text(json.dumps({**CONTROL, "expected": expected}) + "\n", encoding="utf-8")
    return path


def test_the_first_visit_shows_the_guidelines_and_only_that_one(tmp_path: Path) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 1)))
    token = link_in(campaigns.add(campaign, "Ana", ["fr"])).rsplit("/", 1)[1]
    client = TestClient(build_app(campaign.database), "http://127.0.0.1")
    client.cookies.set(ANNOTATOR_COOKIE, token)
    assert client.get("/").url.path == "/guidelines"
    assert client.post("/begin", data={"csrf": "forged"}).status_code == 403
    assert client.get("/").url.path == "/guidelines"
    assert client.post("/begin", data={"csrf": csrf_of(token)}).url.path.startswith("/task/")
    assert 'action="/begin"' not in client.get("/guidelines").text


def test_a_scheme_of_one_s_own_decides_what_is_asked_shown_saved_and_exported(tmp_path: Path) -> None:
    campaign, ana = begun(tmp_path, responses(["fr"], 1, ["run"]), OWN)
    page = ana.open().text
    for said in ("Politesse", "neutre", "Is it polite?", "What would you have written?", "Consignes à nous", "amiss"):
        assert said in page
    assert "Harmless" not in page
    assert "Innocuité" not in page
    task = ana.task()
    span = {"start": 0, "end": 5, "label": "amiss"}
    assert ana.save(task, fluency=2, politeness=3, spans=[span], answers={"better": "Autrement."}) == [200] * 4
    assert ana.open().url.path == "/overview"
    found = {record["facet"]: record for record in records_of(campaign)}
    assert found["politeness"]["value"] == 3
    assert found["politeness"]["scale"] == [1, 3]
    assert "scale" not in found["fluency"]
    assert found["politeness"]["detail"]["spans"] == [{**span, "text": "Parce"}]
    assert "spans" not in found["fluency"]["detail"]
    assert found["fluency"]["detail"]["answers"] == {"better": "Autrement."}
    for field, value in {
        "politeness": 0,
        "harmlessness": 2,
        "answers": {"other": "x"},
        "spans": [{**span, "end": 10_000}],
        "feedback": True,
    }.items():
        assert ana.save(task, **{field: value}) == [422], field
    (tmp_path / "other.yaml").write_text("facets: [fluency]")
    with pytest.raises(ConfigError, match="another scheme"):
        campaigns.add(campaign, "Ben", ["fr"], scheme=tmp_path / "other.yaml")


def test_every_fault_of_a_scheme_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scheme.yaml"
    path.write_text("facets: [fluencee, {name: kind, title: Kind}]\nspans: [odd]\npair: true\n")
    with pytest.raises(ConfigError) as error:
        read_scheme(path)
    told = " ".join(error.value.problems)
    for said in ("'fluencee' is not built in", "'kind' is not built in", "spans.0", "unknown setting 'pair'"):
        assert said in told
    path.write_text("facets: [fluency]\nspans: [foreign]\n")
    with pytest.raises(ConfigError, match="belongs to 'language'"):
        read_scheme(path)
    path.write_text("guidelines: {en: nowhere.md, xx: text}")
    with pytest.raises(ConfigError, match=r"nowhere\.md: no such file"):
        read_scheme(path)


def test_without_a_scheme_all_is_as_built_in() -> None:
    facets = shown_facets(Scheme(), "ar")
    assert [facet.name for facet in facets] == list(db.ASKED_FACETS)
    assert [value for value, _ in facets[0].levels] == [2, 1, 0]
    assert "الإرشادات" in guidelines_of(Scheme(), "ar")[0]


def test_a_pair_is_blind_and_its_record_names_the_run_that_was_shown_first(tmp_path: Path) -> None:
    campaign, ana = begun(tmp_path, responses(["fr"], 6), "pairs: true")
    firsts = set()
    for _ in range(6):
        page, task = ana.open().text, ana.task()
        assert page.count('class="turn response"') == 2
        assert "lora-r16" not in page
        assert "base-5e" not in page
        assert ana.save(task, preference=2) == [200]
    assert ana.open().url.path == "/overview"
    records = records_of(campaign)
    assert len(records) == 6
    for record in records:
        assert {record["run"], record["other"]} == {"lora-r16-lr2e-4-1a2b3c4d", "base-5e6f7a8b"}
        firsts.add(record["run"])
    assert len(firsts) == 2  # each run stands first now and then


def test_practice_comes_first_tells_what_was_expected_and_then_stands(tmp_path: Path) -> None:
    controls = control_file(tmp_path, accuracy=0, fluency=[1, 2])
    campaign, ana = begun(tmp_path, responses(["fr"], 2), controls=controls, qualify=0.7)
    task = ana.task()
    assert "Cinq." in ana.open(f"/task/{task}").text
    assert ana.open(f"/task/{task}/feedback").status_code == 404  # not before it is rated
    other = next(one for one in _tasks(campaign) if one != task)
    assert ana.open(f"/task/{other}").url.path == f"/task/{task}"
    assert ana.save(other, fluency=2) == [404]
    ana.save(task, language=2, fluency=2, helpfulness=0, accuracy=2, coherence=2, harmlessness=2)
    assert "C’est quatre." in ana.open(f"/task/{task}/feedback").text
    assert ana.save(task, accuracy=0) == [422]
    assert "trop souvent" in ana.open().text
    assert ana.save(other, fluency=2) == [404]
    assert "1 of 2" in campaigns.status(campaign)
    campaigns.admit(campaign, "Ana")
    assert ana.task() in set(_tasks(campaign)) - {task}
    assert records_of(campaign) == []  # practice is no rating


def test_who_meets_what_is_expected_goes_on_and_cannot_judge_is_no_way_around(tmp_path: Path) -> None:
    controls = control_file(tmp_path, accuracy=0)
    campaign, ana = begun(tmp_path, responses(["fr"], 1, ["run"]), controls=controls, qualify=1.0)
    ben = Reader(campaign, campaigns.add(campaign, "Ben", ["fr"], Plan(per_response=2)))
    task = ana.task()
    ana.save(task, language=2, fluency=2, helpfulness=0, accuracy=0, coherence=2, harmlessness=2)
    ben.save(task, response={"cannot": "tired"})
    assert ana.task() != task
    assert "trop souvent" in ben.open().text


def _tasks(campaign: campaigns.Campaign) -> list[str]:
    with campaign.database.read.begin() as connection:
        return [row.task for row in db.own_tasks(connection, 1)]


def test_whoever_is_done_gets_a_code_that_the_coordinator_sees_too(tmp_path: Path) -> None:
    campaign, ana = begun(tmp_path, responses(["fr"], 1, ["run"]))
    with campaign.database.read.begin() as connection:
        code = db.completion_code(connection, 1)
    assert code not in ana.open("/overview").text
    assert code not in campaigns.status(campaign)
    ana.save(ana.task(), **dict.fromkeys(db.ASKED_FACETS, 2))
    assert code in ana.open("/overview").text
    assert code in campaigns.status(campaign)
    assert " 12 " in f"{campaigns.status(campaign)} "  # seconds that the response took


def coordinator(campaign: campaigns.Campaign) -> tuple[TestClient, str]:
    token = campaigns.coordinate(campaign).rsplit("/", 1)[1]
    client = TestClient(build_app(campaign.database), "http://127.0.0.1")
    assert client.get(f"/coordinate/{token}", follow_redirects=False).headers["location"] == "/coordination/welcome"
    return client, token


def test_the_coordinator_sees_how_far_all_are_and_pauses_extends_and_revokes(tmp_path: Path) -> None:
    campaign, ana = begun(tmp_path, responses(["fr", "ru"], 2))
    ana.save(ana.task(), fluency=2)
    client, token = coordinator(campaign)
    page = client.get("/coordination").text
    assert "Ana" in page
    assert "Progress" in page
    assert "<script" not in page

    def act(action: str, **form: str) -> Any:
        return client.post(f"/coordination/{action}", data={"csrf": csrf_of(token), **form})

    assert act("pause").status_code == 200
    assert ana.open().status_code == 503
    assert ana.save("0", fluency=2) == [503]
    act("resume")
    assert ana.open().status_code == 200
    before = len(_tasks(campaign))
    act("languages", name="Ana", languages="Russian")
    assert len(_tasks(campaign)) == 2 * before
    assert "nolanguage" in act("languages", name="Ana", languages="nolanguage").text
    assert act("admit", name="<b>Nobody").status_code == 422
    assert "<b>Nobody" not in act("admit", name="<b>Nobody").text
    assert act("nothing").status_code == 404
    act("revoke", name="Ana")
    assert ana.open().status_code == 403


def test_the_coordinator_s_page_speaks_the_browser_s_language_until_another_is_chosen(tmp_path: Path) -> None:
    campaign, _ = begun(tmp_path, responses(["fr"], 1))
    client, token = coordinator(campaign)
    for language, texts in TEXTS.items():
        said, page = texts["coordination"], client.get("/coordination", headers={"Accept-Language": language}).text
        assert f'<html lang="{language}" dir="{"rtl" if language == "ar" else "ltr"}">' in page
        for key in ("title", "open", "pause", "annotator", "add", "admit", "revoke", "progress", "rated", "link"):
            assert said[key] in page, (language, key)
        assert not re.search(r"\{\w+\}", page)

    def act(action: str, **form: str) -> str:
        data = {"csrf": csrf_of(token), **form}
        return client.post(f"/coordination/{action}", data=data, headers={"Accept-Language": "fr"}).text

    assert TEXTS["ar"]["coordination"]["open"] in act("interface", interface="ar")
    assert TEXTS["ar"]["coordination"]["open"] in act("interface", interface="none")
    assert TEXTS["ar"]["coordination"]["no_languages"] in act("languages", name="Ana", languages=" ، ")
    assert "klingon · x1" in act("languages", name="Ana", languages="klingon، fr, x1")
    assert TEXTS["ar"]["coordination"]["nobody"].format(text="Ivan") in act("languages", name="Ivan", languages="fr")
    assert 'lang="ar" dir="rtl"' in client.get("/coordination").text
    assert "open until" in campaigns.status(campaign)  # the command line stays English


def test_only_the_coordinator_s_own_link_coordinates(tmp_path: Path) -> None:
    campaign, ana = begun(tmp_path, responses(["fr"], 1))
    client, token = coordinator(campaign)
    for cookies in (
        {},
        {coordination.COORDINATOR_COOKIE: ana.token},
        {coordination.COORDINATOR_COOKIE: "wrong"},
        {ANNOTATOR_COOKIE: token},
    ):
        stranger = TestClient(build_app(campaign.database), "http://127.0.0.1", cookies=cookies)
        for csrf in (csrf_of(ana.token), csrf_of(token)):
            assert stranger.get("/coordination").status_code == 403
            assert stranger.post("/coordination/revoke", data={"csrf": csrf, "name": "Ana"}).status_code == 403
    for csrf in ("", csrf_of(ana.token), "é"):
        assert client.post("/coordination/revoke", data={"csrf": csrf, "name": "Ana"}).status_code == 403
    assert client.get("/overview").status_code == 403  # the coordinator is no annotator
    assert client.post("/coordination/pause", content=b"x" * 70_000).status_code == 413
    campaigns.coordinate(campaign)  # a new link ends the one before
    assert client.get("/coordination").status_code == 403
    assert ana.open().status_code == 200
    with campaign.database.read.begin() as connection:
        assert token not in str(db.read_setting(connection, "coordinator"))


def test_adding_a_language_in_which_nothing_is_to_be_read_is_told(tmp_path: Path) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 1)))
    assert "nothing to read in ar; the responses are in fr" in campaigns.add(campaign, "Ana", ["fr", "ar"])
    assert "warning" not in campaigns.add(campaign, "Ben", ["fr"])
    assert "nothing to read in ru" in campaigns.extend(campaign, "Ben", ["ru"])


def test_a_share_to_qualify_by_without_practice_is_told(tmp_path: Path) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 1)))
    assert "without practice" in campaigns.add(campaign, "Ana", ["fr"], Plan(qualify=0.7))
    told = campaigns.add(campaign, "Ben", ["fr"], controls=control_file(tmp_path, accuracy=0))
    assert "without practice" not in told


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**bold** and `code`", "<strong>bold</strong>"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", '<td dir="auto">1</td>'),
        ("```py\nprint(1)\n```", '<pre><code dir="ltr">print(1)'),
        ("[here](https://example.org/?a=1&b=2)", "<u>here</u> (https://example.org/?a=1&amp;b=2)"),
    ],
)
def test_markdown_is_shown_as_readers_expect(text: str, shown: str) -> None:
    assert shown in str(formatted(text))


@pytest.mark.parametrize("text", ["Plain.\nTwo lines.", HOSTILE, "", "2 * 3 * 4 < 5 & 6"])
def test_a_text_without_markdown_is_shown_as_it_is(text: str) -> None:
    assert formatted(text) is None


def test_nothing_in_a_formatted_response_runs_loads_or_leads_away() -> None:
    hostile = [
        "![x](https://evil.example/a.png) **a**",
        "[x](javascript:alert(1)) [y](data:text/html,x) *a*",
        "<img src=x onerror=alert(1)> <style>*{}</style> <!-- --> **a**",
        '[x](https://e.example/"onmouseover="alert(1)) **a**',
        '```"><script>alert(1)</script>\nx\n```',
        '<https://e.example/"><b>> **a**',
    ]
    for text in hostile:
        found = str(formatted(text))
        tags = re.findall(r"<[^>]*>", found)
        allowed = r'</?(p|strong|em|u|code|pre)( dir="(auto|ltr)")?>'
        assert tags, text
        assert all(re.fullmatch(allowed, tag) for tag in tags), found


def test_people_rate_the_files_of_other_programs_as_they_are(tmp_path: Path) -> None:
    table = tmp_path / "answers.csv"
    table.write_text("question,answer,language\nPourquoi ?,Parce que.,fr\nPor quê?,Porque sim.,pt\n", encoding="utf-8")
    batch = tmp_path / "eval.jsonl"
    body = {"choices": [{"message": {"role": "assistant", "content": "Parce que."}, "finish_reason": "stop"}]}
    batch.write_text(json.dumps({"custom_id": "a.fr", "response": {"status_code": 200, "body": body}}) + "\n")
    added = campaigns.add(campaigns.open_campaign(table), "Ana", ["fr", "pt"])
    assert "2 responses for Ana" in added
    texts = [one["text"] for one in campaigns.open_campaign(table).responses()]
    assert texts == ["Parce que.", "Porque sim."]
    assert [one["text"] for one in campaigns.open_campaign(batch).responses()] == ["Parce que."]
    with pytest.raises(DataError, match="no such file"):
        campaigns.open_campaign(tmp_path / "none.csv")
