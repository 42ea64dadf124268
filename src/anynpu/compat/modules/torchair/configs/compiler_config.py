# SPDX-License-Identifier: Apache-2.0
"""``CompilerConfig``: the published options of torchair, checked as published.

All are accepted, because scripts set them; only ``debug.run_eagerly`` has an effect here, and ``export`` is refused.
The others steer the vendor's graph engine and do not change results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SWITCH = (True, False)


class Option:
    """One setting: ``value`` is what was assigned, else the default; ``choices`` None accepts anything."""

    def __init__(self, name: str, default: Any, choices: tuple | None = None) -> None:
        self.__dict__.update(name=name, choices=choices, value=default)

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute != "value":
            raise ValueError(f"{self.name}: an option has no attribute {attribute!r}, only value")
        if self.choices is not None and not any(value is choice or value == choice for choice in self.choices):
            raise ValueError(f"{self.name} must be one of {list(self.choices)}, got {value!r}")
        self.__dict__["value"] = value

    def __eq__(self, other: object) -> bool:
        return self.value == (other.value if isinstance(other, Option) else other)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __repr__(self) -> str:
        return repr(self.value)

    __hash__ = None


class Group:
    """Settings under one name; assigning to a setting checks it, an unknown name is a ValueError."""

    def __init__(self, name: str, members: Mapping[str, Any]) -> None:
        made = {key: _make(f"{name}.{key}", member) for key, member in members.items()}
        self.__dict__.update(made, _name=name, _members=made)

    def __setattr__(self, attribute: str, value: Any) -> None:
        member = self._known(attribute)
        if not isinstance(member, Option):
            raise ValueError(f"{self._name}.{attribute} is a group of options, set one of {', '.join(member._members)}")
        member.value = value

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self._known(attribute)

    def _known(self, attribute: str) -> Any:
        members = self.__dict__["_members"]
        if attribute not in members:
            raise ValueError(f"{self._name} has no option {attribute!r}, it has {', '.join(members)}")
        return members[attribute]


def _make(name: str, member: Any) -> Option | Group:
    return Group(name, member) if isinstance(member, dict) else Option(name, *member)


_OPTIONS = {
    "mode": ("max-autotune", ("max-autotune", "reduce-overhead")),
    "debug": {
        "run_eagerly": (False, _SWITCH),
        "graph_dump": {
            "type": (None, (None, "txt", "pbtxt", "py")),
            "path": ("./",),
        },
        "fx_summary": {
            "type": (None, (None, "csv")),
            "skip_compile": (True, _SWITCH),
        },
        "data_dump": {"type": (None, (None, "npy"))},
        "aclgraph": {
            "disable_reinplace_inplaceable_ops_pass": (False, _SWITCH),
            "disable_reinplace_input_mutated_ops_pass": (False, _SWITCH),
            "disable_mempool_reuse_in_same_fx": (False, _SWITCH),
            "clone_input": (True, _SWITCH),
            "clone_output": (False, _SWITCH),
            "enable_output_clone": (False, _SWITCH),
            "static_capture_size_limit": (64,),
        },
    },
    "export": {
        "export_mode": (False, _SWITCH),
        "export_path_dir": ("",),
        "export_name": ("",),
        "weight_externalized": (True, _SWITCH),
        "enable_record_nn_module_stack": (False, _SWITCH),
        "experimental": {
            "auto_atc_config_generated": (False, _SWITCH),
            "enable_record_nn_module_stack": (False, _SWITCH),
            "enable_lite_export": (False, _SWITCH),
        },
    },
    "dump_config": {
        "enable_dump": (False, _SWITCH),
        "dump_path": ("./",),
        "dump_mode": ("all", ("input", "output", "all")),
        "dump_step": ("",),
        "dump_layer": ("",),
        "dump_data": ("tensor", ("tensor", "stats")),
        "dump_config_path": (None,),
        "quant_dumpable": (False, _SWITCH),
    },
    "fusion_config": {"fusion_switch_file": (None,)},
    "experimental_config": {
        "cc_parallel_enable": (False, _SWITCH),
        "keep_inference_input_mutations": (True, _SWITCH),
        "memory_efficiency": (False, _SWITCH),
        "separate_atomic_clean": (True, _SWITCH),
        "frozen_parameter": (False, _SWITCH),
        "static_model_ops_lower_limit": (None,),
        "jit_compile": ("auto", ("auto",)),
        "npu_fx_pass": (False, _SWITCH),
        "aclgraph": {
            "_aclnn_static_shape_kernel": (False, _SWITCH),
            "_aclnn_static_shape_kernel_sym_value_range": (None,),
        },
        "enable_ref_data": (False, _SWITCH),
        "topology_sorting_strategy": ("DFS", ("BFS", "DFS", "RDFS", "StableRDFS")),
        "tiling_schedule_optimize": (False, _SWITCH),
        "enable_view_optimize": (True, _SWITCH),
        "enable_single_stream": (False, _SWITCH),
        "pattern_fusion_pass": (True, _SWITCH),
        "remove_noop_ops": (True, _SWITCH),
    },
    "inference_config": {
        "dynamic_gears_merge_policy": ("zip", ("zip", "product")),
        "use_internal_format_weight": (False, _SWITCH),
    },
    "ge_config": {
        "enable_single_stream": (False, _SWITCH),
        "oo_level": ("O3", ("O1", "O3")),
        "oo_constant_folding": (None, (None, *_SWITCH)),
        "oo_dead_code_elimination": (None, (None, *_SWITCH)),
        "optimization_switch": (None,),
        "export_compile_stat": ("1", ("0", "1", "2")),
        "aicore_num": (None,),
    },
    "aclgraph_config": {"use_custom_pool": (None,)},
    "aoe_config": {
        "aoe_mode": (None, (None, "1", "2", "4")),
        "work_path": ("./",),
        "aoe_config_file": (None,),
    },
    "post_grad_custom_pre_pass": (None,),
    "post_grad_custom_post_pass": (None,),
}


class CompilerConfig(Group):
    """The options of ``torchair.get_npu_backend``.

    Raises:
        ValueError: an option that is not published, or a value outside its list.
    """

    def __init__(self) -> None:
        super().__init__("CompilerConfig", _OPTIONS)
