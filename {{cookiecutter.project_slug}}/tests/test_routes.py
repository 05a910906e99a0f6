"""What the service answers. Your endpoints' tests go here."""

from unittest.mock import patch

import httpx
import pytest

from app.auth import GuardedAPI
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS


async def test_hello_is_public(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.status_code == 200
    assert response.json() == {"Hello": "World"}


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


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_health_is_for_probes_of_any_kind(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert (await client.head(path)).status_code == 200


async def test_health_tells_when_the_keys_are_out_of_reach(
    client: httpx.AsyncClient, service: GuardedAPI
) -> None:
    with patch.object(service.keys, "is_reachable", return_value=False):
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 503
