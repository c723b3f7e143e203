"""Real ranks beside the plan and beside the probe: ``python -m benchmarks.ranks.measure OUT.jsonl [--gpu H200] [--share]``.

For each case, first the probe (rank 0 alone, collectives left out), then all ranks of the plan through NCCL, one process a GPU. Each
rank reports its peaks, its step and what the driver counts beyond the allocator; before the cases, what NCCL itself takes is read at each
point where it grows: context, first collective, other kinds of collective, a second communicator.

``--share`` puts all ranks on the one GPU that there is. NCCL refuses two ranks on a device of one host, so each rank gets a host id of its
own (NCCL_HOSTID) and they talk over sockets: memory of the allocator and order of the collectives are real, times and NCCL's buffers are of
that transport.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

NUM_RANKS = 2
PORT = 29611
MIB = 1 << 20


def environment(rank: int, share: bool, port: int) -> dict[str, str]:
    """What a launcher would have set for `rank`."""
    own = {"RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own["LOCAL_RANK"] = "0" if share else str(rank)
    if share:
        own |= {"NCCL_HOSTID": f"shared-{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
    return {**os.environ, **own, "NCCL_NVLS_ENABLE": "0", "TOKENIZERS_PARALLELISM": "false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def run(words: list[str], share: bool, port: int, num: int, limit_s: float) -> list[dict[str, Any]]:
    """One line of JSON from each of `num` processes of this file; a missing one is what it said last."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [open(os.path.join(folder, f"{rank}.log"), "w+b") for rank in range(num)]  # noqa: SIM115 - closed below
        processes = []
        for rank, log in enumerate(logs):
            argv = [sys.executable, "-m", "benchmarks.ranks.measure", "--rank", str(rank), *words]
            env = environment(rank, share, port) if num > 1 else dict(os.environ)
            processes.append(subprocess.Popen(argv, env=env, stdout=log, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + limit_s
        found = []
        for process, log in zip(processes, logs, strict=True):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.seek(0)
            text = log.read().decode("utf-8", "replace")
            log.close()
            results = [line for line in text.splitlines() if line.startswith("RESULT ")]
            found.append(json.loads(results[-1][len("RESULT ") :]) if results else {"failed": text[-1500:]})
        return found


def used_bytes() -> int:
    """Memory in use on the current device, of all processes, as the driver counts it."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


def nccl_memory() -> dict[str, Any]:
    """What the device's use grew by at each point, of all ranks together where they share it. Files in a store keep them in step."""
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]) + 1, world, rank == 0)
    torch.cuda.set_device(device)
    small, large = torch.zeros(1 << 10, device=device), torch.ones(1 << 24, dtype=torch.bfloat16, device=device)
    parts = [torch.empty_like(large) for _ in range(world)]
    points: dict[str, int] = {}

    def point(name: str) -> None:
        torch.cuda.synchronize()
        for side in ("in", "out"):  # all arrive, all read, all go on
            if side == "out":
                points[name] = used_bytes()
            store.add(f"{name}-{side}", 1)
            while store.add(f"{name}-{side}", 0) < world:
                time.sleep(0.01)

    point("context")
    dist.init_process_group("nccl", rank=rank, world_size=world, device_id=None)
    point("init_process_group")
    dist.all_reduce(small)
    point("all_reduce, 4 KiB")
    dist.all_reduce(large)
    point("all_reduce, 32 MiB")
    dist.all_gather_into_tensor(torch.empty(world * large.numel(), dtype=large.dtype, device=device), large)
    point("all_gather")
    dist.reduce_scatter_tensor(torch.empty_like(large), torch.cat(parts))
    point("reduce_scatter")
    dist.broadcast(large, 0)
    point("broadcast")
    group = dist.new_group(list(range(world)))
    dist.all_reduce(small, group=group)
    point("second communicator, all_reduce")
    dist.all_reduce(large, group=group)
    point("second communicator, 32 MiB")
    return {"points": points, "allocator_bytes": torch.cuda.memory_reserved(), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}


def train(path: str, rank: int, alone: bool, steps: int) -> dict[str, Any]:
    """A plan's first steps: as one of the ranks, or as the only one there is."""
    from llmcheck import planfile

    plan_file = planfile.read(path)
    os.environ.update(plan_file.launch.env)
    import torch
    import torch.distributed as dist

    from llmcheck_trainer import rehearsal

    found = rehearsal.measure(plan_file, rank=rank, steps=steps, alone=alone)
    found.pop("versions", None)
    if not alone:
        dist.barrier()
        torch.cuda.synchronize()
        dist.barrier()
        found["device_used_bytes"] = used_bytes()  # of all ranks, where they share the device
        found["reserved_bytes"] = torch.cuda.memory_reserved()
        dist.barrier()
        torch.cuda.synchronize()
    return found


def child(args: argparse.Namespace) -> None:
    try:
        found = nccl_memory() if args.plan is None else train(args.plan, args.rank, args.alone, args.steps)
    except BaseException:
        found = {"failed": traceback.format_exc()[-2500:]}
    print("RESULT " + json.dumps(found), flush=True)
    os._exit(0)  # process groups whose other side is gone do not end by themselves


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--share", action="store_true", help="all ranks on one GPU")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--limit", type=float, default=150.0, help="seconds of one case")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        child(args)
    from benchmarks.ranks.cases import plans
    from llmcheck import planfile

    with tempfile.TemporaryDirectory() as folder, args.out.open("a") as file:

        def note(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps(line)[:1500], flush=True)

        if not args.only or "nccl" in args.only:
            note({"id": "nccl", "share": args.share, "ranks": run([], args.share, PORT, NUM_RANKS, args.limit)})
        for number, (name, plan) in enumerate(plans(args.gpu, NUM_RANKS)):
            if args.only and name not in args.only:
                continue
            path = os.path.join(folder, f"{name}.json")
            planfile.write(path, planfile.document(plan))
            words = ["--plan", path, "--steps", str(args.steps)]
            probe = run([*words, "--alone"], args.share, PORT, 1, args.limit)[0]
            note({"id": name, "share": args.share, "steps": args.steps, "probe": probe})
            ranks = run(words, args.share, PORT + 10 * (number + 1), NUM_RANKS, args.limit)
            note({"id": name, "share": args.share, "steps": args.steps, "ranks": ranks})
    return 0


if __name__ == "__main__":
    sys.exit(main())
