"""The command line: `probinf list`, `run`, `report`, `generate`, `check`, `doctor`."""

from probinf.cli._app import app as app
from probinf.cli._app import main as main
