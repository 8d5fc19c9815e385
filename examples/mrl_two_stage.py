"""Two-stage search (MRL): the first 256 dimensions of every vector make a shortlist, the full width ranks it again.

    python examples/mrl_two_stage.py                              # 1,000,000 x 2560 vectors: 8 GB of disk, 6 minutes
    python examples/mrl_two_stage.py --vectors mine.npy           # yours, which decide how well this works
    python examples/mrl_two_stage.py --rows 20000 --queries 50    # a quick look

In memory is the shortlist's matrix alone: one byte a component, so 256 MB for a million vectors. The full vectors stay
on disk as int8 or float16 and are mapped; a search reads a few hundred of them. Without --vectors they are synthetic:
random points in clusters, whose variance falls along the dimensions as MRL training makes it fall. They show speed and
memory truly, and recall only for such vectors. Needs: pip install "gguf-embed[plot]" psutil.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from gguf_embed import calibrate, quantize_embeddings, restore_embeddings, truncate_dim
from gguf_embed.vectors import l2_normalize

BLOCK = 8_192  # rows that are at hand as float32 at once
N_FOUND = 10
SHORTLISTS = (20, 50, 100, 200, 500, 1000)
Blocks = Callable[[], Iterator[NDArray[np.float32]]]


@dataclass(frozen=True)
class TwoStageIndex:
    """Vectors to search in.

    Attributes:
        short: (n, 256) int8, in memory: the first dimensions of each vector, of unit length again.
        short_steps: (256,) float32: what one step of each of its components is worth.
        full: (n, dim) int8 or float16, mapped.
        ranges: (2, dim) that int8 was made with; None for float16.
    """

    short: NDArray[np.int8]
    short_steps: NDArray[np.float32]
    full: NDArray[Any]
    ranges: NDArray[np.float32] | None

    def shortlist(self, query: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        """The `n` rows whose first dimensions are nearest to those of a (dim,) query, in no order."""
        # A level times its step is the component but for an offset, which is the same for all rows: no need to restore.
        weights = truncate_dim(query[None], self.short.shape[1])[0] * self.short_steps
        scores = np.empty(len(self.short), dtype=np.float32)
        for start in range(0, len(self.short), BLOCK):
            scores[start : start + BLOCK] = self.short[start : start + BLOCK].astype(np.float32) @ weights
        return np.argpartition(-scores, n - 1)[:n]

    def search(self, query: NDArray[np.float32], *, n_shortlist: int) -> NDArray[np.int64]:
        """The ten nearest rows of a (dim,) query by full width, among a shortlist; nearest first."""
        candidates = np.sort(self.shortlist(query, min(n_shortlist, len(self.short))))  # in the order of the disk
        return candidates[np.argsort(-self._scores(self.full[candidates], query))[:N_FOUND]]

    def search_all(self, query: NDArray[np.float32]) -> NDArray[np.int64]:
        """The ten nearest rows by full width among all of them: what a shortlist saves."""
        starts = range(0, len(self.full), BLOCK)
        scores = np.concatenate([self._scores(self.full[start : start + BLOCK], query) for start in starts])
        return np.argsort(-scores)[:N_FOUND]

    def _scores(self, stored: NDArray[Any], query: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = stored.astype(np.float32) if self.ranges is None else restore_embeddings(stored, ranges=self.ranges)
        return l2_normalize(rows) @ query


def build(blocks: Blocks, n_rows: int, dim: int, n_short: int, folder: Path) -> dict[str, TwoStageIndex]:
    """Write the vectors as int8 and as float16, in one pass, and keep the shortlist's matrix; blocks are unit rows."""
    sample = next(blocks())  # ranges of the first rows: what lies outside later is taken as the nearest
    ranges, short_ranges = calibrate(sample), calibrate(truncate_dim(sample, n_short))
    short = np.empty((n_rows, n_short), dtype=np.int8)
    halves = np.lib.format.open_memmap(folder / "float16.npy", "w+", np.float16, (n_rows, dim))
    levels = np.lib.format.open_memmap(folder / "int8.npy", "w+", np.int8, (n_rows, dim))
    start = 0
    for block in blocks():
        rows = slice(start, start := start + len(block))
        short[rows] = quantize_embeddings(truncate_dim(block, n_short), "int8", ranges=short_ranges)
        halves[rows] = block
        levels[rows] = quantize_embeddings(block, "int8", ranges=ranges)
    halves.flush(), levels.flush()
    steps = (short_ranges[1] - short_ranges[0]) / np.float32(255)
    stored = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("int8", "float16")}
    return {
        "int8": TwoStageIndex(short, steps, stored["int8"], ranges),
        "float16": TwoStageIndex(short, steps, stored["float16"], None),
    }


def nearest(blocks: Blocks, queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """The ten nearest rows of each query by full width in float32: what a search is held against."""
    scores, found, start = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 0
    for block in blocks():
        scores = np.hstack([scores, queries @ block.T])
        found = np.hstack([found, np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))])
        keep = np.argsort(-scores, axis=1)[:, :N_FOUND]
        scores, found = np.take_along_axis(scores, keep, 1), np.take_along_axis(found, keep, 1)
        start += len(block)
    return found


def synthetic_blocks(n_rows: int, dim: int, seed: int = 0) -> Blocks:
    """Unit vectors around 2,000 centres; the variance of component i falls as 1 / (1 + i / 64)."""
    scale = (1 / np.sqrt(1 + np.arange(dim, dtype=np.float32) / 64)).astype(np.float32)
    centres = np.random.default_rng(seed).standard_normal((2_000, dim), dtype=np.float32)

    def blocks() -> Iterator[NDArray[np.float32]]:
        rng = np.random.default_rng(seed + 1)
        for start in range(0, n_rows, BLOCK):
            n = min(BLOCK, n_rows - start)
            rows = rng.standard_normal((n, dim), dtype=np.float32)
            yield l2_normalize((rows + centres[rng.integers(len(centres), size=n)]) * scale)

    return blocks


