"""The best experts of tokens, and their networks at addresses that the machine computes."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

import plena_jax as pj
from plena_jax.lower import Graph, OperatorError
from plena_jax.lower.kernels.routing import chosen

from .cases import Case, Together, check_case, check_formula, machine, only, relative_l2, same_bits

WEIGHTS = {"gate": "weights", "up": "weights", "down": "weights"}


BIASES = ("gate_bias", "up_bias", "down_bias")


def network(
    tokens: int, hidden: int, inter: int, policy: int = 0, biases: tuple[str, ...] = (), hbm: bool = False, **more: Any
) -> Case:
    """The experts of some tokens, some of their biases in vector SRAM or HBM."""
    experts = (32, 128)[policy]
    shapes = {
        "x": (tokens, hidden),
        "logits": (tokens, experts),
        "gate": (experts * hidden, inter),
        "up": (experts * hidden, inter),
        "down": (experts * inter, hidden),
    }
    shapes |= {name: (experts, hidden if name == "down_bias" else inter) for name in biases}
    places = dict.fromkeys(biases, "activations") if hbm else {}
    return Case("expert_ffn", shapes, {"policy": policy, **more}, hbm=WEIGHTS | places)


def routed_with_biases() -> Case:
    """All of GPT-OSS's: a router with a bias too."""
    case = mixture(2, 23, 20)
    shapes = case.shapes | {"gate_bias": (32, 20), "up_bias": (32, 20), "down_bias": (32, 23), "router_bias": (1, 32)}
    return dataclasses.replace(case, shapes=shapes, attributes=case.attributes | {"activation": "clamped_swiglu"})


def mixture(tokens: int, hidden: int, inter: int, policy: int = 0) -> Case:
    """The same with a router."""
    case = network(tokens, hidden, inter, policy)
    experts = case.shapes["logits"][1]
    shapes = {"router_w": (hidden, experts)} | {n: s for n, s in case.shapes.items() if n != "logits"}
    return Case("routed_ffn", shapes, {"policy": policy, "experts": experts}, hbm=WEIGHTS | {"router_w": "weights"})


#: Tokens that choose: of MLEN 16 all logits take several rows.
CHOICES = [Case("top_k", {"logits": (5, 32)}, {"policy": 0}), Case("top_k", {"logits": (3, 128)}, {"policy": 1})]
#: The experts of GPT-OSS, of which no size is a multiple of MLEN: tiles end in the weights of the next expert.
RAGGED = network(2, 23, 20, biases=BIASES, activation="clamped_swiglu")
CASES = [*CHOICES, RAGGED]
TABLE = (*CASES, mixture(3, 32, 16))


@cache
def run(formats: str = "published") -> Together:
    """All cases on one machine."""
    return Together(TABLE, machine(formats=formats))


@pytest.mark.parametrize("number", range(len(TABLE)), ids=[case.id for case in TABLE])
def test_the_machine_is_the_rounded_reference(number: int) -> None:
    check_case(run(), number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(len(TABLE)), ids=[case.id for case in TABLE])
def test_the_rounded_reference_is_the_formula_without_roundings(number: int) -> None:
    check_formula(run("float32"), number)


