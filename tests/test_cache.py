"""stream/cache.py: rows come back as they were, for all programs of a user, and nothing about it is ever fatal."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.stream import cache as cache_module
from gguf_embed.stream.cache import CachedRow, VectorCache

DIM = 4


def row(*values, n_tokens=3, truncated=False):
    return CachedRow(row=np.array(values, dtype=np.float32), n_tokens=n_tokens, truncated=truncated)


def keys_of(n, begin=0):
    return [index.to_bytes(32, "little") for index in range(begin, begin + n)]


def rows_of(n, begin=0):
    return [(key, row(*np.full(DIM, begin + at))) for at, key in enumerate(keys_of(n, begin))]


@pytest.fixture
def clock():
    """Seconds under a test's hand."""
    now = SimpleNamespace(s=0.0)
    now.pass_days = lambda n: setattr(now, "s", now.s + n * 86_400)
    return now


@pytest.fixture
def make(tmp_path, clock):
    """Open a cache on the test's file; closed at the end."""
    made = []

    def cache(limit_bytes=1 << 30, path=tmp_path / "deep" / "vectors.sqlite"):
        made.append(VectorCache(path, limit_bytes=limit_bytes, clock=lambda: clock.s))
        return made[-1]

    yield cache
    for one in made:
        one.close()


def same(found, wanted):
    return (
        found.row.tobytes() == wanted.row.tobytes()
        and found.row.dtype == np.float32
        and (found.n_tokens, found.truncated) == (wanted.n_tokens, wanted.truncated)
    )


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=DIM, max_size=DIM), min_size=1, max_size=5))
def test_rows_come_back_bit_for_bit(tmp_path_factory, values):
    """Every float32, infinities and negative zero too, for this opening and the next."""
    path = tmp_path_factory.mktemp("cache") / "v.sqlite"
    rows = [(key, row(*one, n_tokens=at, truncated=at % 2 == 1))
            for at, (key, one) in enumerate(zip(keys_of(len(values)), values, strict=True))]  # fmt: skip
    with VectorCache(path, limit_bytes=1 << 20) as cache:
        cache.put(rows)
    with VectorCache(path, limit_bytes=1 << 20) as cache:
        found = cache.get([key for key, _ in rows], DIM)
    assert all(same(found[key], one) for key, one in rows)


def test_more_keys_than_a_query_takes(make):
    """5,000 keys at once, half of them there."""
    cache = make()
    cache.put(rows_of(2500))
    found = cache.get(keys_of(5000), DIM)
    assert set(found) == set(keys_of(2500))
    assert found[keys_of(1, 1234)[0]].row.tolist() == [1234.0] * DIM


def test_what_is_there_stays(make):
    """A second row under the same key does not change the first: an answer never changes silently."""
    cache = make()
    cache.put([(b"k", row(1, 2, 3, 4))])
    cache.put([(b"k", row(9, 9, 9, 9))])
    assert cache.get([b"k"], DIM)[b"k"].row.tolist() == [1, 2, 3, 4]


def test_nothing_is_written_before_something_is_put(make, tmp_path):
    """Asking what is there makes no file."""
    cache = make()
    assert cache.info().n_rows == cache.info().size_bytes == cache.clear() == 0
    assert list(tmp_path.iterdir()) == []


def test_info_and_clear(make, tmp_path):
    """What is freed is what was there, and the disk gets it back."""
    cache = make()
    cache.put(rows_of(5000))
    info = cache.info()
    assert (info.n_rows, info.path, info.limit_bytes) == (5000, tmp_path / "deep" / "vectors.sqlite", 1 << 30)
    assert info.size_bytes == sum(file.stat().st_size for file in info.path.parent.glob("vectors.sqlite*")
                                  if file.suffix != ".lock")  # fmt: skip
    freed_bytes = cache.clear()
    assert cache.info().n_rows == 0
    assert freed_bytes > 0.9 * info.size_bytes - 65_536
    assert cache.info().size_bytes == info.size_bytes - freed_bytes < 65_536


