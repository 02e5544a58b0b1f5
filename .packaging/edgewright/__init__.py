"""edgewright: from a trained FP32 PyTorch model to small, fast, proven INT8 models.

The public names are those of ``pipeline/__init__.pyi``, under a name that clashes with no other package. In the wheel
``pipeline`` and ``targets`` stand below this package.
"""

try:
    from pipeline import __all__ as __all__
    from pipeline import __dir__ as __dir__
    from pipeline import __getattr__ as __getattr__
except ImportError as error:
    raise ImportError(
        f"edgewright runs from its source folder, and another package named 'pipeline' hides its own: {error.path}\n"
        f"  fix: install the wheel, or start from another folder",
        name=__name__,
    ) from error
