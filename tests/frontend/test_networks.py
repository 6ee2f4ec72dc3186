"""Networks on the machine, and the ways in which compilers have got them wrong."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from tests.frontend import networks
from tests.frontend.networks import NETWORKS, SMALL, Network
from tests.frontend.test_machine import leaves, relative
from tests.lower.cases import machine


@cache
def compiled(name: str, formats: str = "published") -> pj.CompiledProgram:
    return pj.compile(NETWORKS[name].function, *NETWORKS[name].arguments, config=machine(formats=formats))


@cache
def found(name: str, formats: str = "published") -> list[np.ndarray]:
    return leaves(compiled(name, formats)(*NETWORKS[name].arguments))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_machine_is_the_rounded_reference(name: str) -> None:
    network = NETWORKS[name]
    for got, wanted in zip(found(name), leaves(compiled(name).reference(*network.arguments)), strict=True):
        np.testing.assert_array_equal(got, wanted)
        for wrong in (np.zeros_like(got), np.roll(got, 1), np.roll(got, 3, -1)):
            assert relative(wrong, wanted) > 0.01


#: Others are with the exhaustive tests.
_SAMPLED = ("mlp", "grouped, causal", "llama")
_EACH = [n if n in _SAMPLED else pytest.param(n, marks=pytest.mark.exhaustive) for n in NETWORKS]


@pytest.mark.parametrize("name", _EACH)
def test_in_float32_lowering_loses_nothing(name: str) -> None:
    network = NETWORKS[name]
    for got, wanted in zip(found(name, "float32"), leaves(network.function(*network.arguments)), strict=True):
        assert got.shape == wanted.shape
        assert relative(got, wanted) < 1e-4


def kinds(program: pj.CompiledProgram) -> list[str]:
    return [operation.name for operation in program.graph.operations]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("attention", ["dot"] * 3 + ["attention", "dot"]),
        ("grouped, causal", ["dot"] * 3 + ["attention", "dot"]),
        ("sliding window", ["dot"] * 3 + ["attention", "dot"]),
        ("gpt2", ["layer_norm", "dot", "attention", "dot", "add", "layer_norm", "dot", "gelu", "dot", "add"]),
    ],
)
def test_patterns_are_found(name: str, expected: list[str]) -> None:
    assert kinds(compiled(name)) == expected


# -- what published compilers got wrong; each of these must be seen ---------------------------------------------------


def llama(x: np.ndarray, weights: dict[str, Any], layer: Any = None) -> np.ndarray:
    function = layer or networks.NETWORKS["llama"].function
    program = pj.compile(function, weights, x, config=machine())
    return np.asarray(program.reference(weights, x))


def swapped(weights: dict[str, Any], **names: str) -> dict[str, Any]:
    short = {name.split(".")[-2]: name for name in weights}
    return weights | {short[a]: weights[short[b]] for a, b in names.items()}


def _with(weights: dict[str, Any], part: str, change: Any) -> dict[str, Any]:
    return {name: change(x) if part in name else x for name, x in weights.items()}


WRONG = {
    "the value projection is the key projection": lambda w: swapped(w, v_proj="k_proj"),
    "SiLU on the other branch": lambda w: swapped(w, gate_proj="up_proj", up_proj="gate_proj"),
    "the norm's scale is dropped": lambda w: _with(w, "input_layernorm", np.ones_like),
    "heads in another order": lambda w: _with(w, "q_proj", lambda x: np.roll(x, SMALL.size, 0)),
    "heads of keys in another order": lambda w: _with(w, "k_proj", lambda x: np.roll(x, SMALL.size, 0)),
}


@pytest.mark.parametrize("defect", WRONG)
def test_defects_are_seen(defect: str) -> None:
    """The machine's result is far from that of a network with the defect: far beyond what formats cost."""
    network = NETWORKS["llama"]
    (right,) = found("llama")
    original = np.asarray(network.function(*network.arguments))
    wrong = np.asarray(network.function(WRONG[defect](network.weights), *network.inputs))
    assert relative(wrong, original) > 2 * relative(right, original)
    assert relative(right, original) < 0.12


def test_the_mask_is_seen() -> None:
    network = NETWORKS["grouped, causal"]
    (right,) = found("grouped, causal")
    blind = Network(networks.partial(networks.attention, heads=4, kv_heads=2, mask=None), network.weights, ())
    original = np.asarray(network.function(*network.arguments))
    assert relative(np.asarray(blind.function(*network.arguments)), original) > 3 * relative(right, original)


