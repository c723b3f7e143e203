"""The benchmark of the time model: how its rows are summed up and written. Nothing is estimated."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.steptime import run


def test_a_group_is_summed_up_by_the_sizes_of_its_errors() -> None:
    words = run.Group("all", (0.1, -0.2, 0.3, -0.4)).words()
    assert words == ("all", "4", "25.0%", "25.0%", "40.0%", "40.0%", "-5.0%")


def test_an_empty_group_has_no_figures() -> None:
    assert run.Group("none", ()).words() == ("none", "0", "", "", "", "", "")


def test_a_results_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "measure", list)
    assert run.main([]) == 0
    (written,) = tmp_path.iterdir()
    assert written.name.startswith("step-time-")
    text = written.read_text(encoding="utf-8")
    assert "made by: `python -m benchmarks.steptime.run`" in text
    assert "| ground truth, peaks.jsonl, all | 0 |" in text
    assert written.name in capsys.readouterr().out
