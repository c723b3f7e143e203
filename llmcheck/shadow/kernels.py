"""Buffers that CUDA kernels and libraries allocate inside an operator, by GPU.

Sources: ATen (``native/cuda/Reduce.cuh``, ``layer_norm_kernel.cu``, ``EmbeddingBackwardKernel.cu``, ``transformers/cuda/attention*.cu``),
``CUDABlas.cpp`` of torch 2.11, and the allocator traces of an H100.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmcheck.shadow.tape import Storage, cur
from llmcheck.types import GpuSpec
from llmcheck.units import ceil_div, round_up

# Resident threads of one multiprocessor, by compute capability (CUDA C programming guide, table "Technical Specifications").
_THREADS_PER_SM = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
MIB = 1 << 20
_UNSORTED_INDICES = 3072  # EmbeddingBackwardKernel's limit: so many indices have their gradient summed without a sort (Embedding.cu)
_ROWS_PER_PARTIAL_SUM = 10  # NROWS_PER_THREAD, EmbeddingBackwardKernel.cu


def _last_pow2(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


@dataclass
class Kernels:
    """State of one simulated process on one kind of GPU."""

    num_sms: int
    threads_per_sm: int
    cublas_workspace_bytes: int
    sdpa_backends: tuple[str, ...]  # in the order in which torch tries them
    fp16: bool = False
    cudnn_head_dim: int = 256  # the widest head that torch gives to cuDNN's attention
    rows: bool = True  # the flash kernel takes rows by their bounds

    def __post_init__(self) -> None:
        self._cublas: dict[bool, Storage] = {}
        self._lt: dict[bool, Storage] = {}
        self.in_backward = False

    def matmul_workspace(self, lt: bool) -> None:
        """The first product of a thread allocates cuBLAS' workspace; the first one with a fused bias cuBLASLt's (1 MiB)."""
        if self.in_backward not in self._cublas:  # cuBLASLt's handle is cuBLAS' handle: asking for it makes this one's workspace too
            before, cur.category = cur.category, "workspace"
            self._cublas[self.in_backward] = Storage(self.cublas_workspace_bytes)
            cur.category = before
        if lt and self.in_backward not in self._lt:
            before, cur.category = cur.category, "workspace"
            self._lt[self.in_backward] = Storage(MIB)
            cur.category = before

    def reduction_buffer_bytes(self, rows: int, cols: int) -> int:
        """Cross-block buffer of a sum over the rows of a [rows, cols] tensor (`setReduceConfig`, fp32 accumulation)."""
        vec = 4 if cols % 4 == 0 else 2 if cols % 2 == 0 else 1
        threads = 512 // vec
        dim0 = cols // vec
        pow0 = _last_pow2(dim0) if dim0 < threads else threads
        pow1 = _last_pow2(rows) if rows < threads else threads
        width = min(pow0, 32)
        height = min(pow1, threads // width)
        width = min(pow0, threads // height)
        if rows < height * 16 and rows < 256:
            return 0
        per_thread = ceil_div(rows, height)
        grid = ceil_div(dim0, width)
        target = self.num_sms * (self.threads_per_sm // (width * height))
        if per_thread < 256 or grid > target:
            return 0
        ctas = max(min(ceil_div(target, grid), ceil_div(per_thread, 16)), ceil_div(per_thread, 256))
        return 4 * cols * ctas * width * vec if ctas > 1 else 0

    def layer_norm_partial_bytes(self, rows: int, cols: int, item: int) -> tuple[int, ...]:
        """Partial sums of gamma's and beta's gradients: only where few columns meet many rows."""
        if rows > 64 * 1024 and cols // 32 < self.num_sms // 2:
            parts = self.num_sms // 2
            return (4 * parts * cols, 4 * parts * cols)
        return ()

    def embedding_sort(self, rows: int) -> tuple[Storage, ...]:
        """The indices of a dense embedding gradient, sorted, and where each came from; kept until the gradient is there.

        At most 3072 of them are not sorted. The sort itself has the places to be sorted along and a second buffer of both.
        Source: ``embedding_dense_backward_cuda``, Embedding.cu.
        """
        if rows <= _UNSORTED_INDICES:
            return ()
        kept = Storage(8 * rows), Storage(8 * rows)
        scratch = Storage(8 * rows), Storage(16 * rows)
        del scratch
        return kept

    def embedding_segments(self, rows: int, vocab: int, cols: int) -> None:
        """Sums of the sorted rows in fp32, for each of at most ten equal indices, before they are scattered.

        Sizes are of the most segments that there can be: the kernel does not wait for their number. Source:
        ``embedding_backward_cuda_kernel``, EmbeddingBackwardKernel.cu; 37.0 MB of 4096 rows of 2048 were measured (benchmarks/probe).
        """
        if rows <= _UNSORTED_INDICES:
            return
        segments = min(rows, vocab)
        partial = rows // _ROWS_PER_PARTIAL_SUM + segments
        offsets = [Storage(size) for size in (8 * rows, 8, 8 * segments, 8 * segments, 8, 8 * partial)]
        sums = Storage(4 * partial * cols)
        del offsets, sums


def kernels_for(gpu: GpuSpec, *, fp16: bool = False) -> Kernels:
    """The kernel behaviour of `gpu`.

    cuBLAS workspace: 32 MiB on Hopper (read off our traces), 8.125 MiB on older cards (``:4096:2:16:8``, CUDABlas.cpp).
    """
    hopper = gpu.compute_capability[0] >= 9
    order: tuple[str, ...] = ("flash", "efficient", "math")
    if gpu.compute_capability[0] in (9, 10):
        order = ("cudnn", *order)
    if gpu.compute_capability < (8, 0):
        order = ("efficient", "math")
    return Kernels(
        num_sms=gpu.num_sms,
        threads_per_sm=_THREADS_PER_SM.get(gpu.compute_capability, 2048),
        cublas_workspace_bytes=32 * MIB if hopper else 4096 * 1024 * 2 + 16 * 1024 * 8,
        sdpa_backends=order,
        fp16=fp16,
        # seen on an H100 with torch 2.11: 256; other cards keep the limit from before (sdp_utils.cpp, check_cudnn_tensor_shapes)
        cudnn_head_dim=256 if gpu.compute_capability == (9, 0) else 128,
        rows=gpu.compute_capability >= (8, 0),
    )


def flash_backward_buffers(batch: int, heads: int, seq: int, head_dim: int) -> tuple[int, int]:
    """FlashAttention-2's fp32 dq accumulator and softmax_d, bytes."""
    rounded = round_up(seq, 128)
    return 4 * batch * heads * rounded * round_up(head_dim, 32), 4 * batch * heads * rounded
