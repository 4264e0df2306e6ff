"""The annotation server over real HTTP, on SQLite and on a real PostgreSQL: who may enter, and that nothing is lost."""

from __future__ import annotations

import http.client
import json
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from annotation_fixtures import (
    HOSTILE,
    RUNS,
    Visitor,
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
from xlift.errors import ConfigError, UserError
from xlift.rating import text_fingerprint

GOOD = dict.fromkeys(db.ASKED_FACETS, 2)


def stored(campaign: campaigns.Campaign) -> list[Any]:
    with campaign.database.read.begin() as connection:
        return list(connection.execute(sa.select(db.judgements).order_by(db.judgements.c.id)))


# The database


def test_migrations_make_exactly_the_tables_and_leave_data_alone(tmp_path: Path, url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    source = response_file(tmp_path, responses(["fr"], 2))
    campaigns.add(open_campaign(source, url), "Ana", ["fr"])
    again = open_campaign(source, url)
    with again.database.read.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), db.metadata) == []
    assert "Ana" in campaigns.status(again)
    with again.database.write.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'of_tomorrow'")
    with pytest.raises(ConfigError, match="another xlift"):
        open_campaign(source, url)


def test_what_cannot_be_rated_leaves_no_database_behind(tmp_path: Path) -> None:
    for content in ("", "hello\n", '{"a": 1}\n'):
        (tmp_path / "responses.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"responses\.jsonl"):
            open_campaign(tmp_path / "responses.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["responses.jsonl"]


def test_a_damaged_database_is_named_and_never_used(tmp_path: Path) -> None:
    source, path = response_file(tmp_path, responses(["fr"], 40)), tmp_path / "kept.sqlite"
    campaign = open_campaign(source, db.sqlite_url(path))
    campaigns.add(campaign, "Ana", ["fr"])
    with campaign.database.read.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    campaign.database.read.dispose()
    whole, page = path.read_bytes(), 4096
    cut = [whole[:size] for size in (50, 5000, len(whole) - page)]
    blank = [whole[:at] + bytes(page) + whole[at + page :] for at in range(0, len(whole), page)]
    for number, content in enumerate([b"no database", *cut, *blank]):
        damaged = tmp_path / f"damaged{number}.sqlite"
        damaged.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"damaged{number}\.sqlite: "):
            open_campaign(source, db.sqlite_url(damaged))


def test_several_processes_may_open_a_new_database_at_once(tmp_path: Path, url: str) -> None:
    source = response_file(tmp_path, responses(["fr"], 2))
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_campaign(source, url), range(8)))
    assert all("no annotator" in campaigns.status(one) for one in opened)


def test_the_last_click_counts_and_every_click_is_kept(two: dict[str, Any]) -> None:
    visitor = two["visitors"][0]
    task = visitor.open()[0].rsplit("/")[-1]
    visitor.rate(task, {"fluency": 2})
    visitor.rate(task, {"fluency": {"cannot": ""}})
    visitor.rate(task, {"fluency": 1})
    assert [json.loads(row.value) for row in stored(two["campaign"])] == [2, {"cannot": ""}, 1]
    assert all(row.time and row.guidelines for row in stored(two["campaign"]))
    (record,) = records_of(two["campaign"])
    assert (record["facet"], record["value"], record["rater"]) == ("fluency", 1, "human:Ana")
    assert record["detail"] == {"seconds": 4.5}
    assert re.fullmatch(r"human v1\|guidelines [0-9a-f]{8}\|fr", record["signature"])


# Who may enter, and what they see


def test_without_a_valid_token_there_is_one_answer_for_everything(two: dict[str, Any]) -> None:
    nobody, port = Visitor(two["port"]), two["port"]
    task = two["visitors"][0].tasks()[0]
    said = set()
    for path in ("/", "/overview", "/guidelines", f"/task/{task}", "/task/0000", "/nothing", "/enter/wrong"):
        status, _, text = nobody.ask("GET", path)
        said.add((status, text))
    wrong = Visitor(port)
    wrong.cookie = "xlift_annotator=wrong"
    said.add((wrong.ask("GET", "/")[0], wrong.ask("GET", "/overview")[2]))
    assert len(said) == 1
    assert next(iter(said))[0] == 403
    assert nobody.save(task, "fluency", 2)[0] == 403
    assert stored(two["campaign"]) == []


