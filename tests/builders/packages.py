"""The packages that run in services: whatever looks at all of the product's source goes by this list."""

ROOMS = ("api", "file_validator", "scheduler", "trainer", "registry", "inference")
LIBS = ("common", "text", "datachecks", "graders")
PACKAGES = tuple(f"luthier_{name}" for name in (*LIBS, *ROOMS))
