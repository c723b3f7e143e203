"""A line of a log without what was put around it: colour codes, timestamps, prefixes of launchers and collectors.

What is taken off tells something, and is kept: the level the line was logged at, the rank, and the stream that it was interleaved from.
"""

from __future__ import annotations

import functools
import json
import re
from typing import NamedTuple

from llmcheck.rules.patterns import WINDOW_CHARS
from llmcheck.rules.rule import Level

MAX_RAW_BYTES = 64 << 10  # of a line that are looked at: room for the colour codes among the characters that a pattern gets to see
_MAX_PREFIXES = 8  # a line may wear several: collector, container, launcher, logger
_MAX_PREFIX_CHARS = 400  # of the line that prefixes are looked for in

_LEVELS: dict[str, Level] = {
    "TRACE": "debug",
    "DEBUG": "debug",
    "V": "debug",
    "D": "debug",
    "INFO": "info",
    "NOTICE": "info",
    "I": "info",
    "WARN": "warning",
    "WARNING": "warning",
    "W": "warning",
    "ERROR": "error",
    "CRITICAL": "error",
    "FATAL": "error",
    "E": "error",
    "F": "error",
    "C": "error",
}
_WORDS = "|".join(sorted((word for word in _LEVELS if len(word) > 1), key=len, reverse=True))


class Clean(NamedTuple):
    """A line as patterns see it. `stream` names the prefix that it shares with the lines of the same process, or is empty."""

    text: str
    level: Level | None = None
    rank: int | None = None
    stream: str = ""


# Control sequences of terminals (ECMA-48): CSI, OSC with its end, the other strings, two-character escapes; and a lone introducer.
_ESCAPES = (
    rb"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b\r\n]{0,2048}(?:\x07|\x1b\\)"
    rb"|[PX^_][^\x1b\r\n]{0,2048}\x1b\\|[ -/]{1,8}[0-~]|[0-OQ-WYZ\\`-~]|[\[\]PX^_])?"
)


def strip_controls(data: bytes) -> bytes:
    """`data` without terminal sequences and NUL bytes, which can split a literal; line ends stay where they are."""
    if b"\x1b" in data:
        data = _escapes().sub(b"", data)
    return data.replace(b"\0", b"") if b"\0" in data else data


