"""What the routes are, as values, and the OpenAPI document of them.

It must not know what routes do beyond the first line of their docstrings.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gguf_embed import __version__
from gguf_embed.server.exchange import Handler

__all__ = ["Operation", "describe"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route.

    Attributes:
        method: of HTTP.
        path: as starlette has it.
        handler: answers.
        body: type of the JSON that it reads, None for none.
    """

    method: str
    path: str
    handler: Handler
    body: type[msgspec.Struct] | None = None


def describe(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return an OpenAPI 3.1 document."""
    kinds = [one.body for one in operations if one.body is not None]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for one in operations:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", one.path)
        paths.setdefault(path, {})[one.method.lower()] = _operation(one, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gguf-embed", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(one: Operation, path: str) -> dict[str, Any]:
    summary = (inspect.getdoc(one.handler) or "").partition("\n")[0]
    described: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "done"}, "default": {"description": "an error of the route's dialect"}},
    }
    if names := re.findall(r"{(\w+)}", path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if one.body is not None:
        schema = msgspec.json.schema_components([one.body], ref_template="#/components/schemas/{name}")[0][0]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described
