r"""The chains task: mod-10 arithmetic, one operation a step, small enough that everyone can run it.

A problem is a number and T = 12 operations, `7+5*3-8...>`; a solution is the running result after each of them,
$r_t = r_{t-1} \mathbin{\mathrm{op}_t} y_t \bmod 10$, written `2;6;8;...;4`. Factors are 1, 3, 7 or 9, the units of
arithmetic mod 10: every operation is one-to-one, so an error is never forgotten. A step is one result and its end:
`;` after all results but the last, the end-of-text token after the last. So a solution is 2 T tokens in T steps, with
`llm.delimiter(";")`, and nothing is left to say once the last result stands.

Three models come with the package (`llm.load`), all made by `probinf run train-chains`: "chains", a weak proposer that
is right in most steps and in few solutions; "chains-strong", a judge that makes no mistakes to speak of; and
"chains-reward", whose second head gives the logit of P(all right so far) at both tokens of a step. The first head of
the latter is no language model: where a result stands and where it is to be written it says what is right.

The vocabulary is 17 single characters; ids 0-9 are the digits. The tokenizer puts the begin-of-text token in front.
The exact verifier makes the task a testbed: the truth of every step is known, whatever a model or a reward says.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from probinf.core import PRNGKey, whole_number

NUM_STEPS = 12
PLUS, MINUS, TIMES, ASK, END_STEP, BOS, EOS = range(10, 17)
VOCABULARY = (*"0123456789+-*>;", "<bos>", "<eos>")  # the id of a token is its place
FACTORS = (1, 3, 7, 9)
PROMPT_LENGTH = 2 * NUM_STEPS + 3  # begin, x_0, T times (op, y), `>`
SOLUTION_LENGTH = 2 * NUM_STEPS  # T times (result, `;`), the last `;` being the end of the text

_PROMPT = re.compile(r"([0-9])((?:[-+*][0-9])+)>")
_OPERATIONS = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y}


class Problems(NamedTuple):
    """Problems and what they come to.

    Attributes:
        prompts: texts `x0 op y op y ... >`, without the begin-of-text token, which the tokenizer adds.
        answers: the last result of each, one digit.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]


def problems(key: PRNGKey, count: int, *, num_steps: int = NUM_STEPS) -> Problems:
    """Draws problems: digits and operations uniform, factors uniform on 1, 3, 7 and 9.

    Problem i depends on the key and on i alone.

    Args:
        key: PRNG key.
        count: how many.
        num_steps: operations of each; the shipped models know 12.

    Returns:
        Prompts and the last results, which unpack as a pair.

    Raises:
        ValueError: `count` is negative or `num_steps` is under 1.
    """
    count, num_steps = whole_number("count", count), whole_number("num_steps", num_steps, 1)
    tokens = np.asarray(_problem_tokens(key, count, num_steps))
    prompts = tuple(_text(row[1:]) for row in tokens)
    return Problems(prompts, tuple(solve(prompt)[-1] for prompt in prompts))


def solve(prompt: str) -> str:
    """The solution of a problem, all its results: `solve("7+5*3>")` is `"2;6"`.

    Raises:
        ValueError: `prompt` is not a problem.
    """
    start, operations = _parse(prompt)
    found, value = [], start
    for operation, operand in operations:
        value = _OPERATIONS[operation](value, operand) % 10
        found.append(str(value))
    return ";".join(found)


def verify(prompt: str, text: str) -> Bool[np.ndarray, " steps"]:
    """Judges each step of a solution by the result that was written before it: one flag for each step of `text`.

    A step is right where its result follows from the result written before it, be that right or wrong. The prefix up
    to a step is right where all flags so far are: `numpy.logical_and.accumulate(verify(prompt, text))`. A step that
    is not a single digit is wrong, and so are the step after it and each step beyond the last operation.

    Args:
        prompt: the problem, as `problems` writes it.
        text: a solution or the beginning of one; `;` at its end starts no further step. Empty text has no steps.

    Raises:
        ValueError: `prompt` is not a problem.
    """
    value, operations = _parse(prompt)
    known: int | None = value
    flags = []
    for index, step in enumerate(_steps(text)):
        written = int(step) if re.fullmatch("[0-9]", step) else None
        if index >= len(operations) or known is None or written is None:
            flags.append(False)
        else:
            operation, operand = operations[index]
            flags.append(written == _OPERATIONS[operation](known, operand) % 10)
        known = written
    return np.asarray(flags, bool)


