"""A pretend GPU: tensors say ``cuda:0``, are computed on the CPU, and refuse what a GPU refuses.

Where a tensor lies is kept on its storage, which views, parameters and ``detach`` share. As with a
real GPU, an operation on tensors of two devices raises RuntimeError (a CPU number, of no dimension,
may meet CUDA tensors; CPU indices may index one; ``copy_`` crosses), so does a draw from another
device's generator, and NumPy raises TypeError. What waits for the GPU is counted.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch._dynamo  # loaded by a dispatch mode, and not while torch is patched
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

CPU, CUDA, ANY = torch.device("cpu"), torch.device("cuda", 0), None
INDEXED = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
WAITING = set(
    "_local_scalar_dense nonzero masked_select equal _unique2 unique_dim bincount".split()
)
DRAWING = "uniform_ normal_ bernoulli_ random_ exponential_ bernoulli multinomial".split()
LIKE = "empty_like zeros_like ones_like full_like rand_like randn_like randint_like".split()
NEW = "new_tensor new_zeros new_ones new_full new_empty".split()


def original(name: str):
    """Return torch's own method; under a default device torch would look it up, and find ours."""
    method = getattr(Tensor, name)

    def own(*args, **kwargs):
        with torch._C.DisableTorchFunction():
            return method(*args, **kwargs)

    return own


of_torch = {name: original(name) for name in "to numpy tolist".split()}


class Waits:
    """How often the main thread waited for the pretend GPU."""

    count = 0


def wait() -> None:
    Waits.count += threading.current_thread() is threading.main_thread()


def bare(x: Tensor) -> Tensor:
    """Return the tensor inside the wrappers of vmap and grad."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def place(x: Tensor) -> torch.device | None:
    """Return CUDA or CPU; ANY of what torch made inside an operation and no tensor met yet."""
    return getattr(bare(x).untyped_storage(), "place", CPU)


def put(x: Tensor, where: torch.device | None) -> Tensor:
    bare(x).untyped_storage().place = where
    return x


def named(device) -> torch.device:
    """Return CPU or CUDA for what a caller wrote; there is no second GPU."""
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type == "cuda" and device.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    return CUDA if device.type == "cuda" else CPU


def default() -> torch.device | None:
    """Return the default device that is in force here, if one was set."""
    modes = reversed(_get_current_function_mode_stack())
    return next((named(mode.device) for mode in modes if isinstance(mode, DeviceContext)), None)


def tensors(values) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(value)


class Rules(TorchDispatchMode):
    """Carries the place of a tensor through every operation, and refuses two places in one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        given = [*tensors(args), *tensors(kwargs.values())]
        if kwargs.get("device") is not None and kwargs["device"].type == "cuda":
            kwargs["device"], where = CPU, CUDA
        else:
            where = common(func, name, args, given) if given else ANY
        if waits(name, args, given):
            wait()
        result = func(*args, **kwargs)
        if name != "set_":
            for x in tensors([result]):
                put(x, where)
        return result


def waits(name: str, args, given: list[Tensor]) -> bool:
    """Return whether an operation waits for the GPU: for numbers, or sizes that they decide."""
    if name in INDEXED:
        rows = [x for x in tensors(args[1:2]) if x.dtype in (torch.bool, torch.uint8)]
        return any(place(x) == CUDA for x in rows)
    if name == "copy_":
        crosses = {place(args[0]), place(args[1])} == {CPU, CUDA}
        return crosses and not (len(args) > 2 and args[2])
    return name in WAITING and any(place(x) == CUDA for x in given)


