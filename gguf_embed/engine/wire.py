"""Frames between a process and its child: a small pickled message and a body of raw bytes, such as rows of float32.

It must not know what the messages say. Both ends are this program, so what is unpickled is its own.
"""

from __future__ import annotations

import pickle
import struct
import threading
from typing import Any, BinaryIO

__all__ = ["Channel"]

_LENGTHS = struct.Struct("<QQ")  # bytes of the message, bytes of the body


class Channel:
    """One direction each of a pair of pipes; any thread may send, one thread receives.

    Args:
        reader: read to its end by `receive`.
        writer: written whole frames at a time.
    """

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader, self._writer = reader, writer
        self._lock = threading.Lock()

    def send(self, message: Any, body: bytes | memoryview = b"") -> None:
        """Write one frame.

        Raises:
            OSError: the other end is gone.
        """
        encoded = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._writer.write(_LENGTHS.pack(len(encoded), len(body)))
            self._writer.write(encoded)
            if len(body):
                self._writer.write(body)
            self._writer.flush()

    def receive(self) -> tuple[Any, bytes] | None:
        """Read one frame; None where the other end has ended, in the middle of a frame too."""
        lengths = self._reader.read(_LENGTHS.size)
        if len(lengths) < _LENGTHS.size:
            return None
        n_message, n_body = _LENGTHS.unpack(lengths)
        encoded = self._reader.read(n_message)
        body = self._reader.read(n_body)
        if len(encoded) < n_message or len(body) < n_body:
            return None
        return pickle.loads(encoded), body  # noqa: S301 - the other end is this program

    def end(self) -> None:
        """Close the writing end, which is how the other one knows that no more comes."""
        with self._lock:
            self._writer.close()

    def close(self) -> None:
        """Close the reading end, when nothing comes any more."""
        self._reader.close()
