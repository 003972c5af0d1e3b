"""Put all that is to be known of a finished run on one page: one HTML file that opens anywhere, offline.

It shows how the run learned, each class, whether probabilities can be trusted, the surest mistakes, labels that look
wrong, why the model answered so, size and speed, and the commands that repeat it. Test images are asked about anew.

usage: ceit report RUN --output FILE.html [options]

examples:
  ceit report runs/photos --output photos.html
  ceit report runs/photos --output photos.html --data /media/usb/photos
"""

from ceit.atomic import replace_files
from ceit.cli._parser import Parser, adding_to, require_output
from ceit.cli._terminal import tell
from ceit.paths import expanded
from ceit.report.contents import contents_of
from ceit.report.page import page


def main(arguments: list[str]) -> None:
    """Write the page.

    Raises: ValueError for a run that has not ended, data that do not fit, or a file that is there.
    """
    parser = Parser(__doc__)
    add = adding_to(parser)
    add("run", "run directory of ceit train", metavar="RUN", type=expanded)
    add("--output", "the page to write; none is written over", metavar="FILE.html", type=expanded, required=True)
    add("--data", "where the images are now, if not where the run found them", metavar="NAME|DIR")
    options = parser.parse_args(arguments)
    require_output(parser, "--output", options.output, (".html", ".htm"))
    contents = contents_of(options.run, options.data, tell)
    tell(*contents.remarks)
    content = page(contents).encode()
    replace_files({options.output: content})
    print(f"{options.output}: {len(content) / 1e6:.1f} MB, open it in a browser")
