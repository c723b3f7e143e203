"""A step that repeats the one before, written on the tape without executing it.

From the second step on nothing changes any more: states are there, ZeRO-3 knows the order of the modules. So the third step has the
second's events, with requests of its own. That it does is checked against the execution in ``tests/laws``.
"""

from __future__ import annotations

from typing import NamedTuple

from llmcheck.shadow.tensor import Tape


class Start(NamedTuple):
    """Where a step starts on the tape."""

    event: int
    request: int
    mark: int


def start_of_step(tape: Tape) -> Start:
    """Where a step starts that is executed next."""
    return Start(len(tape.events), len(tape.sizes), len(tape.marks))


def repeat(tape: Tape, before: Start, last: Start, step: int) -> bool:
    """Write the tape's last step, which started at `last`, once more, as `step`. False (and nothing is written) where it may not repeat.

    What the step that started at `before` left to the last one to free, the last one leaves to its repetition.
    """
    shift = len(tape.sizes) - last.request
    events = tape.events[last.event :]
    inherited = sorted(~e for e in events if e < 0 and ~e < last.request)
    gone = {~e for e in events if e < 0}
    left = [i for i in range(last.request, len(tape.sizes)) if i not in gone]
    if any(i < before.request for i in inherited) or [_request(tape, i) for i in inherited] != [_request(tape, i) for i in left]:
        return False
    freed = dict(zip(inherited, left, strict=True))
    start = len(tape.events)
    tape.events += [e + shift if e >= 0 else e - shift if ~e >= last.request else ~freed[~e] for e in events]
    tape.sizes += tape.sizes[last.request :]
    tape.categories += tape.categories[last.request :]
    tape.streams += tape.streams[last.request :]
    for position, kind, name in tape.marks[last.mark :]:
        tape.marks.append((position - last.event + start, kind, name.replace(str(step - 1), str(step))))
    return True


def _request(tape: Tape, i: int) -> tuple[int, str, int]:
    return tape.sizes[i], tape.categories[i], tape.streams[i]
