"""Figures with their targets beside them, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(slots=True)
class Figure:
    """One figure, measured several times. Its target is for the median of `judged`.

    `judged` holds each repetition's ratio to `against`, or the figure itself if there is none.
    """

    name: str
    unit: str
    target: float
    relay: list[float]
    against: list[float] = field(default_factory=list)
    """The figures to compare with, from the same repetitions: the obvious function's, unless `name`
    says otherwise."""
    at_least: bool = False

    @property
    def judged(self) -> list[float]:
        """The values to which the target applies."""
        if not self.against:
            return self.relay
        return [ours / theirs for ours, theirs in zip(self.relay, self.against, strict=True)]

    @property
    def is_met(self) -> bool:
        """Whether the target is met."""
        middle = median(self.judged)
        return middle >= self.target if self.at_least else middle <= self.target

    def to_json(self) -> dict[str, Any]:
        """The figure as JSON, with its median and whether its target is met."""
        return {**asdict(self), "median": median(self.judged), "met": self.is_met}


def show(figures: Sequence[Figure]) -> None:
    """Print a table, with a row for each figure."""
    width = max(len(figure.name) for figure in figures)
    print(
        f"\n{'':{width}}{'unit':>7}{'compared with':>15}{'relay':>9}{'ratio':>7}"
        f"  {'spread':<12}{'target':>8}  met"
    )
    for figure in figures:
        judged = figure.judged
        against = f"{median(figure.against):.4g}" if figure.against else ""
        ratio = f"{median(judged):.2f}" if figure.against else ""
        spread = f"{min(judged):.3g}-{max(judged):.3g}" if len(judged) > 1 else ""
        target = f"{'>=' if figure.at_least else '<='} {figure.target:g}"
        print(
            f"{figure.name:{width}}{figure.unit:>7}{against:>15}{median(figure.relay):>9.4g}"
            f"{ratio:>7}  {spread:<12}{target:>8}  {'yes' if figure.is_met else 'NO'}"
        )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned, so that it can be read in a terminal too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(map(line, [header, rule, *rows]))
