"""Decodes many batches side by side: an encoder's matrices are small, and threads that share one wait for each other.

It must not know texts, packing or guards.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.decoder import Decoder
from gguf_embed.engine.prefixes import Tokens
from gguf_embed.errors import BackendError

__all__ = ["Crew"]

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]


class Crew:
    """Decoders of one model that each have some of the threads; opened when there is first work for them.

    Args:
        open_decoder: opens one of them.
        n_decoders: how many; below 2 there is no crew.
    """

    def __init__(self, open_decoder: Callable[[], Decoder], n_decoders: int) -> None:
        self._open_decoder, self._n_decoders = open_decoder, n_decoders
        self._lock = threading.Lock()  # one call's batches at a time
        self._decoders: list[Decoder] = []

    def can_take(self, batches: Sequence[Sequence[Tokens]]) -> bool:
        """Whether these are enough for all, and none is too large for them; opens the decoders.

        Where memory for them is refused there is no crew from then on.
        """
        if self._n_decoders < 2 or len(batches) < self._n_decoders:
            return False
        with self._lock:
            try:
                while len(self._decoders) < self._n_decoders:
                    self._decoders.append(self._open_decoder())
            except BackendError as error:
                logger.warning("batches are decoded one after the other, which is slower: %s", error)
                self._n_decoders = 0
                self._close()
                return False
            if all(sum(map(len, batch)) <= self._decoders[0].room_for(0) for batch in batches):
                return True
            # A longer text makes the first context grow, and the plan has no room for that and for these.
            self._n_decoders = 0
            self._close()
            return False

    def decode(self, batches: Sequence[Sequence[Tokens]]) -> Generator[tuple[int, Float32Matrix]]:
        """Run batches, a decoder each at a time.

        Yields:
            A batch's position and its rows, in the order in which they are ready.

        Raises:
            DecodeError: one failed; the others are not begun any more.
        """
        with self._lock, ThreadPoolExecutor(self._n_decoders, thread_name_prefix="gguf-embed-decode") as pool:
            free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
            for decoder in self._decoders:
                free.put(decoder)

            def decode(batch: Sequence[Tokens]) -> Float32Matrix:
                decoder = free.get()
                try:
                    return decoder.decode(batch)
                finally:
                    free.put(decoder)

            futures = {pool.submit(decode, batch): position for position, batch in enumerate(batches)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _close(self) -> None:
        while self._decoders:
            self._decoders.pop().close()

    def close(self) -> None:
        """Free the contexts; waits for a running call, and closing twice is allowed."""
        with self._lock:
            self._n_decoders = 0
            self._close()
