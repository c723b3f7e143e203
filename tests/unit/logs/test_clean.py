from __future__ import annotations

import time

import pytest

from llmcheck.logs.clean import Clean, clean, decode, strip_controls
from llmcheck.rules.patterns import WINDOW_CHARS


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("2026-11-24T10:00:00.123Z stdout F RuntimeError: x", "RuntimeError: x"),
        ("2026-11-24T10:00:00.1234567Z ##[error]Process completed", "Process completed"),
        ("[2026-11-24 10:00:00,123] [INFO] [logging.py:96:log_dist] step=1", "[INFO] [logging.py:96:log_dist] step=1"),
        ("2026-11-24 10:00:00,123 - trl - ERROR - x", "trl - ERROR - x"),
        ("11/24/2026 10:00:00 - INFO - __main__ - x", "INFO - __main__ - x"),
        ("node-1:123:456 [0] NCCL WARN Error: x", "NCCL WARN Error: x"),
        ("[rank0]:[E321 02:07:08.408271257 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog", "[Rank 0] Watchdog"),
        ("[E ProcessGroupNCCL.cpp:737] [Rank 1] Watchdog", "[Rank 1] Watchdog"),
        ("E1124 10:00:00.123000 139 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: 1)", "failed (exitcode: 1)"),
        ("[W1124 10:00:00.123456789 socket.cpp:755] [c10d] The client", "[c10d] The client"),
        ("Nov 24 10:00:00 node1 kernel: NVRM: Xid", "NVRM: Xid"),
        ("[Mon Nov 24 10:00:00 2026] NVRM: Xid", "NVRM: Xid"),
        ("[12345.678901] NVRM: Xid", "NVRM: Xid"),
        ("[INFO|trainer.py:1234] 2026-11-24 10:00:00,123 >> Saving", "Saving"),
        ("trainer-1  | ValueError: x", "ValueError: x"),
        ("worker-1: Killed", "Killed"),
        (" 3: Killed", "Killed"),
        ("[1,3]<stderr>:Killed", "Killed"),
        ("(RayTrainWorker pid=123, ip=10.0.0.1) ValueError: x", "ValueError: x"),
        ("(EngineCore_0 pid=12) ERROR 11-24 10:00:00 [core.py:1094] ValueError: x", "ValueError: x"),
        ("ERROR 11-24 10:00:00 worker_base.py:574] ValueError: x", "ValueError: x"),
        ("[ERROR:swift] ValueError: x", "ValueError: x"),
        ("[1,mpirank:2,algo-1]<stderr>:Killed", "Killed"),
        ("[pod/trainer-0/main] ValueError: x", "ValueError: x"),
        (" 10%|█         | 1/10 [00:01<00:09,  1.00s/it]Traceback (most recent call last):", "Traceback (most recent call last):"),
        ('{"log":"\\u001b[31mValueError: x\\n","stream":"stderr","time":"2026-11-24T10:00:00Z"}', "ValueError: x"),
        ("\ufeffValueError: x", "ValueError: x"),
        ("2026-11-24T10:00:00Z [rank3]: ValueError: x", "ValueError: x"),
    ],
)
def test_what_was_put_around_a_line_is_taken_off(line: str, text: str) -> None:
    assert clean(line.encode()).text == text


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: CUDA error: 1",
        "INFO     | something",
        "|  PyTorch CUDA memory summary, device ID 0  |",
        '  File "x.py", line 3, in main',
        "{'loss': 0.45, 'grad_norm': 1.0}",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_a_line_without_a_prefix_stays_as_it_is(line: str) -> None:
    assert clean(line.encode()).text == line


