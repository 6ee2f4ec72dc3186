"""Whole modules against torch, exported as they are and decomposed."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")


from plena_jax.bridges.torch import to_jax  # noqa: E402
from torch import nn  # noqa: E402

from . import models  # noqa: E402

CONFIG = models.Config()
both = pytest.mark.parametrize(
    "decompose", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["whole", "decomposed"]
)


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


@both
@pytest.mark.parametrize("way", ["index_copy", "index_put", "slices"])
def test_caches_come_back(way: str, decompose: bool) -> None:
    module = seeded(models.CachedAttention, CONFIG, way)
    x, position = numbers(1, 1, 24), torch.tensor([3])
    found = to_jax(module, x, position, decompose=decompose)
    assert found.mutated == ("keys", "values")
    assert {"keys", "values"} <= set(found.weights)
    parameters = found.weights
    for step in range(3):
        place = torch.tensor([3 if way == "slices" else 3 + step])
        outputs, state = found.function(parameters, (x + step).numpy(), place.numpy())
        assert same(outputs, module(x + step, place))
        assert same(state, {"keys": module.keys, "values": module.values})
        parameters = {**parameters, **state}
    # The caches of the module at the time of the export.
    assert not found.parameters["keys"].any()


def test_changed_inputs_come_back() -> None:
    class Writes(nn.Module):
        def forward(self, cache: Any, x: Any) -> Any:
            cache[:, 1:3].copy_(x)
            return [cache.sum(0), (x * 2,)]

    cache, x = numbers(4, 5), numbers(4, 2)
    found = to_jax(Writes(), cache, x)
    before = cache.numpy().copy()
    outputs, state = found(before, x)
    wanted = Writes()(cache, x)
    assert found.mutated == ("cache",) and same(outputs, wanted) and same(state, {"cache": cache})


def test_tied_weights_are_one() -> None:
    module = seeded(models.LlamaForCausalLM, CONFIG)
    found = to_jax(module, torch.tensor([[1, 2, 3]]))
    assert found.aliases == {"lm_head.weight": "embed_tokens.weight"}
    assert "lm_head.weight" not in found.parameters
    assert found.constants == ("rotary_emb.inv_freq",)


def test_swapped_projections_are_seen() -> None:
    module = seeded(llama, "sdpa")
    x = numbers(1, 5, 24)
    found = to_jax(module, x)
    k, v = (f"layer.self_attn.{name}_proj.weight" for name in "kv")
    swapped = {**found.weights, k: found.weights[v], v: found.weights[k]}
    assert not same(found.function(swapped, x.numpy()), module(x))


def test_what_is_known_is_constant_and_what_is_changed_is_not() -> None:
    module = seeded(llama, "gqa")
    x = numbers(1, 5, 24)
    found = to_jax(module, x)
    jaxpr = str(jax.make_jaxpr(found.function)(found.weights, x.numpy()))
    assert not any(f" {name} " in jaxpr for name in ("cos", "sin", "iota", "transpose[permutation=(1, 0)]"))
    inv_freq = found.parameters["rotary_emb.inv_freq"] * 2
    changed = found.function({**found.parameters, "rotary_emb.inv_freq": inv_freq}, x.numpy())
    module.rotary_emb.inv_freq *= 2
    assert same(changed, module(x)) and not same(found(x), module(x))


@pytest.mark.parametrize(
    ("case", "decompose", "absent"),
    [
        ("mlp", True, ("transpose", "reshape")),
        ("gpt2", False, ("reshape[dimensions=None new_sizes=(10",)),
        ("gpt2", True, ("reshape[dimensions=None new_sizes=(10, 24)",)),
        ("llama sdpa", False, ("broadcast_in_dim[broadcast_dimensions=(0, 1, 3, 4)",)),
        ("llama eager", False, ("permutation=(0, 1, 3, 2)",)),
    ],
)
def test_steps_are_as_in_jax(case: str, decompose: bool, absent: tuple[str, ...]) -> None:
    make, inputs = CASES[case]
    found = to_jax(seeded(make), *inputs, decompose=decompose)
    jaxpr = str(jax.make_jaxpr(found.function)(found.weights, *found.flat(*inputs)))
    assert not [text for text in absent if text in jaxpr]


def test_every_step_names_the_line_it_comes_from() -> None:
    module = seeded(llama, "eager")
    x = numbers(1, 5, 24)
    found = to_jax(module, x)
    jaxpr = jax.make_jaxpr(found.function)(found.weights, x.numpy())
    lines = [found.source_of(equation.source_info.name_stack) for equation in jaxpr.eqns]
    assert all("models.py:" in line for line in lines)
    assert any(
        line.endswith("query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)") for line in lines
    )
    assert any("layer.self_attn.q_proj:" in str(equation.source_info.name_stack) for equation in jaxpr.eqns)


def test_a_module_keeps_its_mode_and_takes_keywords() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.norm = nn.Dropout(0.5), nn.LayerNorm(5, elementwise_affine=False)

        def forward(self, x: Any, *, parts: dict[str, Any], scale: Any = None) -> Any:
            return {"y": self.dropout(self.norm(x * scale)), "parts": [parts["b"] - parts["a"], None]}

    module = Scaled()
    module.norm.eval()
    x = numbers(3, 5)
    keywords = {"scale": numbers(5), "parts": {"a": x[0], "b": x[1]}}
    found = to_jax(module, x, kwargs=keywords)
    assert module.training and module.dropout.training and not module.norm.training
    result = found(x, parts=keywords["parts"], scale=keywords["scale"])
    wanted = module.eval()(x, **keywords)
    assert (
        same(result["y"], wanted["y"]) and same(result["parts"][0], wanted["parts"][0]) and result["parts"][1] is None
    )
    gradient = jax.grad(lambda t: found.function({}, t, *found.flat(x, **keywords)[1:])["y"].sum())(x.numpy())
    assert gradient.shape == (3, 5)


def test_strict_and_exported_programs() -> None:
    module, x = seeded(models.LlamaMLP, CONFIG), numbers(2, 3, 24)
    assert same(to_jax(torch.export.export(module, (x,)))(x), module(x))
    assert same(to_jax(module, x, strict=True)(x), module(x))
