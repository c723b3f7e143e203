"""The adapters' forward is peft's: value and gradients, with dropout, bias and checkpointing; what it does not know it leaves alone."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from llmcheck_trainer import lora


class Net(torch.nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = torch.nn.Linear(12, 20, bias=bias)
        self.second = torch.nn.Linear(20, 7, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return hidden


def adapted(*, bias: bool = False, dropout: float = 0.0, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["first", "second"], **more)
    model = peft.get_peft_model(Net(bias).to(dtype), config, autocast_adapter_dtype=False).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def outcome(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(11)  # of the dropout
    x = x.clone().requires_grad_()
    out = model(x)
    model.zero_grad()
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    assert x.grad is not None
    return out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, x.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_values_and_gradients_are_pefts(bias: bool, dropout: float) -> None:
    model, x = adapted(bias=bias, dropout=dropout), torch.randn(3, 5, 12, dtype=torch.float64)
    expected = outcome(model, x)

    assert lora.install(model) == 2
    found = outcome(model, x)

    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert len(found[1]) == 4


def test_it_keeps_for_the_backward_pass_what_peft_keeps() -> None:
    kept: list[int] = []
    model, x = adapted(), torch.randn(2, 9, 12, dtype=torch.float64, requires_grad=True)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def count() -> int:
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept.append(float(model(x).sum()))  # type: ignore[arg-type]
        return sum(seen.values())

    before = count()
    lora.install(model)

    assert count() == before


def test_switched_off_adapters_stay_off() -> None:
    model, x = adapted(), torch.randn(4, 12, dtype=torch.float64)
    lora.install(model)

    base = model.get_base_model()
    with model.disable_adapter():
        torch.testing.assert_close(model(x), base.second.base_layer(torch.tanh(base.first.base_layer(x))))


def test_merged_adapters_are_not_added_again() -> None:
    model, x = adapted(), torch.randn(4, 12, dtype=torch.float64)
    lora.install(model)
    before = model(x)
    model.merge_adapter()

    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_keep_pefts_forward(more: dict[str, Any]) -> None:
    assert lora.install(adapted(bias=True, **more)) == 0
