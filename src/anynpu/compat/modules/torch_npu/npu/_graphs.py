# SPDX-License-Identifier: Apache-2.0
"""``torch.npu.NPUGraph`` where npu stands for the CPU: what a block calls, operators and Triton kernels, is noted and
called again.

As on a card the block changes nothing: results that it makes hold nothing of use before the first replay, and what it
writes to other tensors is undone. A replay writes to the tensors of the block, whose places stay what they were.
Functions of torch.compile run uncompiled.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from torch_npu.npu._host import Stream, StreamContext

_pools = itertools.count(1)
_capturing = False


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


class _Recorder(TorchDispatchMode):
    """Notes every operator with its arguments and the results that replays write to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in operator.tags or operator is torch.ops.aten.nonzero.default:
            raise RuntimeError(
                f"NPUGraph: the values of tensors cannot be read while a graph is captured, got a call of {operator}"
            )
        collective = operator.namespace in ("c10d", "_c10d_functional")
        if collective:  # their schemas do not say what they write to
            self._keep((args, kwargs))
        writes = self._keep_what_is_written(operator, args, kwargs) or collective
        result = operator(*args, **kwargs)
        given, results = _storages((args, kwargs)), tree_leaves(result)
        made = [
            (place, leaf.detach())
            for place, leaf in enumerate(results)
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in given
        ]
        self._made.update(_storages([tensor for _, tensor in made]))
        if made or writes:  # views see what replays write
            call = functools.partial(_finished, operator) if collective else operator
            self.calls.append((call, args, kwargs, made))
        return result

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
        self._calls: list[tuple] | None = None
        self._pool = graph_pool_handle()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Notes what follows; ``torch.npu.graph`` calls this."""
        global _capturing
        if _capturing:
            raise RuntimeError("NPUGraph.capture_begin: another capture is underway, only one at a time is possible")
        if self._calls is not None:
            raise RuntimeError("NPUGraph.capture_begin: the graph was captured already, reset() it first")
        self._pool = pool or self._pool
        self._recorder = _Recorder()
        self._block.enter_context(torch.compiler.set_stance("force_eager"))  # nobody can note what compiled code calls
        self._block.enter_context(_triton_launches(self._recorder.launch))
        self._block.enter_context(self._recorder)
        _capturing = True

    def capture_end(self) -> None:
        """Ends the capture; ``torch.npu.graph`` calls this."""
        global _capturing
        if self._recorder is None:
            raise RuntimeError("NPUGraph.capture_end: no capture was begun")
        recorder, self._recorder = self._recorder, None
        self._block.close()
        _capturing = False
        recorder.undo()
        self._calls = recorder.calls

    def replay(self) -> None:
        """Runs the operators on the tensors of the block."""
        if self._calls is None:
            raise RuntimeError("NPUGraph.replay: the graph was not captured")
        # The calls stand below autograd and autocast, and tensors of inference mode may be written to only there.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            for operator, args, kwargs, made in self._calls:
                results = tree_leaves(operator(*args, **kwargs))
                for place, tensor in made:
                    tensor.copy_(results[place])

    def reset(self) -> None:
        """Forgets the operators."""
        self._calls = None

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
        self.npu_graph.capture_end()
        self._stream.__exit__()


def graph_pool_handle() -> tuple[int, int]:
    """A new token for ``pool``."""
    return 0, next(_pools)


def is_current_stream_capturing() -> bool:
    """Whether a capture is underway."""
    return _capturing
