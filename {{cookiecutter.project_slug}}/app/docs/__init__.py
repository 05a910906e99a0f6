"""The page `/docs`: Swagger UI from the files in `static`. A browser loads nothing from elsewhere.

To remove it, delete this folder, `tests/test_docs.py`, and its lines in `main.py`.
"""

from html import escape
from pathlib import Path
from typing import Final

from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from app.auth import PublicRouter
from app.constants import TITLE

# The links are relative to the page, so that they work behind any proxy.
_PAGE: Final = f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(TITLE)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<script defer src="docs/swagger-ui-bundle.js"></script>
<script defer src="docs/start.js"></script>
</head>
<body><div id="swagger-ui"></div></body>
</html>
"""
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = PublicRouter(include_in_schema=False)


@router.head("/docs")
@router.get("/docs")
async def page() -> HTMLResponse:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


router.mount("/docs", StaticFiles(directory=Path(__file__).parent / "static"))
