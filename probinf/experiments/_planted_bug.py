"""`PlantedBug`: a fault of one line in the library's own source."""

from typing import NamedTuple


class PlantedBug(NamedTuple):
    """A fault.

    Attributes:
        fault: what is wrong, in words.
        module: the module, below `probinf`.
        old: the text that is replaced; it occurs once.
        new: what is written instead.
        certificate: the name of the certificate that is run.
        survives: why no check of laws can see it; empty where one should.
    """

    fault: str
    module: str
    old: str
    new: str
    certificate: str
    survives: str = ""
