"""How to start this package's own programs as child processes, so that nothing in llama.cpp takes the caller down.

It must not know what they do.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["child_command"]


def child_command(module: str, *arguments: str) -> list[str] | None:
    """Return the command that runs a module's `main` in a Python of its own.

    The very package that is running is put before all others, wherever it was imported from; the working folder and
    scripts of the same names in it do not count.

    Args:
        module: such as "gguf_embed.native.simulate".
        arguments: what the child finds in sys.argv[1:].

    Returns:
        None where there is no interpreter, as in an application that carries its own inside.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    package_parent = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {package_parent!r}); from {module} import main; main()"
    return [sys.executable, "-P", "-c", code, *arguments]
