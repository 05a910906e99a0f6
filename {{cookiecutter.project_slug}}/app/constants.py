"""The answers given when this project was generated."""

from typing import Final

TITLE: Final = "{{ cookiecutter.project_name.split() | join(' ') | replace('\\', '\\u005c') | replace('\u0022', '\\u0022') }}"
DESCRIPTION: Final = "{{ cookiecutter.description.split() | join(' ') | replace('\\', '\\u005c') | replace('\u0022', '\\u0022') }}"
AUTHOR: Final = "{{ (cookiecutter.author_name.split() or cookiecutter.project_name.split() + ['team']) | join(' ') | replace('\\', '\\u005c') | replace('\u0022', '\\u0022') }}"
COMMAND: Final = "{{ cookiecutter.project_slug }}"

API_KEY_HEADER: Final = "{{ cookiecutter.api_key_header }}"
MISSING_KEY_STATUS: Final[int] = {{ cookiecutter.missing_key_status }}
