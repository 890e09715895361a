"""Import rules that import-linter cannot express, read from the syntax tree: prints each breach, then exits 1."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACT_MAY_IMPORT = {"pydantic", "luthier_common"}
PIPES = {"motor", "aioboto3", "aiobotocore", "boto3", "botocore", "aiokafka"}
PIPE_CALLS = {"KafkaBroker"}
KIT = "luthier_common.kit"
PURE = {"domain", "decide", "checks", "lifecycle"}
INPUT_OUTPUT = PIPES | {
    *("pymongo", "faststream", "litestar", "uvicorn", "httpx", "httpx2", "aiohttp", "requests", "socket", "subprocess"),
    *("asyncio", "torch", "transformers", "opentelemetry"),
}


def main() -> int:
    """Check every module below a `src` folder."""
    breaches = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted(ROOT.glob("*/*/src/**/*.py"))
        for line, text in _breaches(path)
    ]
    sys.stdout.writelines(f"{breach}\n" for breach in breaches)
    return 1 if breaches else 0


def _breaches(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    module = _module_name(path)
    for node, imported in _imports(tree):
        if text := _breach(module, imported):
            yield node.lineno, text
    yield from _inner_imports(tree)
    if not module.startswith(KIT):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node) in PIPE_CALLS:
                yield node.lineno, f"{_called(node)}( is called only in {KIT}"


def _breach(module: str, imported: str) -> str | None:
    top = imported.partition(".")[0]
    if module.startswith("luthier_common.contract"):
        if top not in CONTRACT_MAY_IMPORT and top not in sys.stdlib_module_names:
            return f"the contract imports pydantic and the standard library only, not {imported}"
        if top == "luthier_common" and not imported.startswith("luthier_common.contract"):
            return f"the contract imports nothing else of the libs, not {imported}"
    if top in PIPES and not module.startswith(KIT):
        return f"{top} is imported only in {KIT}"
    if module.rpartition(".")[2] in PURE and top in INPUT_OUTPUT:
        return f"a pure module imports no input or output, not {imported}"
    return None


def _inner_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """First-party imports belong at the top, where the arrows can be seen."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node, imported in _imports(function):
                if imported.startswith("luthier_"):
                    yield node.lineno, f"{imported} is imported inside a function"


def _imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module


def _called(call: ast.Call) -> str:
    function = call.func
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[len(parts) - parts[::-1].index("src") :]).removesuffix(".__init__")


if __name__ == "__main__":
    sys.exit(main())