@pytest.mark.parametrize("prefix", ["[rank3]: ", "[default3]:", "3: ", "trainer-1  | ", "2026-11-24T10:00:00.1Z "])
def test_indentation_after_a_prefix_is_kept(prefix: str) -> None:
    assert clean(f'{prefix}  File "x.py", line 3'.encode()).text == '  File "x.py", line 3'


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("[2026-11-24 10:00:00,123] [WARNING] [stage3.py:1] x", "warning"),
        ("2026-11-24 10:00:00,123 - trl - ERROR - x", "error"),
        ("2026-11-24 10:00:00.123 | WARNING  | mod:fn:12 - x", "warning"),
        ("WARNING:root:x", "warning"),
        ("CRITICAL:root:x", "error"),
        ("INFO 11-24 10:00:00 [core.py:12] x", "info"),
        ("[INFO|trainer.py:1234] 2026-11-24 10:00:00,123 >> x", "info"),
        ("node1:1:2 [0] NCCL INFO x", "info"),
        ("node1:1:2 [0] NCCL WARN x", "warning"),
        ("E1124 10:00:00.123000 139 a/b.py:869] x", "error"),
        ("V1124 10:00:00.123000 139 a/b.py:869] x", "debug"),
        ("##[warning]x", "warning"),
        ("::error file=a.py,line=1::x", "error"),
        ("/a/b.py:12: FutureWarning: x", "warning"),
        ("UserWarning: x", "warning"),
        ("[axolotl.load:100] [ERROR] x", "error"),
        ('{"time": "x", "level": "warning", "msg": "y"}', "warning"),
        ("[NeMo W 2026-11-24 10:00:00 nemo_logging:349] x", "warning"),
        ('user: and "RuntimeError: x"?', "info"),
        ("ASSISTANT: RuntimeError: x", "info"),
        ("user.py: RuntimeError: x", None),
        ("RuntimeError: x", None),
        ("Error: x", None),
        ("Traceback (most recent call last):", None),
        ("ERROR 11-24 10:00:00 [core.py:1094] x", "error"),
        ("WARNING 11-24 10:00:00 [core.py:1094] x", "warning"),
        ("[INFO:swift] x", "info"),
    ],
)
def test_the_level_that_a_line_was_logged_at(line: str, level: str | None) -> None:
    assert clean(line.encode()).level == level


@pytest.mark.parametrize(
    ("line", "rank"),
    [
        ("[rank3]: x", 3),
        ("[default12]: x", 12),
        ("rank7 | x", 7),
        (" 5: x", 5),
        ("[1,6]<stdout>:x", 6),
        ("[1,mpirank:2,algo-1]<stdout>:x", 2),
        ("[2026-11-24 10:00:00,123] [INFO] [a.py:1] [Rank 2] x", 2),
        ("[RANK:4] x", 4),
        ("[deepspeed] OVERFLOW! Rank 0 Skipping step.", 0),
        ("node1:1:2 [5] NCCL INFO x", None),
        ("lora rank 16", None),
        ("worker-1: x", None),
    ],
)
def test_the_rank_that_wrote_a_line(line: str, rank: int | None) -> None:
    assert clean(line.encode()).rank == rank


def test_the_prefix_of_the_process_is_kept_to_tell_streams_apart() -> None:
    assert clean(b"worker-1: [rank3]: x").stream == "worker-1 rank3"


@pytest.mark.parametrize(
    "data",
    [b"\x1b[31mab\x1b[0m", b"a\x1b[1;32mb", b"\x1b]0;title\x07ab", b"\x1b]8;;https://x\x1b\\ab", b"a\0b", b"\x1b(Ba\x1b7b", b"a\x1bb\x1b["],
)
def test_terminal_sequences_and_nul_are_taken_out(data: bytes) -> None:
    assert strip_controls(data) in (b"ab", b"a")  # ESC b is itself a sequence


def test_line_ends_survive_an_unfinished_sequence() -> None:
    assert strip_controls(b"\x1b]0;never ended\nx\x1b[3\ry") == b"0;never ended\nx3\ry"


def test_text_is_utf8_else_latin1_else_utf8_with_replacements() -> None:
    assert (decode("é█".encode()), decode(b"caf\xe9 cr\xe8me"), decode("é".encode() + b"\xff")) == ("é█", "café crème", "é\ufffd")


def test_a_character_cut_at_the_end_is_not_taken_for_another_encoding() -> None:
    assert decode("abc█".encode()[:-1]) == "abc\ufffd"


def test_no_more_than_the_window_is_kept() -> None:
    assert clean(b"[rank0]: " + b"x" * 1_000_000) == Clean("x" * WINDOW_CHARS, None, 0, "rank0")


@pytest.mark.parametrize(
    "unit", [b"a-", b"[a] ", b"1|", b"\x1b]", b"\x1b[0", b" ", b"a:", b"[rank1]:", b"1: ", b"10%|", b'{"log":"', b"\xff"]
)
def test_no_line_takes_long(unit: bytes) -> None:
    begin = time.process_time()
    clean(unit * (1_000_000 // len(unit)))
    assert time.process_time() - begin < 1  # 20 ms when written: a guard against exponential and quadratic patterns
