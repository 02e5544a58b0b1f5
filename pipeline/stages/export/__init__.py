"""Export: write the optimized program and the FP32 original in the format of every target, and check each file."""

from pipeline.stages.export.stage import export, export_file

__all__ = ["export", "export_file"]
