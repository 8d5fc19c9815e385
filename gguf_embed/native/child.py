"""How to start this package's own programs as child processes, so that nothing in llama.cpp takes the caller down.

It must not know what they do.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

__all__ = ["child_command", "last_words"]

# An abort of ggml's would start a debugger to print where it happened.
_BOOT = (
    "import json, os, sys; os.environ['GGML_NO_BACKTRACE'] = '1'; sys.path[:] = json.loads(sys.argv[1]); "
    "from {module} import main; sys.exit(main(sys.argv[2:]))"
)
_ABORT = re.compile(r"(?:^|[/\\])([\w.+-]+\.\w+:\d+: .*)")  # ggml_abort: folder/file.cpp:123: why


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


def last_words(log: str) -> str:
    """Find why a child died in what it wrote to stderr: the assertion that failed, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    aborts = (found[1] for line in lines if (found := _ABORT.search(line)))
    return next(aborts, lines[-1] if lines else "it gave no reason")
