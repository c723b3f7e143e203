"""OPT: learned positions with an offset, biases everywhere, ReLU, the MLP on flattened rows.

Written along ``transformers/models/opt/modeling_opt.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from llmcheck.shadow import activations, ops
from llmcheck.shadow.attention import attention_interface, causal_mask
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Embedding, LayerNorm, Linear, Module
from llmcheck.shadow.tensor import Tensor

_OFFSET = 2  # OPTLearnedPositionalEmbedding keeps two rows more


class OPTLearnedPositionalEmbedding(Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return ops.embedding(self.weight, ops.add_scalar(ids))


class OPTAttention(Module):
    positional = 0

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        h = config.hidden_size
        self.head_dim = h // self.num_heads
        self.k_proj = Linear(build, h, h, config.enable_bias)
        self.v_proj = Linear(build, h, h, config.enable_bias)
        self.q_proj = Linear(build, h, h, config.enable_bias)
        self.out_proj = Linear(build, h, h, config.enable_bias)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        bsz, tgt_len, _ = hidden_states.shape
        query_states = ops.scale(self.q_proj(hidden_states))
        query_states = ops.transpose(ops.view(query_states, bsz, -1, self.num_heads, self.head_dim), 1, 2)
        key_states = self.k_proj(hidden_states)
        value_states = self.v_proj(hidden_states)
        key_states = ops.transpose(ops.view(key_states, bsz, -1, self.num_heads, self.head_dim), 1, 2)
        value_states = ops.transpose(ops.view(value_states, bsz, -1, self.num_heads, self.head_dim), 1, 2)
        attn_output, attn_weights = attention_interface(self.kind, query_states, key_states, value_states, attention_mask, self.dropout)
        attn_output = ops.contiguous(ops.reshape(attn_output, bsz, tgt_len, -1))
        attn_output = self.out_proj(attn_output)
        return attn_output, attn_weights


class OPTDecoderLayer(CheckpointedLayer):
    def __init__(self, build: Build, config: Config, run: Run) -> None:
        embed_dim, affine = config.hidden_size, config.layer_norm_elementwise_affine
        self.self_attn = OPTAttention(build, config, run)
        self.do_layer_norm_before = config.do_layer_norm_before
        self.dropout = config.dropout
        self.activation_fn = Activation(activations.get(config.activation_function))
        self.self_attn_layer_norm = LayerNorm(build, embed_dim, affine)
        self.fc1 = Linear(build, embed_dim, config.ffn_dim, config.enable_bias)
        self.fc2 = Linear(build, config.ffn_dim, embed_dim, config.enable_bias)
        self.final_layer_norm = LayerNorm(build, embed_dim, affine)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        residual = hidden_states
        if self.do_layer_norm_before:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, attention_mask)
        hidden_states = ops.dropout(hidden_states, self.dropout)
        hidden_states = ops.add(residual, hidden_states)
        if not self.do_layer_norm_before:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states_shape = hidden_states.shape
        hidden_states = ops.reshape(hidden_states, -1, hidden_states.shape[-1])
        residual = hidden_states
        if self.do_layer_norm_before:
            hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.fc1(hidden_states)
        hidden_states = self.activation_fn(hidden_states)
        hidden_states = self.fc2(hidden_states)
        hidden_states = ops.dropout(hidden_states, self.dropout)
        hidden_states = ops.view(ops.add(residual, hidden_states), *hidden_states_shape)
        if not self.do_layer_norm_before:
            hidden_states = self.final_layer_norm(hidden_states)
        return hidden_states


class OPTDecoder(Module):
    positional = 0

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        h, width = config.hidden_size, config.word_embed_proj_dim or config.hidden_size
        self.embed_tokens = Embedding(build, config.vocab_size, width)
        self.embed_positions = OPTLearnedPositionalEmbedding(build, config.max_position_embeddings + _OFFSET, h)
        self.project_out = Linear(build, h, width) if width != h else None
        self.project_in = Linear(build, width, h) if width != h else None
        final = config.do_layer_norm_before and not config._remove_final_layer_norm
        self.final_layer_norm = LayerNorm(build, h, config.layer_norm_elementwise_affine) if final else None
        self.layers = [OPTDecoderLayer(build, config, run) for _ in range(config.num_hidden_layers)]
        for layer in self.layers:
            layer.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.embed_tokens, input_ids)
        position_ids = Tensor(attention_mask.shape, 8)  # cumsum(mask) * mask - 1
        causal = causal_mask(self.kind, input_ids.shape[0], input_ids.shape[1], inputs_embeds.item)
        pos_embeds = self.embed_positions(position_ids)
        if self.project_in is not None:
            inputs_embeds = self.project_in(inputs_embeds)
        hidden_states = ops.add(inputs_embeds, pos_embeds)
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(hidden_states, causal)
        if self.final_layer_norm is not None:
            hidden_states = self.final_layer_norm(hidden_states)
        if self.project_out is not None:
            hidden_states = self.project_out(hidden_states)
        return hidden_states


class OPTModel(Module):
    """Only a container: the language model calls the decoder."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.decoder = OPTDecoder(build, config, run)


class OPTForCausalLM(DecoderLM):
    """The decoder is called past the model that holds it."""

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        model = OPTModel(build, config, run)
        width = config.word_embed_proj_dim or config.hidden_size
        super().__init__(build, config, run, "model", model, model.decoder.embed_tokens, width)

    @property
    def decoder(self) -> Module:
        found: Module = getattr(self, self.decoder_name).decoder
        return found


FAMILIES = (
    Family(
        "opt",
        OPTForCausalLM,
        {},
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        ("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
)
