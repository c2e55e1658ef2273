r"""`GenerationsBatch`: the results of several problems, or of replicates of one, that ran in one program."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from probinf.core import check_status
from probinf.llm._generations import Generations
from probinf.llm._generations_storage import load_generations, save_generations


class Evidence(NamedTuple):
    """A log evidence, in nats, with its standard error."""

    log_evidence: float
    standard_error: float


def combine_evidence(log_evidence: Float[np.ndarray, " replicates"]) -> Evidence:
    """The log of the mean of independent evidence estimates, and its standard error by the delta method.

    A NaN among them gives NaN. All -inf (evidence exactly 0) gives -inf with a NaN error.
    """
    logs = np.asarray(log_evidence, np.float64)
    top = float(np.max(logs))
    if not np.isfinite(top):
        return Evidence(top if top == -np.inf else float("nan"), float("nan"))
    relative = np.exp(logs - top)
    mean = float(np.mean(relative))
    error = float(np.std(relative, ddof=1) / np.sqrt(logs.size) / mean) if logs.size > 1 else float("nan")
    return Evidence(top + float(np.log(mean)), error)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GenerationsBatch(Sequence[Generations]):
    """The `Generations` of several problems that ran in one program: `len`, `[i]`, iteration.

    Costs in `seconds` are those of the whole batch, and every member carries them.

    Attributes:
        members: one `Generations` a problem, in the order of the prompts.
    """

    members: tuple[Generations, ...]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        """A `Generations`, or for a slice a `GenerationsBatch`."""
        found = self.members[index]
        return GenerationsBatch(found) if isinstance(index, slice) else found

    def __iter__(self) -> Iterator[Generations]:
        return iter(self.members)

    @property
    def tokens_used(self) -> int:
        """Tokens generated for all problems."""
        return sum(member.tokens_used for member in self.members)

    @property
    def scorer_tokens_used(self) -> int:
        """Tokens scorers were fed for all problems."""
        return sum(member.scorer_tokens_used for member in self.members)

    @property
    def seconds(self) -> float:
        """Wall time of all problems, the largest of the members' (which count from the start of the batch)."""
        return max((member.seconds for member in self.members), default=0.0)

    @property
    def status(self) -> int:
        """OR of the members' status bits."""
        return int(np.bitwise_or.reduce(np.asarray([member.status for member in self.members], np.uint32)))

    def evidence(self) -> Evidence:
        r"""The log of the mean of the members' evidence estimates, for replicates: the same prompt several times.

        With estimates $Z_r$ of the same evidence, independent and unbiased: $\log \bar Z$, and by the delta method the
        standard error $\mathrm{sd}(Z_r) / (\sqrt R\, \bar Z)$.

        Raises:
            ValueError: fewer than 2 members, or their prompts or methods differ.
        """
        kinds = {(member.prompt, member.method) for member in self.members}
        if len(self.members) < 2 or len(kinds) > 1:
            raise ValueError(
                f"`evidence` combines replicates, and here are {len(self.members)} members of {len(kinds)} different "
                "prompts or methods: run the same prompt several times, as `[prompt] * 16`"
            )
        return combine_evidence(np.asarray([member.log_evidence for member in self.members]))

    def check(self) -> "GenerationsBatch":
        """Returns itself if no flag is set; warns once of flags that are not fatal.

        Raises:
            InferenceError: a member has a fatal flag; `error.result` is this object.
        """
        if self.status:
            status = np.asarray([member.status for member in self.members], np.uint32)
            first = next(member for member in self.members if member.status)
            check_status(status, what=first.method, counts=first.flag_words(), result=self)
        return self

    def save(self, path: str | Path) -> Path:
        """Writes all members to one file, as `Generations.save` does.

        Raises:
            OSError: the file cannot be written; an existing one is untouched.
        """
        return save_generations(Path(path), list(self.members), kind="batch")

    @staticmethod
    def load(path: str | Path) -> "GenerationsBatch":
        """Reads a file of `save`.

        Raises:
            ValueError: as for `Generations.load`.
        """
        return GenerationsBatch(tuple(load_generations(Path(path), Generations, kind="batch")))

    def __repr__(self) -> str:
        return f"GenerationsBatch({len(self.members)} problems, {self.tokens_used} tokens)"
