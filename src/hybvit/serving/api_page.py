"""The page that describes the API, made from its OpenAPI document. FastAPI's own asks another host for its scripts."""

from __future__ import annotations

import json
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2rem 0 0; font-size: 1.1rem; } h2 code { font-size: 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9rem; }
pre, .wide { overflow-x: auto; } pre { padding: 0.6rem 0.8rem; border: 1px solid #8886; border-radius: 6px; }
table { border-collapse: collapse; } th, td { text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0; }
th { font-weight: 600; } thead th { border-bottom: 1px solid #8886; }
"""

# bounds of a field, in words
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below", "maxItems": "at most"}


def api_page(document: dict[str, Any]) -> str:
    """An OpenAPI document as one page of HTML that needs nothing else."""
    schemas = document["components"]["schemas"]
    parts = [
        section(method, path, call, schemas) for path, calls in document["paths"].items() for method, call in calls.items()
    ]
    title = escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body><main>'
        f"<h1>{title}</h1><p>{escape(document['info']['description'])} "
        f'<a href="/openapi.json">openapi.json</a> · <a href="/">the page</a></p>{"".join(parts)}</main></body></html>'
    )


def section(method: str, path: str, call: dict[str, Any], schemas: dict[str, Any]) -> str:
    """One call: what it does, what it takes and gives, and a line for the shell."""
    ((kind, body),) = call.get("requestBody", {"content": {"": {"schema": {}}}})["content"].items()
    takes = [(field["name"], field["schema"] | field, "(query)") for field in call.get("parameters", [])]
    takes += [(name, field, "(form)" if "form" in kind else "(JSON)") for name, field in fields_of(body["schema"], schemas)]
    answer = call["responses"]["200"]["content"]["application/json"]["schema"]
    gives = [(name, field, "") for name, field in fields_of(answer, schemas)]
    sent = " -F image=@picture.png" if "form" in kind else " --json '{\"n\": 4}'" if kind else ""
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(call.get('description', ''))}</p>"
        f"<pre>curl{sent} http://127.0.0.1:7860{escape(path)}</pre>{rows('takes', takes)}{rows('gives', gives)}"
    )


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


def rows(head: str, fields: list[tuple[str, dict[str, Any], str]]) -> str:
    """A table of fields: name, type and place, and what it is."""
    if not fields:
        return ""
    cells = [
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{type_of(field)} {place}</td>'
        f"<td>{escape(about(field))}</td></tr>"
        for name, field, place in fields
    ]
    top = f'<thead><tr><th scope="col" colspan="3">{head}</th></tr></thead>'
    return f'<div class="wide"><table>{top}<tbody>{"".join(cells)}</tbody></table></div>'


def type_of(field: dict[str, Any]) -> str:
    return field.get("type") or " or ".join(option.get("type", "") for option in field.get("anyOf", []))


def about(field: dict[str, Any]) -> str:
    bounds = [f"{words} {field[key]:g}" for key, words in BOUNDS.items() if key in field]
    if field.get("default") is not None:
        bounds.append(f"default {json.dumps(field['default'])}")
    return field.get("description", "") + (f" ({', '.join(bounds)})" if bounds else "")
