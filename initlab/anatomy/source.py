"""What a model's own code says it does: its init in branches that its own attributes allow, the forward it runs."""

from __future__ import annotations

import ast
import functools
import inspect
import math
import re
import textwrap
from collections.abc import Collection, Iterator
from types import CodeType
from typing import Any

from torch import nn

from initlab.anatomy.holding import holders

_INITS = re.compile(r"__init__|init|reset_parameters")
_DEPTH = re.compile(r"(n|num|number)?_?(of_)?(hidden_|transformer_|decoder_|encoder_)?(layers?|blocks?)|depth|l|n")
# what a number of blocks isn't called, though it may be as large by chance
_NO_DEPTH = re.compile(
    r"head|dim|emb|hidden|width|size|kernel|group|expert|channel|vocab|rank|fan|top_?k|seed|batch|len"
)
_NORMAL = ("normal_", "trunc_normal_")
_DRAWS = re.compile(r"((trunc|log|kaiming|xavier)_)?(normal|uniform)_|orthogonal_|sparse_|(rand|randn)(_like)?")
_LEVELS = 8  # of names that stand for names
Path = tuple[tuple[ast.expr, bool], ...]  # conditions that code stands under, and what each must be
UNKNOWN = object()  # what can't be known without running the code


def depth_code(model: nn.Module, outputs: Collection[str] = ()) -> str:
    """Find the model's own init code that divides by a root of its depth, as `GPT2PreTrainedModel._init_weights`.

    Read from the syntax tree, in any spelling: `/ math.sqrt(2 * config.n_layer)`, `* (2 * self.depth) ** -0.5`. The
    depth goes by its usual names, and by those under which the model or a config holds as many as it has blocks. Code
    under a condition which the model's own attributes make false didn't run, and says nothing.

    Args:
        model: read, never called.
        outputs: names of the parameters that such a code is asked about. One that names modules of the model, and none
            of these, is about others, as a head.
    """
    mine = {_holder(name) for name in outputs}
    others = {_holder(name) for name, _ in model.named_parameters()} - mine
    counts = _depths(model)
    for owner, module in owners(model).items():
        for name, root in init_trees(owner):
            named = _words(root)
            if mine and named & others and not named & mine:
                continue
            known = _here(root, counts)
            if any(_divides(node, known) and ran(path, module) for node, path in conditioned(root, ())):
                return name
    return ""


def written_stds(model: nn.Module) -> dict[float, str]:
    """Read the std with which a model's own init code calls `normal_` and `trunc_normal_`, before a scaling by depth.

    A number, a variable or argument that is one, an attribute of the model or its config. Code under a condition which
    the model's own attributes make false didn't run.

    Args:
        model: read, never called.

    Returns:
        function by std; nothing where one of the draws is of another kind (`xavier_uniform_`), or has a std that is
        computed otherwise, as from a fan_in: which weights are drawn by which can't be read.
    """
    found: dict[float, str] = {}
    counts = _depths(model)
    for owner, module in owners(model).items():
        for name, root in init_trees(owner):
            known = _here(root, counts)
            for node, path in conditioned(root, ()):
                if not isinstance(node, ast.Call) or not _DRAWS.fullmatch(called(node)) or not ran(path, module):
                    continue
                stds = list(_numbers(_std_of(node), root, module, known)) if "normal" in called(node) else []
                if not stds or called(node) not in _NORMAL:
                    return {}
                found |= dict.fromkeys(stds, name)
    return {std: name for std, name in found.items() if 0 < std < math.inf}


def owners(model: nn.Module) -> dict[type, nn.Module]:
    """The classes that a model is made of, but for torch's own, each with a module of it."""
    owners: dict[type, nn.Module] = {}
    for module in model.modules():
        for owner in type(module).__mro__:
            if issubclass(owner, nn.Module) and not owner.__module__.startswith("torch."):
                owners.setdefault(owner, module)
    return owners


def _std_of(call: ast.Call) -> ast.expr | None:
    """The argument `std` of `nn.init.normal_(w, mean, std)` and of `w.normal_(mean, std)`."""
    said = [each.value for each in call.keywords if each.arg == "std"]
    of_tensor = isinstance(call.func, ast.Attribute) and not ast.unparse(call.func.value).endswith("init")
    place = 1 if of_tensor else 2
    return said[0] if said else call.args[place] if len(call.args) > place else None


