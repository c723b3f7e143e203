"""`llmcheck data`'s hold on the process that does its work."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from llmcheck.commands import data

# Asks the process above to stop, as a scheduler would, and does not hear what that hands on.
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.kill(os.getppid(), {number})
time.sleep(0.2)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)])
def test_a_request_to_stop_is_not_lost_where_the_work_ends_all_the_same(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `llmcheck train`, asked to stop while data is prepared, would go on to train."""
    (tmp_path / "deaf.py").write_text(DEAF.format(number=int(number)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(data, "MODULE", "deaf")
    before = signal.getsignal(number)

    assert data.call({"action": "none"}) == code
    assert signal.getsignal(number) == before
