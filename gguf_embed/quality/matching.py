"""Which rows of several sides are of the same texts: by id, else by position.

It must not know where rows come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gguf_embed.errors import InputError
from gguf_embed.quality.saved import Keys

__all__ = ["match"]


def match(sides: Sequence[tuple[str, Keys]]) -> tuple[Keys, list[NDArray[np.intp]]]:
    """Find the rows of the same texts: by id where all have ids, else by position.

    Args:
        sides: at least one, each with its name for messages.

    Returns:
        The keys that all have, in the order of the first; and for each where its rows of these are.

    Raises:
        InputError: there is no way to match, or texts of one id or position differ.
    """
    names, given = [name for name, _ in sides], [keys for _, keys in sides]
    ids = [keys.ids for keys in given]
    if all(one is not None for one in ids) and any(one != ids[0] for one in ids):
        places = _places_by_id([one or () for one in ids], names)
    else:
        for keys, name in zip(given, names, strict=True):
            if keys.n != given[0].n:
                raise InputError(
                    f"{names[0]} has {given[0].n:,} rows and {name} has {keys.n:,}, and not all have ids to match them "
                    "by. Give the same texts to both sides, or save both with ids."
                )
        places = [np.arange(given[0].n, dtype=np.intp) for _ in given]
    picked = [_picked(keys, where) for keys, where in zip(given, places, strict=True)]
    _check_texts(picked, places, names)
    texts = next((keys.texts for keys in picked if keys.texts is not None), None)
    known_ids = next((keys.ids for keys in picked if keys.ids is not None), None)
    return dataclasses.replace(picked[0], texts=texts, ids=known_ids), places


def _places_by_id(ids: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[NDArray[np.intp]]:
    found = []
    for one, name in zip(ids, names, strict=True):
        found.append({id_: i for i, id_ in enumerate(one)})
        if len(found[-1]) < len(one):
            twice = next(id_ for i, id_ in enumerate(one) if found[-1][id_] != i)
            raise InputError(f"{name} has the id {twice!r} more than once, so rows do not match by id; make ids unique")
    common = [id_ for id_ in ids[0] if all(id_ in known for known in found)]
    if not common:
        raise InputError(
            f"{names[0]} and {names[1]} have no id in common ({ids[0][0]!r} and so on, {ids[1][0]!r} and so on); name "
            "the field of the ids with --id"
        )
    return [np.array([known[id_] for id_ in common], dtype=np.intp) for known in found]


def _picked(keys: Keys, places: NDArray[np.intp]) -> Keys:
    def those(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if values is None else tuple(values[i] for i in places)

    return Keys(n=len(places), ids=those(keys.ids), texts=those(keys.texts), digests=those(keys.digests))


def _check_texts(picked: Sequence[Keys], places: Sequence[NDArray[np.intp]], names: Sequence[str]) -> None:
    """Refuse vectors of other texts: nothing about models can be told from these."""
    known = [(i, keys.digests) for i, keys in enumerate(picked) if keys.digests is not None]
    for i, digests in known[1:]:
        first, expected = known[0]
        wrong = [row for row, (a, b) in enumerate(zip(expected, digests, strict=True)) if a != b]
        if wrong:
            raise InputError(
                f"{names[first]} and {names[i]} have other texts in {len(wrong):,} of {len(digests):,} rows, first in "
                f"row {places[first][wrong[0]] + 1} and row {places[i][wrong[0]] + 1}. Embed the same texts on both "
                "sides, in the same order or with the same ids."
            )
