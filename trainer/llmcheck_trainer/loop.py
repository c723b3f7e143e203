"""The training loop, from the plan to the exported model, in the order in which it happens."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from llmcheck.errors import UserError
from llmcheck.planfile import PlanFile
from llmcheck.types import TrainSettings
from llmcheck_trainer import checkpoint, claim, evaluation, export, guard, identity, model, receipt, trackers, varlen, whole
from llmcheck_trainer.data import Prepared, Shape, Stream
from llmcheck_trainer.engine import build_engine, set_lr, start_process_group, train_step
from llmcheck_trainer.placement import choose_packing, placement_of
from llmcheck_trainer.progress import Progress
from llmcheck_trainer.schedule import learning_rate
from llmcheck_trainer.stopping import StopRequest

DEFAULT_LR = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4}  # where neither --lr nor the plan's configuration says one
NUM_GUARDED_STEPS = 2  # at full length: the second is the first with Adam's states in memory, and so has the run's peak


def run(plan_file: PlanFile, plan_path: str, settings: TrainSettings, stop: StopRequest | None = None) -> int:
    """Run the plan; returns the exit code. `stop`: what takes requests to stop already.

    Raises UserError for what is the user's to mend, RunFailedError where the run had to stop.
    """
    device = start_process_group()
    phase = Phase("loading")
    try:
        with contextlib.ExitStack() as held:
            return _train(plan_file, plan_path, settings, device, phase, held, stop or StopRequest())
    except UserError:
        raise
    except Exception as error:
        if guard.is_lost_rank(error):
            raise guard.lost_rank(settings.output, phase.name, checkpoint.newest(settings.output), error) from error
        if guard.is_lost_scale(error):
            raise guard.lost_scale(settings.output, phase.name) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise guard.file_error(phase.name, error) from error
        if not guard.is_out_of_memory(error):
            raise
        report = guard.out_of_memory(plan_file, phase.name, device, error)
        if phase.meter is not None:
            receipt.write(settings.output, plan_file, settings, phase.meter, "out-of-memory", {"phase": phase.name}, phase.inputs)
        raise report from error


def leave() -> None:
    """End the process group; only after a run that all ranks finished, since it waits for them."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Phase:
    """Where the run is, for the report when memory runs out."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.meter: receipt.Meter | None = None
        self.inputs: dict[str, Any] = {}  # what the receipt keeps of the data


class Pending(NamedTuple):
    """A step whose loss is still on its way from the device."""

    step: int
    first: int
    position: int
    num_supervised: int
    num_tokens: int
    num_padded: int
    lr: float
    values: torch.Tensor
    grad_norm: Any
    arrived: Any = None


def _train(
    plan_file: PlanFile,
    plan_path: str,
    settings: TrainSettings,
    device: torch.device,
    phase: Phase,
    held: contextlib.ExitStack,
    stop: StopRequest,
) -> int:
    plan, recipe = plan_file.plan, plan_file.plan.recipe
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(settings.seed)

    # What must agree comes first: nothing is loaded for a run that would be the wrong one.
    checks = identity.Checks(settings.allow, kept=plan_file.allowed_codes(), speak=rank == 0)
    identity.check_plan(plan_file, plan_path, world, checks)
    plan_file.check_export(settings.export)
    trackers.wanted(settings.trackers)
    data = Prepared(settings.data)
    cut = data.check_lengths(recipe.seq_len)
    if cut is not None:
        checks.fail(cut)
    folder = model.find_weights(plan.model, settings.weights)
    config = model.build_config(plan.model, recipe, folder)
    identity.check_tokenizer(plan_file, data, config, checks)
    identity.check_same_tokenizer(folder, data, export.load_tokenizer, checks)
    held.enter_context(claim.output(settings.output))

    packing = choose_packing(settings.packing, plan.model, recipe, config)
    shape = Shape(recipe.micro_batch_size, recipe.grad_accum_steps, world, rank)
    pad_id = data.tokenizer["pad_id"] if data.tokenizer["pad_id"] is not None else data.tokenizer["eos_id"]
    # The native allocator fragments where lengths differ, and the plan counts on equal ones.
    full_length = recipe.allocator == "native"
    stream = Stream(data, recipe.seq_len, shape, packing=packing, seed=settings.seed, pad_id=pad_id, full_length=full_length)
    stream.limit = _num_sequences(settings, len(stream), shape)
    held_out = evaluation.load(settings, recipe, shape, pad_id)
    phase.inputs["data"] = data.record()
    if held_out is not None:
        cut = held_out.data.check_lengths(recipe.seq_len)
        if cut is not None:
            checks.fail(cut)
        identity.check_tokenizer(plan_file, held_out.data, config, checks)
        identity.check_same_tokenizer(folder, held_out.data, export.load_tokenizer, checks)
        phase.inputs["eval_data"] = held_out.data.record()
    unread = whole.Check([data] if held_out is None else [data, held_out.data])
    placement = placement_of(plan.model, recipe, device, model.DTYPES[recipe.precision], packing=packing, config=config)

    run_identity = identity.run_identity(data, recipe.seq_len, packing=packing, seed=settings.seed)
    found = checkpoint.find(settings.output, settings.resume)
    if found is not None and found.state.run_identity != run_identity:
        checks.fail(_another_run(found))
    if found is not None:
        checkpoint.check_recipe(found, recipe)
    resumed_from, more = (None, {}) if found is None else checkpoint.prepare(found)

    # Model and engine, in the order of the simulation.
    meter = phase.meter = receipt.Meter(device)
    lr = settings.lr or recipe.deepspeed.get("optimizer", {}).get("params", {}).get("lr") or DEFAULT_LR[recipe.method]
    phase.name = "loading the model"
    net = model.build_model(plan.model, recipe, device, folder=folder)
    export.check(net, recipe, settings)
    torch.manual_seed(settings.seed + rank)  # dropout differs from rank to rank; adapters did not
    if placement.rows:
        varlen.install(net)
    meter.mark("model")
    phase.name = "deepspeed.initialize"
    engine = build_engine(net, recipe, device, lr=lr, weight_decay=settings.weight_decay, **more)
    meter.mark("init")
    adapters = recipe.lora is not None
    size = plan.memory.host.checkpoint_bytes
    after = checkpoint.after_which(settings.output, found)
    checkpoint.check_room(settings.output, size, keep=settings.keep, after=after)
    state = checkpoint.State(
        step=0,
        position=0,
        num_tokens=0,
        best_loss=None,
        bad_evaluations=0,
        plan_digest=plan_file.digest,
        run_identity=run_identity,
        recipe=checkpoint.recipe_of(recipe),
    )
    if found is not None and resumed_from is not None:
        phase.name = "loading the checkpoint"
        checkpoint.load(engine, resumed_from, adapters=adapters)
        state = _goes_on_from(found.state, state)
    if settings.compile:
        engine.compile()
    phase.name = "checking the data"
    unread.settle()

    aside = checkpoint.set_aside(settings.output, after=after) if rank == 0 else []

    told = trackers.Trackers(settings.trackers, settings.output, settings._asdict() if rank == 0 else None)
    progress = Progress(settings.output, plan.memory, plan.time, total=stream.limit, position=state.position, trackers=told)
    progress.start(_first_line(plan_file, stream, world, state.step, num_silent=data.num_without_supervision() if rank == 0 else 0))
    if aside:
        progress.say(f"set aside in checkpoints/, since this run does not go on from there: {', '.join(aside)}")
    watch = guard.LossGuard(settings.output, stop_at_nan=settings.on_nan == "stop", scaled=recipe.precision == "fp16")
    total = torch.zeros((), dtype=torch.float32, device=device)
    pending: deque[Pending] = deque()
    # Started again after its end it only writes the model, as a run does that came to the end of its data.
    outcome = "stopped-early" if settings.patience and state.bad_evaluations >= settings.patience else "finished"
    unsaved: UserError | None = None

    def settle() -> bool:
        """Take in the losses that have arrived; True when a rank was asked to stop."""
        asked = False
        while pending:
            done = pending.popleft()
            if done.arrived is not None:
                done.arrived.synchronize()
            loss = float(done.values[0]) / max(done.num_supervised, 1)
            asked = asked or float(done.values[1]) > 0
            norm = _number(done.grad_norm)
            kind = watch.look(done.step, loss, norm, partial(_rows, stream, done), write=rank == 0)
            progress.step(done.step, done.position, loss, done.lr, norm, done.num_tokens, done.num_padded, meter, kind)
        return asked

    step, position, tokens = state.step, state.position, state.num_tokens
    final_loss: float | None = None
    gc.collect()
    while position < stream.limit and outcome == "finished":
        guarded = meter.step < NUM_GUARDED_STEPS
        phase.name = f"step {step + 1}" + (" at full length" if guarded else "")
        batches, num_supervised, num_tokens = stream.step(position, full_length=guarded)
        first, position = position, min(position + shape.global_batch, stream.limit)
        step += 1
        rate = learning_rate(lr, settings.schedule, position / stream.limit, warmup=settings.warmup, floor=settings.min_lr)
        set_lr(engine, rate)
        total.zero_()
        train_step(engine, map(placement.put, batches), num_supervised, total=total, mark=meter.mark)
        values = torch.stack((total, torch.full_like(total, float(stop.wanted))))
        dist.all_reduce(values)
        tokens += num_tokens
        padded = sum(batch.num_padded for batch in batches) * world
        norm = engine.get_global_grad_norm()
        pending.append(_sent(Pending(step, first, position, num_supervised, num_tokens, padded, rate, values, norm), device))
        meter.step_done()
        state = replace(state, step=step, position=position, num_tokens=tokens)

        # The losses are read one step late, so that the device never waits for the host; before saving, they are all read.
        at_end = position >= stream.limit
        save_now = at_end or (settings.save_every and step % settings.save_every == 0)
        eval_now = held_out is not None and (at_end or bool(settings.eval_every and step % settings.eval_every == 0))
        late = pending.pop() if not (save_now or eval_now) else None
        asked = settle()
        if late is not None:
            pending.append(late)
        if eval_now and held_out is not None:
            phase.name = "evaluation"
            result = evaluation.evaluate(engine, held_out, placement, device)
            final_loss = result.loss if math.isfinite(result.loss) else None
            better = final_loss is not None and (state.best_loss is None or final_loss < state.best_loss)
            if better:
                state = replace(state, best_loss=final_loss, best_step=step, bad_evaluations=0)
            else:
                state = replace(state, bad_evaluations=state.bad_evaluations + 1)
            progress.evaluation(step, result)
            if settings.num_generations:
                phase.name = "generation"
                evaluation.generate(engine, held_out, settings, folder, step)
            if settings.patience and state.bad_evaluations >= settings.patience:
                outcome, save_now = "stopped-early", True
            save_now = save_now or (better and bool(settings.save_every))
        if asked:
            outcome, save_now = "stopped", True
        if save_now:
            phase.name = "saving"
            if asked:
                settle()
            unsaved = _save(engine, settings, state, adapters=adapters, needed=size)
            if unsaved is None and rank == 0:
                checkpoint.prune(settings.output, keep=settings.keep, best_step=state.best_step)
        if eval_now or save_now:
            meter.pause()
    settle()

    if outcome == "finished" or outcome == "stopped-early":
        if settings.patience and state.best_step not in (None, step) and settings.export != "none":
            phase.name = "loading the best checkpoint"
            progress.say(_take_best(engine, settings.output, state.best_step, adapters=adapters))
        phase.name = "export"
        written = export.export(engine, recipe, settings, folder)
        if written is not None:
            progress.say(f"model in {written}")
    facts = {"step": step, "position": position, "num_tokens": tokens, "loss": progress.last_loss, "eval_loss": final_loss}
    receipt.write(settings.output, plan_file, settings, meter, outcome, facts, phase.inputs)
    if outcome == "stopped" and unsaved is None:
        progress.say(f"saved at step {step}: the same command goes on from there")
    progress.end(outcome)
    if unsaved is not None:  # there was no later chance; the model is written all the same, where it found room
        raise unsaved
    dist.barrier()
    return 0


def _num_sequences(settings: TrainSettings, of_an_epoch: int, shape: Shape) -> int:
    """Sequences of the whole run."""
    number = math.ceil(round(settings.epochs * of_an_epoch, 6))  # 0.07 of 100 are 7, not the 7.000000000000001 of the product
    return min(number, settings.max_steps * shape.global_batch) if settings.max_steps else number


def _first_line(plan_file: PlanFile, stream: Stream, world: int, resumed_at: int, *, num_silent: int) -> str:
    """What the run is, for whoever started it. `num_silent`: rows that teach nothing; `resumed_at`: a step, or 0."""
    plan, recipe = plan_file.plan, plan_file.plan.recipe
    return (
        f"{plan.model.name}, {recipe.method}, ZeRO-{recipe.zero_stage}, {world} ranks; {len(stream.data):,} rows"
        + (f" in {len(stream):,} packed sequences" if stream.packing else "")
        + f"; {num_silent:,} rows without a token in the loss"
        + (f"; resumed at step {resumed_at}" if resumed_at else "")
    )


def _goes_on_from(saved: checkpoint.State, fresh: checkpoint.State) -> checkpoint.State:
    """The state of a run that goes on from `saved`: of another run (--allow other-run), only what it learned and its step's number."""
    if saved.run_identity == fresh.run_identity:
        return replace(saved, recipe=fresh.recipe, plan_digest=fresh.plan_digest)
    return replace(fresh, step=saved.step, num_tokens=saved.num_tokens)


