"""The published description has every route, and no body that it allows makes the server fail."""

import json

import pytest
from helpers.server import serving
from helpers.talker import talking
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from rwkv_cli.server.api.description import description
from rwkv_cli.server.app import make_routes

PAGES = {"/", "/page/{path}", "/openapi.json"}
REFUSED = {"/v1/embeddings", "/api/embed", "/api/embeddings"}
POSTS = {
    path: each["post"]["requestBody"]["content"]["application/json"]["schema"]
    for path, each in description()["paths"].items()
    if "post" in each
}


def test_every_route_is_described():
    there = {
        (route.path.replace("{name:path}", "{id}").replace(":path", ""), method)
        for route in make_routes()
        if isinstance(route, Route)
        for method in (route.methods or ()) - {"HEAD"}
    }
    described = {
        (path, method.upper())
        for path, each in description()["paths"].items()
        for method in each
        if method != "parameters"
    }
    files = {("/v1/states/{name}", "PUT")}  # whose body is no JSON
    assert {(path, method) for path, method in there if path not in PAGES | REFUSED} == described | files


TEXTS = [
    "",
    "a",
    "Hello there",
    "\ud800",
    "\0",
    "../x",
    "x" * 300,
    "gosling",
    "doc",
    "json",
    "auto",
    "<think",
]
WORDS = st.sampled_from(TEXTS)
SMALL = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.just(2**70) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


def values(schema):
    """Values that a schema allows, and a few that it does not."""
    if "anyOf" in schema:
        return st.one_of([values(each) for each in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return st.lists(values(schema["items"]), max_size=3)
    if kind == "object" and "properties" in schema:
        needed = schema.get("required", ())
        found = {name: values(each) for name, each in schema["properties"].items()}
        return st.fixed_dictionaries(
            {name: found[name] for name in needed},
            optional={name: each for name, each in found.items() if name not in needed},
        )
    simple = {
        "string": WORDS,
        "boolean": st.booleans(),
        "number": st.floats(0, 1) | st.integers(-2, 2),
        "integer": st.integers(max(schema.get("minimum", 0), 0), 5),
        "null": st.none(),
    }
    return simple.get(kind, st.dictionaries(WORDS, SMALL, max_size=3)) | SMALL.filter(
        lambda _: kind != "null"
    )


@pytest.fixture(scope="module")
def client():
    with serving(talking(), timeout=5) as client:
        client.post("/v1/states", json={"name": "doc", "input": "Rex is a dog."})
        yield client


@pytest.mark.parametrize("path", POSTS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_makes_the_server_fail(client, path, data):
    body = data.draw(values(POSTS[path]))
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if type(body.get(name)) in (int, float) and not 0 <= body[name] < 50:
            body[name] = 3
    if path.startswith("/api/"):
        body["options"] = {
            **(body["options"] if isinstance(body.get("options"), dict) else {}),
            "num_predict": 3,
        }
    elif path != "/v1/messages/count_tokens":
        body.setdefault("max_output_tokens" if path == "/v1/responses" else "max_tokens", 3)
    response = client.post(path.replace("{name}", "doc"), content=json.dumps(body))
    assert response.status_code in (200, 201, 400, 404, 409), (response.status_code, response.text)
    if response.status_code >= 400:
        assert response.json()["error"]
