"""Cases of the rules, by family: functions of x [2, 5, 7], y [5, 7], image [2, 6, 9, 8] and index [2, 3, 7] below 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

_Case = Callable[..., Any]


def unary(*names: str) -> dict[str, _Case]:
    """Functions of torch, on values of both signs, or positive ones where those are meant."""
    positive = {"log", "log2", "log10", "log1p", "sqrt", "rsqrt"}
    small = {"asin", "acos"}

    def case(name: str) -> _Case:
        function = getattr(torch, name)
        if name in positive:
            return lambda x, *_: function(x.abs() + 0.1)
        return lambda x, *_: function(x * 0.2 if name in small else x)

    return {name: case(name) for name in names}


def binary(*names: str) -> dict[str, _Case]:
    """Two broadcast tensors, and a tensor and a number."""
    cases: dict[str, _Case] = {}
    for name in names:
        function = getattr(torch, name)
        cases[name] = lambda x, y, *_, f=function: f(x, y)
        if not name.startswith(("maximum", "minimum", "atan2", "logical", "true")):
            cases[f"{name} number"] = lambda x, *_, f=function: f(x, 0.7)
    return cases


FUNCTIONS: dict[str, _Case] = {
    **unary(
        *("abs", "neg", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan"),
        *("asin", "acos", "atan", "sinh", "cosh", "tanh", "erf", "erfc", "sign", "floor", "ceil", "round", "trunc"),
        *("reciprocal", "square", "sigmoid", "relu", "isnan", "isinf", "logical_not", "positive"),
    ),
    **{f"pow {n}": lambda x, *_, n=n: (x.abs() + 0.1).pow(n) for n in (2, 3, 0.5, -0.5, -1, 1.7, 4.0, 0, -2)},
    "pow negative": lambda x, *_: x**3,
    "pow integer": lambda x, y, image, index: index**2,
    "pow number": lambda x, *_: 2.0**x,
    "pow tensor": lambda x, y, *_: torch.pow(y.abs() + 0.1, x),
    "clamp": lambda x, *_: (x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp(max=0.1)),
    "clamp tensor": lambda x, y, *_: torch.clamp(x, y.abs().neg(), y.abs()),
    "clamp min": lambda x, y, *_: (torch.clamp_min(x, 0.2), torch.clamp_max(x, 0.2)),
    "where": lambda x, y, *_: torch.where(x > 0, y, x),
    "where number": lambda x, *_: (torch.where(x > 0, 1.0, x), torch.where(x > 0, x, -1.0)),
    "masked_fill": lambda x, y, *_: (x.masked_fill(y > 0, float("-inf")), x.masked_fill(y > 0, y[0, 0])),
    "casts": lambda x, y, image, index: (x.to(torch.int32), index.float(), x.type_as(y), x.bool(), index.to(x)),
    "integer casts": lambda x, y, image, index: ((index * 2.5), index / 2, index + True, (x > 0) * 3),
    "in place": lambda x, *_: x.clone().add_(1).mul_(2).relu_().masked_fill_(x > 1, 3.0),
    "addcmul": lambda x, y, *_: (torch.addcmul(x, y, y, value=0.3), torch.addcdiv(x, y, y.abs() + 1, value=2)),
    "lerp": lambda x, y, *_: (torch.lerp(x, y.expand(2, 5, 7), 0.3), torch.lerp(x, x * 2, x)),
}

PAIRS: dict[str, _Case] = {
    **binary("add", "sub", "mul", "div", "maximum", "minimum", "atan2", "remainder", "fmod", "floor_divide", "rsub"),
    **binary("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"),
    "alpha": lambda x, y, *_: (torch.add(x, y, alpha=0.3), torch.sub(x, y, alpha=2), torch.rsub(x, y, alpha=3)),
    "rounding": lambda x, y, *_: [torch.div(x, y, rounding_mode=mode) for mode in ("floor", "trunc")],
    "rounding integers": lambda x, y, image, index: [
        torch.div(index - 2, 3, rounding_mode=mode) for mode in ("floor", "trunc")
    ],
    "integers": lambda x, y, image, index: (index // 2, index % 3, index - 7, (index - 2) % 3, index * index, -index),
    "bits": lambda x, y, image, index: ((x > 0) & (y > 0), (x > 0) | (y > 0), (x > 0) ^ (y > 0), ~(x > 0), index & 3),
    "from the left": lambda x, *_: (1 - x, 2 / (x.abs() + 1), 3 * x, 1 + x),
    "scalar tensors": lambda x, *_: (
        x * torch.tensor(2.0),
        x + torch.tensor(1),
        x / torch.tensor(3.0, dtype=torch.float64),
    ),
}

ACTIVATIONS: dict[str, _Case] = {
    name: lambda x, *_, f=f: f(3 * x)
    for name, f in {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu6": F.relu6,
        "leaky_relu": F.leaky_relu,
        "leaky_relu slope": lambda x: F.leaky_relu(x, 0.3),
        "elu": F.elu,
        "elu alpha": lambda x: F.elu(x, 0.4),
        "selu": F.selu,
        "celu": lambda x: F.celu(x, 1.5),
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "hardtanh": lambda x: F.hardtanh(x, -0.4, 0.6),
        "softplus": lambda x: F.softplus(20 * x),
        "softplus beta": lambda x: F.softplus(x, 2.0, 3.0),
        "mish": F.mish,
        "logsigmoid": F.logsigmoid,
        "softsign": F.softsign,
        "tanhshrink": F.tanhshrink,
        "threshold": lambda x: F.threshold(x, 0.1, 7.0),
        "glu": lambda x: F.glu(x[..., :6]),
        "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])),
        "dropout": lambda x: F.dropout(x, 0.5, training=False),
        "softmax": lambda x: (F.softmax(x, -1), F.softmax(x, 1), F.softmin(x, 0), torch.softmax(x, -1, torch.float32)),
        "log_softmax": lambda x: (F.log_softmax(x, -1), F.log_softmax(x, 0, dtype=torch.float32)),
    }.items()
}

LINEAR: dict[str, _Case] = {
    "linear": lambda x, y, *_: (F.linear(x, y), F.linear(x, y, y[:, 0]), F.linear(x[0, 0], y)),
    "mm": lambda x, y, *_: (x[0] @ y.t(), torch.mm(y.t(), y), y @ y[0], y[0] @ y[1], torch.outer(y[0], y[1])),
    "bmm": lambda x, *_: (torch.bmm(x, x.transpose(1, 2)), torch.bmm(x.mT, x)),
    "matmul": lambda x, y, *_: (x @ y.t(), y @ x.mT, x[:, None] @ x.mT[None], x @ y[0], y[:, 0] @ x),
    "addmm": lambda x, y, *_: (torch.addmm(x[0, :, :5], y, x[1].t()), torch.addmm(y[0], y.t(), y, beta=0.5, alpha=2)),
    "baddbmm": lambda x, *_: torch.baddbmm(x[:, :, :5], x, x.mT, beta=0.3, alpha=0.7),
    "addmv": lambda x, y, *_: torch.addmv(y[:, 0], y, y[1]),
    "einsum": lambda x, y, *_: (torch.einsum("bij,kj->bki", x, y), torch.einsum("b i j, i j -> b", x, y)),
}

NORMS: dict[str, _Case] = {
    "layer_norm": lambda x, y, *_: (
        F.layer_norm(x, (7,)),
        F.layer_norm(x, (7,), y[0], y[1]),
        F.layer_norm(x, (5, 7), y),
    ),
    "layer_norm far": lambda x, *_: F.layer_norm(x * 0.5 + 3, (7,), eps=1e-3),
    "rms_norm": lambda x, y, *_: (F.rms_norm(x, (7,), y[0], 1e-3), F.rms_norm(x, (7,)), F.rms_norm(x, (5, 7), y)),
    "group_norm": lambda x, y, image, *_: (F.group_norm(image, 3), F.group_norm(image, 2, y[0, :6], y[1, :6])),
    "batch_norm": lambda x, y, image, *_: (
        F.batch_norm(image, y[0, :6], y[1, :6].abs(), y[2, :6], y[3, :6]),
        F.batch_norm(x, y[:, 0], y[:, 1].abs() + 0.1),
    ),
    "instance_norm": lambda x, y, image, *_: F.instance_norm(image),
    "normalize": lambda x, *_: (F.normalize(x, dim=-1), x.norm(dim=1), torch.linalg.vector_norm(x, 1, -1)),
    "cosine_similarity": lambda x, y, *_: F.cosine_similarity(x, y, dim=-1),
}


def _heads(image: Any, heads: int, length: int) -> Any:
    return image[:, :heads, :length, :]


def _attend(image: Any, kv: int = 6, length: int = 9, queries: int = 9, **keywords: Any) -> Any:
    q, k, v = _heads(image, 6, queries), _heads(image.flip(0), kv, length), _heads(image.flip(2), kv, length)
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=kv != 6, **keywords)


ATTENTION: dict[str, _Case] = {
    "plain": lambda x, y, image, *_: _attend(image),
    "causal": lambda x, y, image, *_: (_attend(image, is_causal=True), _attend(image, queries=4, is_causal=True)),
    "scale": lambda x, y, image, *_: _attend(image, scale=0.3, length=5),
    "float mask": lambda x, y, image, *_: _attend(image, attn_mask=image[:, :1, :, :1] * image[:1, :1, :, 1]),
    "known mask": lambda x, y, image, *_: _attend(image, attn_mask=torch.ones(9, 9).tril().log()),
    "boolean mask": lambda x, y, image, *_: _attend(image, attn_mask=torch.ones(9, 9, dtype=torch.bool).triu(-2)),
    "masked row": lambda x, y, image, *_: _attend(image, attn_mask=torch.ones(9, 9, dtype=torch.bool).tril(-1)),
    "mask of the data": lambda x, y, image, *_: _attend(image, attn_mask=image[:, :, :, :1] < image[:, :, None, :, 2]),
    "groups": lambda x, y, image, *_: (_attend(image, 2), _attend(image, 3, is_causal=True), _attend(image, 1, 5)),
    "groups mask": lambda x, y, image, *_: (
        _attend(image, 2, attn_mask=image[..., :1] * 2 + image[:, :, None, :, 0]),
        _attend(image, 3, attn_mask=image[:, :1, :, :1] * 3 + image[:, :1, None, :, 0]),
    ),
    "no heads": lambda x, y, *_: (F.scaled_dot_product_attention(x, x, x), F.scaled_dot_product_attention(y, y, y)),
}

REDUCTIONS: dict[str, _Case] = {
    "sum": lambda x, *_: (x.sum(), x.sum(-1), x.sum((0, 2), keepdim=True), (x > 0).sum(), (x > 0).sum(1)),
    "mean": lambda x, *_: (x.mean(), x.mean(-1, keepdim=True), x.mean((0, 1)), (x > 0).float().mean(0)),
    "prod": lambda x, *_: (x.prod(), x.prod(1)),
    "amax": lambda x, *_: (x.amax(-1), x.amin((0, 1), keepdim=True), x.max(), x.min(), x.amax()),
    "max dim": lambda x, *_: (*x.max(1), *x.min(-1, keepdim=True), x.argmax(-1), x.argmin(0), x.argmax()),
    "any": lambda x, *_: ((x > 2).any(), (x > 1).any(1), (x > -2).all(), (x > -1).all(-1, keepdim=True)),
    "var": lambda x, *_: (x.var(), x.var(-1), x.var(1, unbiased=False), x.std(0), torch.var(x, (0, 1), correction=0)),
    "var_mean": lambda x, *_: (*torch.var_mean(x, -1), *torch.std_mean(x, 1, keepdim=True), x.std()),
    "logsumexp": lambda x, *_: (x.logsumexp(-1), torch.logsumexp(x, (0, 1), keepdim=True)),
    "cumsum": lambda x, *_: (x.cumsum(1), x.cumsum(-1), x.cumprod(0), (x > 0).cumsum(-1)),
    "topk": lambda x, *_: (*x.topk(3), *x.topk(2, dim=1), *x.topk(2, largest=False), *x.topk(1, dim=0, largest=False)),
    "sort": lambda x, *_: (*x.sort(), *x.sort(1, descending=True), x.argsort(-1), *x.sort(dim=0, stable=True)),
}

SHAPES: dict[str, _Case] = {
    "view": lambda x, *_: (x.view(10, 7), x.reshape(-1), x.reshape(5, -1, 2), x.view(2, 5, 7, 1), x[:1].reshape(35)),
    "flatten": lambda x, *_: (x.flatten(), x.flatten(1), x.flatten(0, 1), x[..., :6].unflatten(-1, (2, 3))),
    "permute": lambda x, *_: (x.permute(2, 0, 1), x.transpose(0, -1), x[0].t(), x[0].T, x.mT, x.movedim(0, -1)),
    "swapaxes": lambda x, *_: (x.swapaxes(0, 1), torch.swapdims(x, 0, 2), x.contiguous(), x.adjoint()),
    "cat": lambda x, y, *_: (torch.cat((x, y[None])), torch.cat((x, x * 2), -1), torch.cat((torch.empty(0), y[0]))),
    "stack": lambda x, *_: (torch.stack((x, -x)), torch.stack((x, -x), -1), torch.hstack((x, x)), torch.vstack((x, x))),
    "split": lambda x, *_: (
        *x.split(3, 1),
        *x.split((2, 1, 4), -1),
        *x.chunk(3, 2),
        *x.chunk(2),
        *x.tensor_split(3, 2),
    ),
    "unbind": lambda x, *_: (*x.unbind(0), *x.unbind(-1)[:2]),
    "slice": lambda x, *_: (
        x[:, 1:3],
        x[..., -2:],
        x[:, ::2],
        x[1:, :-1, 3:100],
        x[:, 3:1],
        x[:, None, 2],
        x.narrow(1, 1, 2),
    ),
    "select": lambda x, *_: (x[0], x[:, -1], x.select(2, 3), x[1, 2, 3]),
    "expand": lambda x, y, *_: (y.expand(3, -1, -1), y[:, :1].expand(5, 4), y.expand_as(x), y[0].broadcast_to(2, 7)),
    "repeat": lambda x, *_: (
        x.repeat(2, 1, 3),
        x.repeat(2, 1, 1, 1),
        x.repeat_interleave(2, 1),
        x.repeat_interleave(3),
    ),
    "unsqueeze": lambda x, *_: (x.unsqueeze(0), x.unsqueeze(-1), x[:1].squeeze(), x[:1].squeeze(0), x.squeeze(1)),
    "squeeze dims": lambda x, *_: x[:1, :, :1].squeeze((0, 2)),
    "flip": lambda x, *_: (
        x.flip(0),
        x.flip((1, 2)),
        x.roll(2, -1),
        x.roll((1, -2), (0, 1)),
        x.roll(3),
        x.rot90(1, (1, 2)),
    ),
    "pad": lambda x, *_: (
        F.pad(x, (1, 2)),
        F.pad(x, (0, 1, 2, 0), value=-1.5),
        F.pad(x, (-1, 2)),
        F.pad(x, (0, 0, 0, 0, 1, 0)),
    ),
    "pad modes": lambda x, *_: [F.pad(x, (2, 1), mode=mode) for mode in ("reflect", "replicate", "circular")],
    "tril": lambda x, *_: (x.tril(), x.triu(1), x.tril(-1), x[0].diagonal(), x.diagonal(1, 1, 2)),
    "pixel_shuffle": lambda x, y, image, *_: (F.pixel_shuffle(image[:, :4], 2), F.pixel_unshuffle(image[:, :, :8], 4)),
    "unfold": lambda x, y, image, *_: image.unfold(3, 2, 2),
    "meshgrid": lambda x, y, *_: torch.meshgrid(y[0], y[:, 0], indexing="ij"),
}

CREATION: dict[str, _Case] = {
    "arange": lambda x, *_: (torch.arange(5) + x[0, :, 0], torch.arange(1, 8, 3) * 1.0, torch.linspace(0, 1, 7) * x),
    "full": lambda x, *_: (
        torch.full((5, 7), 2.5) * x,
        torch.zeros(7) + x,
        torch.ones(5, 1) - x,
        torch.eye(7) @ x[0, 0],
    ),
    "like": lambda x, *_: (
        torch.zeros_like(x),
        torch.ones_like(x) + x,
        torch.full_like(x, 3),
        x.new_zeros(3),
        x.new_ones(2),
    ),
    "one number": lambda x, *_: x.new_full((), 4.0) + x,
    "positions": lambda x, *_: (
        x * torch.outer(torch.arange(5.0), 1.0 / (1e4 ** (torch.arange(0, 7).double() / 7)).float()).cos()
    ),
    "mask": lambda x, *_: x.masked_fill(torch.ones(5, 7, dtype=torch.bool).triu(1), torch.finfo(x.dtype).min),
}

INDEXING: dict[str, _Case] = {
    "embedding": lambda x, y, image, index: (F.embedding(index, y), F.embedding(index[0], y, padding_idx=1)),
    "index": lambda x, y, image, index: (
        x[:, index[0]],
        y[index],
        x[:, index[0, 0], :3],
        y[index[0], index[1]],
        x[..., [0, -1]],
    ),
    "index apart": lambda x, y, image, index: image[:, index[0, 0], :, index[0, 1]],
    "index_select": lambda x, y, image, index: (x.index_select(1, index[0, 0]), torch.index_select(x, -1, index[0, 1])),
    "gather": lambda x, y, image, index: (x.gather(1, index), x.gather(2, index[:, :, :3]), y.gather(0, index[0])),
    "scatter": lambda x, y, image, index: (
        torch.zeros(2, 5, 7).scatter(1, torch.arange(3)[None, :, None].expand(2, 3, 7), x),
        x.scatter(2, index[:, :, :1], 9.0),
        x.scatter_add(1, index, x),
        x.scatter_reduce(1, index, x, "amax"),
    ),
    "index_put": lambda x, y, image, index: (
        x.index_put((torch.tensor([1, 0]), torch.tensor([2, 4])), y[:2]),
        y.index_put((index[0, 0],), y[1], accumulate=True),
        x.masked_fill(x > 0.3, 2.0),
    ),
    "index_add": lambda x, y, image, index: (
        x.index_add(1, index[0, 0, :5], x, alpha=0.5),
        x.index_copy(1, torch.tensor([3, 1]), x[:, :2]),
        x.index_fill(2, torch.tensor([0, 6]), 1.5),
    ),
    "slice_scatter": lambda x, y, *_: (
        torch.slice_scatter(x, y[None, :2].expand(2, 2, 7), 1, 1, 3),
        torch.slice_scatter(y, y[:3], 0, 0, 5, 2),
        torch.select_scatter(x, y, 0, -1),
    ),
    "one_hot": lambda x, y, image, index: F.one_hot(index, 6),
    "written": lambda x, y, *_: _written(x, y),
}


def _written(x: Any, y: Any) -> Any:
    out = torch.zeros(2, 5, 7)
    out[0] = y
    out[1, 1:3] = x[0, :2] * 2
    out[:, 4] += 1
    out[out > 1.5] = 0.25
    return out


CONVOLUTION: dict[str, _Case] = {
    "conv2d": lambda x, y, image, *_: (
        F.conv2d(image, image[:, :, :3, :2].contiguous(), y[0, :2]),
        F.conv2d(image, image[:, :, :3, :3], stride=(2, 3), padding=(1, 2), dilation=(2, 1)),
        F.conv2d(image[0], image[:, :, :3, :3], padding=1),
        F.conv2d(image, image.reshape(6, 2, 9, 8)[:, :, :3, :3], y[0, :6], groups=3),
        F.conv2d(image, image[:, :, :4, :3], padding="same"),
        F.conv2d(image, image[:, :, :4, :4], stride=4, padding="valid"),
    ),
    "conv1d": lambda x, y, image, *_: (
        F.conv1d(x, x[..., :3], y[:2, 0]),
        F.conv1d(x, y[:, None, :4], padding=3, groups=5),
    ),
    "conv3d": lambda x, y, image, *_: F.conv3d(image[:, None], image[:, None, :2, :3, :2]),
    "transposed": lambda x, y, image, *_: (
        F.conv_transpose2d(image, image[:, :3, :3, :2].reshape(6, 1, 3, 2)),
        F.conv_transpose2d(
            image,
            image.reshape(6, 2, 9, 8)[:, :, :3, :3],
            y[0, :6],
            stride=2,
            padding=1,
            output_padding=1,
            groups=3,
            dilation=2,
        ),
        F.conv_transpose1d(x, x.reshape(5, 2, 7)[:, :, :3], stride=3),
    ),
    "pooling": lambda x, y, image, *_: (
        F.max_pool2d(image, 2),
        F.avg_pool2d(image, (3, 2), stride=2, padding=1),
        F.avg_pool2d(image, 2, padding=1, count_include_pad=False),
        F.adaptive_avg_pool2d(image, 1),
    ),
}

FAMILIES: dict[str, dict[str, _Case]] = {
    "functions": FUNCTIONS,
    "pairs": PAIRS,
    "activations": ACTIVATIONS,
    "linear": LINEAR,
    "norms": NORMS,
    "attention": ATTENTION,
    "reductions": REDUCTIONS,
    "shapes": SHAPES,
    "creation": CREATION,
    "indexing": INDEXING,
    "convolution": CONVOLUTION,
}
