"""The beginnings of a rule, for `llmcheck rules new`."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Literal

from llmcheck import __version__

_HEAD = """\
[[rule]]
code = "XYZ001"  # your pack's prefix and three or four digits, never used again
name = ""  # kebab-case
title = ""
status = "experimental"  # stable once it has been right for a while; experimental rules never gate
severity = "error"  # error | warning | info
confidence = "medium"  # high | medium | low
since = "{version}"
published = {today}
review_by = {review}
why = ""
message = ""{slots}
fix = [{{ kind = "advice", text = "" }}]  # or {{ kind = "command", run = ["pip", "install", "…"] }}, {{ kind = "edit", text = "" }}
references = ["https://"]
"""

_BODIES = {
    "version": """\
affects = [{ package = "", events = [{ introduced = "0" }, { fixed = "" }] }]
test = [
  { facts = { "pkg.…" = "" }, expect = "fail" },
  { facts = { "pkg.…" = "" }, expect = "pass" }]
""",
    "facts": """\
when = [{ left = "", op = "==", right = "" }]  # `llmcheck rules facts` lists what may stand on the left
test = [
  { facts = {}, expect = "fail" },
  { facts = {}, expect = "pass" }]
""",
    "log": """\
[rule.log]
literal = ""  # in every match; at least 4 characters
pattern = ''  # a literal string: backslashes as they are
role = "root"  # root | cascade | context
cause = ""
family = ""
[[rule.test]]
log = ''  # a line that people really see
expect = "fail"
[[rule.test]]
log = ''  # a line that looks like it and is harmless
expect = "pass"
""",
}
_SLOTS = {
    "version": '  # may name facts: "torch {pkg.torch}"',
    "facts": '  # may name facts: "{host.shm_bytes}"',
    "log": "  # may name groups: {cap.name}",
}


def skeleton(kind: Literal["version", "facts", "log"], today: date) -> str:
    """A rule of that kind with everything that lint asks for, empty."""
    review = today + timedelta(days=365)
    return _HEAD.format(version=__version__, today=today, review=review, slots=_SLOTS[kind]) + _BODIES[kind]