def mixed(x: np.ndarray, logits: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """GPT-OSS's experts, expert by expert, in double precision."""
    total = np.zeros(x.shape)
    for token, row in enumerate(x):
        best = np.argsort(-logits[token], kind="stable")[:4]
        shares = np.exp(logits[token, best]) / np.exp(logits[token, best]).sum()
        for expert, share in zip(best, shares, strict=True):
            part = {name: value.reshape(32, -1, value.shape[1])[expert] for name, value in w.items()}
            g, u = (row @ part[name] + part[f"{name}_bias"][0] for name in ("gate", "up"))
            g, u = np.minimum(g, 7), np.clip(u, -7, 7)
            y = ((u + 1) * g / (1 + np.exp(-1.702 * g))) @ part["down"] + part["down_bias"][0]
            total[token] += share * y
    return total


def test_the_experts_of_gpt_oss_are_their_formula() -> None:
    """Sums of 23 standard normal products: g and u are often beyond 7."""
    together = Together((RAGGED,), machine(formats="float32"))
    operands = {name: value.astype(np.float64) for name, value in RAGGED.operands().items()}
    x, logits = operands.pop("x"), operands.pop("logits")
    wanted = mixed(x, logits, operands)
    for result in (together.rounded[0], together.exact[0]):
        assert relative_l2(result, wanted) <= 1e-5
    for name in ("up_bias", "down_bias"):
        assert relative_l2(together.rounded[0], mixed(x, logits, operands | {name: operands[name] + 0.01})) > 1e-5
    assert relative_l2(together.rounded[0], mixed(x, logits[::-1], operands)) > 1e-1


def test_what_is_behind_the_last_expert_is_stored() -> None:
    """Tiles of the last expert, and transfers of its bias, end inside what a tensor takes of HBM."""
    case = network(2, 23, 20, biases=BIASES, hbm=True)
    matrices = case.lowered(machine()).plan.matrices
    for name, rows, first in (("gate", 32, 31 * 23), ("down", 32, 31 * 20), ("down_bias", 4, 31)):
        assert matrices[name].tensor.shape[0] >= first + rows
    # Sizes of whole tiles take no more than they need.
    assert network(2, 16, 16).lowered(machine()).plan.matrices["gate"].tensor.shape == (512, 16)


@cache
def choices(policy: int) -> tuple[Any, pj.MachineState, np.ndarray]:
    """A run with equal logits, infinities and zeros of both signs."""
    case = CHOICES[policy]
    logits = np.round(case.operands()["logits"] * 2) / 2
    logits[0, :] = 0.25
    logits[1, 3], logits[1, 7], logits[1, 20:] = 9.0, 9.0, 9.0
    logits[2, :] = np.where(np.arange(logits.shape[1]) % 2, 0.0, -0.0)
    if policy == 0:
        logits[3, 5] = -np.inf
        logits[4, :] = -np.inf
    lowered = case.lowered(machine())
    start = jax.jit(lambda logits: lowered.start(logits=logits))(logits)
    return lowered, pj.run(lowered.program, start, machine()), logits


@pytest.mark.parametrize("policy", [0, 1])
def test_of_equal_experts_the_lower_number_is_first(policy: int) -> None:
    lowered, final, logits = choices(policy)
    reference = jax.jit(lambda logits: lowered.rounded(logits=logits))
    assert same_bits(only(lowered.read(final)), only(reference(logits)))
    count = (4, 8)[policy]
    numbers = np.asarray(final.int_sram)[: len(logits) * count].reshape(-1, count)
    # The machine orders zeros by their sign; JAX does not.
    signed = [row for row in range(len(logits)) if row != 2]
    assert np.array_equal(numbers[signed], np.asarray(chosen(logits, policy)[1])[signed])
    assert np.array_equal(numbers[0], np.arange(count))
    assert np.array_equal(numbers[1], [3, 7, *range(20, 18 + count)])
    assert np.array_equal(numbers[2], 2 * np.arange(count) + 1)
    if policy == 0:
        # There is no softmax of nothing but minus infinities.
        assert not only(lowered.read(final))[4].any()


def test_experts_are_those_of_the_router() -> None:
    """Results are those of the chosen experts alone: other experts' weights do not matter, chosen ones' do."""
    case = network(2, 16, 16)
    lowered, operands = case.lowered(machine()), case.operands()
    start, reference = jax.jit(lambda o: lowered.start(**o)), jax.jit(lambda o: lowered.rounded(**o))
    result = lambda o: only(lowered.read(pj.run(lowered.program, start(o), machine())))
    numbers = np.asarray(chosen(operands["logits"], 0)[1])
    before = only(reference(operands))
    others = sorted(set(range(32)) - set(numbers.reshape(-1)))
    spoilt = {name: value.copy() for name, value in operands.items()}
    for expert in others:
        spoilt["down"][expert * 16 : expert * 16 + 16] += 1
    assert same_bits(result(spoilt), before)
    spoilt["down"][numbers[1, 3] * 16 : numbers[1, 3] * 16 + 16] += 1
    found = result(spoilt)
    assert relative_l2(found[1], before[1]) > 1e-2
    assert same_bits(found, only(reference(spoilt)))


@pytest.mark.exhaustive
def test_there_is_no_gradient() -> None:
    case = network(2, 16, 16)
    lowered, operands = case.lowered(machine()), case.operands()
    with pytest.raises(pj.EngineError, match="derivatives: they need the resolved engine"):
        jax.grad(lambda x: only_traced(lowered(**operands | {"x": x})).sum())(operands["x"])


def only_traced(outputs: dict[str, jax.Array]) -> jax.Array:
    """The one output."""
    (value,) = outputs.values()
    return value


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "case",
    [
        network(2, 16, 16),
        network(2, 16, 32, activation="gelu"),
        network(3, 32, 16, policy=1, activation="relu"),
        network(2, 40, 23, biases=BIASES, hbm=True, activation="clamped_swiglu"),
        network(2, 7, 40, biases=("up_bias",), activation="gelu_tanh"),
        network(3, 24, 20, policy=1, biases=("down_bias",), hbm=True),
        routed_with_biases(),
        mixture(4, 144, 48),
        mixture(2, 16, 16, policy=1),
    ],
    ids=lambda case: case.id,
)
def test_more_networks(case: Case) -> None:
    for formats in ("published", "float32"):
        lowered, operands = case.lowered(machine(formats=formats)), case.operands()
        assert same_bits(only(lowered(**operands)), only(lowered.rounded(**operands)))


