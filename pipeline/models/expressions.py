"""Sizes and guards of an exported program, read as arithmetic: torch itself evaluates their text as Python code.

Both are parsed by Python's parser and built from a whitelist, so no text of a file is ever evaluated.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from typing import Any

import sympy
from sympy.logic.boolalg import Boolean
from torch.utils._sympy import functions as sizes

MAX_NODES = 128
"""Parts of one expression; nine strided layers without padding, of dynamic height and width, give 44."""

MAX_INTEGER = 2**64
MAX_EXPONENT = 8
MAX_COMPARED = 4
"""Arguments of a maximum or minimum, which SymPy compares with each other."""

_ASSUMPTIONS = frozenset(("integer", "positive", "nonnegative", "real", "finite", "nonzero", "rational", "zero"))
SYMBOL = re.compile(r"[a-z]{1,4}\d{1,5}", re.ASCII)
KEY = re.compile(r"[\w .:/+@-]{0,256}")
"""Names of a user's modules and of the keys of their inputs: none of these characters ends a quoted string."""

_POWERS = {"Pow": sympy.Pow, "PowByNatural": sizes.PowByNatural, "FloatPow": sizes.FloatPow}
_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(sizes, name)
        for name in (
            *("FloorDiv", "PythonMod", "Mod", "CeilToInt", "FloorToInt", "CeilDiv"),
            *("FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat"),
            "Identity",
        )
    },
    **{
        name: getattr(sympy, name)
        for name in (
            *("Add", "Mul", "Max", "Min", "Abs", "Equality", "Unequality"),
            *("GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"),
        )
    },
}
_OF_CONDITIONS = {"And": sympy.And, "Or": sympy.Or, "Not": sympy.Not}
_CONDITIONS = {"true": sympy.true, "false": sympy.false}


class UnsafeProgramError(Exception):
    """A program holds something that could run code, or that nothing here has a use for; the message names it."""


@functools.lru_cache
def parse_expression(text: str) -> sympy.Basic:
    """The expression that SymPy printed with ``srepr``: integers, symbols, and torch's functions of sizes.

    Raises:
        UnsafeProgramError: It holds anything else, or is too large.

    >>> parse_expression("Add(Symbol('s0', integer=True), Integer(3))")
    s0 + 3
    >>> parse_expression("__import__('os').system('id')")
    Traceback (most recent call last):
    pipeline.models.expressions.UnsafeProgramError: the size "__import__('os').system('id')", which is not arithmetic
    """
    try:
        return _build(_parsed(text))
    except Exception:  # SymPy's own classes are many
        raise UnsafeProgramError(f"the size {_shown(text)}, which is not arithmetic") from None


def checked_guard(text: str) -> str:
    """A condition on the sizes of the inputs, such as ``L['x'].size()[0] % 2 == 0``, in Python's own spelling.

    Raises:
        UnsafeProgramError: It does anything else than to compare sizes.

    >>> checked_guard("(L['x'].size()[0] % 2) == 0")
    "L['x'].size()[0] % 2 == 0"
    """
    try:
        tree = _parsed(text)
        _check_guard(tree)
    except (ValueError, SyntaxError, RecursionError):
        raise UnsafeProgramError(f"the guard {_shown(text)}, which is not a comparison of sizes") from None
    return ast.unparse(tree)


