"""The auxiliary loss of a mixture of experts, where its configuration says ``output_router_logits``.

Written along ``load_balancing_loss_func`` of ``transformers/models/mixtral/modeling_mixtral.py`` (5.17); the router's logits of all layers
are part of the model's output, which lives until the caller drops it.
"""

from __future__ import annotations

from llmcheck.shadow import ops
from llmcheck.shadow.families.base import Config, Run
from llmcheck.shadow.families.llama import LlamaForCausalLM, LlamaModel
from llmcheck.shadow.module import Build, Module
from llmcheck.shadow.tensor import Tensor


class Router(Module):
    """A router: its logits are recorded while the model's forward runs, and not when a checkpoint runs it again."""

    recorded: list[Tensor] | None = None

    def record(self, router_logits: Tensor) -> None:
        """What ``OutputRecorder`` does."""
        if self.recorded is not None:
            self.recorded.append(router_logits)


class _Logits(Tensor):
    """The logits with the other parts of the output beside them."""

    __slots__ = ("router_logits",)

    def __init__(self, logits: Tensor, router_logits: list[Tensor]) -> None:
        super().__init__(logits.shape, logits.item, logits.st, logits.strides)
        self.router_logits = router_logits


class RoutedForCausalLM(LlamaForCausalLM):
    """A causal language model that adds the auxiliary loss."""

    def __init__(self, build: Build, config: Config, run: Run, model: LlamaModel) -> None:
        super().__init__(build, config, run, model)
        self.num_experts, self.top_k = getattr(config, "num_local_experts", None) or config.num_experts, config.num_experts_per_tok
        self.wanted = bool(config.output_router_logits) and run.loss == "hf"

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.wanted:
            return super().forward(ids, mask, labels)
        routers = [module for module in self.decoder.modules() if isinstance(module, Router)]
        router_logits: list[Tensor] = []
        for router in routers:
            router.recorded = router_logits
        loss, logits = super().forward(ids, mask, labels)
        for router in routers:
            router.recorded = None
        assert logits is not None
        loss = ops.add(loss, ops.scale(self._load_balancing_loss(router_logits, mask)))
        return loss, _Logits(logits, router_logits)

    def _load_balancing_loss(self, gate_logits: list[Tensor], attention_mask: Tensor) -> Tensor:
        tokens_per_expert_sum = Tensor((self.num_experts,), 4)
        router_prob_sum = Tensor((self.num_experts,), 4)
        flat_mask = Tensor((attention_mask.numel,), 4)
        for layer_gate in gate_logits:
            routing_weights = ops.softmax(layer_gate)
            _, selected_experts = ops.topk(routing_weights, self.top_k)
            repeated = Tensor((attention_mask.numel * self.top_k,), 4)
            counted = Tensor((self.num_experts,), 4)
            tokens_per_expert_sum = ops.add(tokens_per_expert_sum, counted)
            del repeated, counted
            router_prob_sum = ops.add(router_prob_sum, ops.sum_dim(ops.mul(ops.cast(routing_weights, 4), ops.unsqueeze(flat_mask, -1)), 0))
        del selected_experts
        tokens_per_expert = ops.scale(tokens_per_expert_sum)
        router_prob_per_expert = ops.scale(router_prob_sum)
        overall_loss = ops.sum_dim(ops.mul(tokens_per_expert, router_prob_per_expert), 0)
        return ops.scale(overall_loss)
