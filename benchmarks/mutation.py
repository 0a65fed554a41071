"""Mutation testing of the idea: small faults are put into the code, one at a time, and its tests must notice each.

    nice python benchmarks/mutation.py [MODULE...] [--json OUT]

Prints how many mutants of each module its own test file kills, and where the survivors are; exits with 1 where fewer
than 85 % of all are killed. Every mutant runs in a fork of one process that has torch loaded already. Texts, types and
messages are not mutated.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import json
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {
    "ohem.samplers": "test_samplers.py",
    "ohem.rivals": "test_rivals.py",
    "ohem.losses": "test_losses.py",
    "ohem.reweighting": "test_reweighting.py",
    "ohem.rois": "test_rois.py",
    "ohem.boxes": "test_boxes.py",
    "ohem.evaluation.average_precision": "test_evaluation_average_precision.py",
}
WANTED = 0.85
CPU_SECONDS = 40
"""A mutant that runs for ever is killed, as the tests' reader would kill it."""

OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        line: where.
        before: the smallest expression or statement around it.
        after: the same with the fault.
        tree: the whole module with the fault.
    """

    line: int
    before: str
    after: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Every fault that we know to make, in the order of the file."""
    module = ast.parse(source)
    left_alone = _left_alone(module)
    places = [(i, n) for i, n in enumerate(ast.walk(module)) if id(n) not in left_alone and _changes(n)]
    for index, node in sorted(places, key=lambda place: (place[1].lineno, place[1].col_offset)):
        for change in range(_changes(node)):
            tree = copy.deepcopy(module)
            mutated = next(n for i, n in enumerate(ast.walk(tree)) if i == index)
            before = ast.unparse(mutated)
            tree, after = _change(tree, mutated, change)
            yield Mutant(node.lineno, before, after, ast.fix_missing_locations(tree))


def _left_alone(module: ast.Module) -> set[int]:
    """Types, texts and imports, with everything inside them."""
    tops: list[ast.AST | None] = []
    for node in ast.walk(module):
        if isinstance(node, ast.AnnAssign | ast.arg):
            tops.append(node.annotation)
        if isinstance(node, ast.FunctionDef):
            tops += [node.returns, *node.decorator_list]
        if isinstance(node, ast.ClassDef):
            tops += [*node.decorator_list, *node.bases]
        if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr):
            tops.append(node)
    return {id(inner) for top in tops if top is not None for inner in ast.walk(top)}


def _changes(node: ast.AST) -> int:
    """In how many ways a node can be made wrong."""
    if isinstance(node, ast.Compare):
        return len(node.ops)
    if isinstance(node, ast.BinOp | ast.BoolOp):
        return int(type(node.op) in OTHER)
    if isinstance(node, ast.Constant):
        return int(isinstance(node.value, bool | int | float))
    return int(isinstance(node, ast.UnaryOp | ast.Raise | ast.AugAssign))


def _change(tree: ast.Module, node: ast.AST, which: int) -> tuple[ast.Module, str]:
    if isinstance(node, ast.Compare):
        node.ops[which] = OTHER[type(node.ops[which])]()  # type: ignore[assignment]
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = OTHER[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant):
        assert isinstance(node.value, bool | int | float)
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    else:
        new = node.operand if isinstance(node, ast.UnaryOp) else ast.Pass()
        return _Replace(node, new).visit(tree), ast.unparse(new)
    return tree, ast.unparse(node)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from a tree in place of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def get_source(self, name: str) -> str:
        return ast.unparse(self.tree)

    def get_code(self, name: str) -> object:
        return compile(self.tree, str(self.path), "exec")


def survives(name: str, path: Path, tree: ast.Module) -> bool:
    """Run a module's tests with another tree in its place."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        sys.meta_path.insert(0, _Mutated(name, path, tree))
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--rootdir={ROOT}"]
        code = int(pytest.main([str(ROOT / "tests" / TESTS[name]), *options]))
    finally:
        os._exit(min(code, 1))


def survivors(name: str) -> tuple[int, list[Mutant]]:
    """How many mutants a module has, and those that its tests pass."""
    path = ROOT / "src" / Path(*name.split(".")).with_suffix(".py")
    source = path.read_text()
    if not survives(name, path, ast.parse(source)):
        raise SystemExit(f"{TESTS[name]}: fails without a mutant; mend that first")
    made = list(mutants(source))
    return len(made), [mutant for mutant in made if survives(name, path, mutant.tree)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--json", type=Path, help="keep the numbers and the survivors here")
    options = parser.parse_args(arguments)
    result = {}
    for name in options.modules or TESTS:
        count, alive = survivors(name)
        print(f"{name}: {count - len(alive)} of {count} killed, {100 * (count - len(alive)) / count:.0f} %", flush=True)
        for one in alive:
            print(f"  line {one.line}: {one.before}  ->  {one.after}", flush=True)
        result[name] = {"mutants": count, "survivors": [[one.line, one.before, one.after] for one in alive]}
    total = sum(each["mutants"] for each in result.values())
    killed = total - sum(len(each["survivors"]) for each in result.values())
    print(f"all: {killed} of {total} killed, {100 * killed / total:.1f} %")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(killed < WANTED * total)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Loaded once, here, and never touched before a fork: what takes long, and nothing of ohem.
    import hypothesis
    import pytest
    import scipy.optimize  # noqa: F401
    import torch
    import torchvision.ops  # noqa: F401

    hypothesis.settings.register_profile("mutation", database=None, deadline=None)
    hypothesis.settings.load_profile("mutation")
    torch.set_num_threads(1)
    sys.exit(main())
