"""What the site makes of pages and docstrings that are written to be read in a clone, too."""

import re


def on_page_markdown(markdown: str, **_) -> str:
    """Links out of this folder lead nowhere on the site: the file's name takes their place, or stands beside their text."""

    def name(link: re.Match) -> str:
        text, path = link.groups()
        says_where = f"{path}/".startswith(f"{text.strip('`/')}/")  # the file itself, or a folder that it lies in
        return f"`{path}`" if says_where else f"{text} (`{path}`)"

    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)", name, markdown)


def on_page_content(html: str, **_) -> str:
    """Names and types as they read: without the marks of Diffusers' docstrings, which mkdocstrings takes for text."""
    # [`Name`] or [`~Class.name`] is a name that Diffusers links to.
    html = re.sub(r"\[<code>~?([\w.]+)</code>\]", r"<code>\1</code>", html)
    html = re.sub(r"\[`~?([\w.]+)`\]", r"\1", html)
    # (`int`, *optional*, defaults to `5`) is a type, which says its default itself.
    html = re.sub(
        r"(<code>[^<]*\bdefaults? to [^<]*</code>), default:\s*<code>.*?</code>\s*\)", r"\1)", html, flags=re.S
    )
    return re.sub(
        r"<code>([^<]*)</code>", lambda code: code[0].replace("`", "").replace("*optional*", "optional"), html
    )
