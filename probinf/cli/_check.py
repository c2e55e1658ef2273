"""What `probinf check module:kernel` loads and runs."""

import importlib
import sys
from typing import Any

from probinf import validity
from probinf.core import Kernel
from probinf.validity import Report


def check_kernel(kernel: str, *, target: str | None, draw: str | None, seed: int) -> Report:
    """The report of a kernel that is named as `module:name`.

    Args:
        kernel: of a kernel, or a function without arguments that makes one.
        target: of a `Target`, or a function that makes one; None for those of `validity`.
        draw: of a function key -> position.
        seed: of all random numbers.

    Raises:
        ValueError: a name that cannot be loaded, or the target cannot be drawn from.
        TypeError: what is found is no kernel or no target.
    """
    if draw is not None and target is None:
        raise ValueError("`--draw` draws from `--target`, which is not given: pass both")
    found = load("kernel", kernel)
    if not isinstance(found, Kernel) or isinstance(found, type):
        found = _made("kernel", kernel, found)
    aim = None if target is None else load("target", target)
    if callable(aim):
        aim = _made("target", str(target), aim)
    report = validity.check(found, aim, None if draw is None else load("draw", draw), seed=seed)
    return Report(report.checks, kernel)


def _made(what: str, name: str, maker: Any) -> Any:
    if not callable(maker):
        raise TypeError(f"`{what}` {name} is {maker!r}; needed one, or a function without arguments that makes it")
    return maker()


def load(what: str, name: str) -> Any:
    """The object at `module:name`; modules of the working folder are found too.

    Args:
        what: the argument, for the error.
        name: `module:attribute`, the attribute may have dots.

    Raises:
        ValueError: there is none.
    """
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise ValueError(f"`{what}` is {name!r}; needed `module:name`, such as `my_package.kernels:walk`")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"`{what}` is {name!r}, but there is no module {error.name!r} to import here") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"`{what}` is {name!r}, but {getattr(found, '__name__', found)} has no {part!r}")
        found = getattr(found, part)
    return found
