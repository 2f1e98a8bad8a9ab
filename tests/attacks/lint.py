"""What our source never says. Law: a rule is a list of forbidden calls, and every rule is seen to catch what it forbids.

    faults(ast.parse("torch.load(x)"))  ->  ["line 1: torch.load can run code from a file"]

Names are compared by their last parts as written, so `from torch import load; load(x)` is caught by the import.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MODULES = {  # never imported
    **dict.fromkeys(("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "copyreg"),
                    "can run code from a file"),
    "jinja2": "renders templates, and text of a patch is never one",
    "runpy": "runs files",
    "code": "runs text",
}  # fmt: skip
CALLS = {  # dotted name -> why not; a call matches when its name ends in it
    "torch.load": "can run code from a file, with weights_only=True too",
    "torch.jit.load": "runs code from a file",
    "torch.package.PackageImporter": "runs code from a file",
    "torch.hub.load": "runs code from a repository",
    "numpy.load": "unpickles",
    "np.load": "unpickles",
    "pandas.read_pickle": "unpickles",
    "yaml.unsafe_load": "builds any object",
    "yaml.full_load": "builds objects",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "gr.load": "fetches what a URL says",
    "gr.Interface.load": "fetches what a URL says",
}
BUILTINS = ("eval", "exec", "compile", "__import__")
KEYWORDS = {  # keyword -> the only values it may have
    "trust_remote_code": (False,),
    "use_safetensors": (True,),
    "weights_only": (),
    "share": (False,),
    "allowed_paths": (),
    "shell": (False,),
    "allow_pickle": (False,),
    "safe_serialization": (True,),
}


COMPUTED = "with a name that is computed"


def faults(tree: ast.AST) -> list[str]:
    """What is wrong, by line."""
    return [f"line {line}: {what}" for line, what in sorted(_faults(tree))]


def _faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(node)
        if isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _call(node))
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant):
                    yield from ((node.lineno, what) for what in _keyword(key.value, value))


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    for name in names:
        if name.split(".")[0] in MODULES:
            yield node.lineno, f"{name} {MODULES[name.split('.')[0]]}"
        if name in CALLS:
            yield node.lineno, f"{name} {CALLS[name]}"


def _call(node: ast.Call) -> Iterator[str]:
    name = _dotted(node.func)
    for forbidden, why in CALLS.items():
        if (name == forbidden or name.endswith("." + forbidden)) and not name.startswith("safetensors."):
            yield f"{forbidden} {why}"
    if name in BUILTINS:
        yield f"{name} runs text"
    if name.endswith("yaml.load") and not any(_names_safe_loader(k) for k in node.keywords if k.arg == "Loader"):
        yield "yaml.load without a safe loader builds any object"
    by_name = name in ("getattr", "setattr", "delattr") or name.endswith(("import_module", "find_spec"))
    place = 0 if name.endswith(("import_module", "find_spec")) else 1
    if by_name and not isinstance(node.args[place], ast.Constant):
        yield f"{name} {COMPUTED}"
    for keyword in node.keywords:
        yield from _keyword(keyword.arg, keyword.value)


def _keyword(name: object, value: ast.expr) -> Iterator[str]:
    if name in KEYWORDS and not (isinstance(value, ast.Constant) and value.value in KEYWORDS[name]):
        yield f"{name}={ast.unparse(value)}"


def _names_safe_loader(keyword: ast.keyword) -> bool:
    return _dotted(keyword.value).split(".")[-1] in ("SafeLoader", "CSafeLoader", "_Loader")


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def sources() -> list[Path]:
    """Every Python file that ships."""
    found = [ROOT / "app.py", *(ROOT / "kedit_hub").rglob("*.py"), *(ROOT / "space").rglob("*.py")]
    return sorted(path for path in found if "__pycache__" not in path.parts)
