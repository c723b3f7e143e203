"""The text report: one screen, within its columns, safe, and saying what it must."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from llmcheck.console import Terminal
from llmcheck.planner.plan import Finding, Lever, Plan, SolveResult
from llmcheck.render.draw import width_of
from llmcheck.render.text import memory_parts, render
from llmcheck.units import GIB

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e\r\nFITS"


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def with_gpu_gib(plan: Plan, gib: float) -> Plan:
    return replace(plan, cluster=replace(plan.cluster, gpu=replace(plan.cluster.gpu, memory_bytes=int(gib * GIB))))


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("unicode", [False, True])
def test_no_line_is_wider_than_the_terminal(synthetic_plan: Plan, columns: int, colour: bool, unicode: bool) -> None:
    text = bare(render(synthetic_plan, terminal=Terminal(columns=columns, colour=colour, unicode=unicode)))
    assert [line for line in text.splitlines() if width_of(line) > columns] == []


def crowded(plan: Plan) -> Plan:
    """`plan` with more of everything than a screen holds."""
    note = Finding(code="LCM010", severity="note", message="a note of some length " * 6, fix="--loss chunked")
    lever = Lever(title="a change with a long title", flags=("--zero", "3"), delta_bytes=1, speed_ratio=1.0, quality="none", verdict="fits")
    other = replace(
        plan.alternatives[0], title="full fine-tuning, ZeRO-3, parameters and optimizer offloaded, micro-batch 32, checkpointing"
    )
    return replace(
        plan,
        reasons=tuple(f"reason number {i} why this recipe was chosen and no other" for i in range(9)),
        findings=(replace(note, severity="warning"), *([note] * 6)),
        what_if=(lever,) * 5,
        alternatives=(other,) * 6,
        memory=replace(plan.memory, assumptions=("an assumption of the estimate that takes its room",) * 9),
    )


def test_it_is_one_screen_however_much_there_is_to_say(synthetic_plan: Plan) -> None:
    for plan in (synthetic_plan, crowded(synthetic_plan)):
        assert len(render(plan, next_steps=("llmcheck plan --model example-7b --out plan.json",)).splitlines()) <= 45


def test_what_a_screen_does_not_hold_is_counted_and_in_the_verbose_report(synthetic_plan: Plan) -> None:
    plan = crowded(synthetic_plan)
    counts = re.findall(r"(\d+) (reasons?|notes?|changes?|alternatives?|assumptions?)", " ".join(render(plan).split("left out")[1].split()))
    full = render(plan, verbose=True)
    assert {name.rstrip("s") for _, name in counts} == {"reason", "note", "change", "alternative", "assumption"}
    assert "left out" not in full
    assert full.count("note LCM010") == 6
    assert full.count("--zero 3") == 5


def test_an_error_is_never_left_out(synthetic_plan: Plan) -> None:
    plan = crowded(synthetic_plan)
    errors = tuple(Finding(code=f"LCM0{i}", severity="error", message="what is wrong " * 20) for i in range(10, 30))
    text = render(replace(plan, findings=errors))
    assert [finding.code for finding in errors if f"error {finding.code}" not in text] == []


def test_what_was_assumed_about_the_machine_is_never_left_out(synthetic_plan: Plan) -> None:
    plan = crowded(synthetic_plan)
    assumed = Finding(code="LCM090", severity="note", message="no GPU was named and none was found here: planned for A100-40G")
    assert "note LCM090" in render(replace(plan, findings=(*plan.findings, assumed)))


def test_a_reason_that_a_finding_gives_is_not_given_twice(synthetic_plan: Plan) -> None:
    finding = Finding(code="LCM008", severity="warning", message="it fits, but barely: the margin is small")
    text = render(replace(synthetic_plan, reasons=("the margin is small",), findings=(finding,)))
    assert text.count("the margin is small") == 1


def test_the_first_line_is_the_verdict_with_its_margin(synthetic_plan: Plan) -> None:
    first = render(synthetic_plan).splitlines()[0]
    assert first == " FITS  needs 26.00 of Example-40G's 40.00 GiB: 14.00 GiB (35 %) to spare"


def test_a_plan_that_does_not_fit_says_how_much_is_missing(synthetic_plan: Plan) -> None:
    first = render(replace(with_gpu_gib(synthetic_plan, 22), verdict="does-not-fit")).splitlines()[0]
    assert first == " DOES NOT FIT  needs 26.00 GiB per GPU, Example-40G has 22.00: 4.00 GiB too little"


def test_a_tight_plan_says_why(synthetic_plan: Plan) -> None:
    def verdict(gib: float) -> str:
        return " ".join(render(replace(with_gpu_gib(synthetic_plan, gib), verdict="tight")).split("\n\n")[0].split())

    assert "to spare, which is within the error band" in verdict(26.2)
    assert "14.00 GiB (35 %) to spare, but only while the allocator gives memory back" in verdict(40)


def test_a_plan_that_fails_elsewhere_does_not_blame_the_gpu(synthetic_plan: Plan) -> None:
    assert "too little" not in render(replace(synthetic_plan, verdict="does-not-fit")).splitlines()[0]


def test_the_rank_that_decides_is_drawn(synthetic_plan: Plan) -> None:
    worst = replace(synthetic_plan.memory.worst, rank=5, required_bytes=30 * GIB)
    plan = replace(synthetic_plan, memory=replace(synthetic_plan.memory, worst=worst))
    text = render(plan)
    assert "Memory of rank 5" in text
    assert "needs 30.00" in text
    assert "rank 0 allocates 20.00" in text


def test_the_parts_of_the_bar_sum_to_the_process(synthetic_plan: Plan) -> None:
    rank = synthetic_plan.memory.rank0
    assert sum(part.size for part in memory_parts(rank, 100 * GIB)) == rank.process_bytes + rank.nccl_bytes


def test_nccl_takes_its_room_from_the_allocators_cache(synthetic_plan: Plan) -> None:
    rank = replace(synthetic_plan.memory.rank0, nccl_bytes=GIB)
    limit = rank.process_bytes + GIB // 2
    fits = replace(rank, required_bytes=limit - GIB)
    lacks = replace(rank, required_bytes=limit)

    assert sum(part.size for part in memory_parts(fits, limit)) == limit
    assert sum(part.size for part in memory_parts(lacks, limit)) == rank.process_bytes + GIB


def test_colour_changes_nothing_but_colour(synthetic_plan: Plan) -> None:
    plain = re.sub("[▓▒░▞▤▦▥▧▩]", "█", render(synthetic_plan))
    assert bare(render(synthetic_plan, terminal=Terminal(colour=True))) == plain


def test_without_unicode_the_report_is_ascii(synthetic_plan: Plan) -> None:
    assert render(synthetic_plan, terminal=Terminal(unicode=False)).isascii()


def test_reserved_memory_that_depends_on_the_cpus_lead_is_an_interval(synthetic_plan: Plan) -> None:
    rank = replace(synthetic_plan.memory.rank0, peak_reserved_low_bytes=23 * GIB, peak_reserved_high_bytes=30 * GIB)
    text = " ".join(render(replace(synthetic_plan, memory=replace(synthetic_plan.memory, rank0=rank, worst=rank))).split())

    assert "reserved 24.00 (23.00 to 30.00: how far is the CPU ahead?)" in text
    assert "reserved 24.00 ·" in " ".join(render(synthetic_plan).split())


def test_what_was_not_checked_is_printed(synthetic_plan: Plan) -> None:
    assert "NCCL buffers" in render(synthetic_plan)


def test_the_error_band_and_the_evidence_are_printed(synthetic_plan: Plan) -> None:
    text = " ".join(render(synthetic_plan).split())
    assert "error band ±2.0 %" in text
    assert "this GPU's kernels were not measured" in text


def test_long_notes_are_left_out_with_a_way_to_the_rest(synthetic_plan: Plan) -> None:
    many = tuple(f"assumption number {i} of many" for i in range(40))
    text = render(replace(synthetic_plan, memory=replace(synthetic_plan.memory, assumptions=many)))
    assert "36 assumptions: --verbose, --format json" in text
    assert all(width_of(line) <= 100 for line in text.splitlines())


def test_text_from_a_model_cannot_drive_the_terminal(synthetic_plan: Plan) -> None:
    lever = Lever(title=HOSTILE, flags=(HOSTILE,), delta_bytes=1, speed_ratio=1.0, quality=HOSTILE, verdict="fits")
    rank = replace(synthetic_plan.memory.rank0, peak_phase=HOSTILE, breakdown={HOSTILE: 20 * GIB})
    plan = replace(
        synthetic_plan,
        model=replace(synthetic_plan.model, name=HOSTILE),
        cluster=replace(synthetic_plan.cluster, gpu=replace(synthetic_plan.cluster.gpu, name=HOSTILE)),
        reasons=(HOSTILE,),
        what_if=(lever,),
        findings=(replace(synthetic_plan.findings[0], message=HOSTILE, fix=HOSTILE),),
        alternatives=(replace(synthetic_plan.alternatives[0], title=HOSTILE, note=HOSTILE),),
        memory=replace(synthetic_plan.memory, rank0=rank, worst=rank, assumptions=(HOSTILE,), not_checked=(HOSTILE,)),
    )
    text = render(plan, next_steps=(HOSTILE,))
    assert "".join(text.splitlines()).isprintable()


def test_a_solved_value_leads(synthetic_plan: Plan) -> None:
    solve = SolveResult(target="seq-len", value=3072, plan=synthetic_plan, next_value=3200, limited_by="the GPU's memory")
    lines = render(synthetic_plan, solve=solve).splitlines()
    assert lines[0].strip() == "Longest sequence that fits: 3,072 tokens"
    assert lines[1].strip() == "3,200 does not fit; the GPU's memory"


def test_nothing_solved_says_so(synthetic_plan: Plan) -> None:
    solve = SolveResult(target="gpus", value=None, plan=synthetic_plan, limited_by="not even 1,024")
    assert render(synthetic_plan, solve=solve).splitlines()[0].strip() == "No number of GPUs fits"


def test_a_command_over_several_lines_can_be_pasted(synthetic_plan: Plan) -> None:
    command = "llmcheck plan --model example-7b " + " ".join(f"--option-{i} value-{i}" for i in range(12))
    text = render(synthetic_plan, next_steps=(command,), terminal=Terminal(columns=60))
    shown = text[text.index("llmcheck plan") :].replace("\\\n", " ")
    assert shown.split() == command.split()


def test_a_plan_with_nothing_optional_renders(synthetic_plan: Plan) -> None:
    time = replace(synthetic_plan.time, total_s=None, cost=None)
    plan = replace(synthetic_plan, reasons=(), alternatives=(), what_if=(), findings=(), data=None, time=time)
    assert "in all" not in render(plan)
