"""`llmcheck doctor` as a process: exit codes, streams, forms, settings, bundle."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator
from sarif_pydantic import Sarif

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "llmcheck" / "schema" / "report-1.json").read_text(encoding="utf-8"))
Run = Callable[..., Any]

OOM = """\
{'loss': 1.9, 'epoch': 0.01}
[rank1]: Traceback (most recent call last):
[rank1]:   File "train.py", line 12, in main
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 39.39 GiB.
"""
CLEAN = "{'loss': 1.9, 'epoch': 0.01}\n{'loss': 1.8, 'epoch': 0.02}\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "run.log"
    path.write_text(OOM)
    return path


def report(outcome: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(outcome.stdout)
    Draft202012Validator(SCHEMA).validate(document)
    return document


def test_a_log_with_a_cause_is_1_and_names_it_with_line_and_rank(llmcheck: Run, log: Path) -> None:
    outcome = llmcheck("doctor", "--log", str(log), "--format", "json")
    assert outcome.code == 1
    first = report(outcome)["findings"][0]
    assert (first["outcome"], first["family"], first["location"]["line"], first["ranks"]) == ("fail", "cuda-oom", 4, [1])


def test_a_clean_log_is_0(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(CLEAN)
    assert llmcheck("doctor", "run.log", cwd=tmp_path).code == 0


def test_an_empty_log_is_told_and_passes_no_rule(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("")
    document = report(llmcheck("doctor", "run.log", "--format", "json", cwd=tmp_path))
    assert document["notes"] == ["run.log is empty: nothing was checked in it"]
    assert document["summary"]["rules_passed"] == 0


def test_a_message_that_is_only_a_value_follows_the_title(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("worker-0 slots=8\nworker-1\n")
    assert "LCH141 A line of the hostfile is not 'NAME slots=NUMBER': worker-1" in llmcheck("doctor", "hostfile", cwd=tmp_path).stdout


def test_what_no_signature_knows_is_shown_as_the_last_exception(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(
        'Traceback (most recent call last):\n  File "my.py", line 3, in go\n    raise Odd("purple elephant")\nmy.Odd: purple elephant\n'
    )
    outcome = llmcheck("doctor", "run.log", cwd=tmp_path)
    assert "no signature matches; the last exception is at run.log:4" in outcome.stdout
    assert "my.Odd: purple elephant" in outcome.stdout


def test_the_environment_is_examined_without_arguments(llmcheck: Run) -> None:
    outcome = llmcheck("doctor", "--format", "json")
    assert outcome.code in (0, 1, 3)
    assert report(outcome)["subjects"] == ["this environment", "this machine"]


def test_only_what_is_given_is_judged(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("transformers==4.57.6\n")
    document = report(llmcheck("doctor", "requirements.txt", "--format", "json", cwd=tmp_path))
    assert document["subjects"] == ["requirements.txt"]


def test_findings_of_requirements_point_at_the_line(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch==2.6.0\npeft==0.17.1\ntransformers==5.1.0\n")
    document = report(llmcheck("doctor", "requirements.txt", "--format", "json", cwd=tmp_path))
    places = {(f["location"]["uri"], f["location"]["line"]) for f in document["findings"] if f["outcome"] == "fail"}
    assert ("requirements.txt", 2) in places


def test_every_form_in_one_run(llmcheck: Run, log: Path, tmp_path: Path) -> None:
    forms = {"json": "r.json", "sarif": "r.sarif", "junit": "r.xml", "github": "r.txt", "markdown": "r.md"}
    args = [part for form, name in forms.items() for part in ("--format", f"{form}={name}")]
    outcome = llmcheck("doctor", str(log), *args, "--format", "text", cwd=tmp_path)
    assert outcome.code == 1
    assert outcome.stdout.startswith("error")
    Draft202012Validator(SCHEMA).validate(json.loads((tmp_path / "r.json").read_text()))
    Sarif.model_validate(json.loads((tmp_path / "r.sarif").read_text()))
    assert ElementTree.fromstring((tmp_path / "r.xml").read_text()).tag == "testsuites"
    assert (tmp_path / "r.txt").read_text().startswith("::error file=")
    assert (tmp_path / "r.md").read_text().startswith("### llmcheck doctor")
    again = llmcheck("doctor", str(log), *args, cwd=tmp_path)
    assert again.code == 1  # its own files are replaced


def test_a_file_of_the_users_is_not_replaced(llmcheck: Run, log: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("my notes\n")
    outcome = llmcheck("doctor", str(log), "--format", "markdown=notes.md", cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert (tmp_path / "notes.md").read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--format", "yaml"], ["--format cannot be 'yaml'", "text, json, sarif"]),
        (["--format", "json", "--format", "sarif"], ["only one form can go to stdout"]),
        (["--format", "json="], ["names no file"]),
        (["--fail-on", "fatal"], ["--fail-on cannot be 'fatal'"]),
        (["--select", "LCX"], ["no rule's code begins with 'LCX'"]),
        (["--allow-unknown", "LCV9999"], ["no rule has the code 'LCV9999'"]),
        (["--allow-unknown", "LCV"], ["no rule has the code 'LCV'"]),
        (["--log", "nowhere.log"], ["holds nothing called nowhere.log", "paths count from"]),
        (["nowhere"], ["no such file or folder", "holds nothing called nowhere", "paths count from"]),
        ([""], ["a path is empty"]),
        (["--tokenizer", "/"], ["error["]),
        (["--plan", "/etc/hostname"], ["error["]),
        (["--follow"], ["--follow reads one log"]),
        (["--reach"], ["--reach needs a hostfile"]),
        (["--rules", "/nowhere"], ["cannot read the rule pack", "/ holds nothing called nowhere"]),
        (["--baseline", "/etc/hostname"], ["not valid JSON"]),
        (["--settings", "/nowhere.toml"], ["cannot read the settings file"]),
        (["--requirements", "a", "--lock", "b"], ["two answers to one question"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_bad_usage_is_2_with_the_reason_and_nothing_on_stdout(llmcheck: Run, args: list[str], words: list[str]) -> None:
    outcome = llmcheck("doctor", *args)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("error[")
    assert "Traceback" not in outcome.stderr
    for word in words:
        assert word in outcome.stderr


def test_a_program_that_is_no_python_is_3_with_what_it_did_and_what_is_wanted(llmcheck: Run) -> None:
    outcome = llmcheck("doctor", "--python", "/bin/ls")
    told = " ".join(outcome.stdout.split())
    assert outcome.code == 3
    assert "/bin/ls: asked for its packages, it answered something else" in told
    assert "--python wants Python 3.7 or newer, or the folder of a virtual environment" in told
    assert told.count("unknown") <= 2  # one line for all of them, and the summary


def test_a_file_of_a_model_is_answered_with_its_folder(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    outcome = llmcheck("doctor", str(tmp_path / "config.json"))
    assert outcome.code == 2
    assert f"give the folder: {tmp_path}" in outcome.stderr


def test_the_gate_has_levels(llmcheck: Run, log: Path) -> None:
    assert llmcheck("doctor", str(log), "--fail-on", "never").code == 0
    assert llmcheck("doctor", str(log), "--exit-zero").code == 0
    assert llmcheck("doctor", str(log), "--ignore", "LCS").code == 0


def test_an_ignore_needs_reason_and_expiry_and_is_told(llmcheck: Run, log: Path, tmp_path: Path) -> None:
    code = report(llmcheck("doctor", str(log), "--format", "json"))["findings"][0]["code"]
    (tmp_path / "llmcheck.toml").write_text(f"[[ignore]]\ncode = '{code}'\nreason = 'known'\nexpires = 2099-01-01\n")
    outcome = llmcheck("doctor", str(log), "--format", "json", cwd=tmp_path)
    assert outcome.code == 0
    assert report(outcome)["findings"][0]["suppression"] == "known"
    (tmp_path / "llmcheck.toml").write_text(f"[[ignore]]\ncode = '{code}'\nreason = 'known'\nexpires = 2020-01-01\n")
    expired = llmcheck("doctor", str(log), cwd=tmp_path)
    assert expired.code == 1
    assert "expired on 2020-01-01" in expired.stdout


def test_codes_may_be_in_small_letters(llmcheck: Run, log: Path) -> None:
    assert llmcheck("doctor", str(log), "--ignore", "lcs").code == 0
    assert llmcheck("doctor", str(log), "--select", "lcs088").code == 1
    assert llmcheck("rules", "list", "--select", "lcs088").stdout.count("LCS088") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('select = ["XX"]', "no rule's code begins so"),
        ('folder = "/etc"', "unknown key"),
        ('baseline = "old.json"', "another release of llmcheck wrote it"),
        ('baseline = "other.json"', "a baseline is 'llmcheck.baseline/1'"),
    ],
)
def test_settings_with_a_silent_hole_are_refused(llmcheck: Run, log: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "llmcheck.toml").write_text(text)
    (tmp_path / "old.json").write_text('{"schema": "llmcheck.baseline/9", "findings": []}')
    (tmp_path / "other.json").write_text('{"schema": "llmcheck.report/1", "findings": []}')
    outcome = llmcheck("doctor", str(log), cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert words in outcome.stderr


def test_a_baseline_takes_what_is_known_out(llmcheck: Run, log: Path, tmp_path: Path) -> None:
    assert llmcheck("doctor", str(log), "--write-baseline", "known.json", cwd=tmp_path).code == 1
    assert llmcheck("doctor", str(log), "--baseline", "known.json", cwd=tmp_path).code == 0


TEAM = """\
[[rule]]
code = "ACME001"
name = "acme-purple"
title = "A purple elephant"
status = "stable"
severity = "error"
confidence = "high"
since = "0.1.0"
published = 2026-11-24
review_by = 2099-11-24
why = "Elephants are grey in our house."
message = "a purple elephant called {cap.name}"
fix = [{ kind = "advice", text = "Paint it." }]
references = ["https://example.org/elephants"]
[rule.log]
literal = "purple elephant"
pattern = 'purple elephant (?P<name>\\w+)'
role = "root"
cause = "purple-elephant"
family = "acme"
[[rule.test]]
log = "a purple elephant Bob"
expect = "fail"
[[rule.test]]
log = "a purple elephant, unnamed"
expect = "pass"
"""


def team_pack(folder: Path, rule: str = TEAM) -> str:
    folder.mkdir()
    (folder / "pack.toml").write_text('schema = "llmcheck.rules/1"\n[pack]\nid = "acme"\ntitle = "Ours"\nversion = "1"\nprefix = "ACME"\n')
    (folder / "rules.toml").write_text(rule)
    return str(folder)


def test_a_teams_own_rules(llmcheck: Run, tmp_path: Path) -> None:
    pack = team_pack(tmp_path / "pack")
    (tmp_path / "run.log").write_text("see the purple elephant Bob\n")
    outcome = llmcheck("doctor", "run.log", "--rules", pack, cwd=tmp_path)
    assert outcome.code == 1
    assert "ACME001 a purple elephant called Bob" in outcome.stdout
    assert llmcheck("rules", "lint", "--rules", pack).code == 0
    assert llmcheck("rules", "test", "--rules", pack).code == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("purple elephant (?P<name>\\w+)", "(purple elephant\\s*)+$"), "runs away"),
        (("purple elephant (?P<name>\\w+)", "purple elephant .*a.*b.*c(?P<name>x)"), "compete"),
        (("literal =", "literall ="), "did you mean 'literal'"),
        (('code = "ACME001"', 'code = "LCS001"'), "does not begin with ACME"),
        (('severity = "error"', 'severity = "fatal"'), "expected one of"),
    ],
)
def test_a_teams_pack_with_a_fault_is_refused(llmcheck: Run, tmp_path: Path, change: tuple[str, str], word: str) -> None:
    pack = team_pack(tmp_path / "pack", TEAM.replace(*change))
    outcome = llmcheck("doctor", "--rules", pack, "--log", "-", cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert word in outcome.stderr


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (('id = "acme"', 'id = "../../evil"'), "not kebab-case"),
        (('id = "acme"', 'id = "a\\n::error::x"'), "not kebab-case"),
        (('id = "acme"', 'id = "signatures"'), "two packs have the id"),
        (('prefix = "ACME"', 'prefix = ""'), "two to eight capitals"),
        (('prefix = "ACME"', 'prefix = "A"'), "two to eight capitals"),
        (('prefix = "ACME"', 'prefix = "LCX"'), "llmcheck's own"),
    ],
)
def test_a_pack_is_told_by_an_id_and_a_prefix_of_its_own(llmcheck: Run, tmp_path: Path, change: tuple[str, str], word: str) -> None:
    pack = team_pack(tmp_path / "pack")
    head = tmp_path / "pack" / "pack.toml"
    head.write_text(head.read_text().replace(*change))
    (tmp_path / "pages").mkdir()
    outcome = llmcheck("rules", "docs", "--rules", pack, "--out", "pages", cwd=tmp_path)
    assert (outcome.code, list((tmp_path / "pages").iterdir())) == (2, [])
    assert word in outcome.stderr


def test_templates_reach_no_attributes(llmcheck: Run, tmp_path: Path) -> None:
    message = "{cap.name.__class__} {cap.name!r} {0.__class__} {name} %s %(x)s ${HOME} {cap.name}"
    pack = team_pack(tmp_path / "pack", TEAM.replace("a purple elephant called {cap.name}", message))
    (tmp_path / "run.log").write_text("see the purple elephant Bob\n")
    outcome = llmcheck("doctor", "run.log", "--rules", pack, cwd=tmp_path)
    assert "ACME001 ? {cap.name!r} {0.__class__} Bob %s %(x)s $? Bob" in outcome.stdout


@pytest.mark.parametrize("kind", ["version", "facts", "log"])
def test_a_new_rule_passes_lint_and_its_tests_once_it_is_filled_in(llmcheck: Run, tmp_path: Path, kind: str) -> None:
    begun = llmcheck("rules", "new", "--kind", kind).stdout
    filled = {
        'code = "XYZ001"': 'code = "ACME001"', 'name = ""': 'name = "acme-rule"', 'title = ""': 'title = "A rule"',
        'why = ""': 'why = "Because it was seen in our house."', 'message = ""': 'message = "it is so"', 'text = ""': 'text = "do this"',
        '"https://"': '"https://example.org/a"', 'package = ""': 'package = "peft"', 'fixed = ""': 'fixed = "0.5.0"',
        '{ "pkg.…" = "" }, expect = "fail"': '{ "pkg.peft" = "0.4.0" }, expect = "fail"',
        '{ "pkg.…" = "" }, expect = "pass"': '{ "pkg.peft" = "0.5.0" }, expect = "pass"',
        'left = "", op = "==", right = ""': 'left = "host.system", op = "==", right = "Linux"',
        'facts = {}, expect = "fail"': 'facts = { "host.system" = "Linux" }, expect = "fail"',
        'facts = {}, expect = "pass"': 'facts = { "host.system" = "Darwin" }, expect = "pass"',
        'literal = ""': 'literal = "purple elephant"', "pattern = ''": "pattern = 'purple elephant (?P<name>[A-Z]\\w*)'",
        'cause = ""': 'cause = "purple"', 'family = ""': 'family = "acme"',
        "log = ''  # a line that people": "log = 'a purple elephant Bob'  # a line that people",
        "log = ''  # a line that looks": "log = 'a purple elephant, unnamed'  # a line that looks",
    }  # fmt: skip
    for old, new in filled.items():
        begun = begun.replace(old, new)
    pack = team_pack(tmp_path / "pack", begun)
    for action in ("lint", "test"):
        outcome = llmcheck("rules", action, "--rules", pack, "--select", "ACME")
        assert outcome.code == 0, outcome.stdout + outcome.stderr


def test_a_pack_cannot_lead_out_of_its_folder(llmcheck: Run, tmp_path: Path) -> None:
    pack = team_pack(tmp_path / "pack")
    (tmp_path / "outside.toml").write_text(TEAM)
    (tmp_path / "pack" / "more.toml").symlink_to(tmp_path / "outside.toml")
    outcome = llmcheck("rules", "list", "--rules", pack)
    assert outcome.code == 2
    assert "leads out of the pack" in outcome.stderr


def test_a_hostile_log_cannot_drive_the_terminal_or_the_workflow(llmcheck: Run, tmp_path: Path) -> None:
    message = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    evil = f"\x1b]0;owned\x07\x1b[2J {message} \u202e\r::error::x\n::set-output name=a::b\n"
    (tmp_path / "run.log").write_text(evil)
    for form in ("text", "github", "markdown", "json"):
        outcome = llmcheck("doctor", "run.log", "--format", form, cwd=tmp_path)
        assert outcome.code == 1
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(outcome.stdout)
        if form != "github":
            assert not any(line.startswith("::") for line in outcome.stdout.splitlines())
        assert "::set-output" not in [line[:12] for line in outcome.stdout.splitlines()]


def test_the_bundle_holds_no_planted_secret(llmcheck: Run, tmp_path: Path) -> None:
    secret = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123"
    (tmp_path / "run.log").write_text(OOM.replace("2.00 GiB.", f"2.00 GiB. token={secret} on 10.1.2.3"))
    env = {"HF_TOKEN": secret, "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "NCCL_DEBUG": "INFO"}
    outcome = llmcheck("doctor", "--all", "--log", "run.log", "--bundle", "out.tar.gz", cwd=tmp_path, env=env)
    assert outcome.code == 1
    assert "manifest" in outcome.stderr or "facts, allowed by name" in outcome.stderr
    with tarfile.open(tmp_path / "out.tar.gz") as tar:
        names = tar.getnames()
        text = "".join(tar.extractfile(name).read().decode() for name in names)  # type: ignore[union-attr]
    assert names == ["llmcheck-bundle/manifest.json", "llmcheck-bundle/report.json", "llmcheck-bundle/facts.json"]
    for planted in (secret, "0123456789abcdef0123456789abcdef01234567", "10.1.2.3"):
        assert planted not in text
    assert (tmp_path / "out.tar.gz").stat().st_mode & 0o777 == 0o600
    again = llmcheck("doctor", "--log", "run.log", "--bundle", "out.tar.gz", cwd=tmp_path)
    assert (again.code, again.stdout) == (2, "")


def test_folders_and_files_are_told_apart(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"train_batch_size": 8}')
    outcome = llmcheck("doctor", "ds.json", "--format", "json", cwd=tmp_path)
    assert report(outcome)["subjects"] == ["DeepSpeed configuration ds.json"]
    (tmp_path / "what.json").write_text('{"a": 1}')
    told = llmcheck("doctor", "what.json", cwd=tmp_path)
    assert told.code == 2
    assert "cannot tell what what.json is" in told.stderr


def test_two_files_of_a_kind_are_two_subjects(llmcheck: Run, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("peft==0.17.1\ntransformers==5.1.0\n")
    (tmp_path / "requirements-old.txt").write_text("peft==0.17.1\ntransformers==4.57.6\n")
    document = report(llmcheck("doctor", "requirements-old.txt", "requirements.txt", "--format", "json", cwd=tmp_path))
    assert document["subjects"] == ["requirements-old.txt", "requirements.txt"]
    assert {f["location"]["uri"] for f in document["findings"] if f["outcome"] == "fail"} == {"requirements.txt"}


def test_a_plan_is_judged(llmcheck: Run, tmp_path: Path) -> None:
    flags = ["--model", "llama-2-13b", "--gpus", "1", "--gpu", "A100-40G", "--method", "full", "--zero", "2", "--offload", "none"]
    assert llmcheck("plan", *flags, "--out", "plan.json", cwd=tmp_path).code == 1
    outcome = llmcheck("doctor", "plan.json", "--format", "json", cwd=tmp_path)
    assert outcome.code == 1
    assert "plan-does-not-fit" in {f["name"] for f in report(outcome)["findings"]}