def common(func, name: str, args, given: list[Tensor]) -> torch.device | None:
    """Return the place of the result; raise RuntimeError where a GPU would."""
    if name == "copy_":
        return place(args[0])
    if name in INDEXED:
        if place(args[0]) == CPU and CUDA in map(place, tensors(args[1:2])):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        given = [args[0], *tensors(args[2:3])]
    numbers = name not in ("cat", "stack")  # among which no CPU number may stand
    places = [(place(x), x.dim()) for x in given]
    kinds = {p for p, dim in places if dim or p == CUDA or not numbers} - {ANY}
    if kinds == {CPU, CUDA}:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({func})"
        )
    if not kinds:
        kinds = {p for p, _ in places} - {ANY}
    return kinds.pop() if kinds else ANY


class Moved(torch.autograd.Function):
    """A copy on another device, whose gradient comes back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, where):
        return put(x.clone(), where)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.where = place(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        return Moved.apply(gradient, ctx.where), None


def to(x: Tensor, *args, **kwargs) -> Tensor:
    """Do as Tensor.to: (device, dtype), (dtype) or (other), and keywords."""
    args, where = list(args), None
    for holder, key in ((args, 0), (kwargs, "device")):
        if (holder is args and not args) or (holder is kwargs and key not in kwargs):
            continue
        value = holder[key]
        if isinstance(value, Tensor):  # to(other): its device and its dtype
            where, holder[key] = place(value), value.dtype
        elif value is not None and not isinstance(value, torch.dtype):
            where, holder[key] = named(value), CPU
    if isinstance(kwargs.get("other"), Tensor):
        other = kwargs.pop("other")
        where, kwargs["dtype"] = place(other), other.dtype
    here = place(x)
    if where not in (None, here):
        free = where == CPU or getattr(x.untyped_storage(), "pinned", False)
        if not (kwargs.get("non_blocking") and free):  # else it is copied there first
            wait()
        x = Moved.apply(x, where)
    return of_torch["to"](x, *args, **kwargs)


def numpy(x: Tensor, *args, **kwargs):
    if place(x) == CUDA:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )
    return of_torch["numpy"](x, *args, **kwargs)


def pinned(x: Tensor) -> Tensor:
    if place(x) == CUDA:
        raise RuntimeError(
            "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
        )
    x.untyped_storage().pinned = True
    return x


def tolist(x: Tensor):
    if place(x) == CUDA:
        wait()
    return of_torch["tolist"](x)


class Generator(torch.Generator):
    """A generator that says where it is; its bits are those of a CPU's."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls, "cpu")
        self.where = named(device)
        return self

    @property
    def device(self):
        return self.where


set_own_default_device = torch.set_default_device


def set_default_device(device) -> None:
    """Do as torch, whose version 2.8 can't say afterwards which it is, after None."""
    set_own_default_device(device)
    if device is None:
        vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)


def check_generator(generator: torch.Generator | None, where: torch.device | None) -> None:
    if generator is not None and where is not ANY and generator.device.type != where.type:
        raise RuntimeError(
            f"Expected a '{where.type}' device type for generator but found "
            f"'{generator.device.type}'"
        )


def factory(make):
    """Return ``make``, a function that creates tensors, as it is where there is a GPU."""
    copies = make.__name__ in ("tensor", "as_tensor", "asarray")

    @functools.wraps(make)
    def made(*args, device=None, **kwargs):
        where = default() if device is None else named(device)
        source = args[0] if args else None
        if copies and isinstance(source, Tensor):
            where = where or place(source)
            if make.__name__ != "tensor":
                return to(source, where, kwargs.get("dtype") or source.dtype)
        elif copies and where == CUDA:
            wait()  # what lies in ordinary memory is copied before torch goes on
        check_generator(kwargs.get("generator"), where or CPU)
        return put(make(*args, device=CPU, **kwargs), where or CPU)

    return made


def like(make):
    """Return ``make``, whose first argument is a tensor that the new one is like."""

    @functools.wraps(make)
    def made(x, *args, device=None, **kwargs):
        where = place(x) if device is None else named(device)
        return put(make(x, *args, **kwargs), where)

    return made


