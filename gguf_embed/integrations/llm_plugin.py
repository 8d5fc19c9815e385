"""The `llm` command: every model of the registry as `gguf-embed/NAME`, and queries with their prompt in `llm similar`.

`llm` loads this module at each of its commands, so nothing here loads a model before a text comes. It must not know
other hosts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from gguf_embed.config import load_config
from gguf_embed.errors import GGUFEmbedError
from gguf_embed.integrations.shared import SharedModel, missing_host
from gguf_embed.models.catalog import Catalog

try:
    import click
    import llm
except ImportError as error:
    raise missing_host("llm", "llm", error) from error

__all__ = ["GGUFEmbeddingModel", "register_commands", "register_embedding_models"]

logger = logging.getLogger(__name__)

_PREFIX = "gguf-embed/"
_EMBEDDING_COMMANDS = frozenset({"embed", "embed-multi", "similar"})
# `llm` asks a model in one way for what is stored and for what is searched; only its command tells them apart.
_is_searching: ContextVar[bool] = ContextVar("is_searching", default=False)


class GGUFEmbeddingModel(llm.EmbeddingModel):
    """One model of the registry.

    Args:
        model: its reference; `llm` knows it as gguf-embed/`model`.
    """

    supports_text = True
    supports_binary = False
    batch_size = 512

    def __init__(self, model: str) -> None:
        self.model_id = _PREFIX + model
        self._shared = SharedModel(model=model)

    def __str__(self) -> str:
        return f"gguf-embed: {self.model_id}"

    def embed_batch(self, items: Iterable[str | bytes], **_: Any) -> Iterator[list[float]]:
        """Embed texts: documents, or queries where `llm similar` asks; `dim` floats of unit length each."""
        texts: list[Any] = list(items)  # what is no str is refused by its position
        rows = self._shared.queries(texts) if _is_searching.get() else self._shared.documents(texts)
        return iter(rows.tolist())

    def embed_query(self, text: str) -> list[float]:
        """Embed a search query, for Collection.similar_by_vector: `dim` floats of unit length."""
        row: list[float] = self._shared.queries([text])[0].tolist()
        return row


@llm.hookimpl
def register_embedding_models(register: Any) -> None:
    """Add the models of the registry, the user's own models.toml included."""
    try:
        models = Catalog(load_config()).registry.models
    except GGUFEmbedError as error:  # a mistake in a file of ours is no reason for `llm` not to start
        logger.warning("no model of gguf-embed is here: %s", error)
        return
    for spec in models:
        aliases = tuple(_PREFIX + alias for alias in spec.aliases)
        register(GGUFEmbeddingModel(spec.model_id), aliases=aliases)


@llm.hookimpl
def register_commands(cli: Any) -> None:
    """Let `llm similar` ask with the query prompt, and commands that embed say what failed in one line."""
    for name in _EMBEDDING_COMMANDS & set(cli.commands):
        command = cli.commands[name]
        command.callback = _translated(command.callback, is_searching=name == "similar")


def _translated(callback: Any, *, is_searching: bool) -> Any:
    @functools.wraps(callback)
    def called(*arguments: Any, **options: Any) -> Any:
        token = _is_searching.set(is_searching)
        try:
            return callback(*arguments, **options)
        except GGUFEmbedError as error:
            raise click.ClickException(str(error)) from error
        finally:
            _is_searching.reset(token)

    return called
