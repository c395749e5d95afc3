"""A synthetic cohort of wearers for the demo: days of heart rate, activity and sleep, some anomalous.

What is simulated, person by person, in this order:

- *who they are*: resting heart rate, fitness, daily rhythm (level, amplitude and hour of the peak),
  sleep need, activity, how noisy their sensor is, how often the device is left off, and their
  habits (late nights, hard training, stress) and how much of them falls on weekends;
- *what happens*: a season with heat waves, slow drifts, late nights, hard training and the odd
  stressful day; these move single features and are **not** anomalies;
- *anomalies*: infection-like episodes of several days with a rise, a peak and a slower recovery.
  Resting heart rate, respiration and skin temperature rise, heart-rate variability falls, sleep
  breaks and activity drops. Bodies answer differently: how strongly each of the six channels moves
  is drawn once a person, and again, more narrowly, once an episode;
- *what the device records*: hourly heart rate from the rhythm and all of the above, folded into
  three-hour blocks; most features as deviations from the same person's previous four weeks.

A day's label is 1 while its episode's severity is above a fixed threshold: the last mild days of a
recovery pass as healthy, as they would in a diary. Nothing else decides a label. One person has some
twenty anomalous days out of 420, all expressed in that body's own way and set against that person's
own habits: enough to fit, too few and too peculiar to know what illness looks like in somebody else.
That is why training together helps. It does not claim to be medicine: kinds and directions of the
effects are those that studies with consumer wearables describe, their sizes are made up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator
    from numpy.typing import NDArray

    Days = NDArray[np.float64]  # (days,)

FEATURES = (
    "resting_heart_rate_change_bpm",  # "change": against the person's own previous four weeks
    "resting_heart_rate_change_3_days_bpm",  # the same, of the mean of the last three days
    *(f"heart_rate_{hour:02d}_{hour + 3:02d}_change_bpm" for hour in range(0, 24, 3)),
    "heart_rate_rhythm_amplitude_change_bpm",
    "heart_rate_rhythm_peak_change_hours",
    "steps_thousands",
    "steps_change_thousands",
    "active_minutes",
    "sleep_minutes",
    "sleep_change_minutes",
    "sleep_efficiency_percent",
    "awakenings",
    "bedtime_change_hours",
    "hrv_change_log_ms",  # natural logarithm of RMSSD in ms
    "hrv_change_3_days_log_ms",
    "skin_temperature_change_c",
    "respiration_change_per_minute",
)
_NIGHT_FEATURES = (0, 1, *range(15, 24))  # missing when the device was left off at night
_CHANNELS = 6  # heart rate, respiration, temperature, variability, sleep, activity
_MEMORY_DAYS = 28  # what "the person's own previous weeks" means
_LABEL_SEVERITY = 0.35  # above which a day counts as anomalous; a usual episode's peak is 1


@dataclass(frozen=True, slots=True)
class Person:
    """One simulated wearer's file."""

    name: str  # "person-01"
    path: Path  # .npz: `x` float32 (days, 24), NaN where missing; `y` uint8 (days,), 1 = anomalous
    days: int
    anomalous_days: int


@dataclass(frozen=True, slots=True)
class Cohort:
    """The files that were written, in the order of the people."""

    directory: Path
    seed: int
    people: tuple[Person, ...]


