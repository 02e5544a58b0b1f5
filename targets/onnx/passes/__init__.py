"""Graph rewrites. One pass per file: its docstring states the rule and why the result is the same program."""
