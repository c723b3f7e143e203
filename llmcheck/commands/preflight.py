"""What `llmcheck doctor` would stop a run for, asked by `llmcheck train` before anything is started; and what is allowed all the same."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmcheck.console import complain, tell, terminal
from llmcheck.errors import UserError, did_you_mean
from llmcheck.planfile import Allowed
from llmcheck.units import MIB

TRAINER_CODES = ("plan-edited", "pad-is-eos", "other-run", "does-not-fit", "tokenizer", "seq-len")  # the trainer's identity.ALLOWABLE
_SAME = {"plan-edited": "LCM102", "does-not-fit": "LCM101"}  # a check of the trainer's -> the rule about the same
# Right for other trainers, and not for a run that is started here.
_NOT_OURS = frozenset(
    {
        "LCD007",  # a column changes its type: ours reads row by row, without a schema
        "LCD020",  # rows are laid out in several ways: each row's shape is told by itself
        "LCH150",  # more slots in the hostfile than the plan has GPUs: the launcher is told how many to take, and too few are an error
        "LCM115",  # likewise hosts
    }
)
_FILE_BYTES, _DATA_BYTES = 64 * MIB, 256 * MIB  # read of a file, and of all: seconds; the preparation counts what is bad in the rest
_ROWS = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz")  # what doctor's probe of data reads


class StoppedError(UserError):
    """The input can be read, and what was found in it stops the run: exit code 1."""

    exit_code = 1


def allowances(words: Iterable[str]) -> tuple[Allowed, ...]:
    """What --allow says: CODE=reason, or codes of the trainer's with commas. Raises UserError for unknown codes and missing reasons."""
    found: dict[str, Allowed] = {}
    for word in words:
        code, equals, reason = word.partition("=")
        codes = [code] if equals else word.split(",")
        for each in filter(None, (one.strip() for one in codes)):
            known = each if each in TRAINER_CODES else each.upper()
            if equals and not reason.strip():
                raise _no_reason(each)
            if not reason.isprintable():
                what = f"the reason of --allow {each} has characters that cannot be printed"
                raise UserError(what, code="usage", where="--allow", why="the plan and the receipt keep it", hint="one line of plain text")
            _check(known, each, reasoned=bool(equals))
            found[known] = Allowed(code=known, reason=reason.strip())
    return tuple(found.values())


def _check(code: str, typed: str, *, reasoned: bool) -> None:
    if code in TRAINER_CODES:
        return
    known = _codes()
    if code not in known:
        near = did_you_mean(typed, [*TRAINER_CODES, *known])
        hint = near or "it knows " + ", ".join(TRAINER_CODES) + ", and the codes of doctor's rules"
        raise UserError(f"--allow does not know {typed[:60]!r}", code="usage", where="--allow", hint=hint)
    if not reasoned:
        raise _no_reason(code)


def _no_reason(code: str) -> UserError:
    return UserError(
        f"--allow {code} says no reason",
        code="usage",
        where="--allow",
        why="the plan keeps why a finding was passed over, for whoever looks at the run later",
        hint=f"--allow {code}='why it is safe here'",
    )


def _codes() -> list[str]:
    """Of our rules, and of a team's own that llmcheck.toml names."""
    from llmcheck.report import settings as gate_settings
    from llmcheck.rules.facts import load_registry
    from llmcheck.rules.load import load_all, shipped_codes

    own = gate_settings.load(None).rules_here()
    packs = load_all(load_registry(), own, []) if own else []
    return [*shipped_codes(), *(rule.code for pack in packs for rule in pack.rules)]


def covers(allowed: Iterable[str], code: str) -> bool:
    """True when `code`, or what another part of llmcheck calls the same, is among `allowed`."""
    names = {code, _SAME.get(code, code), *(name for name, other in _SAME.items() if other == code)}
    return not names.isdisjoint(allowed)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is about to be run. `machine`: this machine and environment are the run's. `files`: raw data. `max_bad` was given for them."""

    plan: str
    weights: str | None
    tokenizer: str | None
    files: Sequence[str]
    hostfile: str | None
    machine: bool
    bad_rows_allowed: bool = False


