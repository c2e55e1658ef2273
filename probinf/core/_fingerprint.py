r"""`fingerprint_of`: one short hash of data, settings and code, by which a checkpoint knows its own run."""

import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Code of these is named, not read: their versions stand in the manifest or do not matter to the numbers.
_LIBRARIES = sys.stdlib_module_names - {"__main__"} | set(
    "numpy scipy jax jaxlib equinox jaxtyping beartype numpyro optax lineax optimistix multipledispatch".split()
)
# Instances of these are tools of the process, not settings of a model: they differ from one process to the next.
_TOOLS = frozenset("logging _thread threading _io io os weakref _weakref _weakrefset contextvars _contextvars".split())
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SCALARS = (type(None), bool, int, float, complex, str, bytes, types.EllipsisType)


def fingerprint_of(*objects: Any) -> str:
    """A hash of everything that decides what the objects compute; equal in another process of the same Python.

    Arrays count by dtype, shape and bytes; modules, dataclasses, tuples, lists, dicts and sets by their parts;
    functions and methods by their code, defaults, closures and the globals they name, however deep; classes by
    their methods and constants; functions and classes of well-known libraries by name only, but their instances
    (`dist.Normal(0, 1)`) by value; other objects by their attributes or their `repr`. Of a module of the user, what
    counts is every entry that a function reading the module has as the name of an attribute.

    Unseen stay: what a function imports in its body or reaches by a computed name (`getattr(module, name)`), files
    and environment variables it reads, the state of objects that show it neither in `__dict__` nor in `repr`, and
    changes inside the well-known libraries, which the manifest tells by their versions at most.

    Args:
        *objects: anything: kernels, targets, keys, settings.

    Returns:
        32 hexadecimal digits.
    """
    hasher = _Hasher()
    hasher.add(objects)
    return hasher.total.hexdigest()


class _Hasher:
    """Walks objects depth first; an object met again counts as its number, which also ends cycles."""

    def __init__(self) -> None:
        self.total = hashlib.blake2b(digest_size=16)
        # The object is kept beside its number, lest it die and another take its id.
        self._seen: dict[int, tuple[int, Any]] = {}

    def _put(self, *words: Any) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            self.total.update(len(data).to_bytes(8, "little") + data)

    def add(self, item: Any) -> None:
        if isinstance(item, _SCALARS):
            self._put(type(item).__name__, repr(item))
        elif isinstance(item, jax.Array | np.ndarray | np.generic):
            self._array(item)
        elif id(item) in self._seen:
            self._put("again", self._seen[id(item)][0])
        else:
            self._seen[id(item)] = (len(self._seen), item)
            self._compound(item)

    def _array(self, array: Any) -> None:
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            self._put("key", jax.random.key_impl(array))
            array = jax.random.key_data(array)
        host = np.asarray(array)
        self._put("array", str(host.dtype), host.shape, host.tobytes())

    def _compound(self, item: Any) -> None:
        if isinstance(item, type):
            self._class(item)
        elif isinstance(item, types.CodeType):
            self._code(item)
        elif isinstance(item, types.ModuleType):
            self._put("module", item.__name__)
        elif isinstance(item, types.MethodType):
            self._parts("method", [item.__self__, item.__func__])
        elif isinstance(item, functools.partial):
            self._parts("partial", [item.func, item.args, item.keywords])
        elif isinstance(item, types.FunctionType):
            self._function(item)
        elif isinstance(item, property):
            self._parts("property", [item.fget])
        elif isinstance(item, staticmethod | classmethod):
            self._parts(type(item).__name__, [item.__func__])
        elif isinstance(item, Mapping):
            self._parts("dict", [part for name in sorted(item, key=repr) for part in (name, item[name])])
        elif isinstance(item, set | frozenset):
            self._parts("set", sorted(fingerprint_of(part) for part in item))
        else:
            self._object(item)

    def _parts(self, kind: str, parts: Iterable[Any]) -> None:
        parts = list(parts)
        self._put(kind, len(parts))
        for part in parts:
            self.add(part)

    def _object(self, item: Any) -> None:
        wrapped = inspect.unwrap(item) if callable(item) else item
        if wrapped is not item:  # a jitted or otherwise decorated function
            self.add(wrapped)
            return
        kind = type(item)
        self._put("object")
        self.add(kind)
        if dataclasses.is_dataclass(item):
            names = [field.name for field in dataclasses.fields(item)]
            self._parts("fields", [(name, inspect.getattr_static(item, name, None)) for name in names])
        elif isinstance(item, tuple | list):
            self._parts("items", item)
        elif _is_named(item):
            self._put(getattr(item, "__module__", None), item.__qualname__)
        elif _library(kind.__module__) and (parts := _flattened(item)) is not None:
            # Before `__dict__`, in which distributions of NumPyro keep what they have computed lazily.
            self._parts("node", parts)
        elif getattr(item, "__dict__", None):
            self.add(dict(vars(item)))
        else:
            self._put(_ADDRESS.sub("", repr(item)))

    def _class(self, kind: type) -> None:
        self._put("class", kind.__module__, kind.__qualname__)
        if _library(kind.__module__):
            return
        own = {name: value for name, value in vars(kind).items() if _belongs(name, value)}
        if issubclass(kind, enum.Enum):
            # Its private entries hold a cache, which grows when flags are combined.
            own = {name: value for name, value in own.items() if not name.startswith("_")}
            own["__members__"] = {name: member.value for name, member in kind.__members__.items()}
        self._parts("bases", [base for base in kind.__mro__[1:] if not _library(base.__module__)])
        self.add(own)

    def _function(self, function: types.FunctionType) -> None:
        unwrapped = inspect.unwrap(function)
        if unwrapped is not function:
            self.add(unwrapped)
        self._put("function", function.__module__, function.__qualname__)
        if _library(function.__module__):
            return
        self._code(function.__code__, skip=function.__doc__)
        self._parts("defaults", [function.__defaults__, function.__kwdefaults__])
        self._parts("closure", [_cell(cell) for cell in function.__closure__ or ()])
        known = function.__globals__
        used = {name: known[name] for name in _names(function.__code__) if _counts(known.get(name))}
        self.add(used)
        cells = [_cell(cell) for cell in function.__closure__ or ()]
        attributes = _attributes(function.__code__)
        modules = [known.get(name) for name in _names(function.__code__)] + cells
        for module in modules:
            if isinstance(module, types.ModuleType):
                self.add(_entries(module, attributes, []))

    def _code(self, code: types.CodeType, skip: str | None = None) -> None:
        self._put("code", code.co_code, code.co_names, code.co_varnames, code.co_freevars)
        self._parts("consts", [const for const in code.co_consts if skip is None or const != skip])


