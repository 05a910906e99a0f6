"""Write the first two keys into `.env`, unless there is one, and tell what comes next."""

import contextlib
import os
import uuid

SLUG = "{{ cookiecutter.__slug }}"
HEADER = "{{ cookiecutter.api_key_header }}"


def write_keys():
    """Whether the keys were written; a file that is there already stays as it is."""
    try:
        # O_EXCL: created here or not touched at all. 0600: for its owner only.
        descriptor = os.open(".env", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"API_KEYS={uuid.uuid4()},{uuid.uuid4()}\n")
    return True


# Files that the other flavour has alone are left out by their names; folders cannot be.
for folder in ("app/migrations/versions", "app/migrations"):
    with contextlib.suppress(OSError):  # it is not empty, or not there
        os.rmdir(folder)

if write_keys():
    print(f"Two API keys are in {SLUG}/.env. Keep that file to yourself.")
else:
    print(f"The API keys in {SLUG}/.env stay as they were.")
print(
    rf"""
Start the service:

    cd {SLUG}
    uv run fastapi dev

Call it from a second terminal in the same folder (bash, zsh or Git Bash):

    curl -H "{HEADER}: $(sed -n 's/^API_KEYS=\([^,]*\).*/\1/p' .env)" http://127.0.0.1:8000/secure-endpoint

README.md has the rest."""
)
