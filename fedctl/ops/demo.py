"""The demo: a fleet of real agent processes on this machine, and what federated training gains on it."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedctl.core.errors import ConfigError, LockedError, NotMetError, UsageError, reason_of
from fedctl.core.home import Home
from fedctl.core.plan import RoundWishes
from fedctl.core.progress import Note, Observer, silent
from fedctl.core.records import Role
from fedctl.core.round_records import RoundSummary
from fedctl.core.selector import Selector
from fedctl.ops import rounds as round_ops
from fedctl.ops.cohort import FEATURES, Person, generate
from fedctl.ops.demo_agents import DemoAgent, start_agents, stop_agents
from fedctl.ops.demo_compare import Comparison, compare
from fedctl.ops.devices import NewDevice, add_local
from fedctl.ops.fleet import init
from fedctl.ops.models import NewModel, create
from fedctl.ops.roster import ROSTER_FILE
from fedctl.store import Store
from fedctl_wire.messages import TrainSettings

MODEL = "health"
DAYS = 420
_HIDDEN = (16,)
_CLASSES = 2
_SETTINGS = TrainSettings(lr=0.03, momentum=0.9, local_epochs=3, batch_size=32)
_DIRECTORY = "demo"  # in the home: the agents and their people's data
_OWN = ("keys", "models", "rounds", "locks", "cache", _DIRECTORY)  # directories of a demo's home
_MOST_DEVICES = 200
_TOLERANCE = 0.25  # of the gate: with few people a round's loss may jump on the way down


@dataclass(frozen=True, slots=True)
class DemoResult:
    """AUROC on the people who took no part: `local` is each device alone, `central` all data pooled."""

    federated: float
    local: float
    central: float
    rounds: int
    seconds: float
    devices: int
    holdout: int
    seed: int
    model: str
    history: tuple[RoundSummary, ...]
    commands: tuple[str, ...]  # to try on the fleet it leaves behind, as typed in this environment


def run(
    home: Home, *, devices: int = 8, rounds: int = 10, seed: int = 0, observer: Observer = silent
) -> DemoResult:
    """Start the demo fleet, train, compare; leaves the fleet running. A demo that is there is replaced.

    Args:
        home: Must be empty or a demo's.
        devices: That train; half as many more only evaluate.
        rounds: Of training.
        seed: Of everybody's data, the first weights and the shuffles.
        observer: Told what happens.

    Raises:
        ConfigError: The home holds a real fleet or other files, or an agent does not start.
        LockedError: Another `demo` is at work there.
        NotMetError: A round was not published.
    """
    if not 2 <= devices <= _MOST_DEVICES or rounds < 1 or seed < 0:
        raise UsageError(
            f"a demo of {devices} devices, {rounds} rounds and seed {seed} cannot be run",
            hint=f"use 2 to {_MOST_DEVICES} devices, at least 1 round and a seed of 0 or more",
        )
    began = time.monotonic()
    if is_demo(home):
        stop(home)
    _take(home)
    with _alone(home):
        return _run(home, devices, rounds, seed, observer, began)


def _run(home: Home, devices: int, rounds: int, seed: int, observer: Observer, began: float) -> DemoResult:
    holdout = max(1, devices // 2)
    data = home.path / _DIRECTORY / "data"
    people = generate(data, people=devices + holdout, days=DAYS, seed=seed).people
    names = [f"watch-{number:02d}" for number in range(1, len(people) + 1)]
    with init_store(home) as store:
        _enrol(store, home, names, people, devices)
        observer(
            Note(
                f"{len(people)} devices started: {devices} train, {holdout} only evaluate; each holds "
                f"its own person's data ({DAYS} days of heart rate, activity, sleep)"
            )
        )
        history = _train(store, home, rounds, seed, observer)
    comparison = _compare(people, devices, rounds, seed)
    return DemoResult(
        federated=history[-1].auroc or 0.0,
        local=comparison.local,
        central=comparison.central,
        rounds=len(history),
        seconds=round(time.monotonic() - began, 2),
        devices=devices,
        holdout=holdout,
        seed=seed,
        model=MODEL,
        history=history,
        commands=_commands(home, history[-1].id),
    )


def stop(home: Home) -> int:
    """End the demo's agents and remove what it made; returns how many agents there were.

    Raises:
        ConfigError: The home holds a real fleet.
        LockedError: The `demo` that made it is still at work.
    """
    if not is_demo(home):
        if home.database.exists():
            raise _not_for_a_demo(home, "holds a real fleet", "real_fleet")
        return 0
    with _alone(home):
        agents = stop_agents(_agents(home))
        for name in _OWN:
            shutil.rmtree(home.path / name, ignore_errors=True)
        for name in (home.database.name, ROSTER_FILE):
            for path in home.path.glob(f"*{name}*"):  # and what belongs to it, or was left half-written
                path.unlink()
        home.demo_mark.unlink()  # last: until then it is known as a demo
    if not any(home.path.iterdir()):
        home.path.rmdir()
    return agents


def is_demo(home: Home) -> bool:
    """Whether the home is a demo's, finished or not."""
    return home.demo_mark.is_file()


