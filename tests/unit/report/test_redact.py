"""Redaction: planted secrets are gone, what helps stays."""

from __future__ import annotations

import pytest

from llmcheck.report.redact import Redactor, hide_secrets

REDACT = Redactor(names=("gpu-node-17.cluster.example", "gpu-node-17", "liwei"))

# Shaped like the real ones, invented.
SECRETS = {
    "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123": "HF_TOKEN is {}",
    "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345": "remote: {}",
    "github_pat_" + "11ABCDEFG0123456789_abcdefghijklmn": "using {} to clone",
    "glpat-" + "aBcD1234eFgH5678iJkL": "CI token {}",
    "sk-" + "proj-abcdefghij0123456789ABCDEFGHIJ": "OPENAI_API_KEY={}",
    "xoxb-" + "123456789012-abcdefABCDEF": "slack {}",
    "AKIA" + "IOSFODNN7EXAMPLE": "aws {}",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY": "aws_secret_access_key = {}",
    "AIza" + "SyA0123456789abcdefghijklmnopqrstu": "google {}",
    "ya29." + "a0AfH6SMBx0123456789abcdefg": "Authorization: Bearer {}",
    "nvapi-" + "abcdefghij0123456789": "NGC {}",
    "dckr_pat_" + "abcdefghij0123456789": "docker login -p {}",
    "pypi-" + "AgEIcHlwaS5vcmcCJDAwMDAwMDAw": "upload with {}",
    "npm_" + "abcdefghijklmnopqrstuvwxyz0123456789": "npm {}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P": "cookie {}",
    "hunter2hunter2": "password: {}",
    "s3cr3tPa55": "--db-password {}",
    "tr0ub4dor&3": "MYSQL_PASSWORD='{}'",
    "0123456789abcdef0123456789abcdef01234567": "wandb: key {}",
    "alice:correcthorse": "https://{}@example.org/repo.git",
    "https-token-value-123": "curl -H 'Authorization: token {}'",
    "AbCdEf0123%2BxYz%3D": "https://x.blob.example.org/c?sv=2024&sig={}",
    "li.wei@example.com": "contact {}",
    "10.24.3.117": "connecting to {}:29500",
    "gpu-node-17": "[{}:2345] NCCL WARN",
    "gpu-node-17.cluster.example": "ssh {}",
    "liwei": "/scratch/{}/runs",
    "GPU-8f6d1b2a-1c2d-3e4f-5a6b-7c8d9e0f1a2b": "Unable to open {}",
    "00:1a:2b:3c:4d:5e": "eth0 {}",
    "Zx9Qw3Er7Ty1Ui5Op2As8Df4Gh6Jk0LzXcVbNm": "session {}",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----": "{}",
}


@pytest.mark.parametrize(("secret", "line"), SECRETS.items(), ids=[line[:20] for line in SECRETS.values()])
def test_a_planted_secret_is_gone(secret: str, line: str) -> None:
    assert secret not in REDACT(line.format(secret))


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 39.39 GiB",
        "transformers 4.46.1, torch 2.5.1+cu124, driver 550.54.15",
        "model.layers.31.self_attn.q_proj.weight: torch.Size([4096, 4096])",
        'File "torch/nn/modules/module.py", line 1553, in _wrapped_call_impl',
        "DeepSpeedZeroOptimizer_Stage3 partition_parameters_before_forward_pass",
        "generation with max_tokens=2048, num_tokens: 1048576",
        "listening on 127.0.0.1:29500 and 0.0.0.0",
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True NCCL_P2P_DISABLE=1",
    ],
)
def test_what_helps_stays(line: str) -> None:
    assert REDACT(line) == line


@pytest.mark.parametrize(
    "line",
    [
        "pad_token: '<unk>', eos_token='</s>', bos_token = <s>, tokenizer.pad_token_id=0",
        "Unexpected token: identifier; token: 'abcdefgh'; special tokens: additional_special_tokens=['<|im_end|>']",
        "use_auth_token=True hub_token=None api_key=null",
        "git+ssh://git@github.com/team/repo and peft @ git+https://github.com/team/repo@main",
        "image: pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime@sha256:" + "ab" * 8,
        "max_new_tokens=2048 key=model.layers.0.weight",
        "export HF_TOKEN=hf_... and log in",
        "[rank0]:[E1124 02:07:08 ProcessGroupNCCL.cpp:607] OpType=ALLREDUCE",
        "alice@gpu-node-17 10.24.3.117 /home/liwei/run 0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_reports_keep_what_is_no_secret(line: str) -> None:
    assert hide_secrets(line) == line


@pytest.mark.parametrize("text", ["a" * 100_000, "token" * 20_000, "https://" * 10_000, "a:" * 50_000, "-_" * 50_000, "--a" * 30_000])
def test_hiding_does_not_run_away(text: str) -> None:
    assert hide_secrets(text) == text


def test_equal_names_stay_equal() -> None:
    told = REDACT("rank 0 on gpu-node-17, rank 1 on gpu-node-17")
    first, second = told.split(", ")
    assert first.removeprefix("rank 0 on ") == second.removeprefix("rank 1 on ")


@pytest.mark.parametrize("path", ["/home/liwei/run/train.py", "/Users/liwei/run/train.py", "/root/run/train.py"])
def test_home_folders_lose_their_owner(path: str) -> None:
    assert REDACT(path) == "~/run/train.py"


def test_kept_words_stay() -> None:
    digest = "0123456789abcdef" * 4
    assert Redactor(keep=frozenset({digest}))(f"pack {digest}") == f"pack {digest}"
