"""remote.py and dialects.py: vectors from servers in three dialects, and what they do wrong, told by name."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
from fake_embeddings import FakeServer, ollama, openai, rows_of, tei

from gguf_embed.errors import RemoteError
from gguf_embed.quality import remote
from gguf_embed.quality.dialects import Address, fetch_embeddings, parse_address


@pytest.fixture
def serve():
    made = []

    def start(**routes):
        made.append(FakeServer(**routes))
        return made[-1]

    yield start
    for one in made:
        one.close()


TEXTS = ["a", "bb", "ccc"]


def fetch(url, texts=TEXTS, **known):
    return fetch_embeddings(parse_address(url), texts, **known)


# Addresses


@pytest.mark.parametrize(
    ("text", "url", "model", "dialect"),
    [
        ("http://h:1#m:4b", "http://h:1", "m:4b", None),
        ("http://h/#a/b", "http://h", "a/b", None),
        ("https://h/v1#m", "https://h/v1/embeddings", "m", "openai"),
        ("https://h/x/v1/embeddings/#m", "https://h/x/v1/embeddings", "m", "openai"),
        ("https://h/v1beta/openai/embeddings", "https://h/v1beta/openai/embeddings", "", "openai"),
        ("http://h/api/embed#m", "http://h/api/embed", "m", "ollama"),
        ("http://h/api/embeddings#m", "http://h/api/embed", "m", "ollama"),
        ("http://h/api", "http://h/api/embed", "", "ollama"),
        ("http://h/embed", "http://h/embed", "", "tei"),
        ("http://h/embeddings?v=2#a%20b", "http://h/embeddings?v=2", "a b", "openai"),
    ],
)
def test_the_path_tells_the_dialect(text, url, model, dialect):
    """Where it does not, the server is asked."""
    assert parse_address(text) == Address(url=url, model=model, dialect=dialect)


@pytest.mark.parametrize("text", ["http://", "http:///v1", "http://h:port", "ftp://h"])
def test_what_is_no_url_is_the_callers_mistake(text):
    """A stock ValueError with the text in it."""
    with pytest.raises(ValueError, match=r"is no URL") as caught:
        parse_address(text)
    assert text in str(caught.value)
    assert not isinstance(caught.value, RemoteError)


def test_a_password_is_sent_and_not_shown(serve):
    """Messages and results have the URL without it."""
    server = serve(embed=lambda _: (500, {}))
    with pytest.raises(RemoteError) as caught:
        fetch(server.url.replace("//", "//me:secret@") + "/embed")
    assert "secret" not in f"{caught.value} {caught.value.url}"
    assert server.seen[-1][3]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    "text",
    [
        "http://user:secret@host:99999/x",
        "http://user:secret@host:port/x",
        "http://user:a/secret@host/x",
        "http://user:a#secret@host/x",
        "http://user:secret@[host/x",
        "http://user:secret@[host]/x",
        "http://user:secret@ho\u2100st/x",
        "http://user:secret@/x",
        "ftp://user:secret@host/x?key=secret",
    ],
)
def test_what_is_no_url_is_told_without_its_password(text):
    """Nor with words of Python's that have it."""
    with pytest.raises(ValueError, match="is no URL of a server") as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["secret\nx", "se cret", "secr\u00e9t", "secret\x7f", "\x00secret"])
def test_a_key_that_no_header_carries_is_not_shown(serve, key):
    """It is the caller's mistake, before anything is sent."""
    server = serve(embed=tei)
    with pytest.raises(ValueError, match="the API key has a space") as caught:
        fetch(f"{server.url}/embed", api_key=key)
    assert "secr" not in str(caught.value)
    assert not isinstance(caught.value, RemoteError)
    assert server.seen == []


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_key_that_a_server_says_again_is_not_shown(serve, status):
    """In a refusal or in what should have been vectors."""
    server = serve(embed=lambda _: (status, b"no such key: sk-0123456789"))
    with pytest.raises(RemoteError, match=r"no such key: \*\*\*") as caught:
        fetch(f"{server.url}/embed", api_key="sk-0123456789")
    assert "0123456789" not in str(caught.value)


