from __future__ import annotations

import pytest

from benchmarks.logs.samples import OOM, find, in_blocks
from llmcheck.logs.match import Raised, Traceback
from llmcheck.logs.scan import Limits
from llmcheck.logs.signatures import Signatures
from llmcheck.logs.tracebacks import choose

HEAD = "Traceback (most recent call last):\n"
FRAMES = '  File "train.py", line 9, in main\n    run()\n    ~~~^^\n  File "/lib/model.py", line 42, in forward\n    x = y[0]\n'
DIRECT = "\nThe above exception was the direct cause of the following exception:\n\n"
DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"


def last(text: str) -> Traceback:
    group = choose(find(text, OOM).tracebacks)
    assert group is not None
    return group.last


def test_an_exception_has_its_type_message_line_and_innermost_frame() -> None:
    traceback = last("step 1\n" + HEAD + FRAMES + "IndexError: index out of range: 5\nbye\n")
    assert traceback.chain == (
        Raised(type="IndexError", message="index out of range: 5", line=8, file="/lib/model.py", file_line=42, function="forward"),
    )
    assert (traceback.line, traceback.end_line) == (2, 8)


@pytest.mark.parametrize(
    ("ending", "kind", "message"),
    [
        ("KeyError: 'a'\n", "KeyError", "'a'"),
        ("AssertionError\n", "AssertionError", ""),
        ("RuntimeError: \nsecond line\n", "RuntimeError", "second line"),
        ("torch.OutOfMemoryError: CUDA out of memory", "torch.OutOfMemoryError", "CUDA out of memory"),
        ("a.b.MyProblem: x: y\n", "a.b.MyProblem", "x: y"),
    ],
)
def test_the_exceptions_line(ending: str, kind: str, message: str) -> None:
    cause = last(HEAD + FRAMES + ending).cause
    assert (cause.type, cause.message) == (kind, message)


@pytest.mark.parametrize("link", [DIRECT, DURING])
def test_the_first_of_a_chain_is_the_cause(link: str) -> None:
    text = HEAD + FRAMES + "KeyError: 'a'\n" + link + HEAD + FRAMES + "ValueError: b\n" + link + HEAD + FRAMES + "RuntimeError: c\n"
    result = find(text, OOM)
    assert [raised.type for raised in last(text).chain] == ["KeyError", "ValueError", "RuntimeError"]
    assert len(result.tracebacks) == 1


def test_a_message_of_several_lines_does_not_hide_the_link() -> None:
    text = HEAD + FRAMES + "RuntimeError: CUDA error\nCompile with DSA\nFor debugging\n" + DIRECT + HEAD + FRAMES + "ValueError: b\n"
    assert [raised.type for raised in last(text).chain] == ["RuntimeError", "ValueError"]


def test_what_a_data_loaders_worker_raised_is_the_cause() -> None:
    inner = "Original Traceback (most recent call last):\n" + FRAMES + "TypeError: inner\n"
    text = HEAD + FRAMES + "RuntimeError: Caught TypeError in DataLoader worker process 0.\n" + inner
    assert [raised.type for raised in last(text).chain] == ["TypeError", "RuntimeError"]


def test_what_another_process_raised_is_the_cause() -> None:
    text = f'multiprocess.pool.RemoteTraceback: \n"""\n{HEAD}{FRAMES}TypeError: inner\n"""\n{DIRECT}{HEAD}{FRAMES}TypeError: outer\n'
    assert [raised.message for raised in last(text).chain] == ["inner", "outer"]


def interleaved(*texts: str) -> str:
    lines = [text.splitlines(keepends=True) for text in texts]
    return "".join(line for together in zip(*lines, strict=True) for line in together)


@pytest.mark.parametrize("prefix", ["[rank{}]: ", "[default{}]:", "{}: ", "worker-{}: ", "trainer-{}  | ", "[1,{}]<stderr>:"])
@pytest.mark.parametrize("block_bytes", [37, 100_000])
def test_ranks_that_write_at_once_are_told_apart(prefix: str, block_bytes: int) -> None:
    def of(rank: int) -> str:
        text = HEAD + FRAMES + f"ValueError: {'abc'[rank] * 3}\n" + DIRECT + HEAD + FRAMES + "RuntimeError: late\n"
        return "".join(prefix.format(rank) + line for line in text.splitlines(keepends=True))

    result = in_blocks(interleaved(of(0), of(1), of(2)).encode(), block_bytes, Signatures([OOM], "python"))
    assert [[raised.message for raised in group.last.chain] for group in result.tracebacks] == [
        ["aaa", "late"],
        ["bbb", "late"],
        ["ccc", "late"],
    ]


def test_one_exception_on_several_ranks_is_told_once() -> None:
    text = "".join("".join(f"[rank{rank}]: {line}\n" for line in (HEAD + FRAMES + f"ValueError: {rank}").splitlines()) for rank in range(4))
    (group,) = find(text, OOM).tracebacks
    assert (group.count, group.ranks) == (4, {0: 1, 1: 1, 2: 1, 3: 1})


def test_a_header_behind_a_progress_bar_is_seen() -> None:
    assert last(" 10%|█         | 1/10 [00:01<00:09,  1.00s/it]" + HEAD + FRAMES + "ValueError: x\n").cause.type == "ValueError"


