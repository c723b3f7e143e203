"""MPT: ALiBi in fp32, eager attention, a fused query-key-value projection, no biases.

Written along ``transformers/models/mpt/modeling_mpt.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.attention import causal_mask
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run, attention_kind
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Dropout, Embedding, LayerNorm, Linear, Module
from llmcheck.shadow.tensor import Tensor


def build_mpt_alibi_tensor(num_heads: int, sequence_length: int) -> Tensor:
    """[H, 1, longest sequence], fp32."""
    alibi = Tensor((1, 1, 1, sequence_length), 4)
    slopes = Tensor((1, num_heads, 1, 1), 4)
    alibi = ops.mul(alibi, slopes)
    return ops.squeeze(alibi, 0)


def _norm(build: Build, width: int) -> LayerNorm:
    """Built with a bias that is dropped at once, as the original does."""
    norm = LayerNorm(build, width)
    norm.bias = None
    return norm


class MptAttention(Module):
    positional = 1

    def __init__(self, build: Build, config: Config) -> None:
        self.hidden_size = config.d_model
        self.n_heads = config.n_heads
        self.head_dim = self.hidden_size // self.n_heads
        self.attn_dropout_p = config.attn_config["attn_pdrop"]
        self.clip_qkv = config.attn_config.get("clip_qkv")
        self.Wqkv = Linear(build, self.hidden_size, 3 * self.hidden_size)
        self.out_proj = Linear(build, self.hidden_size, self.hidden_size)

    def forward(self, hidden_states: Tensor, position_bias: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        batch_size, seq_length = hidden_states.shape[:2]
        mixed_qkv = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed_qkv = ops.clamp(mixed_qkv)
        query_states, key_states, value_states = ops.split(mixed_qkv, (self.hidden_size,) * 3, 2)
        query_states = ops.transpose(ops.reshape(query_states, batch_size, seq_length, self.n_heads, self.head_dim), 1, 2)
        key_states = ops.transpose(ops.reshape(key_states, batch_size, seq_length, self.n_heads, self.head_dim), 1, 2)
        value_states = ops.transpose(ops.reshape(value_states, batch_size, seq_length, self.n_heads, self.head_dim), 1, 2)
        attention_scores = ops.scale(ops.matmul(query_states, ops.transpose(key_states, -1, -2)))
        position_bias = ops.narrow(position_bias, 2, min(seq_length, position_bias.shape[2]))
        attention_scores = ops.add(attention_scores, position_bias)
        attention_scores = ops.where_scalar(attention_scores, attention_mask)
        attn_weights = ops.cast(ops.softmax(ops.cast(attention_scores, 4)), value_states.item)
        attn_weights = ops.dropout(attn_weights, self.attn_dropout_p)
        context_states = ops.matmul(attn_weights, value_states)
        context_states = ops.view(ops.contiguous(ops.permute(context_states, 0, 2, 1, 3)), batch_size, seq_length, -1)
        attn_output = self.out_proj(context_states)
        return attn_output, attn_weights


class MptMLP(Module):
    positional = 2

    def __init__(self, build: Build, config: Config) -> None:
        self.up_proj = Linear(build, config.d_model, 4 * config.d_model)
        self.act = Activation(ops.gelu)
        self.down_proj = Linear(build, 4 * config.d_model, config.d_model)
        self.hidden_dropout = config.attn_config["attn_pdrop"]

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        hidden_states = self.act(self.up_proj(hidden_states))
        intermediate_output = self.down_proj(hidden_states)
        output = ops.dropout(intermediate_output, self.hidden_dropout)
        output = ops.add(output, residual)
        return output


class MptBlock(CheckpointedLayer):
    def __init__(self, build: Build, config: Config) -> None:
        self.norm_1 = _norm(build, config.d_model)
        self.attn = MptAttention(build, config)
        self.norm_2 = _norm(build, config.d_model)
        self.ffn = MptMLP(build, config)
        self.resid_attn_dropout = Dropout(config.attn_config["attn_pdrop"])

    def forward(self, hidden_states: Tensor, position_bias: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        layernorm_output = self.norm_1(hidden_states)
        residual = hidden_states
        attn_outputs, attn_weights = self.attn(layernorm_output, position_bias, attention_mask)
        hidden_states = ops.add(self.resid_attn_dropout(attn_outputs), residual)
        layernorm_output = self.norm_2(hidden_states)
        residual = hidden_states
        output = self.ffn(layernorm_output, residual)
        return output, attn_weights


class MptModel(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.num_heads, self.max_seq_len = config.n_heads, config.max_seq_len
        self.wte = Embedding(build, config.vocab_size, config.d_model)
        self.blocks = [MptBlock(build, config) for _ in range(config.n_layers)]
        self.norm_f = _norm(build, config.d_model)
        for block in self.blocks:
            block.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.wte, input_ids)
        hidden_states = inputs_embeds
        alibi = build_mpt_alibi_tensor(self.num_heads, self.max_seq_len)
        additive = causal_mask("eager", input_ids.shape[0], input_ids.shape[1], inputs_embeds.item)
        assert additive is not None
        mask = Tensor(additive.shape, 1)
        del additive
        for block in self.blocks:
            outputs = block(hidden_states, alibi, mask)
            hidden_states = outputs[0]
        out: Tensor = self.norm_f(hidden_states)
        return out


def _mpt(build: Build, config: Config, run: Run) -> CausalLM:
    attention_kind(run, "MPT", sdpa=False, flash=False)
    transformer = MptModel(build, config, run)
    return DecoderLM(build, config, run, "transformer", transformer, transformer.wte, config.d_model)


FAMILIES = (Family("mpt", _mpt, {}, ("Wqkv", "out_proj", "up_proj", "down_proj"), ("Wqkv", "out_proj"), supports_sdpa=False),)
