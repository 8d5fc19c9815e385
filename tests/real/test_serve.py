"""The server as its users and its enemies meet it: the starter model in a process of its own."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from serving import PROGRAM, Served

from gguf_embed import Embedder, EncodeOptions

pytestmark = pytest.mark.real

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
NAME = "all-minilm-l6-v2"
KEY = "a-key-of-some-length"
HEAD = (
    b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
)


@pytest.fixture(scope="module")
def served(starter, tmp_path_factory):
    """A server that the module's tests share; they leave it as it was."""
    with Served(
        tmp_path_factory.mktemp("served"), starter, NAME, "--max-inputs", "300", "--max-body", "1MiB"
    ) as server:
        yield server


@pytest.fixture
def start(starter, tmp_path):
    """Start servers of one's own."""
    made = []

    def start_one(*options, **known):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Served(folder, starter, *options, **known))
        return made[-1]

    yield start_one
    for one in made:
        one.__exit__()


def embed(server, *texts, **known):
    return server.ask("POST", "/v1/embeddings", {"input": list(texts), **known})


def test_every_answer_has_the_fingerprint_of_its_vectors(served, starter_cache):
    """In all dialects that of Embedder; another length is another one, and an error has none."""
    asked = {
        "/v1/embeddings": {"input": "x"},
        "/api/embed": {"model": NAME, "input": "x"},
        "/embed": {"inputs": "x"},
        "/api/embeddings": {"model": NAME, "prompt": "x"},
    }
    head = {"content-type": "application/json"}
    prints = {}
    for path, content in asked.items():
        status, told, _ = served.request("POST", path, json.dumps(content).encode(), head)
        prints[path] = told.get("x-gguf-embed-fingerprint")
        assert status == 200
    with Embedder(NAME) as model:
        raw = model.fingerprint_of(EncodeOptions(normalize_embeddings=False))
        assert list(prints.values()) == [model.fingerprint, model.fingerprint, model.fingerprint, raw]
    status, told, _ = served.request("POST", "/v1/embeddings", b'{"input": ""}', head)
    assert (status, told.get("x-gguf-embed-fingerprint")) == (400, None)


@posix
def test_the_fingerprint_is_of_what_is_in_memory(start, starter, tmp_path):
    """Not of the file that lies there now, or does not any more; and the vectors come all the same."""
    path = shutil.copy(starter, tmp_path / "mine.gguf")
    server = start(str(path))
    head = {"content-type": "application/json"}
    body = b'{"input": "x"}'
    prints = []
    for _ in range(2):
        status, told, _ = server.request("POST", "/v1/embeddings", body, head)
        prints.append(told.get("x-gguf-embed-fingerprint"))
        assert status == 200
        path.unlink(missing_ok=True)
    assert prints[0] == prints[1] is not None


# Bad input: each its dialect's error

