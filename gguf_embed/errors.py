"""Every exception that gguf-embed raises for the world's failures.

It knows no other module: messages and facts are given by whoever raises.

    GGUFEmbedError                      never raised itself
    ├─ ConfigError                      path, key
    ├─ RegistryError
    │  ├─ InvalidRegistryError          path, table
    │  ├─ UnknownModelError             model_id, suggestions
    │  └─ UnknownQuantError             model_id, quant, available
    ├─ HubError
    │  ├─ OfflineError
    │  ├─ AccessDeniedError             repo
    │  ├─ DownloadError                 url, attempts
    │  ├─ ChecksumError                 path, expected, actual
    │  └─ StorageError                  path (disk full, read-only cache)
    ├─ DoesNotFitError                  required_bytes, available_bytes, rejected
    ├─ BackendError
    │  ├─ ModelLoadError                path
    │  │  ├─ AllocationError            path
    │  │  ├─ InvalidGGUFError           path
    │  │  └─ UnsupportedModelError      path (architecture, pooling, EOS, split file)
    │  ├─ DecodeError                   return_code, index, others
    │  ├─ NonFiniteEmbeddingError       index, others
    │  ├─ WorkerCrashedError            why, return_code
    │  └─ ClosedError
    ├─ InputError (+ValueError)
    │  ├─ TextTooLongError              index, n_tokens, n_ctx
    │  ├─ InvalidTextError              index, reason
    │  └─ DimensionError                dim, allowed
    ├─ JobError                         path
    ├─ FingerprintError                 expected, actual
    ├─ RemoteError                      url
    └─ MissingExtraError (+ImportError) extra

The caller's own mistakes (a negative batch_size, bytes instead of str) are stock TypeError and ValueError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = [
    "AccessDeniedError",
    "AllocationError",
    "BackendError",
    "ChecksumError",
    "ClosedError",
    "ConfigError",
    "DecodeError",
    "DimensionError",
    "DoesNotFitError",
    "DownloadError",
    "FingerprintError",
    "GGUFEmbedError",
    "HubError",
    "InputError",
    "InvalidGGUFError",
    "InvalidRegistryError",
    "InvalidTextError",
    "JobError",
    "MissingExtraError",
    "ModelLoadError",
    "NonFiniteEmbeddingError",
    "OfflineError",
    "RegistryError",
    "RemoteError",
    "StorageError",
    "TextTooLongError",
    "UnknownModelError",
    "UnknownQuantError",
    "UnsupportedModelError",
    "WorkerCrashedError",
]


class GGUFEmbedError(Exception):
    """Base of everything this package raises on purpose; catch it to catch them all.

    Subclasses carry their facts as attributes and survive pickling, so they can cross a process boundary.
    """

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, {k: v for k, v in self.__dict__.items() if k != "message"}))


def _rebuild(cls: type[GGUFEmbedError], message: str, facts: dict[str, Any]) -> GGUFEmbedError:
    error = cls.__new__(cls)
    GGUFEmbedError.__init__(error, message, **facts)
    return error


class ConfigError(GGUFEmbedError):
    """A setting in the environment or the config file cannot be used."""

    def __init__(self, message: str, *, key: str, path: Path | None = None) -> None:
        super().__init__(message, key=key, path=path)
        self.key: str
        self.path: Path | None


class RegistryError(GGUFEmbedError):
    """The model registry could not answer."""


class InvalidRegistryError(RegistryError):
    """A models.toml has a missing, unknown or wrong value; the message names file, table and key."""

    def __init__(self, message: str, *, path: Path, table: str) -> None:
        super().__init__(message, path=path, table=table)
        self.path: Path
        self.table: str


class UnknownModelError(RegistryError):
    """No model, repository or file answers to this name."""

    def __init__(self, message: str, *, model_id: str, suggestions: tuple[str, ...] = ()) -> None:
        super().__init__(message, model_id=model_id, suggestions=suggestions)
        self.model_id: str
        self.suggestions: tuple[str, ...]


class UnknownQuantError(RegistryError):
    """The model is known, this quantization of it is not, or the name fits several files."""

    def __init__(self, message: str, *, model_id: str, quant: str, available: tuple[str, ...]) -> None:
        super().__init__(message, model_id=model_id, quant=quant, available=available)
        self.model_id: str
        self.quant: str
        self.available: tuple[str, ...]


class HubError(GGUFEmbedError):
    """The model hub, or the way to it, failed."""


class OfflineError(HubError):
    """The network is off or unreachable and the file is not in the cache."""


class AccessDeniedError(HubError):
    """The hub refuses this repository to this user (401, 403, gated)."""

    def __init__(self, message: str, *, repo: str) -> None:
        super().__init__(message, repo=repo)
        self.repo: str


class DownloadError(HubError):
    """A transfer failed for good; the partial file stays and the next run resumes it."""

    def __init__(self, message: str, *, url: str, attempts: int) -> None:
        super().__init__(message, url=url, attempts=attempts)
        self.url: str
        self.attempts: int


class ChecksumError(HubError):
    """The bytes that arrived are not the bytes that were published; they were deleted."""

    def __init__(self, message: str, *, path: Path, expected: str, actual: str) -> None:
        super().__init__(message, path=path, expected=expected, actual=actual)
        self.path: Path
        self.expected: str
        self.actual: str


class StorageError(HubError):
    """The cache folder cannot take the file: disk full, read-only, no permission."""

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message, path=path)
        self.path: Path


class DoesNotFitError(GGUFEmbedError):
    """No candidate fits into the memory that the limits allow.

    Attributes:
        required_bytes: what the smallest candidate needs.
        available_bytes: what there is.
        rejected: every candidate with its shortfall, as fit.planner.Rejection values.
    """

    def __init__(
        self, message: str, *, required_bytes: int, available_bytes: int, rejected: tuple[Any, ...] = ()
    ) -> None:
        super().__init__(message, required_bytes=required_bytes, available_bytes=available_bytes, rejected=rejected)
        self.required_bytes: int
        self.available_bytes: int
        self.rejected: tuple[Any, ...]

    def adding(self, words: str) -> DoesNotFitError:
        """Return the same error with more said at its end."""
        return DoesNotFitError(
            f"{self} {words}",
            required_bytes=self.required_bytes,
            available_bytes=self.available_bytes,
            rejected=self.rejected,
        )


class BackendError(GGUFEmbedError):
    """llama.cpp failed."""


class ModelLoadError(BackendError):
    """llama.cpp could not load this file or create a context for it."""

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message, path=path)
        self.path: Path


class AllocationError(ModelLoadError):
    """The file is in order; the memory for its weights or for a context was refused."""


class InvalidGGUFError(ModelLoadError):
    """The file is not a GGUF, or it is cut short."""


class UnsupportedModelError(ModelLoadError):
    """A whole GGUF that cannot be embedded with: architecture, pooling, EOS or a shard of a split file."""


class DecodeError(BackendError):
    """llama_decode returned an error code.

    Attributes:
        return_code: of llama_decode, 0 where it gave the wrong rows.
        index: position of the text that cannot be decoded, None where no text is to blame.
        others: the errors of further texts of the same call.
    """

    def __init__(self, message: str, *, return_code: int, index: int | None = None) -> None:
        super().__init__(message, return_code=return_code, index=index, others=())
        self.return_code: int
        self.index: int | None
        self.others: tuple[BackendError, ...]


class NonFiniteEmbeddingError(BackendError):
    """The model gave NaN, infinity or all zeros for this text, alone and on the CPU too.

    Attributes:
        index: position of the text in the call, from 0.
        others: the errors of further texts of the same call.
    """

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message, index=index, others=())
        self.index: int
        self.others: tuple[BackendError, ...]


class WorkerCrashedError(BackendError):
    """The process that ran the model ended while it was at these texts.

    Attributes:
        why: how it ended, to go after "it".
        return_code: as subprocess has it: negative for a signal.
    """

    def __init__(self, message: str, *, why: str, return_code: int) -> None:
        super().__init__(message, why=why, return_code=return_code)
        self.why: str
        self.return_code: int


class ClosedError(BackendError):
    """The model was used after close()."""


class InputError(GGUFEmbedError, ValueError):
    """What was given to embed cannot be embedded."""


class TextTooLongError(InputError):
    """A text has more tokens than the model or the memory allows.

    Attributes:
        index: position of the text in the call, from 0.
        n_tokens: its tokens, special ones included.
        n_ctx: the limit in tokens.
    """

    def __init__(self, message: str, *, index: int, n_tokens: int, n_ctx: int) -> None:
        super().__init__(message, index=index, n_tokens=n_tokens, n_ctx=n_ctx)
        self.index: int
        self.n_tokens: int
        self.n_ctx: int


class InvalidTextError(InputError):
    """A text that no tokenizer can take: a lone surrogate, a NUL, a record without a text."""

    def __init__(self, message: str, *, index: int, reason: str) -> None:
        super().__init__(message, index=index, reason=reason)
        self.index: int
        self.reason: str


class DimensionError(InputError):
    """truncate_dim asks for a length that this model was not trained for."""

    def __init__(self, message: str, *, dim: int, allowed: str) -> None:
        super().__init__(message, dim=dim, allowed=allowed)
        self.dim: int
        self.allowed: str


class JobError(GGUFEmbedError):
    """A job cannot go on with what is on disk: it is another's, it is damaged, or its input has changed.

    Attributes:
        path: of the work in progress.
    """

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message, path=path)
        self.path: Path


class RemoteError(GGUFEmbedError):
    """A server that was asked for vectors did not give them.

    Attributes:
        url: that was asked, without a password.
    """

    def __init__(self, message: str, *, url: str) -> None:
        super().__init__(message, url=url)
        self.url: str


class FingerprintError(GGUFEmbedError):
    """Vectors would not compare with those that they are for.

    Attributes:
        expected: the fingerprint that was asked for.
        actual: of the vectors that this file gives.
    """

    def __init__(self, message: str, *, expected: str, actual: str) -> None:
        super().__init__(message, expected=expected, actual=actual)
        self.expected: str
        self.actual: str


class MissingExtraError(GGUFEmbedError, ImportError):
    """An optional part is not installed; the message is the pip line that installs it."""

    def __init__(self, message: str, *, extra: str) -> None:
        super().__init__(message, extra=extra)
        self.extra: str
