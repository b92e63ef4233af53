"""A round as a program that is replayed: a traced loss with its gradient, a captured CUDA graph."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from minimax.game.arena import State
from minimax.game.player import Batch
from minimax.game.products import use_faster
from minimax.game.side import Gradients, Side

Program = Callable[..., tuple[Tensor, ...]]  # of weights and a batch: the loss, its gradient
WARM_UP = 3  # eager rounds before a capture: in them, optimisers and libraries make their buffers


class Traced:
    """A player's loss and gradient as one list of operations: written down once, then replayed.

    That skips automatic differentiation and vmap, which take as long as a small network; compiled,
    operations are merged as well. Introduced in *The minimax game*.
    """

    def __init__(
        self, loss: Callable[[Side, State, Batch], Tensor], state: State, side: Side, compile: bool
    ) -> None:
        self.loss, self.state, self.side, self.compile = loss, state, side, compile
        self.programs: dict[object, Program | None] = {}

    def __call__(self, batch: Batch) -> tuple[Tensor, Gradients]:
        """Return the loss of ``batch`` and its gradient; without one if it can't be traced."""
        inputs = [*self.state.values(), *batch]
        kind = tuple((part.shape, part.dtype) for part in batch)
        if kind not in self.programs:
            self.programs[kind] = self._traced(inputs)
        program = self.programs[kind]
        if program is None:
            return self.loss(self.side, self.state, batch), None
        with torch.no_grad():
            loss, *gradients = program(*inputs)
        return loss, gradients

    def _traced(self, inputs: Sequence[Tensor]) -> Program | None:
        from torch.fx.experimental.proxy_tensor import make_fx  # it loads half a compiler

        names = list(self.state)
        moved = [name for name, value in self.state.items() if value.requires_grad]

        def differentiated(*inputs: Tensor) -> tuple[Tensor, ...]:
            state = {name: value.detach() for name, value in zip(names, inputs, strict=False)}
            weights = [state[name].requires_grad_() for name in moved]
            loss = self.loss(self.side, state, inputs[len(names) :])
            return loss, *torch.autograd.grad(loss.sum(), weights, allow_unused=True)

        try:  # with tensors that hold no numbers, so that nothing is drawn or moved
            trace = make_fx(differentiated, tracing_mode="fake", _allow_non_fake_inputs=True)
            program = trace(*inputs)
        except Exception as error:  # whatever a loss may do that can't be written down
            self._warn("traced", error)
            return None
        aten = torch.ops.aten
        for node in program.graph.nodes:  # a tensor without numbers may lie in memory otherwise
            if node.target is aten.view.default:
                node.target = aten.reshape.default
        use_faster(program)
        program.recompile()
        return self._compiled(program, inputs) if self.compile else program.forward

    def _compiled(self, program: GraphModule, inputs: Sequence[Tensor]) -> Program:
        from torch._inductor import compile

        options = {"fallback_random": True}  # the numbers that torch draws
        try:
            return compile(program, [part.detach() for part in inputs], options=options)
        except Exception as error:  # without a C++ compiler, say
            self._warn("compiled", error)
            return program.forward

    def _warn(self, what: str, error: Exception) -> None:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        text = f"The loss of player {self.side.player.name!r} can't be {what} and runs as it is"
        warnings.warn(f"{text}: {why}", stacklevel=7)


class Captured:
    """A round as a CUDA graph: the first few run as they are, then one is captured and replayed.

    Introduced in *The minimax game*.
    """

    def __init__(self, play: Callable[[Sequence[Batch]], Tensor], sides: Sequence[Side]) -> None:
        self.play, self.played = play, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        fixed = [
            type(side.optimiser).__name__
            for side in sides
            if not side.optimiser.defaults.get("capturable")
        ]
        self.off = bool(fixed)
        if fixed:
            self._warn(f"{' and '.join(fixed)} can't be captured")

    def _warn(self, why: str) -> None:
        warnings.warn(f"No CUDA graph, rounds run one by one: {why}.", stacklevel=4)

    def round(self, drawn: Sequence[Batch]) -> Tensor:
        """Play one round on the batches ``drawn``, and return the losses, as ``play`` does."""
        self.played += 1
        if self.graph is None and not self.off and self.played > WARM_UP:
            self._capture(drawn)
        if self.graph is None:
            return self._watched(drawn) if self.played == WARM_UP else self.play(drawn)
        inputs, values = _parts(self.inputs), _parts(drawn)
        if [(x.shape, x.dtype) for x in inputs] != [(x.shape, x.dtype) for x in values]:
            return self.play(drawn)  # the last batch of an epoch, say
        for place, value in zip(inputs, values, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.losses

    def _watched(self, drawn: Sequence[Batch]) -> Tensor:
        """Play a round; one that waits for the GPU would leave a capture that can't be undone."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                losses = self.play(drawn)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        if any("synchronizing" in str(one.message) for one in found):
            self.off = True
            self._warn("a loss waits for the GPU")
        return losses

    def _capture(self, drawn: Sequence[Batch]) -> None:
        self.inputs = [tuple(part.clone() for part in batch) for batch in drawn]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:  # other threads may read ahead meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.losses = self.play(self.inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # one that fails at its end leaves its own
            self.off = True
            self._warn(str(error).splitlines()[0])
        else:
            self.graph = graph


def _parts(batches: Sequence[Batch]) -> list[Tensor]:
    return [part for batch in batches for part in batch]
