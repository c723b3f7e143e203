"""Execute a recipe in miniature: construct the model, initialise DeepSpeed, run training steps; the result is a tape of allocations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmcheck.dsconfig.settings import DTYPE_BYTES
from llmcheck.shadow import lora, quant
from llmcheck.shadow.attention import ROW_FAMILIES, ROWS_PER_SEQUENCE, block_mask
from llmcheck.shadow.autograd import backward
from llmcheck.shadow.families.base import CausalLM, Config, Family, Run
from llmcheck.shadow.kernels import Kernels
from llmcheck.shadow.module import Build
from llmcheck.shadow.optim import OptimizerState
from llmcheck.shadow.playing import Scripts
from llmcheck.shadow.steady import Start, repeat, repeat_first, start_of_step
from llmcheck.shadow.tape import Packed, Tape, cur
from llmcheck.shadow.tensor import Tensor
from llmcheck.shadow.zero import stage0
from llmcheck.shadow.zero.partition import Stage3Build
from llmcheck.shadow.zero.stage3 import Stage3
from llmcheck.shadow.zero.stage12 import Stage12
from llmcheck.types import TrainingRecipe

if TYPE_CHECKING:
    from llmcheck.dsconfig import ZeroSettings

_WRAPPERS: dict[str, Any] = {
    "zero-1-2": Stage12,
    "bf16-optimizer": stage0.Bf16Optimizer,
    "fp16-fused": stage0.FusedFp16,
    "fp16-unfused": stage0.UnfusedFp16,
    "none": stage0.Plain,
}


def execute(
    family: Family,
    config: Config,
    recipe: TrainingRecipe,
    settings: ZeroSettings,
    *,
    kernels: Kernels,
    rank: int,
    world: int,
    flatten_on_device: bool,
    steps: int,
) -> Tape:
    """The tape of rank `rank` of `world`: phases model, init, then fwdK, bwdK, stepK for `steps` steps.

    `flatten_on_device`: stages 1 and 2 flatten the parameters on the device (there is room for a second copy), else through the host.
    """
    tape = Tape()
    cur.reset(tape, kernels)
    item = DTYPE_BYTES[recipe.precision]
    run = Run(attention=recipe.attention, loss=recipe.loss, checkpointing=recipe.checkpointing, liger=recipe.loss == "liger")
    cur.liger = run.liger
    cur.category = "weights"
    build: Build
    if settings.stage == 3:
        build = Stage3Build(item, world, settings.offload_param.enabled)
    elif recipe.method == "qlora":
        build = quant.QuantBuild(item, config.vocab_size)
    else:
        build = Build(item)
    model = family.build(build, config, run)
    if isinstance(build, quant.QuantBuild):
        build.load(model)
    if recipe.lora is not None:
        if recipe.method == "qlora":
            quant.cast_rest(model, 4)
            tape.mark("empty_cache")
        fused = recipe.fused_adapters and settings.stage < 3
        lora.inject(model, recipe.lora, family, build if settings.stage == 3 else Build(item), fused=fused)
        model.require_input_grads = recipe.checkpointing
        model = lora.PeftModel(model)
    tape.mark("phase", "model")
    if recipe.method == "qlora":
        quant.cast_rest(model, item)
    engine = _initialize(model, build, recipe, settings, item, rank, world, flatten_on_device)
    tape.mark("phase", "init")
    cur.scripts = Scripts(model)
    _train(model, engine, family, config, recipe, kernels, tape, steps)
    cur.hooks = None
    cur.reset(Tape())
    tape.events = tape.events[: tape.marks[-1][0]]  # what goes with the process is not on it
    return tape


def _initialize(
    model: CausalLM, build: Build, recipe: TrainingRecipe, settings: ZeroSettings, item: int, rank: int, world: int, flatten_on_device: bool
) -> Any:
    optimizer = OptimizerState(recipe.optimizer, DTYPE_BYTES[settings.optimizer_state_dtype])
    if isinstance(build, Stage3Build):
        stage3 = Stage3(model, build, settings, rank=rank, world=world, item=item, optimizer=optimizer)
        stage3.initialize(flatten_on_device)
        return stage3
    params = [p for p in model.parameters() if p.req]
    wrapper = _WRAPPERS[settings.wrapper]
    engine = wrapper(params, settings, rank=rank, world=world, item=item, optimizer=optimizer)
    engine.initialize(flatten_on_device)
    return engine


def _packed(shape: tuple[int, int], recipe: TrainingRecipe, family: Family, config: Config, kernels: Kernels) -> Packed:
    """What comes with packed rows: bounds, a mask, or nothing where FlashAttention reads the positions or BLOOM makes its bias of them."""
    positions = Tensor(shape, 8)
    item = DTYPE_BYTES[recipe.precision]
    if recipe.attention == "flash" or family.name == "bloom":
        return Packed(positions)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if recipe.attention == "sdpa" and family.name in ROW_FAMILIES and kernels.rows and item == 2 and head_dim <= 256 and head_dim % 8 == 0:
        return Packed(positions, bounds=Tensor((shape[0] * ROWS_PER_SEQUENCE + 1,), 4))
    return Packed(positions, block_mask(positions, item))


def _train(
    model: CausalLM,
    engine: Any,
    family: Family,
    config: Config,
    recipe: TrainingRecipe,
    kernels: Kernels,
    tape: Tape,
    steps: int,
) -> None:
    shape = (recipe.micro_batch_size, recipe.seq_len)
    ids: Tensor | None = None
    accum = min(recipe.grad_accum_steps, 3)  # the third micro-step repeats the second
    starts: list[Start] = []
    for step in range(steps):
        starts.append(start_of_step(tape))
        if step == 1 and not isinstance(engine, Stage3) and ids is not None and repeat_first(tape, starts[0], ids.st.ident, step):
            continue
        if step >= 2 and repeat(tape, starts[-3], starts[-2], step):
            continue
        for micro in range(accum):
            cur.category = "inputs"
            ids = Tensor(shape, 8)
            mask = Tensor(shape, 8)  # of ones; the trainer passes labels of their own instead
            if recipe.packing:
                cur.packed = _packed(shape, recipe, family, config, kernels)
            cur.category = "activations"
            engine.boundary = micro == accum - 1
            loss, logits = model(ids, mask, ids)
            if micro == 0:
                tape.mark("phase", f"fwd{step}")
            kernels.in_backward = True
            backward(loss)
            kernels.in_backward = False
            engine.epilogue()
            if micro == accum - 1:
                tape.mark("phase", f"bwd{step}")
            del loss, logits, mask
            cur.packed = None
            if engine.boundary:
                engine.step()
        tape.mark("phase", f"step{step}")
