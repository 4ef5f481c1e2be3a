"""Compiles what the launchers launch for a GPU that need not be there: a program, started by
test_triton_compile.py in a process where Triton does not interpret.

    python triton_compile.py sm_90 [more]

prints a JSON list with one entry per kernel and set of constants. The launchers run; only their
launches are replaced by compilations, so that argument types, constants and settings are theirs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from relex_ext.backends import triton_kernels as kernels

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

POINTER = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
}

INSTRUCTIONS = (
    r"\b(wgmma\.mma_async\S*|mma\.sync\S*|ld\.global\S*|cp\.async\.c\S*|atom\.\S*|red\.\S*"
    r"|\w+\.ftz\S*|\S*tf32\S*|v_mfma\S*|global_atomic\S*|buffer_atomic\S*)"
)


class Compiler:
    """Stands in for kernels._launch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target
        self.found: dict[str, dict[str, Any]] = {}

    def __call__(self, kernel: Any, grid: Any, *args: Any, **settings: Any) -> None:
        options = {n: settings.pop(n) for n in ("num_warps", "num_stages") if n in settings}
        signature, attributes = {}, {}
        for i, (parameter, value) in enumerate(zip(kernel.params, args, strict=False)):
            free = not parameter.do_not_specialize
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = POINTER[value.dtype]
                attributes[(i,)] = [["tt.divisibility", 16]]  # as torch allocates
            elif isinstance(value, float):
                signature[parameter.name] = "fp32"
            elif value == 1 and free:
                signature[parameter.name], settings[parameter.name] = "constexpr", 1
            else:
                signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
                if value % 16 == 0 and free:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        signature.update(dict.fromkeys(kernel.arg_names[len(args) :], "constexpr"))
        options["enable_fp_fusion"] = False
        key = f"{kernel.__name__} {signature} {attributes} {settings} {options}"
        if key not in self.found:
            source = ASTSource(kernel, signature, settings, attributes)
            compiled = triton.compile(source, target=self.target, options=options)
            self.found[key] = {
                "kernel": kernel.__name__,
                "constants": settings,
                "options": options,
                "shared": compiled.metadata.shared,
                **described(compiled),
            }


def described(compiled: Any) -> dict[str, Any]:
    """Spilled bytes or registers, instructions, and what the first sums of matrix products are."""
    if "cubin" in compiled.asm:
        text = compiled.asm["ptx"]
        spilled = stack_of(compiled.asm["cubin"])
    else:
        text = compiled.asm["amdgcn"]
        spilled = int(re.findall(r"\.vgpr_spill_count:\s+(\d+)", text)[0])
    products = re.findall(r"tt\.dot %\S+, %\S+, %(\w+)", compiled.asm["ttir"])
    return {
        "spilled": spilled,
        "instructions": dict(Counter(re.findall(INSTRUCTIONS, text))),
        "accumulators": products,
    }


def stack_of(cubin: bytes) -> int:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(n) for n in re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage))


def rows(count: int, dtype: Any, base: Any, align: int = 16, columns: int = 1 << 16) -> Any:
    table = torch.zeros(2 * count + 1, dtype=torch.int64)
    return kernels.Rows(table, count, columns, dtype.value, base.value, align)


def gram(strips: Any) -> None:
    kernels.gram(strips, torch.zeros(strips.count, strips.count, dtype=torch.float64))


def power_step(strips: Any, k: int) -> None:
    y = torch.zeros(strips.count, k, dtype=torch.float64)
    kernels.power_step(strips, torch.zeros(strips.count, k), y, y.new_zeros(strips.count))


def combine(strips: Any, out: Any, targets: int, align: int = 16) -> None:
    wide = torch.float64 if out.value == kernels.F32.value else torch.float32
    weights = torch.zeros(8 * -(-strips.count // 8), targets, dtype=wide)
    addresses = torch.zeros(targets, dtype=torch.int64)
    kernels.combine(strips, weights, addresses, out.value, align)


def launch_some() -> None:
    """The common cases of every kernel."""
    f32, bf16 = kernels.F32, kernels.BF16
    gram(rows(75, bf16, bf16))
    gram(rows(200, bf16, bf16))
    gram(rows(75, f32, f32))
    power_step(rows(75, bf16, bf16), 4)
    power_step(rows(200, bf16, bf16), 4)
    combine(rows(75, bf16, bf16), bf16, 1)
    combine(rows(75, f32, f32), f32, 4)


def launch_more() -> None:
    """Other dtypes and alignments, few rows, one column."""
    f16, bf16, mixed, none = kernels.F16, kernels.BF16, kernels.MIXED, kernels.NONE
    gram(rows(9, bf16, none, align=2, columns=1))
    gram(rows(33, bf16, none))
    gram(rows(75, mixed, bf16, align=4))
    power_step(rows(9, bf16, none, align=2), 17)
    power_step(rows(75, f16, f16), 4)
    power_step(rows(200, mixed, f16), 4)
    combine(rows(75, f16, f16), f16, 2)
    combine(rows(75, mixed, none, align=4), bf16, 1)
    combine(rows(75, bf16, bf16, align=2, columns=1), bf16, 1, align=2)


def launch_every_setting() -> None:
    bf16 = kernels.BF16
    for name, launch in (
        ("GRAM", lambda: gram(rows(9, bf16, bf16))),
        ("GRAM", lambda: gram(rows(200, bf16, bf16))),
        ("GRAM_WIDE", lambda: gram(rows(75, bf16, bf16))),
        ("COMBINE", lambda: combine(rows(75, bf16, bf16), bf16, 1)),
    ):
        tuning = getattr(kernels, name)
        for config in tuning.configs:
            setattr(kernels, name, replace(tuning, configs=[config]))
            launch()
        setattr(kernels, name, tuning)


def main() -> None:
    assert not kernels.INTERPRETED.value
    compiler = Compiler(TARGETS[sys.argv[1]])
    kernels._launch = compiler
    launch_some()
    launch_every_setting()
    if sys.argv[2:] == ["more"]:
        launch_more()
    json.dump(list(compiler.found.values()), sys.stdout)


if __name__ == "__main__":
    main()