def init_store(home: Home) -> Store:
    """Make the demo's fleet and open its database."""
    init(home, demo=True)
    return Store.open(home)


def _take(home: Home) -> None:
    """Mark an empty home as the demo's, so that whatever is in it later is the demo's to remove."""
    if home.database.exists():
        raise _not_for_a_demo(home, "holds a real fleet", "real_fleet")
    try:
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if names := sorted(path.name for path in home.path.iterdir()):
            raise _not_for_a_demo(home, f"holds files that are no demo's: {names[0]}", "not_empty")
        home.demo_mark.touch(mode=0o600)
    except OSError as error:
        raise _not_for_a_demo(home, f"cannot be the demo's home: {reason_of(error)}", "home") from error


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Hold the demo's mark, so that no other `demo` ends this one's agents or takes away its files."""
    try:
        descriptor = os.open(home.demo_mark, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:  # ended by another command a moment ago
        raise _not_for_a_demo(home, f"cannot be the demo's home: {reason_of(error)}", "home") from error
    try:
        _lock(descriptor, home)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, home: Home) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(
            f"another fedctl demo is at work in {home.path}",
            hint="wait for it to end, or interrupt it with Ctrl-C",
            subject=str(home.path),
        ) from error


def _not_for_a_demo(home: Home, why: str, code: str) -> ConfigError:
    return ConfigError(
        f"{home.path} {why}",
        hint="give the demo a home of its own: FEDCTL_HOME=~/fedctl-demo fedctl demo",
        subject=str(home.path),
        code=code,
    )


def _agents(home: Home) -> Path:
    return home.path / _DIRECTORY / "agents"


def _enrol(store: Store, home: Home, names: Sequence[str], people: Sequence[Person], devices: int) -> None:
    agents: tuple[DemoAgent, ...] = start_agents(_agents(home), list(zip(names, people, strict=True)))
    roles = [Role.TRAIN] * devices + [Role.HOLDOUT] * (len(people) - devices)
    new = [
        NewDevice(name=agent.name, url=f"unix://{agent.socket}", labels={"role": role.value})
        for agent, role in zip(agents, roles, strict=True)
    ]
    add_local(store, home, new)


def _new_model(seed: int) -> NewModel:
    return NewModel(
        name=MODEL,
        builder="mlp",
        input_shape=(len(FEATURES),),
        hidden=_HIDDEN,
        classes=_CLASSES,
        seed=seed,
        settings=_SETTINGS,
    )


def _train(store: Store, home: Home, rounds: int, seed: int, observer: Observer) -> tuple[RoundSummary, ...]:
    detail = create(store, home, _new_model(seed))
    sizes = "-".join(map(str, (len(FEATURES), *_HIDDEN, _CLASSES)))
    parameters = detail.manifest.parameters
    observer(
        Note(
            f"model {MODEL}@1: is today an anomalous day?  MLP {sizes}, {parameters} parameters, "
            f"{parameters * 4 / 1000:.1f} kB"
        )
    )
    wishes = RoundWishes(seed=seed, deadline_s=60.0, tolerance=_TOLERANCE)
    everyone = Selector.parse((), ())
    run = round_ops.start(store, home, MODEL, everyone, wishes=wishes, rounds=rounds, observer=observer)
    last = run.rounds[-1]
    if last.auroc is None or last.result_version is None:
        raise NotMetError(
            f"round {last.id} of the demo was not published: {last.reason}",
            hint=f"see: fedctl round show {last.id}",
            subject=MODEL,
        )
    return run.rounds


def _compare(people: Sequence[Person], devices: int, rounds: int, seed: int) -> Comparison:
    from fedctl.models import build

    wanted = _new_model(seed)
    model = build(
        wanted.builder, input_shape=wanted.input_shape, hidden=wanted.hidden, classes=_CLASSES, seed=seed
    )
    paths = [person.path for person in people]
    return compare(model, paths[:devices], paths[devices:], settings=_SETTINGS, rounds=rounds, seed=seed)


def _commands(home: Home, last_round: int) -> tuple[str, ...]:
    """Commands to try, written so that they work as printed from this directory."""
    program = _program()
    if os.environ.get("FEDCTL_HOME"):  # as found in the environment, which the next command may not have
        program = f"FEDCTL_HOME={shlex.quote(str(home.path))} {program}"
    words = (
        "devices list",
        f"round start {MODEL} --rounds 5",
        f"round show {last_round}",
        "demo --stop",
    )
    return tuple(f"{program} {word}" for word in words)


def _program() -> str:
    """How this very program is called: its name where the shell finds it, else its path."""
    called = Path(sys.argv[0])
    found = shutil.which("fedctl")
    if called.name != "fedctl" or not called.exists():
        return "fedctl"
    if found is not None and Path(found).resolve() == called.resolve():
        return "fedctl"
    here = Path.cwd()
    path = called.absolute()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
