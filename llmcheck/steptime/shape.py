"""The shape of a decoder as the time model needs it.

Only what decides work is kept: linear layers, norms, activation kind, attention heads, experts, and how many modules Python
calls. It is independent of the memory simulation, which has its own, tensor-exact families.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# Values are NamedTuples here: a dataclass costs a millisecond at import, and tuples are hashed fast as keys of caches.
NormKind = Literal["rms", "layer"]  # RMSNorm is eight small kernels in eager PyTorch, LayerNorm one fused kernel
Activation = Literal["fused", "python"]  # one kernel, or a formula written out in Python (about nine)


class Linear(NamedTuple):
    """One ``nn.Linear`` (or Conv1D) of a layer. `peft` says whether peft can adapt it."""

    name: str  # the ending by which LoRA targets name it
    group: Literal["attention", "mlp"]
    in_features: int
    out_features: int
    bias: bool = False
    peft: bool = True

    @property
    def num_params(self) -> int:
        """Weight and bias."""
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)


class Experts(NamedTuple):
    """Routed experts kept as stacked 3-D parameters and run by grouped matrix products (transformers 5)."""

    num_experts: int
    top_k: int
    hidden: int
    intermediate: int
    gated: bool = True

    @property
    def num_params(self) -> int:
        """Router and experts of one layer."""
        return self.num_experts * (self.hidden + self.params_per_expert)

    @property
    def params_per_expert(self) -> int:
        """Parameters of one expert's MLP."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate


class Norm(NamedTuple):
    """A normalisation over `width` features per token, `heads` times."""

    width: int
    kind: NormKind
    params: int


class Layer(NamedTuple):
    """One decoder layer."""

    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    hidden: int
    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    rotary_dim: int  # features per head that are rotated; 0: none
    activation: Activation
    act_width: int  # features that pass the activation
    gated: bool
    experts: Experts | None = None
    window: int | None = None  # keys that a query sees at most
    extra_modules: int = 0  # dropouts and the like that Python still calls
    dropouts: int = 0  # of the residual branches, with a probability above zero: a kernel each

    @property
    def q_width(self) -> int:
        """Features of Q."""
        return self.num_heads * self.qk_head_dim

    @property
    def kv_width(self) -> int:
        """Features of K plus those of V."""
        return self.num_kv_heads * (self.qk_head_dim + self.v_head_dim)

    @property
    def num_modules(self) -> int:
        """Modules whose ``__call__`` runs once per forward: block, attention, MLP, linears, norms, activation, the rest."""
        experts = 2 if self.experts else 0
        return 3 + len(self.linears) + len(self.norms) + 1 + experts + self.extra_modules

    @property
    def num_params(self) -> int:
        """All parameters of the layer."""
        total = sum(li.num_params for li in self.linears) + sum(n.params for n in self.norms)
        return total + (self.experts.num_params if self.experts else 0)

    @property
    def num_tensors(self) -> int:
        """Parameter tensors of the layer."""
        own = sum(1 + li.bias for li in self.linears) + sum((n.kind == "layer" and n.params > n.width) + (n.params > 0) for n in self.norms)
        return own + (3 if self.experts else 0)

    @property
    def num_large_tensors(self) -> int:
        """Parameter tensors above ZeRO-3's persistence threshold (1e5 elements), that is: those gathered at each use."""
        return sum(li.in_features * li.out_features > 100_000 for li in self.linears) + (3 if self.experts else 0)


class Shape(NamedTuple):
    """A decoder: layers with their counts, embedding and head."""

    layers: tuple[tuple[Layer, int], ...]
    hidden: int
    vocab_size: int
    embed_dim: int  # width of the embedding rows (OPT-350m: not the hidden size)
    tied: bool
    num_position_rows: int  # learned positions, 0: none
    final_norm: Norm | None
    has_sdpa: bool  # False: transformers runs eager attention whatever is asked (BLOOM, MPT)
    trainer_sdpa: bool  # the bundled trainer has it instead (BLOOM)
    alibi: bool
    max_positions: int | None
    softcap: bool = False  # logits pass tanh (Gemma 2)
    other_params: int = 0  # embedding norm and similar

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return sum(count for _, count in self.layers)

    @property
    def num_embedding_params(self) -> int:
        """Token and learned position embeddings."""
        return self.vocab_size * self.embed_dim + self.num_position_rows * self.hidden

    @property
    def num_head_params(self) -> int:
        """The output projection, 0 where it is the embedding."""
        return 0 if self.tied else self.vocab_size * self.embed_dim

    @property
    def num_params(self) -> int:
        """Parameters of the shape as read here: a cross-check, the exact count is in :class:`ModelSpec`."""
        layers = sum(layer.num_params * count for layer, count in self.layers)
        norm = self.final_norm.params if self.final_norm else 0
        return layers + norm + self.num_embedding_params + self.num_head_params + self.other_params

    @property
    def num_tensors(self) -> int:
        """Parameter tensors."""
        return sum(layer.num_tensors * count for layer, count in self.layers) + 3
