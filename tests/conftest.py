import gc
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def take_a_share_of_the_processors() -> None:
    """Let this process, its threads and its children run on this worker's share of the processors only.

    torch, OpenMP, onnxruntime and XLA start one thread for each processor that they may use, and many of these
    threads wait by spinning: workers that all use every processor spend half of the time on waiting for each other.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        all_of_them = sorted(os.sched_getaffinity(0))
        number, workers = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, all_of_them[number::workers] or [all_of_them[number % len(all_of_them)]])


take_a_share_of_the_processors()  # before anything starts threads


def pytest_collection_finish() -> None:
    """Take what importing all tests made (some 500,000 objects that stay) out of what every full collection walks."""
    gc.collect()
    gc.freeze()
