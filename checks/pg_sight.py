"""The proof that a role sees the whole server: without it every count of others' sessions would silently be too low."""

from collections.abc import Mapping

from monitor.errors import CannotLook
from monitor.probes_contract import Postgres, Row, Statement

PRIVILEGES = "The predefined role `pg_monitor`: `GRANT pg_monitor TO` the role of the service's `dsn`."

# A role without these gets redacted rows (NULL state, NULL backend_type), never an error.
SIGHT = """
SELECT current_user::text AS me, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all,
       pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') AS sees_settings
"""

_NO_VALUES: Mapping[str, object] = {}


async def look(pg: Postgres, *statements: Statement | tuple[Statement, Mapping[str, object]]) -> list[list[Row]]:
    """Run the statements in one round trip and return their rows. Raises ``CannotLook`` naming the missing grant.

    All see one snapshot of the activity views.
    """
    (sight,), *answers = await pg.fetch_many([one if isinstance(one, tuple) else (one, _NO_VALUES) for one in (SIGHT, *statements)])
    if not (sight["sees_all"] and sight["sees_settings"]):
        raise CannotLook(f"the role {sight['me']} sees only its own sessions and counters: GRANT pg_monitor TO {sight['me']}")
    return answers
