"""sizes.py: what people write for bytes, and what is printed for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.sizes import format_size, parse_size

GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4GiB", 4 * GIB),
        ("4G", 4 * GIB),
        ("4GB", 4 * GIB),
        ("4096MiB", 4 * GIB),
        ("4096M", 4 * GIB),
        ("1.5 GB", 3 * GIB // 2),
        ("0.5k", 512),
        ("2TiB", 2048 * GIB),
        ("1048576", MIB),
        ("12b", 12),
        ("  3 mib ", 3 * MIB),
    ],
)
def test_a_size_is_read_in_powers_of_1024(text, size_bytes):
    """Every spelling of a size comes to the same bytes, whatever its case, spaces or fraction."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", " ", "four", "4 X", "-4G", "4,5G", "1e9", "G", "4G 2M", "0", "0.0GiB", ".5G", "nan", "inf"]
)
def test_what_is_no_size_is_refused_with_an_example(text):
    """A text that is no size of at least one byte is a ValueError that quotes it and shows how to write one."""
    with pytest.raises(ValueError, match="is not a size; write one like 4GiB") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (12 * KIB, "12 KiB"),
        (288 * MIB, "288 MiB"),
        (2_496_703_776, "2.33 GiB"),
        (10 * GIB, "10.0 GiB"),
        (100 * GIB, "100 GiB"),
        (3 * 1024 * GIB, "3.00 TiB"),
        (-300 * MIB, "-300 MiB"),
    ],
)
def test_a_size_is_written_in_the_unit_a_person_would_take(size_bytes, text):
    """Bytes are printed in the largest binary unit of which there is one, a shortfall with its sign."""
    assert format_size(size_bytes) == text


@given(st.integers(1, 1 << 50))
def test_a_printed_size_reads_back_within_its_rounding(size_bytes):
    """What format_size prints, parse_size reads, and it is off by no more than half of the last digit."""
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.006 if size_bytes >= GIB else 0.5)


@given(st.integers(1, 1 << 50), st.integers(1, 1 << 50))
def test_a_larger_size_never_prints_as_a_smaller_one(first, second):
    """Order survives printing."""
    small, large = sorted((first, second))
    assert parse_size(format_size(small)) <= parse_size(format_size(large))


@given(st.integers(1, 1 << 53))
def test_plain_bytes_are_read_exactly(size_bytes):
    """A number without a unit is bytes, to the last one."""
    assert parse_size(str(size_bytes)) == size_bytes


def test_a_number_beyond_floats_is_no_size():
    """Four hundred digits are a ValueError as any other nonsense, which config and command line can tell."""
    with pytest.raises(ValueError, match="is not a size"):
        parse_size("9" * 400)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(MIB - 1, "1 MiB"), (GIB - 1, "1.00 GiB"), (10 * GIB - 1, "10.0 GiB"), (100 * GIB - 1, "100 GiB")],
)
def test_rounding_up_takes_the_next_unit(size_bytes, text):
    """A byte less than a GiB is not 1024 MiB, and there are never more than three digits after rounding."""
    assert format_size(size_bytes) == text
