"""Whole runs on two ranks: stages, methods and packing agree with each other and with a plain loop; models learn and are exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rig import EOS, MODELS, SAMPLE, SEQ, Ranks, make_data, make_model, make_plan, some_rows, steps_of
from transformers import AutoModelForCausalLM

from llmcheck_trainer.loss import IGNORED


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_model(root / family, family) for family in MODELS}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = some_rows(22)
    supervised = [[int(i >= n // 2) for i in range(n)] for n in map(len, rows)]
    supervised[5] = [0] * len(rows[5])  # a row that teaches nothing, which must not count
    return make_data(tmp_path_factory.mktemp("data") / "prepared", rows, supervised)


def reference(model: Path, data: Path, order: list[list[int]], lr: float) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A plain loop over rows one by one: the mean over all supervised tokens of a step, AdamW, clipping. Loss by step, final weights."""
    from llmcheck_trainer.data import Prepared

    prepared = Prepared(str(data))
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for rows in order:
        total, count = torch.zeros(()), 0
        for row in rows:
            start, end = prepared.offsets[row], prepared.offsets[row + 1]
            ids = torch.tensor(prepared.tokens[start:end].astype("int64"))[None]
            labels = torch.where(torch.tensor(prepared.supervised[start:end].astype(bool))[None], ids, IGNORED)
            number = int((labels[:, 1:] != IGNORED).sum())
            if number:
                total = total + net(input_ids=ids, labels=labels).loss * number
                count += number
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(float(total.detach()) / count)
    return losses, {name: p.detach() for name, p in net.named_parameters()}


def order_of(data: Path, *, batch: int, packing: bool, epochs: int) -> list[list[int]]:
    from llmcheck_trainer.data import Prepared, Shape, Stream

    stream = Stream(Prepared(str(data)), SEQ, Shape(1, 1, 1, 0), packing=packing, seed=42, pad_id=3, full_length=False)
    total = epochs * len(stream)
    return [[int(r) for at in range(p, min(p + batch, total)) for r in stream.rows_at(at)] for p in range(0, total, batch)]


WHOLE = [(family, str(zero), packing) for family in MODELS for zero in range(4) for packing in ("off", "on")]


def attention_of(family: str, packing: str) -> tuple[str, ...]:
    """BLOOM with each of its two: transformers' own, which cannot keep packed rows apart, and the trainer's."""
    return ("--attention", "sdpa" if packing == "on" else "eager") if family == "bloom" else ()


@pytest.mark.parametrize(("family", "zero", "packing"), WHOLE)
def test_a_run_is_what_a_plain_loop_over_rows_would_be(
    family: str, zero: str, packing: str, two: Ranks, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan.json", folders[family], "--zero", zero, "--grad-accum", "2", *attention_of(family, packing))
    options = ["--packing", packing, "--lr", "1e-3", "--schedule", "constant", "--warmup", "0", "--epochs", "2"]
    answers = two.train(plan, data, tmp_path / "out", *options)
    order = order_of(data, batch=2 * 2 * 2, packing=packing == "on", epochs=2)
    losses, weights = reference(folders[family], data, order, 1e-3)

    assert [answer["exit"] for answer in answers] == [0, 0], answers
    assert [step["loss"] for step in steps_of(tmp_path / "out")] == pytest.approx(losses, rel=2e-4)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model", dtype=torch.float32)
    for name, parameter in exported.named_parameters():
        # Adam divides tiny gradients by themselves: a few elements may step the other way, so the mean is what must agree.
        assert float((parameter - weights[name]).abs().mean()) < 2e-5, name
    torch.testing.assert_close(logits(exported), torch.tensor(answers[0]["logits"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "zero", "packing"), WHOLE)
def test_adapters_learn_and_merge(
    family: str, zero: str, packing: str, two: Ranks, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    adapters = ("--method", "lora", "--lora-rank", "4", "--lora-dropout", "0", *attention_of(family, packing))
    plan = make_plan(tmp_path / "plan.json", folders[family], "--zero", zero, *adapters)
    epochs = "6" if packing == "on" else "3"  # as many steps, about
    options = ["--lr", "1e-2", "--warmup", "0", "--epochs", epochs, "--packing", packing]
    merged = two.train(plan, data, tmp_path / "out", *options, "--export", "merged")
    # Nothing is left to train: the same state is written in the other form.
    adapter = two.train(plan, data, tmp_path / "out", *options, "--export", "adapter")
    first, _ = reference(folders[family], data, order_of(data, batch=4, packing=packing == "on", epochs=1)[:1], 0.0)

    assert [answer["exit"] for answer in (*merged, *adapter)] == [0] * 4, (merged, adapter)
    assert steps_of(tmp_path / "out")[0]["loss"] == pytest.approx(first[0], rel=1e-4)  # adapters begin as nothing
    everything = [list(range(22))]
    before, after = (reference(model, data, everything, 0.0)[0][0] for model in (folders[family], tmp_path / "out" / "merged"))
    assert after < before - 0.03
    trained = torch.tensor(merged[0]["logits"])
    start = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32)
    assert float((logits(start) - trained).abs().max()) > 1e-3, "the adapter does nothing"
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(whole), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(start, tmp_path / "out" / "adapter")), trained, rtol=1e-5, atol=1e-5)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(SAMPLE)[None]).logits[0]


