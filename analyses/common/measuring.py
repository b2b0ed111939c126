"""What benchmarks measure with: seconds, memory, and the speed of matrix products."""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch

from rome_lens.models import Model

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """Wall-clock seconds, and by how many MB the process grew at most meanwhile (sampled every 5 ms); on a GPU, by how
    many its tensors did.

    `cpu_seconds` are the processor's, of all threads: on a machine that others use, they tell more.
    """

    seconds: float
    peak_mb: float
    cpu_seconds: float


def measured(work: Callable[[], T], device: str | torch.device = "cpu") -> tuple[T, Measured]:
    """Does the work and measures it; on a GPU, it waits for the end of it."""
    if torch.device(device).type != "cpu":
        return _measured_on(torch.get_device_module(device), work)
    process = psutil.Process()
    _give_back()
    before = peak = process.memory_info().rss
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, started = time.perf_counter(), time.process_time()
    try:
        result = work()
    finally:
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - started
        stop.set()
        watcher.join()
    return result, Measured(seconds, (peak - before) / 1e6, cpu_seconds)


def _measured_on(gpu: Any, work: Callable[[], T]) -> tuple[T, Measured]:
    gpu.empty_cache()
    gpu.reset_peak_memory_stats()
    before, start, started = gpu.memory_allocated(), time.perf_counter(), time.process_time()
    result = work()
    gpu.synchronize()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - started
    return result, Measured(seconds, (gpu.max_memory_allocated() - before) / 1e6, cpu_seconds)


def _give_back() -> None:
    """Has the allocator give memory back that is free: else it would be used without the process growing."""
    if os.name == "posix" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def matrix_product_speed(size: int = 2048, repeats: int = 8) -> float:
    """Floating-point operations a second of a large float32 matrix product: the best of some."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def operations_per_token(model: Model) -> tuple[float, float]:
    """Floating-point operations of one block and of the unembedding for one token: two for each weight.

    Products of queries with keys and of patterns with values are left out; on short prompts they are few.
    """
    block = sum(p.numel() for name, p in model.blocks[0].named_parameters() if ".W_" in name or "._W_" in name)
    return 2.0 * block, 2.0 * model.cfg.d_model * model.cfg.d_vocab
