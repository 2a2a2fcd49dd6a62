"""Parameters: how a field of a configuration becomes an option, is checked, and gets its text.

A parameter is a field made by `option`. It becomes an option of every sweep's command line, an MLflow parameter and,
unless it has its neutral value, a part of stage keys and study keys. So a new parameter whose default trains as before
changes no key. None means that a parameter is not set, and is shown as `auto`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

AUTO = "auto"
"""The text for None: on the command line, in MLflow and on the screen."""


class ConfigError(ValueError):
    """A configuration that cannot be trained; the message is one line with the value and the valid ones."""


class CombinationError(ConfigError):
    """Values that are valid one by one but not together, such as a patch size and a number of heads."""


def choices(literal: Any) -> tuple[str, ...]:
    """The values of a Literal type."""
    return typing.get_args(literal)


def require(condition: bool, name: str, value: Any, rule: str) -> None:
    """Raises ConfigError with the name, the value and the rule if the condition does not hold."""
    if not condition:
        raise ConfigError(f"{name} {value!r} {rule}")


def require_choice(config: Any, name: str, literal: Any) -> None:
    """Raises ConfigError if a field is none of the values of a Literal type."""
    value, valid = getattr(config, name), choices(literal)
    require(value in valid, name, value, f"is not valid: one of {', '.join(valid)}")


def require_at_least_1_or_auto(name: str, value: int | None) -> None:
    """Raises ConfigError if a value is neither None nor positive."""
    require(value is None or value >= 1, name, value, f"must be at least 1, or {AUTO}")


def require_divisor(name: str, value: int, image_size: int, noun: str = "image size") -> None:
    """Raises ConfigError if a value does not divide the image size, which the noun names."""
    divisors = [size for size in range(1, image_size + 1) if image_size % size == 0]
    valid = ", ".join(map(str, divisors))
    others = f"; or an image size of {multiples_near(value, image_size)}" if is_indivisible(image_size) else ""
    require(value in divisors, name, value, f"must divide the {noun} {image_size}: one of {valid}{others}")


def is_indivisible(image_size: int) -> bool:
    """True if an image can only be cut into single pixels: its size is prime, or 1."""
    return all(image_size % size for size in range(2, math.isqrt(image_size) + 1))


def multiples_near(patch_size: int, image_size: int) -> str:
    """The image sizes nearest to a given one that a patch size divides."""
    below = image_size // patch_size * patch_size
    return f"{below} or {below + patch_size}" if below else str(patch_size)


def option(
    help_text: str, default: Any, *, neutral: Any = dataclasses.MISSING, unset: Any = None, by_machine: bool = False
) -> Any:
    """A field of a configuration.

    Args:
        help_text: the line that the command line shows.
        default: None if the program may choose the value: `auto`.
        neutral: the value that keys leave out, the first default of the field. It is given once the default changes:
            without it, trainings at the old default and at the new one would have the same key.
        unset: the number that earlier versions used in place of None; keys and stores hold it.
        by_machine: the command line takes `auto` for it too, which a machine replaces by a value when a plan is made.
    """
    neutral = default if neutral is dataclasses.MISSING else neutral
    return field(
        default=default, metadata={"help": help_text, "neutral": neutral, "unset": unset, "by_machine": by_machine}
    )


def require_known(flat: Mapping[str, Any], parameters: Mapping[str, "Parameter"]) -> None:
    """Raises ConfigError for the first name that is not a parameter."""
    unknown = sorted(set(flat) - set(parameters))
    if unknown:
        raise ConfigError(f"unknown parameter {unknown[0]!r}; valid are {', '.join(parameters)}")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A flat parameter.

    Attributes:
        type: the type of its values, without None.
        default: None if the program may choose the value.
        help: the line that the command line shows.
        part: its part of the configuration, which is a group of options on the command line.
        neutral: the value that keys leave out; see `option`.
        unset: the number that earlier versions used in place of None.
        by_machine: the command line takes `auto` for it too; see `option`.
    """

    name: str
    type: Any
    default: Any
    help: str = ""
    part: str
    neutral: Any = None
    unset: Any = None
    by_machine: bool = False

    def parse(self, text: str) -> Any:
        """The value of a text, from a tracking store or from a user."""
        if self.default is None and text in (AUTO, "None"):
            return None
        if self.type is bool:
            return bool(("False", "True").index(text))
        base = str if typing.get_origin(self.type) is Literal else self.type
        value = base(text)
        return None if self.unset is not None and value == self.unset else value


def as_text(value: Any) -> str:
    """A parameter's value as text, for MLflow and the screen; the inverse of `Parameter.parse`."""
    return AUTO if value is None else str(value)


def with_numbers(flat: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """The values, with the numbers that earlier versions used in place of None. Keys are made of these, so that keys
    stay the same."""
    return {name: parameters[name].unset if value is None else value for name, value in flat.items()}


def parameters_of(parts: Mapping[str, Any]) -> Mapping[str, Parameter]:
    """The flat parameters of configuration classes, by name, and the seed.

    Args:
        parts: the classes by the name of their group on the command line.
    """
    parameters = {}
    for part_name, part in parts.items():
        hints = typing.get_type_hints(part)
        for f in dataclasses.fields(part):
            metadata = {"neutral": f.default, **f.metadata}
            parameters[f.name] = Parameter(
                name=f.name, type=_without_none(hints[f.name]), default=f.default, part=part_name, **metadata
            )
    parameters["seed"] = Parameter(
        name="seed", type=int, default=0, neutral=0, help="Seed of every draw.", part="trial"
    )
    return types.MappingProxyType(parameters)


def _without_none(hint: Any) -> Any:
    """The type without None: `int` for `int | None`."""
    others = [base for base in typing.get_args(hint) if base is not types.NoneType]
    return others[0] if isinstance(hint, types.UnionType) else hint