def _library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return None


def _names(code: types.CodeType) -> list[str]:
    """Global names that a function reads, those of the functions inside it included."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    # `co_names` would also hold names of attributes, and a global that happens to be called like one.
    own = [step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"]
    return sorted({*own, *inner})


def _attributes(code: types.CodeType) -> frozenset[str]:
    """Every name in the code of a function and of the functions inside it, those of attributes included."""
    inner = [_attributes(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


def _entries(module: types.ModuleType, names: frozenset[str], above: list[types.ModuleType]) -> dict[str, Any]:
    """What a module of the user has under these names, and what its submodules among them have."""
    if _library(module.__name__) or module in above:
        return {}
    found: dict[str, Any] = {}
    for name in sorted(names & vars(module).keys()):
        value = vars(module)[name]
        if isinstance(value, types.ModuleType):
            found[name] = _entries(value, names, [*above, module])
        elif _counts(value):
            found[name] = value
    return found


def _counts(value: Any) -> bool:
    """Whether a global that a function names is hashed: all but modules, code of libraries, and tools."""
    if value is None or isinstance(value, types.ModuleType):
        return False
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type) or _is_named(value):
        return not _library(getattr(value, "__module__", None))
    # Devices are where a run happens to be, and a checkpoint may go on elsewhere.
    if isinstance(value, jax.sharding.Mesh | jax.sharding.Sharding | jax.Device):
        return False
    return type(value).__module__.partition(".")[0] not in _TOOLS


def _belongs(name: str, value: Any) -> bool:
    """Whether an entry of a class is hashed: methods, and everything that is not for Python itself."""
    if callable(value) or isinstance(value, property | staticmethod | classmethod):
        return True
    if name.startswith("_abc_") or (name.startswith("__") and name.endswith("__")):
        return False
    if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
        return False
    return _counts(value)


def _flattened(item: Any) -> tuple[Any, Any] | None:
    """Children and static data of a pytree of a library; None where the item is a leaf."""
    kind = type(item)
    if hasattr(kind, "gather_pytree_data_fields") and hasattr(kind, "gather_pytree_aux_fields"):
        # NumPyro flattens in the order of a set of names, which differs from one process to the next.
        names = {*kind.gather_pytree_data_fields(), *kind.gather_pytree_aux_fields()}
        return ({name: getattr(item, "__dict__", {}).get(name) for name in names}, None)
    if jax.tree_util.all_leaves([item]):
        return None
    children, static = jax.tree_util.default_registry.flatten_one_level(item)
    return tuple(children), static


def _is_named(item: Any) -> bool:
    return callable(item) and isinstance(getattr(item, "__qualname__", None), str)
