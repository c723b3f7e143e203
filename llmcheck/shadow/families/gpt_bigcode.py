"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one key and value head and plain linear layers.

Written along ``transformers/models/gpt_bigcode/modeling_gpt_bigcode.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from llmcheck.shadow import activations, ops
from llmcheck.shadow.attention import attention_interface, causal_mask
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.loss import head_and_loss
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Dropout, Embedding, LayerNorm, Linear, Module
from llmcheck.shadow.tensor import Tensor


class GPTBigCodeAttention(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.multi_query = config.multi_query
        self.embed_dim = config.n_embd
        self.num_heads = config.n_head
        self.head_dim = self.embed_dim // self.num_heads
        self.kv_dim = self.head_dim if self.multi_query else self.embed_dim
        self.c_attn = Linear(build, self.embed_dim, self.embed_dim + 2 * self.kv_dim, True)
        self.c_proj = Linear(build, self.embed_dim, self.embed_dim, True)
        self.attn_dropout = config.attn_pdrop
        self.resid_dropout = Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        if self.multi_query:
            query, key, value = ops.split(ops.unsqueeze(self.c_attn(hidden_states), 1), (self.embed_dim, self.kv_dim, self.kv_dim), 3)
            query = ops.transpose(ops.view(query, *input_shape, -1, self.head_dim), 1, 2)
        else:
            query, key, value = ops.split(
                ops.transpose(ops.view(self.c_attn(hidden_states), *input_shape, self.num_heads, 3 * self.head_dim), 1, 2),
                (self.head_dim,) * 3,
                3,
            )
        attn_output, attn_weights = attention_interface(self.kind, query, key, value, attention_mask, self.attn_dropout)
        attn_output = ops.contiguous(ops.reshape(attn_output, *input_shape, -1))
        attn_output = self.c_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        return attn_output, attn_weights


class GPTBigCodeMLP(Module):
    def __init__(self, build: Build, intermediate_size: int, config: Config) -> None:
        self.c_fc = Linear(build, config.n_embd, intermediate_size, True)
        self.c_proj = Linear(build, intermediate_size, config.n_embd, True)
        self.act = Activation(activations.get(config.activation_function))
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states


class GPTBigCodeBlock(CheckpointedLayer):
    def __init__(self, build: Build, config: Config, run: Run) -> None:
        inner_dim = config.n_inner if config.n_inner is not None else 4 * config.n_embd
        self.ln_1 = LayerNorm(build, config.n_embd)
        self.attn = GPTBigCodeAttention(build, config, run)
        self.ln_2 = LayerNorm(build, config.n_embd)
        self.mlp = GPTBigCodeMLP(build, inner_dim, config)

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


class GPTBigCodeModel(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.wte = Embedding(build, config.vocab_size, config.n_embd)
        self.wpe = Embedding(build, config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = [GPTBigCodeBlock(build, config, run) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(build, config.n_embd)
        ones = Tensor((config.n_positions, config.n_positions), 1)
        self.bias = Tensor(ones.shape, 1)  # the lower triangle, kept though no attention reads it
        del ones
        for block in self.h:
            block.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.wte, input_ids)
        position_ids = Tensor((1, input_ids.shape[1]), 8)
        mask = causal_mask(self.kind, input_ids.shape[0], input_ids.shape[1], inputs_embeds.item)
        position_embeds = self.wpe(position_ids)
        hidden_states = ops.add(inputs_embeds, position_embeds)
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            hidden_states = block(hidden_states, mask)
        out: Tensor = self.ln_f(hidden_states)
        return out


class GPTBigCodeForCausalLM(CausalLM):
    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.loss = run.loss
        self.transformer = GPTBigCodeModel(build, config, run)
        self.lm_head = Linear(build, config.n_embd, config.vocab_size)
        if config.tie_word_embeddings:
            build.tied(self.lm_head, "weight", self.transformer.wte.weight)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden_states = self.transformer(ids, mask, self)
        return head_and_loss(self.lm_head, hidden_states, labels, self.loss)


FAMILIES = (Family("gpt_bigcode", GPTBigCodeForCausalLM, {}, ("c_attn", "c_proj", "c_fc"), ("c_attn", "c_proj")),)
