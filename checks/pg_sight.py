"""The proof that there is something to see: a role with sight of the whole server, and a server that keeps what is asked for.

Without it every count of others' sessions would silently be too low, and every counter would stand still.
"""

from collections.abc import Sequence
from typing import Literal

from monitor.errors import CannotLook
from monitor.probes_contract import Asked, Postgres, Row

PRIVILEGES = "The predefined role `pg_monitor`: `GRANT pg_monitor TO` the role of the service's `dsn`."

# A role without these gets redacted rows (NULL state, NULL backend_type), never an error.
SIGHT = """
SELECT current_user::text AS me, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all,
       pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') AS sees_settings,
       current_setting('track_counts')::bool AS track_counts, current_setting('track_activities')::bool AS track_activities
"""

Tracking = Literal["track_counts", "track_activities"]
"""Settings without which the server's statistics, or what its sessions do, stand still or are empty, and look like health."""


async def look(pg: Postgres, *statements: Asked, tracked: Sequence[Tracking] = ()) -> list[list[Row]]:
    """Run the statements in one round trip and return their rows. Raises ``CannotLook`` naming the missing grant or setting.

    All see one snapshot of the activity views. What they read is kept by the server only while ``tracked`` are on.
    """
    (sight,), *answers = await pg.fetch_many((SIGHT, *statements))
    if not (sight["sees_all"] and sight["sees_settings"]):
        raise CannotLook(f"the role {sight['me']} sees only its own sessions and counters: GRANT pg_monitor TO {sight['me']}")
    if off := [setting for setting in tracked if not sight[setting]]:
        raise CannotLook(
            f"{off[0]} is off, so the server does not keep what is looked for: ALTER SYSTEM SET {off[0]} = on; SELECT pg_reload_conf(); "
            f"(or RESET it for the database or role that has its own)"
        )
    return answers
