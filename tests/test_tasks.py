"""quality/tasks.py without mteb; tests/hosts/test_mteb.py has the rest."""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import pytest

from gguf_embed.errors import DownloadError, MissingExtraError
from gguf_embed.quality.tasks import find_tasks, load_tasks, run_tasks


@pytest.mark.parametrize("ask", [lambda: find_tasks(["a"]), lambda: run_tasks(None, [])])  # fmt: skip
def test_without_mteb_it_is_said_at_the_door(ask, monkeypatch):
    """With the line that installs it."""
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name.split(".")[0] == "mteb":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r'pip install "gguf-embed\[mteb\]"'):
        ask()


def test_data_that_cannot_be_had():
    """Whatever its loader raises is an error of the network, in its own words' first line."""

    def refuse():
        raise ConnectionError("Couldn't reach the hub\nin three tries")

    metadata = SimpleNamespace(name="T", dataset={"path": "owner/data"})
    with pytest.raises(DownloadError, match="the data of T cannot be had: Couldn't reach the hub; go online") as caught:
        load_tasks([SimpleNamespace(load_data=refuse, metadata=metadata)])
    assert caught.value.url == "owner/data"
