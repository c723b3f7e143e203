"""How much of what the libraries can raise do the signatures know? ``python -m benchmarks.corpus.raises [SITE_PACKAGES] [--misses]``.

Reads (never imports) the modules of torch, transformers, accelerate, peft, DeepSpeed and safetensors that a fine-tuning run goes through,
takes the text of every ``raise`` and ``assert``, with its variable parts filled in, and scans it as the last line of a traceback. Many of
these are never seen in practice; the share says how wide the signatures are, not how often they are right.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corpus.score import Row, judge, load_signatures
from benchmarks.report import table

MODULES = (
    "accelerate/*.py",
    "accelerate/commands/launch.py",
    "accelerate/utils/*.py",
    "deepspeed/checkpoint/*.py",
    "deepspeed/comm/*.py",
    "deepspeed/launcher/*.py",
    "deepspeed/ops/adam/*.py",
    "deepspeed/ops/op_builder/*.py",
    "deepspeed/runtime/*.py",
    "deepspeed/runtime/activation_checkpointing/*.py",
    "deepspeed/runtime/checkpoint_engine/*.py",
    "deepspeed/runtime/fp16/*.py",
    "deepspeed/runtime/zero/*.py",
    "peft/*.py",
    "peft/tuners/lora/*.py",
    "peft/tuners/tuners_utils.py",
    "peft/utils/*.py",
    "safetensors/torch.py",
    "torch/amp/*.py",
    "torch/cuda/__init__.py",
    "torch/distributed/checkpoint/*.py",
    "torch/distributed/distributed_c10d.py",
    "torch/distributed/elastic/rendezvous/*.py",
    "torch/distributed/fsdp/*.py",
    "torch/distributed/fsdp/_fully_shard/*.py",
    "torch/distributed/run.py",
    "torch/nn/parallel/distributed.py",
    "torch/nn/utils/clip_grad.py",
    "torch/optim/*.py",
    "torch/serialization.py",
    "torch/utils/checkpoint.py",
    "torch/utils/data/*.py",
    "torch/utils/data/_utils/*.py",
    "transformers/configuration_utils.py",
    "transformers/data/data_collator.py",
    "transformers/hf_argparser.py",
    "transformers/integrations/*.py",
    "transformers/modeling_flash_attention_utils.py",
    "transformers/modeling_utils.py",
    "transformers/models/auto/*.py",
    "transformers/quantizers/*bnb*.py",
    "transformers/tokenization_utils_base.py",
    "transformers/trainer*.py",
    "transformers/training_args.py",
    "transformers/utils/hub.py",
)
_MIN_TEXT = 12  # characters: what is shorter says nothing
_SIZES = ("len", "num", "size", "rank", "count", "numel", "step", "shape")  # names of variables that hold numbers


@dataclass(frozen=True)
class Raised:
    """One statement: where it stands, the exception, and its text."""

    path: str
    line: int
    exception: str
    text: str


def statements(root: Path) -> Iterator[Raised]:
    """Every statement with a text in MODULES below `root`."""
    for pattern in MODULES:
        for path in sorted(root.glob(pattern)):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                name, argument = _parts(node)
                text = _text(argument) if argument is not None else None
                if text is not None and len(text) >= _MIN_TEXT and name != "NotImplementedError":
                    yield Raised(str(path.relative_to(root)), getattr(node, "lineno", 0), name, text)


def _parts(node: ast.AST) -> tuple[str, ast.expr | None]:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        return ast.unparse(node.exc.func).rpartition(".")[2], node.exc.args[0]
    if isinstance(node, ast.Assert):
        return "AssertionError", node.msg
    return "", None


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else _filled(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _text(node.func.value)
    return None


def _filled(part: ast.expr) -> str:
    name = ast.unparse(part).lower()
    if any(word in name for word in _SIZES):
        return "7"
    return "LlamaModel" if "type" in name or "class" in name else "foo"


def main(arguments: list[str]) -> int:
    """Run the command line."""
    paths = [Path(word) for word in arguments if not word.startswith("--")]
    root = paths[0] if paths else Path(sysconfig.get_paths()["purelib"])
    signatures = load_signatures()
    counts: dict[str, list[int]] = {}
    misses = []
    for found in statements(root):
        log = (
            f'Traceback (most recent call last):\n  File "/opt/lib/{found.path}", line {found.line}, in f\n{found.exception}: {found.text}'
        )
        first = judge(Row(id="", family="", cause="", log=log), signatures).first
        count = counts.setdefault(found.path.split("/")[0], [0, 0, 0])
        count[0] += first is not None
        count[1] += first is not None and first.group.rule.confidence != "low"
        count[2] += 1
        if first is None:
            misses.append(f"{found.path}:{found.line} {found.exception}: {found.text!r}")
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [(name, known, exact, of, f"{known / of:.1%}") for name, (known, exact, of) in counts.items()]
    print("\n".join(table(("library", "known", "of these exactly", "statements", "share"), rows)))
    if "--misses" in arguments:
        print("\n".join(misses))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