def test_the_link_sets_a_strict_cookie_and_leaves_no_token_in_the_address(two: dict[str, Any]) -> None:
    link = two["links"][0]
    status, headers, _ = Visitor(two["port"]).ask("GET", link)
    cookie = headers["set-cookie"].lower()
    assert status == 303
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert link.rsplit("/", 1)[1] not in headers["location"]
    assert headers["referrer-policy"] == "no-referrer"
    with two["campaign"].database.read.begin() as connection:
        kept = "".join(str(row) for row in connection.execute(sa.select(db.annotators)))
    assert link.rsplit("/", 1)[1] not in kept


def test_behind_https_the_cookie_is_secure(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from xlift.annotation.app import build_app

    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 1)))
    link = link_in(campaigns.add(campaign, "Ana", ["fr"], address="https://rate.example.org/"))
    client = TestClient(build_app(campaign.database, "https://rate.example.org"), base_url="https://rate.example.org")
    assert "secure" in client.get(link, follow_redirects=False).headers["set-cookie"].lower()


def test_a_withdrawn_link_opens_nothing_and_a_renewed_one_does(two: dict[str, Any]) -> None:
    visitor, campaign = two["visitors"][0], two["campaign"]
    task = visitor.open()[0].rsplit("/")[-1]
    visitor.rate(task, {"fluency": 2})
    campaigns.revoke(campaign, "Ana")
    assert visitor.ask("GET", "/")[0] == 403
    assert visitor.save(task, "fluency", 0)[0] == 403
    assert len(records_of(campaign)) == 1
    new = Visitor(two["port"], link_in(campaigns.renew(campaign, "Ana")))
    assert task in new.tasks()
    assert len(new.tasks()) == 6
    assert Visitor(two["port"]).ask("GET", two["links"][0])[0] == 403


def test_nobody_reaches_the_ratings_of_another(tmp_path: Path, url: str) -> None:
    source = response_file(tmp_path, responses(["fr"], 4))
    campaign = open_campaign(source, url)
    links = [link_in(campaigns.add(campaign, name, ["fr"], Plan(per_response=1))) for name in ("Ana", "Ben")]
    with serving(source, url) as (port, _):
        ana, ben = (Visitor(port, link) for link in links)
        ben.open()
        for task in ana.tasks():
            ana.open(f"/task/{task}")
            ana.rate(task, {"comment": "only mine"})
            assert ben.ask("GET", f"/task/{task}")[0] == 404
            assert ben.save(task, "comment", "overwritten")[0] == 404
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            assert ben.ask("POST", f"/task/{task}/skip", f"csrf={ben.csrf}".encode(), form)[0] == 404
        assert {json.loads(row.value) for row in stored(campaign)} == {"only mine"}
        assert "only mine" not in "".join(ben.open(f"/task/{task}")[1] for task in ben.tasks())


def test_run_and_model_are_nowhere_on_the_page(two: dict[str, Any]) -> None:
    visitor = two["visitors"][0]
    seen = visitor.open("/overview")[1] + "".join(visitor.open(f"/task/{task}")[1] for task in visitor.tasks())
    task = visitor.tasks()[0]
    seen += visitor.save(task, "fluency", 2)[1]
    for hidden in (*RUNS, "lora", "fr-0", "fr-1", text_fingerprint(responses(["fr"], 1)[0])):
        assert hidden not in seen


def test_a_change_without_the_page_s_token_is_refused(two: dict[str, Any]) -> None:
    ana, ben = two["visitors"]
    task = ana.open()[0].rsplit("/")[-1]
    ben.open()
    for forged in ("", "0" * 64, ben.csrf, "é"):
        assert ana.save(task, "fluency", 2, **{"X-CSRF-Token": forged.encode().decode("latin-1")})[0] == 403
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert ana.ask("POST", f"/task/{task}/skip", f"csrf={forged}".encode(), form)[0] == 403
        assert ana.ask("POST", "/interface", f"csrf={forged}&interface=ru".encode(), form)[0] == 403
    assert ana.save(task, "fluency", 2, **{"Content-Type": "text/plain"})[0] == 415
    assert stored(two["campaign"]) == []


