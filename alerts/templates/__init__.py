"""How mails look: Jinja templates, filled by ``alerts.email`` with everything escaped."""

from pathlib import Path

FOLDER = Path(__file__).parent