def _take_best(engine: Any, output: str, step: int | None, *, adapters: bool) -> str:
    """Put the weights of the lowest evaluation loss into the engine; what was done, or why not. All ranks call it."""
    found, why = checkpoint.at_step(output, step or 0)
    if found is None:
        return f"step {step} had the lowest evaluation loss, but its checkpoint cannot be used ({why}): the last weights are written"
    checkpoint.load(engine, checkpoint.prepare(found)[0], adapters=adapters)
    return f"the weights of step {step} are written, which had the lowest evaluation loss"


def _save(engine: Any, settings: TrainSettings, state: checkpoint.State, *, adapters: bool, needed: int) -> UserError | None:
    """Save, on all ranks; why it was not possible, on all ranks: a run does not end for want of room while it can try again."""
    told: list[UserError | None] = [None]
    if dist.get_rank() == 0:
        try:
            checkpoint.check_space(settings.output, needed)
        except UserError as error:
            told = [error]
    dist.broadcast_object_list(told, src=0)
    problem = told[0]
    if problem is None:
        try:
            checkpoint.save(engine, settings.output, state, adapters=adapters)
            return None
        except checkpoint.NotSavedError as error:
            problem = error
    if dist.get_rank() == 0:
        why = f" ({problem.why})" if problem.why else ""
        sys.stderr.write(f"warning[{problem.code}]: not saved at step {state.step}: {problem.what}{why}\n")
    return problem


def _sent(known: Pending, device: torch.device) -> Pending:
    """The step's figures on their way to the host."""
    values, norm, arrived = known.values, known.grad_norm, None
    if device.type == "cuda":
        values = values.to("cpu", non_blocking=True)
        norm = norm.detach().to("cpu", non_blocking=True) if isinstance(norm, torch.Tensor) else norm
        arrived = torch.cuda.Event()
        arrived.record()
    return known._replace(values=values, grad_norm=norm, arrived=arrived)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _rows(stream: Stream, done: Pending) -> list[dict[str, Any]]:
    """The rows of a step, of all ranks, and where they came from."""
    rows = [int(row) for at in range(done.first, done.position) for row in stream.rows_at(at)]
    return [{"row": row, "source": stream.data.place(row)} for row in rows]


def _another_run(found: checkpoint.Found) -> UserError:
    return UserError(
        "the checkpoint is of another run: its data, packing, sequence length or seed differ",
        code="other-run",
        where=found.folder,
        why="its position would mean other rows here",
        hint="name another --output, say --resume never, or --allow other-run to take weights and optimizer only as they are",
    )
