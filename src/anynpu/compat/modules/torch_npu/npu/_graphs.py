# SPDX-License-Identifier: Apache-2.0
"""``torch.npu.NPUGraph`` where npu stands for the CPU: what a block calls, operators and Triton kernels, is noted and
called again.

As on a card the block changes nothing: results that it makes hold nothing of use before the first replay, and what it
writes to other tensors is undone. A replay writes to the tensors of the block, whose places stay what they were.
Functions of torch.compile run uncompiled.

Published operators of a task group are noted as they were called, not as what they are made of, so that their arguments
can be changed later, also those that are no tensors. A replay stops at an ExternalEvent that was not recorded yet, and
goes on when it is.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from anynpu.compat import published
from torch_npu.npu._streams import Stream, StreamContext

_pools = itertools.count(1)
_recorder: _Recorder | None = None  # of the capture that is underway


def _storages(value: Any) -> dict[int, torch.UntypedStorage]:
    """The storages of the tensors in ``value`` by their addresses."""
    found = [leaf.untyped_storage() for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return {storage._cdata: storage for storage in found}


def _finished(collective: Callable, *args: Any, **kwargs: Any) -> Any:
    """A collective of torch.distributed, which runs beside others until it is waited for."""
    results = collective(*args, **kwargs)
    for leaf in tree_leaves(results):
        if isinstance(leaf, torch.Tensor):
            torch.ops._c10d_functional.wait_tensor(leaf)
        elif isinstance(leaf, torch.ScriptObject):
            leaf.wait()
    return results


@contextlib.contextmanager
def _calls_taken(take: Callable | None) -> Iterator[None]:
    """Hands calls of published operators to ``take``."""
    outer, published.take_call = published.take_call, take
    try:
        yield
    finally:
        published.take_call = outer


class _Task:
    """A published operator in a task group, with the arguments that replays give it."""

    def __init__(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        self.give(function, args, kwargs)
        self.results = self()

    def give(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args, self.kwargs = tree_map(lambda leaf: leaf, (args, kwargs))  # lists may change later

    def __call__(self) -> Any:
        with _calls_taken(None):
            return self.function(*self.args, **self.kwargs)


class ExternalEvent:
    """An event that replays wait for until it is recorded, after as well as before it was waited for."""

    def __init__(self) -> None:
        self._recorded = False
        self._waiting: list[NPUGraph] = []

    def wait(self, stream: Stream | None = None) -> None:
        """In a capture: replays wait here. Elsewhere there is nothing to wait for."""
        if _recorder is not None:
            _recorder.calls.append(self)

    def record(self, stream: Stream | None = None) -> None:
        """Replays that wait go on, before this returns. In a capture: when the graph is replayed."""
        self._in_order(self._record)

    def reset(self, stream: Stream | None = None) -> None:
        """The event is not recorded any more. In a capture: when the graph is replayed."""
        self._in_order(self._reset)

    def _in_order(self, call: Callable[[], None]) -> None:
        if _recorder is None:
            call()
        else:
            _recorder.calls.append((call, (), {}, []))

    def _record(self) -> None:
        self._recorded = True
        waiting, self._waiting = self._waiting, []
        for graph in waiting:
            graph._go_on()

    def _reset(self) -> None:
        self._recorded = False


class _Recorder(TorchDispatchMode):
    """Notes every operator with its arguments and the results that replays write to."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []  # (call, args, kwargs, results), or an event to wait for
        self.group: list[_Task] | None = None
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(operator, HigherOrderOperator):
            return self._note_functionalised(operator, args, kwargs)
        if torch.Tag.data_dependent_output in operator.tags or operator is torch.ops.aten.nonzero.default:
            raise RuntimeError(
                f"NPUGraph: the values of tensors cannot be read while a graph is captured, got a call of {operator}"
            )
        collective = operator.namespace in ("c10d", "_c10d_functional")
        if collective:  # their schemas do not say what they write to
            self._keep((args, kwargs))
        writes = self._keep_what_is_written(operator, args, kwargs) or collective
        result = operator(*args, **kwargs)
        made = self._made_of(result, args, kwargs)
        if made or writes:  # views see what replays write
            call = functools.partial(_finished, operator) if collective else operator
            self.calls.append((call, args, kwargs, made))
        return result

    def _note_functionalised(self, operator: HigherOrderOperator, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Notes what compiled code makes of an operator that writes to its arguments: one that returns copies."""
        if operator.name() not in ("auto_functionalized", "auto_functionalized_v2"):
            raise RuntimeError(f"NPUGraph: {operator.name()} cannot be captured")
        result = operator(*args, **kwargs)
        self.calls.append((operator, args, kwargs, self._made_of(result, args, kwargs)))
        return result

    def _made_of(self, result: Any, args: tuple, kwargs: dict[str, Any]) -> list[tuple[int, torch.Tensor]]:
        """The results that are no views of what was given, with their places."""
        given = _storages((args, kwargs))
        made = [
            (place, leaf.detach())
            for place, leaf in enumerate(tree_leaves(result))
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in given
        ]
        self._made.update(_storages([tensor for _, tensor in made]))
        return made

    def _keep_what_is_written(self, operator: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
        named = {argument.name: value for argument, value in zip(operator._schema.arguments, args, strict=False)}
        named.update(kwargs)
        written = [
            named[argument.name]
            for argument in operator._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write and argument.name in named
        ]
        self._keep(written)
        return bool(written)

    def _keep(self, written: Any) -> None:
        for address, storage in _storages(written).items():
            if address not in self._made and address not in self._before:
                contents = torch.empty(0, dtype=torch.uint8).set_(storage)
                self._before[address] = contents, contents.clone()

    def launch(self, kernel: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        """Notes a kernel, which may write to every tensor that it is given."""
        self._keep((args, kwargs))
        kernel(*args, **kwargs)
        self.calls.append((kernel, args, kwargs, []))

    def task(self, operator: Any, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Notes a published operator of a task group."""
        with _disable_current_modes():
            self._keep_what_is_written(operator, args, kwargs)
            task = _Task(function, args, kwargs)
            self.calls.append((task, (), {}, self._made_of(task.results, args, kwargs)))
        self.group.append(task)
        return task.results

    def undo(self) -> None:
        """Gives the tensors from outside the block what they held before it."""
        for contents, before in self._before.values():
            contents.copy_(before)
        self._before.clear()


@contextlib.contextmanager
def _triton_launches(note: Callable) -> Iterator[None]:
    """Hands launches in Triton's interpreter, which are no operators, to ``note``."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None:  # no kernel has been defined
        yield
        return
    launch = interpreter.GridExecutor.__call__

    def noted(grid: Any, *args: Any, **kwargs: Any) -> None:
        with _disable_current_modes():
            note(functools.partial(launch, grid), args, kwargs)

    interpreter.GridExecutor.__call__ = noted
    try:
        yield
    finally:
        interpreter.GridExecutor.__call__ = launch


class NPUGraph:
    """The operators of a block, to run again; see ``torch.npu.graph``."""

    def __init__(self) -> None:
        self._recorder: _Recorder | None = None
        self._block = contextlib.ExitStack()  # of what a capture changes
        self._calls: list[Any] | None = None
        self._left: Iterator[ExternalEvent] | None = None  # of a replay that waits
        self._pool = graph_pool_handle()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Notes what follows; ``torch.npu.graph`` calls this."""
        global _recorder
        if _recorder is not None:
            raise RuntimeError("NPUGraph.capture_begin: another capture is underway, only one at a time is possible")
        if self._calls is not None:
            raise RuntimeError("NPUGraph.capture_begin: the graph was captured already, reset() it first")
        self._pool = pool or self._pool
        self._recorder = _recorder = _Recorder()
        self._block.enter_context(torch.compiler.set_stance("force_eager"))  # nobody can note what compiled code calls
        self._block.enter_context(_triton_launches(self._recorder.launch))
        self._block.enter_context(self._recorder)

    def capture_end(self) -> None:
        """Ends the capture; ``torch.npu.graph`` calls this."""
        global _recorder
        if self._recorder is None:
            raise RuntimeError("NPUGraph.capture_end: no capture was begun")
        recorder, self._recorder = self._recorder, None
        self._block.close()
        _recorder = None
        recorder.undo()
        if recorder.group is not None:
            published.take_call = None
            raise RuntimeError("NPUGraph.capture_end: a task group was not ended")
        self._calls = recorder.calls

    def replay(self) -> None:
        """Runs the operators on the tensors of the block."""
        if self._calls is None:
            raise RuntimeError("NPUGraph.replay: the graph was not captured")
        if self._left is not None:
            raise RuntimeError("NPUGraph.replay: the last replay waits for an ExternalEvent that nobody recorded")
        self._left = self._run()
        self._go_on()

    def _run(self) -> Iterator[ExternalEvent]:
        for call in self._calls:
            if isinstance(call, ExternalEvent):
                while not call._recorded:
                    yield call
                continue
            function, args, kwargs, made = call
            results = tree_leaves(function(*args, **kwargs))
            for place, tensor in made:
                tensor.copy_(results[place])

    def _go_on(self) -> None:
        if self._left is None:  # the graph was reset while it waited
            return
        left, self._left = self._left, None
        # The calls stand below autograd and autocast, and tensors of inference mode may be written to only there.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            event = next(left, None)
        if event is not None:
            self._left = left
            event._waiting.append(self)

    def reset(self) -> None:
        """Forgets the operators."""
        self._calls = self._left = None

    def pool(self) -> tuple[int, int]:
        """A token that other captures take and that has no effect."""
        return self._pool


class graph:
    """Captures the block in ``npu_graph``. ``pool`` and ``capture_error_mode`` have no effect."""

    def __init__(
        self,
        npu_graph: NPUGraph,
        pool: Any = None,
        stream: Stream | None = None,
        auto_dispatch_capture: bool = False,
        capture_error_mode: str = "global",
    ) -> None:
        if auto_dispatch_capture:
            raise NotImplementedError("graph: auto_dispatch_capture, which update needs, is not implemented by anynpu")
        self.npu_graph = npu_graph
        self._pool = pool
        self._stream = StreamContext(stream or Stream())

    def __enter__(self) -> None:
        self._stream.__enter__()
        try:
            self.npu_graph.capture_begin(self._pool)
        except RuntimeError:
            self._stream.__exit__()
            raise

    def __exit__(self, *error: Any) -> None:
        try:
            self.npu_graph.capture_end()
        finally:
            self._stream.__exit__()


def graph_pool_handle() -> tuple[int, int]:
    """A new token for ``pool``."""
    return 0, next(_pools)


def is_current_stream_capturing() -> bool:
    """Whether a capture is underway."""
    return _recorder is not None


def make_graphed_callables(
    callables: Any, sample_args: tuple, num_warmup_iters: int = 3, allow_unused_input: bool = False, pool: Any = None
) -> Any:
    """The callables themselves: they stand for graphs of their forward and backward passes, which would save no time.

    Args:
        callables: A module or function, or a tuple of these.
        sample_args: Tensors for the call, in a tuple; for a tuple of callables a tuple of such tuples.

    Raises:
        RuntimeError: a callable or its arguments are none that a graph could be made of.
    """
    several = isinstance(callables, tuple)
    for function, arguments in zip(
        callables if several else (callables,), sample_args if several else (sample_args,), strict=True
    ):
        for each in tree_leaves(arguments):
            if not isinstance(each, torch.Tensor):
                raise RuntimeError(f"make_graphed_callables: sample_args must be tensors, got {type(each).__name__}")
        if isinstance(function, torch.nn.Module) and any(
            (function._forward_hooks, function._forward_pre_hooks, function._backward_hooks)
        ):
            raise RuntimeError("make_graphed_callables: modules must have no hooks yet, got one with hooks")
    return callables


class _Update:
    """Gives the tasks of a group the arguments of calls, in their order."""

    def __init__(self, group: list[_Task]) -> None:
        self._left = list(group)
        self._block = contextlib.ExitStack()
        others = _Recorder()  # of what the calls do besides, which is undone
        self._block.callback(others.undo)
        self._block.enter_context(others)
        self._block.enter_context(_calls_taken(self._give))

    def _give(self, operator: Any, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not self._left or self._left[0].function is not function:
            raise RuntimeError(f"graph_task_update: the task group does not call {operator} here")
        task = self._left.pop(0)
        task.give(function, args, kwargs)
        return task.results

    def end(self) -> None:
        self._block.close()
        if self._left:
            raise RuntimeError(f"graph_task_update_end: {len(self._left)} tasks of the group were given no arguments")


_update: _Update | None = None


def graph_task_group_begin(stream: Stream) -> None:
    """The published operators that follow in a capture are tasks of a group, whose arguments may be changed later."""
    if _recorder is None or _recorder.group is not None:
        raise RuntimeError("graph_task_group_begin: wants a capture, and no other task group")
    _recorder.group = []
    published.take_call = _recorder.task


def graph_task_group_end(stream: Stream) -> list[_Task]:
    """What ``graph_task_update_begin`` takes."""
    if _recorder is None or _recorder.group is None:
        raise RuntimeError("graph_task_group_end: no task group was begun")
    group, _recorder.group = _recorder.group, None
    published.take_call = None
    return group


def graph_task_update_begin(stream: Stream, handle: list[_Task]) -> None:
    """The published operators that follow give those of the group their arguments, in their order. They do not run."""
    global _update
    if _recorder is not None or _update is not None:
        raise RuntimeError("graph_task_update_begin: wants no capture and no other update")
    _update = _Update(handle)


def graph_task_update_end(stream: Stream) -> None:
    """Ends the update."""
    global _update
    if _update is None:
        raise RuntimeError("graph_task_update_end: no update was begun")
    update, _update = _update, None
    update.end()
