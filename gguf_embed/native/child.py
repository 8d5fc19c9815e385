"""How to start this package's own programs as child processes, so that nothing in llama.cpp takes the caller down.

It must not know what they do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

__all__ = ["child_command"]

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; sys.exit(main(sys.argv[2:]))"
)


def child_command(module: str, *arguments: str) -> list[str] | None:
    """Return the command that runs a module's `main(argv)` in a Python of its own.

    The child finds modules as this process does: neither more, by its working folder, nor less, by what was added to
    sys.path.

    Args:
        module: such as "gguf_embed.native.simulate".
        arguments: the child's argv.

    Returns:
        None where there is no interpreter, as in an application that carries its own inside.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    root = str(Path(__file__).resolve().parents[2])
    # An empty entry is the working folder: where this package came from, or nothing that the child needs.
    is_found = root in sys.path
    paths = [entry or root for entry in sys.path if entry or not is_found]
    if root not in paths:
        paths.append(root)
    return [sys.executable, "-P", "-c", _BOOT.format(module=module), json.dumps(paths), *arguments]
