from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcheck.probe import knobs
from llmcheck.rules.facts import ABSENT, Facts, load_registry
from tests.unit.probe.machines import make


def look(collector: Any, machine: Any) -> Facts:
    facts = Facts()
    collector(machine, facts)
    return facts


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(name)
    return None if fact is None else fact.value


def test_the_list_is_the_registrys() -> None:
    assert {name.removeprefix("env.") for name in load_registry().names() if name.startswith("env.")} == set(knobs.KNOBS)


def test_only_names_on_the_list_are_read(tmp_path: Path) -> None:
    facts = look(knobs.variables, make(tmp_path, NCCL_DEBUG="INFO", HF_TOKEN="hf_secret", AWS_SECRET_ACCESS_KEY="x", NCCL_SECRET="y"))
    assert value(facts, "env.NCCL_DEBUG") == "INFO"
    assert value(facts, "env.NCCL_P2P_DISABLE") is ABSENT
    assert "secret" not in repr(facts).lower()


def test_values_are_cut(tmp_path: Path) -> None:
    assert len(value(look(knobs.variables, make(tmp_path, CUDA_VISIBLE_DEVICES="0," * 10_000)), "env.CUDA_VISIBLE_DEVICES")) == 300


def test_nccls_files_count_less_than_the_environment(tmp_path: Path) -> None:
    files = {
        "/etc/nccl.conf": "# site\nNCCL_IB_DISABLE=1\nNCCL_DEBUG=WARN\nNCCL_ALGO=Ring\nOTHER=1\n",
        "/me/.nccl.conf": "NCCL_ALGO = Tree\n",
    }
    machine = make(tmp_path, files, HOME="/me", NCCL_DEBUG="INFO")
    facts = look(knobs.variables, machine)
    fact = facts.get("env.NCCL_IB_DISABLE")
    assert fact is not None
    assert fact.location is not None
    assert (fact.value, fact.location.uri, fact.location.line) == ("1", "/etc/nccl.conf", 2)
    assert (value(facts, "env.NCCL_DEBUG"), value(facts, "env.NCCL_ALGO")) == ("INFO", "Tree")


@pytest.mark.parametrize(
    ("setting", "unknown", "expandable"),
    [
        ("expandable_segments:True", ABSENT, True),
        ("expandable_segments:False,max_split_size_mb:512", ABSENT, False),
        ("expandable_segment:True", ["expandable_segment"], False),
        ("roundup_power2_divisions:[256:1,512:2,>:4],backend:native", ABSENT, False),
        (" max_split_size_mb : 128 ", ABSENT, False),
        ("max_split_size_mb=128", ["max_split_size_mb=128"], False),
    ],
)
def test_options_of_the_allocator(tmp_path: Path, setting: str, unknown: Any, expandable: bool) -> None:
    facts = look(knobs.variables, make(tmp_path, PYTORCH_CUDA_ALLOC_CONF=setting))
    assert value(facts, "host.allocator_keys_unknown") == unknown
    assert value(facts, "host.allocator_expandable") is expandable


def test_the_new_name_of_the_allocators_variable_comes_first(tmp_path: Path) -> None:
    facts = look(knobs.variables, make(tmp_path, PYTORCH_CUDA_ALLOC_CONF="a:1", PYTORCH_ALLOC_CONF="backend:native"))
    assert value(facts, "host.allocator_keys") == ["backend"]
    assert value(facts, "host.allocator_variables_differ") == ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"]
    same = look(knobs.variables, make(tmp_path, PYTORCH_CUDA_ALLOC_CONF="backend:native", PYTORCH_ALLOC_CONF="backend:native"))
    assert value(same, "host.allocator_variables_differ") is ABSENT


def test_libraries_before_torchs_own(tmp_path: Path) -> None:
    files = {
        "/cuda/lib64/libcublas.so.11": "",
        "/cuda/lib64/stubs/libcuda.so": "",
        "/driver/libcuda.so.1": "",
        "/driver/libcudadebugger.so.1": "",
    }
    machine = make(tmp_path, files, LD_LIBRARY_PATH="/driver:/cuda/lib64:/cuda/lib64/stubs/:relative::/none")
    facts = look(knobs.libraries, machine)
    assert value(facts, "host.library_shadows") == ["/cuda/lib64/libcublas.so.11"]
    assert value(facts, "host.library_stubs") == ["/cuda/lib64/stubs/"]
    assert value(look(knobs.libraries, make(tmp_path, LD_LIBRARY_PATH="/driver")), "host.library_shadows") is ABSENT
