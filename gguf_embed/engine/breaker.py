"""What a worker has learnt of its child: how often it crashed, and how long a decode may take.

It must not know processes or jobs.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable

from gguf_embed.errors import WorkerCrashedError

__all__ = ["Breaker", "Pace"]

logger = logging.getLogger(__name__)

# So many crashes in so long a time are a loop, and nothing is started again for a while.
_N_CRASHES, _CRASHES_S, _PAUSE_S = 3, 90.0, 60.0
# A decode may take so many times as long as the speed so far lets expect, and this long at least: a laptop that swaps.
_PATIENCE, _LEAST_S, _S_PER_TOKEN = 20, 300.0, 1.0


class Breaker:
    """The crashes of one worker, and the pause after too many.

    Args:
        name: for messages.
        clock: in seconds.
    """

    def __init__(self, name: str, *, clock: Callable[[], float]) -> None:
        self._name, self._clock = name, clock
        self._times: collections.deque[float] = collections.deque(maxlen=_N_CRASHES)
        self._last: WorkerCrashedError | None = None

    def crashed(self, words: str, return_code: int) -> WorkerCrashedError:
        """Count a crash, log it, and return the error for those whom it cost their texts."""
        self._times.append(self._clock())
        self._last = WorkerCrashedError(
            f"{self._name}'s worker {words}. It is started again when it is needed.", why=words, return_code=return_code
        )
        logger.warning("%s", self._last)
        return self._last

    @property
    def trouble(self) -> str | None:
        """Why nothing is to be started at the moment, or None."""
        if self._last is None or len(self._times) < _N_CRASHES or self._times[-1] - self._times[0] > _CRASHES_S:
            return None
        wait_s = self._times[-1] + _PAUSE_S - self._clock()
        if wait_s <= 0:
            return None
        return (
            f"{self._name}'s worker crashed {_N_CRASHES} times in {_CRASHES_S:.0f} s and is not started again for "
            f"{wait_s:.0f} s. The last time it {self._last.why}. Run gguf-embed doctor; another quantization, or "
            "--device cpu, may run."
        )

    def check(self) -> None:
        """Refuse to start another child for now.

        Raises:
            WorkerCrashedError: there were too many crashes just now.
        """
        words = self.trouble
        if words is not None and self._last is not None:
            raise WorkerCrashedError(words, why=self._last.why, return_code=self._last.return_code)


class Pace:
    """How fast decodes were, and how long one may take before something is wrong."""

    def __init__(self) -> None:
        self._s_per_token: float | None = None

    def patience_s(self, n_tokens: int) -> float:
        """Return the seconds that a decode may take."""
        if self._s_per_token is None:
            return max(_LEAST_S, n_tokens * _S_PER_TOKEN)
        return max(_LEAST_S, _PATIENCE * n_tokens * self._s_per_token)

    def took(self, n_tokens: int, seconds: float) -> None:
        """Take note of a decode; the slowest so far counts, since long texts take longer a token than short ones."""
        self._s_per_token = max(self._s_per_token or 0.0, seconds / max(1, n_tokens))