def drawing(draw):
    """Return ``draw``, whose first argument is a tensor and whose generator has to be with it."""

    @functools.wraps(draw)
    def drawn(x, *args, **kwargs):
        if isinstance(x, Tensor):
            check_generator(kwargs.get("generator"), place(x))
        return draw(x, *args, **kwargs)

    return drawn


def quiet(count):
    """Return ``one_hot``, which on a GPU does not look whether the classes are known."""

    @functools.wraps(count)
    def counted(x, num_classes=-1):
        before = Waits.count
        result = count(x, num_classes)
        if num_classes != -1:
            Waits.count = before
        return result

    return counted


@contextmanager
def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Waits]]:
    """Let there be one GPU until the end; the default device is then the CPU again."""
    patch = monkeypatch.setattr
    patch(Tensor, "device", property(place_said))
    patch(Tensor, "is_cuda", property(lambda x: place(x) == CUDA))
    patch(Tensor, "is_cpu", property(lambda x: place(x) != CUDA))
    patch(Tensor, "get_device", lambda x: 0 if place(x) == CUDA else -1)
    patch(Tensor, "to", to)
    patch(Tensor, "cpu", lambda x, *_, **__: to(x, CPU))
    patch(Tensor, "cuda", lambda x, *_, **kwargs: to(x, CUDA, **kwargs))
    patch(Tensor, "pin_memory", pinned)
    patch(Tensor, "numpy", numpy)
    patch(Tensor, "tolist", tolist)
    for make in _device_constructors():
        if getattr(torch, make.__name__, None) is make:
            patch(torch, make.__name__, factory(make))
    for where, names, wrapped in (
        (torch, LIKE, like), (Tensor, NEW, like), (Tensor, DRAWING, drawing),
        (torch, ["bernoulli", "multinomial", "normal"], drawing),
        (torch.nn.functional, ["one_hot"], quiet),
    ):  # fmt: skip
        for name in names:
            patch(where, name, wrapped(original(name) if where is Tensor else getattr(where, name)))
    patch(torch, "Generator", Generator)
    patch(Tensor, "__array__", Tensor.__array__)  # which use_device replaces
    clone, run = torch.UntypedStorage.clone, threading.Thread.run

    def cloned(storage):
        made = clone(storage)
        made.place = getattr(storage, "place", CPU)
        return made

    def ran(thread):
        with Rules():
            run(thread)

    patch(torch.UntypedStorage, "clone", cloned)  # by which tensors are deep-copied
    patch(threading.Thread, "run", ran)
    for module, answers in ((torch.cuda, CUDA_SAYS), (torch.accelerator, ACCELERATOR_SAYS)):
        for name, answer in answers.items():
            patch(module, name, answer)
    Waits.count = 0
    try:
        with Rules():
            yield Waits
    finally:
        set_default_device(None)


def place_said(x: Tensor) -> torch.device:
    return place(x) or CPU


def waited(*_, **__) -> None:
    wait()


def nothing(*_, **__) -> None:
    return None


class Stream:
    def is_capturing(self) -> bool:
        return False


CUDA_SAYS = {
    "_lazy_init": nothing,
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": nothing,
    "device": nullcontext,
    "manual_seed_all": nothing,
    "get_rng_state": lambda *_: torch.get_rng_state(),
    "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    "synchronize": waited,
    "set_sync_debug_mode": nothing,
    "get_sync_debug_mode": lambda: 0,
    "is_current_stream_capturing": lambda: False,
    "is_bf16_supported": lambda **_: True,
    "max_memory_allocated": lambda *_: 1,
    "get_device_name": lambda *_: "pretend GPU",
}
ACCELERATOR_SAYS = {
    "is_available": lambda: True,
    "current_accelerator": lambda check_available=False: torch.device("cuda"),
    "device_count": lambda: 1,
    "current_device_index": lambda: 0,
    "current_stream": lambda *_: Stream(),
    "synchronize": waited,
}
