"""Secrets planted in everything that doctor reads, and looked for in everything that it writes."""

from __future__ import annotations

import gzip
import itertools
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcheck.report.redact import hide_secrets

Run = Callable[..., Any]
FORMS = ("text", "json", "sarif", "junit", "github", "markdown")
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"

_ALPHABET = string.ascii_lowercase + string.digits + string.ascii_uppercase
_COUNTER = itertools.count(1)


def word(length: int, alphabet: str = _ALPHABET) -> str:
    """Another made-up word each time, spread over the alphabet, and the same in every run."""
    start, step = next(_COUNTER) * 7, 11
    return "".join(alphabet[(start + i * step + i * i) % len(alphabet)] for i in range(length))


# (the secret, how it stands in a line). Shaped like real ones, invented.
LINES = [
    (secret, line)
    for secret, line in (
        ("hf_" + word(34), "huggingface-cli login --token {}"),
        ("hf_" + word(34), "Using HF token {} from the environment"),
        ("hf_" + word(34), "training_args: hub_token='{}',"),
        (word(40, "0123456789abcdef"), "WANDB_API_KEY={}"),
        (word(40, "0123456789abcdef"), "wandb login {}"),
        (word(40, "0123456789abcdef"), "wandb.login(key='{}')"),
        ("ghp_" + word(36), "remote: https://{}@github.com/team/repo.git"),
        ("github_pat_" + word(40), "cloning with {}"),
        ("glpat-" + word(20), "CI_JOB_TOKEN {}"),
        (word(20), "git+https://oauth2:{}@gitlab.example.org/team/repo.git"),
        ("p@ss" + word(8), "postgres://trainer:{}@db.example.org/runs"),
        ("AKIA" + word(16, string.ascii_uppercase), "aws_access_key_id {}"),
        (word(40), "aws_secret_access_key={}"),
        (word(40), "AWS_SESSION_TOKEN='{}'"),
        ("AIza" + word(35), "google key {}"),
        ("ya29." + word(40), "Authorization: Bearer {}"),
        (word(32), "x-api-key: {}"),
        ("sk-proj-" + word(40), "OPENAI_API_KEY={}"),
        ("sk-ant-" + word(40), "anthropic {}"),
        ("xoxb-" + word(30), "slack {}"),
        ("nvapi-" + word(40), "NGC {}"),
        ("dckr_pat_" + word(26), "docker login -u x -p {}"),
        ("pypi-" + word(60), "twine upload -p {}"),
        ("npm_" + word(36), "npm {}"),
        ("eyJ" + word(20) + "." + "eyJ" + word(30) + "." + word(43), "cookie {}"),
        (word(12) + "&", "password={}"),
        (word(12), '{{"password": "{}"}}'),
        (word(43) + "=", "https://x.blob.example.org/c?sv=2024&sig={}"),
        (word(64, "0123456789abcdef"), "https://s3.example.org/b?X-Amz-Signature={}"),
        (word(24), "--hub_token {}"),
        (word(24), "--wandb-api-key={}"),
        (word(32), "COMET_API_KEY={}"),
        (word(48), "NEPTUNE_API_TOKEN={}"),
    )
]


def test_there_are_more_than_thirty_secrets() -> None:
    assert len(LINES) > 30
    assert len({secret for secret, _ in LINES}) == len(LINES)


