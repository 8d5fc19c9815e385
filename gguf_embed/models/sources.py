"""Ways to get a quantization, and what a reference came to.

Values alone. It must not know how they are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf_embed.models.hub import RemoteFile
from gguf_embed.models.refs import Reference
from gguf_embed.models.specs import ModelSpec

__all__ = ["Resolved", "Source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One way to get one quantization.

    Attributes:
        origin: "local", "hub" (a known file), "repo" (a repository to be listed) or "wheel".
        quant: Q4_K_M, ...; "" where a local file's name does not say.
        repo: of the hub, None for a local file or a wheel.
        file: inside the repo, None until a repository is listed; of a wheel, its package.
        revision: commit or branch, None for the newest.
        size_bytes: of the file; of its tensors for a repository to be listed; None when unknown.
        sha256: of the file, None when unknown.
        path: where it lies on disk, None when it must be fetched.
    """

    origin: str
    quant: str
    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    path: Path | None = None

    @property
    def is_on_disk(self) -> bool:
        """Whether no download is needed."""
        return self.path is not None

    @property
    def name(self) -> str:
        """The file for people: its path on disk, its package, or repo and file."""
        if self.path is not None:
            return str(self.path)
        return f"package {self.file}" if self.origin == "wheel" else "/".join(filter(None, (self.repo, self.file)))

    @property
    def remote(self) -> RemoteFile:
        """The exact file on the hub, of a source that has a repo and a file."""
        return RemoteFile(
            repo=self.repo or "",
            revision=self.revision or "main",
            file=self.file or "",
            size_bytes=self.size_bytes,
            sha256=self.sha256,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a reference can mean.

    Attributes:
        reference: as parsed.
        model_id: the registry's name, else the repo or file.
        spec: the registry's facts, None for a model that it does not know.
        sources: quantizations to choose from, best first.
        others: what there is besides and is not chosen unless named; only where all were asked for.
    """

    reference: Reference
    model_id: str
    spec: ModelSpec | None
    sources: tuple[Source, ...]
    others: tuple[Source, ...] = ()
