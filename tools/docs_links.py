"""Rewrites links of the documentation to files outside docs/ as links to the repository, for the site.

    hooks: [tools/docs_links.py]     in mkdocs.yml, for which mkdocs calls `on_page_markdown` with every page

The address of the repository is `extra.repository` in mkdocs.yml.
"""

import posixpath
import re
from typing import Any

LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)([^)]*\))")
"""A link whose target begins with `../`."""


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """The page's text, with links that leave docs/ turned into links to the main branch."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def resolve(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        if path.startswith("docs/"):
            return match[0]
        return f"{match[1]}{config.extra['repository']}/blob/main/{path}{match[3]}"

    return LINK.sub(resolve, markdown)