OPENAI = "/v1/embeddings"
BAD = [
    pytest.param(OPENAI, b"{", 400, "no JSON", id="half an object"),
    pytest.param(OPENAI, b"\xff\xfe{", 400, "no JSON", id="no UTF-8"),
    pytest.param(OPENAI, b"[" * 50_000, 400, "", id="nested without end"),
    pytest.param(OPENAI, b"[]", 400, "Expected `object`", id="a list"),
    pytest.param(OPENAI, {}, 400, "input", id="no input"),
    pytest.param(OPENAI, {"input": None}, 400, "input", id="null"),
    pytest.param(OPENAI, {"input": 7}, 400, "input", id="a number"),
    pytest.param(OPENAI, {"input": {"a": "b"}}, 400, "input", id="an object"),
    pytest.param(OPENAI, {"input": ["a", None]}, 400, "input", id="null in a list"),
    pytest.param(OPENAI, {"input": ["a", 1.5]}, 400, "input", id="a fraction in a list"),
    pytest.param(OPENAI, {"input": []}, 400, "empty", id="no texts"),
    pytest.param(OPENAI, {"input": ""}, 400, "empty", id="an empty text"),
    pytest.param(OPENAI, {"input": ["a", ""]}, 400, "input 1 is empty", id="an empty text in a list"),
    pytest.param(OPENAI, {"input": [1, 2]}, 400, "check_embedding_ctx_length", id="token ids"),
    pytest.param(OPENAI, {"input": [True]}, 400, "input", id="true"),
    pytest.param(OPENAI, {"input": ["x"] * 301}, 400, "at most 300", id="too many texts"),
    pytest.param(OPENAI, {"input": "x" * (1 << 20)}, 413, "--max-body", id="too large"),
    pytest.param(OPENAI, {"input": "x " * 5000}, 400, "tokens; at most 256", id="too long"),
    pytest.param(OPENAI, {"input": "x", "dimensions": 0}, 400, "gives 384", id="dimensions 0"),
    pytest.param(OPENAI, {"input": "x", "dimensions": -1}, 400, "gives 384", id="dimensions -1"),
    pytest.param(OPENAI, {"input": "x", "dimensions": 31}, 400, "not trained to be cut", id="dimensions 31"),
    pytest.param(OPENAI, {"input": "x", "dimensions": 10**30}, 400, "", id="dimensions without end"),
    pytest.param(OPENAI, {"input": "x", "dimensions": "64"}, 400, "dimensions", id="dimensions as text"),
    pytest.param(OPENAI, {"input": "x", "encoding_format": "hex"}, 400, "encoding_format", id="no format"),
    pytest.param(OPENAI, {"input": "x", "truncate": "start"}, 400, "truncate", id="no way to cut"),
    pytest.param(OPENAI, {"input": "x", "input_type": "passage"}, 400, "input_type", id="no type"),
    pytest.param(OPENAI, {"input": "x", "prompt_name": "nope"}, 400, "unknown prompt_name", id="no prompt"),
    pytest.param(OPENAI, {"input": "x", "task": "find it"}, 400, "takes no task", id="no task"),
    pytest.param(OPENAI, {"input": "x", "model": "nope"}, 404, "not found", id="no model"),
    pytest.param(OPENAI, {"input": "x", "model": "qwen3-embedding-0.6b"}, 404, "gguf-embed pull", id="not here"),
    pytest.param(OPENAI, {"input": "x", "model": "../../etc/passwd"}, 404, "not found", id="a path upwards"),
    pytest.param(OPENAI, {"input": "x", "model": "/etc/passwd"}, 404, "not found", id="a path"),
    pytest.param(OPENAI, {"input": "x", "model": "x" * 5000}, 404, "", id="an endless name"),
    pytest.param(OPENAI, {"input": "a\0b"}, 400, "NUL", id="NUL"),
    pytest.param(OPENAI, b'{"input": "\\ud800"}', 400, "", id="half a surrogate pair"),
    pytest.param(OPENAI, b'{"input": "x", "dimensions": NaN}', 400, "no JSON", id="NaN"),
    pytest.param("/api/embed", {"input": "x"}, 400, "model", id="Ollama: no model"),
    pytest.param("/api/embed", {"model": NAME, "input": 7}, 400, "invalid input type", id="Ollama: a number"),
    pytest.param("/api/embed", {"model": NAME, "input": ["a", 7]}, 400, "invalid input type", id="Ollama: a mix"),
    pytest.param("/api/embed", {"model": NAME, "input": "x", "dimensions": 0}, 400, "384", id="Ollama: dimensions 0"),
    pytest.param("/api/embed", {"model": NAME, "input": "x", "keep_alive": "soon"}, 400, "soon", id="Ollama: soon"),
    pytest.param("/api/embed", {"model": "nope", "input": "x"}, 404, "not found", id="Ollama: unknown model"),
    pytest.param("/api/show", {}, 400, "model is required", id="Ollama: show what"),
    pytest.param("/api/pull", {}, 400, "model is required", id="Ollama: pull what"),
    pytest.param("/api/chat", {"model": NAME}, 400, "does not support chat", id="Ollama: chat"),
    pytest.param("/embed", {"inputs": 7}, 422, "inputs", id="TEI: a number"),
    pytest.param("/embed", {"inputs": ["x"] * 301}, 413, "at most 300", id="TEI: too many"),
    pytest.param("/similarity", {"inputs": "x"}, 422, "inputs", id="TEI: no pair"),
    pytest.param("/tokenize", {"inputs": "x", "prompt_name": "nope"}, 422, "unknown prompt_name", id="TEI: no prompt"),
    pytest.param("/api/pull", {"model": "/etc/passwd"}, 404, "not found", id="Ollama: pull a path"),
    pytest.param("/api/pull", {"model": "./x.gguf"}, 404, "not found", id="Ollama: pull a file"),
    pytest.param(OPENAI, {"input": "x", "model": ":" * 200_000}, 404, "not found", id="a name to think about"),
    pytest.param(OPENAI, {"input": "x", "model": "\\\\host\\share\\x.gguf"}, 404, "not found", id="a share"),
    pytest.param(OPENAI, {"input": "x", "task": "t" * 5000}, 400, "task is longer", id="a long task"),
    pytest.param("/similarity", {"inputs": {"source_sentence": "x", "sentences": []}}, 400, "empty", id="TEI: alone"),
    pytest.param("/tokenize", {"inputs": []}, 400, "empty", id="TEI: no texts"),
    pytest.param("/", {}, 422, "inputs", id="TEI: nothing"),
    pytest.param("/load", {"model": "nope"}, 404, "not found", id="load what"),
    pytest.param("/nowhere", {}, 404, "openapi.json", id="no route"),
]  # fmt: skip