def generate(directory: Path, *, people: int, days: int = 420, seed: int) -> Cohort:
    """Simulate `people` wearers and write one `.npz` each into `directory`.

    The same seed gives the same bytes, and a person's data do not depend on how many others there
    are. Twelve people take a small part of a second.

    Args:
        directory: Created where it is missing; files of the same names are replaced.
        people: 1 to 999.
        days: Length of each recording, at least 60.
        seed: Of everything that is drawn; not negative.

    Raises:
        UsageError: When a number is out of its range.
        OSError: When a file cannot be written.
    """
    if not 1 <= people <= 999 or days < 60 or seed < 0:
        raise UsageError(
            f"a cohort of {people} people over {days} days with seed {seed} cannot be simulated",
            hint="use 1 to 999 people, at least 60 days and a seed of 0 or more",
        )
    import numpy as np

    directory.mkdir(parents=True, exist_ok=True)
    written: list[Person] = []
    for number in range(1, people + 1):
        x, y = _simulate(np.random.default_rng([seed, number]), days)
        name = f"person-{number:02d}"
        path = directory / f"{name}.npz"
        np.savez(path, x=x, y=y)
        written.append(Person(name, path, days, int(y.sum())))
    return Cohort(directory, seed, tuple(written))


@dataclass(frozen=True, slots=True)
class _Wearer:
    """What makes a person; drawn once. Every response is a factor with mean 1."""

    resting: float  # bpm
    amplitude: float  # of the daily rhythm of heart rate, bpm
    peak_hour: float
    steps: float  # thousands a day
    sleep: float  # minutes
    efficiency: float  # percent
    hrv: float  # log ms
    bedtime: float  # hours relative to midnight
    noise: float  # factor
    off_nights: float  # share of nights without the device
    late_nights: float  # share of days, and likewise below
    trainings: float
    stressful: float
    weekend: float  # how much habits fall on weekends, 0 to 1
    illness: Days  # (channels,) responses to an episode
    felt: Days  # (4,) responses to late nights, training, heat and stress


@dataclass(frozen=True, slots=True)
class _Diary:
    """What happened on each day; strengths of (days,), 0 where nothing did."""

    illness: Days  # (days, channels) severity times response
    severity: Days
    late: Days
    training: Days
    heat: Days
    stress: Days
    season: Days  # -1 in the depth of winter, 1 in high summer


def _draw_wearer(rng: Generator) -> _Wearer:
    fitness = rng.normal()
    return _Wearer(
        resting=62 - 4 * fitness + 5 * rng.normal(),
        amplitude=rng.uniform(6, 14),
        peak_hour=rng.normal(15.5, 1.5),
        steps=max(3.0, 8 + 2 * fitness + 1.5 * rng.normal()),
        sleep=rng.normal(435, 30),
        efficiency=rng.normal(91, 2.5),
        hrv=3.7 + 0.2 * fitness + 0.2 * rng.normal(),
        bedtime=rng.normal(-0.5, 0.8),
        noise=rng.uniform(0.8, 1.5),
        off_nights=rng.uniform(0.0, 0.06),
        late_nights=min(0.2, rng.gamma(1.2, 0.10)),
        trainings=min(0.2, rng.gamma(1.2, 0.10)),
        stressful=min(0.2, rng.gamma(1.2, 0.06)),
        weekend=rng.uniform(0, 1),
        illness=0.7 * _CHANNELS * rng.dirichlet([2.0] * _CHANNELS),
        felt=rng.gamma(6.0, 1 / 6, 4),
    )


def _draw_diary(rng: Generator, wearer: _Wearer, days: int) -> _Diary:
    import numpy as np

    day = np.arange(days)
    weekday = (day + rng.integers(7)) % 7
    lean = 1 + wearer.weekend * np.where(weekday >= 5, 1.5, -0.6)
    season = np.sin(2 * np.pi * (day / 365.25 + rng.uniform()))
    severity, illness = _draw_episodes(rng, wearer, days)
    well = np.clip(1 - severity, 0, 1)  # the ill go out less
    return _Diary(
        illness=illness,
        severity=severity,
        late=_occasions(rng, wearer.late_nights * lean * well),
        training=_occasions(rng, wearer.trainings * lean * well),
        heat=_heat_waves(rng, season),
        stress=_occasions(rng, np.full(days, wearer.stressful)),
        season=season,
    )


