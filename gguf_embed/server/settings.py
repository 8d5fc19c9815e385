"""What a server is told: values, checked.

It must not know sockets, routes or the environment.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from gguf_embed.fit.planner import Limits

__all__ = ["DEFAULT_PORT", "KEEP_ALIVE_S", "ServerSettings", "is_loopback", "parse_keep_alive"]

DEFAULT_PORT = 11435  # beside Ollama's 11434
KEEP_ALIVE_S = 300.0
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1|\[::1\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How to serve.

    Attributes:
        models: references; the first is meant where a request names none.
        aliases: (name, reference) pairs that clients may use besides.
        host: address to bind.
        port: to bind, 0 for a free one.
        uds: path of a UNIX socket in place of host and port.
        api_key: that clients must send; needed to bind anything but loopback.
        allow_hosts: names that a Host header may have besides those of this machine.
        allow_origins: web origins that may call, besides those of local pages and desktop apps; * for all.
        keep_alive_s: how long an idle model stays in memory; infinite for always.
        preload: load the models at the start.
        max_body_bytes: of a request.
        max_inputs: texts of a request.
        max_queue: requests that wait for a model; beyond that is 429.
        timeout_s: for a request, from its arrival to its answer.
        limits: what all models together may use, and how they are planned.
        prefer: which quantizations come first.
    """

    models: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    uds: str | None = None
    api_key: str | None = field(default=None, repr=False)
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    keep_alive_s: float = KEEP_ALIVE_S
    preload: bool = True
    max_body_bytes: int = 32 << 20  # 32 MiB
    max_inputs: int = 2048
    max_queue: int = 512
    timeout_s: float = 600.0
    limits: Limits = field(default_factory=Limits)
    prefer: str = "default"

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models is empty; name one")
        if self.api_key is not None and (len(self.api_key) < 8 or not self.api_key.isascii()):
            raise ValueError(
                "the API key is too short or not ASCII; take 8 characters or more, such as: openssl rand -hex 16"
            )
        if self.uds is None and not is_loopback(self.host) and self.api_key is None:
            raise ValueError(
                f"{self.host} can be reached from other machines, so an API key is needed: --api-key-file FILE or "
                "GGUF_EMBED_API_KEY"
            )
        for name in ("max_body_bytes", "max_inputs", "max_queue", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is above 0")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.uds is not None or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own alone."""
    return _LOOPBACK.fullmatch(host) is not None


def parse_keep_alive(value: str | float) -> float:
    """Read Ollama's keep_alive.

    Args:
        value: seconds, or a duration such as "5m", "1h30m" or "-1"; below 0 for always.

    Returns:
        Seconds, at least 0; infinite for always.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        text = value.strip()
        sign = -1.0 if text.startswith("-") else 1.0
        text = text.removeprefix("-")
        try:
            seconds = sign * float(text)
        except ValueError:
            parts = _DURATION.findall(text)
            if not parts or "".join(number + unit for number, unit in parts) != text:
                raise ValueError(f'keep_alive is {value!r}; it is seconds or a duration such as "5m"') from None
            seconds = sign * sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    else:
        seconds = float(value)
    if math.isnan(seconds):
        raise ValueError("keep_alive is no number")
    return math.inf if seconds < 0 else seconds
