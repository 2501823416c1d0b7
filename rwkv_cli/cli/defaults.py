"""Defaults of options that the user's settings give; the file is read when the first of them is asked for."""

from __future__ import annotations

from typing import Any

from rwkv_cli.errors import RwkvError

_OPTIONS = ("model", "device", "threads", "show_thinking", "markdown")


class Defaults(dict[str, Any]):
    """What Typer asks for the value of an option that the command line does not have.

    Settings that a saved state comes before, those of sampling, are not among them: see `rwkv_cli.sessions`.
    """

    def get(self, name: str, default: Any = None) -> Any:
        """The setting of an option. Raises SettingsError."""
        if name not in (*_OPTIONS, "vi"):
            return default
        from rwkv_cli import settings

        found = settings.load()
        return found.editing == "vi" if name == "vi" else found.chosen.get(name, default)


def theme() -> str:
    """The theme; that of no settings where they cannot be read, of which the command itself tells if it needs them."""
    from rwkv_cli import settings

    try:
        return settings.load().theme
    except RwkvError:
        return settings.Settings.theme


def in_force() -> str:
    """A line about the settings that the user has made, and about where they are. Raises SettingsError."""
    from rwkv_cli import paths, settings

    chosen = settings.load().chosen
    values = ", ".join(f"{name} = {settings.as_toml(value)}" for name, value in chosen.items())
    return f"settings ({paths.settings_file()}): {values or 'none'}"