def _occasions(rng: Generator, chance: Days) -> Days:
    """Events that come with `chance` a day, each with a strength around 1."""
    import numpy as np

    strength = rng.gamma(4.0, 0.25, len(chance))
    return np.where(rng.random(len(chance)) < chance, strength, 0.0)


def _heat_waves(rng: Generator, season: Days) -> Days:
    """Two to five hot days in a row, more of them in summer."""
    import numpy as np

    heat = np.zeros(len(season))
    for first in np.flatnonzero(rng.random(len(season)) < 0.012 * (1 + season)):
        heat[first : first + rng.integers(2, 6)] = rng.gamma(4.0, 0.25)
    return heat


def _draw_episodes(rng: Generator, wearer: _Wearer, days: int) -> tuple[Days, Days]:
    """Severity (days,) and what each channel shows of it (days, channels); three or four episodes a year."""
    import numpy as np

    severity, illness = np.zeros(days), np.zeros((days, _CHANNELS))
    count = max(2, round(days / 365 * rng.uniform(2.5, 4.5)))
    slot = days / count  # one episode in each stretch, so that every part of a recording may hold one
    for number in range(count):
        length = int(rng.integers(5, 10))
        first = round(number * slot + rng.uniform(0.1, 0.8) * slot)
        course = _course(length) * rng.uniform(0.7, 1.2)
        part = slice(first, first + length)
        severity[part] = course[: days - first]
        response = wearer.illness * rng.gamma(6.0, 1 / 6, _CHANNELS)
        illness[part] = severity[part, None] * response
    return severity, illness


def _course(length: int) -> Days:
    """An episode's severity by day, peak 1: two days of rise, then a slower recovery."""
    import numpy as np

    day = np.arange(length)
    course: Days = np.where(day < 2, (day + 1) / 2.5, np.exp(-(day - 2) / (0.45 * length)))
    return course


