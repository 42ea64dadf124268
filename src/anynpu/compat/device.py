# SPDX-License-Identifier: Apache-2.0
"""The device name ``npu``: parsed by torch, mapped to the CPU (or CUDA) wherever a tensor is made or moved.

Tensors stay ordinary CPU (or CUDA) tensors. Three places do the mapping:

- Factory functions with ``device="npu"`` reach the dispatch key that torch reserves for out-of-tree devices. One
  fallback there calls the same operator again with the real device. Nothing else is dispatched there, so other code
  pays nothing.
- ``Tensor.to``, ``.npu`` and ``.cpu`` are Python functions here, because they decide whether to copy (see ``mark``).
- Graph capture records calls without running the dispatcher; its one choke point rewrites the device arguments.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch.jit._builtins import _find_builtin, _register_builtin
from torch.utils._device import DeviceContext, _device_constructors

NAME = "npu"

_ON_DEVICE, _ON_HOST, _PINNED = "_anynpu_on_device", "_anynpu_on_host", "_anynpu_pinned"  # what a storage stands for

# The factories that take pin_memory. Without an accelerator in C++ they would ask torch for an allocator it lacks.
_FILLS = ("empty", "zeros", "ones", "full")
_LIKE = tuple(f"{fill}_like" for fill in (*_FILLS, "rand", "randn", "randint"))
_PINNING = (
    (torch, (*_FILLS, "tensor", "arange", "eye", "linspace", "logspace", "rand", "randn", "randint", "randperm")),
    (torch, ("empty_strided", *_LIKE)),
    (torch.Tensor, ("new_empty_strided", *(f"new_{fill}" for fill in _FILLS))),
)

# Functions of torch.accelerator by their names in torch.npu, where these are others.
_OTHERWISE_CALLED = {
    "current_device_index": "current_device",
    "current_device_idx": "current_device",
    "set_device_index": "set_device",
    "set_device_idx": "set_device",
    "get_memory_info": "mem_get_info",
    "empty_host_cache": "host_empty_cache",
}

_library: torch.library.Library | None = None  # owns the fallback, which lives as long as this object
_guard_and_hooks: list[Any] = []  # torch keeps bare pointers to them
_target = torch.device("cpu")
_names = {NAME}  # device types that mean npu; transfer_to_npu adds cuda

_tensor_to = torch.Tensor.to
_tensor_cpu = torch.Tensor.cpu


def target() -> torch.device:
    """The device that ``npu`` stands for."""
    return _target


def device_count() -> int:
    """How many devices ``npu`` names: the GPUs; on the CPU ``ANYNPU_DEVICE_COUNT``, else torchrun's processes, else 1.

    On the CPU all of them are the same one: processes that share a machine each select one of their own.
    """
    if _target.type == "cuda":
        return torch.cuda.device_count()
    for name in ("ANYNPU_DEVICE_COUNT", "LOCAL_WORLD_SIZE"):
        if value := os.environ.get(name):
            if not value.isdecimal() or int(value) == 0:
                raise ValueError(f"npu: {name} must be a number of devices, at least 1, got {value!r}")
            return int(value)
    return 1


def names_npu(value: Any) -> bool:
    """``value`` is a device, or the name of one, of type npu."""
    if isinstance(value, torch.device):
        return value.type in _names
    return isinstance(value, str) and value.partition(":")[0] in _names


def real_device(device: torch.device | str | int) -> torch.device:
    """The device that ``device``, which must be npu, stands for; itself if it is the device of a tensor on npu."""
    parsed = torch.device(NAME, device) if isinstance(device, int) else torch.device(device)
    of_a_tensor = isinstance(device, torch.device) and parsed.type == _target.type
    if parsed.type not in _names and not of_a_tensor:
        raise RuntimeError(f"npu: device must be {NAME} or an index, got {parsed}")
    index = parsed.index or 0
    if index >= device_count():
        more = "" if _target.type == "cuda" else "; ANYNPU_DEVICE_COUNT sets how many npu names"
        raise RuntimeError(f"npu: device index must be below the device count, {device_count()}, got {index}{more}")
    if _target.type == "cuda":
        return torch.device("cuda", torch.cuda.current_device() if parsed.index is None else index)
    return _target


def _map(value: Any) -> Any:
    return real_device(value) if names_npu(value) else value


def mark(tensor: torch.Tensor) -> torch.Tensor:
    """Notes that the storage of ``tensor`` stands for device memory.

    ``x.npu()`` copies, as it does from host to device, unless the storage is marked: then it returns ``x``, as on a
    device. So a script may write to the result without changing its host tensor, and to a device tensor through any
    number of ``.npu()`` calls. Views share the mark; results of ordinary operators lack it and are copied once.
    """
    _set(tensor, _ON_DEVICE)
    return tensor


def is_marked(tensor: torch.Tensor) -> bool:
    """Whether the storage of ``tensor`` stands for device memory."""
    return _has(tensor, _ON_DEVICE)


def _set(tensor: torch.Tensor, flag: str) -> None:
    if torch.compiler.is_compiling():
        return
    try:
        setattr(tensor.untyped_storage(), flag, True)
    except (NotImplementedError, RuntimeError):  # sparse, functional and batched tensors have no storage to share
        pass


def _has(tensor: torch.Tensor, flag: str) -> bool:
    if torch.compiler.is_compiling():
        return False
    try:
        return getattr(tensor.untyped_storage(), flag, False)
    except (NotImplementedError, RuntimeError):
        return False


def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    device = args[0] if args else kwargs.get("device")
    kind = type(device)
    if kind is int or (kind in (str, torch.device) and names_npu(device)):
        return _to_npu(self, real_device(device), args, kwargs)
    moved = _tensor_to(self, *args, **kwargs)
    # "cpu" asks for the host; a device object usually comes from another tensor and asks for nothing to happen.
    asks_for_host = kind is str and moved.is_cpu and _target.type == "cpu"
    return _copied_to_host(self, moved) if asks_for_host else moved


def _copied_to_host(tensor: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """``moved``, what torch made of ``tensor``, as a copy; ``tensor`` itself if it is one already."""
    if moved is not tensor or _has(tensor, _ON_HOST):
        return moved
    copy = tensor.clone()
    _set(copy, _ON_HOST)
    return copy


def _to_npu(self: torch.Tensor, device: torch.device, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    if args:
        args = (device, *args[1:])
    else:
        kwargs["device"] = device
    moved = _tensor_to(self, *args, **kwargs)
    if _target.type != "cpu":
        return moved
    if moved is self:
        if is_marked(self):
            return self
        moved = self.clone()
    return mark(moved)


def _cpu(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return _copied_to_host(self, _tensor_cpu(self, *args, **kwargs))


def _npu(self: Any, device: Any = None, *args: Any, **kwargs: Any) -> Any:
    return self.to(NAME if device is None else device, *args, **kwargs)


def _module_npu(self: torch.nn.Module, device: Any = None) -> torch.nn.Module:
    return self._apply(lambda tensor: _npu(tensor, device))


def _factory(operator: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Kernel of every operator on npu: the same operator on the real device."""
    if not any(map(names_npu, (*args, *kwargs.values()))):
        raise NotImplementedError(f"{operator} cannot be mapped from the device npu to {_target}")
    result = operator(*map(_map, args), **{name: _map(value) for name, value in kwargs.items()})
    return mark(result) if isinstance(result, torch.Tensor) else result


