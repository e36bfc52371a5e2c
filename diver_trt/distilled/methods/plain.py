"""Class folders and named arrays without any method's own names."""

from __future__ import annotations

from diver_trt.distilled.methods.base import Kind, Method, Whitens

FOLDERS = Method(name="folders", title="class folders", structures=("folders",))

ARRAYS = Method(
    name="arrays",
    title="plain",
    structures=("arrays",),
    # The method is unknown, and so are its statistics: values that are not pixels are refused.
    guesses=True,
    whitens=Whitens(kind=Kind.KORNIA, usual=lambda _: True),
)

RECOVERED = Method(name="recovered", title="images recovered by diver-trt", structures=("folders",))
"""The format of our own output, which `--format` does not list: its manifest states it."""
