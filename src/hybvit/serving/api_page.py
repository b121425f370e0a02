"""The page that describes the API, made from its OpenAPI document. FastAPI's own asks another host for its scripts."""

from __future__ import annotations

import json
from html import escape
from typing import Any, NamedTuple

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2rem 0 0; font-size: 1.1rem; } h2 code { font-size: 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9rem; }
pre, .wide { overflow-x: auto; } pre { padding: 0.6rem 0.8rem; border: 1px solid #8886; border-radius: 6px; }
table { border-collapse: collapse; } th, td { text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0; }
th { font-weight: 600; } thead th { border-bottom: 1px solid #8886; }
"""

BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "and below"}


class Taken(NamedTuple):
    """A field of a call, and where it is: in the query, the form or the JSON."""

    name: str
    schema: dict[str, Any]
    place: str


def api_page(document: dict[str, Any], server: str) -> str:
    """An OpenAPI document as one page of HTML that needs nothing else.

    Args:
        server: its address, such as http://127.0.0.1:7860.
    """
    schemas = document["components"]["schemas"]
    parts = [
        section(f"{method.upper()} {path}", server + path, call, schemas)
        for path, calls in document["paths"].items()
        for method, call in calls.items()
    ]
    title = escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body><main>'
        f"<h1>{title}</h1><p>{escape(document['info']['description'])} "
        f'<a href="/openapi.json">openapi.json</a> · <a href="/">the page</a></p>{"".join(parts)}</main></body></html>'
    )


def section(title: str, address: str, call: dict[str, Any], schemas: dict[str, Any]) -> str:
    """One call: what it does, what it takes and gives, and a line for the shell."""
    takes, answer = taken(call, schemas), call["responses"]["200"]["content"]["application/json"]["schema"]
    gives = [Taken(name, field, "") for name, field in fields_of(answer, schemas)]
    places = [field.place for field in takes]
    sent = " -F image=@picture.png" if "form" in places else " --json '{\"n\": 4}'" if "JSON" in places else ""
    return (
        f"<h2><code>{escape(title)}</code></h2><p>{escape(call.get('description', ''))}</p>"
        f"<pre>curl{sent} {escape(address)}</pre>{rows('takes', takes)}{rows('gives', gives)}"
    )


def taken(call: dict[str, Any], schemas: dict[str, Any]) -> list[Taken]:
    """The fields that a call takes."""
    fields = [Taken(field["name"], field["schema"] | field, "query") for field in call.get("parameters", [])]
    for kind, body in call.get("requestBody", {"content": {}})["content"].items():
        place = "form" if "form" in kind else "JSON"
        fields += [Taken(name, field, place) for name, field in fields_of(body["schema"], schemas)]
    return fields


def fields_of(schema: dict[str, Any], schemas: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The fields of an object, and those of the objects in a list of it, by their names."""
    if "$ref" in schema:
        return fields_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "items" in schema:
        return [(f"[].{name}", field) for name, field in fields_of(schema["items"], schemas)]
    found = []
    for name, field in schema.get("properties", {}).items():
        inner = [(name + below, found_below) for below, found_below in fields_of(field, schemas)] if "items" in field else []
        found += inner or [(name, field)]
    return found


def rows(head: str, fields: list[Taken]) -> str:
    """A table of fields: name, type and place, and what it is."""
    if not fields:
        return ""
    cells = [
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{type_of(schema)} {place and f"({place})"}</td>'
        f"<td>{escape(about(schema))}</td></tr>"
        for name, schema, place in fields
    ]
    top = f'<thead><tr><th scope="col" colspan="3">{head}</th></tr></thead>'
    return f'<div class="wide"><table>{top}<tbody>{"".join(cells)}</tbody></table></div>'


def type_of(field: dict[str, Any]) -> str:
    return field.get("type") or " or ".join(option.get("type", "") for option in field.get("anyOf", []))


def bounds_of(schema: dict[str, Any]) -> str:
    """As in "from 1 to 64", or "1 to 16 files"; empty where there are none."""
    if "maxItems" in schema:
        return f"{schema['minItems']} to {schema['maxItems']} files"
    return " ".join(f"{words} {written(schema[key])}" for key, words in BOUNDS.items() if key in schema)


def written(bound: float) -> str:
    """A number as people write it: 64, 0.5, 2^63."""
    exponent = int(bound).bit_length() - 1
    return f"2^{exponent}" if exponent > 20 and int(bound) == 1 << exponent else f"{bound:g}"


def about(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    parts = [bounds_of(schema), "" if default is None else f"default {json.dumps(default)}"]
    said = ", ".join(filter(None, parts))
    return schema.get("description", "") + (f" ({said})" if said else "")
