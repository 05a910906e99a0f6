"""The answers given when this project was generated."""

from typing import Final

TITLE: Final = "{{ cookiecutter.__title_escaped }}"
DESCRIPTION: Final = "{{ cookiecutter.__summary_escaped }}"
AUTHOR: Final = "{{ cookiecutter.__author_escaped }}"
COMMAND: Final = "{{ cookiecutter.project_slug }}"

API_KEY_HEADER: Final = "{{ cookiecutter.api_key_header }}"
MISSING_KEY_STATUS: Final[int] = {{ cookiecutter.missing_key_status }}
