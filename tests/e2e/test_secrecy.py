"""What nobody may find in logs and metrics, looked for after requests of every kind, good and bad ones."""

import asyncio
import hashlib
import io
import logging
from pathlib import Path

import httpx
import pytest

from retrieval.bundle import Bundle
from retrieval.recommenders import load
from service import logs, metrics
from service.app import create_app
from service.errors import StoreUnavailable
from service.settings import Settings

SECRETS = {
    "user": "user-secret-1f3",
    "item": "item-secret-2a7",
    "event": "event-secret-3b9",
    "context": "context-secret-4c1",
    "key": "key-secret-5d3",
    "wrong key": "key-secret-6e5",
    "header": "header-secret-7f7",
}


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("is_away", [False, True])
def test_no_user_no_item_and_no_key_is_in_logs_or_metrics(tmp_path: Path, toy_bundle: Path, form: str, is_away: bool):
    keys = tmp_path / "keys"
    keys.write_text(f"shop:read,write,metrics:{hashlib.sha256(SECRETS['key'].encode()).hexdigest()}:budget=3\n")
    written = io.StringIO()
    logs.configure(level="debug", form=form)
    logging.getLogger().handlers[0].setStream(written)  # type: ignore[attr-defined]
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the client of this test, which logs its addresses
    answers = asyncio.run(mixed(toy_bundle, keys, tmp_path, is_away=is_away))
    assert {200, 401, 404, 422, 429} <= {answer.status_code for answer in answers}
    assert "route=/v1/recommendations" in written.getvalue() or '"route":"/v1/recommendations"' in written.getvalue()
    told = written.getvalue() + metrics.exposition().decode()
    for what, secret in SECRETS.items():
        assert secret not in told, f"the {what} is in: {[line for line in told.splitlines() if secret in line][:3]}"


async def mixed(bundle: Path, keys: Path, directory: Path, *, is_away: bool) -> list[httpx.Response]:
    """Answers to requests of every kind."""
    user, item, context = SECRETS["user"], SECRETS["item"], {"place": SECRETS["context"]}
    event = {"user_id": user, "item_id": item, "event_id": SECRETS["event"], "context": context}
    body = {"user_id": user, "context": context, "deadline_ms": 5_000}
    settings = Settings(store=f"sqlite:///{directory}/sessions.sqlite", api_keys_file=keys)
    app = create_app(settings, served=load(Bundle.open(bundle)))
    async with app.router.lifespan_context(app):
        if is_away:

            async def away(*_: object, **__: object) -> None:
                raise StoreUnavailable("history", "it is away")

            store = app.state.shell.store
            store.history = store.columns = store.append_many = store.erase = away
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        sent = {"authorization": f"Bearer {SECRETS['key']}", "x-request-id": SECRETS["header"] + " and a blank"}
        async with httpx.AsyncClient(transport=transport, base_url="http://s", headers=sent) as http:
            answers = [
                await http.post("/v1/events", json={"events": [event, {**event, "user_id": f"{user}-2"}]}),
                await http.post("/v1/events", json={"events": [{**event, "timestamp": 9e12}]}),
                await http.post("/v1/events", json={"events": [{**event, "value": item}]}),
                await http.post("/v1/events", content=f'{{"events": [{{"user_id": "{user}'),
                await http.post("/v1/recommendations", json=body),
                await http.post("/v1/recommendations", json={**body, "history": [item, "i01"]}),
                await http.post("/v1/recommendations", json={**body, "model": item}),
                await http.post("/v1/recommendations", json={**body, "filter": {"attributes": [{"name": item}]}}),
                await http.post("/v1/rankings", json={"user_id": user, "candidates": [item, item]}),
                await http.get(f"/v1/users/{user}/recommendations", params={"k": user}),
                await http.get(f"/v1/users/{user}/recommendations", params={"placement": "home"}),
                await http.get(f"/v1/users/{user}/history"),
                await http.get(f"/v1/items/{item}/similar"),
                await http.get(f"/v1/items/{item}"),
                await http.get(f"/{user}"),
                await http.delete(f"/v1/users/{user}"),
                await http.get("/v1/model", headers={"authorization": f"Bearer {SECRETS['wrong key']}"}),
            ]
            for number in range(1, 6):
                answers.append(await http.post("/v1/recommendations", json={**body, "history": [f"i0{number}"]}))

            def failing(*_: object, **__: object) -> None:
                raise RuntimeError("the model broke")

            app.state.shell.users.history = failing
            answers.append(await http.get(f"/v1/users/{user}/history"))
            return answers
