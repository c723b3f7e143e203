"""`llmcheck data` as a command: answers, bad input, missing packages, and a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcheck_trainer.dataprep import store

Run = Callable[..., Any]
Rows = Callable[..., Path]
GOOD = {"instruction": "Name a colour.", "input": "", "output": "Blue."}


@pytest.fixture
def prepare(llmcheck: Run, tokenizer_folder: Path, tmp_path: Path) -> Run:
    def call(*words: str) -> Any:
        common = [
            "--tokenizer",
            str(tokenizer_folder),
            "--seq-len",
            "64",
            "--out",
            str(tmp_path / "out"),
            "--template",
            "belle",
            "--fast",
            "off",
        ]
        return llmcheck("data", "prepare", *words, *[word for word in common if not ({word} & set(words))])

    return call


def test_prepare_and_show(prepare: Run, llmcheck: Run, jsonl: Rows, tmp_path: Path) -> None:
    path = jsonl(GOOD, "{", {**GOOD, "output": "Red."})
    outcome = prepare(str(path))
    assert (outcome.code, outcome.stderr) == (0, "")
    assert f"2 rows of 3, {26} tokens"[:11] in outcome.stdout
    assert f"{path}:2  " in outcome.stdout
    assert "1 bad: not JSON" in outcome.stdout
    shown = llmcheck("data", "show", str(tmp_path / "out"), "--line", "3")
    assert (shown.code, shown.stderr) == (0, "")
    assert "⟦Red.</s>⟧" in shown.stdout
    assert "Blue" not in shown.stdout


def test_show_in_colour(llmcheck: Run, prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    prepare(str(jsonl(GOOD)))
    shown = llmcheck("data", "show", str(tmp_path / "out"), env={"FORCE_COLOR": "1"})
    assert "\x1b[2mHuman: \x1b[0m" in shown.stdout
    assert "\x1b[32mBlue.</s>\x1b[0m" in shown.stdout


def test_text_of_rows_cannot_drive_the_terminal(llmcheck: Run, prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    outcome = prepare(str(jsonl({**GOOD, "output": "\x1b[2J\x1b]0;x\x07"}, {"a\x1b[2J": 1}, GOOD)))
    shown = llmcheck("data", "show", str(tmp_path / "out"))
    assert (outcome.code, shown.code) == (0, 0)
    assert "\x1b" not in outcome.stdout + shown.stdout
    assert "\\x1b[2J" in shown.stdout


def test_names_of_files_cannot_drive_the_terminal(llmcheck: Run, prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    prepare(str(jsonl(GOOD, name="a\n\x1b[31mb.jsonl")))
    shown = llmcheck("data", "show", str(tmp_path / "out"), cwd=tmp_path)
    assert shown.code == 0
    assert "\x1b" not in shown.stdout
    assert "a\\n\\x1b[31mb.jsonl:1): " in shown.stdout


def test_the_next_command_can_be_pasted(llmcheck: Run, jsonl: Rows, tokenizer_folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "my data")
    folder = str(tokenizer_folder)
    words = ["--tokenizer", folder, "--seq-len", "64", "--out", out, "--template", "belle", "--fast", "off"]
    outcome = llmcheck("data", "prepare", str(jsonl(GOOD)), *words)
    assert f"see samples: llmcheck data show '{out}'" in outcome.stdout


def test_json_for_programs(llmcheck: Run, prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    manifest = json.loads(prepare(str(jsonl(GOOD)), "--format", "json").stdout)
    assert manifest["schema"] == "llmcheck.data/1"
    shown = json.loads(llmcheck("data", "show", str(tmp_path / "out"), "--row", "0", "--format", "json").stdout)
    assert shown["manifest"] == manifest
    (row,) = shown["rows"]
    assert (row["line"], len(row["ids"]), [part["learnt"] for part in row["parts"]]) == (1, manifest["num_tokens"], [False, True])


def test_the_second_time_it_says_so(prepare: Run, jsonl: Rows) -> None:
    path = str(jsonl(GOOD))
    prepare(path)
    assert "nothing has changed" in prepare(path).stdout
    jsonl(GOOD, GOOD)
    assert f"written again, since {path} changed\n" in prepare(path).stdout


def test_files_may_stand_between_options(llmcheck: Run, jsonl: Rows, tokenizer_folder: Path, tmp_path: Path) -> None:
    first, second = str(jsonl(GOOD, name="a.jsonl")), str(jsonl(GOOD, name="b.jsonl"))
    words = [
        "data",
        "prepare",
        "--model",
        str(tokenizer_folder),
        first,
        "--seq-len",
        "64",
        second,
        "--template",
        "belle",
        "--out",
        str(tmp_path / "out"),
    ]
    assert llmcheck(*words).stdout.splitlines()[1].startswith("2 rows of 2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data"], "error[usage]:"),
        (["data", "make"], "error[usage]: llmcheck data cannot be 'make'"),
        (["data", "prepare"], "error[usage]: which files? none is named"),
        (["data", "prepare", "x.jsonl"], "error[usage]: --tokenizer is missing"),
        (["data", "prepare", "x.jsonl", "--tokenizer", "t", "--out", "o"], "error[usage]: --seq-len is missing"),
        (
            ["data", "prepare", "x.jsonl", "--tokenizer", "t", "--out", "o", "--seq-len", "x"],
            "error[usage]: --seq-len needs a whole number",
        ),
        (["data", "prepare", "x.jsonl", "--tokenizer", "t", "--out", "o", "--seq-len", "9", "--date", "x"], "error[usage]: --date needs"),
        (
            ["data", "prepare", "nowhere.jsonl", "--tokenizer", "t", "--out", "o", "--seq-len", "9"],
            "error[unreadable]: cannot read the data file",
        ),
        (["data", "prepare", "nowhere.jsonl", "--tokenizer", "t", "--out", "a/b/o", "--seq-len", "9"], "error[output]: cannot write a/b/o"),
        (["data", "show"], "error[usage]: data show takes one folder"),
        (["data", "show", "nowhere"], "error[data]: no prepared data at nowhere"),
        (["data", "show", "."], "error[data]: no prepared data in ."),
        (["data", "show", "x", "--row", "1", "--line", "1"], "error[conflict]: --row and --line"),
    ],
)
def test_bad_usage_exits_2_without_a_traceback(llmcheck: Run, tmp_path: Path, words: list[str], message: str) -> None:
    outcome = llmcheck(*words, cwd=tmp_path)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith(message)
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("content", "name", "code"),
    [
        (b"", "x.jsonl", 2), (b"\x00\xff" * 50, "x.jsonl", 2), (b"[" * 100_000, "x.json", 2), (b"[{]", "x.json", 2),
        (b"{}\n" * 9, "x.jsonl", 2), (b"PAR1junk", "x.parquet", (2, 3)), (b"ARROW1junk", "x.arrow", (2, 3)),
        (b"\x1f\x8bjunk", "x.jsonl.gz", 2), (b'"a"\n1\nnull\n', "x.jsonl", 2),
    ],
)  # fmt: skip
def test_bad_data_exits_2_without_a_traceback(prepare: Run, tmp_path: Path, content: bytes, name: str, code: Any) -> None:
    (tmp_path / name).write_bytes(content)
    outcome = prepare(str(tmp_path / name))
    assert outcome.code in (code if isinstance(code, tuple) else (code,))
    assert outcome.stderr.startswith("error[")
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [{"eos_token": "\ud800"}, {"chat_template": "{{ messages }}\udfff"}])
def test_half_characters_of_a_tokenizer_are_told(
    llmcheck: Run, jsonl: Rows, with_config: Run, tmp_path: Path, config: dict[str, str]
) -> None:
    folder = with_config()
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>", **config}))
    words = ["--tokenizer", str(folder), "--seq-len", "64", "--out", str(tmp_path / "out")]
    outcome = llmcheck("data", "prepare", str(jsonl(GOOD)), *words)
    assert (outcome.code, outcome.stderr.splitlines()[0]) == (2, "error[tokenizer]: tokenizer_config.json holds half of a character")


def test_a_padding_token_that_is_no_text_is_told(prepare: Run, jsonl: Rows) -> None:
    outcome = prepare(str(jsonl(GOOD)), "--pad-token", os.fsdecode(b"\xff"))
    assert (outcome.code, outcome.stderr.splitlines()[0]) == (2, "error[tokenizer]: --pad-token is not UTF-8 text")


def test_utf16_is_told_as_such(prepare: Run, tmp_path: Path) -> None:
    """What PowerShell writes with `>`."""
    (tmp_path / "x.jsonl").write_bytes((json.dumps(GOOD) + "\n").encode("utf-16"))
    outcome = prepare(str(tmp_path / "x.jsonl"))
    assert outcome.code == 2
    assert outcome.stderr.startswith(f"error[input]: {tmp_path / 'x.jsonl'} is UTF-16 text")


def test_a_file_whose_name_is_not_utf8(prepare: Run, llmcheck: Run, jsonl: Rows, tmp_path: Path) -> None:
    name = os.fsdecode(b"ro\xffws.jsonl")
    path = str(jsonl(GOOD).rename(tmp_path / name))
    outcome = prepare(path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "nothing has changed" in prepare(path).stdout
    shown = llmcheck("data", "show", str(tmp_path / "out"), "--line", f"{path}:1")
    assert (shown.code, "ro\\udcffws.jsonl:1" in shown.stdout) == (0, True)


def test_thousands_of_files(llmcheck: Run, jsonl: Rows, tokenizer_folder: Path, tmp_path: Path) -> None:
    """As a shell's pattern gives them: more text than one argument of a process may have (128 KiB)."""
    jsonl(GOOD)
    names = [f"{'a-name-of-some-length-' * 6}{number}.jsonl" for number in range(1100)]
    for name in names:
        (tmp_path / name).symlink_to("rows.jsonl")
    words = ["--tokenizer", str(tokenizer_folder), "--seq-len", "64", "--out", "out", "--template", "belle", "--fast", "off"]
    outcome = llmcheck("data", "prepare", *names, *words, cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.splitlines()[1].startswith("1,100 rows of 1,100")


def test_a_missing_row_is_told(llmcheck: Run, prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    prepare(str(jsonl(GOOD)))
    for words, message in (
        (["--row", "5"], "no row 5"),
        (["--line", "9"], "nothing was made of line 9"),
        (["--line", "x:1"], "not made of x"),
    ):
        outcome = llmcheck("data", "show", str(tmp_path / "out"), *words)
        assert (outcome.code, message in outcome.stderr) == (2, True)


def test_a_line_that_was_left_out_is_shown_with_its_reason(llmcheck: Run, prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    path = jsonl(GOOD, {**GOOD, "output": 5}, {**GOOD, "output": ""}, GOOD)
    prepare(str(path))
    for line, why in (
        (2, 'it is bad: a field that should be text is not; "output" is a number'),
        (3, "it was left out: every answer is empty"),
    ):
        for form in ("text", "json"):
            outcome = llmcheck("data", "show", str(tmp_path / "out"), "--line", f"{path}:{line}", "--format", form)
            assert (outcome.code, outcome.stdout) == (2, "")
            assert f"where: {path}:{line}" in outcome.stderr
            assert f"why: {why}" in outcome.stderr
    beyond = llmcheck("data", "show", str(tmp_path / "out"), "--line", "9").stderr
    assert "why: it is blank, or does not exist\n" in beyond


def test_text_is_not_made_with_another_tokenizer(
    llmcheck: Run, prepare: Run, jsonl: Rows, tokenizer_folder: Path, with_config: Callable[..., Path], tmp_path: Path
) -> None:
    prepare(str(jsonl(GOOD)))
    moved = with_config("moved")
    assert llmcheck("data", "show", str(tmp_path / "out"), "--tokenizer", str(moved)).code == 0
    model = json.loads((moved / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = model["model"]["vocab"]
    one, two = [token for token, place in vocabulary.items() if 300 < place < 303]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (moved / "tokenizer.json").write_text(json.dumps(model), encoding="utf-8")
    outcome = llmcheck("data", "show", str(tmp_path / "out"), "--tokenizer", str(moved), cwd=tmp_path)  # cwd: answers are remembered
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "is another than the one that made the data" in outcome.stderr


def test_a_tokenizer_that_has_moved_is_asked_for(llmcheck: Run, jsonl: Rows, with_config: Callable[..., Path], tmp_path: Path) -> None:
    folder = with_config("here")
    words = ["--tokenizer", "here", "--seq-len", "64", "--out", "out", "--template", "belle", "--fast", "off"]
    assert llmcheck("data", "prepare", str(jsonl(GOOD)), *words, cwd=tmp_path).code == 0
    outcome = llmcheck("data", "show", str(tmp_path / "out"), cwd=tmp_path / "out")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "why: it has moved, or the path counts from another folder" in outcome.stderr
    assert "hint: --tokenizer DIR" in outcome.stderr
    assert llmcheck("data", "show", str(tmp_path / "out"), "--tokenizer", str(folder), cwd=tmp_path / "out").code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("show", "--template", "belle"), ("show", "--seq-len", "9"), ("show", "--out", "x"), ("show", "--max-bad", "0"),
        ("show", "--rows", "2", "--row", "1"), ("prepare", "--rows", "2"), ("prepare", "--row", "0"), ("prepare", "--line", "1"),
    ],
)  # fmt: skip
def test_options_of_the_other_action_are_refused(llmcheck: Run, words: tuple[str, ...], tmp_path: Path) -> None:
    action, flag, *_ = words
    common = [] if action == "show" else ["--tokenizer", "t", "--seq-len", "9", "--out", "o"]
    outcome = llmcheck("data", *words, str(tmp_path), *common)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert flag in outcome.stderr.splitlines()[0]


def test_damaged_data_is_not_shown(llmcheck: Run, prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    prepare(str(jsonl(GOOD)))
    with (tmp_path / "out" / "tokens.bin").open("ab") as file:
        file.write(b"x")
    outcome = llmcheck("data", "show", str(tmp_path / "out"))
    assert (outcome.code, outcome.stderr.splitlines()[0]) == (2, "error[data]: the prepared data is damaged")


def test_an_edited_manifest_is_told(prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    from llmcheck.console import Terminal
    from llmcheck.errors import UserError
    from llmcheck_trainer.dataprep.show import Request, show

    prepare(str(jsonl(GOOD)))
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    told = []
    for key in ("dropped", "lengths", "tokenizer", "sources", "template", "truncated", "num_source_rows"):
        without = {name: value for name, value in manifest.items() if name != key}
        for changed in (without, {**without, key: None}, {**without, key: {}}, {**without, key: "x"}):
            path.write_text(json.dumps(changed))
            try:
                show(Request(path=str(tmp_path / "out")), Terminal(colour=False))
            except UserError as error:
                told.append((key, error.what))
    assert {key for key, _ in told} == {"dropped", "lengths", "tokenizer", "sources", "template", "truncated", "num_source_rows"}
    assert {what for _, what in told} == {"the prepared data is damaged"}


def test_an_edited_manifest_stops_a_run_without_a_traceback(prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    from llmcheck.errors import UserError
    from llmcheck_trainer.dataprep.ready import Set, Wanted, make_ready

    prepare(str(jsonl(GOOD)))
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    both = [Set(flag=flag, folder=str(tmp_path / "out"), settings=None) for flag in ("--data", "--eval-data")]
    told = set()
    for key in manifest:
        for value in (None, "x", 5, [None], {}, {"count": "x"}, [{"path": "x", "sha256": [1]}]):
            path.write_text(json.dumps({**manifest, key: value}))
            try:
                make_ready(both, Wanted(seq_len=64, num_rows=10**6, tokenizer=None, allowed=frozenset()), dry=True)
            except UserError as error:
                told.add((key, error.code))
    assert {("truncated", "data"), ("pieces", "data"), ("num_source_rows", "data"), ("seq_len", "data")} <= told


def test_missing_packages_exit_3_with_the_extra_to_install(prepare: Run, jsonl: Rows, tmp_path: Path) -> None:
    """Plays an interpreter without the package tokenizers."""
    code = (
        "import importlib.util, sys\nreal = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'tokenizers' else real(name, *rest)\n"
        "from llmcheck_trainer.dataprep.__main__ import main\nsys.exit(main(['{}']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert 'pip install "llmcheck[data]"' in done.stderr


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """The command in a session of its own, so that it can be killed with all its processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmcheck", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for_scratch(folder: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in folder.glob(".out.*.part"):
            if (path / "tokens.bin").exists() and (path / "tokens.bin").stat().st_size > 0:
                return path
        time.sleep(0.002)
    raise AssertionError("it wrote nothing")


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_in_the_middle_leaves_nothing_that_is_believed(
    prepare: Run, jsonl: Rows, tokenizer_folder: Path, tmp_path: Path, sign: int
) -> None:
    path = jsonl(*[{**GOOD, "output": "Blue, green and red. " * 200}] * 6000)
    arguments = ["data", "prepare", str(path), "--tokenizer", str(tokenizer_folder), "--seq-len", "64", "--out", str(tmp_path / "out")]
    process = start([*arguments, "--template", "belle", "--fast", "off"])
    scratch = wait_for_scratch(tmp_path)
    os.killpg(process.pid, sign)
    code = process.wait(timeout=60)
    assert b"Traceback" not in process.communicate()[1]
    assert not (tmp_path / "out").exists()
    assert not (scratch / "manifest.json").exists()
    if sign == signal.SIGINT:
        assert code == 130
    if sign != signal.SIGKILL:
        assert not scratch.exists()
    small = jsonl(GOOD)
    outcome = prepare(str(small))
    assert (outcome.code, "written" in outcome.stdout) == (0, True)
    assert not scratch.exists()
    assert store.is_whole(str(tmp_path / "out"), store.read_manifest(str(tmp_path / "out")))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_request_to_stop_ends_the_worker_too(jsonl: Rows, tokenizer_folder: Path, tmp_path: Path, sign: int) -> None:
    """Sent to the command alone, as `kill` and schedulers do; SIGUSR1 is what a Slurm job's --signal often says."""
    path = jsonl(*[{**GOOD, "output": "Blue, green and red. " * 200}] * 6000)
    arguments = ["data", "prepare", str(path), "--tokenizer", str(tokenizer_folder), "--seq-len", "64", "--out", str(tmp_path / "out")]
    process = start([*arguments, "--template", "belle", "--fast", "off"])
    scratch = wait_for_scratch(tmp_path)
    process.send_signal(sign)
    assert process.wait(timeout=60) == 143
    assert not scratch.exists()


# The interpreter drops what is raised in such a callback; one runs at the end of each import.
IN_A_CALLBACK = """
import os, signal, sys, time, weakref
from llmcheck_trainer.dataprep import __main__ as worker

class Thing:
    pass

def callback(_):
    os.kill(os.getpid(), {number})
    for _ in range(1000):
        pass

def prepare(request):
    thing = Thing()
    held = weakref.ref(thing, callback)
    del thing
    time.sleep(20)
    return 0

worker._prepare = prepare
sys.exit(worker.main(['{{"action": "prepare"}}']))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_stop_is_heard_wherever_it_comes(number: signal.Signals, code: int) -> None:
    program = IN_A_CALLBACK.format(number=int(number))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stderr) == (code, "")


def test_a_killed_worker_is_told(jsonl: Rows, tokenizer_folder: Path, tmp_path: Path) -> None:
    path = jsonl(*[{**GOOD, "output": "Blue, green and red. " * 200}] * 6000)
    arguments = ["data", "prepare", str(path), "--tokenizer", str(tokenizer_folder), "--seq-len", "64", "--out", str(tmp_path / "out")]
    process = start([*arguments, "--template", "belle", "--fast", "off"])
    wait_for_scratch(tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert process.wait(timeout=60) == 2
    assert b"error[killed]" in process.communicate()[1]
