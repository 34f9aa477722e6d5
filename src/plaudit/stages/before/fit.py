"""`plaudit plan`: what of a run fits, how, and how long it takes, stage by stage, before any of it is run.

Memory is the sum of memory.py. Time is the larger of two terms a pass: its operations at a share of the device's peak,
and its launches, which a small batch on a large device waits for; both are shown. With `measure` the speeds of this
machine are put in their place (estimate.py), in seconds.
"""

from rich.table import Table

from plaudit.dist.machine import choose_machine
from plaudit.models.load import load_chat, resolve
from plaudit.models.shapes import Shape, shape_of
from plaudit.run.display import console
from plaudit.stages.before.cards import LAUNCH, SHARE, Card, cards_of
from plaudit.stages.before.estimate import Speed, measure, seconds_of, spoken
from plaudit.stages.lengths import Lengths, lengths_of
from plaudit.stages.memory import Device, Need, Sums, gigabytes, here, needs_of, that_would_fit
from plaudit.stages.recipe import Recipe
from plaudit.stages.run_data import RunData, read_data

LAUNCHES = {"sampled": 40, "passed": 80, "learnt": 230}
"""Small operations a layer of a decoding step, a forward pass, and one with its backward pass: a profile of SmolLM2's
pass both ways has about 7,000 in 30 layers; the other two are drawn by judgement."""


def plan(recipe: Recipe, gpus: str | None = None, *, calibrate: bool = False) -> bool:
    """Print the plan of a recipe; whether all of it fits."""
    data, model = read_data(recipe), resolve(recipe.model)
    shape, chat = shape_of(model), load_chat(model, recipe.data.system, recipe.data.template)
    lengths = lengths_of(chat, data)
    if gpus is None:
        device = here(choose_machine(recipe.dtype))
        count, card = 1, Card("this machine", device.memory, 0.0, 0.0)
    else:
        count, card = cards_of(gpus)
        parts = 1 if recipe.distributed.shard == "none" else count
        device = Device(4 if recipe.dtype == "float32" else 2, "gpu", card.memory, parts=parts)
    needs = needs_of(recipe, shape, lengths, device)
    console.print(f"{shape.weights / 1e6:,.0f} million parameters; {count} x {card.name}, {card.memory / 1e9:.1f} GB")
    _print_memory(needs, device)
    speeds: dict[str, Speed] = {}
    if calibrate:
        speeds = {"time": measure(model, recipe, choose_machine(recipe.dtype), chat, data.prompts)}
        console.print("Time by the speed of this machine, measured just now", soft_wrap=True)
    elif card.products:
        operations, launches = speeds_of(recipe, shape, lengths, device, card)
        speeds = {"operations": operations, "launches": launches, "time": _larger(operations, launches)}
        console.print(f"Time by {SHARE:.0%} of the peak and {LAUNCH * 1e6:.0f} µs a launch: assumed, not measured")
    if speeds:
        _print_time(recipe, data, lengths, speeds, count)
    fits = True
    for need in needs:
        if need.total > device.memory:
            fits = False
            change = that_would_fit(recipe, shape, lengths, device, need.stage)
            console.print(
                f"{need.stage} does not fit: {gigabytes(need.total)} of {gigabytes(device.memory)}; {change}",
                soft_wrap=True,
            )
    return fits


def speeds_of(recipe: Recipe, shape: Shape, lengths: Lengths, device: Device, card: Card) -> tuple[Speed, Speed]:
    """Seconds a token by operations alone, and by launches alone."""
    rate = card.products * SHARE * (1.0 if device.size == 2 else 0.5)
    each = 2.0 * shape.linear
    again = {"passed": 1.0, "learnt": 2.0 + (1.0 if recipe.ppo.gradient_checkpointing else 0.0)}
    if recipe.lora.of("ppo") is None:
        again["learnt"] += 1.0
    head = 2.0 * shape.vocabulary * shape.hidden
    tokens = Sums(recipe, shape, lengths, device).ppo().tokens
    rows = min(recipe.ppo.batch_size, 256)
    # A decoding step reads all weights, however few rows it is for.
    read = shape.weights * device.size / card.bandwidth / rows
    arithmetic = Speed(
        max((each + head) / rate, read),
        (each * again["passed"] + head) / rate,
        (each * again["learnt"] + head) / rate,
        {},
    )
    floor = {name: count * shape.layers * LAUNCH for name, count in LAUNCHES.items()}
    return arithmetic, Speed(floor["sampled"] / rows, floor["passed"] / tokens, floor["learnt"] / tokens, {})


def _print_memory(needs: list[Need], device: Device) -> None:
    table = Table("stage", "what", "GB", title="Memory of one device", title_justify="left", title_style="bold")
    for need in needs:
        for name, size in need.always.items():
            table.add_row(need.stage, name, f"{size / 1e9:.2f}")
        for phase, parts in need.phases.items():
            told = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
            table.add_row("", f"while {phase}: {told}", f"{sum(parts.values()) / 1e9:.2f}")
        rows, at_once = need.largest(device.memory)
        if need.step:
            whole = " (a whole step)" if need.tokens >= need.step else ""
            table.add_row("", f"in passes of at most {need.tokens:,} tokens{whole}", "")
        room = [f"{rows} rows of {need.longest} tokens in a pass"] if need.token else []
        room += [f"{at_once} replies sampled at once"] if need.row else []
        table.add_row("", f"at its peak; room for {', '.join(room)}", f"{need.total / 1e9:.2f}")
    console.print(table)


def _larger(one: Speed, other: Speed) -> Speed:
    """The larger of the two terms of each pass."""
    pairs = ((one.sampled, other.sampled), (one.passed, other.passed), (one.learnt, other.learnt))
    sampled, passed, learnt = (max(pair) for pair in pairs)
    return Speed(sampled, passed, learnt, {})


def _print_time(recipe: Recipe, data: RunData, lengths: Lengths, speeds: dict[str, Speed], count: int) -> None:
    columns = [seconds_of(recipe, data, lengths, speed) for speed in speeds.values()]
    table = Table("stage", *speeds, title="Time", title_justify="left", title_style="bold")
    for stage in columns[0]:
        table.add_row(stage, *(spoken(column[stage] / count) for column in columns))
    table.add_row("all", *(spoken(sum(column.values()) / count) for column in columns))
    console.print(table)
