"""`Work`: the second argument of a function on a worker, besides its item."""

# The worker's side of a `Work` is in a private field.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import attrs
import trio
from outcome import Error, Outcome, Value, acapture, capture

from ..._commit.awaits import Calls, awaits_noted
from ..._commit.snapshots import Snapshots, make_due
from ..._runs.stream import Stream
from ..._util.exceptions import text_of
from ..._util.extras import needs_extra
from ..._util.plain import Plain, check_point_label
from ..._util.threads import Aside, run_blocking
from .._wire.errors import NotAllowedError
from .._wire.names import is_allowed
from .._wire.submission import check_function

if TYPE_CHECKING:  # a default, so that `Work` alone is a type; Python has it from 3.13 on
    from typing_extensions import TypeVar as TypeVarWithDefault

    S = TypeVarWithDefault("S", default=Any)
else:
    S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., object])

_MARK = "__trio_ckpt_task__"
_imported: set[str] = set()  # modules whose import has ended: they need no thread again


@attrs.frozen
class TaskSettings:
    """How a function is called.

    Attributes:
        state: Makes the initial state from the item.
        in_process: Whether a sync function runs in its own process, outside the worker's.
    """

    state: Callable[[Plain], object]
    in_process: bool = False


def _empty(_item: Plain) -> dict[str, Plain]:
    return {}


def task(
    *, state: Callable[[Plain], object] = _empty, in_process: bool = False
) -> Callable[[F], F]:
    """Set how workers run a function; without this decorator the defaults apply.

    Args:
        state: Makes the initial ``work.state``, of any type, from the item.  Default: an empty
            dict.
        in_process: Run a sync function in a process of trio-parallel (a separate extra), for
            code that holds the interpreter for long.  It gets no `Work`: it is called with its
            item alone, takes no checkpoints, and is killed when it is cancelled.
    """

    def mark(func: F) -> F:
        setattr(func, _MARK, TaskSettings(state, in_process))
        return func

    return mark


def settings_of(func: Callable[..., object]) -> TaskSettings:
    """Return what `task` set for a function, or the defaults."""
    found = getattr(func, _MARK, None)
    return found if isinstance(found, TaskSettings) else TaskSettings(_empty)


def check_module(name: str) -> None:
    """Check that a module of this name exists; it is not imported, its parents are.

    Raises:
        NotAllowedError: the module cannot be found.
    """
    try:
        found = importlib.util.find_spec(name)
    except Exception as error:  # a parent is code, and may raise anything
        raise NotAllowedError(f"module {name!r} cannot be found: {text_of(error)}") from error
    if found is None:
        raise NotAllowedError(f"module {name!r} cannot be found: is it on the worker's path?")


async def find_function(name: str, allow: Collection[str]) -> Callable[..., object]:
    """Import a function as `load_function` does, in a thread if its module is not imported yet.

    Args, Raises: as for `load_function`.

    Cancellation: not during the import.
    """
    if check_function(name).partition(":")[0] in _imported:
        return load_function(name, allow)
    return await run_blocking(load_function, name, allow)


def load_function(name: str, allow: Collection[str]) -> Callable[..., object]:
    """Import a function by its name, if it is below one of the allowed modules.

    Args:
        name: ``module:function``.
        allow: Modules, from the worker's own command line.

    Raises:
        NotAllowedError: the function is not allowed, does not exist, is private, or is one that
            the module itself imports from elsewhere.
        Exception: whatever the import raises.
    """
    module_name, _, attribute = check_function(name).partition(":")
    if not is_allowed(module_name, allow):
        raise NotAllowedError(
            f"this worker runs functions of {', '.join(sorted(allow))}, not {name!r}"
        )
    if attribute.startswith("_"):
        raise NotAllowedError(f"{name!r} is private")
    try:
        module = importlib.import_module(module_name)
        _imported.add(module_name)
    except ModuleNotFoundError as error:
        raise NotAllowedError(f"{name!r} cannot be imported: {text_of(error)}") from error
    func = getattr(module, attribute, None)
    if not inspect.isfunction(func) or not is_allowed(func.__module__, allow):
        raise NotAllowedError(f"{name!r} is not a function of that module")
    return func


