"""The kernels that TensorRT-RTX compiles when an engine starts, kept for the next start.

An engine of TensorRT-RTX holds no machine code for the GPU: it is compiled where it runs. Without
this, every start compiles it again.
"""

from __future__ import annotations

from typing import Any

from diver_trt.runtime.cache import cache_folder, read_cached, write_cached


def keeps_kernels(module: Any) -> bool:
    """Return whether a TensorRT module has a cache of kernels: TensorRT-RTX has, TensorRT not."""
    return hasattr(module, "IRuntimeCache")


class KernelCache:
    """One engine's compiled kernels.

    Args:
        engine: The deserialized engine.
        engine_sha256: Hash of its file, which names the file of its kernels.

    Attributes:
        config: What the engine's context is created with; it holds the cache.
    """

    def __init__(self, engine: Any, engine_sha256: str) -> None:
        self.config: Any = engine.create_runtime_config()
        self._cache: Any = self.config.create_runtime_cache()
        folder = cache_folder()
        self._path = folder / "tensorrt-rtx" / f"{engine_sha256}.kernels" if folder else None
        self._kept = read_cached(self._path) if self._path else None
        # TensorRT compares GPU, driver and its own version with those that wrote the kernels, and
        # refuses what does not fit: the engine is then compiled as if there were no file.
        if self._kept is not None and not self._cache.deserialize(self._kept):
            self._kept = None
        self.config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write what was compiled since the file was read."""
        if self._path and (kernels := self._cache.serialize()) is not None:
            compiled = bytes(kernels)
            # Mostly nothing was compiled, and the file already has these bytes.
            if compiled != self._kept:
                write_cached(self._path, compiled)
                self._kept = compiled
