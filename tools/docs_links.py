"""Links of the documentation to files outside docs/, for the site: they lead to the repository on its host.

In the repository such a link is relative and works as it stands. mkdocs calls `on_page_markdown` for every page
(`hooks` in mkdocs.yml); the address comes from `extra.repository` there.
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
