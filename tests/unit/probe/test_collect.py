from __future__ import annotations

import sys
import threading

import pytest

from llmcheck.probe.collect import Collector, CommandError, collect, find_program, run_command
from llmcheck.rules.facts import Facts


def test_one_that_fails_does_not_take_the_others_down() -> None:
    def fail(_facts: Facts) -> None:
        raise ValueError("boom")

    found = collect(
        [
            Collector(title="bad", names=("a.*", "b"), run=fail),
            Collector(title="good", names=("c",), run=lambda facts: facts.put("c", 1)),
        ]
    )
    assert found.known["c"].value == 1
    assert found.why_unknown("a.x") == "bad: ValueError: boom"
    assert found.get("b") is None


def test_one_that_hangs_is_left_behind_and_what_it_found_is_not_used() -> None:
    released = threading.Event()

    def hang(facts: Facts) -> None:
        facts.put("a", 1)
        released.wait(30)

    found = collect([Collector(title="nfs", names=("a",), run=hang)], deadline_s=0.1)
    released.set()
    assert found.get("a") is None
    assert found.why_unknown("a") == "nfs: no answer in 0.1 s"


def test_commands_fail_with_a_reason() -> None:
    with pytest.raises(CommandError, match="exit code 2: sorry"):
        run_command([sys.executable, "-c", "import sys; print('sorry', file=sys.stderr); sys.exit(2)"])
    with pytest.raises(CommandError, match="No such file"):
        run_command(["/no/such/program"])
    with pytest.raises(CommandError, match="no answer in"):
        run_command([sys.executable, "-c", "import time; time.sleep(20)"], deadline_s=0.2)


def test_output_that_is_no_text_and_too_long_is_cut() -> None:
    output = run_command([sys.executable, "-c", "import sys; sys.stdout.buffer.write(b'\\xff' * 3000000)"])
    assert len(output.text) == 1 << 20
    assert set(output.text) == {"\ufffd"}


def test_programs_are_found_on_the_given_path_only(tmp_path: object) -> None:
    assert find_program("sh", {"PATH": "/nowhere"}) is None
    assert find_program("sh", {"PATH": "/nowhere:/bin:/usr/bin"}) in ("/bin/sh", "/usr/bin/sh")
