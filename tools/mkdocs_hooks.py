"""What Markdown alone cannot say: docstrings, marks of blocks, a file to come."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

#: MLX's docstrings are Sphinx's; here their roles are plain code.
ROLE = re.compile(r":(?:class|func|mod|attr|math):<code>([^<]*)</code>")
MARK = re.compile(r"<!-- not run: (.*?) -->")
RESULTS = "benchmarks/RESULTS.md"


class Examples(Preprocessor):
    """Fences the examples of docstrings, which Markdown takes for quotations."""

    def run(self, lines: list[str]) -> list[str]:
        """The lines, every run of them that begins with `>>>` in a fence."""
        out: list[str] = []
        fenced = False
        for line in [*lines, ""]:
            if not fenced and line.startswith(">>> "):
                out.append("```pycon")
                fenced = True
            elif fenced and not line.strip():
                out.append("```")
                fenced = False
            out.append(line)
        return out


class Docstrings(Extension):
    """Examples, before any other reading of the text."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the preprocessor ahead of that of fences."""
        md.preprocessors.register(Examples(md), "examples", 100)


def on_config(config: Any) -> Any:
    """mkdocs calls this with its configuration."""
    config.markdown_extensions.append(Docstrings())
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this with the text of each page."""
    if (Path(__file__).parents[1] / RESULTS).exists():
        return markdown
    return markdown.replace(
        f'--8<-- "{RESULTS}"', "This checkout has no results yet: run the command."
    )


def on_page_content(html: str, **_: Any) -> str:
    """mkdocs calls this with the HTML of each page."""
    html = ROLE.sub(lambda m: f"<code>{m[1].removeprefix('~')}</code>", html)
    html = MARK.sub(r"<p><small>Not run by the tests: \1.</small></p>", html)
    return html.replace("<p>.. math::</p>", "")