def test_a_limit_of_nothing_keeps_nothing(make, tmp_path):
    """0 bytes turn it off, without a word or a file."""
    cache = make(0)
    cache.put(rows_of(3))
    assert cache.get(keys_of(3), DIM) == {}
    assert list(tmp_path.iterdir()) == []


def test_it_stays_below_its_limit_and_keeps_what_was_read(make, clock):
    """The rows that were not read for longest go first."""
    cache = make(1 << 20)
    cache.put(rows_of(1000))
    clock.pass_days(1)
    cache.get(keys_of(100), DIM)
    clock.pass_days(1)
    for begin in range(1000, 30_000, 1000):
        cache.put(rows_of(1000, begin))
    assert cache.path.stat().st_size < 1.2 * (1 << 20)
    assert cache.info().size_bytes < 8 << 20  # the log of the last writes beside it
    assert cache.info().n_rows > 2000
    assert cache.get(keys_of(900, 100), DIM) == {}
    newest = keys_of(1000, 29_000)
    assert set(cache.get(newest, DIM)) == set(newest)


def test_reading_keeps_a_row_alive(make, clock):
    """What is read every day outlives what was put later and is not."""
    cache = make(1 << 20)
    cache.put(rows_of(50))
    for begin in range(1000, 20_000, 1000):
        clock.pass_days(1)
        assert set(cache.get(keys_of(50), DIM)) == set(keys_of(50))
        cache.put(rows_of(1000, begin))
    assert cache.get(keys_of(1000, 1000), DIM) == {}


def test_a_flipped_byte_is_no_answer(make, caplog):
    """A row whose checksum is wrong is thrown away and computed anew."""
    cache = make()
    cache.put(rows_of(3))
    cache.close()
    with sqlite3.connect(cache.path) as file:
        file.execute("UPDATE rows SET row = ? WHERE key = ?", (b"\1" * 16, keys_of(1)[0]))
    file.close()
    assert set(cache.get(keys_of(3), DIM)) == set(keys_of(2, 1))
    assert "1 damaged rows of the cache" in caplog.text
    cache.put(rows_of(1))
    assert set(cache.get(keys_of(3), DIM)) == set(keys_of(3))


def test_rows_of_another_length_are_no_answer(make):
    """A row that does not have the model's components is not this model's."""
    cache = make()
    cache.put(rows_of(1))
    assert cache.get(keys_of(1), DIM + 1) == {}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"this is no database, it is a poem " * 100, id="not a database"),
        pytest.param(lambda content: content[:4096] + os.urandom(len(content) - 4096), id="torn pages"),
        pytest.param(lambda content: content[: len(content) // 2], id="cut short"),
    ],
)
def test_a_damaged_file_is_set_aside(make, damage, caplog):
    """With one warning that names where it is now; a new one takes its place."""
    cache = make()
    cache.put(rows_of(2000))
    cache.close()
    content = cache.path.read_bytes()
    cache.path.write_bytes(damage(content))
    again = make()
    again.get(keys_of(2000), DIM)
    again.put(rows_of(10, 5000))
    assert set(again.get(keys_of(10, 5000), DIM)) == set(keys_of(10, 5000))
    (aside,) = cache.path.parent.glob("*.damaged-*")
    assert aside.read_bytes() == damage(content) or len(content) == aside.stat().st_size
    assert caplog.text.count("cannot be read") == 1
    assert aside.name in caplog.text


def test_a_file_of_a_newer_program_is_left_alone(make, caplog):
    """It is neither used nor renamed."""
    cache = make()
    cache.put(rows_of(1))
    cache.close()
    with sqlite3.connect(cache.path) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    other = make()
    other.put(rows_of(1))
    assert other.get(keys_of(1), DIM) == {}
    assert caplog.text.count("is not used: it has version 99") == 1
    assert list(cache.path.parent.glob("*.damaged-*")) == []


