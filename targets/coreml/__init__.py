"""The Core ML target: ML Programs for iPhone, iPad and Mac. Only this package imports coremltools."""

from targets.coreml.target import CoremlTarget

__all__ = ["CoremlTarget"]
