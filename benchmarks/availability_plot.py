"""Draws the calibration of the availability model as an SVG text. Measures nothing."""

from collections.abc import Sequence
from typing import Any

__all__ = ["calibration_svg"]

_SIDE, _MARGIN = 360, 50


def calibration_svg(rows: Sequence[dict[str, Any]]) -> str:
    """Points of foreseen against true shares; a point's area says how many looks it stands for."""
    most = max(row["looks"] for row in rows)
    ticks = [place / 5 for place in range(6)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_SIDE + 2 * _MARGIN}" height="{_SIDE + 2 * _MARGIN}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{_x(0)} {_y(0)}H{_x(1)}M{_x(0)} {_y(0)}V{_y(1)}" stroke="black" fill="none"/>',
        f'<path d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}" stroke="#999" stroke-dasharray="4"/>',
        *(f'<text x="{_x(tick)}" y="{_y(0) + 18}" text-anchor="middle">{tick:.0%}</text>' for tick in ticks),
        *(f'<text x="{_x(0) - 6}" y="{_y(tick) + 4}" text-anchor="end">{tick:.0%}</text>' for tick in ticks),
        f'<text x="{_x(0.5)}" y="{_y(0) + 38}" text-anchor="middle">foreseen to leave within an hour</text>',
        f'<text transform="translate(14 {_y(0.5)}) rotate(-90)" text-anchor="middle">left within an hour</text>',
        *(
            f'<circle cx="{_x(row["foreseen"]):.1f}" cy="{_y(row["left"]):.1f}" '
            f'r="{3 + 9 * (row["looks"] / most) ** 0.5:.1f}" fill="#1b6ca8" fill-opacity="0.7"/>'
            for row in rows
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _x(share: float) -> float:
    return _MARGIN + share * _SIDE


def _y(share: float) -> float:
    return _MARGIN + (1 - share) * _SIDE