def words_of(answer):
    """The message of an error of any dialect, whose shape is checked."""
    error = answer["error"]
    if isinstance(error, str):
        return error
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


@pytest.mark.parametrize(("path", "body", "status", "words"), BAD)
def test_bad_input_is_told_and_changes_nothing(served, path, body, status, words):
    """Its dialect's error, naming what is wrong; no folder, no NaN; the next request is answered."""
    found, answer = served.ask("POST", path, body)
    assert found == status, answer
    message = words_of(answer)
    assert words in message
    assert len(message) < 6000
    assert not re.search(r"/(root|home|tmp|work|usr|var)/|Traceback|NaN", message)
    assert embed(served, "x")[0] == 200


def test_unknown_fields_are_ignored(served):
    """Other servers' options do no harm."""
    plain = embed(served, "x")[1]["data"]
    found = embed(served, "x", user="u", foo=[1], dimension=3, options={"num_ctx": 8192})
    assert (found[0], found[1]["data"]) == (200, plain)


def test_a_large_answer_has_no_null_and_no_nan(served):
    """Three hundred rows, written in parts."""
    status, _, raw = served.request(
        "POST", OPENAI, json.dumps({"input": [f"{number}" for number in range(300)]}).encode(),
        {"content-type": "application/json"},
    )  # fmt: skip
    assert status == 200
    assert b"null" not in raw
    assert b"NaN" not in raw
    rows = np.array([item["embedding"] for item in json.loads(raw)["data"]])
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5


# The door


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None])
def test_only_json_is_taken(served, kind):
    """What a foreign page's form can send is not."""
    headers = {} if kind is None else {"content-type": kind}
    status, _, raw = served.request("POST", OPENAI, b'{"input": "x"}', headers)
    assert status == 415
    assert b"application/json" in raw


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "", "["]
)
def test_a_foreign_host_is_refused(served, host):
    """DNS rebinding: another name for this machine is no name of it."""
    for method, path in (("GET", "/v1/models"), ("POST", OPENAI), ("GET", "/health"), ("GET", "/")):
        status, _, raw = served.request(
            method, path, b'{"input": "x"}', {"host": host, "content-type": "application/json"}
        )
        assert status in (400, 403)
        assert b"embedding" not in raw


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:80", "app.localhost", "LOCALHOST:5"])
def test_names_of_this_machine_are_welcome(served, host):
    """By any of them."""
    assert served.request("GET", "/health", None, {"host": host})[0] == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil", "http://evil/localhost", "x"]
)
def test_a_foreign_page_is_refused(served, origin):
    """With its origin, for any method, and without a word of CORS."""
    for method in ("GET", "POST", "OPTIONS"):
        headers = {"origin": origin, "content-type": "application/json", "access-control-request-method": "POST"}
        status, told, _ = served.request(method, OPENAI, b'{"input": "x"}' if method == "POST" else None, headers)
        assert status == 403
        assert not [name for name in told if name.lower().startswith("access-control")]


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "app://obsidian.md", "tauri://localhost",
                                    "vscode-webview://abc", "file://"])  # fmt: skip
