"""Execution: a recipe is checked, applied stage by stage, stored, and resumed."""
