"""The kernel of the chunked loss does what loss.py does without it. Needs a GPU, or Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os

import pytest
import torch

from llmcheck_trainer import loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="Triton's kernels run on GPUs, or in its interpreter"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("vocab", [7, 8192, 20_001])
def test_it_is_the_loss_without_it(dtype: torch.dtype, softcap: float | None, vocab: int) -> None:
    kernel = pytest.importorskip("llmcheck_trainer.softmax_kernel", exc_type=ImportError)
    torch.manual_seed(vocab)
    logits = 3 * torch.randn(9, vocab)
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)).to(dtype).to(DEVICE)
    targets = torch.randint(0, vocab, (9,))
    targets[3] = loss.IGNORED
    factors = ((targets != loss.IGNORED).float() * 0.5).to(DEVICE)
    targets = targets.to(DEVICE)
    plain, fused, looked_at = logits.clone(), logits.clone(), logits.clone()

    expected = loss._cross_entropy_(plain, targets, factors, softcap=softcap, grad=True)
    found = kernel.cross_entropy_(fused, targets, factors, softcap=softcap, grad=True)

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused, plain, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    assert float(fused[3].abs().max()) == 0.0
    torch.testing.assert_close(kernel.cross_entropy_(looked_at, targets, factors, softcap=softcap, grad=False), found)
    assert torch.equal(looked_at, logits)
