"""Decodes many batches side by side: an encoder's matrices are small, and threads that share one wait for each other.

It must not know texts, packing or guards.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

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
        self._pool: ThreadPoolExecutor | None = None

    def decode(self, batches: Sequence[Sequence[Tokens]]) -> list[Float32Matrix] | None:
        """Run batches, a decoder each at a time; the decoders are opened when there is first work for all.

        Returns:
            The rows of each batch; None where these are too few batches, or there is no crew (any more): memory for it
            was refused, a text was too long, or it was closed.

        Raises:
            DecodeError: one failed; the others are not begun any more.
        """
        with self._lock:
            if not self._can_take(batches):
                return None
            free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
            for decoder in self._decoders:
                free.put(decoder)

            def decode(batch: Sequence[Tokens]) -> Float32Matrix:
                decoder = free.get()
                try:
                    return decoder.decode(batch)
                finally:
                    free.put(decoder)

            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._n_decoders, thread_name_prefix="gguf-embed-decode")
            futures = [self._pool.submit(decode, batch) for batch in batches]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:
                for future in futures:
                    future.cancel()
                wait(futures)
            return [future.result() for future in futures]

    def _can_take(self, batches: Sequence[Sequence[Tokens]]) -> bool:
        if self._n_decoders < 2 or len(batches) < self._n_decoders:
            return False
        try:
            while len(self._decoders) < self._n_decoders:
                self._decoders.append(self._open_decoder())
        except BackendError as error:
            logger.warning("batches are decoded one after the other, which is slower: %s", error)
            self._close()
            return False
        if all(sum(map(len, batch)) <= self._decoders[0].room_for(0) for batch in batches):
            return True
        self._close()  # a longer text makes the first context grow, and the plan has no room for that and for these
        return False

    def _close(self) -> None:
        self._n_decoders = 0
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        while self._decoders:
            self._decoders.pop().close()

    def close(self) -> None:
        """Free the contexts; waits for a running call, and closing twice is allowed."""
        with self._lock:
            self._close()