def test_a_query_may_be_a_key_and_is_not_shown(serve):
    """It is sent; neither messages nor results have it."""
    server = serve(embeddings=openai)
    assert "secret" not in str(fetch(f"{server.url}/embeddings?key=secret#m").address)
    assert server.seen[-1][1] == "/embeddings?key=secret"
    with pytest.raises(RemoteError) as caught:
        fetch(f"{server.url}/v1/embeddings?key=secret#m")
    assert "secret" not in f"{caught.value} {caught.value.url}"


# Dialects


@pytest.mark.parametrize(
    ("routes", "path", "body"),
    [
        ({"v1__embeddings": openai}, "/v1/embeddings", {"model": "m", "input": TEXTS, "encoding_format": "float"}),
        (
            {"api__version": {"version": "0.5"}, "api__embed": ollama}, "/api/embed",
            {"model": "m", "input": TEXTS, "truncate": False},
        ),
        ({"info": {"model_id": "o/M"}, "embed": tei}, "/embed", {"inputs": TEXTS, "truncate": False}),
    ],
    ids=["openai", "ollama", "tei"],
)  # fmt: skip
def test_a_server_is_asked_what_it_speaks(serve, routes, path, body):
    """The dialect is found, rows come in the order of the texts, and long texts are not to be cut."""
    server = serve(**routes)
    found = fetch(f"{server.url}#m")
    rows, address = found.embeddings, found.address
    assert rows.tolist() == [[1, 1], [2, 1], [3, 1]]
    assert rows.dtype == np.float32
    assert server.posted() == [(path, body)]
    assert address.url == server.url + path


def test_what_the_path_says_is_not_asked(serve):
    """A URL that tells the dialect goes without a probe."""
    server = serve(v1__embeddings=openai)
    fetch(f"{server.url}/v1#m")
    assert [one[:2] for one in server.seen] == [("POST", "/v1/embeddings")]


@pytest.mark.parametrize(
    ("routes", "name"),
    [
        ({"v1__embeddings": openai, "v1__models": {"data": [{"id": "sole"}]}}, "sole"),
        (
            {
                "api__version": {"version": "1"}, "api__embed": ollama,
                "api__tags": {"models": [{"name": "sole:latest"}]},
            },
            "sole:latest",
        ),
        ({"v1__embeddings": openai}, ""),
    ],
    ids=["openai", "ollama", "a server that does not tell"],
)  # fmt: skip
def test_the_only_model_needs_no_name(serve, routes, name):
    """One of several does, and is asked for."""
    server = serve(**routes)
    assert fetch(server.url).address.model == name
    assert server.posted()[0][1].get("model", "") == name


def test_one_of_several_models_has_to_be_named(serve):
    """The message has their names."""
    server = serve(v1__embeddings=openai, v1__models={"data": [{"id": "one"}, {"id": "two"}]})
    with pytest.raises(RemoteError, match=r"one, two\. Add one to the URL: #NAME"):
        fetch(server.url)


def test_a_server_of_one_model_is_not_asked_for_another(serve):
    """TEI would give the vectors of the model that it has."""
    server = serve(info={"model_id": "org/Has-This"}, embed=tei)
    for url in (server.url, f"{server.url}/embed"):
        with pytest.raises(RemoteError, match=r"serves org/Has-This, not wants-that"):
            fetch(f"{url}#wants-that")
        assert fetch(f"{url}#has-this").address.model == "org/Has-This"


def test_texts_go_in_batches(serve):
    """32 a request, in order, and each is told."""
    server, told = serve(embed=tei), []
    texts = ["x" * n for n in range(1, 71)]
    rows = fetch(f"{server.url}/embed", texts, on_texts=told.append).embeddings
    assert rows[:, 0].tolist() == list(range(1, 71))
    assert told == [32, 32, 6]
    assert [len(body["inputs"]) for _, body in server.posted()] == [32, 32, 6]


def test_a_key_is_a_bearer_token(serve):
    """It goes with every request, and only where there is one."""
    server = serve(v1__embeddings=openai)
    fetch(f"{server.url}#m", api_key="k")
    assert {one[3].get("Authorization") for one in server.seen} == {"Bearer k"}
    fetch(f"{server.url}/v1#m")
    assert "Authorization" not in server.seen[-1][3]


