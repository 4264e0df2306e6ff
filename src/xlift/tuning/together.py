"""Several LoRA runs of one base model trained in one pass: each row of a batch belongs to a run.

What is frozen is multiplied once for all rows; of adapters each row has its run's own, one batched product over all.
No row sees another, so that losses, gradients and weights are those of each run alone up to rounding, a run that fails
leaves the others as they are, and each writes, measures and resumes as it would alone. The first steps are made both
ways, together and one after another; whichever was faster makes the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from xlift.errors import UserError
from xlift.hub import Located
from xlift.memory import free_memory, kept_memory, peak_memory, reset_peak_memory
from xlift.models import KeptBase, Placement
from xlift.progress import progress, say
from xlift.tuning.adapters import wide_product, with_adapters
from xlift.tuning.attention import attends_by_lengths, by_lengths
from xlift.tuning.loss import row_losses
from xlift.tuning.norms import fast_norms
from xlift.tuning.optimizer import descend
from xlift.tuning.packing import pack, split_micro_batches
from xlift.tuning.templates import Encoded
from xlift.tuning.train import (
    Ahead,
    Loop,
    Watching,
    begun,
    finished,
    learned_tokens,
    own_randomness,
    recorded,
    seed_of,
    speed_of,
    train_step,
)

TRIED = 2
"""Steps made each way before the faster is chosen: the first of each warms up."""
SPARE = 0.7
"""Share of the free memory that the rows of a pass may take, by what one run alone took."""


class CannotShareError(Exception):
    """A model whose adapters are of a kind that only one run can have."""


class _Product(torch.autograd.Function):
    """x W' + (given A') B' for rows x (runs, tokens, in) with adapters A (runs, rank, in), B (runs, out, rank)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, given: Tensor | None, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
    ) -> Tensor:
        a, b = down.to(x.dtype), up.to(x.dtype)
        source = x if given is None else given.to(x.dtype)
        low = torch.bmm(source, a.mT)
        ctx.save_for_backward(source, low, weight, a, b)
        ctx.apart = given is not None
        return F.linear(x, weight, bias).baddbmm_(low, b.mT)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (grad,) = grad_outputs
        source, low, weight, a, b = ctx.saved_tensors
        low_grad = torch.bmm(grad, b)
        down_grad, up_grad = wide_product(low_grad, source), wide_product(grad, low)
        x_grad = grad @ weight if ctx.needs_input_grad[0] else None
        given_grad = torch.bmm(low_grad, a) if ctx.apart else None
        if x_grad is not None and not ctx.apart:
            x_grad.baddbmm_(low_grad, a)
        return x_grad, given_grad, None, None, down_grad, up_grad


@dataclass
class Rows:
    """Whose row each row of a forward pass is, how long it is, and the state of each run's random numbers."""

    runs: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    random: dict[int, Tensor] = field(default_factory=dict)


class Grouped(nn.Module):
    """A frozen linear layer with the adapters of several runs, one for each row; None where a run has none there.

    The adapters' parameters become parts of one tensor and stay what they are to their own optimisers.
    """

    def __init__(self, layers: Sequence[Any], rows: Rows) -> None:
        super().__init__()
        some = next(layer for layer in layers if layer is not None)
        self.base, self.rows = some.base_layer, rows
        scales = [layer.scaling["default"] if layer else 0.0 for layer in layers]
        self.scale = torch.tensor(scales, device=some.lora_A["default"].weight.device)[:, None, None]
        self.dropouts = [layer.lora_dropout["default"] if layer else nn.Identity() for layer in layers]
        self.drops = any(isinstance(one, nn.Dropout) and one.p for one in self.dropouts)
        self.parts = [
            [layer.lora_A["default"].weight, layer.lora_B["default"].weight] if layer else [] for layer in layers
        ]
        shapes = [some.lora_A["default"].weight, some.lora_B["default"].weight]
        self.stacks = [
            torch.stack([parts[side].detach() if parts else torch.zeros_like(shape) for parts in self.parts])
            for side, shape in enumerate(shapes)
        ]
        for stack, side in zip(self.stacks, (0, 1), strict=True):
            stack.requires_grad_()
            for number, parts in enumerate(self.parts):
                if parts:
                    parts[side].data = stack.data[number]

    def forward(self, x: Tensor) -> Tensor:
        chosen, everyone = self.rows.runs, range(len(self.parts))
        given_all = [*self.stacks, self.scale]
        down, up, scale = given_all if chosen == list(everyone) else [one[chosen] for one in given_all]
        rows = x.reshape(len(chosen), -1, x.shape[-1])
        given = self._dropped(rows) if self.drops else None
        made: Tensor = _Product.apply(rows, given, self.base.weight, self.base.bias, down, up * scale)
        return made.reshape(*x.shape[:-1], -1)

    def _dropped(self, x: Tensor) -> Tensor:
        """Each row as its run's own dropout leaves it, drawn as the run alone would draw it."""
        rows = []
        for row, run, length in zip(x, self.rows.runs, self.rows.lengths, strict=True):
            random = self.rows.random
            set_random(x.device, random[run])
            # In the dtype that the run alone drops in; what stands behind its end is no part of it.
            kept = self.dropouts[run](row[None, :length].to(self.stacks[0].dtype))[0].to(x.dtype)
            random[run] = random_state(x.device)
            rows.append(torch.cat([kept, row[length:]]))
        return torch.stack(rows)

    def hand_out(self) -> None:
        """Give every run's parameters their gradients."""
        for side, stack in enumerate(self.stacks):
            for number, parts in enumerate(self.parts):
                if parts and stack.grad is not None:
                    parts[side].grad = stack.grad[number]
            stack.grad = None


