"""What a request can be answered with instead of an answer, in the shape that OpenAI's clients expect."""

from typing import Any

from guard.errors import NeuronGuardError


class StartError(NeuronGuardError):
    """A server that must not start, and why."""


class RequestError(NeuronGuardError):
    """A request that is not served: a status, and the error object that OpenAI's clients raise.

    `kind` is OpenAI's `type`, `parameter` the body field at fault, `code` a short name for programs,
    `retry_after` seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        parameter: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.parameter = parameter
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The JSON document of the answer."""
        error = {"message": str(self), "type": self.kind, "param": self.parameter, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that go with the status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def bad_request(message: str, parameter: str | None = None, code: str | None = None) -> RequestError:
    """400: the request itself is at fault."""
    return RequestError(400, message, parameter=parameter, code=code)


def prompt_too_long(tokens: int, context: int) -> RequestError:
    """400 as OpenAI gives it for a prompt of `tokens` that leaves no room in a context of `context` tokens."""
    return bad_request(
        f"This model's maximum context length is {context} tokens, but the prompt has {tokens}.",
        parameter="prompt",
        code="context_length_exceeded",
    )


def not_serving(reason: str) -> RequestError:
    """503: nothing can be generated with the guard on, so nothing is generated."""
    return RequestError(503, f"The guard is not in force: {reason}", kind="server_error", code="guard_not_in_force")


def not_reloaded(reason: NeuronGuardError) -> RequestError:
    """409: the spec that was to be served from now on must not be; the old one is."""
    return RequestError(409, f"The old spec serves on: {reason}", code="spec_refused")


def overloaded(seconds: int) -> RequestError:
    """429: too many requests wait already."""
    return RequestError(
        429,
        "Too many requests are waiting; try again later.",
        kind="rate_limit_error",
        code="overloaded",
        retry_after=seconds,
    )


def failed(reason: str) -> RequestError:
    """500: this request could not be completed."""
    return RequestError(500, reason, kind="server_error", code="generation_failed")
