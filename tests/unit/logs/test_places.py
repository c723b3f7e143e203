from __future__ import annotations

import pytest

from benchmarks.logs.samples import find, signature
from llmcheck.logs.diagnose import Diagnosis, diagnose
from llmcheck.logs.places import MAX_LINES_AFTER
from llmcheck.rules.rule import Rule

LIB = "/usr/lib/python3.11/site-packages"
HEAD = "Traceback (most recent call last):\n"


def place(code: str, *parts: str, pattern: str = r"^\w+(?::|$)") -> Rule:
    return signature(code, (), pattern, confidence="low", raised_in=parts)


def frame(file: str, function: str = "f") -> str:
    return f'  File "{file}", line 3, in {function}\n    x()\n'


DATA, ZERO, REST = place("DATA", "/datasets/", "/data/"), place("ZERO", "/zero/", " load_state_dict "), place("REST", "anywhere")


def of(text: str, *rules: Rule) -> Diagnosis:
    return diagnose([find(text, *rules)])


def codes(diagnosis: Diagnosis) -> list[str]:
    return [cause.group.rule.code for cause in diagnosis.causes]


def test_the_innermost_frame_that_a_rule_is_about_decides() -> None:
    text = HEAD + frame(f"{LIB}/datasets/map.py") + frame(f"{LIB}/zero/stage3.py") + frame(f"{LIB}/torch/nn/module.py") + "ValueError: x\n"
    assert codes(of(text, DATA, ZERO, REST)) == ["ZERO"]


def test_a_function_is_a_place_too() -> None:
    assert codes(of(HEAD + frame("adam.py", "Adam.load_state_dict") + "AssertionError\n", DATA, ZERO)) == ["ZERO"]


def test_a_rule_about_any_place_comes_last() -> None:
    assert codes(of(HEAD + frame(f"{LIB}/datasets/map.py") + "ValueError: x\n", REST, DATA)) == ["DATA"]
    assert codes(of(HEAD + frame("a.py") + "ValueError: x\n", REST, DATA)) == ["REST"]


def test_the_pattern_sees_the_exceptions_line() -> None:
    rule = place("KEY", "/datasets/", pattern=r"^KeyError: 0$")
    assert codes(of(HEAD + frame(f"{LIB}/datasets/map.py") + "KeyError: 0\n", rule)) == ["KEY"]
    assert codes(of(HEAD + frame(f"{LIB}/datasets/map.py") + "KeyError: 1\n", rule)) == []


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("/data/ann/project/train.py", []),
        ("C:\\data\\ann\\train.py", []),
        ("/home/ann/LLaMA-Factory/src/llamafactory/data/loader.py", ["DATA"]),
        ("C:\\code\\factory\\data\\loader.py", ["DATA"]),
        ("./data/loader.py", ["DATA"]),
        (f"/data/ann{LIB}/torch/optim.py", []),
    ],
)
def test_a_users_own_folders_are_no_place(file: str, told: list[str]) -> None:
    assert codes(of(HEAD + frame(file) + "ValueError: x\n", DATA)) == told


CRASH = HEAD + frame(f"{LIB}/datasets/map.py") + "ValueError: x\n"


def test_the_exception_is_shown_beside_the_guess() -> None:
    diagnosis = of(CRASH, DATA)
    assert diagnosis.exception is not None
    (cause,) = diagnosis.causes
    assert (cause.group.first.line, cause.group.first.text, cause.group.count) == (4, "ValueError: x", 1)


def test_what_another_signature_knows_is_not_guessed() -> None:
    assert codes(of("cause\n" + CRASH, DATA, signature("CAUSE", "cause", "cause"))) == ["CAUSE"]
    assert codes(of(CRASH, DATA, signature("KNOWN", "ValueError", "ValueError: x", role="cascade"))) == ["KNOWN"]


def test_a_launcher_that_saw_it_die_is_an_effect() -> None:
    diagnosis = of(CRASH + "worker failed\n", DATA, signature("FAILED", "worker failed", "worker failed", role="cascade"))
    assert [(cause.group.rule.code, [effect.rule.code for effect in cause.effects]) for cause in diagnosis.causes] == [("DATA", ["FAILED"])]


def test_only_the_last_exception_is_guessed_about() -> None:
    assert codes(of(CRASH + "\nstep 2\n" + HEAD + frame(f"{LIB}/zero/a.py") + "OSError: x\n", DATA, ZERO)) == ["ZERO"]


def test_a_run_that_went_on_was_not_ended_by_it() -> None:
    assert codes(of(CRASH + "step\n" * (MAX_LINES_AFTER - 1), DATA)) == ["DATA"]
    assert codes(of(CRASH + "step\n" * (MAX_LINES_AFTER + 1), DATA)) == []


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ("{'loss': 1.9, 'epoch': 1.0}\n{'loss': 1.8, 'epoch': 2.0}\n", []),
        ("step 4 loss: 1.9\nstep 5 loss: 1.8", []),
        ("{'train_runtime': 12.0}\n", []),
        ("[INFO] Training completed.\nbye\n", []),
        ("{'loss': 1.9, 'epoch': 1.0}\n", ["DATA"]),
        ("wandb: train/loss 1.9\nwandb: eval/loss 1.8\n", ["DATA"]),
        (" 10%|# | 1/10 [00:01<00:09,  1.00s/it]\n", ["DATA"]),
        ("", ["DATA"]),
    ],
)
def test_losses_after_it_say_that_it_was_handled(after: str, told: list[str]) -> None:
    before = "{'loss': 2.1}\n{'loss': 2.0}\n"
    assert codes(of(before + CRASH + after, DATA)) == told
    assert codes(of(before * 9000 + CRASH + after, DATA)) == told


def test_what_a_destructor_raised_or_a_logger_called_information_ended_nothing() -> None:
    assert codes(of(HEAD + frame(f"{LIB}/datasets/map.py", "Loader.__del__") + "ValueError: x\n", DATA)) == []
    assert codes(of("[INFO:swift] " + CRASH, DATA)) == []
    assert codes(of("Exception ignored in: <function Pool.close at 0x7f2b>\n" + CRASH, DATA)) == []


def test_ranks_are_counted_together() -> None:
    text = "".join(f"[rank{rank}]: {line}\n" for rank in range(4) for line in CRASH.splitlines())
    (cause,) = of(text, DATA).causes
    assert (cause.group.count, cause.group.ranks) == (4, {0: 1, 1: 1, 2: 1, 3: 1})


def test_a_place_costs_the_lines_of_a_log_nothing() -> None:
    from llmcheck.logs.signatures import Signatures

    signatures = Signatures([DATA, ZERO], "python")
    assert (signatures.rules, signatures.places, len(signatures.literals)) == ((), (DATA, ZERO), 1)
