"""The page: gradio's controls for a picture, and the answers below. gradio is imported here and nowhere else."""

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from ceit.web.answers import Shown, answers_html, error_html, remarks_html
from ceit.web.guard import MOST_BYTES

_KEPT_SECONDS = 10  # of an uploaded picture: the browser shows it from there
_MOST_WAITING = 16
_FORM_BYTES = 4096  # around a file that is uploaded, or fewer
_PRIVATE = "It goes to the machine that runs this page and nowhere else, and is deleted within half a minute."


def gradio_with(uploads: Path) -> Any:
    """gradio, with this folder for what is uploaded; it tells nobody that it runs.

    Raises: ModuleNotFoundError without the extra ``web``.
    """
    os.environ |= {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SHARE": "False"}
    return import_module("gradio")


def mount_page(gradio: Any, app: Any, models: Sequence[Shown]) -> None:
    """Put the page at ``/`` of an app, behind its own routes."""

    def answers(picture: dict[str, Any] | None) -> str:
        if picture is None:
            return ""
        try:
            image = Path(picture["path"]).read_bytes()
        except FileNotFoundError:
            return error_html("too many pictures were before it, and it was deleted meanwhile: drop it again")
        return answers_html(models, image)

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    with gradio.Blocks(
        title="ceit web", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)
    ) as blocks:
        gradio.HTML(f"<h1>What is in this picture?</h1><p>{_PRIVATE}</p>")
        picture = gradio.Image(
            label="picture",
            placeholder="Drop an image file here to upload",  # the words that gradio tells a screen reader,
            sources=["upload", "webcam", "clipboard"],
            webcam_options=gradio.WebcamOptions(mirror=False),  # else the model gets the mirror image, too
            type="filepath",
            buttons=[],
            height=300,
            alt_text="the picture that is asked about",
            elem_id="picture",
        )
        found = gradio.HTML(elem_id="answers")
        if remarks := remarks_html(models):
            gradio.HTML(remarks)
        picture.change(answers, picture, found, preprocess=False, api_visibility="private")
    blocks.queue(max_size=_MOST_WAITING)
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        max_file_size=MOST_BYTES - _FORM_BYTES,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        show_error=False,
        theme=gradio.themes.Default(**fonts),
        css=files("ceit.web").joinpath("page.css").read_text(encoding="utf-8"),
    )
