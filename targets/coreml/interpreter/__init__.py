"""A reference interpreter for saved Core ML packages: accuracy and parity without a Mac.

It reads the ``.mlpackage`` from disk, protobuf and weight blobs, and computes every operator by its published
definition. Its speed says nothing about any device.
"""

from targets.coreml.interpreter.execute import Interpreter

__all__ = ["Interpreter"]
