"""What the service answers. Your endpoints' tests go here."""

import httpx
import pytest

from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS, TITLE


async def test_hello_is_public(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.status_code == 200
    assert response.json() == {"Hello": "World"}


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/docs", "/openapi.json"])
async def test_health_and_documentation_are_public(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200


async def test_documentation_names_the_service(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json()["info"]["title"] == TITLE


async def test_secure_endpoint_answers_every_valid_key(
    client: httpx.AsyncClient, secrets: list[str]
) -> None:
    for secret in secrets:
        response = await client.get("/secure-endpoint", headers={API_KEY_HEADER: secret})
        assert response.status_code == 200
        assert response.json() == {"message": "You have access!"}


async def test_secure_endpoint_refuses_a_stranger(client: httpx.AsyncClient) -> None:
    response = await client.get("/secure-endpoint")
    assert response.status_code == MISSING_KEY_STATUS
    assert response.json() == {"detail": "Invalid or missing API Key"}
    assert response.headers["content-type"] == "application/problem+json"
    challenge = {401: "APIKey"}.get(MISSING_KEY_STATUS)
    assert response.headers.get("www-authenticate") == challenge
