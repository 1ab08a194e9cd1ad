"""Packages and the C++ extension; everything else stands in pyproject.toml.

The rooms at the top level install as ``embedmux.<room>`` and have no ``__init__.py`` of their own: a top-level package
called ``kernels`` would collide with the one transformers imports.
"""

import os
from glob import glob

from setuptools import find_packages, setup

ROOMS = ("kernels", "server", "proto", "client", "training")


def extension() -> dict:
    """The CPU kernels; ``EMBEDMUX_NO_EXT=1`` leaves them out, and the reference kernels answer instead."""
    if os.environ.get("EMBEDMUX_NO_EXT") == "1":
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension  # noqa: PLC0415 - only where it is built

    kernels = CppExtension(
        "embedmux.kernels._C",
        sorted(glob("csrc/*.cpp")),
        depends=sorted(glob("csrc/*.h")),
        extra_compile_args=["-std=c++20", "-O3", "-g0", "-Wall", "-fopenmp", "-fno-math-errno"],
        extra_link_args=["-fopenmp"],  # torch's thread pool: without it at::parallel_for is a plain loop
        py_limited_api=True,
    )
    return {
        "ext_modules": [kernels],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


setup(
    packages=[f"embedmux.{room}{sub}" for room in ROOMS for sub in ("", *(f".{p}" for p in find_packages(room)))],
    package_dir={f"embedmux.{room}": room for room in ROOMS},
    include_package_data=False,  # only what is named here; the folders below `defaults` are data, not packages
    package_data={
        **{f"embedmux.{room}": ["py.typed"] for room in ROOMS},
        "embedmux.proto": ["py.typed", "*.proto", "*.pyi"],
        "embedmux.server": ["py.typed", "defaults/*/*/*.json", "defaults/*/*/*.safetensors", "defaults/*/*/*.md"],
    },
    **extension(),
)
