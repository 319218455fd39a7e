"""Pictures and pages: cells as SVG, DOT and Mermaid, and the report of a run."""

from pyfast_nas.viz.graph import cell_svg
from pyfast_nas.viz.graph_text import to_dot, to_mermaid
from pyfast_nas.viz.report import write_report

__all__ = ["cell_svg", "to_dot", "to_mermaid", "write_report"]
