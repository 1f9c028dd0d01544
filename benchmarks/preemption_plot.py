"""Draws how long workers ran after their cars' signals, as an SVG text. Measures nothing."""

from collections.abc import Mapping, Sequence

__all__ = ["histogram_svg"]

_WIDTH, _HEIGHT, _MARGIN = 600, 240, 50
_BIN_MS = 5.0
_COLOURS = ("#1b6ca8", "#e08214", "#5e3c99")


def histogram_svg(taken: Mapping[str, Mapping[str, Sequence[float]]], limit_ms: float) -> str:
    """Bars of 5 ms, stacked by situation; what took longer than the limit stands in the last bar."""
    bins = int(limit_ms / _BIN_MS) + 1
    counts = {
        name: _counted([ms for times in by_signal.values() for ms in times], bins) for name, by_signal in taken.items()
    }
    most = max(map(sum, zip(*counts.values(), strict=True)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 2 * _MARGIN}" height="{_HEIGHT + 2 * _MARGIN}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    width, floor = _WIDTH / bins, [0] * bins
    for place, (name, column) in enumerate(counts.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        at = f'x="{_MARGIN + _WIDTH}" y="{_MARGIN + 16 * place}"'
        parts.append(f'<text {at} text-anchor="end" fill="{colour}">{name}</text>')
        for bar, count in enumerate(column):
            if count:
                top = _MARGIN + _HEIGHT * (1 - (floor[bar] + count) / most)
                parts.append(
                    f'<rect x="{_MARGIN + bar * width:.1f}" y="{top:.1f}" width="{width - 1:.1f}" '
                    f'height="{_HEIGHT * count / most:.1f}" fill="{colour}"/>'
                )
                floor[bar] += count
    base = _MARGIN + _HEIGHT
    parts += [
        f'<path d="M{_MARGIN} {base}H{_MARGIN + _WIDTH}M{_MARGIN} {base}V{_MARGIN}" stroke="black" fill="none"/>',
        *(
            f'<text x="{_MARGIN + ms / _BIN_MS * width:.1f}" y="{base + 18}" text-anchor="middle">{ms}</text>'
            for ms in range(0, int(limit_ms) + 1, 50)
        ),
        f'<text x="{_MARGIN + _WIDTH / 2}" y="{base + 38}" text-anchor="middle">'
        "ms from the signal to no processor time</text>",
        f'<text x="{_MARGIN - 6}" y="{_MARGIN + 4}" text-anchor="end">{most}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _counted(times: Sequence[float], bins: int) -> list[int]:
    counts = [0] * bins
    for ms in times:
        counts[min(bins - 1, int(ms / _BIN_MS))] += 1
    return counts
