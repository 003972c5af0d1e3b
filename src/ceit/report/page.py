"""The page's text from its contents."""

from importlib.resources import files

import jinja2

from ceit.report.contents import Contents


def page(contents: Contents) -> str:
    """One HTML document with its style, script and pictures inside; every name in it is escaped.

    Letters of file names that are no text have a mark in their place.
    """
    template = files("ceit.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    strict = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    text = strict.from_string(template).render(vars(contents))
    return text.encode(errors="replace").decode()
