"""The version of the installed agent."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("sprat")
