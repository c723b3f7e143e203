from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.errors import UserError
from llmcheck.probe import requirements
from llmcheck.probe.requirements import logical_lines
from llmcheck.rules.facts import ABSENT, Facts


def read(tmp_path: Path, text: str, name: str = "requirements.txt", **others: str) -> Facts:
    for other, content in others.items():
        (tmp_path / other.replace("__", ".")).write_text(content)
    (tmp_path / name).write_text(text)
    return requirements.facts(str(tmp_path / name))


def pin(facts: Facts, name: str) -> Any:
    fact = facts.get(f"pkg.{name}")
    return None if fact is None else fact.value


def test_pins_have_a_place(tmp_path: Path) -> None:
    facts = read(tmp_path, "# comment\n\ntorch==2.5.1+cu124  # why\nTransformers[torch] == 4.46.1 ; python_version >= '3.7'\n")
    fact = facts.get("pkg.torch")
    assert fact is not None
    assert fact.location is not None
    assert (fact.value, fact.location.line) == ("2.5.1+cu124", 3)
    assert pin(facts, "transformers") == "4.46.1"
    assert facts.known["build.torch"].value == "cu124"


@pytest.mark.parametrize("text", ["peft", "peft>=0.10", "peft==0.10.*", "peft~=0.10", "peft!=0.10.0", "peft>=0.10,<=0.10.1", "peft<1"])
def test_a_range_is_not_known(tmp_path: Path, text: str) -> None:
    facts = read(tmp_path, text + "\n")
    assert facts.get("pkg.peft") is None
    assert "not pinned" in str(facts.why_unknown("pkg.peft"))
    assert "requirements.txt:1" in str(facts.why_unknown("pkg.peft"))


def test_a_pin_beside_a_range_counts(tmp_path: Path) -> None:
    assert pin(read(tmp_path, "numpy>=1.26\nnumpy==2.1.0\n"), "numpy") == "2.1.0"


def test_two_pins_that_differ_are_not_known(tmp_path: Path) -> None:
    facts = read(tmp_path, "numpy==1.26.4\nnumpy==2.1.0\n")
    assert "several versions" in str(facts.why_unknown("pkg.numpy"))


def test_what_such_a_file_does_not_name_may_be_there(tmp_path: Path) -> None:
    facts = read(tmp_path, "torch==2.5.1\n")
    assert facts.get("pkg.tokenizers") is None
    build = facts.get("build.torch")
    assert build is not None
    assert build.value is ABSENT


def test_markers_that_do_not_hold_leave_a_line_out(tmp_path: Path) -> None:
    facts = read(tmp_path, "torch==1.0 ; sys_platform == 'nowhere'\ntorch==2.5.1 ; sys_platform != 'nowhere'\nx==1 ; extra == 'dev'\n")
    assert pin(facts, "torch") == "2.5.1"
    assert facts.get("pkg.x") is None


def test_hashes_and_continued_lines(tmp_path: Path) -> None:
    facts = read(tmp_path, "torch==2.5.1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\npeft==0.13.0 --hash=sha256:cc\n")
    assert (pin(facts, "torch"), pin(facts, "peft")) == ("2.5.1", "0.13.0")
    fact = facts.get("pkg.peft")
    assert fact is not None
    assert fact.location is not None
    assert fact.location.line == 4


def test_wheels_name_their_version_and_other_urls_do_not(tmp_path: Path) -> None:
    facts = read(
        tmp_path,
        "torch @ https://example.com/whl/torch-2.5.1%2Bcu121-cp311-cp311-linux_x86_64.whl\n"
        "https://example.com/flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp311-cp311-linux_x86_64.whl\n"
        f"transformers @ git+https://example.com/t.git@{'a' * 40}\n-e git+https://example.com/x.git#egg=Peft\n",
    )
    assert (pin(facts, "torch"), pin(facts, "flash-attn")) == ("2.5.1+cu121", "2.8.3+cu12torch2.8cxx11abiTRUE")
    assert "commit aaaa" in str(facts.why_unknown("pkg.transformers"))
    assert "not pinned" in str(facts.why_unknown("pkg.peft"))


def test_included_files_are_read_and_cycles_end(tmp_path: Path) -> None:
    facts = read(
        tmp_path, "-r base.txt\n--requirement=more.txt\n", base__txt="torch==2.5.1\n-r requirements.txt\n", more__txt="peft==0.13.0\n"
    )
    assert (pin(facts, "torch"), pin(facts, "peft")) == ("2.5.1", "0.13.0")
    fact = facts.get("pkg.torch")
    assert fact is not None
    assert fact.location is not None
    assert fact.location.uri.endswith("base.txt")


def test_constraints_pin_what_is_asked_for_only(tmp_path: Path) -> None:
    facts = read(tmp_path, "torch>=2\n-c constraints.txt\n", constraints__txt="torch==2.5.1\nnumpy==2.0.0\n")
    assert pin(facts, "torch") == "2.5.1"
    assert facts.get("pkg.numpy") is None


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd", "https://example.com/r.txt", "link.txt"])
def test_files_outside_are_refused(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "project"
    inner.mkdir()
    (tmp_path / "outside.txt").write_text("torch==1.0\n")
    (inner / "link.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(UserError, match="outside"):
        read(inner, f"-r {name}\n")


def test_long_chains_of_files_are_refused(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"r{number}.txt").write_text(f"-r r{number + 1}.txt\n")
    (tmp_path / "r20.txt").write_text("torch==1.0\n")
    with pytest.raises(UserError, match="too many files"):
        requirements.facts(str(tmp_path / "r0.txt"))


def test_indexes_are_told_without_their_password(tmp_path: Path) -> None:
    facts = read(tmp_path, "--extra-index-url https://user:secret@example.com/whl\ntorch==2.5.1\n")
    assert facts.known["packages.other_indexes"].value == ["https://example.com/whl"]


@pytest.mark.parametrize("name", ["Dockerfile", "setup.py", "a.lock"])
def test_files_of_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot read packages"):
        read(tmp_path, "torch==2.5.1\n", name=name)


def test_missing_files_folders_and_other_encodings(tmp_path: Path) -> None:
    for path in (tmp_path / "requirements.txt", tmp_path):
        with pytest.raises(UserError, match=r"cannot read (the list of )?packages"):
            requirements.facts(str(path))
    (tmp_path / "requirements.txt").write_bytes(b"torch==2.5.1\n\xff\xfe\x00\n")
    with pytest.raises(UserError) as caught:
        requirements.facts(str(tmp_path / "requirements.txt"))
    assert "UTF-8" in caught.value.why
    (tmp_path / "requirements.txt").write_bytes("torch==2.5.1\n".encode("utf-16"))  # PowerShell
    assert pin(requirements.facts(str(tmp_path / "requirements.txt")), "torch") == "2.5.1"


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    requirements.requirements_text(
        "/nowhere/r.txt", text.replace("-r", "").replace("-c", "").replace("--req", "").replace("--con", ""), "-", []
    )


def test_logical_lines_keep_the_first_number() -> None:
    assert logical_lines("a\\\nb\n#c\n\nd #e\nf#g\n") == [(1, "a b"), (5, "d"), (6, "f#g")]
