"""A measured profile (``llmcheck.profile/1``, `llmcheck probe --calibrate`) as the rates of the time model, and back to a file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmcheck.errors import UserError
from llmcheck.shadow.pace import constants
from llmcheck.steptime.flops import Matmul
from llmcheck.steptime.hostside import HostRates
from llmcheck.steptime.kernels import GpuRates, matmul_s
from llmcheck.types import GpuSpec, Precision

SCHEMA = "llmcheck.profile/1"
_ROUNDS = 4  # of fitting one rate to the products; they also have a fixed part, so one round does not meet it
_BACKWARD_PRODUCTS = 2.5  # five matrix products for the forward's two
_ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
_SAME_MEMORY_FRACTION = 0.08  # what drivers report of one board differs by less, boards of one name by more


@dataclass(frozen=True, kw_only=True)
class Product:
    """A measured matrix product [m, k] x [k, n]."""

    precision: Precision
    m: int
    n: int
    k: int
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Attention:
    """A measured causal attention."""

    precision: Precision
    batch: int
    heads: int
    seq_len: int
    head_dim: int
    forward_s: float
    backward_s: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one GPU and its host reach. Bytes a second, seconds."""

    schema: str
    device: str
    memory_bytes: int
    compute_capability: tuple[int, int]
    num_sms: int
    versions: Mapping[str, str | None]
    products: tuple[Product, ...]
    attention: tuple[Attention, ...]
    memory_bytes_per_s: float
    copy_bytes_per_s: float
    kernel_s: float
    op_s: float


def profile_of(document: Mapping[str, Any], where: str) -> Profile:
    """The profile in a document. Raises UserError that names every problem."""
    from llmcheck.codec import from_plain

    if document.get("schema") != SCHEMA:
        raise UserError(
            f"{where} is not a profile that this llmcheck reads",
            code="profile-schema",
            where=where,
            why=f"its schema is {document.get('schema')!r}, expected {SCHEMA!r}",
            hint="`llmcheck probe --calibrate` writes one",
        )
    problems: list[str] = []
    found = from_plain(Profile, dict(document), "profile", problems)
    if found is not None:
        rates = (found.memory_bytes_per_s, found.copy_bytes_per_s, found.kernel_s, found.op_s)
        sizes: list[tuple[float, ...]] = [(x.time_s, x.m, x.n, x.k) for x in found.products]
        sizes += [(x.forward_s, x.backward_s, x.batch, x.heads, x.seq_len, x.head_dim) for x in found.attention]
        if not all(value > 0 for row in (rates, *sizes) for value in row) or not found.products:
            problems.append("a rate, a time or a size is not above zero")
    if found is None or problems:
        raise UserError(
            f"{where} is not a valid profile",
            code="profile-invalid",
            where=where,
            why="; ".join(problems[:8]),
            hint="measure again with `llmcheck probe --calibrate`",
        )
    return found


def is_profile(data: bytes) -> bool:
    """Whether `data` is a profile as `llmcheck probe --calibrate` writes it."""
    from llmcheck.jsonfile import loads

    try:
        found = loads(data, what="profile", where="")
        return isinstance(found, dict) and profile_of(found, "profile") is not None
    except UserError:
        return False


def check_gpu(profile: Profile, gpu: GpuSpec, where: str) -> None:
    """Raises UserError where the profile is of another GPU than the plan's."""
    memory = profile.memory_bytes
    if profile.compute_capability != gpu.compute_capability or abs(memory - gpu.memory_bytes) > _SAME_MEMORY_FRACTION * gpu.memory_bytes:
        raise UserError(
            f"the profile is of {profile.device}, the plan is for {gpu.name}",
            code="other-gpu",
            where=where,
            hint="leave --profile out, or calibrate on that GPU",
        )


def rates_of(profile: Profile, base: GpuRates, precision: Precision) -> GpuRates:
    """`base` with what the profile measured in its place. Links between GPUs stay: one GPU cannot measure them."""
    table = constants()["calibration"]
    rates = replace(
        base,
        memory_bytes_per_s=profile.memory_bytes_per_s * table["memory_share"],
        kernel_s=profile.kernel_s * table["kernel_factor"],
        pcie_bytes_per_s=profile.copy_bytes_per_s,
        num_sms=profile.num_sms,
    )
    products = [x for x in profile.products if x.precision == precision]
    if products:
        rates = _with_products(rates, products)
    calls = [x for x in profile.attention if _ELEMENT_BYTES[x.precision] == _ELEMENT_BYTES[precision]]
    if calls:
        forward, backward = [], []
        for call in calls:
            flops = 2.0 * call.batch * call.heads * call.seq_len**2 * call.head_dim
            forward.append(flops / call.forward_s / min(1.0, 0.5 + call.head_dim / 256))
            backward.append(_BACKWARD_PRODUCTS * call.forward_s / call.backward_s)
        ratio = statistics.median(backward)
        rates = replace(rates, attention_flops_per_s=statistics.median(forward), attention_backward_ratio=ratio)
    return rates


def _with_products(rates: GpuRates, products: list[Product]) -> GpuRates:
    """The rate of large products with which the model of tiles and waves meets the measured ones in the median."""
    rates = replace(rates, matmul_flops_per_s=max(2.0 * x.m * x.n * x.k / x.time_s for x in products))
    for _ in range(_ROUNDS):
        off = [matmul_s(rates, Matmul(x.m, x.n, x.k), _ELEMENT_BYTES[x.precision]) / x.time_s for x in products]
        rates = replace(rates, matmul_flops_per_s=rates.matmul_flops_per_s * statistics.median(off))
    return rates


def host_of(profile: Profile) -> HostRates:
    """The reference host's rates, all slower or faster as this host is with one operator."""
    factor = profile.op_s / constants()["calibration"]["op_s"]
    reference = HostRates.reference()
    return HostRates(**{name: getattr(reference, name) * factor for name in HostRates.__dataclass_fields__})