def test_local_pages_and_desktop_apps_are_welcome(served, origin):
    """They may ask, ask first, and read errors too."""
    headers = {"origin": origin, "content-type": "application/json"}
    for body, status in ((b'{"input": "x"}', 200), (b"{", 400)):
        found, told, _ = served.request("POST", OPENAI, body, headers)
        assert found == status
        assert told["access-control-allow-origin"] == origin
        assert "origin" in told["vary"].lower()
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    found, told, _ = served.request("OPTIONS", OPENAI, None, {"origin": origin} | asked)
    assert found == 204
    assert told["access-control-allow-headers"] == "authorization,x-stainless-os"


def test_no_origin_no_cors(served):
    """A program gets no such headers."""
    _, told, _ = served.request("GET", "/health")
    assert not [name for name in told if name.lower().startswith("access-control")]


def test_origins_and_hosts_can_be_allowed(start):
    """By name."""
    server = start("--allow-origin", "https://app.example", "--allow-host", "box.lan", NAME)
    assert server.ask("GET", "/health", origin="https://app.example", host="box.lan:1")[0] == 200
    assert server.ask("GET", "/health", origin="https://other.example")[0] == 403


def test_a_key_is_asked_for(start):
    """Of all routes but the page and /health; in constant time, whatever is sent; and the log does not have it."""
    server = start(NAME, "--access-log", "-v", GGUF_EMBED_API_KEY=KEY)
    for given in ({}, {"authorization": "Bearer no"}, {"authorization": f"Basic {KEY}"}, {"authorization": KEY},
                  {"authorization": f"Bearer {KEY}x"}, {"authorization": "Bearer \xff\xfe"}):  # fmt: skip
        for method, path in (("POST", OPENAI), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/api/tags")):
            status, told = server.ask(method, path, {"input": "x"} if method == "POST" else None, **given)
            assert status == 401
            assert KEY not in str(told)
    assert server.ask("POST", OPENAI, {"input": "x"}, authorization=f"Bearer {KEY}")[0] == 200
    assert server.ask("GET", "/health")[0] == 200
    assert "<html" in server.request("GET", "/", None, {"accept": "text/html"})[2].decode()
    assert KEY not in server.log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "0.0.0.0"), "an API key is needed"),
        (("--host", "::"), "an API key is needed"),
        (("--api-key", "short"), "too short"),
        (("--keep-alive", "soon"), "keep_alive is 'soon'"),
        (("--alias", "x"), "NAME=MODEL"),
        (("no-such-model",), "no model"),
    ],
)
def test_what_is_not_safe_or_wrong_does_not_start(starter, tmp_path, options, words):
    """It says what to type instead."""
    with pytest.raises(RuntimeError) as told:
        Served(tmp_path, starter, *options)
    assert words in str(told.value)


def test_other_machines_may_ask_with_a_key(start):
    """Then any Host is fine: the key is what counts; and the page may ask its own server."""
    server = start(NAME, "--host", "0.0.0.0", "--api-key", KEY)
    own = {"host": "box.lan:8", "origin": "http://box.lan:8", "authorization": f"Bearer {KEY}"}
    assert server.ask("POST", OPENAI, {"input": "x"}, **own)[0] == 200
    assert server.ask("POST", OPENAI, {"input": "x"}, **own | {"origin": "http://box.lan:9"})[0] == 403
    assert server.ask("POST", OPENAI, {"input": "x"}, host="box.lan", authorization=f"Bearer {KEY}")[0] == 200


