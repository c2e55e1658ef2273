"""Evidence and round trips from made-up records; those of runs with known answers are in `test_parallel_tempering`."""

import math

import numpy as np
import pytest

from probinf.samplers._tempering_records import round_trips, tempering_evidence


def test_evidence_of_impossible_and_invalid_draws() -> None:
    logs = np.zeros((40, 3))
    logs[::2, 1], logs[::4, 2] = -np.inf, np.nan
    found = tempering_evidence(logs, [1.0, 0.5, 0.0])
    assert found.log_evidence == pytest.approx(math.log(0.5) + math.log(0.75))
    assert found.lower == -np.inf
    dead = tempering_evidence(np.full((40, 3), -np.inf), [1.0, 0.5, 0.0])
    assert dead.log_evidence == -np.inf
    with pytest.raises(ValueError, match="at least 20"):
        tempering_evidence(np.zeros((19, 3)), [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="shape"):
        tempering_evidence(np.zeros((40, 3)), [1.0, 0.5])


def test_round_trips_are_counted_by_hand() -> None:
    # Machine 0: cold, middle, hot, middle, cold: one trip. Machine 2 goes hot, ..., cold, ..., hot: none.
    place = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1], [0, 1, 2]])
    machines = np.argsort(place, axis=-1)
    assert round_trips(machines) == 1
    assert round_trips(machines[:4]) == 0
    # Twice in a row: two trips of machine 0, and machines 1 and 2 are cold, hot and cold again.
    assert round_trips(np.concatenate([machines, machines])) == 4
    assert round_trips(np.stack([machines, machines[::-1]])).shape == (2,)
    with pytest.raises(ValueError, match="draws"):
        round_trips(np.zeros(3))