def test_a_server_on_this_machine_is_behind_no_proxy(serve, monkeypatch):
    """Whatever the environment says of the world outside."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert len(fetch(f"{serve(embed=tei).url}/embed").embeddings) == 3


@pytest.mark.parametrize("host", ["localhosting.com", "127.example.org", "127.0.0.1.example.org", "::1.example.org"])
def test_a_name_that_begins_like_this_machine_goes_to_the_proxy(serve, monkeypatch, host):
    """It is a whole name or address that is this machine's."""
    proxy = serve()
    proxy.routes[f"http://{host}/embed"] = tei
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setattr(remote, "_CONNECT_TIMEOUT_S", 1.0)
    if host.startswith("::1"):  # no URL has it
        assert not remote._is_here(f"http://{host}/")
        return
    assert len(fetch(f"http://{host}/embed").embeddings) == 3
    assert proxy.posted()[0][0] == f"http://{host}/embed"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:1/", True),
        ("http://LOCALHOST/", True),
        ("http://127.8.9.10:1/", True),
        ("http://[::1]:1/", True),
        ("http://192.168.0.1/", False),
        ("http://[::2]/", False),
        ("http://localhost.example.org/", False),
    ],
)
def test_what_is_this_machine(url, expected):
    """Its name, and the addresses of loopback."""
    assert remote._is_here(url) is expected


# What goes wrong


def test_a_connection_that_breaks_once_is_tried_again(serve):
    """Once: a server that breaks twice is told."""
    server = serve(embed=tei)
    server.breaks = 1
    assert len(fetch(f"{server.url}/embed").embeddings) == 3
    server.breaks = 2
    with pytest.raises(RemoteError, match="broke off"):
        fetch(f"{server.url}/embed")
    assert server.breaks == 0


def test_nobody_there(unused_port):
    """The message says how to go on."""
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1.*cannot be reached.*Start the server") as caught:
        fetch(f"http://127.0.0.1:{unused_port}/embed")
    assert caught.value.url == f"http://127.0.0.1:{unused_port}/embed"


@pytest.fixture
def unused_port(serve):
    server = serve()
    server.close()
    return server.server.server_port


def test_a_server_that_takes_too_long(serve):
    """The time is in the message; nothing is tried twice."""
    waiting = threading.Event()
    server = serve(embed=lambda _: (waiting.wait(5), (200, []))[1])
    with pytest.raises(RemoteError, match=r"did not answer within 0\.2 s"):
        fetch(f"{server.url}/embed", timeout_s=0.2)
    waiting.set()
    assert len(server.posted()) == 1


@contextlib.contextmanager
def dripping(head):
    """A server that sends these bytes, and a blank each 20 ms from then on."""
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(head)
                while not is_over.wait(0.02):
                    connection.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            is_over.set()
            thread.join()


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b"HTTP/1.1 200 OK\r\nserver:"], ids=["body", "head"]
)
def test_a_server_that_drips_is_not_waited_for(head):
    """The time is for the whole answer, not for each of its bytes; nobody goes on reading afterwards."""
    with dripping(head) as url:
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"did not answer within 0\.3 s"):
            fetch(f"{url}/embed", timeout_s=0.3)
        assert time.monotonic() - began < 2
        for thread in threading.enumerate():
            if thread.name == "gguf-embed-remote":
                thread.join(5)
                assert not thread.is_alive()


def test_an_answer_has_a_greatest_size(serve, monkeypatch):
    """What is larger is not read to its end."""
    monkeypatch.setattr(remote, "_N_BYTES_ANSWER", 1 << 20)
    server = serve(embed=lambda _: (200, b" " * (3 << 20)))
    with pytest.raises(RemoteError, match="answered more than 1 MiB") as caught:
        fetch(f"{server.url}/embed")
    assert caught.value.url == f"{server.url}/embed"


