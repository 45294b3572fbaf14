"""Why a body is refused, in one sentence that names the field."""

from collections.abc import Mapping, Sequence
from typing import Any

from serve.http.errors import RequestError, bad_request
from serve.http.schema import REFUSED
from serve.settings import Settings


def refusal(errors: Sequence[Mapping[str, Any]], body: Any) -> RequestError:
    """The 400 for what pydantic found in `body`; a field that is not known goes before everything else."""
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    error = (unknown or list(errors))[0]
    path = _in_body(error["loc"][1:], body, missing=error["type"] == "missing")
    name, field = path[-1] if path else "", ".".join(path)
    if unknown:
        reason = REFUSED.get(name)
        text = f"{field} is not accepted: {reason}." if reason else f"{field} is not a field that this server knows."
        return bad_request(text, field, "unknown_field")
    if error["type"] == "json_invalid":
        return bad_request("The body is not valid JSON.")
    if error["type"] in ("model_attributes_type", "model_type") and not path:
        return bad_request("The body must be a JSON object, sent with Content-Type: application/json.")
    message = str(error["msg"]).removeprefix("Value error, ")
    return bad_request(f"{field}: {message}." if field else f"{message}.", field or None)


def _in_body(location: Sequence[str | int], body: Any, *, missing: bool) -> list[str]:
    """The parts of pydantic's `location` that stand in the body; the others name the alternatives that it tried."""
    path = []
    for part in location:
        known = part in body if isinstance(body, dict) else isinstance(part, int) and isinstance(body, list)
        if known:
            path.append(str(part))
            body = body[part]
    if missing and location:
        path.append(str(location[-1]))
    return path


def check_model(name: str | None, settings: Settings) -> None:
    """404 unless `name` is the model that is served; no other one, and no adapter, goes by another name."""
    if name is not None and name != settings.name:
        raise RequestError(
            404,
            f"The model {name!r} does not exist; this server has {settings.name!r}.",
            parameter="model",
            code="model_not_found",
        )
