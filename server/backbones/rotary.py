"""Rotary settings of a config.json, in older keys (rope_theta, rope_scaling) and newer ones (rope_parameters)."""

from __future__ import annotations

from embedmux.server.checkpoint.folder import Config

PLAIN = ("default", None)


def read_theta(config: Config, *, key: str = "rope_theta") -> float:
    """The base of plain rotary positions; raises ModelRejected for a scaling, which would move every vector."""
    parameters = config.section("rope_parameters")
    for section in (parameters, config.section("rope_scaling")):
        section.require("rope_type", *PLAIN)
        section.require("type", *PLAIN)
    return parameters.number(key) if parameters.get(key) is not None else config.number(key)
