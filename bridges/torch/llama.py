"""The decoder layer of :mod:`plena_jax.models.llama` in PyTorch, written as Hugging Face writes it."""

from __future__ import annotations

import torch
from torch import nn

from plena_jax.models.llama import LlamaShape, rope_tables


class RMSNorm(nn.Module):  # type: ignore[misc, unused-ignore]
    """Root mean square norm with a learned scale."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the last axis."""
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """``[-b, a]`` of ``[a, b]``."""
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


class Attention(nn.Module):  # type: ignore[misc, unused-ignore]
    """Grouped-query attention with rotary embedding; causal."""

    def __init__(self, shape: LlamaShape, tokens: int) -> None:
        super().__init__()
        self.shape = shape
        kv = shape.kv_heads * shape.size
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        cos, sin = rope_tables(shape, tokens)
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("sin", torch.from_numpy(sin), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] of positions from 0 on."""
        batch, tokens, _ = x.shape
        heads = lambda t: t.view(batch, tokens, -1, self.shape.size).transpose(1, 2)
        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        q, k = (t * self.cos + rotate_half(t) * self.sin for t in (q, k))
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(found.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):  # type: ignore[misc, unused-ignore]
    """The gated network: SiLU on the gate."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inter, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inter, bias=False)
        self.down_proj = nn.Linear(shape.inter, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the last axis."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):  # type: ignore[misc, unused-ignore]
    """One layer; its parameters have the names of checkpoints without ``model.layers.N.``."""

    def __init__(self, shape: LlamaShape, tokens: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape, tokens)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))