def examine(run: Run, allowed: Sequence[Allowed], environ: Mapping[str, str] = os.environ) -> None:
    """Raises StoppedError where a rule finds what would stop `run`, or spoil it, and `allowed` does not name it."""
    from datetime import date

    from llmcheck.doctor.examine import examine as judge
    from llmcheck.doctor.subjects import gather
    from llmcheck.render import report_text
    from llmcheck.report import settings as gate_settings
    from llmcheck.report.gate import apply, gates
    from llmcheck.report.secretless import finding_without_secrets, without_secrets
    from llmcheck.rules.facts import load_registry
    from llmcheck.rules.load import load_all, shipped_ids
    from llmcheck.rules.rule import SEVERITIES

    registry = load_registry()
    settings = gate_settings.load(None)
    packs = load_all(registry, settings.rules_here(), [name for name in shipped_ids() if name != "signatures"])
    if environ.get("DS_ACCELERATOR") == "cpu":  # said by the user: what is wrong with GPUs does not concern a run without
        packs = [_without_gpu_rules(pack, registry) for pack in packs]
    gate = gate_settings.gate(
        settings, fail_on=None, min_confidence=None, select=(), ignore=(), baseline=None, allow_unknown=(), strict=False
    )
    today = date.today()
    report = apply(without_secrets(judge(packs, gather(_requests(run)), registry, gate, today)), gate, today)
    if gate.fail_on == "never":
        return
    bar = SEVERITIES.index(gate.fail_on)
    stops = [f for f in report.active() if gates(f, gate) and SEVERITIES.index(f.severity) <= bar and f.code not in _NOT_OURS]
    if run.bad_rows_allowed:  # --max-bad says how many are too many, and the preparation counts them all
        stops = [finding for finding in stops if not finding.code.startswith("LCD")]
    codes = {each.code for each in allowed}
    reasons = {each.code: each.reason for each in allowed}
    blocking = [finding for finding in stops if not covers(codes, finding.code)]
    told = {finding.code for finding in stops if finding not in blocking}
    complain([f"allowed {code}: {reasons[code]}" for code in sorted(told) if reasons.get(code)])
    _tell_rest(run, [f.code for f in report.active() if f.severity == "warning"], [f.code for f in report.unknown()])
    if not blocking:
        return
    tell(report_text.render_findings([finding_without_secrets(finding) for finding in blocking], terminal(sys.stderr)))
    names = list(dict.fromkeys(finding.code for finding in blocking))
    ways = [f"mend {'them' if len(names) > 1 else 'it'}", f"go on with a reason: --allow {names[0]}='...'"]
    if any(name.startswith("LCD") for name in names):
        ways.append("say how many rows may be bad: --max-bad N")
    if "LCM104" in names and environ.get("DS_ACCELERATOR") != "cpu":
        ways.append("for a trial on the CPU set DS_ACCELERATOR=cpu")
    raise StoppedError(
        f"{len(blocking)} finding{'s' if len(blocking) > 1 else ''} of doctor's would stop or spoil this run",
        code="doctor",
        where=", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else ""),
        why="nothing was started, and nothing was prepared",
        hint="; or ".join(ways),
    )


def _requests(run: Run) -> list[Any]:
    from llmcheck.doctor.subjects import Request

    rows = _rows(run)
    return [
        Request(
            environment=run.machine,
            tokenizer=run.tokenizer,
            model=run.weights,
            plan=run.plan,
            plan_config=True,
            hostfile=run.hostfile,
            data=rows,
            data_max_bytes=min(_FILE_BYTES, _DATA_BYTES // max(len(rows), 1)),
        )
    ]


def _rows(run: Run) -> tuple[str, ...]:
    return tuple(file for file in dict.fromkeys(run.files) if file.lower().endswith(_ROWS) and os.path.isfile(file))


def _without_gpu_rules(pack: Any, registry: Any) -> Any:
    from llmcheck.doctor.examine import subjects_of

    return replace(pack, rules=tuple(rule for rule in pack.rules if "gpu" not in subjects_of(rule, registry)))


def _tell_rest(run: Run, warnings: list[str], unknown: list[str]) -> None:
    """What does not stop the run, in a line each: doctor has it in full."""
    left = [what for what, there in (("the model's folder", run.weights), ("the tokenizer", run.tokenizer)) if not there]
    left += [file for file in dict.fromkeys(run.files) if file not in _rows(run)]
    if left:
        more = f" and {len(left) - 6} more" if len(left) > 6 else ""
        complain([f"note: not examined by doctor: {', '.join(left[:6])}{more} (not on this disk, or of a kind that it does not read)"])
    words = ["llmcheck", "doctor", *(["--all"] if run.machine else []), "--plan", run.plan]
    words += [word for flag, value in (("--model", run.weights), ("--tokenizer", run.tokenizer)) if value for word in (flag, value)]
    words += [word for file in _rows(run) for word in ("--data", file)]
    for codes, what in ((warnings, "warned"), (unknown, "could not be decided")):
        names = list(dict.fromkeys(codes))
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            rules = "1 rule" if len(names) == 1 else f"{len(names)} rules"
            complain([f"note: {rules} {what} ({', '.join(names[:6])}{more}): {shlex.join(words)}"])
