"""Shifts of sound: noise, gain, clipping, band limits, reverberation, dropouts.

Silence at the end of a sample is padding, whose length depends on the other samples: nothing is drawn for it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.core.check import checked
from nervure.core.schema import Positive
from nervure.core.tensors import tensors_in
from nervure.errors import DataError
from nervure.evaluation.corruptions.chance import normal, uniform
from nervure.evaluation.features import content_keys
from nervure.evaluation.shifts.one_shift import Shift, exchange, expand_shifts, separate
from nervure.tasks.batch_forms import Layout, Place, describe_batch

Change: TypeAlias = Callable[[Tensor, Tensor, float, float], Tensor]
"""From sound [channels, time], its key [1], a strength and a rate to other sound."""

STRENGTHS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "white_noise": (30, 20, 15, 10, 5),  # decibels of the sound above the noise
        "quiet": (6, 12, 18, 24, 30),  # decibels less
        "clipping": (0.5, 0.3, 0.2, 0.1, 0.05),  # of the peak
        "band_limit": (6000, 4800, 3400, 2400, 1600),  # hertz; and nothing below 300
        "reverberation": (15, 10, 6, 3, 0),  # decibels of the sound above its echoes
        "dropouts": (0.02, 0.05, 0.1, 0.2, 0.3),  # share of the packets
    }
)
AUDIO_SHIFTS: tuple[str, ...] = tuple(STRENGTHS)
LOWEST = 300.0
PACKET = 0.02
DECAY = 0.5
TAPS = 255


@checked
def audio_shifts(
    names: str | Iterable[str] = "all", *, rate: Positive, inputs: Place | None = None
) -> tuple[Shift, ...]:
    """Shifts of sound, one for each name; labels stay.

    Sounds are floats [samples, time], [samples, channels, time], or a list of [time] or [channels, time].

    Args:
        names: ``"all"`` or some of ``AUDIO_SHIFTS``: white noise at 30 to 5 decibels, 6 to 30 decibels less,
            clipping at 0.5 to 0.05 of the peak, a band of 300 hertz to 6,000 .. 1,600, echoes that fade within half a
            second at 15 to 0 decibels, and 2 to 30 % of all 20 milliseconds lost.
        rate: samples a second.
        inputs: where the sound is, see :class:`nervure.tasks.Layout`; None finds the one part of that form.

    Raises:
        ArgumentError: a name is unknown.
    """
    layout, found = Layout(inputs), expand_shifts(names, {"audio": AUDIO_SHIFTS})
    return tuple(Shift(name, _AudioChange(name, float(rate), layout)) for name in found)


@final
@dataclass(frozen=True, slots=True)
class _AudioChange:
    name: str
    rate: float
    layout: Layout

    def __call__(self, batch: Any, severity: int, seed: int) -> Any:
        batch = separate(batch)
        level = STRENGTHS[self.name][severity - 1]

        def change(sound: Tensor) -> Tensor:
            return _changed(sound, self.name, level, self.rate, seed)

        found = _sounds_in(self.layout, batch)
        if isinstance(found, Tensor):
            return exchange(batch, [(found, torch.stack([change(sound) for sound in found]))])
        return exchange(batch, [(sound, change(sound)) for sound in found])


def _changed(sound: Tensor, name: str, level: float, rate: float, seed: int) -> Tensor:
    channels = sound.detach().float().reshape(-1, sound.shape[-1])
    there = channels.abs().amax(0).nonzero()
    if not len(there):
        return sound
    length = int(there[-1]) + 1
    heard = channels[:, :length]
    changed = CHANGES[name](heard, content_keys(heard[None], name, seed), level, rate)
    return F.pad(changed, (0, channels.shape[1] - length)).view_as(sound).to(sound.dtype)


def _power(sound: Tensor) -> Tensor:
    return sound.square().mean()


def _ratio(decibels: float) -> float:
    return 10 ** (-decibels / 20)


def _add_noise(sound: Tensor, key: Tensor, decibels: float, rate: float) -> Tensor:
    return sound + _ratio(decibels) * _power(sound).sqrt() * normal(key, *sound.shape)[0]


def _weaken(sound: Tensor, key: Tensor, decibels: float, rate: float) -> Tensor:
    return sound * _ratio(decibels)


def _clip(sound: Tensor, key: Tensor, share: float, rate: float) -> Tensor:
    peak = float(sound.abs().max()) * share
    return sound.clamp(-peak, peak)


def _limit_band(sound: Tensor, key: Tensor, highest: float, rate: float) -> Tensor:
    """By a windowed sinc: the difference of two low passes."""
    kernel = _low_pass(min(highest, 0.49 * rate) / rate) - _low_pass(min(LOWEST, 0.49 * rate) / rate)
    limited: Tensor = F.conv1d(sound[:, None], kernel.to(sound)[None, None], padding=TAPS // 2)[:, 0]
    return limited


def _low_pass(share: float) -> Tensor:
    places = torch.arange(TAPS, dtype=torch.float32) - TAPS // 2
    kernel = torch.sinc(2 * share * places) * torch.hann_window(TAPS + 2, periodic=False)[1:-1]
    return kernel / kernel.sum()


def _reverberate(sound: Tensor, key: Tensor, decibels: float, rate: float) -> Tensor:
    """Echoes: noise that fades by 60 decibels within half a second, after the sound itself."""
    count = max(2, round(DECAY * rate))
    fading = torch.exp(-math.log(1000) * torch.arange(count, device=sound.device) / count)
    echoes = normal(key, count)[0] * fading
    echoes[0] = 0
    size = sound.shape[1] + count
    wet: Tensor = torch.fft.irfft(torch.fft.rfft(sound, size) * torch.fft.rfft(echoes, size), size)[:, : sound.shape[1]]
    return sound + wet * (_ratio(decibels) * (_power(sound) / _power(wet).clamp(min=1e-20)).sqrt())


def _drop(sound: Tensor, key: Tensor, share: float, rate: float) -> Tensor:
    packet = max(1, round(PACKET * rate))
    lost = uniform(key, -(-sound.shape[1] // packet))[0] < share
    return sound.masked_fill(lost.repeat_interleave(packet)[: sound.shape[1]], 0)


CHANGES: Mapping[str, Change] = {
    "white_noise": _add_noise,
    "quiet": _weaken,
    "clipping": _clip,
    "band_limit": _limit_band,
    "reverberation": _reverberate,
    "dropouts": _drop,
}


def _sounds_in(layout: Layout, batch: Any) -> Tensor | list[Tensor]:
    inputs = layout.inputs_in(batch)
    if isinstance(inputs, tuple | list) and inputs and all(_is_sound(part, (1, 2)) for part in inputs):
        return list(inputs)
    found = [part for part in tensors_in(inputs) if _is_sound(part, (2, 3))]
    if len(found) != 1:
        raise DataError(
            f"there {'is no sound' if not found else f'are {len(found)} sounds'} in {describe_batch(batch)}. Give "
            "floats [samples, time] or [samples, channels, time], and say where they are: inputs=. Features of "
            "sounds are computed after the shift: evaluate_task_shift(prepare=)."
        )
    return found[0]


def _is_sound(part: Any, axes: tuple[int, ...]) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point() and part.ndim in axes and part.numel() > 0
