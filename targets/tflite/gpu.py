"""Whether TensorFlow's analyzer thinks that LiteRT's GPU delegate takes a model.

It compares operators and versions with a list; it called every one of the 33 models we tried compatible. So it carries
little information, and its own words are passed on as a note.
"""

from __future__ import annotations

from pathlib import Path


def compatibility(model: Path) -> tuple[str, ...]:
    """The analyzer's verdict, line by line (``tf.lite.experimental.Analyzer``, in LiteRT's own package)."""
    from ai_edge_litert import _pywrap_analyzer_wrapper as analyzer

    printed = analyzer.ModelAnalyzer(str(model), True, True)
    said = [line.strip() for line in printed.splitlines() if "GPU" in line]
    return tuple(f"LiteRT's analyzer: {line}" for line in dict.fromkeys(said))
