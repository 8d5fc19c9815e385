"""The server's small parts: settings, refusals, figures, and rows as JSON."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette")

from gguf_embed import errors
from gguf_embed.errors import DimensionError, DownloadError, GGUFEmbedError, WorkerCrashedError
from gguf_embed.server.metrics import Metrics
from gguf_embed.server.refusals import STATUS, Refusal, hide, public_words, refusal_of
from gguf_embed.server.rows import reply_with_rows, to_base64
from gguf_embed.server.service import wrong_options
from gguf_embed.server.settings import ServerSettings, is_loopback, parse_keep_alive

CLASSES = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, GGUFEmbedError)]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("-1", math.inf), (-1, math.inf), ("-1m", math.inf), (0, 0), ("0", 0), ("0s", 0),
     (300, 300), ("300", 300), ("1.5s", 1.5), ("100ms", 0.1), (" 2s ", 2)],
)  # fmt: skip
def test_keep_alive_is_ollamas(value, seconds):
    """Seconds, or a duration; below 0 for always."""
    assert parse_keep_alive(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["soon", "", "5 m", "m", "5x", "nan", math.nan])
def test_a_keep_alive_that_is_none_is_told(value):
    """A ValueError."""
    with pytest.raises(ValueError, match="keep_alive"):
        parse_keep_alive(value)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.1.2.3", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("127.0.0.1.evil", False), ("", False)],
)  # fmt: skip
def test_loopback_is_known(host, is_local):
    """Everything else needs a key."""
    assert is_loopback(host) is is_local
    if is_local:
        ServerSettings(models=("x",), host=host)
    else:
        with pytest.raises(ValueError, match="API key"):
            ServerSettings(models=("x",), host=host)
        ServerSettings(models=("x",), host=host, api_key="long enough")


def test_the_key_is_not_shown():
    """Not even in a traceback's repr."""
    assert "long enough" not in repr(ServerSettings(models=("x",), api_key="long enough"))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda one: one.__name__)
def test_every_class_of_error_has_a_status(cls):
    """The nearest class in the table counts; only the base has none."""
    found = [one for one in cls.__mro__ if one in STATUS]
    assert found or cls is GGUFEmbedError


def test_bugs_are_no_refusals():
    """They are logged and answered with 500."""
    assert refusal_of(KeyError("x")) is None
    assert refusal_of(ValueError("wrong")) is None
    with pytest.raises(Refusal, match="wrong") as caught, wrong_options():
        raise ValueError("wrong")
    assert caught.value.status == 400
    with pytest.raises(DimensionError), wrong_options():
        raise DimensionError("x", dim=1, allowed="2")
    refusal = Refusal(404, "x")
    assert refusal_of(refusal) is refusal


@pytest.mark.parametrize(
    ("message", "public"),
    [
        ("/home/me/.cache/hub/model.gguf: no", "model.gguf: no"),
        ("error:/home/joe/models/x.gguf", "error:x.gguf"),
        ("/known/Some Folder/models/x.gguf: no", "models/x.gguf: no"),
        ("C:\\Users\\me\\x.gguf is gone", "x.gguf is gone"),
        ("~/models/x.gguf", "x.gguf"),
        ("owner/repo/file.gguf has none", "owner/repo/file.gguf has none"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("1/2 of it", "1/2 of it"),
        ("token hf_abcdefghijklmnop refused", "token [...] refused"),
        ("Bearer abc refused", "Bearer [...] refused"),
    ],
)
def test_clients_read_no_folders_and_no_secrets(message, public):
    """The last part of a path is enough; of folders that are known, what is below them."""
    hide(Path("/known/Some Folder"))
    assert public_words(message) == public
    assert refusal_of(DownloadError(message, url="u", attempts=1)).message == public


def test_figures_are_counted():
    """And the speed is that of the last ten seconds."""
    now = [100.0]
    metrics = Metrics(lambda: [("queue_texts", "Texts.", 7, {}), ("model_loaded", "In memory.", 1, {"model": "m"})],
                      clock=lambda: now[0])  # fmt: skip
    metrics.decoded("m", 10, 200, 0.1, n_room=400)
    metrics.answered("openai", 200, 0.2)
    metrics.crashed("m", WorkerCrashedError("x", why="y", return_code=-6))
    text = metrics.render().decode()
    for line in (
        'texts_total{model="m"} 10.0', 'requests_total{dialect="openai",status="200"} 1.0', "queue_texts 7.0",
        'step_fill_ratio_bucket{le="0.5",model="m"} 1.0', 'worker_crashes_total{model="m"} 1.0',
        'model_loaded{model="m"} 1.0',
    ):  # fmt: skip
        assert f"\ngguf_embed_{line}\n" in text
    assert metrics.speed() == (1, 20)
    now[0] += 11
    assert metrics.speed() == (0, 0)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 300, 1000])
@pytest.mark.parametrize("form", ["float", "base64"])
def test_rows_are_written_whole_whatever_their_number(n_rows, form):
    """In one piece or in parts, every component comes back bit by bit."""
    rows = np.random.default_rng(0).standard_normal((n_rows, 384)).astype(np.float32)
    write = to_base64 if form == "base64" else lambda row: row
    reply = reply_with_rows(rows, lambda index, row: [index, write(row)], lambda data: {"data": data, "rest": {"a": 1}})
    told = json.loads(asyncio.run(whole(reply)))
    assert told["rest"] == {"a": 1}
    assert [index for index, _ in told["data"]] == list(range(n_rows))
    for row, (_, item) in zip(rows, told["data"], strict=True):
        found = np.frombuffer(base64.b64decode(item), dtype="<f4") if form == "base64" else np.float32(item)
        assert np.array_equal(found, row)


async def whole(reply):
    """The body of a response."""
    if hasattr(reply, "body"):
        return reply.body
    return b"".join([part async for part in reply.body_iterator])
