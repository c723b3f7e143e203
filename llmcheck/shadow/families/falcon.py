"""Falcon: multi-query (7b), grouped heads with two norms (40b, 180b), or ALiBi (rw); linear layers whose bias is added apart.

Written along ``transformers/models/falcon/modeling_falcon.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from llmcheck.shadow import activations, ops
from llmcheck.shadow.attention import causal_mask, flash_attention_forward, position_ids_of, sdpa
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run, attention_kind
from llmcheck.shadow.families.bloom import dropout_add
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.families.llama import RotaryEmbedding, rotate_half
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Dropout, Embedding, LayerNorm, Linear, Module
from llmcheck.shadow.tensor import Tensor


class FalconLinear(Linear):
    """``input @ weight.T`` and then ``+ bias``: two results."""

    def forward(self, x: Tensor) -> Tensor:
        hidden_states = ops.dense(x, self.weight, transposed=True)
        if self.bias is None:
            return hidden_states
        return ops.add(hidden_states, self.bias)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos = ops.unsqueeze(cos, 1)
    sin = ops.unsqueeze(sin, 1)
    q_embed = ops.add(ops.mul(q, cos), ops.mul(rotate_half(q), sin))
    k_embed = ops.add(ops.mul(k, cos), ops.mul(rotate_half(k), sin))
    return q_embed, k_embed


def build_alibi_tensor(attention_mask: Tensor, num_heads: int, item: int) -> Tensor:
    """[b * H, 1, s], always by way of bf16."""
    batch_size, seq_length = attention_mask.shape
    arange_tensor = ops.reshape(ops.mul(ops.add_scalar(Tensor(attention_mask.shape, 8)), attention_mask), batch_size, 1, seq_length)
    alibi = ops.mul(Tensor((num_heads, 1), 2), arange_tensor, 2)
    return ops.cast(ops.reshape(alibi, batch_size * num_heads, 1, seq_length), item)


class FalconAttention(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        h = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = h // self.num_heads
        self.new_decoder_architecture, self.multi_query = config.new_decoder_architecture, config.multi_query
        num_kv_heads = config.num_kv_heads or self.num_heads
        if self.new_decoder_architecture:
            qkv_out_dim = (num_kv_heads * 2 + self.num_heads) * self.head_dim
        elif self.multi_query:
            qkv_out_dim = h + 2 * self.head_dim
        else:
            qkv_out_dim = 3 * h
        self.query_key_value = FalconLinear(build, h, qkv_out_dim, config.bias)
        self.dense = FalconLinear(build, h, h, config.bias)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.num_kv_heads = num_kv_heads if self.new_decoder_architecture or not self.multi_query else 1

    def _split_heads(self, fused_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, seq_len, _ = fused_qkv.shape
        if self.new_decoder_architecture:
            qkv = ops.view(fused_qkv, batch, seq_len, -1, self.num_heads // self.num_kv_heads + 2, self.head_dim)
            query = ops.narrow(qkv, 3, self.num_heads // self.num_kv_heads)
            key = ops.index(qkv, 3, 1)
            value = ops.index(qkv, 3, 1)
            key = ops.expand(key, *query.shape)
            value = ops.expand(value, *query.shape)
            flat = (batch, seq_len, self.num_heads, self.head_dim)
            query, key, value = [ops.reshape(x, *flat) for x in (query, key, value)]
            return query, key, value
        if not self.multi_query:
            fused_qkv = ops.view(fused_qkv, batch, seq_len, self.num_heads, 3, self.head_dim)
            return ops.select(fused_qkv, 3), ops.select(fused_qkv, 3), ops.select(fused_qkv, 3)
        fused_qkv = ops.view(fused_qkv, batch, seq_len, self.num_heads + 2, self.head_dim)
        return ops.narrow(fused_qkv, 2, self.num_heads), ops.index(fused_qkv, 2, 1), ops.index(fused_qkv, 2, 1)

    def _merge_heads(self, x: Tensor) -> Tensor:
        batch_size_and_num_heads, seq_length, _ = x.shape
        batch_size = batch_size_and_num_heads // self.num_heads
        x = ops.view(x, batch_size, self.num_heads, seq_length, self.head_dim)
        x = ops.permute(x, 0, 2, 1, 3)
        return ops.reshape(x, batch_size, seq_length, self.num_heads * self.head_dim)

    def forward(
        self, hidden_states: Tensor, alibi: Tensor | None, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        fused_qkv = self.query_key_value(hidden_states)
        num_kv_heads = self.num_heads if self.new_decoder_architecture else self.num_kv_heads
        query_layer, key_layer, value_layer = self._split_heads(fused_qkv)
        batch_size, query_length = query_layer.shape[:2]
        query_layer = ops.reshape(ops.transpose(query_layer, 1, 2), batch_size, self.num_heads, query_length, self.head_dim)
        key_layer = ops.reshape(ops.transpose(key_layer, 1, 2), batch_size, num_kv_heads, query_length, self.head_dim)
        value_layer = ops.reshape(ops.transpose(value_layer, 1, 2), batch_size, num_kv_heads, query_length, self.head_dim)
        if alibi is None:
            cos, sin = position_embeddings
            query_layer, key_layer = apply_rotary_pos_emb(query_layer, key_layer, cos, sin)
        width = self.num_heads * self.head_dim
        if self.kind == "flash":
            attn_output = flash_attention_forward(query_layer, key_layer, value_layer, self.attention_dropout.p)
            attn_weights = ops.reshape(attn_output, batch_size, query_length, width)
            attn_output = self.dense(attn_weights)
            return attn_output, None
        attention_scores: Tensor | None
        if alibi is None:
            if self.kind == "sdpa":
                attn_output = sdpa(query_layer, key_layer, value_layer, attention_mask, enable_gqa=False)
                attention_scores = None
            else:
                assert attention_mask is not None
                attention_scores = ops.matmul(query_layer, ops.transpose(key_layer, -1, -2))
                attention_scores = ops.scale_(attention_scores)
                attention_scores = ops.softmax(ops.add(attention_scores, attention_mask))
                attn_output = ops.matmul(attention_scores, value_layer)
            attn_output = ops.view(attn_output, batch_size, self.num_heads, query_length, self.head_dim)
            attn_output = ops.permute(attn_output, 0, 2, 1, 3)
            attn_output = ops.reshape(attn_output, batch_size, query_length, width)
            attn_output = self.dense(attn_output)
            return attn_output, attention_scores
        attention_probs: Tensor | None
        if self.kind == "sdpa":
            attn_output = sdpa(query_layer, key_layer, value_layer, attention_mask, self.attention_dropout.p, enable_gqa=False)
            attention_probs = None
            attn_output = ops.transpose(attn_output, 1, 2)
            attn_output = ops.reshape(attn_output, batch_size, query_length, width)
            attn_output = self.dense(attn_output)
        else:
            assert attention_mask is not None
            matmul_result = ops.matmul(query_layer, ops.transpose(key_layer, -1, -2))
            attention_scores = ops.view(matmul_result, batch_size, self.num_heads, query_length, -1)
            attention_scores = ops.cast(attention_scores, 4)
            attention_logits = ops.add(attention_scores, ops.view(alibi, batch_size, self.num_heads, 1, -1))
            attention_logits = ops.scale_(attention_logits)
            attention_probs = ops.softmax_as(ops.add(attention_logits, attention_mask), hidden_states.item)
            attention_probs = self.attention_dropout(attention_probs)
            attention_probs_reshaped = ops.view(attention_probs, batch_size, self.num_heads, query_length, -1)
            attn_output = ops.reshape(ops.matmul(attention_probs_reshaped, value_layer), -1, query_length, self.head_dim)
            attn_output = self._merge_heads(attn_output)
            attn_output = self.dense(attn_output)
        return attn_output, attention_probs


class FalconMLP(Module):
    def __init__(self, build: Build, config: Config) -> None:
        width = config.ffn_hidden_size or 4 * config.hidden_size
        self.dense_h_to_4h = FalconLinear(build, config.hidden_size, width, config.bias)
        self.act = Activation(activations.get(config.activation))
        self.dense_4h_to_h = FalconLinear(build, width, config.hidden_size, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.dense_h_to_4h(x))
        x = self.dense_4h_to_h(x)
        return x


class FalconDecoderLayer(CheckpointedLayer):
    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.self_attention = FalconAttention(build, config, run)
        self.mlp = FalconMLP(build, config)
        self.hidden_dropout, self.attention_dropout = config.hidden_dropout, config.attention_dropout
        self.new_decoder_architecture, self.parallel_attn = config.new_decoder_architecture, config.parallel_attn
        norms = config.num_ln_in_parallel_attn
        self.num_ln_in_parallel_attn = 2 if norms is None and config.new_decoder_architecture else norms
        if not config.parallel_attn:
            self.post_attention_layernorm = LayerNorm(build, config.hidden_size)
            self.input_layernorm = LayerNorm(build, config.hidden_size)
        elif self.num_ln_in_parallel_attn == 2:
            self.ln_attn = LayerNorm(build, config.hidden_size)
            self.ln_mlp = LayerNorm(build, config.hidden_size)
        else:
            self.input_layernorm = LayerNorm(build, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, alibi: Tensor | None, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        residual = hidden_states
        if self.new_decoder_architecture and self.num_ln_in_parallel_attn == 2:
            attention_layernorm_out = self.ln_attn(hidden_states)
            mlp_layernorm_out = self.ln_mlp(hidden_states)
        else:
            attention_layernorm_out = self.input_layernorm(hidden_states)
        attention_output, attn_weights = self.self_attention(attention_layernorm_out, alibi, attention_mask, position_embeddings)
        if not self.new_decoder_architecture:
            if self.parallel_attn:
                mlp_layernorm_out = attention_layernorm_out
            else:
                residual = dropout_add(attention_output, residual, self.attention_dropout)
                mlp_layernorm_out = self.post_attention_layernorm(residual)
        if self.new_decoder_architecture and self.parallel_attn and self.num_ln_in_parallel_attn == 1:
            mlp_layernorm_out = attention_layernorm_out
        mlp_output = self.mlp(mlp_layernorm_out)
        if self.new_decoder_architecture or self.parallel_attn:
            mlp_output = ops.add_(mlp_output, attention_output)
        output = dropout_add(mlp_output, residual, self.hidden_dropout)
        return output, attn_weights


class FalconModel(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.num_heads = config.num_attention_heads
        self.use_alibi = config.alibi
        self.word_embeddings = Embedding(build, config.vocab_size, config.hidden_size)
        self.h = [FalconDecoderLayer(build, config, run) for _ in range(config.num_hidden_layers)]
        self.ln_f = LayerNorm(build, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.hidden_size // config.num_attention_heads)
        for block in self.h:
            block.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.word_embeddings, input_ids)
        alibi = None
        batch_size, seq_length, _ = inputs_embeds.shape
        if self.use_alibi:
            alibi = build_alibi_tensor(attention_mask, self.num_heads, inputs_embeds.item)
        position_ids = position_ids_of(seq_length)
        mask = causal_mask(self.kind, batch_size, seq_length, inputs_embeds.item, always=True)
        if alibi is not None and mask is not None:
            if mask.item == 1:
                mask = Tensor(mask.shape, inputs_embeds.item)
            alibi = ops.reshape(alibi, batch_size, -1, *alibi.shape[1:])
            mask = ops.where_scalar(ops.scale(alibi), Tensor(mask.shape, 1))  # the biases, masked: [b, H, s, s]
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for block in self.h:
            outputs = block(hidden_states, alibi, mask, position_embeddings)
            hidden_states = outputs[0]
        out: Tensor = self.ln_f(hidden_states)
        return out


def _falcon(build: Build, config: Config, run: Run) -> CausalLM:
    attention_kind(run, "a Falcon model with ALiBi", flash=not config.alibi)
    transformer = FalconModel(build, config, run)
    return DecoderLM(build, config, run, "transformer", transformer, transformer.word_embeddings, config.hidden_size)


FAMILIES = (
    Family(
        "falcon",
        _falcon,
        {},
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        ("query_key_value", "dense"),
    ),
)
