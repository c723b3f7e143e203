from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcheck.errors import CouldNotCheckError, UserError
from llmcheck.probe import train_args
from llmcheck.probe.shell_words import parse
from llmcheck.rules.facts import ABSENT, Facts, load_registry

REGISTRY = load_registry()


def read(tmp_path: Path, text: str, name: str = "run.sh") -> Facts:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return train_args.facts(str(tmp_path / name))


def value(facts: Facts, name: str) -> Any:
    fact = facts.get(name)
    return None if fact is None else fact.value


def line(facts: Facts, name: str) -> int | None:
    fact = facts.get(name)
    return None if fact is None or fact.location is None else fact.location.line


# --- scripts --------------------------------------------------------------------------------------------------------

SCRIPT = """#!/bin/bash
export CUDA_VISIBLE_DEVICES=0,1
OUT=out/run1   # here
rm -rf out/
cat > ds.json <<EOF
{"a": "torchrun --learning_rate 7"}
EOF
# torchrun other.py --learning_rate 9
torchrun --nproc-per-node=8 --nnodes 2 \\
    train.py --learning_rate 2e-5 \\
    --output_dir "$OUT" --bf16 --lora_target_modules q_proj v_proj \\
    --deepspeed ds.json --warmup_steps=-1 2>&1 | tee log.txt
"""


def test_arguments_have_values_and_lines(tmp_path: Path) -> None:
    facts = read(tmp_path, SCRIPT)
    assert (value(facts, "train.learning_rate"), line(facts, "train.learning_rate")) == (2e-5, 10)
    assert (value(facts, "train.output_dir"), line(facts, "train.output_dir")) == ("out/run1", 11)
    assert value(facts, "train.bf16") is True
    assert value(facts, "train.lora_target_modules") == ["q_proj", "v_proj"]
    assert value(facts, "train.warmup_steps") == -1
    assert value(facts, "train.fp16") is ABSENT
    assert facts.subjects == {"training", "launcher"}


def test_the_launcher_is_known(tmp_path: Path) -> None:
    facts = read(tmp_path, SCRIPT)
    names = ("kind", "script", "num_processes", "processes_per_node", "num_visible_devices", "removes_output", "under_srun")
    assert [value(facts, f"launcher.{name}") for name in names] == ["torchrun", "train.py", 16, 8, 2, "out/", False]


@pytest.mark.parametrize(
    ("command", "kind", "processes"),
    [
        ("torchrun t.py --bf16", "torchrun", 1),
        ("python -m torch.distributed.run --nproc_per_node 4 t.py --bf16", "torchrun", 4),
        ("deepspeed --num_gpus 4 t.py --bf16", "deepspeed", 4),
        ("deepspeed --include localhost:2,3 t.py --bf16", "deepspeed", 2),
        ("deepspeed t.py --bf16", "deepspeed", None),
        ("accelerate launch --num_processes 6 --multi_gpu t.py --bf16", "accelerate", 6),
        ("CUDA_VISIBLE_DEVICES=0 nohup python3 t.py --bf16 &", "python", 1),
        ("srun -n 2 torchrun --nproc_per_node $SLURM_GPUS t.py --bf16", "torchrun", None),
        ("torchrun --nnodes 1:4 --nproc_per_node 8 t.py --bf16", "torchrun", None),
        ("torchrun --nproc_per_node gpu t.py --bf16", "torchrun", None),
        ("llamafactory-cli train --stage sft --bf16 true", "llamafactory", None),
        ("(cd x && torchrun --nproc_per_node 2 t.py --bf16)", "torchrun", 2),
    ],
)
def test_launchers(tmp_path: Path, command: str, kind: str, processes: int | None) -> None:
    facts = read(tmp_path, command + "\n")
    assert (value(facts, "launcher.kind"), value(facts, "launcher.num_processes")) == (kind, processes)
    assert value(facts, "train.bf16") is True


@pytest.mark.parametrize("word", ["$LR", "${LR:-1e-5}", "$(cat lr)", "`cat lr`", "$1"])
def test_what_only_the_run_knows_is_unknown(tmp_path: Path, word: str) -> None:
    facts = read(tmp_path, f"torchrun t.py --learning_rate {word} --bf16 True\n")
    assert facts.get("train.learning_rate") is None
    assert value(facts, "train.bf16") is True


def test_a_variable_with_two_values_is_unknown(tmp_path: Path) -> None:
    facts = read(tmp_path, "LR=1\nif x; then\nLR=2\nfi\ntorchrun t.py --learning_rate $LR\n")
    assert facts.get("train.learning_rate") is None


def test_a_loops_variable_is_unknown(tmp_path: Path) -> None:
    facts = read(tmp_path, "lr=1\nfor lr in 1 2; do\ntorchrun t.py --learning_rate $lr\ndone\n")
    assert facts.get("train.learning_rate") is None


