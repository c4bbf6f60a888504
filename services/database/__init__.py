"""The platform's schema: migrations applied in order and once, roles, and the data of a demo tenant."""

from services.database.migration import DatabaseError, create_database, migrate
from services.database.roles import ROLES, create_roles
from services.database.seed import seed

__all__ = ["ROLES", "DatabaseError", "create_database", "create_roles", "migrate", "seed"]
