"""What `probinf check module:kernel` loads."""

import importlib
import sys
from typing import Any

from probinf.core import Kernel


class BadNameError(ValueError):
    """A name on the command line that does not lead to what is needed."""


def load_kernel(kernel: str, *, target: str | None, draw: str | None) -> tuple[Any, Any, Any]:
    """Kernel, target and draw for `validity.check`, each named as `module:name`.

    Args:
        kernel: of a kernel, or a function without arguments that makes one.
        target: of a `Target`, or a function that makes one; None for those of `validity`.
        draw: of a function key -> position.

    Raises:
        BadNameError: a name cannot be loaded, or is of something else.
    """
    if draw is not None and target is None:
        raise BadNameError("`--draw` draws from `--target`, which is not given: pass both")
    found = load("kernel", kernel)
    if not isinstance(found, Kernel) or isinstance(found, type):
        found = _made("kernel", kernel, found)
    aim = None if target is None else load("target", target)
    if callable(aim):
        aim = _made("target", str(target), aim)
    return found, aim, None if draw is None else load("draw", draw)


def _made(what: str, name: str, maker: Any) -> Any:
    if not callable(maker):
        raise BadNameError(f"`{what}` {name} is {maker!r}; needed one, or a function without arguments that makes it")
    return maker()


def load(what: str, name: str) -> Any:
    """The object at `module:name`; modules of the working folder are found too.

    Args:
        what: the argument, for the error.
        name: `module:attribute`, the attribute may have dots.

    Raises:
        BadNameError: there is none.
    """
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise BadNameError(f"`{what}` is {name!r}; needed `module:name`, such as `my_package.kernels:walk`")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BadNameError(f"`{what}` is {name!r}, but there is no module {error.name!r} to import here") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise BadNameError(f"`{what}` is {name!r}, but {getattr(found, '__name__', found)} has no {part!r}")
        found = getattr(found, part)
    return found
