"""Families whose code lies beside their weights on the Hub: Baichuan, InternLM, InternLM2, ChatGLM, Qwen (the first).

Shapes and order of the parameters are the published ones; the forward is that of the closest family in transformers, so memory is an
approximation. Each says so in `Family.approximate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmcheck.shadow import liger, ops
from llmcheck.shadow.attention import attention_interface
from llmcheck.shadow.families import glm
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.llama import (
    ATTENTION,
    LINEAR,
    LlamaForCausalLM,
    LlamaModel,
    apply_rotary_pos_emb,
    llama_like,
)
from llmcheck.shadow.module import Build, CheckpointedLayer, Linear, Module, RMSNorm
from llmcheck.shadow.tape import cur
from llmcheck.shadow.tensor import Tensor

Rotary = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class FusedAttention(Module):
    """Query, key and value in one projection, as Phi-3's. `names`: of that projection and of the output's."""

    positional = 0

    def __init__(
        self, build: Build, config: Config, run: Run, names: tuple[str, str], bias: bool, out_bias: bool, rotary: Rotary | None
    ) -> None:
        self.kind, self.names, self.rotary = run.attention, names, rotary
        self.head_dim = config.head_dim
        self.query_width = config.num_attention_heads * self.head_dim
        self.key_width = config.num_key_value_heads * self.head_dim
        setattr(self, names[0], Linear(build, config.hidden_size, self.query_width + 2 * self.key_width, bias))
        setattr(self, names[1], Linear(build, self.query_width, config.hidden_size, out_bias))

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        qkv = getattr(self, self.names[0])(hidden_states)
        query_states = ops.transpose(ops.view(ops.narrow(qkv, -1, self.query_width), *hidden_shape), 1, 2)
        key_states = ops.transpose(ops.view(ops.narrow(qkv, -1, self.key_width), *hidden_shape), 1, 2)
        value_states = ops.transpose(ops.view(ops.narrow(qkv, -1, self.key_width), *hidden_shape), 1, 2)
        if self.rotary is not None:
            cos, sin = position_embeddings
            query_states, key_states = self.rotary(query_states, key_states, cos, sin)
        attn_output, attn_weights = attention_interface(self.kind, query_states, key_states, value_states, attention_mask)
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = getattr(self, self.names[1])(attn_output)
        return attn_output, attn_weights


class NamedGatedMLP(Module):
    """A gated MLP with projections of other names: in the order of the parameters, and which is gate, up and down."""

    def __init__(self, build: Build, hidden: int, intermediate: int, order: tuple[str, ...], gate: str, up: str, down: str) -> None:
        self.roles = (gate, up, down)
        for name in order:
            k, n = (intermediate, hidden) if name == down else (hidden, intermediate)
            setattr(self, name, Linear(build, k, n))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, name) for name in self.roles)
        out: Tensor
        if cur.liger:
            out = down(liger.gated(gate(x), up(x)))
            return out
        out = down(ops.mul(ops.silu(gate(x)), up(x)))
        return out


class FusedNamedGatedMLP(Module):
    """ChatGLM's MLP: gate and up projection in one."""

    def __init__(self, build: Build, hidden: int, intermediate: int, bias: bool) -> None:
        self.dense_h_to_4h = Linear(build, hidden, 2 * intermediate, bias)
        self.dense_4h_to_h = Linear(build, intermediate, hidden, bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        intermediate_parallel = self.dense_h_to_4h(hidden_states)
        gate, up = ops.split(intermediate_parallel, (intermediate_parallel.shape[-1] // 2,) * 2)
        intermediate_parallel = ops.mul(ops.silu(gate), up)
        output: Tensor = self.dense_4h_to_h(intermediate_parallel)
        return output


class NamedLayer(CheckpointedLayer):
    """Llama's layer with its parts under other names; `parts`: name -> constructor, in the order of the parameters.

    `roles`: the names of the norm before attention, attention, the norm before the MLP, and the MLP.
    """

    def __init__(self, parts: dict[str, Callable[[], Module]], roles: tuple[str, str, str, str]) -> None:
        for name, make in parts.items():
            setattr(self, name, make())
        self.roles = roles

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        first_norm, attention, second_norm, mlp = (getattr(self, name) for name in self.roles)
        residual = hidden_states
        hidden_states = first_norm(hidden_states)
        hidden_states, _ = attention(hidden_states, attention_mask, position_embeddings)
        hidden_states = ops.add(residual, hidden_states)
        residual = hidden_states
        hidden_states = second_norm(hidden_states)
        hidden_states = mlp(hidden_states)
        hidden_states = ops.add(residual, hidden_states)
        return hidden_states


class AlibiModel(LlamaModel):
    """One additive mask for each head, causality and distance in it."""

    num_heads = 1

    def mask(self, batch: int, seq: int, item: int, window: int | None) -> Tensor | None:
        return None if self.kind == "flash" else Tensor((1, self.num_heads, seq, seq), item)


def _baichuan(build: Build, config: Config, run: Run) -> CausalLM:
    h = config.hidden_size

    def layer(_: int) -> NamedLayer:
        rotary = None if config.alibi else apply_rotary_pos_emb
        return NamedLayer(
            {
                "self_attn": lambda: FusedAttention(build, config, run, ("W_pack", "o_proj"), False, False, rotary),
                "mlp": lambda: NamedGatedMLP(
                    build, h, config.intermediate_size, ("gate_proj", "down_proj", "up_proj"), "gate_proj", "up_proj", "down_proj"
                ),
                "input_layernorm": lambda: RMSNorm(build, h),
                "post_attention_layernorm": lambda: RMSNorm(build, h),
            },
            ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
        )

    model = AlibiModel(build, config, run, layer) if config.alibi else LlamaModel(build, config, run, layer)
    if isinstance(model, AlibiModel):
        model.num_heads = config.num_attention_heads
    return LlamaForCausalLM(build, config, run, model)


def _internlm(build: Build, config: Config, run: Run) -> CausalLM:
    return llama_like(build, _with(config, attention_dropout=0.0), run, bias=config.bias, out_bias=config.bias)


def _internlm2(build: Build, config: Config, run: Run) -> CausalLM:
    h = config.hidden_size

    def layer(_: int) -> NamedLayer:
        return NamedLayer(
            {
                "attention": lambda: FusedAttention(build, config, run, ("wqkv", "wo"), config.bias, config.bias, apply_rotary_pos_emb),
                "feed_forward": lambda: NamedGatedMLP(build, h, config.intermediate_size, ("w1", "w3", "w2"), "w1", "w3", "w2"),
                "attention_norm": lambda: RMSNorm(build, h),
                "ffn_norm": lambda: RMSNorm(build, h),
            },
            ("attention_norm", "attention", "ffn_norm", "feed_forward"),
        )

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


def _chatglm(build: Build, config: Config, run: Run) -> CausalLM:
    h, bias = config.hidden_size, config.add_bias_linear
    config = _with(config, vocab_size=config.padded_vocab_size, num_hidden_layers=config.num_layers)

    def layer(_: int) -> NamedLayer:
        names = ("query_key_value", "dense")
        return NamedLayer(
            {
                "input_layernorm": lambda: RMSNorm(build, h),
                "self_attention": lambda: FusedAttention(
                    build, config, run, names, bias or config.add_qkv_bias, bias, glm.apply_rotary_pos_emb
                ),
                "post_attention_layernorm": lambda: RMSNorm(build, h),
                "mlp": lambda: FusedNamedGatedMLP(build, h, config.ffn_hidden_size, bias),
            },
            ("input_layernorm", "self_attention", "post_attention_layernorm", "mlp"),
        )

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


def _qwen(build: Build, config: Config, run: Run) -> CausalLM:
    h = config.hidden_size

    def layer(_: int) -> NamedLayer:
        return NamedLayer(
            {
                "ln_1": lambda: RMSNorm(build, h),
                "attn": lambda: FusedAttention(build, config, run, ("c_attn", "c_proj"), True, not config.no_bias, apply_rotary_pos_emb),
                "ln_2": lambda: RMSNorm(build, h),
                "mlp": lambda: NamedGatedMLP(build, h, config.intermediate_size // 2, ("w1", "w2", "c_proj"), "w2", "w1", "c_proj"),
            },
            ("ln_1", "attn", "ln_2", "mlp"),
        )

    return LlamaForCausalLM(build, config, run, LlamaModel(build, config, run, layer))


def _with(config: Config, **fields: Any) -> Config:
    return Config({**config.__dict__, **fields})


def _family(
    name: str, build: Callable[[Build, Config, Run], CausalLM], linear: tuple[str, ...], attention: tuple[str, ...], like: str
) -> Family:
    why = f"{name}'s own code is not part of transformers: its published shapes with the forward of {like}"
    return Family(name, build, {}, linear, attention, approximate=why)


FAMILIES = (
    _family(
        "baichuan",
        _baichuan,
        ("W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"),
        ("W_pack", "o_proj"),
        "Llama with fused projections",
    ),
    _family("internlm", _internlm, LINEAR, ATTENTION, "Llama"),
    _family("internlm2", _internlm2, ("wqkv", "wo", "w1", "w2", "w3"), ("wqkv", "wo"), "Llama with fused projections"),
    _family("chatglm", _chatglm, ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"), ("query_key_value", "dense"), "GLM"),
    _family("qwen", _qwen, ("c_attn", "c_proj", "w1", "w2"), ("c_attn", "c_proj"), "Llama with fused projections"),
)