def saved_blocks(path: Path) -> tuple[Blocks, int, int]:
    """Vectors of a .npy file, made unit vectors; with their number and width."""
    vectors = np.load(path, mmap_mode="r")

    def blocks() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(vectors), BLOCK):
            yield l2_normalize(np.asarray(vectors[start : start + BLOCK], dtype=np.float32))

    return blocks, *vectors.shape


def queries_like(blocks: Blocks, n: int, seed: int = 7) -> NDArray[np.float32]:
    """Rows of the first block, each moved away from itself to a cosine of about 0.8."""
    rng, first = np.random.default_rng(seed), next(blocks())
    rows = first[rng.choice(len(first), size=min(n, len(first)), replace=False)]
    noise = l2_normalize(rng.standard_normal(rows.shape, dtype=np.float32) * np.abs(first).mean(axis=0))
    return l2_normalize(0.8 * rows + 0.6 * noise)


def measure(
    indexes: dict[str, TwoStageIndex], queries: NDArray[np.float32], truth: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Recall of the ten nearest and milliseconds of a search, by storage and length of the shortlist; in turns."""
    runs: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for query, wanted in zip(queries, truth, strict=True):
        for n_shortlist in SHORTLISTS:
            for name, index in indexes.items():
                begun = time.perf_counter()
                found = index.search(query, n_shortlist=n_shortlist)
                took_s = time.perf_counter() - begun
                recall = len(set(found.tolist()) & set(wanted.tolist())) / N_FOUND
                runs.setdefault((name, n_shortlist), []).append((recall, 1e3 * took_s))
    return [
        {"stored": name, "shortlist": n, "recall@10": round(float(np.mean([r for r, _ in pairs])), 4),
         "p50_ms": round(float(np.median([t for _, t in pairs])), 2)}
        for (name, n), pairs in runs.items()
    ]  # fmt: skip


def whole_ms(index: TwoStageIndex, queries: NDArray[np.float32]) -> float:
    """The milliseconds of a search through all full vectors: the median of three."""
    took_ms = []
    for query in queries[:3]:
        begun = time.perf_counter()
        index.search_all(query)
        took_ms.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(took_ms))


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Two panels over the length of the shortlist: recall and time."""
    import matplotlib as mpl  # noqa: PLC0415 - for the picture alone

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after its backend is chosen

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, key, label in zip(
        panels, ("recall@10", "p50_ms"), ("recall@10 against exact search", "one search, ms (median)"), strict=True
    ):
        for name, marker in (("int8", "o"), ("float16", "s")):
            mine = [row for row in rows if row["stored"] == name]
            panel.plot(
                [row["shortlist"] for row in mine],
                [row[key] for row in mine],
                marker=marker,
                label=f"full width as {name}",
            )
        panel.set(
            xscale="log", xticks=SHORTLISTS, xticklabels=SHORTLISTS, xlabel="length of the shortlist", title=label
        )
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylim(top=1.01)
    panels[1].set_ylim(0, 1.15 * max(row["p50_ms"] for row in rows))
    panels[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Build, search, compare, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=2560)
    parser.add_argument("--short", type=int, default=256, help="dimensions of the shortlist")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--vectors", type=Path, help="a .npy of yours, in place of synthetic ones")
    parser.add_argument("--plot", type=Path, default=Path("mrl_two_stage.png"))
    options = parser.parse_args()

    blocks, n_rows, dim = synthetic_blocks(options.rows, options.dim), options.rows, options.dim
    if options.vectors:
        blocks, n_rows, dim = saved_blocks(options.vectors)
    with tempfile.TemporaryDirectory(prefix="mrl-") as folder:
        indexes = build(blocks, n_rows, dim, options.short, Path(folder))
        queries = queries_like(blocks, options.queries)
        truth = nearest(blocks, queries)
        for index in indexes.values():  # the first touch of a mapped file is the disk's time
            index.search(queries[0], n_shortlist=1000)
        rows = measure(indexes, queries, truth)
        alone = indexes["int8"].shortlist
        short_recall = np.mean(
            [len(set(alone(q, N_FOUND)) & set(t)) / N_FOUND for q, t in zip(queries, truth, strict=True)]
        )
        for row in rows:
            print(json.dumps(row))
        facts = {
            "rows": n_rows, "dim": dim, "short": options.short,
            "recall@10 of the shortlist alone": round(float(short_recall), 4),
            "p50_ms of a search through all": {name: round(whole_ms(one, queries)) for name, one in indexes.items()},
            "in_memory_MiB": round(indexes["int8"].short.nbytes / 2**20),
            "int8_on_disk_MiB": round(indexes["int8"].full.nbytes / 2**20),
            "float16_on_disk_MiB": round(indexes["float16"].full.nbytes / 2**20),
            "process_without_mapped_files_MiB": round(anonymous_bytes() / 2**20),
        }  # fmt: skip
        print(json.dumps(facts))
        source = options.vectors.name if options.vectors else "synthetic"
        draw(rows, f"{n_rows:,} {source} vectors of {dim}, shortlist by the first {options.short}", options.plot)
    print(options.plot)


def anonymous_bytes() -> int:
    """What this process holds but for what is mapped from files, which the system takes back when it needs it."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


if __name__ == "__main__":
    main()
