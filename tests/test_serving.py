"""`xlift serve`: the real openai client asks tiny models over HTTP; streamed or not, alone or together, the same."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx2
import pytest
import uvicorn
from openai import APITimeoutError, BadRequestError, NotFoundError, OpenAI

from xlift import serving
from xlift.generation.engine import Reply, answering, decode
from xlift.opening import Opened, open_model
from xlift.serving import WantedReply, _answer_all, application

ASKED: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[OpenAI]:
    context, chat = open_model(str(tiny), None, True)
    queue: SimpleQueue[WantedReply | None] = SimpleQueue()
    with context as model, answering(model) as batch_of, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        opened = dict.fromkeys(("tiny", "other"), Opened(model, chat, batch_of))
        worker = threading.Thread(target=_answer_all, args=(queue, opened), daemon=True)
        worker.start()
        server = uvicorn.Server(uvicorn.Config(application(opened, queue), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield OpenAI(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key="none", max_retries=0)
        server.should_exit = True
        thread.join()
        queue.put(None)
        worker.join()


def said(client: OpenAI, **more: Any) -> Any:
    create: Any = client.chat.completions.create
    return create(**({"model": "tiny", "messages": ASKED, "max_tokens": 24} | more))


def test_models_are_listed_by_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "other"]
    assert said(client, model="other").model == "other"


def test_a_streamed_reply_is_the_whole_one_with_its_usage(client: OpenAI) -> None:
    whole = said(client)
    chunks = list(said(client, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 2
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 24
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 24
    assert whole.choices[0].finish_reason == "length"


def test_a_stop_string_ends_a_reply_and_no_piece_of_it_is_streamed(client: OpenAI) -> None:
    text = said(client).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    whole = said(client, stop=stop).choices[0]
    assert whole.message.content == text[: text.find(stop)].strip()
    assert whole.finish_reason == "stop"
    streamed = [chunk.choices[0].delta.content or "" for chunk in said(client, stop=[stop], stream=True)]
    assert "".join(streamed) == whole.message.content


def test_requests_that_come_together_are_answered_as_alone(client: OpenAI) -> None:
    asked = [[{"role": "user", "content": f"Question {i}?"}] for i in range(6)]
    alone = [said(client, messages=one).choices[0].message.content for one in asked]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda one: said(client, messages=one).choices[0].message.content, asked))
    assert together == alone


def test_a_seed_draws_the_same_reply_again(client: OpenAI) -> None:
    first, again, other = (said(client, temperature=1.0, seed=seed).choices[0].message.content for seed in (1, 1, 2))
    assert first == again != other


def test_several_replies_are_drawn_each_by_itself_and_streamed_by_their_numbers(client: OpenAI) -> None:
    drawn: dict[str, Any] = {"n": 3, "temperature": 1.0, "max_tokens": 8}
    whole = said(client, **drawn)
    texts = [one.message.content for one in whole.choices]
    assert [one.index for one in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[0] == said(client, **(drawn | {"n": 1})).choices[0].message.content
    streamed = ["", "", ""]
    for chunk in (chunks := list(said(client, **drawn, stream=True, stream_options={"include_usage": True}))):
        for one in chunk.choices:
            streamed[one.index] += one.delta.content or ""
    assert streamed == texts
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens <= 24


def watched(monkeypatch: pytest.MonkeyPatch, on_token: Callable[[], None] = lambda: None) -> SimpleQueue[Any]:
    """The replies that the engine makes from now on, each with the number of its batch; told of each token."""
    made: SimpleQueue[Any] = SimpleQueue()
    batches: list[int] = []
    plain: Any = decode

    def decoded(*given: Any, **more: Any) -> None:
        batches.append(number := len(batches))

        def on_reply(index: int, reply: Reply) -> None:
            made.put((number, reply))
            given[-1](index, reply)

        def on_tokens(index: int, tokens: list[int]) -> Any:
            on_token()
            return more["on_tokens"](index, tokens)

        plain(*given[:-1], on_reply, **(more | {"on_tokens": on_tokens}))

    monkeypatch.setattr(serving, "decode", decoded)
    return made


def test_a_request_that_nobody_waits_for_is_given_up(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    made = watched(monkeypatch)
    endless: dict[str, Any] = {"max_tokens": 1900, "messages": [{"role": "user", "content": "Go on."}]}
    stream = said(client, **endless, stream=True)
    next(iter(stream))
    stream.close()
    assert made.get(timeout=60)[1].new_tokens < 1900
    with pytest.raises(APITimeoutError):
        said(client.with_options(timeout=0.2), **endless)
    assert made.get(timeout=60)[1].new_tokens < 1900
    assert said(client).usage.completion_tokens == 24


@pytest.mark.parametrize(("model", "batches"), [("tiny", [0, 0]), ("other", [0, 1])])
def test_a_request_joins_those_of_its_model_under_way(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch, model: str, batches: list[int]
) -> None:
    asked: list[Any] = [[{"role": "user", "content": text}] for text in ("Go on.", "Why?")]
    alone = [said(client, messages=one).choices[0].message.content for one in asked]
    waiting: list[serving.Waiting] = []
    looked = serving.Waiting.look

    def look(self: serving.Waiting, wait: bool) -> None:
        waiting.append(self)
        looked(self, wait)

    under_way, come = threading.Event(), threading.Event()

    def on_token() -> None:
        """Holds the first reply up until the other request is there."""
        under_way.set()
        ends = time.monotonic() + 60
        while not come.is_set() and time.monotonic() < ends:
            if waiting[-1].queue.empty():
                time.sleep(0.01)
            else:
                come.set()

    monkeypatch.setattr(serving.Waiting, "look", look)
    made = watched(monkeypatch, on_token)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(said, client, messages=asked[0])
        assert under_way.wait(60)
        second = pool.submit(said, client, messages=asked[1], model=model)
        replies = [one.result().choices[0].message.content for one in (first, second)]
    assert replies == alone
    assert [made.get(timeout=60)[0] for _ in replies] == batches


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"messages": []}, "non-empty list"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "roles must alternate"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"n": 0}, "n: a whole number from 1 to 128"),
        ({"n": "2"}, "n: a whole number from 1 to 128"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: not supported here"),
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"min_p": 7}}, "min_p"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_what_is_wrong(
    client: OpenAI, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequestError, match=message):
        said(client, **more)


def test_a_content_in_parts_is_answered_as_its_text(client: OpenAI) -> None:
    texts = [{"type": "text", "text": "Why is "}, {"type": "text", "text": "it blue?"}]
    asked: Any = [[{"role": "user", "content": content}] for content in (texts, "Why is it blue?")]
    first, second = (said(client, messages=messages).choices[0].message.content for messages in asked)
    assert first == second


def test_errors_are_told_as_openai_tells_them(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="no model 'large'; there are: tiny, other") as caught:
        said(client, model="large")
    assert caught.value.code == "model_not_found"
    for path, body in (("/chat/completions", b"{"), ("/chat/completions", b"[]"), ("/nowhere", b"{}")):
        answer = httpx2.post(f"{str(client.base_url).rstrip('/')}{path}", content=body)
        assert answer.status_code in (400, 404)
        assert json.loads(answer.content)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "more",
    [
        '"model": ["tiny"]',
        '"model": {"a": 1}',
        '"stream_options": 5, "stream": true',
        '"temperature": NaN',
        '"temperature": 1e999',
        '"temperature": [1]',
        '"top_p": -1e999, "temperature": 1',
        '"stop": {"a": 1}',
        '"stop": [5]',
        '"stop": [""]',
        f'"max_tokens": {10**40}',
        '"n": true',
        '"n": 1e3',
        '"messages": [{"role": "user", "content": "\\ud800"}]',
        '"messages": {"role": "user"}',
        '"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]',
        '"messages": [{"role": "user", "content": [5]}]',
        '"repetition_penalty": 0',
        '"response_format": {"type": "json_object"}',
    ],
)
def test_an_odd_request_is_refused_and_the_next_one_is_answered(client: OpenAI, more: str) -> None:
    body = json.dumps({"model": "tiny", "messages": ASKED, "max_tokens": 2})[:-1] + f", {more}}}"
    answer = httpx2.post(f"{client.base_url}chat/completions", content=body.encode())
    assert (answer.status_code, answer.json()["error"]["type"]) in {(s, "invalid_request_error") for s in (400, 404)}
    huge = {"temperature": 1, "seed": 10**40, "extra_body": {"top_k": 10**40}}
    assert said(client, max_tokens=1, **huge).usage.completion_tokens == 1


def test_no_page_of_another_site_asks_and_no_request_is_endless(client: OpenAI) -> None:
    address, body = f"{client.base_url}chat/completions", json.dumps({"model": "tiny", "messages": ASKED})
    for headers in ({"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert httpx2.post(address, content=body, headers=headers).status_code in (400, 403)
    assert httpx2.get(f"{client.base_url}models", headers={"Host": "evil.example"}).status_code == 400
    # In pieces, so that no head tells how much is to come.
    assert httpx2.post(address, content=(b" " * 1_000_000 for _ in range(9))).status_code == 413