def _numbers(
    node: ast.expr | None, root: ast.AST, module: nn.Module, depth: frozenset[str], level: int = 0
) -> Iterator[float]:
    """What an expression may be, with a factor that is a root of the depth taken off."""
    if node is None or level > _LEVELS:
        return
    inner: list[ast.expr | None] = []
    if isinstance(node, ast.IfExp):
        inner = [node.body, node.orelse]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _divides(node, depth):
        inner = [node.left]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = [node.left, node.right]
        inner = [a for a, b in (sides, sides[::-1]) if _divides(b, depth)]
    elif isinstance(node, ast.Name):
        inner = list(assigned(node.id, root))
    value = value_of(node, module) if not inner else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)
    for each in inner:
        yield from _numbers(each, root, module, depth, level + 1)


def assigned(name: str, root: ast.AST) -> Iterator[ast.expr]:
    """What a function assigns to a name, or has as the default of an argument."""
    for node in ast.walk(root):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            yield node.value
        if isinstance(node, ast.arguments):
            arguments = [*node.posonlyargs, *node.args][-len(node.defaults) :] if node.defaults else []
            yield from (d for a, d in zip(arguments, node.defaults, strict=True) if a.arg == name)
            yield from (d for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True) if a.arg == name and d)


def forward_reads(module: nn.Module, name: str) -> bool:
    """Tell whether the forward of a module, or a method that it calls, names an attribute.

    A class that brings a forward of its own may leave what it inherited unread. Names are those of the compiled code,
    which is there where no source is; a forward that Python didn't compile is taken to read everything.

    Args:
        module: read, never called.
        name: of the attribute.
    """
    seen: set[str] = set()
    wanted = ["forward"]
    while wanted:
        seen.add(method := wanted.pop())
        own = [] if method not in vars(module) else [vars(module)[method]]
        held = [*own, *(vars(owner)[method] for owner in type(module).__mro__ if method in vars(owner))]
        for value in held:
            value = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
            if not inspect.isfunction(value):
                if method == "forward":
                    return True
                break
            names, texts = _named_in(value.__code__)
            if name in names | texts:
                return True
            wanted += [each for each in names - seen if hasattr(type(module), each) and not hasattr(nn.Module, each)]
            if "super" not in names or method not in names:
                break
    return False


def _named_in(code: CodeType) -> tuple[set[str], set[str]]:
    """What a piece of code and those in it name, and the texts in it, as of `getattr(self, "scale")`."""
    names, texts = set(code.co_names), {each for each in code.co_consts if isinstance(each, str)}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more = _named_in(inner)
            names, texts = names | more[0], texts | more[1]
    return names, texts


def _holder(parameter: str) -> str:
    """`c_proj` of `h.0.attn.c_proj.weight`; what a block holds itself by its own name."""
    owner, _, name = parameter.rpartition(".")
    return owner.rpartition(".")[2] if name in ("weight", "bias") else name


@functools.cache
def _words(tree: ast.AST) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", ast.unparse(tree)))


@functools.cache
def init_trees(owner: type) -> tuple[tuple[str, ast.AST], ...]:
    """The functions of a class that set up its weights and those beside it that they name, by name, parsed."""
    found = {}
    functions = [inspect.unwrap(value) if callable(value) else value for value in vars(owner).values()]
    functions = [each for each in functions if inspect.isfunction(each) and _INITS.search(each.__name__)]
    for function in functions:
        named = [function.__globals__.get(name) for name in function.__code__.co_names if _INITS.search(name)]
        functions += [each for each in named if _own_function(each) and each not in functions]
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):  # typed into a prompt, or made elsewhere
            continue
        found[function.__qualname__.rpartition("<locals>.")[2]] = tree
    return tuple(sorted(found.items(), key=lambda each: each[0].endswith("__init__")))


def _own_function(value: Any) -> bool:
    return inspect.isfunction(value) and not value.__module__.startswith("torch.")


def conditioned(node: ast.AST, path: Path) -> Iterator[tuple[ast.AST, Path]]:
    """Every node below one, with the conditions that it stands under and what each must be."""
    yield node, path
    for field, value in ast.iter_fields(node):
        inside = path
        if isinstance(node, ast.If | ast.IfExp) and field in ("body", "orelse"):
            inside = (*path, (node.test, field == "body"))
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from conditioned(child, inside)


