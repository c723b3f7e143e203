"""``llmcheck gpus``: the list, one GPU, this machine's, and all as JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from llmcheck.catalog.gpus import all_gpus, find_gpu
from llmcheck.commands import gpus
from llmcheck.errors import UserError
from llmcheck.probe.nvml import LocalGpu
from llmcheck.units import GIB


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "local_gpus", tuple)


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    parser = argparse.ArgumentParser()
    gpus.configure(parser)
    assert gpus.run(parser.parse_args(argv)) == 0
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(answer(capsys, *argv, "--format", "json"))


def here() -> tuple[LocalGpu, ...]:
    one = {"uuid": "GPU-1", "used_bytes": 10 * GIB, "driver": "580", "compute_capability": (9, 0)}
    return (
        LocalGpu(index=0, name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, spec=find_gpu("H100"), **one),  # type: ignore[arg-type]
        LocalGpu(index=1, name="NVIDIA \x1b[31mNew", total_bytes=16 * GIB, spec=None, **one),  # type: ignore[arg-type]
    )


def test_the_list_has_every_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer(capsys).splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(all_gpus())]] == [gpu.spec.name for gpu in all_gpus()]


def test_no_line_is_wider_than_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, answer(capsys).splitlines()[:-3])) <= 100


def test_memory_that_was_not_quoted_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [line for line in answer(capsys).splitlines() if line.startswith("H800 ")]
    assert "~79.18 GiB" in line


def test_a_machine_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys).splitlines()[-1] == "this machine: no NVIDIA GPU found"


def test_local_gpus_are_listed_and_their_names_cannot_drive_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "local_gpus", here)
    assert answer(capsys).splitlines()[-2:] == [
        "this machine: NVIDIA H100 80GB HBM3 (GPU 0), 70.00 GiB of 80.00 GiB free, driver 580, planned as H100",
        "this machine: NVIDIA \\x1b[31mNew (GPU 1), 6.00 GiB of 16.00 GiB free, driver 580, not in the catalogue",
    ]


def test_one_gpu_is_shown_with_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "a100-40g")
    assert "39.49 GiB (42,405,462,016 bytes), published" in text
    assert "https://www.nvidia.com/" in text


def test_a_part_of_a_name_lists_those_that_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert [g["name"] for g in document(capsys, "a100")["gpus"]] == ["A100-40G", "A100-40G-PCIe", "A100-80G", "A100-80G-PCIe"]


def test_a_name_of_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="unknown GPU 'no-such-gpu'"):
        answer(capsys, "no-such-gpu")


def test_the_json_has_bytes_and_evidence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "local_gpus", here)
    answered = document(capsys, "H100")
    (gpu,) = answered["gpus"]
    assert (answered["schema"], gpu["context_bytes"], gpu["context_evidence"]) == ("llmcheck.gpus/1", 650_969_088, "measured")
    assert [(local["index"], local["spec"]) for local in answered["local"]] == [(0, "H100"), (1, None)]