def written(folder: Path) -> str:
    """Everything that a run left in `folder`, unpacked."""
    text = ""
    for path in folder.iterdir():
        data = path.read_bytes()
        text += (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")
    return text


def found(text: str, secrets: list[str]) -> list[str]:
    """Which of `secrets` stand in `text`, in full or but for an end."""
    return [secret for secret in secrets if secret in text or secret[4:-2] in text]


def test_no_form_repeats_a_secret_that_a_log_holds(llmcheck: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    secrets = [secret for secret, _ in LINES]
    # In the line of a finding, in its captures, and in the last exception of a log that no signature knows.
    lines = [line.format(secret) for secret, line in LINES]
    known = "".join(f"{OOM} a total capacity {line}\n[rank0]: KeyError: '{line}'\n" for line in lines)
    (tmp_path / "known.log").write_text(known)
    forms = [part for form in FORMS for part in ("--format", f"{form}={out}/r.{form}")]
    outcome = llmcheck("doctor", "known.log", *forms, "--bundle", f"{out}/b.tar.gz", "--write-baseline", f"{out}/base", cwd=tmp_path)
    assert outcome.code == 1
    assert "OutOfMemoryError" in written(out)
    assert found(written(out) + outcome.stdout + outcome.stderr, secrets) == []


@pytest.mark.parametrize(("secret", "line"), LINES, ids=[line[:24] for _, line in LINES])
def test_a_line_does_not_repeat_its_secret(secret: str, line: str) -> None:
    told = hide_secrets(f"{OOM} {line.format(secret)}")
    assert told.startswith(OOM)
    assert "<" in told
    assert found(told, [secret]) == []


def test_the_last_exception_does_not_repeat_a_secret(llmcheck: Run, tmp_path: Path) -> None:
    for index, (secret, line) in enumerate(LINES):
        if index % 11:
            continue
        (tmp_path / "odd.log").write_text(
            f'Traceback (most recent call last):\n  File "x.py", line 3, in go\n    raise Odd\nmy.Odd: {line.format(secret)}\n'
        )
        for form in ("text", "json", "markdown"):
            outcome = llmcheck("doctor", "odd.log", "--format", form, cwd=tmp_path)
            assert "my.Odd" in outcome.stdout.replace("\\", "")
            assert found(outcome.stdout, [secret]) == []


def test_no_form_repeats_a_secret_of_files_and_environment(llmcheck: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    one, two, three, four, five, six, seven = (word(28) for _ in range(7))
    wandb, hub = word(40, "0123456789abcdef"), "hf_" + word(34)
    (tmp_path / "requirements.txt").write_text(
        f"--index-url https://user:{one}@pypi.example.org/simple\n"
        f"peft @ git+https://bot:{two}@github.com/team/peft.git@v0.17.1\n"
        f"trl @ https://{three}@files.example.org/trl-0.9.0-py3-none-any.whl\ntransformers==5.1.0\n-e git+https://x:{four}@host/y.git#egg=y\n"
        f"this is broken token={five}\n"
    )
    (tmp_path / "hostfile").write_text(f"node1 slots=8\nnode1 slots=8\nadmin:{six}@node2 slots=x password={six}\n")
    (tmp_path / "ds.json").write_text(
        json.dumps(
            {"train_batch_size": "auto", "wandb": {"enabled": True, "team": hub}, "api_key": seven, "zero_optimizatoin": {"stage": 3}}
        )
    )
    (tmp_path / "train.sh").write_text(
        f"export WANDB_API_KEY={wandb}\ntorchrun train.py --fp16 --bf16 --hub_token {hub} --push_to_hub --output_dir https://u:{one}@h/x\n"
    )
    secrets = [one, two, three, four, five, six, seven, wandb, hub]
    env = {
        "HF_TOKEN": hub,
        "WANDB_API_KEY": wandb,
        "NCCL_SOCKET_IFNAME": "eth0",
        "MY_PASSWORD": five,
        "PIP_INDEX_URL": f"https://u:{one}@h/simple",
    }
    subjects = ["--requirements", "requirements.txt", "--hostfile", "hostfile", "--ds-config", "ds.json", "--train-args", "train.sh"]
    forms = [part for form in FORMS for part in ("--format", f"{form}={out}/r.{form}")]
    outcome = llmcheck("doctor", *subjects, "--all", "--verbose", *forms, "--bundle", f"{out}/b.tar.gz", cwd=tmp_path, env=env)
    assert outcome.code in (0, 1, 3), outcome.stderr
    assert found(written(out) + outcome.stdout + outcome.stderr, secrets) == []


@pytest.mark.parametrize("option", ["--requirements", "--ds-config", "--train-args", "--hostfile", "--data", "--plan", "--settings"])
def test_an_error_does_not_repeat_the_secret_of_a_file(llmcheck: Run, tmp_path: Path, option: str) -> None:
    secret = "hf_" + word(34)
    for text in (f'{{"token": "{secret}", "token": "{secret}"}}', f"[[[ token = {secret}", f"token = '{secret}'\n", f"a: [{secret}\n"):
        (tmp_path / "requirements.toml").write_text(text)
        outcome = llmcheck("doctor", option, "requirements.toml", cwd=tmp_path)
        assert found(outcome.stdout + outcome.stderr, [secret]) == []