def test_a_hostile_response_is_text_and_nothing_inline_may_run(tmp_path: Path, url: str) -> None:
    hostile = {**responses(["fr"], 1)[0], "text": HOSTILE, "messages": [{"role": "user", "content": HOSTILE}]}
    source = response_file(tmp_path, [hostile])
    link = link_in(campaigns.add(open_campaign(source, url), "<b>Ana</b>'--", ["fr"]))
    with serving(source, url) as (port, _):
        visitor = Visitor(port, link)
        address, page = visitor.open()
        visitor.rate(address.rsplit("/")[-1], {"comment": "</textarea><script>alert(2)</script>\x00\ud800"})
        page += visitor.open(address)[1]
        assert re.findall(r"<script(?! src=\"/static/page.js\" defer>)[^>]*>", page) == []
        assert "<img" not in page
        assert "<b>Ana" not in page
        assert "{{ 7*7 }}" in page
        assert not re.findall(r"<[^>]+\s(?:on\w+|style)\s*=", page)
        policy = visitor.ask("GET", address)[1]["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy


def test_no_path_leads_out_of_the_static_files(two: dict[str, Any]) -> None:
    climbing = ("..", "%2e%2e", "%2e%2e%2f%2e%2e", "..%2f..", "..\\..", "/", "%00", "....//..")
    paths = [f"/{at}/{up}/{name}" for at in ("static", "task") for up in climbing for name in ("app.py", "etc/passwd")]
    for visitor in (Visitor(two["port"]), two["visitors"][0]):
        for path in (*paths, "/static/../../../../../../etc/passwd", "/../../etc/passwd"):
            status, _, text = visitor.ask("GET", path)
            assert status in {400, 403, 404}, path
            assert "import" not in text
            assert "root:" not in text


def test_sql_in_ids_tokens_and_values_is_only_text(two: dict[str, Any]) -> None:
    visitor = two["visitors"][0]
    task = visitor.open()[0].rsplit("/")[-1]
    for sql in ("'%20OR%20'1'='1", "x';DROP%20TABLE%20tasks;--", "%25", "0%20UNION%20SELECT%201"):
        assert visitor.ask("GET", f"/task/{sql}")[0] == 404
        assert Visitor(two["port"]).ask("GET", f"/enter/{sql}")[0] == 403
    visitor.rate(task, {"comment": "'); DROP TABLE judgements; --"})
    assert visitor.save(task, "fluency'; --", 2)[0] == 422
    assert [json.loads(row.value) for row in stored(two["campaign"])] == ["'); DROP TABLE judgements; --"]
    assert len(visitor.tasks()) == 6


def test_what_is_too_large_or_no_judgement_is_refused(two: dict[str, Any]) -> None:
    visitor = two["visitors"][0]
    task = visitor.open()[0].rsplit("/")[-1]
    sent = {"Content-Type": "application/json", "X-CSRF-Token": visitor.csrf}
    assert visitor.ask("POST", f"/task/{task}", b"x" * 100_000, sent)[0] == 413
    assert visitor.save(task, "comment", "x" * 5_001)[0] == 422
    assert visitor.save(task, "fluency", {"cannot": "x" * 501})[0] == 422
    for field, value in (
        ("fluency", 3),
        ("fluency", True),
        ("fluency", "2"),
        ("fluency", 1.0),
        ("fluency", [2]),
        ("run", 1),
    ):
        assert visitor.save(task, field, value)[0] == 422, (field, value)
    for body in (b"", b"[]", b"{", b"[" * 50_000, b'{"field":"fluency","value":2,"seconds":NaN}', b"\xff"):
        assert visitor.ask("POST", f"/task/{task}", body, sent)[0] == 422, body[:20]
    assert stored(two["campaign"]) == []
    visitor.rate(task, {"comment": "ж" * 5_000})


def test_wrong_tokens_are_slowed_down_and_annotators_at_work_are_not(two: dict[str, Any]) -> None:
    answers = [Visitor(two["port"]).ask("GET", f"/enter/guess{n}")[0] for n in range(14)]
    assert answers == [403] * 10 + [429] * 4
    guesser = Visitor(two["port"])
    guesser.cookie = "xlift_annotator=guess"
    assert guesser.ask("GET", "/", headers={"X-Forwarded-For": "10.1.2.3"})[0] == 429
    assert len(two["visitors"][0].tasks()) == 6


# Nothing is lost


def test_skipped_responses_come_again_at_the_end(two: dict[str, Any]) -> None:
    visitor = two["visitors"][0]
    order = visitor.tasks()
    seen = []
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for _ in range(8):
        task = visitor.open("/")[0].rsplit("/")[-1]
        seen.append(task)
        if len(seen) <= 2:
            visitor.ask("POST", f"/task/{task}/skip", f"csrf={visitor.csrf}".encode(), form)
        else:
            visitor.rate(task, GOOD)
    assert seen == [*order, order[0], order[1]]
    assert visitor.open("/")[0] == "/overview"


def test_twenty_annotators_at_once_lose_nothing(tmp_path: Path, url: str) -> None:
    source = response_file(tmp_path, responses(["fr"], 4))
    campaign = open_campaign(source, url)
    names = [f"person {n}" for n in range(20)]
    links = [link_in(campaigns.add(campaign, name, ["fr"], Plan(per_response=20))) for name in names]
    expected: dict[tuple[str, str], dict[str, int]] = {}

    def annotate(number: int) -> None:
        visitor, draw = Visitor(port, links[number]), random.Random(number)
        for task in visitor.tasks():
            values = {facet: draw.choice([1, 2]) for facet in db.ASKED_FACETS}
            visitor.rate(task, values)
            expected[names[number], task] = values

    with serving(source, url) as (port, _), ThreadPoolExecutor(20) as pool:
        list(pool.map(annotate, range(20)))
    with campaign.database.read.begin() as connection:
        found = {
            (one.name, one.task.id): {facet: verdict.value for facet, verdict in one.verdicts.items()}
            for one in transfer.judged_tasks(connection)
        }
    assert found == expected
    assert len(stored(campaign)) == 20 * 8 * 6
    assert len(records_of(campaign)) == 20 * 8 * 6


def test_two_tabs_of_one_annotator_complete_a_response_together(two: dict[str, Any]) -> None:
    """Each facet comes over its own connection, all at once: whichever is last must see the others and finish it."""
    visitor = two["visitors"][0]
    tasks = visitor.tasks()
    with ThreadPoolExecutor(6) as pool:
        for task in tasks:
            list(pool.map(lambda facet, task=task: visitor.rate(task, {facet: 2}), db.ASKED_FACETS))
    assert visitor.open("/")[0] == "/overview"


def test_a_killed_server_loses_at_most_the_click_under_way(tmp_path: Path, url: str) -> None:
    source = response_file(tmp_path, responses(["fr"], 2))
    campaign = open_campaign(source, url)
    link = link_in(campaigns.add(campaign, "Ana", ["fr"]))
    saved: list[str] = []
    tried: list[str] = []
    for attempt in range(4):
        with serving(source, url) as (port, process):
            visitor = Visitor(port, link)
            task = visitor.open(f"/task/{visitor.tasks()[0]}")[0].rsplit("/")[-1]
            killer = threading.Timer(0.01 * attempt, process.kill)
            try:
                while True:
                    tried.append(f"click {len(tried)}")
                    if visitor.save(task, "comment", tried[-1])[0] == 200:
                        saved.append(tried[-1])
                    if len(saved) >= 10 * (attempt + 1) and killer.ident is None:
                        killer.start()
            except (OSError, http.client.HTTPException):
                killer.join()
    kept = [json.loads(row.value) for row in stored(campaign)]
    assert len(saved) > 20
    assert [click for click in kept if click in set(saved)] == saved
    assert len(set(kept) - set(saved)) <= 4
    assert set(kept) <= set(tried)
