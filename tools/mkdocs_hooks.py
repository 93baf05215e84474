"""Shows Sphinx roles of docstrings, which MLX's style uses, as plain code."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|mod|attr|math):<code>([^<]*)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """mkdocs calls this with the HTML of each page."""
    html = ROLE.sub(lambda m: f"<code>{m[1].removeprefix('~')}</code>", html)
    return html.replace("<p>.. math::</p>", "")
