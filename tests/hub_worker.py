"""Downloads in processes of their own, to be killed or raced: `hub_worker.py ENDPOINT CACHE REPO FILE REVISION`.

Used by test_hub.py and scripts/hub-proof, so that both report the same figures.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fake_hub import COMMIT, FakeHub

from gguf_embed.models.hub import Hub, RemoteFile

REPO, FILE = "org/model-GGUF", "model-Q4_K_M.gguf"
SLOW_BYTES_PER_S = 32 << 20  # 32 MiB/s: slow enough to be stopped half-way


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """What a resumed download cost, in bytes that left the server."""

    before_kill_bytes: int
    missing_bytes: int
    resumed_bytes: int
    is_whole: bool


def random_body(size_bytes: int) -> bytes:
    """The same pseudo-random bytes on every run."""
    return random.Random(7).randbytes(size_bytes)


def start(fake: FakeHub, cache_dir: Path, *, revision: str = COMMIT) -> subprocess.Popen[str]:
    """Begin a download in a new process, with no proxy and no HF_* setting but a home of its own."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.upper().startswith(("HF_", "GGUF_EMBED_")) and "proxy" not in k.lower()
    }
    root = Path(__file__).parents[1]
    environ = kept | {"HF_HOME": str(cache_dir.parent / "hf-home"), "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, fake.url, str(cache_dir), REPO, FILE, revision]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)


def measure_kill(fake: FakeHub, cache_dir: Path, *, percent: int) -> Kill:
    """Kill -9 a download at this share of its bytes, then finish it in this process."""
    body = fake.files[REPO, FILE]
    fake.faults.bytes_per_s = SLOW_BYTES_PER_S
    before = fake.served_bytes
    with start(fake, cache_dir) as process:
        while fake.served_bytes - before < len(body) * percent // 100:
            if process.poll() is not None:
                raise RuntimeError("the download ended before it could be killed")
            time.sleep(0.002)
        sent = fake.served_bytes - before
        process.kill()
    fake.faults.bytes_per_s = 0
    before = fake.served_bytes
    remote = RemoteFile(repo=REPO, revision=COMMIT, file=FILE, size_bytes=len(body), sha256=None)
    path = Hub(endpoint=fake.url, cache_dir=cache_dir).fetch_file(remote)
    return Kill(
        before_kill_bytes=sent,
        missing_bytes=len(body) - sent,
        resumed_bytes=fake.served_bytes - before,
        is_whole=path.read_bytes() == body,
    )


def measure_pair(fake: FakeHub, cache_dir: Path) -> tuple[list[str], int]:
    """Fetch the same file in two processes at once; the paths they print and the bytes served to both."""
    fake.faults.bytes_per_s = SLOW_BYTES_PER_S
    before = fake.served_bytes
    with start(fake, cache_dir) as first, start(fake, cache_dir) as second:
        paths = [process.communicate(timeout=30)[0].strip() for process in (first, second)]
    return paths, fake.served_bytes - before


if __name__ == "__main__":
    endpoint, cache, repo, file, revision = sys.argv[1:]
    wanted = RemoteFile(repo=repo, revision=revision, file=file, size_bytes=None, sha256=None)
    sys.stdout.write(f"{Hub(endpoint=endpoint, cache_dir=Path(cache)).fetch_file(wanted)}\n")
