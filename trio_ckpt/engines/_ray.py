"""Ray as an engine: items are tasks of a cluster, whose names are the items' ids."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol, cast

import attrs
from outcome import Outcome, capture

from .._util.extras import needs_extra
from ._engine import EngineAdapter, EngineCall, OnEnd, Resources, lost
from ._errors import EngineLostError
from ._item import run_item


class _RayRef(Protocol):
    """What is used of ``ray.ObjectRef``."""

    def future(self) -> Future[object]: ...


class _RayFunction(Protocol):
    """What is used of a remote function."""

    def options(self, **options: object) -> _RayFunction: ...
    def remote(self, spec: bytes) -> _RayRef: ...


class _Ray(Protocol):
    """What is used of the module ``ray``."""

    def is_initialized(self) -> bool: ...
    def init(self, **options: object) -> object: ...
    def remote(self, func: object) -> _RayFunction: ...
    def cancel(self, ref: _RayRef) -> None: ...
    def cluster_resources(self) -> dict[str, float]: ...
    def shutdown(self) -> None: ...


def _ray() -> _Ray:
    with needs_extra("ray", "engine='ray'"):
        return cast("_Ray", importlib.import_module("ray"))


@attrs.define(eq=False)
class RayAdapter(EngineAdapter):
    """The Ray cluster that this process is connected to."""

    _ray: _Ray
    _resources: Resources
    _options: Mapping[str, object]
    _is_own: bool
    _function: _RayFunction = attrs.field(init=False)
    _guard: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _refs: dict[EngineCall, _RayRef] = attrs.field(factory=dict[EngineCall, _RayRef], init=False)

    def __attrs_post_init__(self) -> None:
        self._options = {**_ray_resources(self._resources), **self._options}
        self._function = self._ray.remote(run_item)

    def submit(self, calls: Sequence[EngineCall], on_end: OnEnd) -> None:
        """See `EngineAdapter.submit`."""
        try:
            for call in calls:
                ref = self._function.options(name=call.key, **self._options).remote(call.spec)
                with self._guard:
                    self._refs[call] = ref
                ref.future().add_done_callback(partial(self._end, call, on_end))
        except Exception as error:  # the connection is lost, say
            raise lost("the Ray cluster", error) from error

    def _end(self, call: EngineCall, on_end: OnEnd, future: Future[object]) -> None:
        with self._guard:
            self._refs.pop(call, None)
        result: Outcome[object] = capture(future.result)
        on_end(call, result)

    def cancel(self, calls: Sequence[EngineCall]) -> None:
        """See `EngineAdapter.cancel`.  A function that runs is interrupted."""
        with self._guard:
            refs = [self._refs[call] for call in calls if call in self._refs]
        for ref in refs:
            self._ray.cancel(ref)

    def why_waiting(self) -> str:
        """See `EngineAdapter.why_waiting`."""
        has = self._ray.cluster_resources()
        wanted = {
            "CPU": self._resources.cpus,
            "GPU": self._resources.gpus,
            "memory": self._resources.memory_bytes,
        }
        texts = [
            f"{amount:g} of {name}, of which it has {has.get(name, 0):g}"
            for name, amount in wanted.items()
            if amount is not None and amount > has.get(name, 0)
        ]
        return f"an item needs more than the Ray cluster has: {'; '.join(texts)}" if texts else ""

    def close(self) -> None:
        """See `EngineAdapter.close`.  A connection of the caller stays."""
        if self._is_own:
            self._ray.shutdown()


def _ray_resources(resources: Resources) -> dict[str, object]:
    """The resources as options of a remote function."""
    options = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "memory": resources.memory_bytes,
    }
    return {name: amount for name, amount in options.items() if amount is not None}


def open_ray(
    address: str | None,
    workers: int | None,
    slots: int,
    resources: Resources,
    options: Mapping[str, object],
) -> RayAdapter:
    """Connect to a cluster of Ray, or start one on this machine.

    Args:
        address: The address of the cluster; None: that to which this process is connected, or
            else one that is started here.
        workers: How many processes run items, in a cluster that is started; None: as Ray decides.
        slots: How many items for each of them.
        resources: What each item needs.
        options: Further options of the remote function.

    Raises:
        EngineLostError: the cluster does not answer.
        ValueError: there is an address, and this process is connected to Ray already.
        MissingExtraError: Ray is not installed.
    """
    ray = _ray()
    is_own = not ray.is_initialized()
    if address is not None and not is_own:
        raise ValueError(
            f"address must be left out, not {address!r}: this process is connected to Ray already"
        )
    if is_own:
        told: dict[str, object] = {"log_to_driver": False, "configure_logging": False}
        if address is not None:
            told["address"] = address
        else:
            path = os.pathsep.join(sys.path)
            told |= {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
            if workers is not None:
                told["num_cpus"] = workers * slots
        try:
            ray.init(**told)
        except (OSError, RuntimeError, ValueError) as error:
            where = "here" if address is None else f"at {address}"
            raise EngineLostError(f"no Ray cluster answers {where}: {error}") from error
    return RayAdapter(ray, resources, options, is_own)
