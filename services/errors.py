"""What the services answer when they cannot serve: one tree, each with its HTTP status and a name that programs can tell apart.

Every error's body is ``{"error": NAME, "detail": TEXT}``.
"""


class ServiceError(Exception):
    """Base; the message is the ``detail`` of the answer."""

    status = 500
    name = "internal"


class Unauthorized(ServiceError):
    """No valid token, or the tenant may not enter."""

    status = 401
    name = "unauthorized"


class NotFound(ServiceError):
    status = 404
    name = "not_found"


class InvalidValue(ServiceError):
    """A value that passes our rules and that PostgreSQL cannot hold, e.g. a text with a NUL."""

    status = 422
    name = "invalid_value"


class DatabaseUnavailable(ServiceError):
    """No connection within the deadline, or the query could not finish."""

    status = 503
    name = "database_unavailable"


class IdpUnavailable(ServiceError):
    """The identity provider cannot be asked: nobody is told that their password is wrong."""

    status = 503
    name = "idp_unavailable"
