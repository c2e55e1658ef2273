"""`import_extra`: packages that only language models need, imported where they are used."""

import importlib
from types import ModuleType


def import_extra(package: str, purpose: str) -> ModuleType:
    """Imports an optional package.

    Raises:
        ImportError: it is not installed; the message names what installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{purpose} needs the package `{package}`, which cannot be imported ({error}): pip install "probinf[llm]"'
        ) from error
