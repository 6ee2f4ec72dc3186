"""Attention and rotary embedding on the machine against their references; each check fails on wrong results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plena_jax import MachineConfig
from plena_jax.lower import Graph, OperatorError, lower

from .cases import Case, assert_formula, fits, machine, only, relative_l2, same_bits


def attention(
    rows: int,
    keys: int,
    size: int,
    heads: int = 1,
    kv_heads: int | None = None,
    hbm: tuple[str, ...] = (),
    with_: tuple[str, ...] = (),
    **attributes: Any,
) -> Case:
    """A case of attention; ``with_`` names the optional tensors, ``hbm`` those of them in HBM."""
    kv = keys, (kv_heads or heads) * size
    shapes = {"q": (rows, heads * size), "k": kv, "v": kv, "mask": (rows, keys), "sinks": (1, heads)}
    shapes = {name: shape for name, shape in shapes.items() if name in ("q", "k", "v", *with_)}
    numbers = {"heads": heads, **({} if kv_heads is None else {"kv_heads": kv_heads}), **attributes}
    return Case("attention", shapes, numbers, {"k": "kv", "v": "kv", **dict.fromkeys(hbm, "activations")}, spread=1.5)


def rope(heads: int, size: int, columns: int | None = None, **hbm: str) -> Case:
    """A case of rope; ``columns`` of tables by default those of one head."""
    table = 5, columns or size
    return Case("rope", {"x": (5, heads * size), "cos": table, "sin": table}, {"heads": heads}, hbm)


#: With heads of 16 columns, which are a block, but where lanes are what is tested; 40 keys are two tiles and a half.
CASES = [
    attention(5, 40, 16),
    attention(5, 40, 16, 2, 1, causal=True, query_offset=30, window=9, with_=("sinks",)),
    attention(5, 40, 16, with_=("mask",), scale=1.0),
    attention(5, 40, 8, 4, 2, causal=True, query_offset=14),
    attention(5, 40, 32, kv_length=18),
    attention(5, 40, 4, 6, 2, causal=True, query_offset=14),
    rope(1, 16),
    rope(2, 32),
    rope(3, 8, cos="activations"),
]
#: The same in more sizes; and all at once.
MORE = [
    attention(21, 21, 16, 2, causal=True),
    attention(5, 40, 16, 4, 2, causal=True, query_offset=35, with_=("mask", "sinks"), hbm=("mask", "sinks")),
    attention(1, 40, 16, 4, 1, kv_length=33),
    attention(1, 1, 16),
    attention(1, 20, 8, 6, 2, with_=("sinks",)),
    attention(3, 7, 1, 3),
    attention(5, 23, 5, 6, 3, with_=("sinks",)),
    attention(5, 23, 24, 4, 2, causal=True, query_offset=2),
    attention(5, 23, 40, 2, 1, window=30),
    attention(37, 37, 16, causal=True, window=5),
    attention(37, 61, 8, 2, causal=True, query_offset=24),
    attention(33, 20, 16, with_=("mask",)),
    attention(9, 40, 12, 20, 4, with_=("sinks",)),
    attention(9, 40, 48, scale=1.0),
    # Heads of one head slot, and of two.
    attention(16, 16, 4, 4, 1),
    attention(1, 40, 4, 4, 1, kv_length=33),
    attention(37, 61, 4, 8, 4, causal=True, query_offset=24, window=20, with_=("sinks",)),
    attention(19, 40, 4, 3, with_=("mask",), hbm=("mask",), scale=1.0),
    attention(19, 60, 8, 6, 2, causal=True, query_offset=40, with_=("sinks",)),
    attention(17, 60, 8, 3, 1, with_=("mask",)),
    rope(1, 2),
    rope(5, 6),
    rope(2, 24),
    rope(2, 24, 48, sin="activations"),
    rope(2, 16, 32),
    rope(1, 64, cos="activations", sin="activations"),
    rope(3, 32, 96),
]
IDS = {"ids": lambda case: case.id}


def check(case: Case, config: MachineConfig) -> None:
    """The machine is its rounded reference, and what is wrong is not."""
    lowered, operands = case.lowered(config), case.operands()
    found, wanted = only(lowered(**operands)), only(lowered.rounded(**operands))
    assert np.isfinite(wanted).all()
    assert same_bits(found, wanted), relative_l2(found, wanted)
    assert fits(found, wanted)
    assert not fits(np.zeros_like(found), wanted)
    assert not fits(np.roll(found, 1, axis=int(found.shape[1] > 1)), wanted) or found.size == 1
    stale = only(lowered.exact(**case.operands(seed=1)))
    assert not fits(stale, wanted)


def check_formula(case: Case) -> None:
    """Without roundings the rounded reference is the formula."""
    lowered, operands = case.lowered(machine(formats="float32")), case.operands()
    assert_formula(only(lowered.rounded(**operands)), only(lowered.exact(**operands)))


@pytest.mark.parametrize("case", CASES, **IDS)
def test_the_machine_is_the_rounded_reference(case: Case) -> None:
    check(case, machine())


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", MORE, **IDS)
def test_the_machine_is_the_rounded_reference_in_more_sizes(case: Case) -> None:
    check(case, machine())


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [*CASES, *MORE], **IDS)
def test_float32_machines_too(case: Case) -> None:
    check(case, machine(formats="float32"))


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], **IDS)
def test_the_rounded_reference_is_the_formula_without_roundings(case: Case) -> None:
    check_formula(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [*CASES, *MORE], **IDS)
def test_all_rounded_references_are_the_formula_without_roundings(case: Case) -> None:
    check_formula(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("mlen", "blen"), [(32, 4), (64, 4), (64, 16), (128, 8)])
def test_machines_of_all_sizes(mlen: int, blen: int) -> None:
    for case in (
        attention(5, 150, 40, 2, 1, causal=True, query_offset=120, with_=("sinks",)),
        attention(70, 70, 64, 2, causal=True),
        rope(2, 64),
        rope(2, 80),
    ):
        check(case, machine(mlen, blen))


# -- what attention means ---------------------------------------------------------------------------------------------


def plain(case: Case, operands: dict[str, np.ndarray]) -> np.ndarray:
    """Attention written once more: a query and a head at a time, over the keys that it sees alone."""
    numbers = {"kv_heads": None, "scale": None, "causal": False, "window": None, "query_offset": 0, "kv_length": None}
    numbers |= case.attributes
    heads = numbers["heads"]
    q, k, v = (operands[name].astype(np.float64) for name in "qkv")
    size, shared = q.shape[1] // heads, heads // (numbers["kv_heads"] or heads)
    scale = numbers["scale"] or size**-0.5
    result = np.zeros_like(q)
    for i in range(len(q)):
        position = numbers["query_offset"] + i
        seen = [
            j
            for j in range(numbers["kv_length"] or len(k))
            if not (numbers["causal"] and j > position)
            and (numbers["window"] is None or j > position - numbers["window"])
        ]
        for head in range(heads):
            at, of = slice(head * size, (head + 1) * size), head // shared * size
            logits = [scale * (q[i, at] @ k[j, of : of + size]) for j in seen]
            if "mask" in operands:
                logits = [x + operands["mask"][i, j] for x, j in zip(logits, seen, strict=True)]
            extra = [float(operands["sinks"][0, head])] if "sinks" in operands else []
            shares = np.exp(np.array([*logits, *extra]) - max(*logits, *extra, -1e300))
            result[i, at] = shares[: len(seen)] @ v[seen, of : of + size] / shares.sum()
    return result


@pytest.mark.parametrize("case", [case for case in CASES if case.name == "attention"], **IDS)
def test_the_formula_is_attention(case: Case) -> None:
    check_meaning(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [case for case in MORE if case.name == "attention"], **IDS)
def test_the_formula_is_attention_in_more_sizes(case: Case) -> None:
    check_meaning(case)


def check_meaning(case: Case) -> None:
    """The formula against attention written once more."""
    operands = case.operands()
    exact = only(case.lowered(machine(formats="float32")).exact(**operands))
    assert relative_l2(exact, plain(case, operands)) <= 1e-6
    assert relative_l2(exact * 1.0001, plain(case, operands)) > 1e-6


def test_a_decoded_row_is_the_last_of_the_prefill() -> None:
    """One row with a cache that has unused rows, against all rows at once: the same steps, so the same words."""
    prefill = attention(5, 40, 16, causal=True, query_offset=13)
    operands = prefill.operands()
    whole = only(prefill.lowered(machine())(**operands))
    decode = attention(1, 40, 16, kv_length=18)
    changed = {name: np.where(np.arange(40)[:, None] < 18, operands[name], 9) for name in ("k", "v")}
    row = only(decode.lowered(machine())(**(operands | changed | {"q": operands["q"][4:]})))
    assert same_bits(row[0], whole[4])
    assert not same_bits(row[0], whole[3])


def test_queries_in_pieces_are_queries_at_once() -> None:
    """Groups of 16 rows (MLEN) are what chunks of a prefill are."""
    whole = attention(21, 40, 16, 2, causal=True, query_offset=9)
    operands = whole.operands()
    found = only(whole.lowered(machine())(**operands))
    assert relative_l2(found, plain(whole, operands)) < 0.2
    for start, rows in ((0, 16), (16, 5), (3, 5)):
        piece = attention(rows, 40, 16, 2, causal=True, query_offset=9 + start)
        part = only(piece.lowered(machine())(**operands | {"q": operands["q"][start : start + rows]}))
        assert same_bits(part, found[start : start + rows])
        assert not same_bits(part, np.roll(found, 1, axis=0)[start : start + rows])


def test_masks_of_minus_infinity_hide_keys() -> None:
    """Also the first tile of a row: what has been summed there must not count later."""
    case = attention(5, 40, 16, with_=("mask",), scale=1.0)
    lowered, operands = case.lowered(machine()), case.operands()
    hidden = np.arange(40)[None] < np.array([0, 3, 16, 17, 39])[:, None]
    operands["mask"] = np.where(hidden, -np.inf, 0).astype(np.float32)
    found, wanted = only(lowered(**operands)), only(lowered.rounded(**operands))
    assert same_bits(found, wanted)
    assert relative_l2(found, plain(case, operands)) < 0.2
    assert relative_l2(found, plain(case, operands | {"mask": 0 * hidden})) > 0.2


# -- programs ---------------------------------------------------------------------------------------------------------


def words(case: Case) -> int:
    return len(case.lowered(machine()).program)


def test_tiles_that_nobody_sees_are_left_out() -> None:
    assert words(attention(5, 400, 16, causal=True)) == words(attention(5, 16, 16, causal=True))
    assert words(attention(5, 400, 16, kv_length=20)) == words(attention(5, 20, 16))
    assert words(attention(5, 400, 16, causal=True, query_offset=320, window=3)) < words(attention(5, 40, 16))


@pytest.mark.parametrize(("causal", "published"), [(False, 12_986), (True, 18_509)])
def test_heads_of_one_slot_take_fewer_instructions_than_published(causal: bool, published: int) -> None:
    case = attention(64, 64, 16, 4, 1, causal=causal)
    program = case.lowered(MachineConfig())
    assert program.cost().instructions < published / 2
    mnemonics = [line.split()[0] for line in program.program.disassemble()]
    assert mnemonics.count("M_BTMM") == 1
    assert "M_TMM" not in mnemonics and "V_SHFT_V" not in mnemonics


def test_lanes_behind_the_last_head_are_zero() -> None:
    """Where another tensor was before: a mean of squares takes whole rows."""
    g = Graph(machine())
    x, k, v = g.input("x", (5, 16)), *(g.input(name, (20, 12), "hbm", "kv") for name in "kv")
    q = g.linear(g.add(x, x), g.input("w", (16, 12), "hbm", "weights"))
    g.output(g.rms_norm(g.attention(q, k, v, heads=3)))
    lowered, random = lower(g), np.random.default_rng(3)
    shapes = {"x": (5, 16), "k": (20, 12), "v": (20, 12), "w": (16, 12)}
    operands = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    assert same_bits(only(lowered(**operands)), only(lowered.rounded(**operands)))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "attention: heads: expected a divisor of the 32 columns of q, got 3"),
        ({"heads": 0}, "attention: heads: expected 1 to 32, got 0"),
        ({"kv_heads": 3}, r"attention: kv_heads: expected a divisor of heads \(2\), got 3"),
        ({"kv_heads": 1}, r"attention: columns of k \(k\): expected 16, got 32"),
        ({"v": "mask"}, r"attention: shape of v \(mask\): expected \(40, 32\), got \(5, 40\)"),
        ({"mask": "q"}, r"attention: shape of mask \(q\): expected \(5, 40\), got \(5, 32\)"),
        ({"sinks": "q"}, r"attention: shape of sinks \(q\): expected \(1, 2\), got \(5, 32\)"),
        ({"k": "q"}, r"attention: k \(q\) is in vram; expected hbm"),
        ({"window": 0}, "attention: window: expected 1 or more, got 0"),
        ({"query_offset": -1}, "attention: query_offset: expected 0 or more, got -1"),
        ({"kv_length": 41}, "attention: kv_length: expected 1 to 40, got 41"),
        ({"scale": "big"}, "attention: scale: expected a finite number or None, got 'big'"),
        ({"window": 3, "query_offset": 39}, "expected keys for every query, got none for that at position 42"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    g = Graph(machine())
    tensors = {"q": g.input("q", (5, 32)), "mask": g.input("mask", (5, 40), "hbm", "kv")}
    tensors |= {name: g.input(name, (40, 32), "hbm", "kv") for name in "kv"}
    arguments: dict[str, Any] = {"q": "q", "k": "k", "v": "v", "heads": 2, **change}
    with pytest.raises(OperatorError, match=message):
        g.attention(**{n: tensors[v] if n in ("q", "k", "v", "mask", "sinks") else v for n, v in arguments.items()})


def test_views_whose_tiles_are_not_there() -> None:
    g = Graph(machine())
    q, kv = g.input("q", (5, 16)), g.input("kv", (40, 64), "hbm", "kv")
    lower_half = kv.rows(16, 40)
    g.output(g.attention(q, lower_half.columns(0, 16), lower_half.columns(48, 64), heads=1))
    assert len(lower(g).program)
    with pytest.raises(
        OperatorError, match=r"expected columns from a multiple of 16 to one or to the end, got 8 to 24"
    ):
        g.attention(q, kv.columns(8, 24), kv.columns(8, 24), heads=1)
    odd = kv.rows(20, 40).columns(0, 16)
    with pytest.raises(OperatorError, match=r"expected whole tiles of 16 .MLEN. rows inside the 48 .* end with row 52"):
        g.attention(q, odd, odd, heads=1)


@pytest.mark.parametrize(
    ("shapes", "heads", "message"),
    [
        (((5, 32), (5, 16), (5, 16)), 3, "rope: heads: expected a number that divides the 32 columns of x .x. into"),
        (((5, 15), (5, 15), (5, 15)), 1, "heads of even size, got 1"),
        (((5, 32), (4, 16), (5, 16)), 2, r"rope: rows of cos \(cos\): expected 5, got 4"),
        (((5, 32), (5, 16), (5, 8)), 2, r"columns of sin \(sin\): expected 16, those of one head, or 32, .* got 8"),
    ],
)
def test_wrong_arguments_of_rope(shapes: tuple[tuple[int, int], ...], heads: int, message: str) -> None:
    g = Graph(machine())
    x, cos, sin = (g.input(name, shape) for name, shape in zip(("x", "cos", "sin"), shapes, strict=True))
    with pytest.raises(OperatorError, match=message):
        g.rope(x, cos, sin, heads=heads)
