"""Modules as Hugging Face's transformers writes them, small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    hidden_size: int = 24
    intermediate_size: int = 40
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 6
    num_experts: int = 5
    vocabulary: int = 19
    layers: int = 2
    attention: str = "sdpa"


class LlamaRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class LlamaRotaryEmbedding(nn.Module):
    inv_freq: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.head_dim
        inv_freq = 1.0 / (10000.0 ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size))
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.attention_scaling = 1.0

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        inv_freq_expanded = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1).to(x.device)
        position_ids_expanded = position_ids[:, None, :].float()
        with torch.autocast(device_type="cpu", enabled=False):
            freqs = (inv_freq_expanded.float() @ position_ids_expanded.float()).transpose(1, 2)
            emb = torch.cat((freqs, freqs), dim=-1)
            cos = emb.cos() * self.attention_scaling
            sin = emb.sin() * self.attention_scaling
        return cos.to(dtype=x.dtype), sin.to(dtype=x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    return (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)


def repeat_kv(hidden_states: Tensor, n_rep: int) -> Tensor:
    batch, num_key_value_heads, slen, head_dim = hidden_states.shape
    if n_rep == 1:
        return hidden_states
    hidden_states = hidden_states[:, :, None, :, :].expand(batch, num_key_value_heads, n_rep, slen, head_dim)
    return hidden_states.reshape(batch, num_key_value_heads * n_rep, slen, head_dim)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, groups: int) -> Tensor:
    key_states = repeat_kv(k, groups)
    value_states = repeat_kv(v, groups)
    attn_weights = torch.matmul(q, key_states.transpose(2, 3)) * scaling
    if mask is not None:
        attn_weights = attn_weights + mask[:, :, :, : key_states.shape[-2]]
    attn_weights = F.softmax(attn_weights, dim=-1, dtype=torch.float32).to(q.dtype)
    attn_weights = F.dropout(attn_weights, p=0.0, training=False)
    return torch.matmul(attn_weights, value_states).transpose(1, 2).contiguous()


def attend(kind: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, groups: int) -> Tensor:
    if kind == "eager":
        return eager_attention(q, k, v, mask, scaling, groups)
    if kind == "gqa":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True)
    else:
        out = F.scaled_dot_product_attention(
            q, repeat_kv(k, groups), repeat_kv(v, groups), attn_mask=mask, scale=scaling, is_causal=mask is None
        )
    return out.transpose(1, 2).contiguous()


class LlamaAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.groups = config.num_attention_heads // config.num_key_value_heads
        heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.config.head_dim)
        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        scaling = self.config.head_dim**-0.5
        out = attend(self.config.attention, query_states, key_states, value_states, mask, scaling, self.groups)
        return self.o_proj(out.reshape(*input_shape, -1).contiguous())


class LlamaMLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class LlamaDecoderLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size)

    def forward(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states = residual + self.self_attn(hidden_states, position_embeddings, mask)
        residual = hidden_states
        hidden_states = self.mlp(self.post_attention_layernorm(hidden_states))
        return residual + hidden_states


def causal_mask(length: int, past: int = 0) -> Tensor:
    target = length + past
    mask = torch.full((length, target), fill_value=torch.finfo(torch.float32).min)
    mask = torch.triu(mask, diagonal=1) if length != 1 else mask
    mask *= torch.arange(target) > (torch.arange(length) + past).reshape(-1, 1)
    return mask[None, None, :, :].expand(1, 1, -1, -1)


class LlamaLayerAlone(nn.Module):
    """A decoder layer with the rotary tables and the mask made inside, as the whole model does."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.layer = LlamaDecoderLayer(config)

    def forward(self, hidden_states: Tensor, position_ids: Tensor | None = None) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device).unsqueeze(0)
        embeddings = self.rotary_emb(hidden_states, position_ids)
        return self.layer(hidden_states, embeddings, causal_mask(hidden_states.shape[1]))


