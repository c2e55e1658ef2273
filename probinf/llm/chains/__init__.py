"""The chains task: problems of mod-10 arithmetic, their solutions, and an exact verifier of every step."""

from probinf.llm._chains import Problems as Problems
from probinf.llm._chains import correct as correct
from probinf.llm._chains import extract as extract
from probinf.llm._chains import problems as problems
from probinf.llm._chains import solve as solve
from probinf.llm._chains import verify as verify
