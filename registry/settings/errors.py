"""The error of settings. It imports nothing, so that every table may name it."""


class ConfigError(Exception):
    """A setting that cannot be used; the text names the setting, its source and the remedy."""