def random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()


def set_random(device: torch.device, state: Tensor) -> None:
    torch.cuda.set_rng_state(state) if device.type == "cuda" else torch.set_rng_state(state)


@dataclass
class Member:
    """A run among others: what it would be alone, and the adapted layers that it puts into the base by their names."""

    loop: Loop
    layers: dict[str, Any]
    first: int
    last: int
    record_of: Callable[[int, dict[str, Any]], dict[str, Any]] | None = None


def put(base: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Replace modules of a model by name."""
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(base.get_submodule(parent), child, layer)


def bare(layers: dict[str, Any]) -> dict[str, nn.Module]:
    """The layers of the base that a run's adapters stand in front of."""
    return {name: layer.get_base_layer() for name, layer in layers.items()}


@contextmanager
def alone_in(base: nn.Module, member: Member) -> Iterator[None]:
    """The base with one run's adapters, as it is when that run is trained alone."""
    put(base, member.layers)
    try:
        yield
    finally:
        put(base, bare(member.layers))


class Passes:
    """The passes that a set of runs is trained in, kept from step to step as long as the set is the same."""

    def __init__(self) -> None:
        self._ids: tuple[Any, ...] = ()
        self._made: list[tuple[Sequence[Member], Rows, dict[str, Grouped]]] = []

    def of(self, members: Sequence[Member], most: int) -> list[tuple[Sequence[Member], Rows, dict[str, Grouped]]]:
        """Runs in groups of at most `most`, each with its rows and with the layers that hold them."""
        ids = (most, *(one.loop.run.id for one in members))
        if ids != self._ids:
            groups = [members[start : start + most] for start in range(0, len(members), most)]
            self._ids, self._made = ids, [(group, *self._grouped(group)) for group in groups]
        return self._made

    def _grouped(self, members: Sequence[Member]) -> tuple[Rows, dict[str, Grouped]]:
        rows, names = Rows(), dict.fromkeys(name for member in members for name in member.layers)
        return rows, {name: Grouped([member.layers.get(name) for member in members], rows) for name in names}


def in_rows(groups: Sequence[Sequence[Encoded]], flat: bool, device: str) -> dict[str, Tensor]:
    """Packed rows of equal length, one for each group of examples, filled up with what nobody learns or sees.

    `labels` are (rows, tokens); with `flat` the other fields are one row behind another, (1, rows · tokens), where the
    groups' examples are of other lengths: attention by lengths knows one division of all its rows.
    """
    sizes = [sum(map(len, group)) for group in groups]
    filled = [[*group, *_filler(max(sizes) - size)] for group, size in zip(groups, sizes, strict=True)]
    made = [pack(group) for group in filled]
    rows = {name: torch.cat([one[name] for one in made]) for name in ("input_ids", "position_ids", "labels")}
    same = all([len(e) for e in group] == [len(e) for e in filled[0]] for group in filled)
    if same:
        rows["starts"] = made[0]["starts"]
    elif flat:
        rows = pack([example for group in filled for example in group]) | {"labels": rows["labels"]}
    return {name: value.to(device) for name, value in rows.items()}


# e.g. [one.ids for one in _filler(3)] → [[0, 0, 0]]
def _filler(size: int) -> list[Encoded]:
    return [Encoded([0] * size, [False] * size)] if size else []


def gradients(
    base: nn.Module, members: Sequence[Member], rows: Rows, layers: dict[str, Grouped], step: int
) -> list[float]:
    """The gradients of a step of every run, left at its parameters; their losses."""
    device = members[0].loop.placement.device
    examples = [[one.loop.data.train[i] for i in one.loop.steps[step]] for one in members]
    learned = torch.tensor([float(learned_tokens(own)) for own in examples], device=device)
    micro = [
        split_micro_batches(range(len(own)), [len(e) for e in own], one.loop.run.config.micro_batch_tokens, False)
        for one, own in zip(members, examples, strict=True)
    ]
    losses, drops = torch.zeros(len(members), device=device), any(layer.drops for layer in layers.values())
    put(base, dict(layers))
    try:
        for number in range(max(map(len, micro))):
            rows.runs = [i for i, groups in enumerate(micro) if number < len(groups)]
            given = [[examples[i][k] for k in micro[i][number]] for i in rows.runs]
            rows.lengths = [sum(map(len, own)) for own in given]
            for i in rows.runs if drops else ():
                torch.manual_seed(seed_of(members[i].loop.run.config, step, number))
                rows.random[i] = random_state(torch.device(device))
            batch = in_rows(given, attends_by_lengths(base), device)
            found = row_losses(base, batch) / learned[rows.runs]
            # The sum parts again into the rows' own gradients: one that is no number stays in its row.
            found.sum().backward()
            losses[rows.runs] += found.detach()
    finally:
        put(base, {name: layer.base for name, layer in layers.items()})
    for layer in layers.values():
        layer.hand_out()
    return losses.tolist()


def step_together(
    base: nn.Module, members: Sequence[Member], rows: Rows, layers: dict[str, Grouped], step: int
) -> dict[str, dict[str, Any] | UserError]:
    """A step of several runs in one pass: by run, its record, or why it cannot go on."""
    began = time.monotonic()
    losses, made = gradients(base, members, rows, layers, step), dict[str, dict[str, Any] | UserError]()
    for member, loss in zip(members, losses, strict=True):
        loop = member.loop
        try:
            made[loop.run.id] = descend(loop.optimizer, loss, loop.run.config, step, len(loop.steps))
        except UserError as error:
            made[loop.run.id] = error
    # A run's own speed is that of its share of the time.
    share = (time.monotonic() - began) / len(members)
    for member in members:
        record, loop = made[member.loop.run.id], member.loop
        if not isinstance(record, UserError):
            record |= speed_of([loop.data.train[i] for i in loop.steps[step]], share)
    return made


def step_in_turn(base: nn.Module, members: Sequence[Member], step: int) -> dict[str, dict[str, Any] | UserError]:
    """The same, one run after another."""
    made: dict[str, dict[str, Any] | UserError] = {}
    for member in members:
        loop = member.loop
        examples = [loop.data.train[i] for i in loop.steps[step]]
        with alone_in(base, member):
            told = (loop.model, loop.optimizer, examples, loop.run.config, loop.chat, loop.placement)
            try:
                made[loop.run.id] = train_step(*told, step, len(loop.steps))
            except UserError as error:
                made[loop.run.id] = error
    return made


@dataclass
class Choice:
    """How many runs share a pass: `most`, unless memory ends or one after another is faster."""

    most: int
    measured: bool = True
    """Whether the first steps are made both ways, to see which is faster; otherwise all are made together."""
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    """Seconds a token, apart (False) and together (True)."""
    row_bytes: int = 0
    """What a step of one run took, measured once."""

    # e.g. Choice(4, seconds={False: [2.0] * TRIED, True: [1.0] * TRIED}).passes() → 4
    # e.g. Choice(4, seconds={False: [1.0] * TRIED, True: [2.0] * TRIED}).passes() → 1
    def passes(self) -> int:
        """How many runs the next step's passes hold."""
        apart, shared = self.seconds[False], self.seconds[True]
        if not self.measured or self.most == 1:
            return self.most
        if len(apart) < TRIED or len(shared) < TRIED:
            return 1 if len(apart) <= len(shared) else self.most
        return self.most if min(shared) < min(apart) else 1

    def fit(self, free: int) -> None:
        """No more rows than memory holds."""
        self.most = max(1, min(self.most, int(SPARE * free / self.row_bytes)))

    # e.g. Choice(4, seconds={False: [2.0], True: [1.0]}).told() → "4 in a pass; together is 2.00 times as fast"
    def told(self) -> str:
        """Which way was chosen, and why."""
        apart, shared = self.seconds[False], self.seconds[True]
        if not apart or not shared:
            return f"{self.most} in a pass" if self.most > 1 else "one after another: memory holds no more"
        ratio = min(apart) / min(shared)
        way = f"{self.most} in a pass" if ratio > 1 else "one after another"
        return f"{way}; together is {ratio:.2f} times as fast"


def one_step(
    base: nn.Module, members: Sequence[Member], step: int, choice: Choice, passes: Passes
) -> dict[str, dict[str, Any] | UserError]:
    """A step of every run, in passes of as many as are chosen."""
    most, began = choice.passes(), time.monotonic()
    if most == 1:
        made = _measured_step(base, members, step, choice)
    else:
        groups = passes.of(members, most)
        made = {name: record for group in groups for name, record in step_together(base, *group, step).items()}
    tokens = sum(one.loop.data.lengths[i] for one in members for i in one.loop.steps[step])
    choice.seconds[most > 1].append((time.monotonic() - began) / tokens)
    return made


def _measured_step(
    base: nn.Module, members: Sequence[Member], step: int, choice: Choice
) -> dict[str, dict[str, Any] | UserError]:
    """A step of one run after another, the first of which tells what memory a row takes."""
    placement = members[0].loop.placement
    looks = choice.measured and not choice.row_bytes and reset_peak_memory(placement)
    before = peak_memory(placement) if looks else 0
    made = step_in_turn(base, members, step)
    if looks:
        choice.row_bytes = max(1, peak_memory(placement) - before)
        choice.fit(free_memory(placement))
    return made


def train_together(
    aheads: Sequence[Ahead],
    base: Located,
    placement: Placement,
    watching: Watching,
    kept: KeptBase,
    choice: Choice,
) -> dict[str, UserError]:
    """Train several runs of one base to their ends; by run, why one could not go on.

    What each writes and measures is what `train` writes and measures. Raises CannotShareError before anything is
    written where the runs' adapters cannot share a pass, and UserError for what concerns all of them.
    """
    started, failed, passes = time.monotonic(), dict[str, UserError](), Passes()
    # The wide tensors of several runs would be new pages each time: a twenty-fifth of the processor's time.
    holds = kept_memory() if placement.device == "cpu" else nullcontext()
    with holds, own_randomness(placement.device), kept.lent(base, placement) as model, ExitStack() as stack:
        stack.enter_context(by_lengths(model))
        going = [one for ahead in aheads if (one := member_of(model, ahead, placement, watching, failed))]
        for member in going:
            _alone(model, member, failed, partial(_open, stack=stack))
        stack.enter_context(fast_norms(model))
        steps = range(min((one.first for one in going), default=0), max((one.last for one in going), default=0))
        with progress(f"train {len(going)} runs", sum(one.last - one.first for one in going)) as bar:
            for step in steps:
                due = [one for one in going if one.loop.run.id not in failed and one.first <= step < one.last]
                made = one_step(model, due, step, choice, passes) if due else {}
                for member in due:
                    _alone(model, member, failed, partial(_record, step=step, made=made))
                losses = [f"{record['loss']:.3f}" for record in made.values() if isinstance(record, dict)]
                bar.advance(len(due), f"losses {' '.join(losses)}")
        say(f"{len(going)} runs trained {choice.told()}")
    ended = [one for one in going if one.loop.run.id not in failed and one.last == len(one.loop.steps)]
    seconds = (time.monotonic() - started) / max(1, len(going))
    for member in ended:
        finished(member.loop.run, member.loop.data, time.monotonic() - seconds, None, member.last - member.first)
    return failed


def member_of(
    model: Any, ahead: Ahead, placement: Placement, watching: Watching, failed: dict[str, UserError]
) -> Member | None:
    """A run that is ready to begin, its adapters taken out of the base again; None where it failed."""
    adapted = with_adapters(model, ahead.run.config).train()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    if not _sharable(adapted, layers):
        raise CannotShareError
    try:
        return Member(begun(ahead, adapted, placement, watching), layers, ahead.first, ahead.last)
    except UserError as error:
        failed[ahead.run.id] = error
        return None
    finally:
        put(model, bare(layers))
        # PEFT would take the next run's adapters for more of the same model.
        del model.peft_config


def _sharable(adapted: Any, layers: dict[str, Any]) -> bool:
    """Whether all that is trained is plain adapters of plain layers."""
    plain = all(
        type(one) is LoraLinear and type(one.base_layer) is nn.Linear and not one.lora_variant
        for one in layers.values()
    )
    theirs = {id(weight) for one in layers.values() for weight in one.parameters() if weight.requires_grad}
    head = adapted.get_output_embeddings()
    trained = {id(weight) for weight in adapted.parameters() if weight.requires_grad}
    return plain and theirs == trained and not any(one is head for one in layers.values())


def _alone(model: nn.Module, member: Member, failed: dict[str, UserError], work: Callable[[Member], None]) -> None:
    """Work on one run with its adapters in the base; what goes wrong is that run's alone."""
    with alone_in(model, member):
        try:
            work(member)
        except UserError as error:
            failed[member.loop.run.id] = error


def _open(member: Member, stack: ExitStack) -> None:
    member.record_of = stack.enter_context(recorded(member.loop, member.first, member.last))


def _record(member: Member, step: int, made: dict[str, dict[str, Any] | UserError]) -> None:
    record = made[member.loop.run.id]
    if isinstance(record, UserError):
        raise record
    if member.record_of:
        member.record_of(step, record)