@pytest.mark.parametrize("how", ["in-place", "modules-to-save"])
@pytest.mark.parametrize("zero", ["2", "3"])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_adapters_with_trained_embeddings(
    family: str, zero: str, how: str, two: Ranks, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan.json", folders[family], "--zero", zero, "--method", "lora", "--train-embeddings", how)
    answers = two.train(plan, data, tmp_path / "out", "--lr", "1e-2", "--epochs", "2", "--export", "merged", "--packing", "off")

    first, _ = reference(folders[family], data, order_of(data, batch=4, packing=False, epochs=1)[:1], 0.0)

    assert [answer["exit"] for answer in answers] == [0, 0], answers
    assert steps_of(tmp_path / "out")[0]["loss"] == pytest.approx(first[0], rel=1e-4)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32)
    for ours, before in ((whole.get_input_embeddings(), start.get_input_embeddings()), (whole.lm_head, start.lm_head)):
        assert float((ours.weight - before.weight).abs().max()) > 1e-3


BF16 = ("--precision", "bf16", "--optimizer", "adam-bf16")


@pytest.mark.parametrize(
    ("family", "zero", "method", "more"),
    [
        ("llama", "3", "full", ()),
        ("bloom", "2", "full", ()),
        ("qwen2", "1", "lora", ()),
        ("gpt_neox", "0", "full", ()),
        ("llama", "0", "full", BF16),
        ("qwen2", "2", "full", BF16),
    ],
)
def test_a_model_learns_by_heart(
    family: str, zero: str, method: str, more: tuple[str, ...], two: Ranks, folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = some_rows(8, seed=7, shortest=12, longest=20)
    supervised = [[0] * 3 + [1] * (len(row) - 3) for row in rows]
    learnt = make_data(tmp_path / "data", rows, supervised)
    # The tiny model's frozen head could not tell tokens apart, whatever an adapter does before it.
    adapters = ("--lora-rank", "32", "--train-embeddings", "in-place") if method == "lora" else ()
    plan = make_plan(tmp_path / "plan.json", folders[family], "--zero", zero, "--method", method, *adapters, *more)
    kind = "merged" if method == "lora" else "model"
    options = ["--epochs", "80", "--lr", "1e-2", "--packing", "off", "--save-every", "0", "--export", kind]
    answers = two.train(plan, learnt, tmp_path / "out", *options)

    assert [answer["exit"] for answer in answers] == [0, 0], answers
    assert steps_of(tmp_path / "out")[-1]["loss"] < 0.05
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / kind)
    for row in rows[:3]:
        made = model.generate(torch.tensor(row[:3])[None], max_new_tokens=30, do_sample=False, eos_token_id=EOS, pad_token_id=3)
        assert made[0].tolist() == row  # ends of itself: the end of text was in the loss


def test_a_mixture_of_experts_trains_in_a_process_that_has_trained_one(one: Ranks, tmp_path: Path) -> None:
    """DeepSpeed's context for ZeRO-3 spoils the constructor of a class imported inside it: the second model has no configuration."""
    sizes = {**MODELS["llama"], "num_local_experts": 4, "num_experts_per_tok": 2}
    model = make_model(tmp_path / "model", "mixtral", **sizes)
    plan = make_plan(tmp_path / "plan.json", model, "--zero", "3", *BF16, gpus=1)
    data = make_data(tmp_path / "data", some_rows(8, seed=7))
    options = ["--epochs", "20", "--lr", "1e-2", "--save-every", "0", "--export", "none"]
    answers = [one.train(plan, data, tmp_path / name, *options)[0] for name in ("first", "second")]
    losses = [[step["loss"] for step in steps_of(tmp_path / name)] for name in ("first", "second")]

    assert [answer["exit"] for answer in answers] == [0, 0], answers
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.5 * losses[0][0]


