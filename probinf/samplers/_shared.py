"""`SharingKernel`: a kernel of which all chains draw some random number in common, such as the length of a trajectory.

Each chain alone has the law of the kernel, since what is shared does not depend on positions. Chains that run side by
side then make the same number of steps, and none waits for another.
"""

from typing import Any, Protocol, runtime_checkable

from probinf.core._kernel import Kernel
from probinf.core._types import PRNGKey


@runtime_checkable
class SharingKernel(Kernel, Protocol):
    """A kernel with randomness that chains may share; `sample` and `warmup` have them do so.

    Law: `step` of `shared(key)`, over a random key, has the law of `step`.
    """

    def shared(self, key: PRNGKey) -> Any:
        """The kernel with what is shared drawn from `key`."""
        ...
