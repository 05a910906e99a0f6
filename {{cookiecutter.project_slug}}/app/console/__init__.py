"""The page `/console`, for people who manage keys. It calls `/api-keys` with a key that they type.

To remove it, delete this folder, `tests/management/test_console.py`, and its lines in `main.py`.
"""

from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from app.auth import PublicRouter
from app.constants import API_KEY_HEADER, TITLE

_FOLDER: Final = Path(__file__).parent
_STATIC: Final = _FOLDER / "static"
# A hash of the files is in their URLs, so that no browser uses cached files of an older release.
_RELEASE: Final = sha256(b"".join(path.read_bytes() for path in sorted(_STATIC.iterdir())))
_FILES: Final = f"console/{_RELEASE.hexdigest()[:12]}"
# The links are relative to the page, so that they work behind any proxy.
_PAGE: Final = Template((_FOLDER / "page.html").read_text("utf-8")).substitute(
    title=escape(TITLE), header=escape(API_KEY_HEADER), files=_FILES
)
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    ),
}

router = PublicRouter(include_in_schema=False)


@router.head("/console")
@router.get("/console")
async def page() -> HTMLResponse:
    return HTMLResponse(_PAGE, headers=_HEADERS)


router.mount(f"/{_FILES}", StaticFiles(directory=_STATIC))
