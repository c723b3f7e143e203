"""Weights of 4 bits: what is merged and written is what was trained, whichever layers have adapters."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import peft
import pytest
import torch
from rig import SAMPLE, Ranks, arguments, make_data, make_model, make_plan, some_rows
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from llmcheck_trainer import export

GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes packs the weights")


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("family", "changes", "targets"),
    [
        ("llama", {}, "q_proj,v_proj"),
        ("qwen2", {}, "all-linear"),
        ("gpt_neox", {}, "query_key_value"),
        ("gpt2", GPT2, "c_attn"),
        ("gpt2", GPT2, "all-linear"),
    ],
)
def test_a_merged_model_says_what_the_trained_one_says(
    family: str, changes: dict[str, Any], targets: str, one: Ranks, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", family, **changes)
    options = ("--method", "qlora", "--lora-targets", targets, "--zero", "2")
    plan = make_plan(tmp_path / "plan.json", model, *options, gpus=1)
    data = make_data(tmp_path / "data", some_rows(20))
    (answer,) = one.call("train_in_4_bits", arguments(plan, data, tmp_path / "out", "--export", "merged", "--lr", "1e-2"))

    assert answer["code"] is None, answer
    trained = torch.tensor(answer["logits"])
    assert float((logits(model) - trained).abs().max()) > 1e-2
    torch.testing.assert_close(logits(tmp_path / "out" / "merged"), trained, rtol=1e-4, atol=1e-4)


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor(SAMPLE)[None]).logits[0]
    return found


class Net(torch.nn.Module):
    """Layers with and without adapters, packed and plain, one of them a Conv1D before it was packed."""

    config: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.adapted = torch.nn.Linear(6, 4)
        self.skipped = torch.nn.Linear(4, 5, bias=False)
        self.turned = torch.nn.Linear(5, 3)
        self.plain = torch.nn.Linear(3, 2)


def pack(layer: Any) -> None:
    """Make the layer's weight look like bitsandbytes', by another packing: a sign and an exponent."""
    whole = layer.weight.data
    layer.weight = torch.nn.Parameter(((whole < 0) * 16 - whole.abs().log2().floor() - 1).to(torch.uint8).view(-1, 1), requires_grad=False)
    layer.weight.quant_state = SimpleNamespace(shape=whole.shape, dtype=torch.bfloat16)


def unpacked(data: torch.Tensor, state: Any) -> torch.Tensor:
    number = data.to(torch.int32)
    return ((1 - 2 * (number // 16)) * 2.0 ** (-1 - number % 16).float()).view(state.shape).to(state.dtype)


def test_packed_layers_are_written_whole_with_and_without_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(2.0 ** -torch.randint(1, 8, parameter.shape) * (1 - 2 * torch.randint(0, 2, parameter.shape)))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    model: Any = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["adapted"], init_lora_weights=False))
    for layer in (net.adapted.base_layer, net.skipped, net.turned):
        pack(layer)
    net.turned.source_cls = Conv1D  # type: ignore[assignment]
    library: Any = ModuleType("bitsandbytes.functional")
    library.dequantize_4bit = unpacked
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", library)
    with torch.no_grad():
        change = net.adapted.get_delta_weight("default")  # type: ignore[operator]
        found = {name: tensor.clone() for name, tensor in export._merged(model.get_base_model())}
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in export._merged(model.get_base_model(), shapes_only=True)}

    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()}
    assert found.keys() == before.keys()
    expected = {**before, "adapted.weight": before["adapted.weight"] + change, "turned.weight": before["turned.weight"].t()}
    packed = [f"{name}.weight" for name in ("adapted", "skipped", "turned")]
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16 if name in packed else torch.float32)), name