def _map_devices_in_graphs() -> None:
    tracer = torch.fx.proxy.TracerBase
    create_proxy = tracer.create_proxy

    @functools.wraps(create_proxy)
    def mapped(self: Any, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        if kind.startswith("call"):
            args = tuple(map(_map, args))
            kwargs = {name: _map(value) for name, value in kwargs.items()}
        return create_proxy(self, kind, target, args, kwargs, *rest, **options)

    tracer.create_proxy = mapped


def _register_guard() -> None:
    """Lets torch complete ``npu`` to ``npu:0`` in C++."""

    class Guard(torch._C._acc.DeviceGuard):
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    class Hooks(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return True

        def has_primary_context(self, device_index: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    _guard_and_hooks.extend((Hooks(), Guard()))
    torch._C._acc.register_python_privateuseone_hook(_guard_and_hooks[0])
    torch._C._acc.register_python_privateuseone_device_guard(_guard_and_hooks[1])


def _refuse_backward_on_cuda() -> None:
    """torch's engine wants the streams of the accelerator, which is npu once it has a name, and finds those of CUDA."""
    run = torch.autograd._engine_run_backward

    @functools.wraps(run)
    def refusing(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if any(getattr(tensor, "is_cuda", False) for tensor in tensors):
            raise NotImplementedError(
                "backward: gradients need npu to stand for the CPU (`--device cpu`), got CUDA; for inference compile "
                "under torch.no_grad()"
            )
        return run(tensors, *args, **kwargs)

    torch.autograd._engine_run_backward = refusing


def _complete_index_in_python() -> None:
    """Completes ``npu`` to the current device of CUDA, or to 0 with a torch without Python device guards."""
    for name in ("tensor", "as_tensor", "asarray", "sparse_coo_tensor", "sparse_csr_tensor"):
        _replace(torch, name, _with_mapped_device)
    _replace(torch.Tensor, "new_tensor", _with_mapped_device)


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Wraps the function ``name`` of ``owner``; TorchScript compiles a call of it to the same operator as before."""
    function = getattr(owner, name)
    wrapped = wrap(function)
    if operator := _find_builtin(function):
        _register_builtin(wrapped, operator)
    setattr(owner, name, wrapped)


def _with_mapped_device(function: Any) -> Any:
    @functools.wraps(function)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        if names_npu(kwargs.get("device")):
            return mark(function(*args, **{**kwargs, "device": real_device(kwargs["device"])}))
        return function(*args, **kwargs)

    return mapped


def _provide_tensor_methods() -> None:
    torch.Tensor.to = functools.wraps(_tensor_to)(_to)
    torch.Tensor.npu = _npu
    torch.Tensor.is_npu = property(lambda self: self.device.type == _target.type)
    torch.nn.Module.npu = _module_npu
    torch.nn.utils.rnn.PackedSequence.npu = _npu
    _provide_pinned_memory()
    if _target.type == "cpu":
        torch.Tensor.cpu = functools.wraps(_tensor_cpu)(_cpu)
        torch.Tensor.record_stream = lambda self, stream: None


def _provide_generator() -> None:
    class GeneratorType(type(torch._C.Generator)):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, torch._C.Generator)

    class Generator(torch._C.Generator, metaclass=GeneratorType):
        def __new__(cls, device: Any = "cpu") -> torch._C.Generator:
            return torch._C.Generator(_map(device))

    Generator.__module__, Generator.__qualname__ = "torch", "Generator"  # pickles hold this name
    torch.Generator = Generator


def _provide_storage() -> None:
    make = torch.UntypedStorage.__new__

    def mapped(cls: type, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        return make(cls, *args, **kwargs) if device is None else make(cls, *args, device=_map(device), **kwargs)

    def npu(self: torch.UntypedStorage, device: Any = None, non_blocking: bool = False) -> torch.UntypedStorage:
        real = real_device(NAME if device is None else device)
        if real.type == "cuda":
            return self.cuda(real.index, non_blocking)
        moved = self.clone()
        setattr(moved, _ON_DEVICE, True)
        return moved

    torch.UntypedStorage.__new__ = mapped
    torch.UntypedStorage.npu = npu


def _pin_memory(self: torch.Tensor, device: Any = None) -> torch.Tensor:
    if self.device.type != "cpu":
        raise RuntimeError(f"pin_memory: the tensor must be on the host, got {self.device}")
    if _has(self, _PINNED):
        return self
    pinned = self.clone()
    _set(pinned, _PINNED)
    return pinned


def _is_pinned(self: torch.Tensor, device: Any = None) -> bool:
    return _has(self, _PINNED)


def _with_pinned_memory(function: Any) -> Any:
    @functools.wraps(function)
    def mapped(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        return made.pin_memory() if pin_memory else made

    return mapped


def _provide_pinned_memory() -> None:
    """Pinned memory is ordinary memory, marked on the storage: torch's allocator would be that of npu."""
    torch.Tensor.pin_memory = _pin_memory
    torch.Tensor.is_pinned = _is_pinned
    _device_constructors()  # keeps the functions as they are now, which ``with torch.device(...)`` sees called
    for owner, names in _PINNING:
        for name in names:
            _replace(owner, name, _with_pinned_memory)


def _provide_autocast() -> None:
    autocast = torch.amp.autocast_mode.autocast
    initialise = autocast.__init__

    @functools.wraps(initialise)
    def mapped(self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if names_npu(device_type):
            device_type, dtype = _target.type, dtype or torch.float16
        initialise(self, device_type, dtype, *args, **kwargs)

    autocast.__init__ = mapped
    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
        _replace(torch, name, _with_mapped_type)
    for name in ("custom_fwd", "custom_bwd"):
        _replace(torch.amp, name, _with_mapped_type)


def _with_mapped_type(function: Any) -> Any:
    @functools.wraps(function)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        return function(*map(_mapped_type, args), **{name: _mapped_type(value) for name, value in kwargs.items()})

    return mapped


def _mapped_type(value: Any) -> Any:
    return _target.type if names_npu(value) else value


def _provide_profiler() -> None:
    """``use_device="npu"``: what runs there are operators of the real device."""
    profile = torch.autograd.profiler.profile
    initialise = profile.__init__

    @functools.wraps(initialise)
    def mapped(self: Any, *args: Any, use_device: str | None = None, **kwargs: Any) -> None:
        if names_npu(use_device):
            use_device = None if _target.type == "cpu" else _target.type
        initialise(self, *args, use_device=use_device, **kwargs)

    profile.__init__ = mapped


def _provide_loading() -> None:
    def restore(storage: Any, location: str) -> Any:
        if not names_npu(location):
            return None
        if _target.type == "cuda":
            return storage.cuda(real_device(location).index)
        setattr(storage, _ON_DEVICE, True)
        return storage

    torch.serialization.register_package(0, lambda storage: None, restore)


def adopt_cuda_names() -> None:
    """Makes ``cuda`` another name of npu, where npu stands for the CPU."""
    _names.add("cuda")
    for name in (*(function.__name__ for function in _device_constructors()), *_LIKE):
        if hasattr(torch, name):
            _replace(torch, name, _with_mapped_device)
    for name in ("new_tensor", "new_zeros", "new_ones", "new_empty", "new_full"):
        _replace(torch.Tensor, name, _with_mapped_device)
    torch.Tensor.cuda = _npu
    torch.nn.Module.cuda = _module_npu
    _take_cuda_for_the_default()


def _take_cuda_for_the_default() -> None:
    """``with torch.device("cuda")`` and ``set_default_device("cuda")`` hand their device to factories unseen."""
    initialise = DeviceContext.__init__

    @functools.wraps(initialise)
    def mapped(self: DeviceContext, device: Any) -> None:
        initialise(self, _map(device))

    DeviceContext.__init__ = mapped


def provide_accelerator(functions: Mapping[str, Any]) -> None:
    """Gives ``torch.accelerator`` the functions of ``torch.npu``.

    C++ takes npu for the accelerator, and knows no streams, indices and memory of it.
    """
    for name in dir(torch.accelerator):
        function = functions.get(_OTHERWISE_CALLED.get(name, name))
        if isinstance(function, FunctionType) and name != "get_device_capability":  # chips have none
            # A new object: graph capture looks functions up by identity.
            setattr(torch.accelerator, name, functools.wraps(function)(functools.partial(function)))
    torch.accelerator.device_index = functions["device"]


def provide(device: str) -> None:
    """Makes ``npu`` stand for ``device`` in this process. It cannot be undone."""
    global _target, _library
    if torch._C._get_privateuse1_backend_name() not in ("privateuseone", NAME):
        raise RuntimeError(
            "install: another package took torch's out-of-tree device for the name "
            f"{torch._C._get_privateuse1_backend_name()!r}, so {NAME!r} cannot be provided in this process"
        )
    _target = torch.device(device)
    torch.utils.rename_privateuse1_backend(NAME)
    if hasattr(torch._C, "_acc"):
        _register_guard()
    else:  # torch 2.9, where only C++ can register the hooks that this function asks
        torch._C._get_accelerator = lambda check=None: torch.device(NAME)
    if not hasattr(torch._C, "_acc") or _target.type == "cuda":
        _complete_index_in_python()
    if _target.type == "cuda":
        _refuse_backward_on_cuda()
    _library = torch.library.Library("_", "IMPL")
    _library.fallback(_factory, "PrivateUse1")
    _map_devices_in_graphs()
    _provide_tensor_methods()
    _provide_generator()
    _provide_storage()
    _provide_autocast()
    _provide_profiler()
    _provide_loading()