def correct(prompt: str, text: str) -> bool:
    """Whether `text` is the whole solution: every step right, as many steps as operations.

    Raises:
        ValueError: `prompt` is not a problem.
    """
    return _steps(text) == _steps(solve(prompt))


def extract(text: str) -> str | None:
    """The answer that a solution comes to, its last result; None where the last step is not a single digit."""
    steps = _steps(text)
    return steps[-1] if steps and re.fullmatch("[0-9]", steps[-1]) else None


def problem_tokens(key: PRNGKey, count: int, *, num_steps: int = NUM_STEPS) -> Int[Array, "count length"]:
    """As `problems`, in token ids with the begin-of-text token: `[count, 2 num_steps + 3]`, int32. May be traced.

    Raises:
        ValueError: `num_steps` is under 1.
    """
    return _problem_tokens(key, count, whole_number("num_steps", num_steps, 1))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _problem_tokens(key: PRNGKey, count: int, num_steps: int) -> Int[Array, "count length"]:
    digit_key, operation_key, factor_key = jax.random.split(key, 3)
    digits = jax.random.randint(digit_key, (count, num_steps + 1), 0, 10)
    operations = jax.random.randint(operation_key, (count, num_steps), PLUS, TIMES + 1)
    factors = jnp.asarray(FACTORS)[jax.random.randint(factor_key, (count, num_steps), 0, len(FACTORS))]
    operands = jnp.where(operations == TIMES, factors, digits[:, 1:])
    pairs = jnp.stack([operations, operands], axis=-1).reshape(count, 2 * num_steps)
    begin, ask = (jnp.full((count, 1), token, jnp.int32) for token in (BOS, ASK))
    return jnp.concatenate([begin, digits[:, :1], pairs, ask], axis=1)


def results(problem: Int[Array, "*b length"]) -> Int[Array, "*b steps"]:
    """The right results of problems in token ids, as `problem_tokens` draws them. May be traced."""
    operations, operands = problem[..., 2:-1:2], problem[..., 3:-1:2]

    def step(value: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        value = _apply(value, *item)
        return value, value

    items = (jnp.moveaxis(operations, -1, 0), jnp.moveaxis(operands, -1, 0))
    _, found = jax.lax.scan(step, problem[..., 1], items)
    return jnp.moveaxis(found, 0, -1)


def steps_correct(problem: Int[Array, "*b length"], written: Int[Array, "*b steps"]) -> Bool[Array, "*b steps"]:
    """`verify` for token ids: whether each written result follows from the one written before it. May be traced."""
    return written == next_results(problem, written)


def next_results(problem: Int[Array, "*b length"], written: Int[Array, "*b steps"]) -> Int[Array, "*b steps"]:
    """The right result of each step given the result that was written before it. May be traced."""
    before = jnp.concatenate([problem[..., 1:2], written[..., :-1]], axis=-1)
    return _apply(before, problem[..., 2:-1:2], problem[..., 3:-1:2])


def solution_tokens(written: Int[Array, "*b steps"]) -> Int[Array, "*b length"]:
    """Results as the tokens of a solution, `;` between them and the end-of-text token last. May be traced."""
    num_steps = written.shape[-1]
    ends = jnp.where(jnp.arange(num_steps) == num_steps - 1, EOS, END_STEP).astype(written.dtype)
    pairs = jnp.stack([written, jnp.broadcast_to(ends, written.shape)], axis=-1)
    return pairs.reshape(*written.shape[:-1], 2 * num_steps)


def _apply(value: Array, operation: Array, operand: Array) -> Array:
    """One operation mod 10 on token ids."""
    sign = jnp.where(operation == MINUS, -1, 1)
    return jnp.where(operation == TIMES, value * operand, value + sign * operand) % 10


def _text(tokens: Sequence[int] | np.ndarray) -> str:
    return "".join(VOCABULARY[token] for token in tokens)


def _parse(prompt: str) -> tuple[int, list[tuple[str, int]]]:
    found = _PROMPT.fullmatch(prompt)
    if found is None:
        raise ValueError(
            f"`prompt` must be a digit, then operations `+y`, `-y` or `*y` with one digit each, then `>`, as in "
            f"'7+5*3-8>'; got {prompt!r}"
        )
    start, rest = found.groups()
    return int(start), [(rest[i], int(rest[i + 1])) for i in range(0, len(rest), 2)]


def _steps(text: str) -> list[str]:
    """The steps of a solution; the end of a step at the end of the text starts no further one."""
    body = text.removesuffix(VOCABULARY[EOS])
    return body.removesuffix(";").split(";") if body else []
