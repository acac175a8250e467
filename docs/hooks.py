"""What the site makes of docstrings: Diffusers writes [`Name`] or [`~Class.name`] for a name that it links to."""

import re


def on_page_content(html: str, **_) -> str:
    """Names without the brackets, which Markdown leaves as they are."""
    html = re.sub(r"\[<code>~?([\w.]+)</code>\]", r"<code>\1</code>", html)
    return re.sub(r"\[`~?([\w.]+)`\]", r"\1", html)