@attrs.define(eq=False)
class TaskControl:
    """The worker's side of a `Work`: what its function is asked for, and what saves its state.

    Attributes:
        scope: The function runs in it.
        state: The function's state while no stream is attached.
        resumed_from: See `Work`.
        percent: The progress that the function reported last.
        is_checkpoint_due: Whether the next point saves, however recent the last save is.
        release_reason: Why the worker hands the item back at the next point; None: it does not.
        aside: The function, if it runs in a thread or a process.
    """

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    state: object = None
    resumed_from: str | None = None
    percent: float | None = None
    is_checkpoint_due: bool = False
    release_reason: str | None = None
    aside: Aside = attrs.field(factory=Aside, init=False)
    stream: Stream[Any] | None = None
    _snapshots: Snapshots | None = attrs.field(default=None, init=False)
    _left_out: Callable[[str], None] | None = attrs.field(default=None, init=False)
    _skipped: int = attrs.field(default=0, init=False)

    def attach(
        self, stream: Stream[Any], snapshots: Snapshots, left_out: Callable[[str], None]
    ) -> None:
        """Attach the stream that saves the state.

        Args:
            stream: The stream.
            snapshots: Saves the state.
            left_out: Called with the reason when a state could not be saved.
        """
        self.stream, self._snapshots, self._left_out = stream, snapshots, left_out

    def detach(self) -> None:
        """Detach the stream; the function may still run in a thread."""
        if self.stream is not None:
            self.state = self.stream.state
        self.stream = self._snapshots = None

    async def point(self, label: str) -> bool:
        """Save the state if a save is due, and end a function that is to hand its item back."""
        check_point_label(label)
        is_saved = self.release_reason is not None
        taken = await self._save_if_due(label)
        if self.release_reason is None:
            return taken
        if not is_saved:  # it was asked for during this point, which may have saved nothing
            taken = await self._save_if_due(label)
        if self._snapshots is not None:
            await self._snapshots.wait()
        self.scope.cancel()
        return taken

    async def _save_if_due(self, label: str) -> bool:
        snapshots = self._snapshots
        if snapshots is None:
            await trio.lowlevel.checkpoint()
            return False
        if self.is_checkpoint_due or self.release_reason is not None:
            await snapshots.wait()  # a save in flight has an earlier point
            make_due(snapshots)
            self.is_checkpoint_due = False
        if self.percent is not None:
            snapshots.metadata["progress_percent"] = self.percent
        taken = await snapshots.point(label)
        if snapshots.skipped > self._skipped and self._left_out is not None:
            self._skipped = snapshots.skipped
            self._left_out(snapshots.problem)
        return taken

    async def point_aside(self, label: str) -> bool:
        """Do the same for a function in a thread."""
        with self.aside.asking():
            return await self.point(label)


