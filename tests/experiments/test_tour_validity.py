"""The tour's section on validity: what its claim says of sound, broken and blind checks."""

from probinf.experiments._tour_validity import claims

SOUND = {"num_checks": 11, "failed": [], "false_alarm_rate": 1e-6}
BROKEN = {"num_checks": 11, "failed": ["balance"], "false_alarm_rate": 1e-6}


def judged(sound, broken):
    return [claim.holds for claim in claims({"sound": sound, "broken": broken})]


def test_claim():
    assert judged(SOUND, BROKEN) == [True]
    assert judged(SOUND, SOUND) == [False]
    assert judged(BROKEN, BROKEN) == [False]
