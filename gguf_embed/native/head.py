"""Stops a decode before the vocabulary projection, and takes the rows that would go into it.

An embedder needs the final norm of each text's last token; llama.cpp would go on to score the whole vocabulary.
It must not know batches or pooling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.errors import DecodeError
from gguf_embed.native import ggml
from gguf_embed.native.backend import backend

__all__ = ["HeadStop"]

# What every decoder's graph calls the rows after its last norm. Source: src/models/*.cpp, cb(cur, "result_norm", -1).
_LAST_NORM = b"result_norm"


class HeadStop:
    """An evaluation callback for one context: it copies `result_norm` and tells the scheduler to stop there.

    Source: ggml/src/ggml-backend.cpp, ggml_backend_sched_compute_splits: a callback that returns False ends its split.

    Args:
        n_embd: components of a row.
    """

    def __init__(self, n_embd: int) -> None:
        self._n_embd = n_embd
        self._base, _ = ggml.libraries()
        self._copies: list[NDArray[np.float32]] = []
        self._error: BaseException | None = None
        self._is_stopped = False
        # ctypes frees a callback that nobody holds, and llama.cpp would call into nothing.
        self.callback: Any = backend().ggml_backend_sched_eval_callback(self._evaluate)

    def _evaluate(self, tensor: int, ask: bool, _user_data: Any) -> bool:
        if self._is_stopped:
            return ask  # compute no more than this node, and stop
        try:
            if self._base.ggml_get_name(tensor) != _LAST_NORM:
                return not ask
            if not ask:
                self._copies.append(self._copy(tensor))
        except BaseException as error:  # noqa: BLE001 - ctypes would print and forget it; raise_error() brings it back
            self._error = error
            self.stop()
        return ask

    def _copy(self, tensor: int) -> NDArray[np.float32]:
        n_bytes = self._base.ggml_nbytes(tensor)
        rows = np.empty((n_bytes // (4 * self._n_embd), self._n_embd), dtype=np.float32)
        if rows.nbytes:
            self._base.ggml_backend_tensor_get(tensor, rows.ctypes.data, 0, rows.nbytes)
        return rows

    def stop(self) -> None:
        """End the decode that is running at its next node; its rows are then missing."""
        self._is_stopped = True

    def clear(self) -> None:
        """Forget the rows of the last decode, and let the next one run."""
        self._copies.clear()
        self._is_stopped = False

    def rows(self) -> NDArray[np.float32]:
        """Return the rows of the last decode, (n_outputs, n_embd) float32 in batch order.

        Raises:
            DecodeError: the graph has no final norm of that name.
        """
        if not self._copies:
            raise DecodeError("this model's graph has no result_norm to stop at", return_code=0)
        return self._copies[0] if len(self._copies) == 1 else np.concatenate(self._copies)

    def raise_error(self) -> None:
        """Raise what happened inside the callback, a Ctrl-C for one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
