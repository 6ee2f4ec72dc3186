"""PyTorch modules on the machine: the same graphs and words as the same networks in JAX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from plena_jax.bridges.torch import compile, explain  # noqa: E402
from plena_jax.bridges.torch.llama import DecoderLayer  # noqa: E402
from torch import nn  # noqa: E402

import plena_jax as pj  # noqa: E402
from tests.frontend import networks  # noqa: E402
from tests.frontend.networks import NETWORKS, SMALL  # noqa: E402
from tests.frontend.test_machine import leaves, relative  # noqa: E402
from tests.lower.cases import machine  # noqa: E402

from . import models  # noqa: E402
from .test_torch_models import CASES, seeded  # noqa: E402

#: Modules that run on the machine as they are: no integers that are data but for rows of a table.
ON_THE_MACHINE = ["mlp", "llama eager", "llama gqa", "gpt2", "siglip", "experts"]


@pytest.mark.parametrize("decompose", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.exhaustive] * (n in ("mlp", "llama eager"))) for n in ON_THE_MACHINE]
)
def test_modules_on_the_machine(name: str, decompose: bool) -> None:
    make, inputs = CASES[name]
    module = seeded(make)
    program = compile(module, *inputs, config=machine(formats="float32"), decompose=decompose)
    found, wanted = leaves(program(*inputs)), [x.detach().numpy() for x in flat(module(*inputs))]
    for got, reference, original in zip(found, leaves(program.reference(*inputs)), wanted, strict=True):
        np.testing.assert_array_equal(got, reference)
        assert got.shape == original.shape and relative(got, original) < 1e-4
        assert relative(np.roll(got, 1), original) > 0.01


def flat(results: Any) -> list[Any]:
    return [results] if isinstance(results, torch.Tensor) else [x for part in results for x in flat(part)]


class Attention(nn.Module):
    """The one of ``networks.attention``, causal."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("q", (32, 32)), ("k", (32, 16)), ("v", (32, 16)), ("o", (32, 32))):
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: Any) -> Any:
        heads = lambda t, n: t.view(t.shape[0], n, -1).transpose(0, 1)
        q, k, v = heads(x @ self.q, 4), heads(x @ self.k, 2), heads(x @ self.v, 2)
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return found.transpose(0, 1).reshape(x.shape[0], -1) @ self.o


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.b, self.down = (nn.Parameter(torch.zeros(s)) for s in ((32, 48), (48,), (48, 20)))

    def forward(self, x: Any) -> Any:
        return torch.relu(x @ self.up + self.b) @ self.down


TWINS = {
    "mlp": Mlp,
    "grouped, causal": Attention,
    "llama": lambda: DecoderLayer(SMALL, 17),
}


@pytest.mark.parametrize(
    "name", ["llama", *[pytest.param(n, marks=pytest.mark.exhaustive) for n in TWINS if n != "llama"]]
)
def test_both_front_ends_give_the_same_words(name: str) -> None:
    network, module = NETWORKS[name], TWINS[name]()
    module.load_state_dict({name: torch.from_numpy(w) for name, w in network.weights.items()})
    inputs = [torch.from_numpy(x) for x in network.inputs]
    ours = pj.compile(network.function, *network.arguments, config=machine())
    theirs = compile(module, *inputs, config=machine())
    assert str(theirs.graph) == str(ours.graph)
    np.testing.assert_array_equal(theirs.program.program.words, ours.program.words)
    np.testing.assert_array_equal(np.asarray(theirs(*inputs)), np.asarray(ours(*network.arguments)))
    report = theirs.check(*inputs)
    assert report.good and report.machine.differing == 0


def test_another_network_gives_other_words() -> None:
    network = NETWORKS["mlp"]
    other = pj.compile(lambda w, x: networks.mlp(w, x) + 1, *network.arguments, config=machine())
    assert str(other.graph) != str(compile(Mlp(), torch.zeros(20, 32), config=machine()).graph)


def test_caches_are_kept_for_the_next_call() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(3, 16))

        def forward(self, x: Any) -> Any:
            self.total.add_(x)
            return self.total * 2

    x, module = torch.arange(48.0).view(3, 16), Counter()
    program = compile(module, x, config=machine(formats="float32"))
    for turn in (1, 2, 3):
        np.testing.assert_array_equal(np.asarray(program(x)), 2 * turn * x.numpy())


def test_positions_may_be_static() -> None:
    make, inputs = CASES["llama sdpa"]
    module = seeded(make)
    explanation = explain(module, *inputs, config=machine())
    assert {p.operation for p in explanation.problems} == {"cos", "sin"}
    program = compile(module, *inputs, config=machine(formats="float32"), static=["position_ids"])
    assert relative(np.asarray(program(*inputs)), module(*inputs).detach().numpy()) < 1e-4
    with pytest.raises(pj.PlenaError, match="static input position_ids"):
        program(inputs[0], inputs[1] + 1)
    with pytest.raises(pj.PlenaError, match="no input nothing"):
        compile(module, *inputs, config=machine(), static=["nothing"])


def test_all_problems_of_a_module_are_named_at_once() -> None:
    class Bad(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.sort(x)[0] + torch.sin(x)

    explanation = explain(Bad(), torch.zeros(4, 8), config=machine())
    assert len(explanation.problems) == 2
    assert all("test_compile.py" in problem.source for problem in explanation.problems)
    with pytest.raises(pj.UnsupportedOperation, match="2 operations"):
        compile(Bad(), torch.zeros(4, 8), config=machine())


def test_tokens_choose_rows_of_a_table() -> None:
    make, inputs = CASES["llama tied"]
    module = seeded(make)
    program = compile(module, *inputs, config=machine(formats="float32"))
    wanted = module(*inputs)
    found = program(*inputs)
    for name, x in wanted.items():
        if isinstance(x, torch.Tensor):
            assert relative(np.asarray(found[name]), x.detach().numpy()) < 1e-4


def test_decoding_with_a_cache() -> None:
    """Steps of decoding with caches that the module writes in place."""
    module, config = seeded(lambda: models.CachedAttention(models.Config(), "index_copy")), machine(formats="float32")
    x = torch.randn((1, 1, 24), generator=torch.Generator().manual_seed(3))
    for position in (torch.tensor([2]), torch.tensor([3])):
        program = compile(module, x, position, config=config, static=["cache_position"])
        assert "update" in [node.operator.name for node in program.lowered.graph.nodes]
        found, wanted = np.asarray(program(x, position)), module(x, position).detach().numpy()
        assert relative(found, wanted) < 1e-4
        for name in ("keys", "values"):
            assert relative(np.asarray(program.parameters[name]), getattr(module, name).detach().numpy()) < 1e-4
