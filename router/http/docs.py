"""/docs: the description of /openapi.json as one page that needs nothing else."""

import json
from html import escape
from typing import Any

import msgspec

Json = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2a7ae2 }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
code, pre { font: 13.5px/1.5 ui-monospace, monospace }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto }
details { border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; padding: .5rem .9rem }
summary { cursor: pointer } summary b { display: inline-block; width: 3.4rem; color: var(--accent) }
summary span { float: right; opacity: .7 }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 }
td { vertical-align: top; padding: .25rem .8rem .25rem 0; border-top: 1px solid var(--line) }
td:first-child { white-space: nowrap }
"""
_EXAMPLE = """curl -s http://HOST:PORT/generate -H 'Content-Type: application/json' -d '
  {"history": %s, "sampling_params": {"beam_width": 128, "n": 10}}'"""


def docs_page(described: Json, items: list[str]) -> str:
    """HTML of an OpenAPI description; `items` of the catalog make its example one that works."""
    example = _EXAMPLE % json.dumps(items)
    info = described["info"]
    routes = [
        route(method.upper(), path, operation)
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    shapes = [shape(name, schema) for name, schema in sorted(described["components"]["schemas"].items())]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>xgr-runtime</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info['description'])} The same for programs: "
        f'<a href="openapi.json">openapi.json</a>.</p><pre>{escape(example)}</pre>'
        f"<h2>Routes</h2>{''.join(routes)}<h2>Shapes</h2>{''.join(shapes)}</body></html>"
    )


def route(method: str, path: str, operation: Json) -> str:
    """One route: what it takes, what it gives, how it fails."""
    body = operation.get("requestBody", {}).get("content", {})
    takes = f"<p>Takes {contents(body)}.</p>" if body else ""
    for asked in operation.get("parameters", []):
        if asked["in"] == "path":
            continue  # it stands there
        shown = f"{kind(asked['schema'])} {default(asked['schema'])}"
        takes += f"<p>Takes <code>?{escape(asked['name'])}=</code> {shown}: "
        takes += f"{prose(asked['schema'].get('description', ''))}</p>"
    rows = "".join(
        f"<tr><td>{escape(status)}</td><td>{contents(response['content'])}</td>"
        f"<td>{prose(response['description'])}</td></tr>"
        for status, response in operation["responses"].items()
    )
    return (
        f"<details><summary><b>{method}</b> <code>{escape(path)}</code>"
        f"<span>{escape(operation['summary'])}</span></summary>{takes}<table>{rows}</table></details>"
    )


def shape(name: str, schema: Json) -> str:
    """The fields of one struct."""
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{kind(entry)}</td>"
        f"<td>{'required' if field in required else default(entry)}</td>"
        f"<td>{prose(entry.get('description', ''))}</td></tr>"
        for field, entry in schema.get("properties", {}).items()
    )
    text = " ".join(schema.get("description", "").split())
    return (
        f'<details open id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<p>{prose(text)}</p><table>{rows}</table></details>"
    )


def contents(content: Json) -> str:
    """Media types and shapes of a body."""
    return ", ".join(f"{escape(media)} {kind(entry['schema'])}" for media, entry in content.items())


def kind(schema: Json) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(kind(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"<code>{compact(value)}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    return escape(f"{schema.get('type', 'anything')}{bounds(schema)}")


def bounds(schema: Json) -> str:
    """` 1 to 1024`, from whichever bounds there are."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None or high is None:
        return f" from {low}" if low is not None else f" to {high}" if high is not None else ""
    return f" {low} to {high}"


def default(schema: Json) -> str:
    return f"default <code>{compact(schema['default'])}</code>" if schema.get("default") is not None else ""


def compact(value: object) -> str:
    return escape(msgspec.json.encode(value).decode())


def prose(text: str) -> str:
    """Text in which `backticks` mark code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