@pytest.mark.parametrize("more", ['"$@"', "$ARGS", '"${ARGS[@]}"'])
def test_further_arguments_leave_the_rest_open(tmp_path: Path, more: str) -> None:
    facts = read(tmp_path, f"torchrun t.py --bf16 True {more}\n")
    assert value(facts, "train.bf16") is True
    assert facts.get("train.fp16") is None
    assert "may hold more arguments" in str(facts.why_unknown("train.fp16"))


def test_a_file_of_arguments_leaves_all_open(tmp_path: Path) -> None:
    facts = read(tmp_path, "llamafactory-cli train conf.yaml\n")
    assert facts.get("train.learning_rate") is None
    assert "conf.yaml" in str(facts.why_unknown("train.learning_rate"))


def test_a_blank_after_a_backslash_is_told(tmp_path: Path) -> None:
    facts = read(tmp_path, "torchrun t.py \\\n  --bf16 True \\ \n  --learning_rate 1\n")
    assert value(facts, "launcher.broken_continuations") == ["line 2"]
    assert value(facts, "train.learning_rate") is ABSENT  # as the shell would have it


def test_a_blank_that_breaks_nothing_is_not_told(tmp_path: Path) -> None:
    assert value(read(tmp_path, "echo a \\ \ntorchrun t.py --bf16\n"), "launcher.broken_continuations") is ABSENT


def test_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_bytes(b"echo\ntorchrun t.py --bf16 True\r\n")
    facts = train_args.facts(str(tmp_path / "run.sh"))
    assert (value(facts, "launcher.windows_line_ends"), line(facts, "launcher.windows_line_ends")) == (True, 2)
    assert value(facts, "train.bf16") is True


def test_slurms_directives(tmp_path: Path) -> None:
    facts = read(tmp_path, "#SBATCH -N 2\n#SBATCH --gres=gpu:a100:8 --ntasks-per-node=8  # all\nsrun torchrun t.py --bf16\n", "job.sbatch")
    names = ("nodes", "gpus_per_node", "ntasks_per_node")
    assert [value(facts, f"launcher.slurm_{name}") for name in names] == [2, 8, 8]
    assert value(facts, "launcher.under_srun") is True


def test_removing_another_folder_is_no_matter(tmp_path: Path) -> None:
    facts = read(tmp_path, "rm -rf cache out2\nrm out/x\ntorchrun t.py --output_dir out\n")
    assert value(facts, "launcher.removes_output") is ABSENT


def test_the_command_with_most_arguments_is_taken(tmp_path: Path) -> None:
    facts = read(tmp_path, "python prepare.py --data x --out y --z 1\ntorchrun a.py --bf16\ntorchrun b.py --bf16 --lr 1\n")
    assert (value(facts, "launcher.script"), value(facts, "launcher.num_commands")) == ("b.py", 2)


@pytest.mark.parametrize("text", ["", "echo hello\n", "python merge.py\n", "pip install torchrun\n" * 3, '"unclosed'])
def test_no_training_command(tmp_path: Path, text: str) -> None:
    if text.startswith("pip"):  # the word alone is a launcher without a script
        assert value(read(tmp_path, text), "launcher.script") is ABSENT
        return
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert error.value.code == "no-launch"


def test_belles_lora_script(tmp_path: Path) -> None:
    facts = read(tmp_path, "deepspeed main.py --sft_only_data_path a.json --max_seq_len 512 --lora_dim 16 --deepspeed\n")
    names = ("framework", "method", "lora_r", "seq_len", "only_optimize_lora")
    assert [value(facts, f"train.{name}") for name in names] == ["belle-v1", "lora", 16, 512, ABSENT]


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=200)
@given(text=st.text(alphabet="ab1 =$\"'\\\n#()<>|&;`{}@-", max_size=60))
def test_no_script_breaks_the_parser(text: str) -> None:
    for command in parse("torchrun t.py " + text).commands:
        assert all(word.line >= 1 for word in command)


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=100)
@given(text=st.text(alphabet="ab1 =$\"'\\\n#()<>|&;`{}@-.", max_size=60))
def test_no_script_breaks_the_probe(tmp_path: Path, text: str) -> None:
    try:
        facts = read(tmp_path, "torchrun t.py --bf16 " + text)
    except UserError:
        return
    assert [name for name in (*facts.known, *facts.unreadable) if REGISTRY.kind(name) is None] == []


# --- files ----------------------------------------------------------------------------------------------------------


