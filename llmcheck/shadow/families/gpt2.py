"""GPT-2: learned positions, fused query-key-value projections stored transposed (``Conv1D``), dropout throughout.

Written along ``transformers/models/gpt2/modeling_gpt2.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from collections.abc import Callable

from llmcheck.shadow import activations, ops
from llmcheck.shadow.attention import attention_interface, causal_mask, position_ids_of
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Conv1D, Dropout, Embedding, LayerNorm, Linear, Module
from llmcheck.shadow.tensor import Tensor


def eager_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Softmax in the model's type; the output is left transposed, [b, s, H, d]."""
    attn_weights = ops.scale(ops.matmul(query, ops.transpose(key, -1, -2)))
    if attention_mask is not None:
        attn_weights = ops.add(attn_weights, attention_mask)
    attn_weights = ops.softmax(attn_weights)
    attn_weights = ops.cast(attn_weights, value.item)
    attn_weights = ops.dropout(attn_weights, dropout)
    attn_output = ops.matmul(attn_weights, value)
    attn_output = ops.transpose(attn_output, 1, 2)
    return attn_output, attn_weights


class GPT2Attention(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.embed_dim = config.n_embd
        self.head_dim = self.embed_dim // config.n_head
        self.reorder_and_upcast_attn = config.reorder_and_upcast_attn
        self.c_attn = Conv1D(build, self.embed_dim, 3 * self.embed_dim)
        self.c_proj = Conv1D(build, self.embed_dim, self.embed_dim)
        self.attn_dropout = Dropout(config.attn_pdrop)
        self.resid_dropout = Dropout(config.resid_pdrop)

    def _upcast_and_reordered_attn(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        bsz, num_heads, q_seq_len, dk = query.shape
        k_seq_len = key.shape[2]
        attn_weights = Tensor((bsz * num_heads, q_seq_len, k_seq_len), 4)
        q = ops.reshape(query, -1, q_seq_len, dk)
        k = ops.reshape(ops.transpose(key, -1, -2), -1, dk, k_seq_len)
        attn_weights = ops.baddbmm(attn_weights, ops.cast(q, 4), ops.cast(k, 4))
        attn_weights = ops.reshape(attn_weights, bsz, num_heads, q_seq_len, k_seq_len)
        if attention_mask is not None:
            attn_weights = ops.add(attn_weights, attention_mask)
        attn_weights = ops.softmax(attn_weights)
        attn_weights = ops.cast(attn_weights, value.item)
        attn_weights = self.attn_dropout(attn_weights)
        attn_output = ops.matmul(attn_weights, value)
        attn_output = ops.transpose(attn_output, 1, 2)
        return attn_output, attn_weights

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        query_states, key_states, value_states = ops.split(self.c_attn(hidden_states), (self.embed_dim,) * 3, 2)
        shape_kv = (*key_states.shape[:-1], -1, self.head_dim)
        key_states = ops.transpose(ops.view(key_states, *shape_kv), 1, 2)
        value_states = ops.transpose(ops.view(value_states, *shape_kv), 1, 2)
        shape_q = (*query_states.shape[:-1], -1, self.head_dim)
        query_states = ops.transpose(ops.view(query_states, *shape_q), 1, 2)
        attn_weights: Tensor | None
        if self.kind == "eager" and self.reorder_and_upcast_attn:
            attn_output, attn_weights = self._upcast_and_reordered_attn(query_states, key_states, value_states, attention_mask)
        elif self.kind == "eager":
            attn_output, attn_weights = eager_attention_forward(query_states, key_states, value_states, attention_mask, self.attn_dropout.p)
        else:
            attn_output, attn_weights = attention_interface(
                self.kind, query_states, key_states, value_states, attention_mask, self.attn_dropout.p
            )
        attn_output = ops.contiguous(ops.reshape(attn_output, *attn_output.shape[:-2], -1))
        attn_output = self.c_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        return attn_output, attn_weights


class GPT2MLP(Module):
    """Two projections, made by `project`, around the activation; dropout behind."""

    def __init__(
        self,
        build: Build,
        hidden_size: int,
        intermediate_size: int,
        act: str,
        dropout: float,
        project: Callable[[Build, int, int], Module] = Conv1D,
    ) -> None:
        self.c_fc = project(build, hidden_size, intermediate_size)
        self.c_proj = project(build, intermediate_size, hidden_size)
        self.act = Activation(activations.get(act))
        self.dropout = Dropout(dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states


def biased_linear(build: Build, in_features: int, out_features: int) -> Linear:
    """The projection of the relatives that do not store it transposed."""
    return Linear(build, in_features, out_features, True)


class GPT2Block(CheckpointedLayer):
    """`attention` makes the block's attention, `project` its MLP's projections."""

    def __init__(
        self,
        build: Build,
        config: Config,
        run: Run,
        attention: Callable[[Build, Config, Run], Module],
        project: Callable[[Build, int, int], Module] = Conv1D,
    ) -> None:
        hidden_size = config.n_embd
        inner_dim = config.n_inner if config.n_inner is not None else 4 * hidden_size
        self.ln_1 = LayerNorm(build, hidden_size)
        self.attn = attention(build, config, run)
        self.ln_2 = LayerNorm(build, hidden_size)
        self.mlp = GPT2MLP(build, hidden_size, inner_dim, config.activation_function, config.resid_pdrop, project)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_output, _ = self.attn(hidden_states, attention_mask)
        hidden_states = ops.add(attn_output, residual)
        residual = hidden_states
        hidden_states = self.ln_2(hidden_states)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = ops.add(residual, feed_forward_hidden_states)
        return hidden_states


class GPT2Model(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.wte = Embedding(build, config.vocab_size, config.n_embd)
        self.wpe = Embedding(build, config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = [GPT2Block(build, config, run, GPT2Attention) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(build, config.n_embd)
        for block in self.h:
            block.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        batch_size, seq_length = input_ids.shape
        inputs_embeds = owner.embed(self.wte, input_ids)
        position_ids = position_ids_of(seq_length)
        position_embeds = self.wpe(position_ids)
        hidden_states = ops.add(inputs_embeds, position_embeds)
        mask = causal_mask(self.kind, batch_size, seq_length, inputs_embeds.item)
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            hidden_states = block(hidden_states, mask)
        out: Tensor = self.ln_f(hidden_states)
        return out


def _gpt2(build: Build, config: Config, run: Run) -> CausalLM:
    transformer = GPT2Model(build, config, run)
    return DecoderLM(build, config, run, "transformer", transformer, transformer.wte, config.n_embd)


FAMILIES = (Family("gpt2", _gpt2, {}, ("c_attn", "c_proj", "c_fc"), ("c_attn", "c_proj")),)