# Clients that misbehave


def test_garbage_is_no_http(served):
    """A TLS hello, binary, an endless head, a head that stops: refused or left alone, and others are served."""
    for sent in (b"\x16\x03\x01\x02\x00\x01", b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"x" * 100_000,
                 b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n"):  # fmt: skip
        with served.connect() as plain:
            plain.settimeout(10)
            plain.sendall(sent)
            assert plain.recv(4096).startswith(b"HTTP/1.1 4")
        assert embed(served, "x")[0] == 200


def test_pipelined_garbage_after_a_request(served):
    """The request is answered or the connection closed; others are served."""
    body = b'{"input": "x"}'
    with served.connect() as plain:
        plain.sendall(HEAD % len(body) + body + b"\x00garbage\r\n\r\n")
        plain.settimeout(10)
        while plain.recv(65536):
            pass
    assert embed(served, "x")[0] == 200


def test_pipelined_requests_are_answered_in_order(served):
    """Two in one packet."""
    bodies = [json.dumps({"input": text}).encode() for text in ("a", "b b")]
    with served.connect() as plain:
        plain.sendall(b"".join(HEAD % len(body) + body for body in bodies))
        plain.settimeout(10)
        told = b""
        while told.count(b'"usage"') < 2:
            told += plain.recv(65536)
    assert [int(n) for n in re.findall(rb'"prompt_tokens":(\d+)', told)] == [3, 4]


def test_a_client_that_sends_half_a_body_holds_nobody_up(served):
    """Others are answered meanwhile."""
    slow = [served.connect() for _ in range(50)]
    for one in slow:
        one.sendall(HEAD % 100 + b"{")
    assert embed(served, "x")[0] == 200
    for one in slow:
        one.close()
    assert embed(served, "x")[0] == 200


def test_texts_of_a_client_that_left_are_dropped(start):
    """They are not embedded for nobody."""
    server = start(NAME, "--max-inputs", "20000")
    body = json.dumps({"input": [f"a sentence of some words {number}" for number in range(20_000)]}).encode()
    with server.connect() as plain:
        plain.sendall(HEAD % len(body) + body)
        until = time.monotonic() + 20
        while not server.ask("GET", "/stats")[1]["queue"]["texts"]:
            assert time.monotonic() < until
        time.sleep(0.5)
    until = time.monotonic() + 10
    while server.ask("GET", "/stats")[1]["queue"]["requests"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    n_done = figure(server, 'gguf_embed_texts_total{model="all-minilm-l6-v2"}')
    time.sleep(0.5)
    assert figure(server, 'gguf_embed_texts_total{model="all-minilm-l6-v2"}') <= n_done + 200
    assert n_done < 15_000


def figure(server, name):
    """One of Prometheus' figures; 0 where it was never counted."""
    lines = server.ask("GET", "/metrics")[1].splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0)


def test_a_full_queue_says_so(start):
    """429 with Retry-After, and those who wait are answered."""
    server = start(NAME, "--max-queue", "2", "--max-inputs", "20000")
    texts = [f"a sentence of some words {number}" for number in range(1500)]
    sent = ("POST", OPENAI, json.dumps({"input": texts}).encode(), {"content-type": "application/json"})
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.request(*sent), range(6)))
    statuses = [status for status, _, _ in answers]
    assert statuses.count(200) == 2
    assert statuses.count(429) == 4
    refused = next(told for status, told, _ in answers if status == 429)
    assert int(refused["retry-after"]) >= 1


def test_a_request_has_a_deadline(start):
    """Then 504, and its texts are dropped."""
    server = start(NAME, "--timeout", "0.5", "--max-inputs", "20000")
    status, told = embed(server, *(f"a sentence of some words {number}" for number in range(10_000)))
    assert (status, told["error"]["code"]) == (504, "timeout")
    assert embed(server, "x")[0] == 200


# Many at once