@pytest.mark.exhaustive
def test_the_default_machine() -> None:
    config = pj.MachineConfig(hbm_size=1 << 26, vector_sram_size=8192)
    for case in (*CHOICES, mixture(2, 64, 64), network(2, 64, 64, policy=1)):
        lowered, operands = case.lowered(config), case.operands()
        assert same_bits(only(lowered(**operands)), only(lowered.rounded(**operands)))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("top_k", {"logits": (5, 32)}, {"policy": 2}), "top_k: policy: expected 0 .* or 1 .*, got 2"),
        (Case("top_k", {"logits": (5, 32)}, {"policy": 1}), "top_k: columns of logits .*: expected 128, got 32"),
        (
            Case("top_k", {"logits": (257, 32)}, {"policy": 0}),
            "top_k: rows of logits .*: expected at most 256, .* got 257",
        ),
        (network(2, 16, 16, activation="exp"), "expert_ffn: activation: expected silu, .*, clamped_swiglu, got 'exp'"),
        (
            dataclasses.replace(RAGGED, shapes=RAGGED.shapes | {"up_bias": (32, 23)}),
            r"expert_ffn: shape of up_bias \(up_bias\): expected \(32, 20\), got \(32, 23\)",
        ),
        (
            dataclasses.replace(network(2, 16, 16), shapes=network(2, 16, 16).shapes | {"down": (16, 16)}),
            r"expert_ffn: shape of down \(down\): expected \(512, 16\), got \(16, 16\)",
        ),
        (
            dataclasses.replace(mixture(2, 16, 16), attributes={"policy": 0, "experts": 16}),
            r"routed_ffn: columns of router_w \(router_w\): expected 16, got 32",
        ),
    ],
)
def test_wrong_arguments(case: Case, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        case.graph(machine())


def test_the_router_is_made_of_others() -> None:
    g = Graph(machine())
    x, w = g.input("x", (3, 16)), g.input("w", (16, 32), "hbm", "weights")
    assert g.router(x, w, policy=0).shape == (3, 4)
    assert [node.operator.name for node in g.nodes] == ["linear", "top_k"]
