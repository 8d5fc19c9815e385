"""The model files that are on this disk: listing and deleting them.

It must not know plans, downloads or what a file is used for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf_embed.errors import StorageError
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.hub import CachedFile
from gguf_embed.models.made import made_files
from gguf_embed.models.refs import Reference, quant_of_file_name
from gguf_embed.models.wheel import wheel_model_path

__all__ = ["FileOnDisk", "delete", "files_on_disk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOnDisk:
    """A model file that is here.

    Attributes:
        model_id: the registry's name, else the repository.
        quant: Q4_K_M, ...; "" where the name does not say.
        path: of the file.
        size_bytes: of the file.
        cached: its place in the Hugging Face cache, None for a file that this program made.
    """

    model_id: str
    quant: str
    path: Path
    size_bytes: int
    cached: CachedFile | None


def files_on_disk(catalog: Catalog, text: str | None = None) -> tuple[FileOnDisk, ...]:
    """List the GGUF files in the Hugging Face cache and those that this program made.

    Args:
        catalog: whose cache and registry.
        text: a reference that they must answer to, None for all.

    Returns:
        Sorted by model and quantization.

    Raises:
        RegistryError: nothing answers to the reference.
    """
    files = [*_cached_files(catalog), *_made_files(catalog)]
    if text is not None:
        reference = catalog.parse(text)
        files = [file for file in files if _answers(file, reference)]
    return tuple(sorted(files, key=lambda file: (file.model_id, file.quant, str(file.path))))


def delete(catalog: Catalog, file: FileOnDisk) -> int:
    """Delete a file from this disk.

    Returns:
        Bytes that were freed.

    Raises:
        StorageError: it cannot be deleted.
    """
    if file.cached is not None:
        return catalog.hub.delete(file.cached)
    try:
        file.path.unlink()
    except OSError as error:
        raise StorageError(f"{file.path} cannot be deleted: {error.strerror}", path=file.path) from error
    return file.size_bytes


def _cached_files(catalog: Catalog) -> list[FileOnDisk]:
    files = []
    for cached in catalog.hub.cached_files():
        spec = catalog.registry.find_repo(cached.repo) or catalog.registry.find_file(cached.file)
        files.append(
            FileOnDisk(
                model_id=spec.model_id if spec is not None else cached.repo,
                quant=quant_of_file_name(cached.file) or "",
                path=cached.path,
                size_bytes=cached.size_bytes,
                cached=cached,
            )
        )
    return files


def _made_files(catalog: Catalog) -> list[FileOnDisk]:
    """The starter models and what `quantize` made."""
    files = [
        FileOnDisk(
            model_id=model_id,
            quant=quant_of_file_name(path.name) or "",
            path=path,
            size_bytes=path.stat().st_size,
            cached=None,
        )
        for model_id, path in made_files(catalog.config.cache_dir)
    ]
    for spec in catalog.registry.models:
        if spec.wheel is not None:
            path = wheel_model_path(spec.wheel, spec.model_id, catalog.config.cache_dir)
            if path.is_file():
                files.append(
                    FileOnDisk(
                        model_id=spec.model_id,
                        quant=spec.wheel.quant,
                        path=path,
                        size_bytes=path.stat().st_size,
                        cached=None,
                    )
                )
    return files


def _answers(file: FileOnDisk, reference: Reference) -> bool:
    if reference.quant is not None and reference.quant != file.quant:
        return False
    if reference.repo is not None:
        if file.cached is None:
            return reference.file is None and file.model_id.lower() == reference.repo.lower()
        return file.cached.repo.lower() == reference.repo.lower() and reference.file in (None, file.cached.file)
    return reference.spec is not None and reference.path is None and file.model_id == reference.spec.model_id
