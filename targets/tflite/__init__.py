"""The TFLite target: LiteRT on phones and microcontrollers. Only this package imports LiteRT, TensorFlow and Vela."""

from targets.tflite.target import TfliteTarget

__all__ = ["TfliteTarget"]
