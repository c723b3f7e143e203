from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcheck.errors import UserError
from llmcheck.probe import hostfile
from llmcheck.rules.facts import ABSENT, Facts


def read(tmp_path: Path, text: str, **options: Any) -> dict[str, Any]:
    (tmp_path / "hostfile").write_text(text, encoding="utf-8")
    facts = hostfile.facts(str(tmp_path / "hostfile"), **options)
    return {name.removeprefix("hostfile."): fact.value for name, fact in facts.known.items()}


def test_hosts_and_slots_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, "# two nodes\nworker-0 slots=8\n\n  worker-1\tslots=8  # the second\n")
    assert (found["num_hosts"], found["num_slots"], found["slots_differ"]) == (2, 16, False)
    assert [found[key] for key in ("bad_lines", "duplicates", "ignored_text", "filter_error")] == [ABSENT] * 4


@pytest.mark.parametrize("line", ["worker-1 slots = 8", "worker-1:8", "worker-1", "slots=8", "worker-1 SLOTS=8", "worker-1 slots=-1"])
def test_lines_that_the_launcher_refuses(tmp_path: Path, line: str) -> None:
    assert read(tmp_path, f"worker-0 slots=8\n{line}\n")["bad_lines"] == [line]


def test_a_bad_line_has_a_place(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("a slots=1\nb\n")
    fact = hostfile.facts(str(tmp_path / "h")).known["hostfile.bad_lines"]
    assert fact.location is not None
    assert fact.location.line == 2


def test_what_goes_wrong_silently(tmp_path: Path) -> None:
    found = read(tmp_path, "a slots=4 max_slots=8\na slots=4\nb slots=0\nlocalhost slots=8\nme@c slots=8\n")
    assert found["ignored_text"] == ["max_slots=8"]
    assert found["duplicates"] == ["a"]  # once, however often it is repeated
    assert found["hosts_without_slots"] == ["b"]
    assert found["localhost_among_others"] is True
    assert found["strange_names"] == ["me@c"]
    assert found["slots_differ"] is True


def test_a_byte_order_mark_becomes_part_of_the_name(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffworker-0 slots=8\n")["strange_names"] == ["\ufeffworker-0"]


@pytest.mark.parametrize(
    ("include", "exclude", "slots", "hosts"),
    [
        ("", "", 12, 2),
        ("a", "", 8, 1),
        ("a@b:0,2", "", 10, 2),
        ("b:1,1,1", "", 1, 1),
        ("", "b", 8, 1),
        ("", "a:0", 11, 2),
        ("", "a:0,1,2,3,4,5,6,7", 4, 1),
    ],
)
def test_filters_leave_what_the_launcher_leaves(tmp_path: Path, include: str, exclude: str, slots: int, hosts: int) -> None:
    found = read(tmp_path, "a slots=8\nb slots=4\n", include=include, exclude=exclude)
    assert (found["selected_slots"], found["selected_hosts"]) == (slots, hosts)


@pytest.mark.parametrize(("include", "exclude"), [("c", ""), ("a:8", ""), ("a", "b"), ("a:x", ""), ("a:", ""), ("a:1:2", ""), ("@", "")])
def test_filters_that_the_launcher_refuses(tmp_path: Path, include: str, exclude: str) -> None:
    found = read(tmp_path, "a slots=8\nb slots=4\n", include=include, exclude=exclude)
    assert found["filter_error"] is not ABSENT
    assert found["selected_slots"] is ABSENT


def test_a_missing_file_is_a_fact_since_the_launcher_goes_on_without(tmp_path: Path) -> None:
    facts = hostfile.facts(str(tmp_path / "none"), wanted_slots=16)
    assert facts.known["hostfile.exists"].value is False
    num_hosts = facts.get("hostfile.num_hosts")
    assert num_hosts is not None
    assert num_hosts.value is ABSENT


def test_an_empty_file_has_no_hosts(tmp_path: Path) -> None:
    assert read(tmp_path, "# worker-0 slots=8\n")["num_hosts"] == 0


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(b"a slots=1\n" * 500_000)
    with pytest.raises(UserError, match="larger than"):
        hostfile.facts(str(tmp_path / "h"))


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    found = hostfile.parse(text)
    hostfile.select(found.slots) if sum(found.slots.values()) < 1000 else None


def test_hosts_are_tried_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("a slots=1\n")
    facts = hostfile.facts(str(tmp_path / "h"))
    assert "not tried" in str(facts.why_unknown("hostfile.unreachable"))


def test_hosts_that_do_not_answer_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(hostfile, "SSH_PORT", server.getsockname()[1])
    threading.Thread(target=server.accept, daemon=True).start()
    (tmp_path / "h").write_text("127.0.0.1 slots=1\nno-such-host.invalid slots=1\n")
    facts: Facts = hostfile.facts(str(tmp_path / "h"), reach=True, deadline_s=2)
    server.close()
    assert facts.known["hostfile.unreachable"].value == ["no-such-host.invalid"]