def test_json(tmp_path: Path) -> None:
    document = {"output_dir": "x", "bf16": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    facts = read(tmp_path, json.dumps(document, indent=1), "args.json")
    assert (value(facts, "train.bf16"), line(facts, "train.bf16")) == (True, 3)
    assert value(facts, "train.gradient_checkpointing_kwargs.use_reentrant") is True
    assert value(facts, "train.framework") == "transformers"
    assert value(facts, "train.method") is ABSENT
    assert facts.subjects == {"training"}


LLAMAFACTORY = """model_name_or_path: a/b
stage: sft
finetuning_type: lora
lora_target: q_proj,v_proj
lora_rank: 8
quantization_bit: 4
cutoff_len: 2048
flash_attn: fa2
learning_rate: 1e-5
output_dir: out
"""


def test_llamafactory(tmp_path: Path) -> None:
    facts = read(tmp_path, LLAMAFACTORY, "sft.yaml")
    names = ("framework", "method", "lora_r", "lora_target_modules", "seq_len", "attention", "learning_rate", "text_numbers")
    expected = ["llamafactory", "qlora", 8, ["q_proj", "v_proj"], 2048, "flash_attention_2", 1e-5, ABSENT]
    assert [value(facts, f"train.{name}") for name in names] == expected
    assert line(facts, "train.seq_len") == 7


AXOLOTL = """base_model: a/b
adapter: qlora
load_in_4bit: true
sample_packing: true
sequence_len: 4096
micro_batch_size: 2
lora_target_linear: true
group_by_length: false
flash_attention: true
fsdp:
datasets:
  - path: x
"""


def test_axolotl(tmp_path: Path) -> None:
    facts = read(tmp_path, AXOLOTL, "a.yml")
    names = (
        "framework",
        "method",
        "packing",
        "per_device_train_batch_size",
        "lora_target_modules",
        "attention",
        "fsdp",
        "model_name_or_path",
    )
    expected = ["axolotl", "qlora", True, 2, ["all-linear"], "flash_attention_2", ABSENT, "a/b"]
    assert [value(facts, f"train.{name}") for name in names] == expected


def test_names_of_axolotl_are_not_taken_for_training_arguments(tmp_path: Path) -> None:
    facts = read(tmp_path, AXOLOTL, "a.yml")
    assert value(facts, "train.group_by_length") is ABSENT
    assert value(facts, "train.axolotl.group_by_length") is False


def test_a_number_that_yaml_reads_as_text(tmp_path: Path) -> None:
    facts = read(tmp_path, "output_dir: x\nlearning_rate: 1e-5\nweight_decay: 1.0e-2\n", "args.yaml")
    assert value(facts, "train.text_numbers") == ["learning_rate: 1e-5"]
    assert (value(facts, "train.learning_rate"), line(facts, "train.text_numbers")) == (1e-5, 2)


def test_a_key_given_twice(tmp_path: Path) -> None:
    facts = read(tmp_path, "output_dir: x\nbf16: true\nbf16: false\n", "args.yaml")
    assert (value(facts, "train.repeated_keys"), value(facts, "train.bf16")) == (["bf16"], False)


def test_accelerates_own_file_is_about_the_launch(tmp_path: Path) -> None:
    facts = read(tmp_path, "compute_environment: LOCAL\ndistributed_type: DEEPSPEED\nnum_processes: 4\n", "acc.yaml")
    assert (value(facts, "launcher.kind"), value(facts, "launcher.num_processes")) == ("accelerate", 4)
    assert facts.subjects == {"launcher"}


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- 1\n- 2\n",
        "just text",
        "x: !!python/object/apply:os.system ['true']\n",
        "a: 1\n---\nb: 2\n",
        "\x01: 2",
        "d: 2026-99-99\n",
        "[" * 4000,
    ],
)
def test_what_is_no_yaml_of_arguments_is_the_users_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError):
        read(tmp_path, text, "args.yaml")


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    rows = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"] + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(UserError, match="too large"):
        read(tmp_path, "output_dir: x\n" + "\n".join(rows), "bomb.yaml")


def test_yaml_without_pyyaml_says_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return imported(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CouldNotCheckError) as error:
        read(tmp_path, "output_dir: x\n", "args.yaml")
    assert "pip install pyyaml" in error.value.hint


def test_other_json_is_not_taken_for_arguments(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, '{"learning_rat": 1}', "args.json")
    assert error.value.hint == "did you mean 'learning_rate'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5), ("1", 1), ("-1", -1), ("True", True), ("None", None), ("none", "none"), ("1e999", "1e999"), ("{1", "{1"),
        ('{"a": 1}', {"a": 1}), ("9" * 30, "9" * 30), ("0x10", "0x10"), ("a b", "a b"),
    ],
)  # fmt: skip
def test_words_of_a_command_line(text: str, expected: Any) -> None:
    assert train_args.value_of(text) == expected
    assert type(train_args.value_of(text)) is type(expected)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.yaml", "learning_rate: 1\n---\noutput_dir: o\n", "expected a single document in the stream, but found another document"),
        ("a.yaml", "learning_rate: 1\nseed: " + "9" * 6000, "a number in it has thousands of digits"),
        ("a.yaml", "learning_rate: " + "[" * 3000 + "]" * 3000, "it has more than 50,000 values or 32 levels; aliases count as copies"),
        ("a.yaml", "a: &a [*a]\nlearning_rate: 1\n", "it has more than 50,000 values or 32 levels; aliases count as copies"),
        ("a.json", "[1]", None),
    ],
)
def test_a_file_that_is_refused_says_why_and_what_next(tmp_path: Path, name: str, text: str, why: str | None) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, name)
    assert caught.value.hint
    assert why is None or caught.value.why == why
