from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmcheck.errors import UserError
from llmcheck.probe import environment
from llmcheck.rules.facts import ABSENT, Facts, load_registry

REPORT: dict[str, Any] = {
    "python": {"version": "3.11.7", "implementation": "cpython", "prefix": "/v", "is_venv": True, "is_conda": False, "headers": None},
    "folders": ["/v/site"], "packages": [], "incomplete": [], "torch": None, "bitsandbytes": None, "deepspeed": None,
}  # fmt: skip


def examine(tmp_path: Path, output: str, code: int = 0) -> Facts:
    program = tmp_path / "python"
    (tmp_path / "answer").write_text(output)
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\nexit {code}\n")
    program.chmod(0o755)
    return environment.facts(str(program))


def reported(tmp_path: Path, **changes: Any) -> Facts:
    return examine(tmp_path, json.dumps({**REPORT, **changes}))


def package(name: str, version: str, folder: str = "/v/site", **more: Any) -> dict[str, Any]:
    return {"name": name, "version": version, "path": f"{folder}/{name}-{version}.dist-info", **more}


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(name)
    return None if fact is None else fact.value


def test_our_own_interpreter_has_what_these_tests_run_with() -> None:
    facts = environment.facts()
    assert value(facts, "python.version") == ".".join(map(str, sys.version_info[:3]))
    assert value(facts, "pkg.pytest") == pytest.__version__
    assert value(facts, "pkg.no-such-package") is ABSENT
    assert {"packages", "builds", "environment"} <= facts.subjects


def test_every_fact_is_registered(tmp_path: Path) -> None:
    registry = load_registry()
    torch = {"__version__": "2.5.1+cu124", "cuda": "12.4", "hip": None, "git_version": "a", "path": "/t", "architectures": ["sm_90"]}
    facts = reported(tmp_path, torch=torch, packages=[package("torch", "2.5.1"), package("flash_attn", "2.7.3+cu12torch2.5cxx11abiFALSE")])
    ours = [name for name in [*facts.known, *facts.unreadable] if not name.startswith("python.") and "*" not in name]
    assert [name for name in ours if registry.kind(name) is None] == []


def test_names_are_normalised_and_local_parts_are_builds(tmp_path: Path) -> None:
    facts = reported(tmp_path, packages=[package("NVIDIA_nccl.cu12", "2.21.5"), package("torch", "2.5.1+cu124")])
    assert value(facts, "pkg.nvidia-nccl-cu12") == "2.21.5"
    assert value(facts, "build.torch") == "cu124"
    assert value(facts, "build.nvidia-nccl-cu12") is ABSENT


def test_a_commit_is_the_build(tmp_path: Path) -> None:
    direct = {"commit": "c" * 40, "editable": False, "file": ""}
    facts = reported(tmp_path, packages=[package("transformers", "5.0.0.dev0", direct_url=direct)])
    assert value(facts, "build.transformers") == "c" * 40


def test_two_versions_in_one_folder_are_not_known(tmp_path: Path) -> None:
    facts = reported(tmp_path, packages=[package("torch", "2.5.1"), package("torch", "2.6.0")])
    assert facts.get("pkg.torch") is None
    assert "several versions" in str(facts.why_unknown("pkg.torch"))
    assert value(facts, "environment.duplicates") == ["torch 2.5.1, 2.6.0"]


def test_the_first_folder_wins(tmp_path: Path) -> None:
    facts = reported(tmp_path, packages=[package("peft", "0.17.0", "/home/u/.local"), package("peft", "0.21.2")])
    assert value(facts, "pkg.peft") == "0.17.0"
    assert value(facts, "environment.shadowed") == ["peft 0.17.0 hides 0.21.2"]


@pytest.mark.parametrize("version", ["", "none", "$(reboot)", "1.0; rm", "1" * 200, "\x1b[2J"])
def test_what_is_no_version_is_not_known(tmp_path: Path, version: str) -> None:
    facts = reported(tmp_path, packages=[package("evil", version)])
    assert facts.get("pkg.evil") is None
    assert facts.why_unknown("pkg.evil") is not None


def test_flash_attention_says_what_it_was_built_for(tmp_path: Path) -> None:
    direct = {"commit": "", "editable": False, "file": "flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp311-cp311-linux_x86_64.whl"}
    facts = reported(tmp_path, packages=[package("flash_attn", "2.8.3", direct_url=direct)])
    assert [value(facts, f"flash_attn.{key}") for key in ("torch_version", "cuda_major", "cxx11_abi")] == ["2.8", 12, True]
    built_here = reported(tmp_path, packages=[package("flash_attn", "2.8.3")])
    assert built_here.get("flash_attn.torch_version") is None


@pytest.mark.parametrize(("recorded", "differs"), [("2.5.1", False), ("2.5.1+cu124", False), ("2.6.0", True)])
def test_torchs_files_are_compared_with_its_record(tmp_path: Path, recorded: str, differs: bool) -> None:
    torch = {"__version__": "2.5.1+cu124", "cuda": "12.4", "hip": None, "git_version": "a", "path": "/t", "architectures": None}
    facts = reported(tmp_path, torch=torch, packages=[package("torch", recorded)])
    assert value(facts, "environment.torch_differs") is differs
    assert facts.get("torch.arch_list") is None


def test_a_cpu_build_has_no_cuda(tmp_path: Path) -> None:
    torch = {"__version__": "2.5.1+cpu", "cuda": None, "hip": None, "git_version": "a", "path": "/t", "architectures": None}
    facts = reported(tmp_path, torch=torch)
    assert value(facts, "torch.cuda_version") is ABSENT
    assert value(facts, "torch.arch_list") is ABSENT


def test_operators_built_for_nothing_are_not_built(tmp_path: Path) -> None:
    build = {"operators": [], "torch": {"version": "0.0", "cuda_version": "0.0"}}
    facts = reported(tmp_path, deepspeed=build)
    assert value(facts, "deepspeed.prebuilt_ops") == []
    assert value(facts, "deepspeed.built_for_cuda") is ABSENT


@pytest.mark.parametrize("output", ["", "not json", "[]", "{}", '{"python": {}}', "null", '{"python": 3}'])
def test_an_answer_that_cannot_be_read_leaves_everything_unknown(tmp_path: Path, output: str) -> None:
    facts = examine(tmp_path, output)
    assert facts.get("pkg.torch") is None
    assert facts.why_unknown("torch.cuda_version") is not None
    assert "packages" in facts.subjects


def test_an_interpreter_that_fails_or_hangs_is_a_reason(tmp_path: Path) -> None:
    assert "exit code 3" in str(examine(tmp_path, "", code=3).why_unknown("pkg.torch"))
    program = tmp_path / "slow"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    assert "no answer" in str(environment.facts(str(program), deadline_s=0.2).why_unknown("pkg.torch"))


def test_what_is_no_interpreter_is_the_users_mistake(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="no Python interpreter"):
            environment.facts(str(path))
