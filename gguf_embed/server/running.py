"""A server's life: its socket, its signals, its parent, and the line that says where it listens.

It must not know routes or models.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from gguf_embed.config import Config
from gguf_embed.errors import ConfigError
from gguf_embed.fit.host import is_running
from gguf_embed.server.app import App
from gguf_embed.server.protocol import PatientProtocol
from gguf_embed.server.settings import ServerSettings

__all__ = ["run"]

_GRACE_S = 10
_KEEP_ALIVE_S = 75  # longer than clients keep an idle connection, so that theirs is never closed under them
_TICKS_LOOK = 10  # of 0.1 s


def run(
    settings: ServerSettings, config: Config, *, on_ready: Callable[[str], None], exit_with_parent: bool = False
) -> None:
    """Serve until a signal, or the parent's end.

    Args:
        settings: of the server.
        config: of the user.
        on_ready: called once with the address when connections are accepted.
        exit_with_parent: stop when the process that started this one is gone.

    Raises:
        ConfigError: the address cannot be had.
        RegistryError: a model that is to be served is unknown.
    """
    app = App(settings, config)
    with _listening(settings) as (listener, url):
        for name in ("uvicorn", "uvicorn.error"):
            logging.getLogger(name).setLevel(logging.ERROR)
        how = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
        _Server(how, on_ready=lambda: on_ready(url), parent=os.getppid() if exit_with_parent else None).run([listener])


class _Server(uvicorn.Server):
    """uvicorn's, that tells when it is ready and stops when its parent is gone."""

    def __init__(self, config: uvicorn.Config, *, on_ready: Callable[[], None], parent: int | None) -> None:
        super().__init__(config)
        self._on_ready, self._parent = on_ready, parent

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, and tell."""
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop for a signal, and take it as answered: uvicorn would end the process by it once more."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()

    async def on_tick(self, counter: int) -> bool:
        """Look after the parent now and then."""
        if self._parent is not None and counter % _TICKS_LOOK == 0 and self._is_orphan():
            self.should_exit = True
        return await super().on_tick(counter)

    def _is_orphan(self) -> bool:
        # Windows tells of a parent that is gone as if it was there.
        return os.getppid() != self._parent or not is_running(self._parent)


@contextlib.contextmanager
def _listening(settings: ServerSettings):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a generator of two
    """Open the socket; yields it and the address that clients use."""
    if settings.uds is not None:
        path = Path(settings.uds)
        listener = _unix_listener(path)
        try:
            yield listener, f"unix:{path.absolute()}"
        finally:
            path.unlink(missing_ok=True)
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    host = settings.host.strip("[]")
    try:
        listener = socket.create_server((host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"{host}:{settings.port} cannot be bound: {error.strerror}. Choose another with --port, or --port 0 for a "
            "free one.",
            key="port",
        ) from error
    port = listener.getsockname()[1]
    yield listener, f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _unix_listener(path: Path) -> socket.socket:
    """Bind a UNIX socket that this user alone may use; one that nobody listens on any more is replaced."""
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("this system has no UNIX sockets; use --host and --port", key="uds")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_answered(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{path} cannot be bound: {error.strerror or error}", key="uds", path=path) from error
    finally:
        os.umask(before)
    return listener


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(path)) == 0
