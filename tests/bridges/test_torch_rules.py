"""Every rule against torch itself, on odd shapes; the cases of a family are exported as one module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from plena_jax.bridges.torch import rules, to_jax  # noqa: E402

from .rule_cases import FAMILIES  # noqa: E402

_Cases = dict[str, Callable[..., Any]]


class Family(torch.nn.Module):
    """All cases of a family, on the same inputs."""

    def __init__(self, cases: _Cases) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, *inputs: Any) -> dict[str, Any]:
        return {name: case(*inputs) for name, case in self.cases.items()}


def leaves(name: str, tree: Any) -> dict[str, Any]:
    if isinstance(tree, tuple | list):
        return {key: leaf for i, part in enumerate(tree) for key, leaf in leaves(f"{name}[{i}]", part).items()}
    return {name: tree}


def inputs() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((2, 5, 7), generator=generator)
    y = torch.randn((5, 7), generator=generator)
    image = torch.randn((2, 6, 9, 8), generator=generator)
    index = torch.randint(0, 5, (2, 3, 7), generator=generator)
    return x, y, image, index


@pytest.mark.parametrize(
    "decompose", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["whole", "decomposed"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_rules_are_what_torch_computes(family: str, decompose: bool) -> None:
    module, arguments = Family(FAMILIES[family]), inputs()
    converted = to_jax(module, *arguments, decompose=decompose)
    # Hundreds of small operations that run once.
    found = jax.jit(converted.function, compiler_options={"xla_backend_optimization_level": 0})
    result = found({}, *(t.numpy() if t.is_floating_point() else t.int().numpy() for t in arguments))
    wrong = []
    for name, wanted in module(*arguments).items():
        for (key, left), right in zip(leaves(name, result[name]).items(), leaves(name, wanted).values(), strict=True):
            kind = right.numpy().dtype.kind
            scale = max(1.0, float(right[right.isfinite()].abs().max())) if kind == "f" and right.numel() else 1.0
            same = np.asarray(left).dtype.kind == kind and np.shape(left) == tuple(right.shape)
            if not same or not np.allclose(left, right.numpy(), rtol=1e-5, atol=1e-5 * scale, equal_nan=True):
                wrong.append(key)
    assert not wrong


def test_every_rule_is_there_for_an_operator_of_torch() -> None:
    for operation in rules():
        namespace, packet, overload = operation.split(".")
        if namespace == "plena":
            continue
        operator = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
        assert str(operator) == operation


def test_masked_rows_of_attention_are_zero() -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: Any, mask: Any) -> Any:
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    q = torch.randn((1, 2, 3, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    for given in (mask, torch.where(mask, 0.0, -torch.inf)):
        for decompose in (False, True):
            found = to_jax(Attention(), q, given, decompose=decompose).function({}, q.numpy(), given.numpy())
            wanted = Attention()(q, given).numpy()
            assert np.abs(np.asarray(found) - wanted).max() < 1e-6
            assert not wanted[:, :, 1].any()