def _depths(model: nn.Module) -> frozenset[str]:
    """Names of what holds a number of blocks, and of the lists of blocks."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and len(set(map(type, module))) == 1
    }
    depths = {len(module) for module in lists.values()}
    held = (
        (name, value) for module in model.modules() for _, values in holders(module) for name, value in values.items()
    )
    counts = {name for name, value in held if type(value) is int and value in depths and not _NO_DEPTH.search(name)}
    return frozenset(counts | {name.rpartition(".")[2] for name in lists})


def _here(root: ast.AST, names: frozenset[str]) -> frozenset[str]:
    """Names of the depth in one function: `.n` of an attribute, `n` of an argument or of what the function so calls."""
    made = {node.id for node in ast.walk(root) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    known = frozenset({f".{name}" for name in names} | (names - made))
    return known | {
        target.id
        for node in ast.walk(root)
        if isinstance(node, ast.Assign) and _counts(node.value, known, short=False)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _divides(node: ast.AST, names: frozenset[str]) -> bool:
    """`x / sqrt(2 * n)`, `x * (2 * n) ** -0.5`, `x /= …`, `rsqrt(2 * n)`: a root of the depth below a std."""
    if isinstance(node, ast.BinOp | ast.AugAssign):
        right = node.right if isinstance(node, ast.BinOp) else node.value
        if isinstance(node.op, ast.Div):
            return _root(right) is not None and _depth(_root(right), names)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _number(node.right) == -0.5:
            return _depth(node.left, names)
    if isinstance(node, ast.Call):
        return called(node) == "rsqrt" and bool(node.args) and _depth(node.args[0], names)
    return False


def _root(node: ast.expr) -> ast.expr | None:
    if isinstance(node, ast.Call) and called(node) == "sqrt" and node.args:
        return node.args[0]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _number(node.right) == 0.5:
        return node.left
    return None


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return float(value) if isinstance(value, int | float) else None


def _depth(node: ast.expr | None, names: frozenset[str]) -> bool:
    """Whether what a root is taken of is a number of blocks, alone or times a number; `n` only beside one."""
    if isinstance(node, ast.Call) and called(node) in ("float", "int", "max", "tensor") and node.args:
        return _depth(node.args[0], names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = (node.left, node.right)
        pairs = zip(map(_number, sides), sides[::-1], strict=True)
        return any(number is not None and _counts(side, names, short=True) for number, side in pairs)
    return isinstance(node, ast.expr) and _counts(node, names, short=False)


def _counts(node: ast.expr, names: frozenset[str], *, short: bool) -> bool:
    if isinstance(node, ast.Call):
        known = called(node) in ("len", "float", "int") and bool(node.args)
        return known and _named(node.args[0], names, short=short)
    return _named(node, names, short=short)


def _named(node: ast.expr, names: frozenset[str], *, short: bool) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        name = str(node.slice.value)
    held = name if isinstance(node, ast.Name) else f".{name}"
    return held in names or (bool(_DEPTH.fullmatch(name.lower())) and (short or len(name) > 1))


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def ran(path: Path, module: nn.Module) -> bool:
    """Whether no condition on the way is known to have gone the other way."""
    return all((value := value_of(test, module)) is UNKNOWN or bool(value) == wanted for test, wanted in path)


def value_of(node: ast.expr, module: nn.Module) -> Any:
    """What an expression of `self`, its config and literals is; `UNKNOWN` where it holds anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        held = vars(module).get(node.id, UNKNOWN) if node.id in ("config", "cfg", "args") else UNKNOWN
        return module if node.id == "self" else held
    if isinstance(node, ast.Attribute):
        owner = value_of(node.value, module)
        held = {} if owner is UNKNOWN else owner if isinstance(owner, dict) else getattr(owner, "__dict__", {})
        value = held.get(node.attr, UNKNOWN)
        return (
            value
            if value is None or isinstance(value, bool | int | float | str) or hasattr(value, "__dict__")
            else UNKNOWN
        )
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = value_of(node.operand, module)
        return UNKNOWN if value is UNKNOWN else not value
    if isinstance(node, ast.BoolOp):
        values = [value_of(each, module) for each in node.values]
        decided = isinstance(node.op, ast.Or)
        if any(value is not UNKNOWN and bool(value) == decided for value in values):
            return decided
        return UNKNOWN if any(value is UNKNOWN for value in values) else not decided
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = value_of(node.left, module), value_of(node.comparators[0], module)
        if left is UNKNOWN or right is UNKNOWN:
            return UNKNOWN
        if isinstance(node.ops[0], ast.Eq | ast.Is):
            return left == right
        if isinstance(node.ops[0], ast.NotEq | ast.IsNot):
            return left != right
    return UNKNOWN
