"""Title, version, license and contact in the OpenAPI document."""

from importlib.metadata import PackageNotFoundError, metadata
from typing import Any, Final

from app.constants import AUTHOR, COMMAND, DESCRIPTION, TITLE


def _of_the_package() -> dict[str, Any]:
    """The version and the license in `pyproject.toml`."""
    try:
        package = metadata(COMMAND)
    except PackageNotFoundError:  # the package is not installed
        return {}
    about: dict[str, Any] = {"version": package["Version"]}
    for license in package.get_all("License-Expression", []):
        about["license_info"] = {"name": license, "identifier": license}
    return about


ABOUT: Final[dict[str, Any]] = {
    "title": TITLE,
    "description": DESCRIPTION,
    "contact": {"name": AUTHOR},
    "servers": [{"url": "/"}],
    **_of_the_package(),
}