def test_the_greatest_size_has_room_for_vectors():
    """Four times what 32 of 8192 numbers take, a line and all digits each."""
    rows = [[-1.2345678901234567e-05] * 8192] * 32
    assert 4 * len(json.dumps(rows, indent=1)) < remote._N_BYTES_ANSWER


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("path", "routes", "words"),
    [
        ("/embed", {"embed": lambda _: (200, DEEP)}, "no JSON"),
        ("/embed", {"embed": lambda _: (500, DEEP)}, "answered 500"),
        ("", {"api__version": lambda _: (200, DEEP), "v1__embeddings": lambda _: (200, [])}, "no list of vectors"),
        *[
            ("/v1#m", {"v1__embeddings": lambda _, n=n: (200, b'{"data": [{"index": %s1%s}]}' % (b"[" * n, b"]" * n))},
             "answered")
            for n in (50, 300, 600, 900)
        ],
        *[
            ("/embed", {"embed": lambda _, n=n: (500, b'{"error": %s1%s}' % (b"[" * n, b"]" * n))}, "answered 500")
            for n in (50, 300, 600, 900)
        ],
        *[
            ("", {"info": b'{"model_id": %s1%s}' % (b"[" * n, b"]" * n), "embed": lambda _: (200, [])}, "answered")
            for n in (50, 600, 900)
        ],
    ],
)  # fmt: skip
def test_an_answer_that_is_nested_too_deeply_is_told(serve, path, routes, words):
    """As any other that is no vectors, wherever it comes."""
    with pytest.raises(RemoteError, match=words):
        fetch(serve(**routes).url + path)


def test_a_place_that_is_no_url_is_told(serve, monkeypatch):
    """A redirect may lead to anything; a password in it is not shown either."""
    server = serve(embed=lambda _: (302, b""))
    real = BaseHTTPRequestHandler.send_header

    def send_header(self, name, value):
        real(self, name, "http://u:secret@[x/?key=secret" if name == "location" else value)

    monkeypatch.setattr(BaseHTTPRequestHandler, "send_header", send_header)
    with pytest.raises(RemoteError, match=r"leads to http://\[x/ \(302\)") as caught:
        fetch(f"{server.url}/embed")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (401, {"error": {"message": "no key"}}, r"answered 401 to texts 1 to 3: no key\. .*--api-key"),
        (404, {"error": "model 'm' not found"}, r"404 .*model 'm' not found.*ollama pull m"),
        (422, {"error": "too long", "error_type": "Validation"}, "422 to texts 1 to 3: too long. Check the texts"),
        (400, {"detail": [{"msg": "bad"}]}, "bad"),
        (500, b"<html>oops", "500 to texts 1 to 3"),
        (429, {"error": "busy\x1b[31m now"}, r"busy \[31m now\. Wait"),
        (302, b"", "leads to http://elsewhere.test/"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(serve, status, content, words):
    """With what to do next; nothing in it moves a terminal's cursor, and nothing is tried twice."""
    server = serve(api__embed=lambda _: (status, content))
    with pytest.raises(RemoteError, match=words) as caught:
        fetch(f"{server.url}/api/embed#m")
    assert str(caught.value).isprintable()
    assert len(server.posted()) == 1


def test_a_refused_probe_asks_for_a_key(serve):
    """Where even the routes that tell the dialect want one."""
    server = serve(api__version=lambda _: (401, {"error": "no"}))
    with pytest.raises(RemoteError, match="--api-key"):
        fetch(server.url)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("embed", b"hello", "no JSON: 'hello'"),
        ("embed", {"no": 1}, "no list of vectors"),
        ("embed", rows_of(TEXTS)[:2], "2 vectors for 3 texts"),
        ("embed", [[1, 2], [1], [1, 2]], "different lengths"),
        ("embed", [[1, 2], [None, 1], [1, 2]], "no matrix of numbers for texts 1 to 3"),
        ("embed", [[1, 2], [float("nan"), 1], [1, 2]], "NaN or infinity for text 2"),
        ("embed", [[1, 2], [1e300, 1], [1, 2]], "NaN or infinity for text 2"),
        ("embed", [[], [], []], "no matrix"),
        ("api/embed", [], "no list of vectors"),
        ("v1/embeddings", {"data": [1, 2, 3]}, "no list of vectors"),
        ("v1/embeddings", {"data": [{"index": 0, "embedding": [1]}] * 3}, "indexes are not those"),
    ],
)
def test_an_answer_that_is_no_vectors_is_told(serve, path, content, words):
    """And which URLs are."""
    server = serve(**{path.replace("/", "__"): lambda _: (200, content)})
    with pytest.raises(RemoteError, match=words):
        fetch(f"{server.url}/{path}#m" if path != "embed" else f"{server.url}/embed")


def test_vectors_have_one_length(serve):
    """Another model in the middle of it is noticed."""
    server = serve(embed=lambda body: (200, [[1.0] * len(body["inputs"])] * len(body["inputs"])))
    with pytest.raises(RemoteError, match="changed its model meanwhile"):
        fetch(f"{server.url}/embed", ["x"] * 33)
