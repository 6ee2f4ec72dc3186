"""What the numeric tests share: patterns to try, exact comparison, and models written another way than the library."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

F32 = np.float32
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def bits_of(x: Any) -> np.ndarray:
    """uint32 patterns of float32 values, from NumPy or jax."""
    return np.ascontiguousarray(np.asarray(x)).view(np.uint32)


def floats_of(bits: Any) -> np.ndarray:
    """float32 values of patterns."""
    return np.asarray(bits, np.uint32).view(F32)


def assert_same_bits(got: Any, want: Any, *inputs: Any) -> None:
    """The same float32 patterns everywhere, NaN payloads and signs of zeros included."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype == F32, (got.dtype, want.dtype)
    assert got.shape == want.shape, (got.shape, want.shape)
    _assert_equal(bits_of(got), bits_of(want), inputs)


def assert_same_values(got: Any, want: Any, *inputs: Any) -> None:
    """Like :func:`assert_same_bits`, but any NaN will do for a NaN."""
    got, want = np.asarray(got), np.asarray(want)
    both = np.isnan(got) & np.isnan(want)
    assert_same_bits(np.where(both, F32(0), got), np.where(both, F32(0), want), *inputs)


def assert_same_codes(got: Any, want: Any, *inputs: Any) -> None:
    """The same unsigned codes."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    _assert_equal(got.astype(np.uint32), want.astype(np.uint32), inputs)


def _assert_equal(got: np.ndarray, want: np.ndarray, inputs: tuple[Any, ...]) -> None:
    bad = np.flatnonzero(got != want)
    if bad.size:
        i = bad[0]
        at = ", ".join(f"{np.asarray(x).reshape(-1)[i]!r}" for x in inputs)
        raise AssertionError(
            f"{bad.size} of {got.size} differ; first at {i}: got 0x{got.reshape(-1)[i]:08x}, "
            f"want 0x{want.reshape(-1)[i]:08x} for {at}"
        )


# -- bit patterns -----------------------------------------------------------------------------------------------------

#: Zeros, the ends of the subnormal and normal ranges, ones, infinities, NaN of both kinds, all with both signs.
EDGES = floats_of(
    [
        pattern | sign
        for sign in (0, 0x80000000)
        for pattern in (
            *(0x00000000, 0x00000001, 0x00000002, 0x00000003, 0x00400000, 0x007FFFFF, 0x00800000, 0x00800001),
            *(0x00FFFFFF, 0x01000000, 0x01000001, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x40490FDB, 0x4B000000),
            *(0x7E800000, 0x7EFFFFFF, 0x7F000000, 0x7F7FFFFE, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FBFFFFF),
            *(0x7FC00000, 0x7FC12345, 0x7FFFFFFF),
        )
    ]
)


def random_patterns(n: int, seed: int = 0) -> np.ndarray:
    """float32 of every kind: all bit patterns are equally likely."""
    return floats_of(np.random.default_rng(seed).integers(0, 1 << 32, n, dtype=np.uint64).astype(np.uint32))


def tiny_patterns(n: int, seed: int = 0) -> np.ndarray:
    """Subnormals and the normals next to them (below 2**-79), both signs."""
    generator = np.random.default_rng(seed)
    sign = generator.integers(0, 2, n).astype(np.uint32) << 31
    return floats_of(generator.integers(0, 0x18000000, n).astype(np.uint32) >> generator.integers(0, 5, n) | sign)


def with_edges(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two operand arrays with every pair of edges in front."""
    a, b = np.meshgrid(EDGES, EDGES)
    return np.concatenate([a.reshape(-1), x]), np.concatenate([b.reshape(-1), y])


def all_bfloat16() -> np.ndarray:
    """Every BF16 value as float32."""
    return floats_of(np.arange(1 << 16, dtype=np.uint32) << 16)


def keep_significand(x: np.ndarray, bits: int) -> np.ndarray:
    """``x`` with all but the first ``bits`` bits of its significand cleared."""
    return floats_of(bits_of(x) & np.uint32(0xFFFFFFFF << (24 - bits) & 0xFFFFFFFF))


def boundaries(values: np.ndarray) -> np.ndarray:
    """The finite values, the midpoints between neighbours, and the float32 neighbours of both, with both signs."""
    exact = np.unique(np.abs(values[np.isfinite(values)].astype(np.float64)))
    middle = (exact[1:] + exact[:-1]) / 2
    beyond = exact[-1] + (exact[-1] - exact[-2]) * np.array([0.25, 0.5, 0.75, 1.0, 2.0])
    with np.errstate(over="ignore"):
        points = np.concatenate([exact, middle, beyond]).astype(F32)
    around = np.concatenate([points, np.nextafter(points, F32(0)), np.nextafter(points, F32(np.inf))])
    return np.concatenate([around, -around])


# -- formats ----------------------------------------------------------------------------------------------------------


def dtype_of(name: str) -> np.dtype:
    """The NumPy or ml_dtypes type of that name."""
    return np.dtype(getattr(ml_dtypes, name, name))


def codes_as_dtype(codes: Any, dtype: np.dtype) -> np.ndarray:
    """Unsigned codes as an array of ``dtype``."""
    return np.asarray(codes).astype(UNSIGNED[dtype.itemsize]).view(dtype)


def cast_codes(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """uint32 codes that the type's own cast makes of float32."""
    with np.errstate(all="ignore"):
        return x.astype(dtype).view(UNSIGNED[dtype.itemsize]).astype(np.uint32)


def to_bfloat16(x: Any) -> np.ndarray:
    """uint16 BF16 codes of float32, by ml_dtypes."""
    return np.asarray(x).astype(ml_dtypes.bfloat16).view(np.uint16)
