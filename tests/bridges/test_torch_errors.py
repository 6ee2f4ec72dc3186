"""What is not supported is named all at once, with the user's line; arguments that do not fit are refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from plena_jax.bridges.torch import ArgumentError, to_jax  # noqa: E402
from torch import nn  # noqa: E402

from plena_jax import Problem, UnsupportedOperation  # noqa: E402


class Module(nn.Module):
    """A module of one function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def problems(function: Any, *inputs: Any) -> list[Problem]:
    with pytest.raises(UnsupportedOperation) as caught:
        to_jax(Module(function), *inputs)
    assert all(str(problem) in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def test_all_problems_are_named_with_their_lines() -> None:
    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            a = torch.linalg.svdvals(x)
            b = torch.fft.fft(x).abs()
            c = torch.rand_like(x)
            return a, b, c, x.double() * 2

    with pytest.raises(UnsupportedOperation) as caught:
        to_jax(Model(), X)
    found = caught.value.problems
    text = str(caught.value)
    assert {p.operation for p in found} >= {"aten._fft_r2c.default", "aten._linalg_svd.default"}
    for part in ("5 operations", "random numbers", "float64 tensors", "complex64 tensors", "no rule"):
        assert part in text
    assert all(f"{__file__}:" in problem.source for problem in found)
    assert any("a = torch.linalg.svdvals(x)" in p.source and p.shapes.startswith("float32[3, 4] -> ") for p in found)
    copied = pickle.loads(pickle.dumps(UnsupportedOperation(found)))
    assert copied.problems == found and str(copied) == text


def test_what_depends_on_the_data_is_refused() -> None:
    (found,) = problems(lambda x: x * 2 if x.sum() > 0 else x, X)
    assert "torch.export failed" in found.reason and "torch.where" in found.reason
    branches = problems(lambda x: torch.cond(x.sum() > 0, lambda t: t * 2, lambda t: t + 1, (x,)), X)
    assert any("branch depends on the data" in p.reason for p in branches)
    assert any("depends on the data" in p.reason for p in problems(lambda x: x[x > 0], X))
    assert any("depends on the data" in p.reason for p in problems(lambda x: x * x.sum().item(), X))


def test_what_torch_cannot_run_is_its_own_error() -> None:
    (found,) = problems(lambda x: x @ x, X)
    assert "torch.export failed" in found.reason and "[3, 4]" in found.reason


def test_wide_inputs_and_parameters_are_refused() -> None:
    assert "float64" in problems(lambda x: x + 1, X.double())[0].reason
    with pytest.raises(UnsupportedOperation, match=r"weight: float64 tensors"):
        to_jax(nn.Linear(4, 4).double(), X.double())
    with pytest.raises(UnsupportedOperation, match="dropout"):
        to_jax(Module(lambda x: nn.functional.dropout(x, 0.5, training=True)), X)


def test_known_double_precision_is_fine() -> None:
    def function(x: Any) -> Any:
        table = (torch.arange(4, dtype=torch.float64) / 3).exp()
        return x * table.float() + torch.tensor(0.1, dtype=torch.float64)

    np.testing.assert_allclose(to_jax(Module(function), X)(X), function(X), rtol=1e-6)


def test_half_precision_is_computed_in_float32() -> None:
    module = nn.Linear(4, 3).to(torch.bfloat16)
    found = to_jax(module, X.to(torch.bfloat16))
    assert found.parameters["weight"].dtype == np.float32 and found.inputs[0].dtype == np.float32
    wanted = X.numpy() @ module.weight.detach().float().numpy().T + module.bias.detach().float().numpy()
    np.testing.assert_allclose(found(X), wanted, atol=1e-6)


def test_arguments_must_be_those_of_the_export() -> None:
    found = to_jax(nn.Linear(4, 3), X)
    weights = found.parameters
    for arguments, message in (
        ((weights,), "expected 1 inputs"),
        ((weights, X[:2]), r"shape \(2, 4\)"),
        (({"weight": weights["weight"]}, X), "no parameter 'bias'"),
        (({**weights, "other": X}, X), "unknown parameter 'other'"),
        (({**weights, "bias": X}, X), r"bias has shape \(3, 4\)"),
        ((weights, X.numpy() > 0), "data type bool"),
    ):
        with pytest.raises(ArgumentError, match=message):
            found.function(*arguments)
    with pytest.raises(ArgumentError, match="nested"):
        found([X])
    numbered = to_jax(Module(lambda x, n: x * n), X, 3)
    np.testing.assert_allclose(numbered(X, 3), 3 * X, rtol=1e-6)
    with pytest.raises(ArgumentError, match="exported for 3"):
        numbered(X, 4)
    with pytest.raises(TypeError, match="Module"):
        to_jax(lambda x: x, X)