def decode(raw: bytes) -> str:
    """`raw` as text: UTF-8, or Latin-1 where nothing in it is valid UTF-8 beyond ASCII, or UTF-8 with replacement characters."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
    # Replaced characters only, and not just the last one (a line that was cut): some one-byte encoding.
    foreign = [c for c in text if not c.isascii()]
    if all(c == "\ufffd" for c in foreign) and not (len(foreign) == 1 and text.endswith("\ufffd")):
        return raw.decode("latin-1")
    return text


# Each alternative is one prefix, at the start of what is left of the line. `stream` groups tell processes apart.
_DAY, _MONTH = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)", "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DATE = rf"(?:\d{{4}}[-/]\d\d[-/]\d\d|\d\d[/-]\d\d[/-]\d{{2,4}}|(?:{_DAY} )?{_MONTH} [ \d]\d)"
_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
_ZONE = r"(?: ?(?:Z|UTC|[+-]\d\d:?\d\d)(?![\w-]))?"
_PREFIXES = (
    # torchrun --tee, which adds no space; torch's own excepthook, which does
    r"\[(?P<tee>default(?P<rank0>\d{1,6}))\]:",
    r"\[(?P<torch>rank[ _]?(?P<rank1>\d{1,6}))\]: ?",
    # srun --label pads the number of the task
    r" {0,5}(?P<slurm>(?P<rank2>\d{1,6})): ",
    # docker compose and the like: a name that ends in a number
    r"(?P<compose>rank[_-]?(?P<rank4>\d{1,6})|[\w.-]{0,80}\d) *\| ?",
    # pdsh and mpirun, as DeepSpeed's launcher uses them
    r"(?P<pdsh>[A-Za-z][\w.]{0,62}(?:-[\w.]{1,62}){0,6}-\d{1,6}): ",
    r"\[(?P<mpi>\d{1,6},(?:mpirank:)?(?P<rank3>\d{1,6})(?:,[\w-]{1,60})?)\]<std(?:out|err)>: ?",
    r"(?P<ray>\((?:[\w.:<>-]{1,80} )?pid=\d+(?:, ip=[\d.a-fA-F:]{1,40})?\)) ?",
    r"(?P<kubectl>\[pod/[^\]\s]{1,200}\]) ?",
    # NCCL: host:pid:tid [device]; kept as a stream, since the device is no rank
    r"(?P<nccl>[\w.-]{1,80}:\d{1,8}:\d{1,8} \[\d{1,3}\]) (?=NCCL )",
    r"##\[(?P<actions>\w{1,10})\]",
    r"::(?P<command>error|warning|notice|debug)(?: [^:]{0,200})?::",
    r"(?:stdout|stderr) [FP] ",
    # glog and c10: letter, month and day, time, thread, file:line]
    r"\[?(?P<glog>[VDIWEFC])(?:\d{3,8} [\d:.]{8,18})?(?: +\d{1,9})? [\w./<>+-]{1,200}\.(?:cpp|cc|cu|cuh|h|hpp|py):\d{1,6}\] ?",
    r"\[NeMo (?P<nemo>[VDIWEFC]) [^\]\n]{0,160}\] ?",
    # vLLM: ERROR 11-24 10:00:00 [core.py:1094] message, the place without brackets in older releases; ms-swift: [INFO:swift] message
    rf"(?P<vllm>{_WORDS}) \d\d-\d\d \d\d:\d\d:\d\d \[?[\w./]{{1,120}}:\d{{1,6}}\] ?",
    rf"\[(?P<swift>{_WORDS}):[A-Za-z_][\w.]{{0,60}}\] ?",
    # transformers: [INFO|trainer.py:1234] 2026-11-24 10:00:00,123 >> message
    rf"\[(?P<hf>{_WORDS})\|[\w./-]{{1,120}}:\d{{1,6}}\](?: {_DATE} {_CLOCK})? ?>> ?",
    rf"\[?{_DATE}[T ] ?{_CLOCK}{_ZONE}(?: \d{{4}})?\]?:? ?(?:(?:-|\|) )?",
    r"(?P<syslog>(?<=\d\d:\d\d:\d\d )[\w.-]{1,80} [\w./-]{1,40}(?:\[\d{1,8}\])?: )",
    rf"\[{_CLOCK}\] ?|{_CLOCK} (?:(?:-|\|) )?",
    r"\[ {0,6}\d{1,8}\.\d{3,6}\] ",
    # a progress bar that another message was written behind
    r" {0,3}(?:[^|\n]{0,60}: {1,3})?\d{1,3}%\|[^|\n]{0,200}\| ?[\d.]{1,12}\w?/[\d.]{1,12}\w? \[[^\]\n]{0,120}\] *(?=\S)",
)

# Groups that name a process, and the group inside that is its rank.
_STREAMS: dict[str, str | None] = {
    "tee": "rank0",
    "torch": "rank1",
    "slurm": "rank2",
    "mpi": "rank3",
    "compose": "rank4",
    "pdsh": None,
    "ray": None,
    "kubectl": None,
    "nccl": None,
}

# The level that a logger wrote, at the start of what is left.
_LEVEL_FORMS = (
    rf"[\s\[(]{{0,8}}(?P<l1>{_WORDS})(?=[\]\s:|),-]|$)",
    rf"[\w./\[\]:-]{{1,120}}(?: -| \||:) ?(?P<l2>{_WORDS}) ?(?:[-|:]|\])",
    rf"(?:\[[^\]\n]{{0,120}}\] ?){{1,4}}?\[ ?(?P<l3>{_WORDS}) ?\]",
    r"NCCL (?P<l4>INFO|WARN|TRACE|ERROR)\b",
    # warnings.warn: file.py:12: UserWarning: message
    r"(?:\S{1,300}:\d{1,6}: )?(?P<l5>\w{0,60}Warning): ",
    rf"\{{[^\n]{{0,200}}?\"(?:level|levelname|severity)\": ?\"(?P<l6>(?i:{_WORDS}))\"",
    # A turn of a conversation that a trainer prints as a sample: words of the data, not of the run.
    r"(?:<\|im_start\|>|### ?)?(?P<talk>[Uu]ser|[Aa]ssistant|[Hh]uman|USER|ASSISTANT|HUMAN|gpt): ?(?=\S)",
)
_KINDS: dict[str, Level] = {"l5": "warning", "talk": "info"}  # forms that say their level by what they are
_RANK = r"\[[Rr](?:ank|ANK)[ :=_]{0,2}(\d{1,6})\]|\bRank (\d{1,6})\b"
_RANK_CHARS = 200  # of the line that a rank is looked for in


class Stripped(NamedTuple):
    """A line without its prefixes, and what these told."""

    text: str
    level: Level | None
    rank: int | None
    stream: str


def strip(raw: bytes) -> Stripped:
    """The line `raw` (without its end) less its prefixes: at most 8 KiB of text."""
    text = decode(strip_controls(raw[:MAX_RAW_BYTES])).rstrip().removeprefix("\ufeff")
    if text.startswith('{"log":"'):
        text = _unwrap_json(text)
    level: Level | None = None
    rank: int | None = None
    streams: list[str] = []
    prefixes = _prefixes()
    at = 0
    for _ in range(_MAX_PREFIXES):
        match = prefixes.match(text, at, at + _MAX_PREFIX_CHARS)
        if match is None or match.end() == at:
            break
        kind = match.lastgroup
        if kind is not None:  # the outermost group of the prefix that was found; timestamps have none
            value = match[kind]
            if kind == "compose" and value.strip().upper() in _LEVELS:
                break
            if kind in _STREAMS:
                streams.append(value)
                number = _STREAMS[kind]
                if number is not None and rank is None and match[number] is not None:
                    rank = int(match[number])
            elif kind != "syslog":
                level = _LEVELS.get(value.upper()) or level
        at = match.end()
    return Stripped(text[at : at + WINDOW_CHARS], level, rank, " ".join(streams))


def clean(raw: bytes) -> Clean:
    """The line `raw` (without its end) as patterns see it: at most 8 KiB of text after its prefixes."""
    return judge(strip(raw))


def judge(line: Stripped) -> Clean:
    """`line` with the level and the rank that its own text tells, where its prefixes did not."""
    level = line.level if line.level is not None else _level(line.text)
    rank = line.rank
    if rank is None and (found := _rank().search(line.text, 0, _RANK_CHARS)) is not None:
        rank = int(found[1] or found[2])
    return Clean(line.text, level, rank, line.stream)


def _level(text: str) -> Level | None:
    match = _level_forms().match(text, 0, _MAX_PREFIX_CHARS)
    if match is None or match.lastgroup is None:
        return None
    if match.lastgroup in _KINDS:
        return _KINDS[match.lastgroup]
    return _LEVELS[match[match.lastgroup].upper()]


def _unwrap_json(text: str) -> str:
    """The message of a line of Docker's json-file driver, or `text`."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return text
    log = entry.get("log") if isinstance(entry, dict) else None
    if not isinstance(log, str):
        return text
    return strip_controls(log.encode("utf-8", "replace")).decode("utf-8").rstrip()


# Compiled when first needed: the command line must not pay for them at each start.
@functools.cache
def _escapes() -> re.Pattern[bytes]:
    return re.compile(_ESCAPES)


@functools.cache
def _prefixes() -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{prefix})" for prefix in _PREFIXES))


@functools.cache
def _level_forms() -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{form})" for form in _LEVEL_FORMS))


@functools.cache
def _rank() -> re.Pattern[str]:
    return re.compile(_RANK)
