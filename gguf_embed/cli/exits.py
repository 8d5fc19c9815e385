"""From exceptions to exit codes, and the words on stderr.

It must not know commands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from gguf_embed import errors

__all__ = ["EXIT_CODES", "INTERRUPTED", "NOT_AS_IT_SHOULD", "UNWRITABLE", "exit_code", "usage_errors"]

INTERRUPTED = 130
UNWRITABLE = 4
NOT_AS_IT_SHOULD = 9  # verify and compare found another answer than the right one
EXIT_CODES: dict[type[errors.GGUFEmbedError], int] = {
    errors.ConfigError: 2,
    errors.InvalidRegistryError: 2,
    errors.RegistryError: 3,
    errors.HubError: 4,
    errors.RemoteError: 4,
    errors.DoesNotFitError: 5,
    errors.BackendError: 6,
    errors.JobError: 2,
    errors.InputError: 7,
    errors.MissingExtraError: 8,
    errors.FingerprintError: NOT_AS_IT_SHOULD,
}


def exit_code(error: errors.GGUFEmbedError) -> int:
    """Return the code of the nearest class in the table."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn stock ValueErrors about options into usage errors, exit code 2."""
    try:
        yield
    except errors.GGUFEmbedError:
        raise
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
