"""Pages that open from disk, without a network and on a phone: `<run_dir>/index.html` of one run, and comparisons of several."""

from stable_audio_tools.report.build import build_report
from stable_audio_tools.report.compare import build_comparison

__all__ = ["build_comparison", "build_report"]
