"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one key and value head and plain linear layers.

Written along ``transformers/models/gpt_bigcode/modeling_gpt_bigcode.py`` (5.17), with the same local names, since they decide lifetimes.
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.attention import attention_interface, causal_mask, position_ids_of
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.families.gpt2 import GPT2Block, biased_linear
from llmcheck.shadow.module import Build, Dropout, Embedding, LayerNorm, Linear, Module
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


class GPTBigCodeModel(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run) -> None:
        self.kind = run.attention
        self.wte = Embedding(build, config.vocab_size, config.n_embd)
        self.wpe = Embedding(build, config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = [GPT2Block(build, config, run, GPTBigCodeAttention, biased_linear) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(build, config.n_embd)
        ones = Tensor((config.n_positions, config.n_positions), 1)
        self.bias = Tensor(ones.shape, 1)  # the lower triangle, kept though no attention reads it
        del ones
        for block in self.h:
            block.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.wte, input_ids)
        position_ids = position_ids_of(input_ids.shape[1])
        mask = causal_mask(self.kind, input_ids.shape[0], input_ids.shape[1], inputs_embeds.item)
        position_embeds = self.wpe(position_ids)
        hidden_states = ops.add(inputs_embeds, position_embeds)
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            hidden_states = block(hidden_states, mask)
        out: Tensor = self.ln_f(hidden_states)
        return out


def _gpt_bigcode(build: Build, config: Config, run: Run) -> CausalLM:
    transformer = GPTBigCodeModel(build, config, run)
    return DecoderLM(build, config, run, "transformer", transformer, transformer.wte, config.n_embd)


FAMILIES = (Family("gpt_bigcode", _gpt_bigcode, {}, ("c_attn", "c_proj", "c_fc"), ("c_attn", "c_proj")),)
