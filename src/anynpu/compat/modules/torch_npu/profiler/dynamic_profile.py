# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.profiler.dynamic_profile``: profiles that a file asks for while a program runs.

The file has the published entries. ``step`` looks for it in the folder of ``init``, and profiles once for each time
that it is written; ``start`` profiles at once.
"""

from __future__ import annotations

import atexit
import json
import os
import warnings
from pathlib import Path
from typing import Any

from anynpu.compat.errors import module_getattr
from torch_npu.profiler import profiler as _profiler

_NAME = "profiler_config.json"
_NOW = -1
_DEFAULTS = {
    "activities": ["CPU", "NPU"],
    "prof_dir": "./",
    "start_step": 0,
    "warmup": 0,
    "active": 1,
    "is_rank": False,
    "rank_list": [],
    "record_shapes": False,
    "profile_memory": False,
    "with_stack": False,
    "with_flops": False,
    "with_modules": False,
    "metadata": {},
}
_OPTIONS = ("record_shapes", "profile_memory", "with_stack", "with_flops", "with_modules")


class _Watch:
    """The file that is watched, the profile that it asked for, and the one that runs."""

    def __init__(self) -> None:
        self.step = self.left = 0
        self.path: Path | None = None
        self.seen: tuple[int, str] | None = None
        self.asked: dict[str, Any] | None = None
        self.running: _profiler.profile | None = None

    def look(self) -> None:
        """Reads the file if it was written since the last time."""
        if self.path is None or not self.path.exists():
            return
        state = _state(self.path)
        if state == self.seen:
            return
        self.seen = state
        self.asked = _config(state[1])
        if self.asked is not None and _NOW != self.asked["start_step"] < self.step:
            warnings.warn(
                f"dynamic_profile: start_step of {self.path} must be -1 or a step to come, "
                f"got {self.asked['start_step']} at step {self.step}",
                stacklevel=3,
            )
            self.asked = None

    def begin(self, config: dict[str, Any]) -> None:
        self.left = config["warmup"] + config["active"]
        self.running = _profiler.profile(
            activities=[_profiler.ProfilerActivity[name.upper()] for name in config["activities"]],
            schedule=_profiler.schedule(wait=0, warmup=config["warmup"], active=config["active"], repeat=1),
            on_trace_ready=_profiler.tensorboard_trace_handler(config["prof_dir"]),
            **{name: bool(config[name]) for name in _OPTIONS},
        )
        self.running.start()
        for key, value in config["metadata"].items():
            self.running.add_metadata_json(key, json.dumps(value))

    def end(self) -> None:
        if self.running is not None:
            self.running.stop()
            self.running = None


_watch = _Watch()
atexit.register(_watch.end)


def _state(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.read_text()  # two writes may carry the same time


def _config(text: str) -> dict[str, Any] | None:
    """The entries of a file; None if it asks for other ranks, or is being written."""
    try:
        config = _DEFAULTS | json.loads(text)
    except json.JSONDecodeError:
        return None
    return config if not config["is_rank"] or int(os.environ.get("RANK", 0)) in config["rank_list"] else None


def init(path: str) -> None:
    """Watches ``profiler_config.json`` in a folder; writes one to change if there is none."""
    if _watch.path is not None:
        return
    _watch.path = Path(path, _NAME).absolute()
    _watch.path.parent.mkdir(parents=True, exist_ok=True)
    if not _watch.path.exists():
        _watch.path.write_text(json.dumps(_DEFAULTS, indent=4))
    _watch.seen = _state(_watch.path)


def step() -> None:
    """Ends a step: profiles begin at the ``start_step`` of the file, or at once if it is -1."""
    _watch.step += 1
    _watch.look()
    if _watch.running is not None:
        _watch.running.step()
        _watch.left -= 1
        if not _watch.left:
            _watch.end()
    elif _watch.asked is not None and _watch.asked["start_step"] in (_NOW, _watch.step):
        config, _watch.asked = _watch.asked, None
        _watch.begin(config)


def start(config_path: str | None = None) -> None:
    """Profiles the steps from here on, as the file says or that of ``init``, unless a profile runs."""
    path = Path(config_path) if config_path else _watch.path
    if path is None:
        raise ValueError("dynamic_profile.start: config_path must name a file unless init was called, got None")
    config = _config(path.read_text())
    if config is not None and _watch.running is None:
        _watch.begin(config)


def set_state(state_step: dict[str, int]) -> None:
    """Numbers the steps on from ``cur_step``, as a resumed program does."""
    _watch.step = state_step.get("cur_step", 0)


__getattr__ = module_getattr(__name__, globals())
