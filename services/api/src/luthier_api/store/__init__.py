"""All reads and writes, a module for each kind of thing. What belongs to somebody is reached through a `Repository`."""

from luthier_api.store.platform import END_OF_FILE, RELEASE_DUE, PlatformStore, release_bytes
from luthier_api.store.repository import Repository

__all__ = ["END_OF_FILE", "RELEASE_DUE", "PlatformStore", "Repository", "release_bytes"]
