"""`llmcheck train` with files of rows: prepared once, checked against the plan and by doctor, handed to a launcher that is a stand-in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import prepared_data
import pytest
import tiny_model

pytest.importorskip("numpy")
pytest.importorskip("tokenizers")

from llmcheck import lock
from llmcheck.cli import main
from llmcheck.commands import train

SEQ = 64
PAIRS = {"What is red?": "A colour.", "What is two?": "A number.", "What is an oak?": "A tree.", "What is a cat?": "An animal."}
ALPACA = [{"instruction": q, "input": "", "output": a} for q, a in PAIRS.items()]
BELLE = [{"id": "1", "conversations": [{"from": "human", "value": q}, {"from": "assistant", "value": a}]} for q, a in PAIRS.items()]
SHAREGPT = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in PAIRS.items()]
MESSAGES = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in PAIRS.items()]
TEXT = [{"text": f"{q} {a}"} for q, a in PAIRS.items()]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str
    launched: list[str] | None  # the command that would have replaced the process


Train = Callable[..., Outcome]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def plan(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plan(tmp_path_factory.mktemp("plans") / "plan.json", model)


def make_plan(path: Path, model: Path, seq_len: int = SEQ) -> Path:
    words = ["plan", "--model", str(model), "--gpus", "1", "--gpu", "A100-40G", "--seq-len", str(seq_len), "--micro-batch", "2"]
    assert main([*words, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Train:
    """The command line in this process, on a machine that says it trains on the CPU, with the launcher replaced."""
    launched: list[list[str]] = []

    def become(argv: list[str], env: dict[str, str]) -> NoReturn:
        launched.append(argv)
        raise SystemExit(0)

    monkeypatch.setattr(train, "_become", become)
    monkeypatch.setattr(train, "_check_packages", lambda launcher: None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Outcome:
        capfd.readouterr()
        launched.clear()
        code = main(["train", *map(str, words)])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Outcome(code, out, err, launched[0] if launched else None)

    return call


@pytest.fixture
def go(run: Train, plan: Path, tmp_path: Path) -> Train:
    """`run` with the plan, BELLE's template and an output folder."""

    def call(*words: object) -> Outcome:
        common: list[object] = ["--plan", plan, "--output", tmp_path / "out", "--template", "belle"]
        given = [str(word) for word in words]
        pairs = zip(common[::2], common[1::2], strict=True)
        return run(*words, *[word for pair in pairs if pair[0] not in given for word in pair])

    return call


