"""Work on many items: in this process, or on the workers of a Ray cluster, each with its own copy of the model."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from rome_lens.checking import check_whole
from rome_lens.errors import UnavailableError
from rome_lens.models import Model
from rome_lens.models.loading.load import load_model

EngineName = Literal["local", "ray"]
ModelSource: TypeAlias = Model | str | os.PathLike[str]
Item = TypeVar("Item")
Result = TypeVar("Result")

_RETRIES = 3


@runtime_checkable
class ParallelMap(Protocol):
    """A map over items, whose results come in the order in which they are finished."""

    def __call__(
        self, function: Callable[[Model, Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]: ...


@contextmanager
def open_workers(
    model: ModelSource, *, engine: EngineName = "local", workers: int = 1, gpus_per_worker: float = 0.0
) -> Iterator[ParallelMap]:
    """Gives a map that yields (index, function(model, item)) for each item as soon as it is finished.

    "local" is a plain loop in this process. With "ray", each worker is a process in the Ray cluster with its own copy
    of the model, and does one item at a time. A worker that dies is replaced and its item is done again; an item that
    kills its worker four times ends the work. What `function` raises is raised here. A cluster that was joined before
    (`ray.init`), or that RAY_ADDRESS names, is used; else one is started on this machine and stopped at the end.

    Args:
        model: A model, which is copied to each worker, or what `load_model` takes, which each worker loads by itself.
        engine: "local" or "ray".
        workers: For "ray": number of workers. Each reserves one CPU, and uses as many threads as OMP_NUM_THREADS says
            where Ray was started, or one.
        gpus_per_worker: For "ray": GPUs that each worker reserves, and sees; a fraction lets workers share one.
    """
    check_whole(workers=workers)
    if not gpus_per_worker >= 0:
        raise ValueError(f"gpus_per_worker is {gpus_per_worker}, expected at least 0.")
    if engine == "local":
        yield _SerialMap(loaded(model))
    elif engine == "ray":
        with _ray_cluster(workers, gpus_per_worker) as ray:
            workers_map = _RayMap(ray, model, workers, gpus_per_worker)
            try:
                yield workers_map
            finally:
                workers_map.stop()
    else:
        raise ValueError(f"engine is {engine!r}, expected 'local' or 'ray'.")


def loaded(model: ModelSource) -> Model:
    """The model itself, or the one that `load_model` loads by this name or path."""
    return load_model(model) if isinstance(model, str | os.PathLike) else model


class _SerialMap:
    """One item after the other, in this process."""

    def __init__(self, model: Model):
        self._model = model

    def __call__(
        self, function: Callable[[Model, Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        for index, item in enumerate(items):
            yield index, function(self._model, item)


@contextmanager
def _ray_cluster(workers: int, gpus_per_worker: float) -> Iterator[Any]:
    """The module ray, joined to a cluster that has room for the workers."""
    if importlib.util.find_spec("ray") is None:
        raise UnavailableError("engine='ray' needs the package ray: pip install 'rome-lens[distributed]'.")
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        there = ray.cluster_resources()
        if workers < 1 or workers > there.get("CPU", 0) or workers * gpus_per_worker > there.get("GPU", 0):
            raise ValueError(
                f"workers is {workers} with {gpus_per_worker:g} GPUs each, but the cluster has {there.get('CPU', 0):g} "
                f"CPUs (one for each worker) and {there.get('GPU', 0):g} GPUs. Ask for fewer, or join more nodes first."
            )
        yield ray
    finally:
        if started:
            ray.shutdown()


class _RayMap:
    """Workers on a Ray cluster. Ray itself replaces those that die, and repeats their items."""

    def __init__(self, ray: Any, model: ModelSource, workers: int, gpus: float):
        self._ray = ray
        self._model = model if isinstance(model, str | os.PathLike) else _put(ray, model)
        actor = ray.remote(_Worker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=_RETRIES, max_concurrency=1
        )
        self._workers = [actor.remote(self._model) for _ in range(workers)]

    def __call__(
        self, function: Callable[[Model, Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        errors = self._ray.exceptions
        shared = [self._ray.put(function)]  # in a list Ray hands over the reference, and a worker fetches it once
        waiting, idle = iter(enumerate(items)), list(self._workers)
        busy: dict[Any, tuple[int, Any]] = {}
        while True:
            for worker, (index, item) in zip(idle, waiting, strict=False):
                busy[worker.run.remote(shared, item)] = (index, worker)
            if not busy:
                return
            (done,), _ = self._ray.wait(list(busy))
            index, worker = busy.pop(done)
            idle = [worker]
            try:
                result = self._ray.get(done)
            except errors.RayTaskError as error:
                raise error.cause from error
            except errors.RayActorError as error:
                raise RuntimeError(
                    f"Item {index} could not be done: its worker died {_RETRIES + 1} times (is its memory enough?), or "
                    f"could not be replaced. What was finished before is kept. Ray says: {error}"
                ) from error
            yield index, result

    def stop(self) -> None:
        for worker in self._workers:
            self._ray.kill(worker)


def _put(ray: Any, model: Model) -> Any:
    """A model's place on the cluster. Raises ValueError if it cannot be copied to other processes."""
    try:
        return ray.put(model)
    except TypeError as error:
        raise ValueError(
            f"This {type(model).__name__} cannot be copied to other processes, as a Bridge of TransformerLens 4 often "
            "cannot. Give the name or the folder that it was loaded from: each of Ray's workers then loads it."
        ) from error


class _Worker:
    """The Ray actor: runs in a worker's process."""

    def __init__(self, model: ModelSource):
        self._source = model
        self._functions: dict[Any, Callable[[Model, Any], Any]] = {}

    @cached_property
    def _model(self) -> Model:
        """Loaded with the first item, so that a failure to load is raised as that item's error."""
        return loaded(self._source)

    def run(self, shared: Sequence[Any], item: Any) -> Any:
        import ray

        (function,) = shared
        if function not in self._functions:
            self._functions[function] = ray.get(function)
        return self._functions[function](self._model, item)
