"""Texts that come more than once in a call: each is embedded once and its row copied.

It must not know tokens or sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Repeats"]


class Repeats:
    """The different ones of some texts, in the order in which they come first.

    Args:
        texts: any strings.

    Attributes:
        texts: each once.
        positions: (n_different,) where each of these comes first.
        again: where a text stands that came before.

    Raises:
        TypeError: an item is not a str.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        first: dict[str, int] = {}
        self._which = np.empty(len(texts), dtype=np.intp)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {index} is {type(text).__name__}; texts are str")
            self._which[index] = first.setdefault(text, len(first))
        self.texts = list(first)
        self.positions: NDArray[np.intp] = np.empty(len(first), dtype=np.intp)
        self.positions[self._which[::-1]] = np.arange(len(texts), dtype=np.intp)[::-1]
        self.again = np.flatnonzero(self.positions[self._which] != np.arange(len(texts))).tolist()

    def spread(self, values: NDArray[np.intp]) -> NDArray[np.intp]:
        """Give every text the value of its like; (n_different,) to (n,)."""
        return values[self._which]

    def copy(self, rows: NDArray[np.float32]) -> None:
        """Fill the rows of texts that came before from those where they did."""
        if self.again:
            rows[self.again] = rows[self.positions[self._which[self.again]]]

    def all_of(self, positions: Iterable[int]) -> list[int]:
        """Find every position of the texts that come first at some."""
        chosen = np.isin(self.positions[self._which], np.fromiter(positions, dtype=np.intp))
        return np.flatnonzero(chosen).tolist()
