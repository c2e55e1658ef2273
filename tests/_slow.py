"""`slow_after`: the first cases of a parametrised test run always, the rest with `make test-slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_after(count: int, cases: Iterable[Any]) -> list[Any]:
    """The cases of `pytest.mark.parametrize`, all but the first `count` marked slow.

    For cases that say the same of one piece of code in another way; each says alone what the test is for.
    """
    listed = list(cases)
    later = [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in listed]
    return [*listed[:count], *later[count:]]
