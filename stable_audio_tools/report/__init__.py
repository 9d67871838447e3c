"""The run's own page: `<run_dir>/index.html`, one file that opens from disk, without a network and on a phone."""

from stable_audio_tools.report.build import build_report

__all__ = ["build_report"]
