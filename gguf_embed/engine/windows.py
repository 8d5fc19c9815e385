"""Tokenizes a long list window by window in a second thread, ahead of what is being decoded.

It must not know tokenizers, contexts or vectors.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["N_TEXTS_WINDOW", "Windows"]

# Texts that are sorted and packed together. Source: 1,024 sentences take some 20 ms to tokenize and a second to embed.
N_TEXTS_WINDOW = 1024

T = TypeVar("T")


class Windows(Generic[T]):
    """The results of one function over consecutive windows of a list, computed ahead.

    Args:
        compute: what to do to a window, given its first position and its texts.
        texts: all of them; a list of one window is done in the caller's thread.
        n_texts: texts of a window, at least 1.
    """

    def __init__(
        self, compute: Callable[[int, Sequence[str]], T], texts: Sequence[str], *, n_texts: int = N_TEXTS_WINDOW
    ) -> None:
        self._compute, self._texts, self._n_texts = compute, texts, n_texts
        self._starts = range(0, len(texts), n_texts)
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: collections.deque[Future[T]] = collections.deque()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        if len(self._starts) > 1:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gguf-embed-tokenize")
            self._ahead.extend(self._pool.submit(self._window, start) for start in self._starts)
        return self

    def _window(self, start: int) -> T:
        try:
            return self._compute(start, self._texts[start : start + self._n_texts])
        except BaseException as error:
            self._error = self._error or error
            raise

    def __iter__(self) -> Iterator[tuple[int, T]]:
        """Yield each window's first position and result, in order."""
        for start in self._starts:
            yield start, self._ahead.popleft().result() if self._pool is not None else self._window(start)

    def check(self) -> None:
        """Raise what has gone wrong in a later window already, instead of finding it when its turn comes."""
        if self._error is not None:
            raise self._error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