@pytest.mark.parametrize("loss", ["hf", "chunked"])
def test_the_losses_train_alike(loss: str, two: Ranks, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", folders["llama"], "--loss", loss, "--zero", "3")
    two.train(plan, data, tmp_path / "out", "--lr", "1e-3", "--schedule", "constant", "--warmup", "0", "--packing", "off")
    losses, _ = reference(folders["llama"], data, order_of(data, batch=4, packing=False, epochs=1), 1e-3)

    assert [step["loss"] for step in steps_of(tmp_path / "out")] == pytest.approx(losses, rel=2e-4)


def test_bf16_trains_too(two: Ranks, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", folders["llama"], "--precision", "bf16", "--zero", "3")
    answers = two.train(plan, data, tmp_path / "out", "--lr", "1e-2", "--epochs", "4")

    assert [answer["exit"] for answer in answers] == [0, 0], answers
    losses = [step["loss"] for step in steps_of(tmp_path / "out")]
    assert losses[-1] < losses[0] - 0.1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").dtype == torch.bfloat16


def test_the_receipt_says_what_ran(two: Ranks, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan.json", folders["llama"])
    two.train(plan, data, tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "run.json").read_text())
    document = json.loads(plan.read_text())

    assert receipt["schema"] == "llmcheck.run/1"
    assert receipt["outcome"] == "finished"
    assert receipt["plan_digest"] == document["digest"]
    assert [rank["rank"] for rank in receipt["ranks"]] == [0, 1]
    assert all(rank["step_s"] > 0 and rank["host_peak_bytes"] > 0 and rank["peak_allocated_bytes"] is None for rank in receipt["ranks"])
    assert receipt["versions"]["deepspeed"] is not None
    assert receipt["predicted"]["peak_allocated_bytes"] == document["estimate"]["peak_allocated_bytes"]


def test_evaluation_is_the_mean_over_all_held_out_tokens(two: Ranks, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    held_out = make_data(tmp_path / "held-out", some_rows(9, seed=11))
    plan = make_plan(tmp_path / "plan.json", folders["llama"], "--zero", "3")
    options = ["--eval-data", str(held_out), "--eval-every", "2", "--num-generations", "2", "--lr", "1e-3"]
    answers = two.train(plan, data, tmp_path / "out", *options)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line.get("event") == "evaluation"]
    expected, _ = reference(tmp_path / "out" / "model", held_out, [list(range(9))], 0.0)

    assert [answer["exit"] for answer in answers] == [0, 0], answers
    assert len(evaluations) > 1
    assert evaluations[-1]["loss"] == pytest.approx(expected[0], rel=1e-4)
    made = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    assert len(made) == 2 * len(evaluations)
    assert all(line["answer"] for line in made)


def test_prompts_are_continued_no_further_than_the_model_has_positions(one: Ranks, data: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "gpt2", "gpt2", n_embd=48, n_layer=1, n_head=4, n_positions=SEQ)
    rows = [[1, *range(4, 44), EOS], [1, *range(4, 4 + SEQ - 1)]]
    held_out = make_data(tmp_path / "held-out", rows, [[0] * 40 + [1, 1], [0] * SEQ])  # one prompt fills all positions
    plan = make_plan(tmp_path / "plan.json", model, gpus=1)
    options = ["--eval-data", str(held_out), "--num-generations", "2", "--max-steps", "1"]
    answers = one.train(plan, data, tmp_path / "out", *options)
    made = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]

    assert answers[0]["exit"] == 0, answers
    assert [(line["row"], len(line["prompt"])) for line in made] == [(0, 40)]
    assert 0 < len(made[0]["answer"]) <= SEQ - 40


def test_a_run_that_no_longer_improves_stops(two: Ranks, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    held_out = make_data(tmp_path / "held-out", some_rows(9, seed=11))
    plan = make_plan(tmp_path / "plan.json", folders["llama"])
    options = [
        "--eval-data",
        str(held_out),
        "--eval-every",
        "1",
        "--patience",
        "2",
        "--lr",
        "0.5",
        "--epochs",
        "20",
        "--on-nan",
        "continue",
    ]
    two.train(plan, data, tmp_path / "out", *options)
    outcomes = [json.loads((tmp_path / "out" / "run.json").read_text())["outcome"]]
    steps = steps_of(tmp_path / "out")
    two.train(plan, data, tmp_path / "out", *options)  # as a scheduler starts it again
    outcomes.append(json.loads((tmp_path / "out" / "run.json").read_text())["outcome"])

    assert outcomes == ["stopped-early"] * 2
    assert steps_of(tmp_path / "out") == steps
    # what is written is the best, not the last
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("event") == "evaluation"]
    exported, _ = reference(tmp_path / "out" / "model", held_out, [list(range(9))], 0.0)
    assert exported[0] == pytest.approx(min(losses), rel=1e-4)
    assert losses[-1] > 1.05 * min(losses)


def test_a_part_of_an_epoch_is_no_row_longer_than_it_says(one: Ranks, folders: dict[str, Path], tmp_path: Path) -> None:
    """In floating point, 0.07 times 100 is more than 7."""
    plan = make_plan(tmp_path / "plan.json", folders["llama"], gpus=1)
    hundred = make_data(tmp_path / "hundred", some_rows(100))
    one.train(plan, hundred, tmp_path / "out", "--epochs", "0.07", "--packing", "off")

    assert steps_of(tmp_path / "out")[-1]["position"] == 7
