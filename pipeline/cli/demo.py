"""``edgewright demo``: the whole pipeline on what is embedded."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.run import Out, StoreFolder, apply_recipe


def demo(out: Out = None, store: StoreFolder = None) -> None:
    """Run the whole pipeline on the embedded checkpoint: Fashion-MNIST, a residual CNN, three targets."""
    import calibration_data.fashion_mnist

    apply_recipe(Path(calibration_data.fashion_mnist.__file__).parent / "recipe.yaml", out, store)
