"""Options that belong together, as one data class that a command takes as one parameter.

A field of the class is an option, written as Typer wants a parameter: its annotation holds the option, its
default is the option's. Typer sees them as parameters of the command.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from fedctl.cli.output import View

_Command = TypeVar("_Command", bound=Callable[..., View])


def grouped(function: _Command) -> _Command:
    """Let Typer see the fields of each data class among a command's parameters, in their place."""
    hints = get_type_hints(function, include_extras=True)
    taken = inspect.signature(function).parameters
    groups = {
        name: hints[name] for name in taken if isinstance(hints[name], type) and is_dataclass(hints[name])
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in taken.items():
        group = groups.get(name)
        parameters += _options(group) if group else [parameter.replace(annotation=hints[name])]

    @functools.wraps(function)
    def command(**values: Any) -> View:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return function(**values, **made)

    seen: Any = command
    seen.__signature__ = inspect.Signature(parameters, return_annotation=View)
    seen.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del seen.__wrapped__  # Typer would look through it at the data classes
    return seen  # type: ignore[no-any-return]


def _options(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
