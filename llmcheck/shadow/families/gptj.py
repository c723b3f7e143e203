"""GPT-J and CodeGen: parallel attention and MLP behind one norm, interleaved rotary positions from a table, eager attention in fp32.

Written along ``transformers/models/gptj/modeling_gptj.py`` and ``models/codegen/modeling_codegen.py`` (5.17), with the same local names,
since they decide lifetimes.
"""

from __future__ import annotations

from llmcheck.shadow import activations, ops
from llmcheck.shadow.attention import causal_mask, flash_attention_forward, position_ids_of
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run, attention_kind
from llmcheck.shadow.families.decoder import DecoderLM
from llmcheck.shadow.module import Activation, Build, CheckpointedLayer, Dropout, Embedding, LayerNorm, Linear, Module
from llmcheck.shadow.tensor import Tensor


def create_sinusoidal_positions(num_pos: int, dim: int) -> Tensor:
    """The fp32 table of sines and cosines that each layer keeps, [positions, dim]."""
    positions = Tensor((num_pos,), 8)
    positions = Tensor((num_pos,), 4)
    sinusoid_inp = Tensor((num_pos, dim // 2), 4)
    del positions
    return ops.cat((ops.unary(sinusoid_inp), ops.unary(sinusoid_inp)), 1)


def rotate_every_two(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    x1 = ops.narrow(x, -1, half, 2)
    x2 = ops.narrow(x, -1, half, 2)
    x = ops.stack((ops.neg(x2), x1))
    return ops.view(x, *x.shape[:-2], -1)


def apply_rotary_pos_emb(tensor: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    sin = ops.repeat_interleave(ops.unsqueeze(sin, 2), 2, 3)
    cos = ops.repeat_interleave(ops.unsqueeze(cos, 2), 2, 3)
    return ops.add(ops.mul(tensor, cos), ops.mul(rotate_every_two(tensor), sin))


def merge_heads(tensor: Tensor) -> Tensor:
    tensor = ops.contiguous(ops.permute(tensor, 0, 2, 1, 3))
    return ops.view(tensor, *tensor.shape[:-2], -1)


class GPTJAttention(Module):
    positional = 0

    def __init__(self, build: Build, config: Config, kind: str) -> None:
        self.kind = kind
        self.attn_dropout = Dropout(config.attn_pdrop)
        self.resid_dropout = Dropout(config.resid_pdrop)
        h = config.n_embd
        self.num_attention_heads = config.n_head
        self.head_dim = h // config.n_head
        self.make_projections(build, h)
        self.rotary_dim = config.rotary_dim
        self.embed_positions = create_sinusoidal_positions(config.n_positions, config.rotary_dim)

    def make_projections(self, build: Build, h: int) -> None:
        self.k_proj = Linear(build, h, h)
        self.v_proj = Linear(build, h, h)
        self.q_proj = Linear(build, h, h)
        self.out_proj = Linear(build, h, h)

    def _split_heads(self, tensor: Tensor, rotary: bool) -> Tensor:
        tensor = ops.view(tensor, *tensor.shape[:-1], self.num_attention_heads, self.head_dim)
        return tensor if rotary else ops.permute(tensor, 0, 2, 1, 3)

    def _attn(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        query = ops.cast(query, 4)
        key = ops.cast(key, 4)
        attn_weights = ops.matmul(query, ops.transpose(key, -1, -2))
        attn_weights = ops.scale(attn_weights)
        if attention_mask is not None:
            attn_weights = ops.add(attn_weights, attention_mask)
        attn_weights = ops.softmax(attn_weights)
        attn_weights = ops.cast(attn_weights, value.item)
        attn_weights = self.attn_dropout(attn_weights)
        attn_output = ops.matmul(attn_weights, value)
        return attn_output, attn_weights

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        query = self.q_proj(hidden_states)
        key = self.k_proj(hidden_states)
        value = self.v_proj(hidden_states)
        query = self._split_heads(query, True)
        key = self._split_heads(key, True)
        value = self._split_heads(value, False)
        rows, dim = self.embed_positions.shape
        embed_positions = Tensor((1, rows, dim), 4)
        repeated_position_ids = Tensor((*position_ids.shape, dim), 8)
        sincos = ops.cast(Tensor(repeated_position_ids.shape, 4), key.item)
        sin, cos = ops.split(sincos, (dim // 2,) * 2)
        rest = self.head_dim - self.rotary_dim
        k_rot = ops.narrow(key, -1, self.rotary_dim)
        k_pass = ops.narrow(key, -1, rest)
        q_rot = ops.narrow(query, -1, self.rotary_dim)
        q_pass = ops.narrow(query, -1, rest)
        k_rot = apply_rotary_pos_emb(k_rot, sin, cos)
        q_rot = apply_rotary_pos_emb(q_rot, sin, cos)
        key = ops.cat((k_rot, k_pass))
        query = ops.cat((q_rot, q_pass))
        key = ops.permute(key, 0, 2, 1, 3)
        query = ops.permute(query, 0, 2, 1, 3)
        if self.kind == "flash":
            attn_weights = flash_attention_forward(query, key, value, self.attn_dropout.p)
            attn_output = ops.reshape(attn_weights, *attn_weights.shape[:2], -1)
        else:
            attn_output, attn_weights = self._attn(query, key, value, attention_mask)
            attn_output = merge_heads(attn_output)
        attn_output = self.out_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        del embed_positions
        return attn_output, attn_weights


_PARTS = 4  # CodeGen's fused projection is laid out for four devices


class CodeGenAttention(GPTJAttention):
    def make_projections(self, build: Build, h: int) -> None:
        self.qkv_proj = Linear(build, h, 3 * h)
        self.out_proj = Linear(build, h, h)

    def _split_parts(self, x: Tensor) -> Tensor:
        reshaped = ops.reshape(x, *x.shape[:-1], self.num_attention_heads // _PARTS, self.head_dim)
        reshaped = ops.reshape(reshaped, *x.shape[:-2], -1, reshaped.shape[-1])
        return reshaped

    def _attn(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        query = ops.cast(query, 4)
        key = ops.cast(key, 4)
        attn_weights = ops.matmul(query, ops.transpose(key, -1, -2))
        if attention_mask is not None:
            attn_weights = ops.add(attn_weights, attention_mask)
        attn_weights = ops.scale(attn_weights)
        attn_weights = ops.softmax(attn_weights)
        attn_weights = ops.cast(attn_weights, value.item)
        attn_weights = self.attn_dropout(attn_weights)
        attn_output = ops.matmul(attn_weights, value)
        return attn_output, attn_weights

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        qkv = self.qkv_proj(hidden_states)
        qkv_split = ops.reshape(qkv, *qkv.shape[:-1], _PARTS, -1)
        local_dim = self.head_dim * self.num_attention_heads // _PARTS
        query, value, key = ops.split(qkv_split, (local_dim,) * 3)
        query = self._split_parts(query)
        key = self._split_parts(key)
        value = self._split_parts(value)
        value = ops.permute(value, 0, 2, 1, 3)
        dim = self.embed_positions.shape[-1]
        sincos = Tensor((*position_ids.shape, dim), 4)
        sin, cos = ops.split(sincos, (dim // 2,) * 2)
        rest = self.head_dim - self.rotary_dim
        k_rot = ops.narrow(key, -1, self.rotary_dim)
        k_pass = ops.narrow(key, -1, rest)
        q_rot = ops.narrow(query, -1, self.rotary_dim)
        q_pass = ops.narrow(query, -1, rest)
        k_rot = apply_rotary_pos_emb(k_rot, sin, cos)
        q_rot = apply_rotary_pos_emb(q_rot, sin, cos)
        key = ops.cat((k_rot, k_pass))
        query = ops.cat((q_rot, q_pass))
        key = ops.permute(key, 0, 2, 1, 3)
        query = ops.permute(query, 0, 2, 1, 3)
        attn_output, attn_weights = self._attn(query, key, value, attention_mask)
        attn_output = merge_heads(attn_output)
        attn_output = self.out_proj(attn_output)
        attn_output = self.resid_dropout(attn_output)
        return attn_output, attn_weights


class GPTJMLP(Module):
    def __init__(self, build: Build, intermediate_size: int, config: Config) -> None:
        self.fc_in = Linear(build, config.n_embd, intermediate_size, True)
        self.fc_out = Linear(build, intermediate_size, config.n_embd, True)
        self.act = Activation(activations.get(config.activation_function))
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.fc_in(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.fc_out(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states


class GPTJBlock(CheckpointedLayer):
    def __init__(self, build: Build, config: Config, kind: str, attention: type[GPTJAttention]) -> None:
        inner_dim = config.n_inner if config.n_inner is not None else 4 * config.n_embd
        self.ln_1 = LayerNorm(build, config.n_embd)
        self.attn = attention(build, config, kind)
        self.mlp = GPTJMLP(build, inner_dim, config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_outputs, attn_weights = self.attn(hidden_states, attention_mask, position_ids)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = ops.add(ops.add(attn_outputs, feed_forward_hidden_states), residual)
        return hidden_states, attn_weights


class GPTJModel(Module):
    positional = 1

    def __init__(self, build: Build, config: Config, run: Run, kind: str, attention: type[GPTJAttention]) -> None:
        self.kind = kind
        self.wte = Embedding(build, config.vocab_size, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = [GPTJBlock(build, config, kind, attention) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(build, config.n_embd)
        for block in self.h:
            block.checkpointed = run.checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owner: CausalLM) -> Tensor:
        inputs_embeds = owner.embed(self.wte, input_ids)
        position_ids = position_ids_of(input_ids.shape[1])
        mask = causal_mask(self.kind, input_ids.shape[0], input_ids.shape[1], inputs_embeds.item)
        hidden_states = inputs_embeds
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            outputs = block(hidden_states, mask, position_ids)
            hidden_states = outputs[0]
        out: Tensor = self.ln_f(hidden_states)
        return out


def _with_head(build: Build, config: Config, run: Run, kind: str, attention: type[GPTJAttention]) -> CausalLM:
    transformer = GPTJModel(build, config, run, kind, attention)
    return DecoderLM(build, config, run, "transformer", transformer, transformer.wte, config.n_embd, bias=True)


def _gptj(build: Build, config: Config, run: Run) -> CausalLM:
    return _with_head(build, config, run, attention_kind(run, "GPT-J", sdpa=False), GPTJAttention)


def _codegen(build: Build, config: Config, run: Run) -> CausalLM:
    return _with_head(build, config, run, attention_kind(run, "CodeGen", sdpa=False, flash=False), CodeGenAttention)


FAMILIES = (
    Family(
        "gptj",
        _gptj,
        {},
        ("k_proj", "v_proj", "q_proj", "out_proj", "fc_in", "fc_out"),
        ("k_proj", "v_proj", "q_proj", "out_proj"),
        supports_sdpa=False,
    ),
    Family("codegen", _codegen, {}, ("qkv_proj", "out_proj", "fc_in", "fc_out"), ("qkv_proj", "out_proj"), supports_sdpa=False),
)
