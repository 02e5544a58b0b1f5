"""The detection demo: a single-shot detector for garments in composed scenes."""
