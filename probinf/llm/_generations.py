r"""`Generations`: what every method of this room returns, as NumPy arrays on the host.

A run of N particles over T steps targets $\gamma_T(x) = p(x \mid c) \prod_t G_t$ (Puri et al. 2025, "A probabilistic
inference approach to inference-time scaling of LLMs using particle-based Monte Carlo methods"). With normalised
weights $W_i \propto e^{w_i}$ the answer posterior is $P(a) = \sum_{i: a_i = a} W_i$.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from probinf.core import PRNGKey, Status, check_status, is_fatal
from probinf.llm._genealogy import plot_genealogy
from probinf.llm._generations_storage import load_generations, save_generations
from probinf.llm._generations_table import summarise
from probinf.llm._selectors import Selection, answers_of, normalise, probabilities, select

Extract = Callable[[str], Hashable | None]


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Generations:
    """N generated texts with their weights, their history and their cost. `make_generations` builds one.

    Particles that a step did not touch (finished before it) have NaN scores there and keep their boundary.

    Attributes:
        prompt: the prompt; decoded if it was given as ids.
        prompt_ids: its token ids, as the model saw them.
        texts: the generated texts, without the prompt.
        token_ids: their token ids, one int32 array a text.
        finished: whether a text ended by itself (a stop id or string), not at a bound on steps or tokens.
        log_prob: log of the base law of each text's tokens, in nats.
        log_weights: unnormalised final log weights; -inf is weight zero.
        scores: score of the prefix after each step, along each text's own lineage; NaN where there is none.
        boundaries: number of generated tokens after each step, along each text's own lineage.
        num_steps: steps of each text.
        ancestors: row t tells from which slot each slot came on the way to step t + 1 (0-based).
        ess: effective sample size after each step's weights.
        resampled: whether the population was resampled on the way to each step; False at step 0.
        log_weight_path: log weights after each step, by slot.
        finished_path: whether each slot was finished after each step.
        log_evidence: log of the estimated mass of the target, in nats; NaN where the method estimates none.
        log_evidence_se: standard error of `log_evidence`; NaN where there is no estimate, `standard_error_note` tells
            why.
        standard_error_note: empty, or why `log_evidence_se` is NaN.
        tokens_used: tokens the model generated, those of dropped particles among them; prompts not counted.
        scorer_tokens_used: tokens scorers were fed, their prompts among them.
        seconds: wall time of the run, with whatever had to be compiled.
        status: OR of `core.Status` bits.
        num_failed: how many log weights were NaN and counted as zero: a score that failed (exception, None, NaN,
            timeout), or a model that said NaN.
        first_bad_step: first step (0-based) at which a status bit was set, -1 if none.
        causes: what made scores fail, and how often.
        method: name of the method, such as `"particle_filter"`.
        scheme: name of the resampling scheme; empty if the method has none.
        settings: what the method was told: temperature, step, names of models; plain values.
        records: further arrays of the method, by name.
    """

    prompt: str
    prompt_ids: Int[np.ndarray, " prompt"]
    texts: tuple[str, ...]
    token_ids: tuple[np.ndarray, ...]
    finished: Bool[np.ndarray, " n"]
    log_prob: Float[np.ndarray, " n"]
    log_weights: Float[np.ndarray, " n"]
    scores: Float[np.ndarray, "n t"]
    boundaries: Int[np.ndarray, "n t"]
    num_steps: Int[np.ndarray, " n"]
    ancestors: Int[np.ndarray, "t_less_1 slots"]
    ess: Float[np.ndarray, " steps"]
    resampled: Bool[np.ndarray, " steps"]
    log_weight_path: Float[np.ndarray, "steps slots"]
    finished_path: Bool[np.ndarray, "steps slots"]
    log_evidence: float
    log_evidence_se: float
    standard_error_note: str
    tokens_used: int
    scorer_tokens_used: int
    seconds: float
    status: int
    method: str
    scheme: str = ""
    num_failed: int = 0
    first_bad_step: int = -1
    causes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    records: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def num_particles(self) -> int:
        """N, the number of texts."""
        return len(self.texts)

    @property
    def temperature(self) -> float:
        """The temperature of the base law; NaN if the method has no such setting."""
        return float(self.settings.get("temperature", np.nan))

    @property
    def weights(self) -> Float[np.ndarray, " n"]:
        """Weights that sum to 1, or all 0 when every weight is zero; float64."""
        return normalise(self.log_weights)

    def posterior(self, extract: Extract | None = None, *, unfinished: bool = False) -> dict[Hashable | None, float]:
        r"""The probability of every answer, $P(a) = \sum_{i: a_i = a} W_i$, the most probable first.

        Texts without an answer stand together under `None`: those for which `extract` returns None, and, unless
        `unfinished` is set, those that were cut off at a bound. Equal probabilities keep the order of the particles.

        Args:
            extract: text -> answer, hashable, or None if there is no answer; None for the whole text.
            unfinished: also asks `extract` about texts that were cut off.

        Returns:
            Answer -> probability; they sum to 1. Empty when every weight is zero.

        Raises:
            TypeError: an answer cannot be hashed.
            InferenceError: the run has a fatal flag, so that its weights mean nothing.
        """
        self._refuse_fatal()
        return probabilities(self._answers(extract, unfinished), self.weights)

    def select(
        self,
        rule: str = "argmax",
        *,
        extract: Extract | None = None,
        key: PRNGKey | None = None,
        aggregate: str | None = None,
        unfinished: bool = False,
    ) -> Selection:
        """Chooses one text, or one answer and the text that stands for it; see `llm.select` for rules and ties.

        Args:
            rule: `"argmax"` (best score), `"sample"` (by weight), `"majority"` (most frequent answer), or
                `"weighted"` (answer of the largest weight).
            extract: as for `posterior`.
            key: PRNG key, for `"sample"` only.
            aggregate: how the scores of a text's steps become one number: `"last"`, `"min"`, `"prod"` or `"mean"`.
                For `"argmax"` None means `"last"`; for `"weighted"` None means the particle weights.
            unfinished: as for `posterior`.

        Returns:
            A `Selection`: index, text and answer, with the value that won.

        Raises:
            ValueError: an unknown rule or aggregate, a missing or needless `key`, no score to go by, or every weight
                is zero.
            TypeError: an answer cannot be hashed.
            InferenceError: the run has a fatal flag.
        """
        self._refuse_fatal()
        answers = self._answers(extract, unfinished)
        return select(
            rule,
            texts=self.texts,
            answers=answers,
            log_weights=self.log_weights,
            scores=self.scores,
            finished=self.finished | unfinished,
            key=key,
            aggregate=aggregate,
        )

    def with_status(self, bits: int) -> "Generations":
        """A copy with further status bits set."""
        return dataclasses.replace(self, status=self.status | int(bits))

    def check(self) -> "Generations":
        """Returns itself if no flag is set; warns once of flags that are not fatal.

        Raises:
            InferenceError: a fatal flag is set; `error.result` is this object.
        """
        check_status(np.uint32(self.status), what=self.method, counts=self.flag_words(), result=self)
        return self

    def summary(self) -> str:
        """A short table: evidence with its standard error, ESS, resampling, cost, best text, and flags with causes."""
        return summarise(self)

    def plot(self, extract: Extract | None = None, *, width: float = 10.0) -> Any:
        """Draws the genealogy: who descends from whom, which lineages survive, final weights, and the ESS below.

        Args:
            extract: as for `posterior`; if given, final weights carry their answers as labels.
            width: of the figure, in inches.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            TypeError: an answer cannot be hashed.
        """
        return plot_genealogy(self, None if extract is None else self._answers(extract, False), width=width)

    def save(self, path: str | Path) -> Path:
        """Writes everything to one file, atomically: an npz archive (no pickle) with a checksum and a format number.

        Args:
            path: file name, usually ending in `.npz`; an existing file is replaced once the new one is complete.

        Returns:
            The path.

        Raises:
            OSError: the file cannot be written; an existing one is untouched.
        """
        return save_generations(Path(path), [self], kind="generations")

    @staticmethod
    def load(path: str | Path) -> "Generations":
        """Reads a file of `save`.

        Raises:
            ValueError: the file is missing, cut, changed, of another kind or of another format; the message says what
                to do.
        """
        (found,) = load_generations(Path(path), Generations, kind="generations")
        return found

    def flag_words(self) -> dict[str, str]:
        """Words for the flags by their names: at which step, what failed how often, and where the texts stood."""
        where = f"first in step {self.first_bad_step + 1}" if self.first_bad_step >= 0 else ""
        counts = {bit.name: where for bit in Status if bit.name and where}
        if self.num_failed:
            causes = "; ".join(f"{cause} ({times} times)" for cause, times in self.causes.items())
            words = [f"{self.num_failed} log weights were NaN", where, causes]
            counts["NAN_LOG_WEIGHT"] = ", ".join(word for word in words if word)
        if self.texts and not np.any(self.log_weights > -np.inf):
            longest = max(self.texts, key=len)
            words = [where, f"the longest text so far is {longest[-80:]!r}"]
            counts["ALL_WEIGHTS_ZERO"] = ", ".join(word for word in words if word)
        return counts

    def __repr__(self) -> str:
        flags = "" if self.status == 0 else "; flagged, see .summary()"
        return (
            f"Generations({self.method}: {self.num_particles} texts, {int(np.sum(self.finished))} finished; "
            f"log evidence {self.log_evidence:.6g}; {self.tokens_used} tokens{flags})"
        )

    def _answers(self, extract: Extract | None, unfinished: bool) -> list[Hashable | None]:
        return answers_of(self.texts, extract, self.finished | unfinished)

    def _refuse_fatal(self) -> None:
        if is_fatal(np.uint32(self.status)):
            self.check()
