"""From exceptions to HTTP status codes, and the words that a client may read.

It must not know routes or dialects.
"""

from __future__ import annotations

import os
import re
from http import HTTPStatus
from pathlib import Path

from gguf_embed import errors

__all__ = ["STATUS", "Refusal", "hide", "public_words", "refusal_of"]

# Status of each class of error; the nearest class in the table counts.
STATUS: dict[type[errors.GGUFEmbedError], HTTPStatus] = {
    errors.ConfigError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.InvalidRegistryError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.RegistryError: HTTPStatus.NOT_FOUND,
    errors.HubError: HTTPStatus.BAD_GATEWAY,
    errors.OfflineError: HTTPStatus.NOT_FOUND,
    errors.StorageError: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.DoesNotFitError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.BackendError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ClosedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.WorkerCrashedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.InputError: HTTPStatus.BAD_REQUEST,
    errors.JobError: HTTPStatus.CONFLICT,
    errors.FingerprintError: HTTPStatus.CONFLICT,
    errors.MissingExtraError: HTTPStatus.NOT_IMPLEMENTED,
    errors.RemoteError: HTTPStatus.BAD_GATEWAY,
}
# An absolute path in words: of it, clients are told the last part alone.
_PATH = re.compile(r"(?<![\w./])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/:,;'\"]+[\\/])+([^\s\\/:,;'\"]*)")
_SECRET = re.compile(r"\bhf_\w{8,}|(?<=Bearer )\S+")


class Refusal(Exception):  # noqa: N818 - it is what is answered, and no failure of this program
    """An answer that is not the wanted one.

    Attributes:
        status: of HTTP.
        message: for the client; no paths, no secrets.
        param: the field that is at fault, None for none.
        code: a word for programs, None for none.
        retry_after_s: when to try again, None where that would not help.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, public_words(message), param, code
        self.retry_after_s = retry_after_s


def public_words(message: str) -> str:
    """Take folders and secrets out of a message: other users and web pages may read it."""
    for folder in _folders:
        message = message.replace(folder, "")
    return _SECRET.sub("[...]", _PATH.sub(r"\1", message))


_folders: list[str] = []  # longest first


def hide(*folders: Path) -> None:
    """Take these folders out of every message from now on, whatever is in their names."""
    for folder in folders:
        name = str(folder)
        _folders.extend(
            spelling for spelling in (f"{name}{os.sep}", name) if len(name) > 1 and spelling not in _folders
        )
    _folders.sort(key=len, reverse=True)


def refusal_of(error: Exception) -> Refusal | None:
    """Turn an error that a request may meet into its answer; None for a bug."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, errors.GGUFEmbedError):
        status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
        return Refusal(status, str(error), param=_param_of(error), code=_code_of(error))
    return None


_CODES: dict[type[Exception], str] = {
    errors.TextTooLongError: "context_length_exceeded",
    errors.UnknownModelError: "model_not_found",
    errors.UnknownQuantError: "model_not_found",
    errors.OfflineError: "model_not_found",
    errors.DoesNotFitError: "insufficient_memory",
    errors.WorkerCrashedError: "worker_crashed",
    errors.BackendError: "backend",
}


def _code_of(error: errors.GGUFEmbedError) -> str | None:
    return next((_CODES[cls] for cls in type(error).__mro__ if cls in _CODES), None)


def _param_of(error: errors.GGUFEmbedError) -> str | None:
    if isinstance(error, errors.DimensionError):
        return "dimensions"
    if isinstance(error, errors.InputError):
        return "input"
    return "model" if isinstance(error, errors.RegistryError) else None
