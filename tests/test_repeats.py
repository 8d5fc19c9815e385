"""engine/repeats.py: equal texts are one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.engine.repeats import Repeats


@given(st.lists(st.text(alphabet="abc", max_size=2), max_size=30))
def test_every_text_gets_what_its_like_got(texts):
    """Rows, values and positions come back for all, in order."""
    repeats = Repeats(texts)
    assert repeats.texts == list(dict.fromkeys(texts))
    assert [texts[at] for at in repeats.positions] == repeats.texts
    values = np.array([len(text) for text in repeats.texts], dtype=np.intp)
    assert repeats.spread(values).tolist() == [len(text) for text in texts]
    rows = np.zeros((len(texts), 1), dtype=np.float32)
    rows[repeats.positions, 0] = np.arange(len(repeats.texts))
    repeats.copy(rows)
    assert [repeats.texts[int(row)] for row in rows[:, 0]] == texts
    first = [int(at) for at in repeats.positions[:1]]
    assert repeats.all_of(first) == [at for at, text in enumerate(texts) if texts and text == texts[0]]


def test_what_is_no_text_is_named():
    """By its position."""
    with pytest.raises(TypeError, match="text 2 is bytes"):
        Repeats(["a", "b", b"c"])
