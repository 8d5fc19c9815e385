"""What is this corpus about: embed, cluster with scikit-learn, name clusters by their most central texts, draw.

    python examples/cluster_corpus.py corpus.jsonl --clusters 12 --plot clusters.png

Each line is a JSON object with "text", and "title" where there is one. Without a file it takes the 240 short texts that
`gguf-embed eval` measures on. Needs: pip install "gguf-embed[plot]" scikit-learn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

import gguf_embed
from gguf_embed import Embedder

mpl.use("agg")
SAMPLE = Path(gguf_embed.__file__).parent / "quality" / "sample" / "retrieval" / "corpus.jsonl"


def draw(points: np.ndarray, labels: np.ndarray, names: list[str], path: Path) -> None:
    """Write a picture of (n, 2) points, each cluster in its colour with its name at the median."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after its backend is chosen

    figure, axes = plt.subplots(figsize=(10, 7.5), layout="constrained")
    colours = plt.get_cmap("tab20")(np.linspace(0, 1, len(names)))
    axes.scatter(*points.T, c=colours[labels], s=22, alpha=0.85, linewidths=0)
    for at, name in enumerate(names):
        x, y = np.median(points[labels == at], axis=0)
        axes.annotate(
            name, (x, y), ha="center", va="center", fontsize=9,
            bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": colours[at], "alpha": 0.85},
        )  # fmt: skip
    axes.set(
        xticks=[],
        yticks=[],
        title=f"{len(points)} texts in {len(names)} clusters (t-SNE; distances between clusters mean little)",
    )
    figure.savefig(path, dpi=150)


def has_glyphs(text: str) -> bool:
    """Whether matplotlib's own font can draw a text: Latin, Greek, Cyrillic and the like."""
    return all(ord(letter) < 0x530 or 0x2000 <= ord(letter) < 0x2070 for letter in text)


def main() -> None:
    """Read, embed, cluster, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("--model")
    parser.add_argument("--clusters", type=int, default=14)
    parser.add_argument("--plot", type=Path, default=Path("clusters.png"))
    options = parser.parse_args()

    try:
        lines = options.corpus.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        texts = [f"{row.get('title', '')}\n{row['text']}".strip() for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        parser.error(f"{options.corpus} has to hold JSON objects with text, one a line: {error!r}")
    if not 2 <= options.clusters < len(texts):
        parser.error(f"--clusters is {options.clusters}; for {len(texts)} texts it is 2 to {len(texts) - 1}")
    titles = [row.get("title") or row["text"][:40] for row in rows]
    with Embedder(options.model) as model:
        vectors = model.encode_document(texts, truncate="end")

    means = KMeans(options.clusters, n_init=10, random_state=0).fit(vectors)  # of unit vectors: k-means by cosine
    print(f"{len(texts)} texts, silhouette {silhouette_score(vectors, means.labels_, metric='cosine'):.2f}\n")
    names = []
    for label, centre in enumerate(means.cluster_centers_):
        members = np.flatnonzero(means.labels_ == label)
        central = members[np.argsort(-(vectors[members] @ centre))]
        names.append(next((titles[at] for at in central if has_glyphs(titles[at])), f"cluster {label}"))
        print(f"{len(members):4}  {' | '.join(titles[at] for at in central[:3])}")
    perplexity = min(20, (len(texts) - 1) / 3)
    points = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=0).fit_transform(vectors)
    draw(points, means.labels_, names, options.plot)
    print(f"\n{options.plot}")


if __name__ == "__main__":
    main()