def test_many_clients_get_their_own_vectors(served, starter):
    """Sixteen threads with mixed requests: each row is the library's."""
    rng = np.random.default_rng(0)
    wanted = [
        [f"text {rng.integers(1000)} " * rng.integers(1, 20) for _ in range(rng.integers(1, 12))] for _ in range(96)
    ]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda texts: embed(served, *texts), wanted))
    with Embedder(starter) as model:
        for texts, (status, told) in zip(wanted, answers, strict=True):
            assert status == 200
            rows = np.array([item["embedding"] for item in told["data"]], dtype=np.float32)
            assert (rows * model.encode(texts)).sum(axis=1).min() >= 0.9999


def test_a_query_overtakes_a_large_request(start):
    """It is answered long before."""
    server = start(NAME, "--max-inputs", "20000")
    texts = [f"a sentence of some more words to embed {number}" for number in range(4000)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = pool.submit(embed, server, *texts)
        while not server.ask("GET", "/stats")[1]["queue"]["texts"]:
            pass
        time.sleep(0.3)
        begun = time.monotonic()
        assert embed(server, "a query")[0] == 200
        assert time.monotonic() - begun < 2
        assert not large.done()
        assert large.result()[0] == 200


# Models


def test_an_idle_model_is_unloaded_and_comes_back(start):
    """Its process ends, which gives the memory back; the next request loads it again."""
    server = start(NAME, "--keep-alive", "1s")
    first, rows = server.worker_id, embed(server, "x")[1]["data"]
    until = time.monotonic() + 10
    while psutil.pid_exists(first):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert server.ask("GET", "/stats")[1]["models"][0]["state"] == "unloaded"
    assert server.ask("GET", "/health")[0] == 200
    assert psutil.Process(server.process.pid).memory_info().rss < 120 << 20
    assert embed(server, "x")[1]["data"] == rows
    assert server.worker_id != first


def test_models_are_loaded_and_unloaded_by_hand(start):
    """/load and /unload; Ollama's empty input and keep_alive 0 do the same."""
    server = start("--lazy", NAME)
    assert server.ask("GET", "/stats")[1]["models"][0]["state"] == "unloaded"
    loaded = server.ask("POST", "/load", {"keep_alive": -1})[1]
    assert (loaded["state"], loaded["expires_in_s"]) == ("loaded", None)
    assert server.ask("POST", "/unload", {})[1]["state"] == "unloaded"
    assert server.ask("POST", "/api/embed", {"model": NAME})[1]["embeddings"] == []
    assert server.ask("GET", "/api/ps")[1]["models"][0]["name"] == NAME
    assert server.ask("POST", "/api/embed", {"model": NAME, "keep_alive": 0})[0] == 200
    until = time.monotonic() + 10
    while server.ask("GET", "/api/ps")[1]["models"]:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_model_has_other_names(start, starter):
    """An alias, an alias of the registry, Ollama's tag, any case; a file is served by its name."""
    server = start(str(starter), "--alias", f"text-embedding-3-small={NAME}")
    for name in ("text-embedding-3-small", NAME, "ALL-MINILM:latest", starter.stem):
        status, told = embed(server, "x", model=name)
        assert (status, told["model"]) == (200, name)
    assert server.ask("GET", "/stats")[1]["models"][0]["name"] == starter.stem
    assert str(starter.parent) not in json.dumps(server.ask("GET", "/stats")[1])


def test_two_models_share_the_memory_that_is_allowed(start, starter):
    """The one that nobody used for longest makes room for the other; each keeps its vectors."""
    server = start(str(starter), NAME, "--memory", "200MiB")
    rows = [embed(server, "x", model=name)[1]["data"] for name in (starter.stem, NAME)]
    assert rows[0] == rows[1]
    states = [one["state"] for one in server.ask("GET", "/stats")[1]["models"]]
    assert sorted(states) == ["loaded", "unloaded"]
    assert embed(server, "x", model=starter.stem)[1]["data"] == rows[0]


def test_a_model_that_does_not_fit_is_told(start):
    """By the request, and by /health."""
    server = start(NAME, "--memory", "20MiB", wait=False)
    status, told = embed(server, "x")
    assert (status, told["error"]["code"]) == (503, "insufficient_memory")
    status, told = server.ask("GET", "/health")
    assert (status, told["status"]) == (503, "degraded")


def test_listing_and_naming_a_file_do_not_load_it_twice(start):
    """The quantization that runs is the model that runs."""
    server = start(NAME)
    assert [one["id"] for one in server.ask("GET", "/v1/models")[1]["data"]] == [NAME]
    assert embed(server, "x", model=f"{NAME}:F16")[0] == 200
    assert len(server.ask("GET", "/stats")[1]["models"]) == 1


def test_a_model_that_is_kept_for_ages_is_listed(start):
    """A keep_alive beyond any calendar does no harm."""
    server = start(NAME)
    for keep in (1e12, 1e300, -1):
        assert server.ask("POST", "/api/embed", {"model": NAME, "keep_alive": keep})[0] == 200
        assert server.ask("GET", "/api/ps")[1]["models"][0]["expires_at"].startswith("21")


def test_requests_at_the_moment_of_unloading_are_answered(start):
    """Whatever the order of the two, nobody gets an error."""
    server = start(NAME, "--keep-alive", "1s")
    until = time.monotonic() + 8
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        statuses = []
        while time.monotonic() < until:
            statuses += [status for status, _ in pool.map(lambda _: embed(server, "x"), range(4))]
            time.sleep(1.0 + (len(statuses) % 7) / 50)
    assert set(statuses) == {200}
    assert figure(server, 'gguf_embed_worker_crashes_total{model="all-minilm-l6-v2"}') == 0


# Crashes


@posix
def test_a_signal_to_the_whole_group_finishes_what_is_in_flight(starter, tmp_path):
    """As a service manager sends it: the worker leaves it to the server."""
    server = Served(tmp_path, starter, NAME, "--max-inputs", "20000", start_new_session=True)
    with server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = pool.submit(embed, server, *(f"a sentence of some words {number}" for number in range(800)))
        while not server.ask("GET", "/stats")[1]["queue"]["texts"]:
            pass
        os.killpg(server.process.pid, signal.SIGTERM)
        assert large.result()[0] == 200
        assert server.process.wait(15) == 0


@posix
@pytest.mark.parametrize("how", [signal.SIGABRT, signal.SIGKILL, signal.SIGSTOP])
def test_the_server_outlives_its_worker(start, how):
    """Requests get 503 or their rows; the next one is answered, and the crash is counted."""
    server = start(NAME, "--max-inputs", "20000")
    texts = [f"a sentence of some words {number}" for number in range(3000)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        large = [pool.submit(embed, server, *texts) for _ in range(3)]
        time.sleep(0.7)
        os.kill(server.worker_id, how)
        statuses = [one.result()[0] for one in large]
    assert set(statuses) <= {200, 503}
    assert embed(server, "x")[0] == 200
    assert figure(server, f'gguf_embed_worker_crashes_total{{model="{NAME}"}}') == 1


@posix
def test_a_crash_loop_is_broken_and_told(start):
    """After three, requests and /health say why."""
    server = start(NAME)
    for _ in range(3):
        assert embed(server, "x")[0] == 200
        os.kill(server.worker_id, signal.SIGKILL)
        time.sleep(0.3)
    status, told = embed(server, "x")
    assert (status, told["error"]["code"]) == (503, "worker_crashed")
    assert "crashed 3 times in 90 s" in told["error"]["message"]
    status, told = server.ask("GET", "/health")
    assert (status, told["status"]) == (503, "degraded")


# Operations


def test_figures_for_prometheus(served):
    """Requests, texts, tokens, fill, queue, latency, memory."""
    embed(served, "x y z")
    text = served.ask("GET", "/metrics")[1]
    names = (
        "requests_total", "request_seconds_bucket", "texts_total", "tokens_total", "step_fill_ratio_bucket",
        "queue_requests", "queue_texts", "worker_resident_bytes", "memory_planned_bytes", "model_loaded",
    )  # fmt: skip
    for name in names:
        assert f"gguf_embed_{name}" in text, name


def test_the_document_describes_what_there_is(served):
    """Each route of it answers."""
    document = served.ask("GET", "/openapi.json")[1]
    assert document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        for method in methods:
            body = {} if method == "post" else None
            assert served.ask(method.upper(), path.replace("{model}", NAME), body)[0] != 404, path


def test_a_wrong_method_is_told(served):
    """With those that there are."""
    status, told, _ = served.request("PUT", OPENAI, b"{}", {"content-type": "application/json"})
    assert (status, told["allow"]) == (405, "POST")
    assert served.request("HEAD", "/")[0] == 200


def test_a_stop_finishes_what_is_in_flight(start):
    """SIGTERM: the answer comes, then it ends with 0."""
    server = start(NAME, "--max-inputs", "20000")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = pool.submit(embed, server, *(f"a sentence of some words {number}" for number in range(800)))
        while not server.ask("GET", "/stats")[1]["queue"]["texts"]:
            pass
        worker = server.worker_id
        assert server.stop() == 0
        assert large.result()[0] == 200
    assert not psutil.pid_exists(worker)


def test_a_stop_waits_ten_seconds_and_no_longer(start):
    """Bulk without end is cut off."""
    server = start(NAME, "--max-inputs", "1000000")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = pool.submit(embed, server, *(f"a sentence of some words {number}" for number in range(60_000)))
        time.sleep(2)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 14
        large.exception()


@posix
def test_it_ends_with_its_parent(starter, tmp_path):
    """An application that is killed leaves neither server nor worker behind."""
    command = [*PROGRAM, "serve", str(starter), "--port", "0", "--exit-with-parent", "--json"]
    code = (
        "import subprocess, sys, json\n"
        f"told = subprocess.Popen({command!r}, "
        "stdout=subprocess.PIPE, text=True).stdout.readline()\n"
        "print(told.strip(), flush=True)\n"
        "import time; time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    told = json.loads(parent.stdout.readline())
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", told["url"])
    time.sleep(1)
    family = [told["pid"], *(child.pid for child in psutil.Process(told["pid"]).children())]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([psutil.Process(one) for one in family if psutil.pid_exists(one)], timeout=10)
    assert not alive


@posix
def test_a_unix_socket_is_this_users_alone(start, tmp_path):
    """Nobody else may connect, any Host is fine, and it is gone afterwards; one that was left behind is replaced."""
    path = tmp_path / "s"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    server = start(NAME, "--uds", str(path))
    assert server.url == f"unix:{path}"
    assert path.stat().st_mode & 0o077 == 0
    assert embed(server, "x")[0] == 200
    assert server.ask("GET", "/health", host="whatever")[0] == 200
    server.stop()
    assert not path.exists()


def test_a_port_that_is_taken_is_told(served, starter, tmp_path):
    """With what to type."""
    command = [*PROGRAM, "serve", str(starter), "--port", str(served.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--port 0" in done.stderr
    assert not done.stdout


def test_logs_for_programs(start):
    """JSON lines with what was asked, never the texts."""
    server = start(NAME, "--log-format", "json", "--access-log")
    embed(server, "a secret text")
    lines = [json.loads(line) for line in server.log.splitlines()]
    facts = next(line for line in lines if line.get("path") == OPENAI)
    assert facts["status"] == 200
    assert (facts["model"], facts["n_texts"]) == (NAME, 1)
    assert facts["n_tokens"] == 5
    assert "secret" not in server.log


def test_a_missing_extra_is_told(starter, tmp_path):
    """With the line that installs it."""
    code = (
        "import sys; sys.modules['uvicorn'] = None; import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'uvicorn' else find(name, *rest)\n"
        "from gguf_embed.cli import main; sys.argv = ['gguf-embed', 'serve']; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 8
    assert "gguf-embed[server]" in done.stderr
