"""What this GPU and its host reach: matrix products by shape, attention, memory, copies, kernel starts. `llmcheck probe --calibrate`.

Only measurements are written (``llmcheck.profile/1``); `llmcheck plan --profile FILE` turns them into the rates of its time model.
Products run in bursts long enough for the power limit to act, as it does in training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck_trainer import receipt
from llmcheck_trainer.probe import failure, write

SCHEMA = "llmcheck.profile/1"
BUDGET_S = 50.0  # for all measurements; what is left when it is used up is not measured
BURST_S = 0.4  # seconds of one kernel after another for a rate
WARM_S = 2.0  # of large products at first: until then clocks and temperature are not those of training
REPEATS = 5  # bursts of short measurements, of which the median counts
NUM_TINY_OPS = 2000

# (tokens, outputs, inputs): squares, and the projections, MLP and head of models from 1 B to 13 B at 1k to 8k tokens.
PRODUCTS = (
    (8192, 8192, 8192),
    (4096, 4096, 4096),
    (2048, 2048, 2048),
    (1024, 1024, 1024),
    (1024, 4096, 4096),
    (2048, 4096, 4096),
    (8192, 4096, 4096),
    (2048, 11008, 4096),
    (2048, 4096, 11008),
    (4096, 13824, 5120),
    (2048, 8192, 2048),
    (2048, 32000, 4096),
    (1024, 128256, 2048),
)
# (sequences, heads, tokens, width of a head)
ATTENTIONS = ((4, 32, 1024, 128), (2, 32, 2048, 128), (1, 32, 8192, 128), (4, 16, 2048, 64))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure this GPU into `--out`; returns 0, or the exit code of the error that the file then holds."""
    parser = argparse.ArgumentParser(prog="python -m llmcheck_trainer.calibrate", allow_abbrev=False)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    try:
        write(args.out, calibrate())
        return 0
    except UserError as error:
        write(args.out, failure(error))
        return error.exit_code


def calibrate(budget_s: float = BUDGET_S) -> dict[str, Any]:
    """The profile. Raises CouldNotCheckError without a GPU."""
    if not torch.cuda.is_available():
        raise CouldNotCheckError(
            "PyTorch sees no GPU here", code="no-gpu", where="llmcheck probe --calibrate", hint="run it on the machine that will train"
        )
    until = time.perf_counter() + budget_s
    properties = torch.cuda.get_device_properties(0)
    precisions = ("bf16", "fp16", "fp32") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp16", "fp32")
    _warm_up(DTYPES[precisions[0]])
    return {
        "schema": SCHEMA,
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": [properties.major, properties.minor],
        "num_sms": properties.multi_processor_count,
        "versions": receipt.versions(),
        "products": list(_products(precisions, until)),
        "attention": list(_attention(precisions, until)),
        "memory_bytes_per_s": _memory(),
        "copy_bytes_per_s": _copies(),
        "kernel_s": _kernel(),
        "op_s": _op(),
    }


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _burst(call: Callable[[], Any], seconds: float = BURST_S) -> float:
    """Seconds of one `call` when it is made over and over for `seconds`, by the device's clock."""
    call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    number = max(3, min(20_000, int(seconds / (time.perf_counter() - began))))
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(number):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / number


def _warm_up(dtype: torch.dtype) -> None:
    square = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    _burst(partial(torch.mm, square, square), WARM_S)


def _products(precisions: Sequence[str], until: float) -> Iterator[dict[str, Any]]:
    for precision in precisions:
        for m, n, k in PRODUCTS[: 4 if precision == "fp32" else None]:
            if time.perf_counter() > until:
                return
            a = torch.randn(m, k, device="cuda", dtype=DTYPES[precision])
            b = torch.randn(n, k, device="cuda", dtype=DTYPES[precision]).t()
            out = torch.empty(m, n, device="cuda", dtype=DTYPES[precision])
            yield {"precision": precision, "m": m, "n": n, "k": k, "time_s": _burst(partial(torch.mm, a, b, out=out))}


def _attention(precisions: Sequence[str], until: float) -> Iterator[dict[str, Any]]:
    """Causal attention in the first precision: forward alone, and backward as what both take beyond it."""
    precision = precisions[0]
    for batch, heads, seq_len, head_dim in ATTENTIONS:
        if time.perf_counter() > until:
            return
        q, k, v = (torch.randn(batch, heads, seq_len, head_dim, device="cuda", dtype=DTYPES[precision]) for _ in range(3))
        forward = _burst(partial(F.scaled_dot_product_attention, q, k, v, is_causal=True))
        for tensor in (q, k, v):
            tensor.requires_grad_()
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        gradient = torch.randn_like(out)
        backward = _burst(partial(torch.autograd.grad, out, (q, k, v), gradient, retain_graph=True))
        shape = {"precision": precision, "batch": batch, "heads": heads, "seq_len": seq_len, "head_dim": head_dim}
        yield {**shape, "forward_s": forward, "backward_s": backward}


def _memory() -> float:
    """Bytes a second of element-wise kernels, reads and writes together."""
    size = min(1 << 30, torch.cuda.mem_get_info()[0] // 8)
    a, b, out = (torch.empty(size // 2, device="cuda", dtype=torch.float16).zero_() for _ in range(3))
    return 3 * size / _burst(lambda: torch.add(a, b, out=out))


def _copies() -> float:
    """Bytes a second between pinned host memory and the device, the slower direction."""
    size = 256 << 20
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(size, dtype=torch.uint8, device="cuda")
    down = _burst(lambda: device.copy_(host, non_blocking=True))
    up = _burst(lambda: host.copy_(device, non_blocking=True))
    return size / max(down, up)


def _kernel() -> float:
    """Seconds from one tiny kernel to the next when the host does not hold them up: replayed as a graph."""
    x = torch.zeros(16, device="cuda")
    x.add_(1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(NUM_TINY_OPS):
            x.add_(1.0)
    return _burst(graph.replay) / NUM_TINY_OPS


def _op() -> float:
    """Seconds that this host needs for an operator with a gradient and a tiny kernel: Python, dispatch, autograd, allocation, launch."""
    x = torch.zeros(16, device="cuda", requires_grad=True)
    found = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        y = x
        for _ in range(NUM_TINY_OPS):
            y = y * 1.5
        found.append((time.perf_counter() - began) / NUM_TINY_OPS)
        del y
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
