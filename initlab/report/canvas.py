"""One drawing of a figure for two files: what matplotlib draws is passed on to its SVG renderer and to its pixels.

Most of the time that a file takes goes into deciding what is drawn where (ticks, labels, texts), which is the same for
both; `savefig` decides it anew for each.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_mixed import MixedModeRenderer
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.transforms import Affine2D, TransformedBbox, TransformedPath
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

_POINTS = 72  # units of an SVG to the inch


def save_both(figure: Figure, dpi: int, above: Sequence[Artist], height: float, description: str) -> tuple[str, bytes]:
    """Draw a figure, whose layout is settled, as SVG and as PNG.

    Args:
        figure: drawn once; shown as it was afterwards.
        dpi: of the PNG, and of what the SVG holds as pixels.
        above: artists over the drawing that only the PNG has.
        height: of the drawing, in inches, which is all that the SVG has; it has no background either.
        description: kept in the PNG.

    Returns:
        The text of the SVG, and the bytes of the PNG.
    """
    before, hidden = figure.dpi, [artist for artist in (figure.patch, *above) if artist.get_visible()]
    width, whole = figure.get_size_inches()
    text = io.StringIO()
    try:
        figure.set_dpi(dpi)
        pixels = RendererAgg(width * dpi, whole * dpi, dpi)
        for artist in hidden:
            artist.draw(pixels)
            artist.set_visible(False)
        figure.set_dpi(_POINTS)
        drawing = RendererSVG(width * _POINTS, height * _POINTS, text, image_dpi=dpi, metadata={"Date": None})
        # what it draws as pixels, it draws at `dpi`
        vectors = MixedModeRenderer(figure, width, height, dpi, drawing)
        figure.draw(_Both(vectors, pixels, figure))  # type: ignore[arg-type]  # as MixedModeRenderer, by its methods
        vectors.finalize()
    finally:
        figure.set_dpi(before)
        for artist in hidden:
            artist.set_visible(True)
    return text.getvalue(), _png(pixels, dpi, description)


def _png(pixels: RendererAgg, dpi: int, description: str) -> bytes:
    """A file of what was drawn: without alpha where nothing shines through, and packed at half the default's time."""
    info, file = PngInfo(), io.BytesIO()
    info.add_text("Description", description)
    drawn = Image.fromarray(np.asarray(pixels.buffer_rgba()))
    opaque = drawn.getchannel("A").getextrema() == (255, 255)
    (drawn.convert("RGB") if opaque else drawn).save(file, "png", pnginfo=info, dpi=(dpi, dpi), compress_level=3)
    return file.getvalue()


class _Both:
    """Draws on two renderers what it is given in the units of the first, whose answers it gives to all questions."""

    def __init__(self, vectors: MixedModeRenderer, pixels: RendererAgg, figure: Figure):
        self._vectors, self._pixels, self._figure = vectors, pixels, figure
        self._raster_depth, self._rasterizing = 0, False  # which artists keep on their renderer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vectors, name)

    @property
    def _scale(self) -> float:
        """Pixels to a unit, which is a pixel where the first renderer draws pixels."""
        return self._pixels.dpi / self._figure.dpi

    def _scaled(self, transform: Any) -> Any:
        return transform + Affine2D().scale(self._scale)

    def _context(self, gc: GraphicsContextBase) -> GraphicsContextBase:
        """The same colours and widths, which are in points, within the clip in pixels."""
        own = GraphicsContextBase()
        own.copy_properties(gc)
        if (box := gc.get_clip_rectangle()) is not None:
            own.set_clip_rectangle(TransformedBbox(box, Affine2D().scale(self._scale)))  # type: ignore[arg-type]
        path, transform = gc.get_clip_path()
        if path is not None:
            own.set_clip_path(TransformedPath(path, self._scaled(transform)))  # type: ignore[arg-type]
        return own

    def draw_path(self, gc: Any, path: Any, transform: Any, rgbFace: Any = None) -> None:
        self._vectors.draw_path(gc, path, transform, rgbFace)
        self._pixels.draw_path(self._context(gc), path, self._scaled(transform), rgbFace)

    def draw_markers(self, gc: Any, marker: Any, marker_trans: Any, path: Any, trans: Any, rgbFace: Any = None) -> None:
        self._vectors.draw_markers(gc, marker, marker_trans, path, trans, rgbFace)
        own = self._scaled(marker_trans), path, self._scaled(trans), rgbFace
        self._pixels.draw_markers(self._context(gc), marker, *own)

    def draw_path_collection(
        self,
        gc: Any,
        master: Any,
        paths: Any,
        transforms: Any,
        offsets: Any,
        offset_trans: Any,
        *rest: Any,
        **named: Any,
    ) -> None:
        self._vectors.draw_path_collection(gc, master, paths, transforms, offsets, offset_trans, *rest, **named)
        own = self._scaled(master).frozen(), paths, transforms, offsets, self._scaled(offset_trans)
        self._pixels.draw_path_collection(self._context(gc), *own, *rest, **named)

    def draw_quad_mesh(
        self, gc: Any, master: Any, width: int, height: int, corners: Any, offsets: Any, offset_trans: Any, *rest: Any
    ) -> None:
        self._vectors.draw_quad_mesh(gc, master, width, height, corners, offsets, offset_trans, *rest)
        own = self._scaled(master).frozen(), width, height, corners, offsets, self._scaled(offset_trans)
        self._pixels.draw_quad_mesh(self._context(gc), *own, *rest)

    def draw_gouraud_triangles(self, gc: Any, triangles: Any, colours: Any, transform: Any) -> None:
        self._vectors.draw_gouraud_triangles(gc, triangles, colours, transform)
        self._pixels.draw_gouraud_triangles(self._context(gc), triangles, colours, self._scaled(transform).frozen())

    def draw_image(self, gc: Any, x: float, y: float, image: Any, transform: Any = None) -> None:
        # without a transform it has been made for the pixels that it covers, which are the same for both
        own = () if transform is None else (transform,)
        self._vectors.draw_image(gc, x, y, image, *own)
        if transform is None:
            self._pixels.draw_image(self._context(gc), round(x * self._scale), round(y * self._scale), image)

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, ismath: Any = False, mtext: Any = None
    ) -> None:
        self._vectors.draw_text(gc, x, y, s, prop, angle, ismath=ismath, mtext=mtext)
        own = self._context(gc), *self._downwards(x, y), s, prop, angle
        self._pixels.draw_text(*own, ismath=ismath, mtext=mtext)

    def draw_tex(self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, *, mtext: Any = None) -> None:
        self._vectors.draw_tex(gc, x, y, s, prop, angle, mtext=mtext)
        self._pixels.draw_tex(self._context(gc), *self._downwards(x, y), s, prop, angle, mtext=mtext)

    def _downwards(self, x: float, y: float) -> tuple[float, float]:
        """A place of text, which is measured from above, and the pixels reach higher."""
        height = self._vectors.get_canvas_width_height()[1]
        return x * self._scale, self._pixels.height - (height - y) * self._scale
