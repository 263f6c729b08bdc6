"""HTML and SVG elements as text, escaped."""

from collections.abc import Iterable, Sequence
from html import escape


def element(tag: str, *children: str, **attributes: object) -> str:
    """An element: children are markup, attribute values are escaped; `_` in a name is `-`, at its end nothing."""
    words = [tag]
    for name, value in attributes.items():
        words.append(f'{name.removesuffix("_").replace("_", "-")}="{escape(_shown(value))}"')
    return f"<{' '.join(words)}>{''.join(children)}</{tag}>"


def text(words: object) -> str:
    """Text, escaped."""
    return escape(str(words))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, words: bool = False) -> str:
    """A table in a box that scrolls sideways under its caption; the first column, which names the row, stays.

    Args:
        header: of the columns.
        rows: cells.
        caption: above it.
        words: the other columns are words, which wrap, and not figures.
    """
    head = element("tr", *[element("th", text(cell), scope="col") for cell in header])
    body = [
        element("tr", element("th", text(row[0]), scope="row"), *[element("td", text(cell)) for cell in row[1:]])
        for row in rows
    ]
    inner = element("table", element("thead", head), element("tbody", *body), class_="words" if words else "figures")
    above = element("p", text(caption), class_="caption")
    return above + element("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def rectangle(x: float, y: float, width: float, height: float, css: str, tooltip: str = "") -> str:
    """A bar of an SVG; browsers show the tooltip under the pointer."""
    title = element("title", text(tooltip)) if tooltip else ""
    return element("rect", title, x=x, y=y, width=max(width, 0.2), height=height, class_=css)


def label(x: float, y: float, words: str, css: str = "label", anchor: str = "start") -> str:
    """Text in an SVG."""
    return element("text", text(words), x=x, y=y, class_=css, text_anchor=anchor)


def picture(width: float, height: float, description: str, children: Iterable[str], minimum_px: int = 0) -> str:
    """An SVG that takes the width it is given, and scrolls sideways below `minimum_px`."""
    drawing = element(
        "svg", element("title", text(description)), *children,
        viewBox=f"0 0 {_shown(width)} {_shown(height)}", role="img", style=f"min-width:{minimum_px}px",
    )  # fmt: skip
    return element("div", drawing, class_="scroll", tabindex=0, role="region", aria_label=description)


def _shown(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