def test_biases_are_seen() -> None:
    network = NETWORKS["gpt2"]
    (right,), original = found("gpt2"), np.asarray(network.function(*network.arguments))
    for name in ("qkv_bias", "down_bias", "first_bias"):
        wrong = network.function(network.weights | {name: np.zeros_like(network.weights[name])}, *network.inputs)
        assert relative(np.asarray(wrong), original) > 1.2 * relative(right, original), name


def test_projections_have_memory_of_their_own() -> None:
    """Queries, keys and values are three tensors in three places."""
    lowered = compiled("attention").lowered
    (node,) = [n for n in lowered.graph.nodes if n.operator.name == "attention"]
    places = [lowered.plan.located(tensor) for tensor in node.inputs[:3] if tensor is not None]
    assert len({str(place) for place in places}) == 3
    weights = [n.inputs[1] for n in lowered.graph.nodes if n.operator.name == "linear"]
    assert len(set(map(id, weights))) == 4


# -- decoding ---------------------------------------------------------------------------------------------------------


def test_decoding_equals_the_last_token_of_prefill() -> None:
    """With caches as prefill leaves them; in float32 formats to 1e-4."""
    weights, tokens = NETWORKS["decode"].weights, 7
    x = NETWORKS["decode"].inputs[0].repeat(tokens, 0) * np.linspace(0.5, 2, tokens, dtype=np.float32)[:, None]
    config = machine(formats="float32")
    whole = np.asarray(pj.compile(networks.prefill, weights, x, config=config)(weights, x))
    caches = [np.zeros((2, 20, 16), np.float32) for _ in range(2)]
    for held, name in zip(caches, "kv", strict=True):
        held[:, : tokens - 1] = networks.split_heads(x[:-1] @ weights[name], 2)
    step = networks.partial(networks.decode, position=tokens - 1)
    program = pj.compile(step, weights, x[-1:], *caches, config=config)
    last, keys, values = program(weights, x[-1:], *caches)
    assert relative(np.asarray(last), whole[-1:]) < 1e-4
    assert relative(whole[-2:-1], whole[-1:]) > 0.1
    assert relative(np.asarray(keys)[:, :tokens], np.asarray(networks.split_heads(x @ weights["k"], 2))) < 1e-5
    assert "update" in [node.operator.name for node in program.lowered.graph.nodes]
    assert np.asarray(values)[:, tokens:].any() == 0


# -- like a function of JAX -------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_gradients_and_batches() -> None:
    network = NETWORKS["mlp"]
    program = compiled("mlp", "float32")
    loss = lambda function: lambda w, x: jnp.sum(function(w, x) ** 2)
    got = jax.grad(loss(program))(network.weights, *network.inputs)
    wanted = jax.grad(loss(network.function))(network.weights, *network.inputs)
    for name in network.weights:
        assert relative(np.asarray(got[name]), np.asarray(wanted[name])) < 1e-4, name
    assert relative(np.asarray(got["up"]) * 0, np.asarray(wanted["up"])) > 0.5
    batch = np.stack([network.inputs[0], 2 * network.inputs[0]])
    both = jax.vmap(lambda x: program(network.weights, x))(batch)
    for row, x in zip(both, batch, strict=True):
        np.testing.assert_array_equal(np.asarray(row), np.asarray(program(network.weights, x)))


def test_passes_change_no_result_beyond_rounding() -> None:
    network = NETWORKS["gpt2"]
    (right,) = found("gpt2", "float32")
    for name in ("attention", "norms"):
        program = pj.compile(network.function, *network.arguments, config=machine(formats="float32"), disabled=[name])
        assert kinds(program) != kinds(compiled("gpt2"))
        assert relative(np.asarray(program.exact(*network.arguments)), right) < 1e-4


def test_a_report_names_the_first_section_that_is_wrong() -> None:
    network, program = NETWORKS["mlp"], compiled("mlp")
    report = program.check(*network.arguments)
    assert report.good and report.first is None and report.machine.differing == 0
    assert 0 < report.original.relative_l2 < 0.2
    assert [s.name for s in report.sections] == [n.name for n in program.lowered.graph.nodes]
    # A word of the second product is another one.
    lowered, words = program.lowered, program.program.words.copy()
    section = next(s for s in program.program.sections if s.name == "linear_1")
    writes = [pc for pc in range(section.start, section.stop) if "M_MM_WO" in program.program.disassemble()[pc]]
    words[writes[-1]] = pj.assemble("S_ADDI_INT gp0, gp0, 0").words[0]
    damaged = dataclasses.replace(lowered.program, words=words)
    bad = dataclasses.replace(program, lowered=dataclasses.replace(lowered, program=damaged))
    report = bad.check(*network.arguments)
    assert not report.good and report.first == "linear_1" and "linear_1" in str(report)