@awaits_noted
@attrs.define(eq=False)
class Work(Generic[S]):
    """The second argument of a function: its state, and how to report progress.

    Attributes:
        task_id: The item's id.
        index: The item's index in the job.
        attempt: 1 for the first attempt.
        trace: The trace context that the job was submitted with.
    """

    task_id: str
    index: int
    attempt: int
    trace: dict[str, str]
    _control: TaskControl
    _calls: Calls | None = attrs.field(default=None, init=False)

    @property
    def resumed_from(self) -> str | None:
        """The label of the point where the state was saved; None: the state is new."""
        return self._control.resumed_from

    @property
    def state(self) -> S:
        """The state to resume from; the function may change it in place, or assign it."""
        stream = self._control.stream
        state: Any = self._control.state if stream is None else stream.state
        return cast("S", state)

    @state.setter
    def state(self, value: S) -> None:
        owner = self._control if self._control.stream is None else self._control.stream
        owner.state = value

    def report(self, *, progress_percent: float) -> None:
        """Report how far the item is; also callable from a thread.

        Args:
            progress_percent: 0 to 100.

        Raises:
            ValueError: `progress_percent` is outside 0 to 100.
        """
        if not 0 <= progress_percent <= 100:
            raise ValueError(f"progress_percent is from 0 to 100, not {progress_percent!r}")
        self._control.percent = float(progress_percent)

    async def point(self, label: str = "") -> bool:
        """Save the state as it is here, if a save is due; see `Snapshots.point`.

        If the worker is to hand the item back, the state is saved here and the function ends.

        Args:
            label: The name of this point; `resumed_from` has it on resume.

        Returns:
            Whether a save was started.

        Cancellation: always a cancellation point and a schedule point.
        """
        taken = await self._control.point(label)
        await trio.lowlevel.checkpoint_if_cancelled()
        return taken

    def point_sync(self, label: str = "") -> bool:
        """Save the state, if a save is due; for sync functions, which run in a thread.

        Cancellation: raises `trio.Cancelled`, which the function must not catch.
        """
        trio.from_thread.check_cancelled()
        taken = trio.from_thread.run(self._control.point_aside, label)
        trio.from_thread.check_cancelled()
        return taken


def _check_awaited(work: Work[object]) -> None:
    """Check that a function has awaited every point that it made.

    Raises:
        NeverAwaitedError: the function has not.
    """
    if work._calls is not None:
        error = work._calls.problem(f"item {work.index} of the job")
        if error is not None:
            raise error


def takes_work(func: Callable[..., object]) -> bool:
    """Whether a function is called with its `Work` besides the item.

    It is if its second positional parameter has no default, or is named ``work``: in
    ``f(x, scale=2)`` the second parameter is not meant for it.
    """
    parameters = inspect.signature(func).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return True
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    second = [parameter for parameter in parameters if parameter.kind in kinds][1:2]
    return any(one.default is one.empty or one.name == "work" for one in second)


async def call(func: Callable[..., object], item: Plain, work: Work[object]) -> Outcome[object]:
    """Run a function: an async one here, a sync one in a thread or a process.

    Returns:
        What the function returned or raised: exceptions such as StopIteration or SystemExit are
        returned, so that they do not pass through code that does not expect them.

    Cancellation: a sync function runs to its next point, and is not waited for.  A process is
        killed.
    """
    done: Outcome[object]
    if settings_of(func).in_process:
        done = await acapture(work._control.aside.run, partial(_call_in_process, func, item))
        return done
    arguments = (item, work) if takes_work(func) else (item,)
    if inspect.iscoroutinefunction(func):
        done = await acapture(func, *arguments)
    else:
        done = await work._control.aside.run(partial(_call_in_thread, func, arguments))
    if isinstance(done, Value):
        forgotten = capture(_check_awaited, work)
        done = forgotten if isinstance(forgotten, Error) else done
    return done


async def _call_in_thread(
    func: Callable[..., object], arguments: tuple[object, ...]
) -> Outcome[object]:
    done: Outcome[object] = await trio.to_thread.run_sync(
        _capture, func, arguments, abandon_on_cancel=True
    )
    return done


def _capture(func: Callable[..., object], arguments: tuple[object, ...]) -> Outcome[object]:
    """Call a sync function in its thread."""
    done: Outcome[object] = capture(_call_sync, func, arguments)
    return done


def _call_sync(func: Callable[..., object], arguments: tuple[object, ...]) -> object:
    result: object = func(*arguments)
    if isinstance(result, Awaitable):
        raise TypeError(f"{func.__qualname__} returned an awaitable: make it async")
    return result


async def _call_in_process(func: Callable[..., object], item: Plain) -> object:
    with needs_extra("parallel", "in_process=True"):
        import trio_parallel  # type: ignore[import-untyped]  # without types
    module: Any = trio_parallel
    return await module.run_sync(func, item, kill_on_cancel=True)
