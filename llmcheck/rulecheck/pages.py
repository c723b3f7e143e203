"""A page of Markdown for each pack, for `llmcheck rules docs`."""

from __future__ import annotations

from llmcheck.rules.rule import Fix, Pack, Rule

MARK = "<!-- written by `llmcheck rules docs`; changes belong in the pack -->\n"


def page(pack: Pack) -> str:
    """The page of `pack`."""
    parts = [MARK, f"# {pack.title}\n", f"Pack `{pack.id}`, version {pack.version}: {len(pack.rules)} rules.\n"]
    parts += [_section(rule) for rule in pack.rules]
    return "\n".join(parts)


def _section(rule: Rule) -> str:
    lines = [f"## {rule.code}: {rule.title}", ""]
    if rule.status == "removed":
        return "\n".join([*lines, "Removed; the code is not used again.", ""])
    lines += [f"`{rule.name}` · {rule.severity} · confidence {rule.confidence} · {rule.status} · since {rule.since}", "", rule.why, ""]
    lines += [f"- {_fix(fix)}" for fix in rule.fix]
    if rule.evidence:
        lines.append(f"- Evidence: {rule.evidence}")
    lines += [f"- <{address}>" for address in rule.references]
    return "\n".join([*lines, ""])


def _fix(fix: Fix) -> str:
    if fix.kind == "command":
        return f"`{fix.command()}`" + (f" ({fix.text})" if fix.text else "")
    return fix.text
