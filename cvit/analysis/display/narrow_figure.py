"""A figure for a narrow screen: the panels of a drawn figure, one below the other."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure, FigureBase
from matplotlib.legend import Legend
from matplotlib.transforms import Bbox

from cvit.analysis.display.figure_style import any_script, image_bytes

_WIDTH, _GAP, _MARGIN = 260.0, 10.0, 3.0
"""The width of the narrow figure, the room between its panels and that around a panel, in points."""
_LARGEST_SCALE = 1.25
_LEGEND_COLUMNS = 2
_POINTS_PER_INCH = 72.0


def narrow_svg(figure: Figure) -> bytes:
    """The figure as SVG with its legends first and then a panel per line. It is changed: panels that share the numbers
    of their y axis with another one get them too, and legends get higher."""
    for axes in figure.axes:
        if axes.axison:
            axes.tick_params(axis="y", labelleft=True)
    handles = {n: handle for axes in figure.axes for handle, n in zip(*axes.get_legend_handles_labels(), strict=True)}
    for part in _parts(figure):
        for legend in list(part.legends):
            _make_narrow(part, legend, handles)
    drawing = image_bytes(figure, "svg").decode()
    begin = drawing.index(">", drawing.index("<svg")) + 1
    content = drawing[begin : drawing.rindex("</svg>")]
    views, y = [], 0.0
    for box in _boxes(figure):
        scale = min(_WIDTH / box.width, _LARGEST_SCALE)
        size = f'width="{box.width * scale:.2f}" height="{box.height * scale:.2f}"'
        view_box = f"{box.x0:.2f} {box.y0:.2f} {box.width:.2f} {box.height:.2f}"
        views.append(f'<svg y="{y:.2f}" {size} viewBox="{view_box}"><use xlink:href="#whole"/></svg>')
        y += box.height * scale + _GAP
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{_WIDTH:g}pt" height="{y:.2f}pt" viewBox="0 0 {_WIDTH:g} {y:.2f}">',
            f'<defs><g id="whole">{re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.DOTALL)}</g></defs>',
            *views,
            "</svg>",
        ]
    ).encode()


def _make_narrow(part: FigureBase, legend: Legend, handles: Mapping[str, Any]) -> None:
    """Draws a legend again, in as few columns as a narrow figure has room for.

    Args:
        handles: the handles of the panels by name; those of a legend have lost the markers of error bars.
    """
    names = [text.get_text() for text in legend.get_texts()]
    entries = [handles.get(name, handle) for name, handle in zip(names, legend.legend_handles, strict=True)]
    legend.remove()
    part.legend(entries, names, loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=legend.get_frame_on())


def _boxes(figure: Figure) -> list[Bbox]:
    """The places of the legends and of the panels in the whole drawing, in points from its upper left corner."""
    with any_script():
        figure.draw_without_rendering()
    scale, height = _POINTS_PER_INCH / figure.dpi, _POINTS_PER_INCH * figure.get_figheight()
    legends = [legend.get_window_extent() for part in _parts(figure) for legend in part.legends]
    panels = []
    for axes in figure.axes:
        with any_script():
            box = axes.get_tightbbox() if axes.axison else None
        if box is not None:
            legend = axes.get_legend()
            panels.append(box if legend is None else Bbox.union([box, legend.get_window_extent()]))
    boxes = [*legends, *sorted(panels, key=lambda box: (-round(box.y1 / figure.dpi, 1), box.x0))]
    in_points = [(box.x0 * scale, height - box.y1 * scale, box.x1 * scale, height - box.y0 * scale) for box in boxes]
    return [Bbox.from_extents(*box).padded(_MARGIN) for box in in_points]


def _parts(figure: FigureBase) -> Iterator[FigureBase]:
    """A figure and the figures within it."""
    yield figure
    for part in figure.subfigs:
        yield from _parts(part)