def jsonl(path: Path, *rows: Any) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("rows", [ALPACA, BELLE, SHAREGPT, MESSAGES, TEXT], ids=["alpaca", "belle", "sharegpt", "messages", "text"])
def test_rows_of_each_shape_are_what_data_prepare_makes_of_them(rows: list[Any], go: Train, model: Path, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", *rows)
    done = go("--data", file)
    words = ["data", "prepare", file, "--tokenizer", model, "--seq-len", SEQ, "--template", "belle", "--out", tmp_path / "alone"]
    assert main([str(word) for word in words]) == 0

    assert done.code == 0, done.err
    assert done.launched is not None
    assert done.launched[done.launched.index("--data") + 1] == str(tmp_path / "out" / "data")
    for name in ("tokens.bin", "supervised.bin", "offsets.bin", "source.bin"):
        assert (tmp_path / "out" / "data" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert "4 rows of 4" in done.err
    assert done.out == ""


def test_several_files_of_several_kinds_are_one_set(go: Train, tmp_path: Path) -> None:
    lines = jsonl(tmp_path / "a.jsonl", *BELLE)
    listed = tmp_path / "b.json"
    listed.write_text(json.dumps(ALPACA))
    text = tmp_path / "c.txt"
    text.write_text("One line.\nAnother line.\n")
    done = go("--data", lines, listed, "--data", text)

    assert done.code == 0, done.err
    assert [(s["path"], s["num_rows"]) for s in manifest(tmp_path / "out" / "data")["sources"]] == [
        (str(lines), 4), (str(listed), 4), (str(text), 2),
    ]  # fmt: skip


def test_parquet_and_arrow(go: Train, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(ALPACA)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    done = go("--data", tmp_path / "a.parquet", tmp_path / "b.arrow", "--dry-run")
    assert "8 of the first 8 rows would be used" in done.err
    done = go("--data", tmp_path / "a.parquet", tmp_path / "b.arrow")

    assert done.code == 0, done.err
    assert manifest(tmp_path / "out" / "data")["num_rows"] == 8


def test_nothing_changed_is_used_again(go: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    go("--data", file)
    before = os.stat(tmp_path / "out" / "data" / "tokens.bin")
    shutil.copy(file, tmp_path / "copy.jsonl")
    again, copy = go("--data", file), go("--data", tmp_path / "copy.jsonl")
    after = os.stat(tmp_path / "out" / "data" / "tokens.bin")

    assert "nothing has changed" in again.err
    assert "nothing has changed" in copy.err  # a file is its content
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert again.launched == copy.launched != None  # noqa: E711 - a chain


def test_what_changed_is_said_and_prepared_again(go: Train, model: Path, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    longer = make_plan(tmp_path / "longer.json", model, 96)
    go("--data", file)
    jsonl(file, *BELLE, ALPACA[0])
    changed = go("--data", file)
    template = go("--data", file, "--template", "plain")
    length = go("--data", file, "--template", "plain", "--plan", longer)
    more = go("--data", file, file, "--template", "plain", "--plan", longer)
    dry = go("--data", file, "--dry-run")

    assert f"prepared again, since {file} changed: 1 file" in changed.err
    assert "prepared again, since the template is another: 1 file" in template.err
    assert "prepared again, since the sequence length was 64, it is 96: 1 file" in length.err
    assert f"prepared again, since it was made of {file}: 2 files" in more.err
    assert "again, since the sequence length was 96, it is 64; the template is another; it was made of" in dry.err
    assert [each.code for each in (changed, template, length, more, dry)] == [0] * 5
    assert manifest(tmp_path / "out" / "data")["seq_len"] == 96  # the dry run left it


def test_another_tokenizer_beside_the_weights_prepares_again(go: Train, model: Path, tmp_path: Path) -> None:
    own = shutil.copytree(model, tmp_path / "own")
    plan = make_plan(tmp_path / "plan.json", own)
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    go("--data", file, "--plan", plan)
    tiny_model.write_tokenizer(own, vocab_size=300)
    done = go("--data", file, "--plan", plan)

    assert "prepared again, since the tokenizer, or the padding token, is another" in done.err
    assert manifest(tmp_path / "out" / "data")["tokenizer"]["vocab_size"] == 300


def test_damaged_files_are_made_again(go: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    go("--data", file)
    tokens = tmp_path / "out" / "data" / "tokens.bin"
    whole = tokens.read_bytes()
    tokens.write_bytes(bytes(len(whole)))
    done = go("--data", file)

    assert "prepared again, since its files are damaged" in done.err
    assert tokens.read_bytes() == whole


def test_a_template_that_asks_for_the_day_keeps_it(run: Train, model: Path, tmp_path: Path) -> None:
    own = shutil.copytree(model, tmp_path / "own")
    text = (
        "{{ strftime_now('%Y') }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    (own / "chat_template.jinja").write_text(text)
    plan = make_plan(tmp_path / "plan.json", own)
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    words = ("--plan", plan, "--data", file, "--output", tmp_path / "out")
    first = run(*words, "--date", "2020-02-02")
    tomorrow = run(*words)
    other = run(*words, "--date", "2021-02-02")

    assert first.code == 0, first.err
    assert "nothing has changed" in tomorrow.err
    assert "the template's date was 2020-02-02, it is 2021-02-02" in other.err
    assert date.today().isoformat() not in tomorrow.err


def test_a_dry_run_comes_past_a_first_row_of_megabytes(go: Train, tmp_path: Path) -> None:
    long = {**ALPACA[0], "output": "word " * 2_000_000}
    done = go("--data", jsonl(tmp_path / "rows.jsonl", long, *ALPACA), "--dry-run")

    assert done.code == 0, done.err
    assert "5 of the first 5 rows would be used" in done.err


def test_pieces_of_a_text_are_one_row(go: Train, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("One line.\n" + "word " * 500 + "\n")
    done = go("--data", text, "--dry-run")

    assert done.code == 0, done.err
    assert "2 of the first 2 rows would be used" in done.err


def test_a_dry_run_tries_the_first_rows_and_writes_nothing(go: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", *BELLE, {**ALPACA[0], "output": "many words " * 100}, {"x": 1})
    done = go("--data", file, "--max-bad", "1", "--dry-run")

    assert (done.code, done.launched) == (0, None)
    assert done.out.splitlines()[-1].startswith("deepspeed --num_gpus 1 ")
    assert f"--data {tmp_path / 'out' / 'data'}" in done.out
    assert "would prepare 1 file" in done.err
    assert "5 of the first 6 rows would be used" in done.err
    assert "1 bad: none of the known shapes" in done.err
    assert f"{file}:6" in done.err
    assert "1 cut off at 64 tokens" in done.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_finds_what_would_stop_the_preparation(go: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", {"x": 1}, {"x": 2})
    assert go("--data", file, "--dry-run").code == 2


def test_what_was_left_out_is_told_with_its_lines(go: Train, tmp_path: Path) -> None:
    long = {"instruction": "many words " * 100, "input": "", "output": "Too late."}
    file = jsonl(tmp_path / "rows.jsonl", *BELLE, "{broken", long, {**ALPACA[0], "output": "an answer " * 100})
    done = go("--data", file, "--max-bad", "1")

    assert done.code == 0, done.err
    assert "5 rows of 7" in done.err
    assert "1 bad: not JSON" in done.err
    assert f"{file}:5" in done.err
    assert "1 left out: no token of an answer is left to learn from" in done.err
    assert f"{file}:6" in done.err
    assert "1 cut off at 64 tokens" in done.err


def test_a_bad_line_stops_the_run_where_no_number_was_accepted(go: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", *BELLE, "{broken")
    done = go("--data", file)
    prepared = (tmp_path / "out" / "data").exists()
    allowed = go("--data", file, "--allow", "LCD001=one line was cut off by the export")

    assert (done.code, done.launched) == (1, None)
    assert f"{file}:5" in done.err
    assert "error[doctor]" in done.err
    assert "--max-bad N" in done.err
    assert not prepared
    assert allowed.code == 0, allowed.err
    assert "1 bad: not JSON" in allowed.err


def broken_utf8(folder: Path) -> Path:
    path = folder / "latin.jsonl"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in ALPACA) + b'{"instruction": "caf\xe9", "output": "a"}\n')
    return path


def text_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


MISTAKES: dict[str, tuple[Callable[[Path], list[Path]], int, tuple[str, ...]]] = {
    "no such file": (lambda at: [at / "rosw.jsonl"], 2, ("error[unreadable]", "did you mean 'rows.jsonl'")),
    "empty": (lambda at: [text_file(at / "empty.jsonl", "")], 1, ("LCD005", "no rows")),
    "empty text": (lambda at: [text_file(at / "empty.txt", "")], 2, ("error[input]", "is empty")),
    "another format": (lambda at: [text_file(at / "t.csv", "a,b\n1,2\n")], 2, ("error[input]", "t.csv", "known are JSON lines")),
    "not UTF-8": (lambda at: [broken_utf8(at)], 1, ("LCD010", "latin.jsonl:5")),
    "one object": (lambda at: [text_file(at / "o.json", '{\n "a": 1,\n "b": 2\n}\n')], 1, ("LCD002", "o.json")),
    "a list cut off": (lambda at: [text_file(at / "cut.json", json.dumps(ALPACA)[:-30])], 1, ("LCD003", "cut.json")),
    "no known shape": (lambda at: [jsonl(at / "x.jsonl", {"x": 1}, {"x": 2})], 2, ("2 of 2 rows are bad", "row or line 1", "'x'")),
    "no answers": (lambda at: [jsonl(at / "n.jsonl", {**ALPACA[0], "output": ""})], 1, ("LCD022", "n.jsonl:1")),
    "a pipe": (lambda at: [Path("/dev/null")], 2, ("error[input]", "not a regular file")),
    "a folder": (lambda at: [at], 2, ("error[data]", "holds no prepared data", "rows.jsonl")),
    "an empty folder": (lambda at: [folder(at / "none")], 2, ("error[data]", "name files of rows")),
    "a folder beside a file": (lambda at: [at / "rows.jsonl", folder(at / "none")], 2, ("error[data]", "holds no prepared data")),
    "prepared data beside a file": (
        lambda at: [at / "rows.jsonl", prepared_data.write(at / "p", [[4, 2]], vocab_size=600, seq_len=SEQ)], 2, ("error[conflict]",),
    ),
    "a name on the Hub": (lambda at: [Path("hf:org/rows")], 3, ("error[hub]", "the Hub cannot be asked")),
}  # fmt: skip


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_prepared_is_said_and_nothing_is_started(name: str, go: Train, tmp_path: Path) -> None:
    place = folder(tmp_path / "rows")
    jsonl(place / "rows.jsonl", *BELLE)
    make, code, said = MISTAKES[name]
    done = go("--data", *make(place))

    assert (done.code, done.launched) == (code, None), done.err
    assert [text for text in said if text not in done.err] == [], done.err
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("file", ["missing.jsonl", "t.csv"])
def test_held_out_data_is_looked_at_before_anything_starts(file: str, go: Train, tmp_path: Path) -> None:
    text_file(tmp_path / "t.csv", "a,b\n")
    done = go("--data", jsonl(tmp_path / "rows.jsonl", *BELLE), "--eval-data", tmp_path / file)

    assert (done.code, done.launched) == (2, None)
    assert file in done.err


def test_rows_that_are_all_too_long_say_so(go: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", {"instruction": "many words " * 100, "input": "", "output": "Too late."})
    done = go("--data", file)

    assert done.code == 2
    assert "none of 1 rows can be used" in done.err
    assert "64 tokens leave no room for answers" in done.err


def test_conversations_without_a_template(run: Train, plan: Path, tmp_path: Path) -> None:
    done = run("--plan", plan, "--output", tmp_path / "out", "--data", jsonl(tmp_path / "rows.jsonl", *BELLE))

    assert done.code == 2
    assert "--template alpaca|belle|" in done.err


def test_held_out_data_that_is_training_data(go: Train, tmp_path: Path) -> None:
    file, other = jsonl(tmp_path / "rows.jsonl", *BELLE), jsonl(tmp_path / "other.jsonl", *ALPACA[:2])
    same = shutil.copy(file, tmp_path / "same.jsonl")
    for words in (("--data", file, "--eval-data", same), ("--data", other, file, "--eval-data", file)):
        done = go(*words)
        assert (done.code, "warning[eval-data]: --eval-data is training data too" in done.err) == (0, True), done.err
    dry = go("--data", file, "--eval-data", file, "--dry-run", "--output", tmp_path / "new")
    assert "warning[eval-data]" in dry.err
    fine = go("--data", file, "--eval-data", other)
    assert "warning[eval-data]" not in fine.err
    assert fine.launched is not None
    assert fine.launched[fine.launched.index("--eval-data") + 1] == str(tmp_path / "out" / "eval-data")


def test_a_tokenizer_of_its_own_must_be_the_models(go: Train, model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    tiny_model.write_tokenizer(other, vocab_size=300)
    done = go("--data", jsonl(tmp_path / "rows.jsonl", *BELLE), "--tokenizer", other)

    assert (done.code, done.launched) == (2, None)
    assert "error[tokenizer]" in done.err
    assert not (tmp_path / "out" / "data").exists()


def test_weights_without_a_tokenizer_take_the_plans(go: Train, model: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(model / "config.json", weights)
    done = go("--data", jsonl(tmp_path / "rows.jsonl", *BELLE), "--weights", weights)

    assert done.code == 0, done.err
    assert f"with the tokenizer {model}" in done.err


def test_a_tokenizer_saved_again_is_the_same_one(go: Train, model: Path, tmp_path: Path) -> None:
    again = shutil.copytree(model, tmp_path / "again")
    path = again / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation": None}))
    assert path.read_bytes() != (model / "tokenizer.json").read_bytes()
    done = go("--data", jsonl(tmp_path / "rows.jsonl", *BELLE), "--tokenizer", again)

    assert done.code == 0, done.err


def test_no_tokenizer_on_this_disk(run: Train, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    words = ["plan", "--model", "bloomz-560m", "--gpus", "1", "--gpu", "A100-40G", "--micro-batch", "1", "--out", str(plan)]
    assert main(words) == 0
    done = run("--plan", plan, "--output", tmp_path / "out", "--data", jsonl(tmp_path / "rows.jsonl", *BELLE))

    assert (done.code, done.launched) == (3, None)
    assert "no tokenizer bigscience/bloomz-560m, and the Hub cannot be asked" in done.err
    assert "--tokenizer DIR" in done.err


def test_prepared_data_is_compared_with_the_plan(run: Train, model: Path, plan: Path, tmp_path: Path) -> None:
    """Refused, and untouched."""
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    shorter = make_plan(tmp_path / "shorter.json", model, 16)
    longer = make_plan(tmp_path / "longer.json", model, 128)
    for name, words in (("fits", ["--seq-len", "64"]), ("cut", ["--seq-len", "20"])):
        prepare = ["data", "prepare", str(file), "--model", str(model), "--template", "belle", "--out", str(tmp_path / name)]
        assert main([*prepare, *words]) == 0
    other = shutil.copytree(model, tmp_path / "other")
    tiny_model.write_tokenizer(other, vocab_size=300)
    prepared_data.write(tmp_path / "many", [[4, 2]], vocab_size=tiny_model.VOCAB + 1, seq_len=SEQ)
    prepared_data.write(tmp_path / "beyond", [[4, 599, 2]], vocab_size=599, seq_len=SEQ)
    before = {path: path.read_bytes() for path in (tmp_path / "fits").iterdir()}

    def code(data: str, plan: Path, *words: object) -> tuple[int, str]:
        done = run("--plan", plan, "--data", tmp_path / data, "--output", tmp_path / "out", *words)
        return done.code, done.err.partition("error[")[2].partition("]")[0]

    assert code("fits", plan) == (0, "")
    assert code("fits", longer) == (0, "")  # nothing was cut: the rows are the same
    assert code("fits", shorter) == (2, "data-length")
    assert code("cut", plan) == (2, "seq-len")
    assert code("cut", plan, "--allow", "seq-len") == (0, "")
    assert code("many", plan) == (2, "vocabulary")
    assert code("beyond", plan) == (2, "vocabulary")
    assert code("fits", plan, "--weights", other) == (2, "tokenizer")
    assert code("fits", plan, "--template", "belle") == (2, "conflict")
    assert {path: path.read_bytes() for path in (tmp_path / "fits").iterdir()} == before


def test_doctors_findings_about_the_machine_stop_a_run(go: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    stopped, dry = go("--data", file), go("--data", file, "--dry-run")

    assert (stopped.code, stopped.launched) == (1, None)
    assert "LCM104" in stopped.err
    assert not (tmp_path / "out" / "data").exists()
    assert dry.code == 0  # made anywhere


def test_a_reason_is_kept_in_the_plan_and_counts_from_there(go: Train, plan: Path, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", *BELLE, "{broken")
    first = go("--data", file, "--allow", "lcd001=the export cut one line off")
    kept = tmp_path / "out" / "plan.json"
    again = go("--data", file, "--plan", kept)

    assert first.code == 0, first.err
    assert first.launched is not None
    assert first.launched[first.launched.index("--plan") + 1] == str(kept)
    assert "allowed LCD001: the export cut one line off" in first.err
    assert json.loads(kept.read_text())["allowed"] == [{"code": "LCD001", "reason": "the export cut one line off"}]
    assert {k: v for k, v in json.loads(kept.read_text()).items() if k != "allowed"} == json.loads(plan.read_text())
    assert again.code == 0, again.err


def test_codes_of_doctor_are_not_for_the_trainer(go: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    done = go("--data", file, "--allow", "LCD001=none", "--allow", "pad-is-eos", "--allow", "tokenizer=converted, same pieces")

    assert done.launched is not None
    assert done.launched[done.launched.index("--allow") + 1] == "pad-is-eos,tokenizer"


def test_an_edited_plan_stays_edited_with_reasons_in_it(go: Train, plan: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited.json"
    document = json.loads(plan.read_text())
    document["recipe"]["gradient_clipping"] = 2.0
    edited.write_text(json.dumps(document))
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    refused, allowed = go("--data", file, "--plan", edited), go("--data", file, "--plan", edited, "--allow", "plan-edited=clips later")

    assert (refused.code, refused.launched) == (2, None)
    assert allowed.code == 0, allowed.err
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["digest"] == document["digest"]


def test_with_the_options_of_plan_it_plans_prints_checks_and_runs(run: Train, model: Path, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "d.jsonl", *BELLE)
    done = run("--model", model, "--data", file, "--output", tmp_path / "out", "--template", "belle", "--gpu", "A100-40G")
    again = run("--model", model, "--data", file, "--output", tmp_path / "out", "--template", "belle", "--gpu", "A100-40G")

    assert done.code == 0, done.err
    assert " FITS " in done.err
    assert done.out == ""
    assert done.launched is not None
    assert done.launched[done.launched.index("--plan") + 1] == str(tmp_path / "out" / "plan.json")
    assert manifest(tmp_path / "out" / "data")["seq_len"] == json.loads((tmp_path / "out" / "plan.json").read_text())["recipe"]["seq_len"]
    assert "nothing has changed" in again.err


def test_a_hostfile_with_more_hosts_than_the_plan_is_no_finding(run: Train, model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    words = ["--gpus", "4", "--nodes", "2", "--gpu", "A100-40G", "--seq-len", str(SEQ), "--micro-batch", "1", "--out", str(plan)]
    assert main(["plan", "--model", str(model), *words]) == 0
    hosts = text_file(tmp_path / "hosts", "a slots=2\nb slots=2\nc slots=2\n")
    file = jsonl(tmp_path / "d.jsonl", *BELLE)
    done = run("--plan", plan, "--data", file, "--output", tmp_path / "out", "--template", "belle", "--hostfile", hosts)

    assert done.code == 0, done.err
    assert done.launched is not None
    assert done.launched[1:7] == ["--hostfile", str(hosts), "--num_nodes", "2", "--num_gpus", "2"]


@pytest.mark.parametrize(
    ("weights", "said"), [("./nope", "cannot read the folder of the weights"), ("~/m", "the shell did not put your home")]
)
def test_weights_that_are_nowhere_stop_before_anything_is_made(go: Train, tmp_path: Path, weights: str, said: str) -> None:
    file = jsonl(tmp_path / "rows.jsonl", *BELLE)
    done = go("--data", file, "--weights", weights)

    assert (done.code, done.launched) == (2, None)
    assert said in done.err
    assert f"where: --weights {weights}" in done.err
    assert not (tmp_path / "out").exists()
    assert go("--data", file, "--weights", weights, "--dry-run").code == 0, "which is made anywhere"


def test_what_doctor_did_not_examine_is_said(run: Train, model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    words = ["--gpus", "1", "--gpu", "A100-40G", "--micro-batch", "1", "--seq-len", str(SEQ), "--out", str(plan)]
    assert main(["plan", "--model", "bloomz-560m", *words]) == 0
    text = text_file(tmp_path / "rows.txt", "A line.\n")
    done = run("--plan", plan, "--data", text, "--output", tmp_path / "out", "--tokenizer", model, "--dry-run")

    assert done.code == 0, done.err
    assert f"not examined by doctor: the model's folder, {text}" in done.err


def test_a_plan_that_does_not_fit_is_a_finding(run: Train, tmp_path: Path) -> None:
    words = ("--model", "llama-7b", "--gpus", "1", "--gpu", "A100-40G", "--method", "full", "--offload", "none", "--zero", "0")
    done = run(*words, "--data", jsonl(tmp_path / "d.jsonl", *BELLE), "--output", tmp_path / "out")

    assert (done.code, done.launched) == (1, None)
    assert "error[does-not-fit]" in done.err


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_an_output_that_cannot_be_written(place: str, go: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = go("--data", jsonl(tmp_path / "d.jsonl", *BELLE), "--output", tmp_path / place)

    assert (done.code, done.launched) == (2, None)
    assert "error[output]" in done.err
    assert (tmp_path / "file").read_text() == "mine"


def test_other_things_where_the_data_goes_are_left_alone(go: Train, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "data"
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("mine")
    done = go("--data", jsonl(tmp_path / "d.jsonl", *BELLE))

    assert (done.code, done.launched) == (2, None)
    assert "error[exists]" in done.err
    assert "name another --output" in done.err
    assert (mine / "thesis.tex").read_text() == "mine"


def test_two_runs_in_one_output(go: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "d.jsonl", *BELLE)
    go("--data", file)
    before = manifest(tmp_path / "out" / "data")
    held = lock.hold(str(tmp_path / "out" / lock.RUN))
    assert held is not None
    second = go("--data", jsonl(tmp_path / "e.jsonl", *ALPACA[:2]))
    os.close(held)

    assert (second.code, second.launched) == (2, None)
    assert f"another run writes to {tmp_path / 'out'}" in second.err
    assert f"process {os.getpid()} on " in second.err
    assert manifest(tmp_path / "out" / "data") == before
    assert go("--data", file).code == 0