def test_a_log_that_lost_its_indentation_is_read() -> None:
    assert last("\n".join(line.strip() for line in (HEAD + FRAMES + "ValueError: x").splitlines())).cause.file_line == 42


def test_the_launchers_own_exception_tells_less() -> None:
    launcher = HEAD + FRAMES + "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\ntrain.py FAILED\n"
    assert last(HEAD + FRAMES + "ValueError: x\n\n" + launcher).cause.type == "ValueError"
    assert last(launcher).cause.type.endswith("ChildFailedError")


def test_the_last_exception_is_chosen() -> None:
    assert last(HEAD + FRAMES + "ValueError: retried\n\nstep 2\n" + HEAD + FRAMES + "OSError: x\n").cause.type == "OSError"


def test_a_mention_of_the_header_is_no_traceback() -> None:
    assert find("we print 'Traceback (most recent call last):' on errors\n", OOM).tracebacks == ()


def test_a_traceback_that_is_cut_off_is_none() -> None:
    assert find(HEAD + FRAMES, OOM).tracebacks == ()


def test_beyond_the_limit_the_last_one_is_still_read() -> None:
    text = "".join(HEAD + FRAMES + f"Error{chr(97 + i)}: x\n\n" for i in range(20))
    result = in_blocks(text.encode(), 1_000_000, Signatures([OOM], "python"), Limits(num_tracebacks=3))
    assert result.tracebacks[-1].last.cause.type == "Errort"


IPYTHON = """---------------------------------------------------------------------------
KeyError                                  Traceback (most recent call last)
Cell In[19], line 1
----> 1 trainer.train()


File ~/.local/lib/python3.10/site-packages/trl/trainer/sft_trainer.py:323, in SFTTrainer.train(self, *args)
    322 Note: this is code
--> 323 output = super().train(*args)

File [c:\\Users\\ann\\UnslothTrainer.py:68](https://file+.net/c:/Users/ann/UnslothTrainer.py:68), in wrapper.<locals>.run(self)
--> 68 y = x["a"]

KeyError: 'a'
"""
COLAB = """IndexError                                Traceback (most recent call last)
[/tmp/ipython-input-3842036555.py](https://localhost:8080/#) in <cell line: 0>()
----> 3 trainer = SFTTrainer(

4 frames
[/usr/local/lib/python3.11/dist-packages/torch/nn/modules/module.py](https://localhost:8080/#) in __delattr__(self, name)
-> 2077             super().__delattr__(name)

IndexError: x
"""
OLD = """TypeError                                 Traceback (most recent call last)
<ipython-input-8-d848d3a99b8c> in <module>()
----> 3 dataset = load()

/usr/local/lib/python3.6/dist-packages/nlp/load.py in load_dataset(path, name)
--> 517         save_infos=save_infos,

TypeError: x
"""
SYNTAX = """Traceback (most recent call last):

  File /opt/lib/IPython/core/interactiveshell.py:3553 in run_code
    exec(code_obj, self.user_global_ns, self.user_ns)

  File /opt/lib/unsloth/models/_utils.py:209
    exec(source)

  File <string>:25
    )if len(self) == 0:
                      ^
SyntaxError: invalid syntax
"""
RICH = """╭─────────────────────────────── Traceback (most recent call last) ────────────────────────────────╮
│ /root/torchtune/bin/tune:8 in <module>                                                           │
│                                                                                                  │
│   5 from torchtune._cli.tune import main                                                         │
│ /root/lib/torchtune/_cli/tune.py:49 in main                                                      │
│ ❱ 49 │   parser.run()                                                                            │
╰──────────────────────────────────────────────────────────────────────────────────────────────────╯
ValueError: x
"""


@pytest.mark.parametrize(
    ("text", "kind", "file", "line", "function"),
    [
        (IPYTHON, "KeyError", "c:\\Users\\ann\\UnslothTrainer.py", 68, "wrapper.<locals>.run"),
        (COLAB, "IndexError", "/usr/local/lib/python3.11/dist-packages/torch/nn/modules/module.py", None, "__delattr__"),
        (OLD, "TypeError", "/usr/local/lib/python3.6/dist-packages/nlp/load.py", None, "load_dataset"),
        (RICH, "ValueError", "/root/lib/torchtune/_cli/tune.py", 49, "main"),
        (SYNTAX, "SyntaxError", "/opt/lib/unsloth/models/_utils.py", 209, ""),
    ],
)
def test_notebooks_and_rich_print_tracebacks_their_own_way(text: str, kind: str, file: str, line: int | None, function: str) -> None:
    cause = last(text).cause
    assert (cause.type, cause.file, cause.file_line, cause.function) == (kind, file, line, function)


def test_frames_are_kept_innermost_first() -> None:
    assert last(HEAD + FRAMES + "ValueError: x\n").cause.frames == (("/lib/model.py", "forward"), ("train.py", "main"))


def test_an_exception_knows_where_its_line_begins() -> None:
    text = "step é 1\n" + HEAD + FRAMES + "ValueError: x\n"
    assert text.encode()[last(text).cause.offset :].startswith(b"ValueError: x")


def test_a_notebooks_mention_of_the_header_is_no_traceback() -> None:
    assert find("print('Traceback (most recent call last)')\nValueError: x\n", OOM).tracebacks == ()
