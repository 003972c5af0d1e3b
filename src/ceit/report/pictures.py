"""Pictures as they lie inside the page: small, and as ``data:`` addresses."""

import base64
import io
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from ceit.explain.explanation import explain
from ceit.explain.sheet import draw_sheet
from ceit.inference.predictor import Predictor

_SIDE = 180
_SHEET_WIDTH = 1100


def thumbnail(image: Image.Image) -> str:
    """The image at 180 pixels or fewer: a small one to the pixel, others as JPEG."""
    if max(image.size) <= _SIDE // 2:
        return _address(image, "PNG")
    image = image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return _address(image, "JPEG", quality=82)


def sheet_picture(predictor: Predictor, image: Image.Image, title: str) -> str:
    """The sheet of ``ceit explain`` of an image."""
    with TemporaryDirectory(prefix="ceit-") as folder:
        file = Path(folder, "sheet.png")
        draw_sheet(explain(predictor, image), title, [file])
        with Image.open(file) as drawn:
            sheet = drawn.convert("RGB")
    sheet.thumbnail((_SHEET_WIDTH, _SHEET_WIDTH), Image.Resampling.LANCZOS)
    return _address(sheet, "WEBP", quality=82)


def _address(image: Image.Image, form: str, **options: object) -> str:
    file = io.BytesIO()
    image.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
