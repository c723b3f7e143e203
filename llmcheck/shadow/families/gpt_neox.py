"""GPT-NeoX and Pythia: parallel residual, rotary embedding on a part of each head, a fused interleaved query-key-value projection.

Written along ``transformers/models/gpt_neox/modeling_gpt_neox.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from llmcheck.shadow import activations, ops
from llmcheck.shadow.attention import attention_interface, causal_mask, position_ids_of
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.families.llama import RotaryEmbedding, rotate_half
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Dropout, Embedding, LayerNorm, Linear, Module
from llmcheck.shadow.tensor import Tensor


class GPTNeoXMLP(Module):
    def __init__(self, build: Build, config: Config) -> None:
        self.dense_h_to_4h = Linear(build, config.hidden_size, config.intermediate_size, True)
        self.dense_4h_to_h = Linear(build, config.intermediate_size, config.hidden_size, True)
        self.act = Activation(activations.get(config.hidden_act))

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.dense_h_to_4h(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.dense_4h_to_h(hidden_states)
        return hidden_states


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The first `cos.shape[-1]` elements of each head turned, the rest passed on."""
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    rotary_dim = cos.shape[-1]
    rest = q.shape[-1] - rotary_dim
    q_rot, q_pass = ops.narrow(q, -1, rotary_dim), ops.narrow(q, -1, rest)
    k_rot, k_pass = ops.narrow(k, -1, rotary_dim), ops.narrow(k, -1, rest)
    q_embed = ops.add(ops.mul(q_rot, cos), ops.mul(rotate_half(q_rot), sin))
    k_embed = ops.add(ops.mul(k_rot, cos), ops.mul(rotate_half(k_rot), sin))
    q_embed = ops.cat((q_embed, q_pass))
    k_embed = ops.cat((k_embed, k_pass))
    return q_embed, k_embed


class GPTNeoXAttention(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.head_size = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.query_key_value = Linear(build, config.hidden_size, 3 * config.hidden_size, config.attention_bias)
        self.dense = Linear(build, config.hidden_size, config.hidden_size, config.attention_bias)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, 3 * self.head_size)
        qkv = ops.transpose(ops.view(self.query_key_value(hidden_states), *hidden_shape), 1, 2)
        query_states, key_states, value_states = ops.split(qkv, (self.head_size,) * 3)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        attn_output, attn_weights = attention_interface(
            self.kind, query_states, key_states, value_states, attention_mask, self.attention_dropout
        )
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.dense(attn_output)
        return attn_output, attn_weights


class GPTNeoXLayer(CheckpointedLayer):
    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.use_parallel_residual = config.use_parallel_residual
        self.input_layernorm = LayerNorm(build, config.hidden_size)
        self.post_attention_layernorm = LayerNorm(build, config.hidden_size)
        self.post_attention_dropout = Dropout(config.hidden_dropout)
        self.post_mlp_dropout = Dropout(config.hidden_dropout)
        self.attention = GPTNeoXAttention(build, config, run)
        self.mlp = GPTNeoXMLP(build, config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        attn_output, _ = self.attention(self.input_layernorm(hidden_states), attention_mask, position_embeddings)
        attn_output = self.post_attention_dropout(attn_output)
        if self.use_parallel_residual:
            mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
            mlp_output = self.post_mlp_dropout(mlp_output)
            hidden_states = ops.add(ops.add(mlp_output, attn_output), hidden_states)
        else:
            attn_output = ops.add(attn_output, hidden_states)
            mlp_output = self.mlp(self.post_attention_layernorm(attn_output))
            mlp_output = self.post_mlp_dropout(mlp_output)
            hidden_states = ops.add(mlp_output, attn_output)
        return hidden_states


class GPTNeoXModel(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.embed_in = Embedding(build, config.vocab_size, config.hidden_size)
        self.emb_dropout = Dropout(config.hidden_dropout)
        self.layers = [GPTNeoXLayer(build, config, run) for _ in range(config.num_hidden_layers)]
        self.final_layer_norm = LayerNorm(build, config.hidden_size)
        head_dim = config.hidden_size // config.num_attention_heads
        self.rotary_emb = RotaryEmbedding(int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)))
        for layer in self.layers:
            layer.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.embed_in, input_ids)
        position_ids = position_ids_of(input_ids.shape[1])
        mask = causal_mask(self.kind, input_ids.shape[0], input_ids.shape[1], inputs_embeds.item)
        hidden_states = self.emb_dropout(inputs_embeds)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, position_embeddings)
        out: Tensor = self.final_layer_norm(hidden_states)
        return out


def _gpt_neox(build: Build, config: Config, run: Run) -> CausalLM:
    gpt_neox = GPTNeoXModel(build, config, run)
    return DecoderLM(build, config, run, "gpt_neox", gpt_neox, gpt_neox.embed_in, config.hidden_size)


FAMILIES = (
    Family(
        "gpt_neox",
        _gpt_neox,
        {},
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        ("query_key_value", "dense"),
    ),
)
