"""Experiments: one module a paper, each with a configuration, a run and claims; the registry and the report writer."""

from probinf.experiments._claims import Claim as Claim
from probinf.experiments._claims import Comparison as Comparison
from probinf.experiments._claims import below as below
from probinf.experiments._claims import compare as compare
from probinf.experiments._claims import near as near
from probinf.experiments._claims import normal_bound as normal_bound
from probinf.experiments._claims import student_bound as student_bound
from probinf.experiments._data import Dataset as Dataset
from probinf.experiments._data import load as load
from probinf.experiments._environment import environment as environment
from probinf.experiments._figures import canvas as canvas
from probinf.experiments._page import Figure as Figure
from probinf.experiments._page import Part as Part
from probinf.experiments._page import Section as Section
from probinf.experiments._page import Table as Table
from probinf.experiments._registry import EXPERIMENTS as EXPERIMENTS
from probinf.experiments._registry import Experiment as Experiment
from probinf.experiments._registry import Outcome as Outcome
from probinf.experiments._registry import find as find
from probinf.experiments._registry import run_experiment as run_experiment
from probinf.experiments._report import collect_reports as collect_reports
from probinf.experiments._report import write_report as write_report
from probinf.experiments._workspace import FolderError as FolderError
from probinf.experiments._workspace import Workspace as Workspace
from probinf.experiments._workspace import open_workspace as open_workspace