class LlamaForCausalLM(nn.Module):
    """With an embedding that is tied to the head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config) for _ in range(config.layers))
        self.norm = LlamaRMSNorm(config.hidden_size)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocabulary, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> dict[str, Any]:
        hidden_states = self.embed_tokens(input_ids)
        position_ids = torch.arange(input_ids.shape[1]).unsqueeze(0)
        embeddings = self.rotary_emb(hidden_states, position_ids)
        mask = causal_mask(input_ids.shape[1])
        states = []
        for layer in self.layers:
            states.append(hidden_states)
            hidden_states = layer(hidden_states, embeddings, mask)
        logits = self.lm_head(self.norm(hidden_states))
        return {"logits": logits, "hidden_states": tuple(states), "next": logits[:, -1].argmax(-1)}


class Conv1D(nn.Module):
    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) / nx**0.5)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.nf)
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x.view(size_out)


class NewGELUActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class GPT2Block(nn.Module):
    bias: Tensor

    def __init__(self, size: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(size)
        self.ln_2 = nn.LayerNorm(size)
        self.c_attn, self.c_proj = Conv1D(3 * size, size), Conv1D(size, size)
        self.c_fc, self.c_out = Conv1D(4 * size, size), Conv1D(size, 4 * size)
        self.act = NewGELUActivation()
        self.attn_dropout = nn.Dropout(0.1)
        self.register_buffer("bias", torch.tril(torch.ones((16, 16), dtype=torch.bool)).view(1, 1, 16, 16))

    def attention(self, hidden_states: Tensor) -> Tensor:
        q, k, v = self.c_attn(hidden_states).split(hidden_states.shape[-1], dim=2)
        q, k, v = (x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        weights = torch.matmul(q, k.transpose(-1, -2))
        weights = weights / torch.full([], v.size(-1) ** 0.5, dtype=weights.dtype)
        mask_value = torch.full([], torch.finfo(weights.dtype).min, dtype=weights.dtype)
        weights = torch.where(self.bias[:, :, : q.size(-2), : k.size(-2)], weights, mask_value)
        weights = self.attn_dropout(F.softmax(weights, dim=-1).type(v.dtype))
        out = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        return self.c_proj(out.view(*out.shape[:-2], -1))

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states + self.attention(self.ln_1(hidden_states))
        return hidden_states + self.c_out(self.act(self.c_fc(self.ln_2(hidden_states))))


class SiglipEncoder(nn.Module):
    """Patches by a convolution, learned positions, one encoder layer."""

    position_ids: Tensor

    def __init__(self, size: int = 24, heads: int = 3, patch: int = 4, image: int = 12) -> None:
        super().__init__()
        count = (image // patch) ** 2
        self.heads = heads
        self.patch_embedding = nn.Conv2d(3, size, patch, stride=patch, padding="valid")
        self.position_embedding = nn.Embedding(count, size)
        self.register_buffer("position_ids", torch.arange(count).expand((1, -1)), persistent=False)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(size, eps=1e-6), nn.LayerNorm(size, eps=1e-6)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(size, size) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        x = patches + self.position_embedding(self.position_ids)
        batch, length, size = x.shape
        h = self.layer_norm1(x)
        q, k, v = (
            p(h).view(batch, length, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, scale=(size // self.heads) ** -0.5)
        x = x + self.out_proj(out.transpose(1, 2).reshape(batch, length, size))
        return x + self.fc2(F.gelu(self.fc1(self.layer_norm2(x)), approximate="tanh"))


class MixtureOfExperts(nn.Module):
    """Two experts for each token; all are computed, and weighted."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        shape = config.num_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.randn(*shape[:2], 2 * shape[2]) / 5)
        self.down_proj = nn.Parameter(torch.randn(shape[0], shape[2], shape[1]) / 6)
        self.config = config

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        x = hidden_states.reshape(-1, self.config.hidden_size)
        router_logits = self.gate(x)
        values, indices = torch.topk(F.softmax(router_logits, dim=-1, dtype=torch.float), 2, dim=-1)
        values = values / values.sum(dim=-1, keepdim=True)
        scores = torch.zeros_like(router_logits).scatter_(1, indices, values)
        tokens = x.repeat(self.config.num_experts, 1).view(self.config.num_experts, -1, self.config.hidden_size)
        gate, up = torch.bmm(tokens, self.gate_up_proj).chunk(2, dim=-1)
        expert = torch.bmm(up * F.silu(gate), self.down_proj)
        return (expert * scores.t().unsqueeze(-1)).sum(0).view(hidden_states.shape), router_logits


class CachedAttention(nn.Module):
    """One step of decoding, with static caches that are written in place."""

    keys: Tensor
    values: Tensor

    def __init__(self, config: Config, way: str, length: int = 9) -> None:
        super().__init__()
        self.config, self.way = config, way
        heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.kv_proj = nn.Linear(config.hidden_size, 2 * kv, bias=False)
        shape = 1, config.num_key_value_heads, length, config.head_dim
        self.register_buffer("keys", torch.zeros(shape))
        self.register_buffer("values", torch.zeros(shape))

    def forward(self, x: Tensor, cache_position: Tensor) -> Tensor:
        size = self.config.head_dim
        q = self.q_proj(x).view(1, 1, -1, size).transpose(1, 2)
        k, v = (t.view(1, 1, -1, size).transpose(1, 2) for t in self.kv_proj(x).chunk(2, -1))
        if self.way == "index_copy":
            self.keys.index_copy_(2, cache_position, k)
            self.values.index_copy_(2, cache_position, v)
        elif self.way == "index_put":
            self.keys[:, :, cache_position] = k
            self.values[:, :, cache_position] = v
        else:
            self.keys[:, :, 3:4] = k
            self.values[:, :, 3:4] = v
        mask = torch.arange(self.keys.shape[2])[None, :] <= cache_position.reshape(-1, 1)
        out = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2).reshape(1, 1, -1)
