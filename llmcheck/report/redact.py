"""Takes secrets, people and machines out of text that leaves the machine.

Two strengths. `hide_secrets` is for every report, since pipelines upload them: what has the form of a token or stands where a password
stands, and nothing that a diagnosis needs. `Redactor` is for bundles, which are given away: addresses, names and whatever looks random too.
A deny-list alone gives false security, so a bundle holds only facts that are allowed by name (bundle.py); what free text they hold
(messages, lines of logs) goes through here too. Patterns follow the published forms of the tokens; what has no form is caught by entropy.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_MIN_SECRET_CHARS = 24
_MIN_CHANGES = 0.5
_MIN_ENTROPY_BITS = 3.7  # per character: English words stay below 3.5, random base64 of this length is above 4

_NAMES = r"(?:pass(?:word|wd|phrase)?|secret|(?:api|access|account|wandb)[_-]?key|token|auth|credential|sas)"

# Names whose value is a secret wherever they stand. `token` alone is not one of them: tokenizers and parsers speak of tokens all the time.
_SURE_NAMES = (
    r"(?:password|passwd|passphrase|(?:[a-z0-9]{1,30}[_-]){0,4}(?:api|secret|access|private|account|auth|wandb)[_-]?(?:key|token)"
    r"|(?:[a-z0-9]{1,30}[_-]){0,4}(?:secret|credentials?|password|passwd)"
    r"|(?:[a-z0-9]{1,30}[_-]){0,3}(?:hub|hf|github|gh|gitlab|git|job|ci|pypi|npm|session|security|refresh|bearer|bot|wandb|ngc|use[_-]auth)[_-]token)"
)
_VALUE = r"(?P<secret>(?!(?:true|false|none|null)\b|\w{0,8}\.\.\.)[^\s\"',;<>()\[\]{}]{4,})"

# (what stands in the place, pattern). The whole match goes, or the group `secret` where there is one.
_SECRETS: tuple[tuple[str, str], ...] = (
    ("private-key", r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]{0,8000}?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)"),
    # Before the tokens: a token may be the user's name or a part of the password. Up to the last @: a password may hold one.
    ("credentials", r"\b[a-z][a-z0-9+.-]{1,20}://(?!(?:git|hg|svn)@[^@\s/]*(?:[\s/]|$))(?P<secret>[^\s/\"'<>]{1,400})@"),
    # user:password@host, as in a hostfile; image:tag@sha256:… is none
    ("credentials", r"(?<![\w/.-])[\w.-]{1,60}:(?P<secret>[^\s/@:\"'<>]{6,200})@(?!sha256:)(?=[A-Za-z0-9])"),
    ("token", r"\bhf_[A-Za-z0-9]{10,}"),  # Hugging Face
    ("token", r"\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{20,}"),
    ("token", r"\bglpat-[A-Za-z0-9_-]{16,}"),
    ("token", r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}|\bsk_(?:live|test)_[A-Za-z0-9]{16,}"),
    ("token", r"\bxox[abeprs]-[A-Za-z0-9-]{10,}"),
    ("token", r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}"),
    ("token", r"\bAIza[A-Za-z0-9_-]{30,}|\bya29\.[A-Za-z0-9_-]{20,}"),
    ("token", r"\bnvapi-[A-Za-z0-9_-]{16,}|\bdckr_pat_[A-Za-z0-9_-]{16,}|\bpypi-[A-Za-z0-9_-]{16,}|\bnpm_[A-Za-z0-9]{20,}"),
    ("jwt", r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),
    ("secret", r"(?i)\b(?:bearer|basic)\s+(?P<secret>[A-Za-z0-9._~+/=-]{12,})"),
    # wandb's keys have no mark of their own: 40 hexadecimal digits
    ("secret", r"(?i)(?<![a-z0-9])(?:wandb[_ .])?(?:login|key)[\"']?[\s=:,(]{1,4}(?:key=)?[\"']?(?P<secret>[0-9a-f]{40})\b"),
    ("secret", r"(?i)--[a-z0-9_-]{0,30}(?:token|password|secret|api[_-]?key)[ =][\"']?" + _VALUE),
    ("secret", rf"(?i)(?<![a-z0-9]){_SURE_NAMES}[\"']?\s{{0,4}}[:=]\s{{0,4}}[\"']?" + _VALUE),
    # A bare `token`: its value has digits and letters, and no spaces.
    (
        "secret",
        r"(?i)(?<![a-z0-9_-])(?:token|auth)[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?P<secret>(?=[a-z._~+/=-]{0,64}\d)[a-z0-9._~+/=-]{16,})",
    ),
    ("signature", r"(?i)[?&](?:sig|signature|x-amz-signature|x-amz-credential|x-amz-security-token|se|sp)=(?P<secret>[^&\s\"']{4,})"),
)  # fmt: skip
_OTHERS: tuple[tuple[str, str], ...] = (
    ("secret", r"(?i)\btoken\s+(?P<secret>[A-Za-z0-9._~+/=-]{12,})"),
    ("secret", rf"(?i){_NAMES}s?[\"']?\s*[:=]\s*[\"']?(?P<secret>[^\s\"',;&<>]{{4,}})"),
    ("secret", r"(?i)--(?:[a-z0-9-]{0,30}(?:token|password|secret|key))[ =](?P<secret>[^\s\"'<>]{4,})"),
    ("email", r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,5}\b"),
    ("mac", r"\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b"),
    ("gpu-uuid", r"\b(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
)
_IPV4 = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")
_HOME = re.compile(r"(/home/|/Users/|/root\b|[A-Za-z]:\\\\?Users\\\\?)([^/\\\s:\"']*)")
_LONG = re.compile(rf"[A-Za-z0-9+/_=-]{{{_MIN_SECRET_CHARS},}}")
_HEX = re.compile(r"[0-9a-f]{32,}|[0-9A-F]{32,}")


@dataclass(frozen=True, kw_only=True)
class Redactor:
    """Redacts for one machine: its names are replaced by hashes, so that equal ones stay equal.

    Args:
        names: host names and user names that must not appear.
        keep: words that look random but are none (digests of packs, for example).
    """

    names: Sequence[str] = ()
    keep: frozenset[str] = frozenset()

    def __call__(self, text: str) -> str:
        """`text` without secrets, addresses and names."""
        text = _without(hide_secrets(text), _compiled(_OTHERS))
        for name in sorted((name for name in self.names if len(name) > 2), key=len, reverse=True):
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", f"<name-{_hash(name)}>", text)
        text = _HOME.sub("~", text)
        text = _IPV4.sub(_address, text)
        text = _HEX.sub(self._unless_kept("hex"), text)
        return _LONG.sub(self._unless_kept("secret", entropy=True), text)

    def _unless_kept(self, label: str, *, entropy: bool = False) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            word = match[0]
            if word in self.keep or (entropy and not looks_random(word)):
                return word
            return f"<{label}>"

        return replace


def hide_secrets(text: str) -> str:
    """`text` without what has the form of a token, or stands where a password or a key stands."""
    return _without(text, _compiled(_SECRETS))


def _without(text: str, patterns: Iterable[tuple[str, re.Pattern[str]]]) -> str:
    for label, pattern in patterns:
        text = pattern.sub(_replacer(label), text)
    return text


@functools.cache
def _compiled(table: tuple[tuple[str, str], ...]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Compiled when first needed: most runs have no finding."""
    return tuple((label, re.compile(pattern)) for label, pattern in table)


