"""The configuration: from ``config.toml`` to typed settings."""
