"""MIL operators as plain functions on torch tensors, in one table with the definition that each follows."""

from targets.coreml.interpreter.operators.table import OPERATORS, MilOperator

__all__ = ["OPERATORS", "MilOperator"]
