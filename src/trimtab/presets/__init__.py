"""Settings that are known to work: one YAML file for each environment, one section for each method."""

from pathlib import Path
from typing import Any

from trimtab.config import load_yaml

FOLDER = Path(__file__).parent
ANY = FOLDER / "any.yaml"


def preset_file(method: str, env: str) -> Path:
    """The file with this method's settings for the environment, or with those for any environment."""
    file = FOLDER / f"{env.replace('/', '-')}.yaml"
    return file if file.exists() and method in load_yaml(file) else ANY


def preset(method: str, env: str) -> dict[str, Any]:
    """The settings by the names of their options; none for a method that no environment serves."""
    settings: dict[str, Any] = load_yaml(preset_file(method, env)).get(method, {})
    return settings


def serves_environments(method: str) -> bool:
    """Whether a method learns from steps in environments, too."""
    return method in load_yaml(ANY)


def environments() -> list[str]:
    """The environments that have settings of their own."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml") if file != ANY)