def looks_random(word: str) -> bool:
    """True when `word` is spread like a random token: all kinds of characters, often changing kind, high entropy.

    An identifier in CamelCase changes kind twice a word; of two neighbours in random base64, 64 % are of different kinds.
    """
    if len(word) < _MIN_SECRET_CHARS or not all(re.search(kind, word) for kind in ("[a-z]", "[A-Z]", "[0-9]")):
        return False
    kinds = [(c.islower(), c.isupper(), c.isdigit()) for c in word]
    changes = sum(one != two for one, two in pairwise(kinds))
    return changes >= _MIN_CHANGES * (len(word) - 1) and entropy_bits(word) >= _MIN_ENTROPY_BITS


def entropy_bits(word: str) -> float:
    """Shannon entropy of the characters of `word`, bits per character."""
    return -sum(n / len(word) * math.log2(n / len(word)) for n in Counter(word).values())


def _replacer(label: str) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        if "secret" not in match.re.groupindex:
            return f"<{label}>"
        if match["secret"].isdigit():  # max_tokens=2048
            return match[0]
        begin, end = match.span("secret")
        whole = match[0]
        return whole[: begin - match.start()] + f"<{label}>" + whole[end - match.start() :]

    return replace


def _address(match: re.Match[str]) -> str:
    """Loopback and the unspecified address say something about the fault and nothing about anyone; versions have three dots too."""
    parts = [int(part) for part in match[0].split(".")]
    if parts[0] in (0, 127) or any(part > 255 for part in parts):
        return match[0]
    return f"<ip-{_hash(match[0])}>"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
