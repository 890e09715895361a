"""A GGUF file or a Hugging Face directory becomes a base bundle, in a process of its own.

python -m luthier_registry.base_import SOURCE OUT_DIR [--name NAME]
"""

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

from luthier_registry.bundle import BundleExistsError, BundleManifest
from luthier_registry.errors import BaseImportError
from luthier_registry.gguf_import import import_gguf
from luthier_registry.hf_import import import_directory
from luthier_registry.sources import SourceKind, errors_told, kind_of

PR_SET_PDEATHSIG = 1


def import_base(source: Path, target: Path, name: str) -> BundleManifest:
    """Make the bundle directory `target` of a source, whichever it is; raises `BaseImportError`."""
    kind = kind_of(source)
    if kind is SourceKind.BUNDLE:
        raise BaseImportError("source_unknown", f"{source} is a bundle already")
    return (import_gguf if kind is SourceKind.GGUF else import_directory)(source, target, name)


def main(arguments: list[str] | None = None) -> int:
    """The command line; what went wrong is said in one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m luthier_registry.base_import", description="base model to bundle")
    parser.add_argument("source", type=Path, help="a GGUF file, or a directory as Hugging Face lays it out")
    parser.add_argument("out_dir", type=Path, help="the bundle directory to make")
    parser.add_argument("--name", help="the name of the base model; without it that of the source")
    parser.add_argument("--parent-pid", type=int, help="end when this process, which started us, ends")
    options = parser.parse_args(arguments)
    if options.parent_pid is not None and not _die_with(options.parent_pid):
        return 1
    try:
        with errors_told(options.source):
            manifest = import_base(options.source, options.out_dir, options.name or options.source.name)
    except (BaseImportError, BundleExistsError) as error:
        sys.stderr.write(f"{error.code}: {' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(f"{manifest.name} {manifest.digest} {options.out_dir}\n")
    return 0


def _die_with(parent_pid: int) -> bool:
    """Whether the parent still lives; from now on the kernel ends this process with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent_pid


if __name__ == "__main__":
    sys.exit(main())
