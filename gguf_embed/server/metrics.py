"""What is counted, in Prometheus' words.

It must not know routes, models' files or how anything is computed.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gguf_embed.errors import WorkerCrashedError

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKENS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 8192, 32768)
_RECENT_S = 10.0


class Metrics:
    """Counters of one server; safe to use from any thread.

    Args:
        gauges: called at each scrape: (name, help, value, labels) of what is so at the moment.
        clock: stands in for time.monotonic, for tests.
    """

    def __init__(
        self,
        gauges: Callable[[], Iterable[tuple[str, str, float, dict[str, str]]]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = CollectorRegistry()
        self._clock = clock
        self._recent: collections.deque[tuple[float, int, int]] = collections.deque(maxlen=4096)
        known: dict[str, Any] = {"registry": self._registry, "namespace": "gguf_embed"}
        self._requests = Counter("requests", "Requests answered.", ("dialect", "status"), **known)
        self._seconds = Histogram("request_seconds", "From arrival to answer.", ("dialect",), buckets=_SECONDS, **known)
        self._texts = Counter("texts", "Texts embedded.", ("model",), **known)
        self._tokens = Counter("tokens", "Tokens embedded.", ("model",), **known)
        self._step_tokens = Histogram("step_tokens", "Tokens of a decode.", ("model",), buckets=_TOKENS, **known)
        self._step_seconds = Histogram("step_seconds", "Time of a decode.", ("model",), buckets=_SECONDS, **known)
        self._fill = Histogram(
            "step_fill_ratio", "Tokens of a decode by what it has room for.", ("model",),
            buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 1, 2), **known,
        )  # fmt: skip
        self._crashes = Counter("worker_crashes", "Workers that ended by themselves.", ("model",), **known)
        self._registry.register(_Gauges(gauges))

    def answered(self, dialect: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(dialect, str(status)).inc()
        self._seconds.labels(dialect).observe(seconds)

    def decoded(self, model: str, n_texts: int, n_tokens: int, seconds: float, *, n_room: int) -> None:
        """Count a decode."""
        self._texts.labels(model).inc(n_texts)
        self._tokens.labels(model).inc(n_tokens)
        self._step_tokens.labels(model).observe(n_tokens)
        self._step_seconds.labels(model).observe(seconds)
        self._fill.labels(model).observe(n_tokens / n_room)
        self._recent.append((self._clock(), n_texts, n_tokens))

    def crashed(self, model: str, _error: WorkerCrashedError) -> None:
        """Count a crash."""
        self._crashes.labels(model).inc()

    def speed(self) -> tuple[float, float]:
        """Texts and tokens a second, over the last ten seconds."""
        since = self._clock() - _RECENT_S
        recent = [one for one in list(self._recent) if one[0] >= since]
        return sum(one[1] for one in recent) / _RECENT_S, sum(one[2] for one in recent) / _RECENT_S

    def render(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    """What is so at the moment of a scrape."""

    def __init__(self, gauges: Callable[[], Iterable[tuple[str, str, float, dict[str, str]]]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield each gauge with all its labels."""
        families: dict[str, GaugeMetricFamily] = {}
        for name, words, value, labels in self._gauges():
            family = families.setdefault(name, GaugeMetricFamily(f"gguf_embed_{name}", words, labels=tuple(labels)))
            family.add_metric(list(labels.values()), value)
        return list(families.values())

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing is known before the first scrape."""
        return []
