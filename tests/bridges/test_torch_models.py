"""Whole modules against torch, exported as they are and decomposed."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")


from plena_jax.bridges.torch import to_jax  # noqa: E402

from . import models  # noqa: E402

CONFIG = models.Config()
both = pytest.mark.parametrize("decompose", [False, True], ids=["whole", "decomposed"])


def same(found: Any, wanted: Any) -> bool:
    """Whether nested arrays are those of torch, in the same containers."""
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict) and wanted.keys() == found.keys() and all(same(found[k], wanted[k]) for k in wanted)
        )
    if isinstance(wanted, tuple | list):
        return type(found) is type(wanted) and len(found) == len(wanted) and all(map(same, found, wanted))
    wanted = wanted.detach().float().numpy() if wanted.is_floating_point() else wanted.numpy()
    found = np.asarray(found)
    scale = max(1e-3, float(np.abs(wanted).max()))
    return found.shape == wanted.shape and float(np.abs(found - wanted).max()) <= 1e-5 * scale


def seeded(make: Any, *arguments: Any) -> Any:
    torch.manual_seed(0)
    return make(*arguments).eval()


def numbers(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def llama(attention: str) -> Any:
    return models.LlamaLayerAlone(models.Config(attention=attention))


CASES = {
    "mlp": (lambda: models.LlamaMLP(CONFIG), (numbers(2, 3, 24),)),
    "llama eager": (lambda: llama("eager"), (numbers(1, 5, 24),)),
    "llama sdpa": (lambda: llama("sdpa"), (numbers(1, 5, 24), torch.tensor([[3, 4, 5, 6, 7]]))),
    "llama gqa": (lambda: llama("gqa"), (numbers(1, 5, 24),)),
    "llama tied": (lambda: models.LlamaForCausalLM(CONFIG), (torch.tensor([[3, 1, 4, 1, 5, 9, 2]]),)),
    "gpt2": (models.GPT2Block, (numbers(2, 5, 24),)),
    "siglip": (models.SiglipEncoder, (numbers(2, 3, 12, 12),)),
    "experts": (lambda: models.MixtureOfExperts(CONFIG), (numbers(2, 3, 24),)),
}


@both
@pytest.mark.parametrize("case", CASES)
def test_a_module_gives_what_it_gives_in_torch(case: str, decompose: bool) -> None:
    make, inputs = CASES[case]
    module = seeded(make)
    found = to_jax(module, *inputs, decompose=decompose)
    wanted = module(*inputs)
    assert same(found(*inputs), wanted)
    # Any one parameter that is another one makes other results; but a bias of all keys alike.
    function, leaves = jax.jit(found.function), found.flat(*inputs)
    for name, array in found.weights.items():
        moved = array + 0.1 * np.cos(np.arange(array.size, dtype=np.float32)).reshape(array.shape)
        assert name == "k_proj.bias" or not same(function({**found.weights, name: moved}, *leaves), wanted), name
