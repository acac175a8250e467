"""What the site makes of pages and docstrings that are written to be read in a clone, too."""

import re


def on_page_markdown(markdown: str, **_) -> str:
    """Links out of this folder lead nowhere on the site: the file's name takes their place."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)", r"\1 (`\2`)", markdown)


def on_page_content(html: str, **_) -> str:
    """Names without brackets: Diffusers writes [`Name`] or [`~Class.name`] for a name that it links to."""
    html = re.sub(r"\[<code>~?([\w.]+)</code>\]", r"<code>\1</code>", html)
    return re.sub(r"\[`~?([\w.]+)`\]", r"\1", html)
