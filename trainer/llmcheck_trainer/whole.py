"""Whether prepared data is still what its manifest says: the first rank of each node reads its files while the model is being loaded.

A job's ranks start on data that nobody has looked at since it was prepared, or copied to their node. Checkpoints and the receipt name
the data by the manifest's hashes; with other tokens they would be wrong, and an id beyond the vocabulary ends a GPU's kernels.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

import torch.distributed as dist

from llmcheck.errors import UserError
from llmcheck_trainer.data import Prepared
from llmcheck_trainer.dataprep import store

WAIT_S = 20.0  # of one wait for the others: far less than a collective's time limit, which data of terabytes would run into


class Check:
    """Begins to read, a GB or so a second, on one rank of this node; `settle` tells what was found."""

    def __init__(self, sets: Iterable[Prepared]) -> None:
        self._sets = tuple(sets)
        self._problem: UserError | None = None
        self._reading: threading.Thread | None = None
        if os.environ["LOCAL_RANK"] == "0":
            self._reading = threading.Thread(target=self._read, name="llmcheck-data", daemon=True)
            self._reading.start()

    def _read(self) -> None:
        for data in self._sets:
            if not store.is_whole(data.folder, data.manifest):
                self._problem = store.changed(f"{data.flag} {data.folder}", node=os.uname().nodename)
                return

    def settle(self) -> None:
        """Wait until all is read, on all ranks. Raises UserError on all of them where a file of some node's is another one."""
        told: list[tuple[bool, UserError | None]] = [(False, None)] * dist.get_world_size()
        while not all(done for done, _ in told):
            if self._reading is not None:
                self._reading.join(WAIT_S)
            done = self._reading is None or not self._reading.is_alive()
            dist.all_gather_object(told, (done, self._problem))
            problem = next((problem for _, problem in told if problem is not None), None)
            if problem is not None:
                raise problem
