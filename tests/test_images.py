"""Memory contents from and to byte images (docs/machine.md 7.2 and 7.3), allocation, and files written whole."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers_formats import (
    F32,
    all_bfloat16,
    assert_same_bits,
    bits_of,
    floats_of,
    random_patterns,
    tiny_patterns,
    to_bfloat16,
)

from plena_jax import Formats, ImageError, Images, Intended, MachineConfig, MachineState, PlenaError
from plena_jax.files import write_atomically
from plena_jax.formats import FloatFormat, IntFormat
from plena_jax.machine.state import MAX_ALLOCATED_HBM

BF16 = ml_dtypes.bfloat16
ROWS, LANES = 48, 8


def vram_values(data: bytes) -> np.ndarray:
    """BF16 little endian, rows of 8, what is missing of the last one zero."""
    flat = np.frombuffer(data, "<u2").astype(np.uint32) << 16
    padded = np.zeros(-(-len(flat) // LANES) * LANES, np.uint32)
    padded[: len(flat)] = flat
    return floats_of(padded).reshape(-1, LANES)


def refused(make: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        make()
    assert isinstance(caught.value, PlenaError)
    assert isinstance(caught.value, ValueError)


def with_type(config: MachineConfig, fmt: Any, intended: Intended | None = None, **more: Any) -> MachineConfig:
    precision = Formats(vector_sram_type=fmt, **more)
    return dataclasses.replace(config, precision=precision, intended=intended or Intended())


# -- a machine at reset -----------------------------------------------------------------------------------------------


def test_a_machine_at_reset_is_zero_but_for_three_registers(small):
    state = MachineState.create(small)
    assert state.stride == 1
    assert state.bmm_scale == 0.25
    for name, leaf in vars(state).items():
        if name not in ("stride", "bmm_scale"):
            assert not any(np.any(np.asarray(part)) for part in jax.tree.leaves(leaf)), name
    assert state.vram.shape == (ROWS, LANES)
    assert state.mram.shape == (4, 8, 8)
    assert (state.fp_sram.shape, state.int_sram.shape) == ((1024,), (1024,))
    assert (state.gp.shape, state.f.shape, state.a.shape) == ((16,), (8,), (16, 2))
    assert (state.m_accum.shape, state.v_accum.shape) == ((2, 2), (2,))
    assert (state.hm_accum.shape, state.hv_accum.shape) == ((2, 8, 8), (2, 8))
    assert (state.instructions, state.latency_cycles, state.hbm_traffic) == (0, 0, (0, 0))


def test_empty_images_are_a_machine_at_reset(small):
    state, reset = MachineState.from_images(small, Images()), MachineState.create(small)
    for mine, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(reset), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# -- FP SRAM ----------------------------------------------------------------------------------------------------------


def test_fp_sram_image_is_float16_and_rounds_to_bfloat16(small):
    for start in range(0, 1 << 16, 1024):
        halves = np.arange(start, start + 1024, dtype="<u2").view("<f2")
        state = MachineState.from_images(small, Images(fp_sram=halves.tobytes()))
        got, want = np.asarray(state.fp_sram), halves.astype(F32)
        nan = np.isnan(want)
        assert_same_bits(got[~nan], floats_of(to_bfloat16(want[~nan]).astype(np.uint32) << 16), halves[~nan])
        # NaN: the upper half, made quiet.
        assert_same_bits(got[nan], floats_of(bits_of(want[nan]) & 0xFFFF0000 | 0x00400000), halves[nan])


def test_fp_sram_image_is_not_bfloat16(small):
    state = MachineState.from_images(small, Images(fp_sram=np.array([1.0], BF16).tobytes()))
    assert state.fp_sram[0] == np.array([0x3F80], np.uint16).view(np.float16)[0] != 1


def test_fp_sram_image_starts_at_entry_0_and_leaves_the_rest_zero(small):
    state = MachineState.from_images(small, Images(fp_sram=np.array([0, 1, -2, 0.5], "<f2").tobytes()))
    assert state.fp_sram[:4].tolist() == [0, 1, -2, 0.5]
    assert not state.fp_sram[4:].any()


def test_fp_sram_ties_round_to_even(small):
    # float16 has 10 bits, BF16 has 7: these lie half-way.
    image = np.array([1 + 1 / 256, 1 + 3 / 256], "<f2")
    assert MachineState.from_images(small, Images(fp_sram=image.tobytes())).fp_sram[:2].tolist() == [1, 1 + 1 / 64]


@pytest.mark.parametrize("size", [1, 3, 2047])
def test_fp_sram_image_of_half_entries_is_refused(small, size):
    refused(
        lambda: MachineState.from_images(small, Images(fp_sram=bytes(size))),
        rf"FP SRAM image: {size} bytes are not a whole number of float16 entries; the image is cut off",
    )


def test_fp_sram_image_of_too_many_entries_is_refused(small):
    assert MachineState.from_images(small, Images(fp_sram=bytes(2048))).fp_sram.shape == (1024,)
    refused(
        lambda: MachineState.from_images(small, Images(fp_sram=bytes(2050))),
        r"FP SRAM image: 1025 entries do not fit; allowed: 1024 entries",
    )


def test_fp_sram_values_round_to_bfloat16(small):
    x = np.concatenate([random_patterns(500), tiny_patterns(500)])
    got = np.asarray(MachineState.create(small, fp_sram=x).fp_sram)[: len(x)]
    number = ~np.isnan(x)
    assert_same_bits(got[number], floats_of(to_bfloat16(x[number]).astype(np.uint32) << 16), x[number])
    assert_same_bits(got[~number], floats_of(bits_of(x[~number]) & 0xFFFF0000 | 0x00400000), x[~number])
    assert MachineState.create(small, fp_sram=np.array([1.5, 2.5])).fp_sram[:2].tolist() == [1.5, 2.5]
    assert MachineState.create(small, fp_sram=jnp.array([1.5], jnp.bfloat16)).fp_sram[0] == 1.5


@pytest.mark.parametrize(
    "contents, shown",
    [
        (np.ones(1025, F32), r"float32 \(1025,\)"),
        ([[1.0]], r"float64 \(1, 1\)"),
        ([1, 2], r"int64 \(2,\)"),
        (["x"], r"<U1 \(1,\)"),
    ],
)
def test_fp_sram_values_of_the_wrong_kind_are_refused(small, contents, shown):
    message = rf"FP SRAM: contents are {shown}; allowed: a one-dimensional float array of at most 1024 entries"
    refused(lambda: MachineState.create(small, fp_sram=contents), message)


# -- INT SRAM ---------------------------------------------------------------------------------------------------------


def test_int_sram_image_is_little_endian_words(small):
    image = bytes.fromhex("01000000 78563412 ffffffff")
    state = MachineState.from_images(small, Images(int_sram=image))
    assert state.int_sram[:4].tolist() == [1, 0x12345678, 0xFFFFFFFF, 0]
    assert state.int_sram.dtype == jnp.uint32


@pytest.mark.parametrize("size", [1, 2, 3, 5, 4095])
def test_int_sram_image_of_part_words_is_refused(small, size):
    refused(
        lambda: MachineState.from_images(small, Images(int_sram=bytes(size))),
        rf"INT SRAM image: {size} bytes are not a whole number of 32-bit words; the image is cut off",
    )


def test_int_sram_image_of_too_many_words_is_refused(small):
    assert MachineState.from_images(small, Images(int_sram=bytes(4096))).int_sram.shape == (1024,)
    refused(
        lambda: MachineState.from_images(small, Images(int_sram=bytes(4100))),
        r"INT SRAM image: 1025 entries do not fit; allowed: 1024 entries",
    )


def test_int_sram_values(small):
    assert MachineState.create(small, int_sram=[0, 2**32 - 1]).int_sram[:2].tolist() == [0, 2**32 - 1]
    assert MachineState.create(small, int_sram=np.int8([5])).int_sram[0] == 5
    assert not MachineState.create(small, int_sram=[]).int_sram.any()


@pytest.mark.parametrize("contents", [[-1], [2**32], [2**70], [1.0], [[1]], [True], list(range(1025))])
def test_int_sram_values_of_the_wrong_kind_are_refused(small, contents):
    message = (
        r"INT SRAM: contents are .*; allowed: a one-dimensional array of at most 1024 integers from 0 to 2\*\*32 - 1"
    )
    refused(lambda: MachineState.create(small, int_sram=contents), message)


# -- VRAM -------------------------------------------------------------------------------------------------------------


def test_vram_image_is_bfloat16_in_rows(small):
    data = np.arange(3 * LANES, dtype=F32).astype(BF16).tobytes()
    state = MachineState.from_images(small, Images(vram=data))
    assert state.vram[:3].tolist() == np.arange(24).reshape(3, 8).tolist()
    assert not state.vram[3:].any()


def test_vram_image_keeps_every_code(small):
    config = dataclasses.replace(small, vector_sram_size=1 << 13)
    codes = np.arange(1 << 16, dtype="<u2")
    state = MachineState.from_images(config, Images(vram=codes.tobytes()))
    assert_same_bits(np.asarray(state.vram).reshape(-1), all_bfloat16())
    assert state.dump(config).vram == codes.tobytes()


def test_last_partial_row_is_filled_with_zeros(small):
    data = np.ones(LANES + 3, BF16).tobytes()
    state = MachineState.from_images(small, Images(vram=data))
    assert state.vram[:2].tolist() == [[1] * 8, [1, 1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("size", [1, 17])
def test_vram_image_of_half_elements_is_refused(small, size):
    refused(
        lambda: MachineState.from_images(small, Images(vram=bytes(size))),
        rf"VRAM image: {size} bytes are not a whole number of 16-bit elements; the image is cut off",
    )


def test_vram_image_of_too_many_rows_is_refused(small):
    full = bytes(ROWS * LANES * 2)
    assert MachineState.from_images(small, Images(vram=full)).vram.shape == (ROWS, LANES)
    refused(
        lambda: MachineState.from_images(small, Images(vram=full + bytes(2))),
        r"VRAM image: 49 rows do not fit; allowed: 48 rows \(VECTOR_SRAM_SIZE\)",
    )


def test_vram_values_round_like_the_hardware(small):
    x = np.concatenate([random_patterns(300), floats_of([0x7F800001, 0x7FFFFFFF, 0x7FC12345, 0xFFFFFFFF])])
    x = np.concatenate([x, tiny_patterns(ROWS * LANES - len(x))])
    got = np.asarray(MachineState.create(small, vram=x).vram).reshape(-1)
    number = ~np.isnan(x)
    assert_same_bits(got[number], floats_of(to_bfloat16(x[number]).astype(np.uint32) << 16), x[number])
    # NaN keeps its rounded mantissa, and is infinity where that is zero.
    assert bits_of(got[300:304]).tolist() == [0x7F800000, 0x7F800000, 0x7FC10000, 0xFF800000]


@pytest.mark.parametrize("shape", [(24,), (3, 8), (1, 3, 8)])
def test_vram_values_come_flat_or_in_rows(small, shape):
    values = np.arange(24, dtype=F32).reshape(shape)
    for contents in (values, values.tolist(), jnp.asarray(values), values.astype(np.int64), values.astype(BF16)):
        state = MachineState.create(small, vram=contents)
        assert state.vram[:3].tolist() == np.arange(24).reshape(3, 8).tolist()


@pytest.mark.parametrize(
    "contents, message",
    [
        (np.ones((2, 7)), r"VRAM: rows of 7 lanes; allowed: VLEN, 8, or a flat array"),
        (["a"], r"VRAM: contents are <U1 \(1,\); allowed: an array of real numbers"),
        (np.ones(8, complex), r"VRAM: contents are complex128 \(8,\); allowed: an array of real numbers"),
        ([None], r"VRAM: contents are object \(1,\); allowed: an array of real numbers"),
        (np.ones((ROWS + 1, LANES)), r"VRAM: 49 rows do not fit; allowed: .*48 rows"),
        (np.ones(ROWS * LANES + 1), r"VRAM: 49 rows do not fit; allowed: .*48 rows"),
    ],
)
def test_vram_values_of_the_wrong_kind_are_refused(small, contents, message):
    refused(lambda: MachineState.create(small, vram=contents), message)


def test_vram_of_another_width_packs_rows_of_bits(small):
    # Codes of 12 bits, 3F8 and C00 in the first row of 12 bytes, 3FC in the second.
    config = with_type(small, FloatFormat.make(8, 3, family="plena"))
    data = bytes.fromhex("f803c0 000000 000000 000000 fc0300")
    state = MachineState.from_images(config, Images(vram=data))
    assert state.vram[:2].tolist() == [[1, -2, 0, 0, 0, 0, 0, 0], [1.5, 0, 0, 0, 0, 0, 0, 0]]
    assert state.dump(config).vram[: len(data)] == data
    refused(
        lambda: Images(vram=bytes(4)).contents(config), "VRAM image: 4 bytes are not a whole number of 12-bit elements"
    )


@pytest.mark.parametrize("mantissa, dtype", [(10, np.float16), (23, np.float32)])
def test_plain_formats_switch_gives_ieee_images(small, mantissa, dtype):
    fmt = FloatFormat.make(8 if mantissa == 23 else 5, mantissa, family="plena")
    config = with_type(small, fmt, Intended(plain_formats=True), matrix_sram_type=fmt)
    image = np.array([0.5, 1, 1.5, -3, 2.0**-20, 65504, 0, -0.0], dtype)
    state = MachineState.from_images(config, Images(vram=image.tobytes()))
    assert_same_bits(np.asarray(state.vram[0]), image.astype(F32))
    assert_same_bits(np.asarray(MachineState.create(config, vram=image).vram[0]), image.astype(F32))
    state = state.replace(mram=state.mram.at[0, 0].set(image.astype(F32)))
    dump = state.dump(config)
    assert dump.vram[: image.nbytes] == dump.mram[: image.nbytes] == image.tobytes()


# -- HBM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, np.uint8)])
def test_hbm_contents_start_at_byte_0(small, kind):
    data = bytes(range(100))
    state = MachineState.create(small, hbm=kind(data))
    assert np.asarray(state.hbm[:100]).tobytes() == data
    assert not state.hbm[100:].any()
    assert state.hbm.dtype == jnp.uint8


def test_hbm_image_may_fill_the_memory_and_no_more(small):
    data = np.random.default_rng(0).bytes(small.hbm_size)
    assert MachineState.from_images(small, Images(hbm=data)).dump(small).hbm == data
    refused(
        lambda: MachineState.from_images(small, Images(hbm=data + b"x")),
        r"HBM image: 65537 bytes do not fit; allowed: 65536 bytes \(HBM_SIZE\)",
    )
    refused(
        lambda: MachineState.create(small, hbm=data + b"x"),
        r"HBM: 65537 bytes do not fit; allowed: HBM_SIZE, 65536 bytes",
    )


@pytest.mark.parametrize(
    "contents, shown",
    [
        ([1, 2], r"int64 \(2,\)"),
        (np.zeros((2, 2), np.uint8), r"uint8 \(2, 2\)"),
        (np.zeros(2, np.int8), r"int8 \(2,\)"),
    ],
)
def test_hbm_contents_of_the_wrong_kind_are_refused(small, contents, shown):
    refused(
        lambda: MachineState.create(small, hbm=contents),
        rf"HBM: contents are {shown}; allowed: bytes, a one-dimensional uint8 array, or for the values face",
    )


# -- dumps ------------------------------------------------------------------------------------------------------------


def test_dumps_hold_every_memory_in_the_emulators_encoding(small):
    generator = np.random.default_rng(1)
    vram = generator.standard_normal((ROWS, LANES)).astype(BF16)
    fp_sram = generator.standard_normal(1024).astype(BF16)
    int_sram = generator.integers(0, 1 << 32, 1024, dtype=np.uint64).astype("<u4")
    mram = (generator.standard_normal((4, 8, 8)) * 2.0 ** generator.integers(-140, 120, (4, 8, 8))).astype(F32)
    hbm = generator.bytes(small.hbm_size)
    state = MachineState.create(small, vram=vram, fp_sram=fp_sram, int_sram=int_sram, hbm=hbm)
    dump = state.replace(mram=jnp.asarray(mram)).dump(small)
    assert dump.vram == vram.tobytes()
    assert dump.fp_sram == fp_sram.tobytes()
    assert dump.int_sram == int_sram.tobytes()
    assert dump.mram == to_bfloat16(mram).tobytes()
    assert dump.hbm == hbm
    sizes = {f.name: len(getattr(dump, f.name)) for f in dataclasses.fields(dump)}
    assert sizes == dict(hbm=1 << 16, fp_sram=2048, int_sram=4096, vram=ROWS * LANES * 2, mram=4 * 64 * 2)


def test_dumped_fp_sram_is_bfloat16_where_the_preload_is_float16(small):
    state = MachineState.from_images(small, Images(fp_sram=np.array([1, -2.5], "<f2").tobytes()))
    dump = state.dump(small)
    assert np.frombuffer(dump.fp_sram, BF16)[:2].tolist() == [1, -2.5]
    assert dump.fp_sram[:2] != np.array([1], "<f2").tobytes()


def test_vram_and_hbm_images_survive_the_round_trip(small):
    vram, hbm = np.random.default_rng(2).bytes(ROWS * LANES * 2), bytes(range(256))
    dump = MachineState.from_images(small, Images(vram=vram, hbm=hbm)).dump(small)
    assert dump.vram == vram
    assert dump.hbm.rstrip(b"\0") == hbm


def test_matrix_sram_dumps_in_its_own_type(small):
    state = MachineState.create(small)
    state = state.replace(mram=state.mram.at[0, 0, :4].set(jnp.array([1.0, -2.0, 3.9, 300.0])))
    integers = dataclasses.replace(small, precision=Formats(matrix_sram_type=IntFormat(8, family="plena")))
    assert state.dump(integers).mram[:4] == bytes([1, 0xFE, 3, 44])
    nibbles = dataclasses.replace(small, precision=Formats(matrix_sram_type=IntFormat(4, family="plena")))
    assert state.dump(nibbles).mram[:2] == bytes([0xE1, 0xC3])
    assert len(state.dump(nibbles).mram) == 128


def test_dumps_cover_what_is_allocated(small):
    state = MachineState.create(small, vram_rows=5, hbm_bytes=128)
    dump = state.dump(small)
    assert (len(dump.vram), len(dump.hbm)) == (5 * LANES * 2, 128)


# -- allocation -------------------------------------------------------------------------------------------------------


def test_default_allocation_is_bounded_by_the_configuration(small):
    state = MachineState.create(small)
    assert (state.vram.shape[0], state.hbm.shape[0]) == (ROWS, 1 << 16)
    state = MachineState.create(MachineConfig())
    assert (state.vram.size, state.hbm.size) == (1 << 20, 1 << 16)


def test_allocation_grows_with_the_contents_in_powers_of_two():
    config = MachineConfig(mlen=8, vlen=8, blen=2, hlen=4, broadcast_amount=2, matrix_sram_size=8)
    rows = (1 << 17) + 1
    assert MachineState.create(config, vram=np.zeros(rows * 8, F32)).vram.shape == (1 << 18, 8)
    assert MachineState.create(config, hbm=bytes((1 << 16) + 1)).hbm.shape == (1 << 17,)
    tight = dataclasses.replace(config, vector_sram_size=rows, hbm_size=(1 << 16) + 64)
    assert MachineState.create(tight, vram=np.zeros(rows * 8, F32)).vram.shape == (rows, 8)
    assert MachineState.create(tight, hbm=bytes((1 << 16) + 1)).hbm.shape == ((1 << 16) + 64,)


def test_allocation_may_be_chosen(small):
    state = MachineState.create(small, vram=np.ones(16), vram_rows=2, hbm=b"x" * 64, hbm_bytes=64)
    assert (state.vram.shape, state.hbm.shape) == ((2, 8), (64,))
    assert MachineState.create(small, vram_rows=1, hbm_bytes=0).hbm.shape == (0,)
    state = MachineState.from_images(small, Images(), vram_rows=3, hbm_bytes=192)
    assert (state.vram.shape, state.hbm.shape) == ((3, 8), (192,))


@pytest.mark.parametrize(
    "allocation, message",
    [
        (dict(vram_rows=0), "VRAM: 0 rows"),
        (dict(vram_rows=-1), "VRAM: "),
        (dict(vram_rows=49), r"VRAM: 49 rows do not fit; allowed: VECTOR_SRAM_SIZE, 48 rows"),
        (
            dict(vram=np.ones((3, 8)), vram_rows=2),
            r"VRAM: 2 rows \(vram_rows\) do not fit; allowed: at least the 3 rows",
        ),
        (dict(hbm_bytes=100), "HBM: cannot allocate 100 bytes; allowed: a multiple of 64"),
        (dict(hbm_bytes=-64), "HBM: cannot allocate -64 bytes; allowed: a multiple of 64"),
        (dict(hbm_bytes=1 << 17), "HBM: 131072 bytes do not fit; allowed: HBM_SIZE, 65536 bytes"),
        (
            dict(hbm=bytes(65), hbm_bytes=64),
            "HBM: cannot allocate 64 bytes; allowed: .* at least the 65 bytes of the image",
        ),
    ],
)
def test_allocations_that_do_not_fit_are_refused(small, allocation, message):
    refused(lambda: MachineState.create(small, **allocation), message)


def test_hbm_allocation_ends_below_two_gibibytes():
    config = MachineConfig()
    assert config.hbm_size > MAX_ALLOCATED_HBM
    refused(
        lambda: MachineState.create(config, vram_rows=1, hbm_bytes=MAX_ALLOCATED_HBM),
        f"HBM: cannot allocate {MAX_ALLOCATED_HBM} bytes; allowed: .* below {MAX_ALLOCATED_HBM}",
    )


def test_growing_keeps_the_contents_and_never_shrinks(small):
    state = MachineState.create(small, vram=np.arange(16), vram_rows=2, hbm=bytes(range(64)), hbm_bytes=64)
    grown = state.grown(5, 256)
    assert (grown.vram.shape, grown.hbm.shape) == ((5, 8), (256,))
    assert grown.vram[:2].tolist() == state.vram.tolist()
    assert not grown.vram[2:].any()
    assert grown.hbm[:64].tolist() == list(range(64))
    assert not grown.hbm[64:].any()
    assert state.grown(1, 0) is state


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_are_written_whole(tmp_path):
    path = tmp_path / "image.bin"
    write_atomically(path, b"first")
    write_atomically(str(path), memoryview(b"second"))
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["image.bin"]


def test_files_may_end_in_zeros_that_are_not_given(tmp_path):
    path = tmp_path / "image.bin"
    write_atomically(path, b"abc", size=10)
    assert path.read_bytes() == b"abc" + bytes(7)


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


def test_files_have_the_usual_permissions(tmp_path, umask):
    path = tmp_path / "image.bin"
    write_atomically(path, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    current = os.umask(0o027)
    assert current == 0o027


@pytest.mark.parametrize("step", ["write", "fdopen", "replace"])
def test_a_failure_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch, step):
    path = tmp_path / "image.bin"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    if step == "write":
        contents: Any = "text is not bytes"
        expected: type[BaseException] = TypeError
    else:
        contents, expected = b"new", KeyboardInterrupt
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(expected):
        write_atomically(path, contents)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["image.bin"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "image.bin", b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [{"vram_rows": 2.5}, {"vram_rows": "8"}, {"hbm_bytes": 64.0}, {"hbm_bytes": True}])
def test_allocations_that_are_no_integers_are_refused(size: dict[str, Any], small: MachineConfig):
    (name,) = size
    with pytest.raises(ImageError, match=f"^{name} = .*: cannot be allocated; allowed: an integer"):
        MachineState.create(small, **size)


@pytest.mark.parametrize("memory", ["vram", "fp_sram", "int_sram", "hbm"])
def test_rows_of_different_lengths_are_refused(memory: str, small: MachineConfig):
    with pytest.raises(ImageError, match="contents are not an array"):
        MachineState.create(small, **{memory: [[1, 2], [3]]})