def _simulate(rng: Generator, days: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One person's features (days, 24) and labels (days,)."""
    import numpy as np

    wearer = _draw_wearer(rng)
    diary = _draw_diary(rng, wearer, days)
    x = np.column_stack(
        [*_heart(rng, wearer, diary), *_activity(rng, wearer, diary), *_night(rng, wearer, diary)]
    )
    off = rng.random(days) < wearer.off_nights
    x[np.ix_(off, _NIGHT_FEATURES)] = np.nan
    return x.astype(np.float32), (diary.severity > _LABEL_SEVERITY).astype(np.uint8)


def _change(values: Days) -> Days:
    """Deviation of (days, ...) from the mean of the previous four weeks; 0 on the first day."""
    import numpy as np

    total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    day = np.arange(len(values))
    first = np.maximum(day - _MEMORY_DAYS, 0)
    held = np.maximum(day - first, 1).reshape(-1, *[1] * (values.ndim - 1))
    change: Days = values - (total[day] - total[first]) / held
    change[0] = 0.0
    return change


def _three_days(values: Days) -> Days:
    """Mean of each day and the two before it."""
    import numpy as np

    return np.convolve(np.concatenate([values[:1], values[:1], values]), np.full(3, 1 / 3), "valid")


def _drift(rng: Generator, days: int, step: float) -> Days:
    """A slow wander (days,): a random walk of `step` a day that ends where it began."""
    import numpy as np

    wander = np.cumsum(rng.normal(0, step, days))
    wandered: Days = wander - np.linspace(0, wander[-1], days)
    return wandered


def _heart(rng: Generator, wearer: _Wearer, diary: _Diary) -> list[Days]:
    """Changes of the resting rate, of eight blocks of the day, and of the rhythm's amplitude and peak."""
    import numpy as np

    days, late, training, heat, stress = len(diary.severity), *_felt(wearer, diary)
    after = np.concatenate([[0.0], training[:-1]])  # the day after hard training
    rest = wearer.resting + _drift(rng, days, 0.2) - diary.season + wearer.noise * rng.normal(0, 1.6, days)
    rest += 7 * diary.illness[:, 0] + 5 * late + 2.5 * after + 3 * heat + 3 * stress

    hour = np.arange(24)
    phase = wearer.peak_hour + 0.5 * rng.normal(size=days) + 1.2 * late
    rhythm = np.cos(2 * np.pi * (hour - phase[:, None]) / 24)
    calm = 1 - 0.3 * np.clip(diary.illness[:, 5], 0, 2)  # less activity, a flatter day
    rate = rest[:, None] + wearer.amplitude * (1 + calm[:, None] * rhythm)
    rate += wearer.noise * rng.normal(0, 5, (days, 24))
    rate += 14 * training[:, None] * np.isin(hour, (17, 18, 19)) + 10 * late[:, None] * (hour < 3)
    rate += (3 * heat[:, None] + 5 * stress[:, None]) * ((hour > 8) & (hour < 20))

    wave = rate @ np.exp(-2j * np.pi * hour / 24) / 12
    blocks = _change(rate.reshape(days, 8, 3).mean(axis=2))
    peak = np.angle(np.conj(wave)) * 12 / np.pi % 24
    return [
        _change(rest),
        _change(_three_days(rest)),
        *blocks.T,
        _change(np.abs(wave)),
        _change(peak),
    ]


def _felt(wearer: _Wearer, diary: _Diary) -> tuple[Days, Days, Days, Days]:
    """Late nights, training, heat and stress as strong as this person feels them."""
    a, b, c, d = wearer.felt
    return a * diary.late, b * diary.training, c * diary.heat, d * diary.stress


def _activity(rng: Generator, wearer: _Wearer, diary: _Diary) -> list[Days]:
    """Steps, their change and active minutes."""
    import numpy as np

    days, _, training, heat, stress = len(diary.severity), *_felt(wearer, diary)
    level = np.log(wearer.steps) + 0.1 * diary.season + 0.25 * wearer.noise * rng.normal(size=days)
    level += 0.5 * np.minimum(training, 2) - 0.2 * heat - 0.15 * stress - 0.6 * diary.illness[:, 5]
    steps = np.exp(level)
    active = np.maximum(0, 5 * steps + 35 * training + 10 * rng.normal(size=days))
    return [steps, _change(steps), active]


def _night(rng: Generator, wearer: _Wearer, diary: _Diary) -> list[Days]:
    """Sleep, variability, skin temperature and respiration of the night that ends the day."""
    import numpy as np

    days, late, training, heat, stress = len(diary.severity), *_felt(wearer, diary)
    noise = wearer.noise * rng.normal(size=(7, days))
    ill = diary.illness
    sleep = wearer.sleep + 35 * noise[0] - 80 * late - 15 * heat - 35 * stress - 45 * ill[:, 4]
    broken = 3 * late + 4 * heat + 3 * stress + 7 * ill[:, 4]
    efficiency = np.clip(wearer.efficiency + 2.5 * noise[1] - broken, 40, 99)
    awakenings = np.maximum(0, 7 + 0.7 * broken + 2.2 * noise[2])
    bedtime = wearer.bedtime + 0.6 * noise[3] + 2 * late - 0.5 * np.minimum(ill[:, 4], 2)
    hrv = wearer.hrv + _drift(rng, days, 0.008) + 0.13 * noise[4]
    hrv -= 0.22 * late + 0.12 * training + 0.08 * heat + 0.15 * stress + 0.28 * ill[:, 3]
    skin = 0.25 * diary.season + 0.3 * noise[5] + 0.5 * heat + 0.2 * late + 0.7 * ill[:, 2]
    breath = 14 + 0.6 * noise[6] + 0.5 * late + 0.4 * training + 1.6 * ill[:, 1]
    return [
        sleep,
        _change(sleep),
        efficiency,
        awakenings,
        _change(bedtime),
        _change(hrv),
        _change(_three_days(hrv)),
        _change(skin),
        _change(breath),
    ]