def _parsed(text: str) -> ast.expr:
    if len(text) > 128 * MAX_NODES:
        raise ValueError("too long")
    return ast.parse(text, mode="eval").body


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _build(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _CONDITIONS:
            return _CONDITIONS[name]
        case ast.Call(func=ast.Name(id="Integer" | "Rational"), args=arguments, keywords=[]):
            return sympy.Rational(*map(_integer, arguments))
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str() as digits)]):
            return _bounded(sympy.Float(float(digits), precision=53))
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)], keywords=keywords):
            return _symbol(name, keywords)
        case ast.Call(func=ast.Name(id=name), args=[base, exponent], keywords=[]) if name in _POWERS:
            return _bounded(_POWERS[name](_number(base), _exponent(exponent)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _OF_CONDITIONS:
            return _bounded(_OF_CONDITIONS[name](*map(_condition, arguments)))
        case ast.Call(func=ast.Name(id="Where"), args=[condition, left, right], keywords=[]):
            return _bounded(sizes.Where(_condition(condition), _number(left), _number(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _OF_NUMBERS:
            if name in ("Max", "Min") and len(arguments) > MAX_COMPARED:
                raise ValueError("too many parts")
            return _bounded(_OF_NUMBERS[name](*map(_number, arguments)))
    raise ValueError(ast.dump(node))


def _integer(node: ast.expr) -> int:
    value = ast.literal_eval(node)
    if type(value) is not int or abs(value) > MAX_INTEGER:
        raise ValueError(value)
    return value


def _number(node: ast.expr) -> sympy.Expr:
    value = _build(node)
    if not isinstance(value, sympy.Expr):
        raise TypeError(value)
    return value


def _condition(node: ast.expr) -> Boolean:
    value = _build(node)
    if not isinstance(value, Boolean):
        raise TypeError(value)
    return value


def _exponent(node: ast.expr) -> sympy.Expr:
    value = _number(node)
    if not isinstance(value, sympy.Rational | sympy.Float) or abs(value) > MAX_EXPONENT:
        raise ValueError(value)
    return value


def _symbol(name: str, keywords: list[ast.keyword]) -> sympy.Symbol:
    if not SYMBOL.fullmatch(name):
        raise ValueError(name)
    assumptions = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
    if not assumptions.keys() <= _ASSUMPTIONS or not all(isinstance(value, bool) for value in assumptions.values()):
        raise ValueError(assumptions)
    return sympy.Symbol(name, **assumptions)


def _bounded(expression: Any) -> Any:
    """The expression, if neither it nor a number in it is too large: each step of building is then cheap."""
    if isinstance(expression, sympy.Max | sympy.Min) and len(expression.args) > MAX_COMPARED:
        raise ValueError("too many parts")
    for count, part in enumerate(sympy.preorder_traversal(expression)):
        if count >= MAX_NODES:
            raise ValueError("too many parts")
        if isinstance(part, sympy.Rational):
            is_small = max(abs(part.p), part.q) <= MAX_INTEGER
        else:
            is_small = not isinstance(part, sympy.Number) or (part.is_finite and abs(part) <= MAX_INTEGER)
        if not is_small:
            raise ValueError(part)
    return expression


_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_BUILTINS = {"max", "min", "abs", "int", "float", "round"}
_QUALIFIED = {
    "math": {"floor", "ceil", "trunc", "sqrt", "isnan", "inf"},
    "torch": {"sym_max", "sym_min", "sym_float", "sym_int", "sym_not", "sym_ite", "sym_sqrt"},
}


def _check_guard(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=bool() | int() | float()):
            return
        case ast.BoolOp(values=parts):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
            parts = [part]
        case ast.Compare(left=left, ops=operators, comparators=others) if all(
            isinstance(operator, _COMPARISONS) for operator in operators
        ):
            parts = [left, *others]
        case ast.BinOp(left=left, op=operator, right=right) if isinstance(operator, _ARITHMETIC):
            parts = [left, right]
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as exponent)) if (
            0 <= exponent <= MAX_EXPONENT
        ):
            parts = [left]
        case ast.Call(func=function, args=parts, keywords=[]) if _is_function(function):
            pass
        case ast.Attribute() if _is_function(node):
            return
        case _ if _is_value(node):
            return
        case _:
            raise ValueError(ast.dump(node))
    for part in parts:
        _check_guard(part)


def _is_function(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name):
            return name in _BUILTINS
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return name in _QUALIFIED.get(module, ())
    return False


def _is_value(node: ast.expr) -> bool:
    """An input, ``L['x'][0]``; its sizes, ``L['x'].size()``; or one of them, ``L['x'].size()[0]``."""
    match node:
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=place, attr="size" | "stride"), args=[], keywords=[]),
            slice=ast.Constant(value=int()),
        ):
            return _is_input(place)
        case ast.Call(func=ast.Attribute(value=place, attr="storage_offset"), args=[], keywords=[]):
            return _is_input(place)
    return _is_input(node)


def _is_input(node: ast.expr) -> bool:
    match node:
        case ast.Name(id="L"):
            return True
        case ast.Subscript(value=place, slice=ast.Constant(value=str() as key)):
            return KEY.fullmatch(key) is not None and _is_input(place)
        case ast.Subscript(value=place, slice=ast.Constant(value=int())):
            return _is_input(place)
    return False
