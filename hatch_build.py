"""Build hook: compiles memstore/index/kernel.c where there is a compiler.

The shared library has no Python ABI, so one wheel a platform serves every Python version. Without
a compiler the package still builds and works: neuron queries then run in numpy.
``MEMSTORE_BUILD_KERNEL=0`` leaves the kernel out, ``=1`` makes its absence an error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# No fused multiply-add: scores must equal numpy's bit for bit.
FLAGS = ["-std=c11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fvisibility=hidden"]
FOLDER = Path("memstore") / "index"


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling leaves it open
    """Adds ``memstore/index/_kernel.so`` to wheels and editable installations."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one of this platform."""
        wanted = os.environ.get("MEMSTORE_BUILD_KERNEL", "")
        if wanted == "0":
            return
        library = Path(self.root) / FOLDER / "_kernel.so"
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
        if shutil.which(compiler[0]) is None:
            self.skip(f"no C compiler ({compiler[0]})", wanted)
            return
        source = library.with_name("kernel.c")
        done = subprocess.run(
            [*compiler, *FLAGS, "-o", str(library), str(source), "-lm"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self.skip(done.stderr.strip(), wanted)
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.update(pure_python=False, tag=f"py3-none-{platform}")
        build_data["artifacts"].append(f"/{FOLDER / library.name}")

    def skip(self, reason: str, wanted: str) -> None:
        """Say why there is no kernel, or fail where one was asked for."""
        if wanted == "1":
            raise RuntimeError(f"the kernel could not be built: {reason}")
        self.app.display_warning(f"built without the C kernel, queries run in numpy: {reason}")