def test_a_folder_that_cannot_be_made_turns_it_off(make, tmp_path, caplog):
    """One warning, and no rows."""
    (tmp_path / "file").write_text("")
    cache = make(path=tmp_path / "file" / "v.sqlite")
    cache.put(rows_of(1))
    cache.put(rows_of(1))
    assert cache.get(keys_of(1), DIM) == {}
    assert caplog.text.count("is not used") == 1


def test_a_full_disk_takes_nothing_new(make, monkeypatch, caplog):
    """Below 1 GiB of free space rows are read and not written; one warning."""
    cache = make()
    cache.put(rows_of(1))
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 20))
    cache.put(rows_of(1, 1))
    cache.put(rows_of(1, 2))
    assert set(cache.get(keys_of(3), DIM)) == set(keys_of(1))
    assert caplog.text.count("takes nothing new: only 100 MiB are free") == 1


def test_an_error_in_the_middle_leaves_no_lock(make):
    """A put that fails half-way is undone, and others can write."""
    cache, other = make(), make()
    cache.put(rows_of(1))
    other.put(rows_of(1, 1))
    broken = [(b"x", row(1, 2, 3, 4)), (None, row(1, 2, 3, 4))]
    with pytest.raises(TypeError):
        cache.put(broken)
    other.put(rows_of(1, 2))
    assert set(other.get([*keys_of(3), b"x"], DIM)) == set(keys_of(3))


def test_several_processes_write_at_once(tmp_path):
    """Four begin with no file; every row of each is there at the end."""
    path = tmp_path / "v.sqlite"
    code = textwrap.dedent(f"""
        import sys, numpy as np
        from pathlib import Path
        from gguf_embed.stream.cache import CachedRow, VectorCache
        number = int(sys.argv[1])
        cache = VectorCache(Path({str(path)!r}), limit_bytes=1 << 30)
        for begin in range(0, 1000, 50):
            names = [f"{{number}} {{at}}".encode() for at in range(begin, begin + 50)]
            cache.put((name, CachedRow(row=np.full(8, number, dtype=np.float32), n_tokens=1, truncated=False))
                      for name in names)
            assert len(cache.get(names, 8)) == 50
    """)
    children = [subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(number)], stderr=subprocess.PIPE)
                for number in range(4)]  # fmt: skip
    errors = [child.communicate()[1].decode() for child in children]
    assert errors == [""] * 4
    with VectorCache(path, limit_bytes=1 << 30) as cache:
        assert cache.info().n_rows == 4000
        assert cache.get([b"3 999"], 8)[b"3 999"].row.tolist() == [3.0] * 8


def test_no_byte_that_is_flipped_is_ever_fatal_or_believed(make):
    """Whatever is damaged, what comes back is as it was put, or nothing."""
    cache = make()
    cache.put(rows_of(40))
    wanted = {key: cache.get([key], DIM)[key] for key in keys_of(40)}
    cache.close()
    content = cache.path.read_bytes()
    generator = random.Random(3)
    for number in range(150):
        at = generator.randrange(len(content))
        path = cache.path.with_name(f"{number}.sqlite")
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :])
        with VectorCache(path, limit_bytes=1 << 30) as damaged:
            found = damaged.get(keys_of(40), DIM)
            assert all(same(one, wanted[key]) for key, one in found.items())


def test_what_is_turned_off_can_be_cleared(make):
    """cache_size 0 keeps and finds nothing, and what was kept before can be seen and deleted."""
    make().put(rows_of(2000))
    off = make(0)
    assert off.get(keys_of(3), DIM) == {}
    assert off.info().n_rows == 2000
    assert off.clear() > 0
    assert off.info().n_rows == 0


def test_a_forked_process_opens_its_own(make):
    """SQLite's connections do not survive a fork; the child reads and writes, and the parent goes on."""
    cache = make()
    cache.put(rows_of(3))
    child = os.fork()
    if not child:
        cache.put(rows_of(3, 10))
        os._exit(0 if len(cache.get(keys_of(3), DIM)) == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(cache.get([*keys_of(3), *keys_of(3, 10)], DIM)) == 6
