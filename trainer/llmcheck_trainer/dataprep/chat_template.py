"""A tokenizer's own chat template: rows go to the process of renderer.py and come back as segments."""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck_trainer.dataprep.rows import BadRowError, Sample
from llmcheck_trainer.dataprep.templates import NO_TAIL, Segment

SILENCE_S = 120.0  # after which the renderer is taken for stuck; 5,000 rows take it half a second
_PIECE_BYTES = 1 << 20


class ChatTemplate:
    """A running renderer. Use as a context manager: leaving it ends the process."""

    adds_bos = False  # chat templates write the begin token themselves

    def __init__(self, name: str, text: str, *, variables: Mapping[str, str], ends: Sequence[str], date: str) -> None:
        if not _has_jinja():
            raise CouldNotCheckError(
                "the tokenizer's chat template needs jinja2",
                code="missing-package",
                where="--template",
                why="jinja2 is not installed",
                hint='pip install "llmcheck[data]", or choose a template with --template',
            )
        self.uses_date = "strftime_now" in text
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.name = name
        self._ends = tuple(ends)
        self.num_missing = 0  # answers that could not be told from the rest
        self.num_endless = 0  # conversations without an end token in the loss
        # -P and no inherited settings: nothing in the current folder is imported in place of a package.
        command = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-m", "llmcheck_trainer.dataprep.renderer"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._buffer = b""
        try:
            self._send({"template": text, "variables": dict(variables), "ends": list(ends), "date": date})
            answer = self._receive()
            if "error" in answer:
                raise UserError(
                    "the chat template cannot be compiled",
                    code="template",
                    where="--template",
                    why=answer["error"],
                    hint="choose another with --template",
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the renderer."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was not sent yet
                    pass

    def render(self, samples: Sequence[Sample]) -> list[list[Segment] | BadRowError]:
        """The segments of each conversation, or why it has none. Raises UserError when the renderer fails."""
        if not samples:
            return []
        self._send([[_messages(sample), sample.tools, _learn(sample)] for sample in samples])
        answers = self._receive()
        if isinstance(answers, dict):
            raise UserError(
                "the chat template fails", code="template", where="--template", why=answers["error"], hint="choose another with --template"
            )
        results: list[list[Segment] | BadRowError] = []
        for answer in answers:
            if isinstance(answer, dict):
                results.append(BadRowError("template", answer["error"]))
            else:
                segments, missing = answer
                self.num_missing += missing
                learnt_texts = [text for text, learnt in segments if learnt]
                self.num_endless += bool(learnt_texts) and not learnt_texts[-1].rstrip().endswith(self._ends)
                results.append([(text, learnt, NO_TAIL) for text, learnt in segments])
        return results

    def _send(self, document: Any) -> None:
        # What tables hold beside text in a turn, dates and the like, is handed on as text.
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(document, default=str).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as reason:
            raise self._died() from reason

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            parts = [self._buffer]
            while b"\n" not in parts[-1]:
                if not selector.select(SILENCE_S):
                    raise UserError(
                        "the chat template hangs",
                        code="template",
                        where="--template",
                        why=f"no answer for {SILENCE_S:g} s",
                        hint="choose another",
                    )
                part = os.read(self._process.stdout.fileno(), _PIECE_BYTES)
                if not part:
                    raise self._died()
                parts.append(part)
        line, _, self._buffer = b"".join(parts).partition(b"\n")
        return json.loads(line)

    def _died(self) -> UserError:
        code = self._process.wait()
        return UserError(
            "the process that renders the chat template ended",
            code="template",
            where="--template",
            why=f"exit code {code}",
            hint="choose another template with --template",
        )


def _messages(sample: Sample) -> list[dict[str, Any]]:
    return [{"role": turn.role, "content": turn.whole, **(turn.extra or {})} for turn in sample.turns]


def _learn(sample: Sample) -> list[bool]:
    """For each answer whether it is learnt."""
    return [turn.learn and turn.says_something for turn in sample.turns if turn.role == "assistant"]


def _has_jinja() -> bool:
    from importlib.util import find_spec

    return find_spec("jinja2") is not None
