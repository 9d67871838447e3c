"""Do the parts of an autoencoder fit together? Asked of its config, before any weight exists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import Problem

if TYPE_CHECKING:
    from ..bottlenecks.base import BaseBottleneckConfig
    from .autoencoder import AutoencoderBody


def size_problems(body: AutoencoderBody) -> list[Problem]:
    """Every pair of keys whose numbers contradict each other; paths start at `body`."""
    return [*_audio_side(body), *_latent_side(body), *_ratios(body)]


def repeat_absent(params: StrictModel, counted: str, each: Mapping[str, int]) -> None:
    """Give the lists that are absent an entry for each of those under the key `counted`; for validators.

    They change past `frozen` and are not marked as set, so that a dump repeats what was written.
    """
    count = len(getattr(params, counted))
    params.__dict__.update({key: (value,) * count for key, value in each.items() if key not in params.model_fields_set})


def uneven_lists(params: StrictModel, counted: str, *keys: str) -> Iterator[Problem]:
    """The lists that do not have an entry for each stage, of which there are as many as entries under the key `counted`."""
    count = len(getattr(params, counted))
    for key in keys:
        if len(value := getattr(params, key)) != count:
            yield Problem((key,), f"{key} has {len(value)} entries for the {count} stages of {counted}", f"give {count} entries", value)


def _audio_side(body: AutoencoderBody) -> Iterator[Problem]:
    """Encoder and decoder face the pretransform, which faces the audio; without one they face the audio themselves."""
    names = [name if name in body.model_fields_set else "io_channels" for name in ("in_channels", "out_channels")]
    audio = dict(zip(names, (body.in_channels, body.out_channels), strict=True))
    if body.pretransform:
        for name, channels in audio.items():
            yield from _pretransform_problem(body.pretransform.io_channels, name, channels)
        inner = body.pretransform.encoded_channels
        reason = f"the pretransform has {inner} encoded channels"
        yield from _misfit("encoder", body.encoder.in_channels_key, body.encoder.in_channels, inner, reason)
        yield from _misfit("decoder", body.decoder.out_channels_key, body.decoder.out_channels, inner, reason)
        return
    for side, key, got, name in (
        ("encoder", body.encoder.in_channels_key, body.encoder.in_channels, names[0]),
        ("decoder", body.decoder.out_channels_key, body.decoder.out_channels, names[1]),
    ):
        yield from _misfit(side, key, got, audio[name], f"{name} is {audio[name]}", f"{name} to {got}")


def _pretransform_problem(got: int, name: str, audio: int) -> Iterator[Problem]:
    if got != audio:
        message = f"the pretransform is for {got} audio channels, but {name} is {audio}"
        yield Problem(("pretransform",), message, f"set {name} to {got}, or the pretransform's channels to {audio}")


def _latent_side(body: AutoencoderBody) -> Iterator[Problem]:
    width, bottleneck = body.latent_dim, body.bottleneck
    yield from bottleneck_problems(bottleneck, width)
    kind = f"bottleneck {bottleneck.kind!r}" if bottleneck else "no bottleneck"
    before = bottleneck.encoder_channels(width) if bottleneck else width
    behind = bottleneck.decoder_channels(width) if bottleneck else width
    reason, choice = f"latent_dim {width} and {kind} need", "change latent_dim"
    yield from _misfit("encoder", body.encoder.out_channels_key, body.encoder.out_channels, before, f"{reason} {before}", choice)
    yield from _misfit("decoder", body.decoder.in_channels_key, body.decoder.in_channels, behind, f"{reason} {behind}", choice)


def bottleneck_problems(bottleneck: BaseBottleneckConfig | None, width: int) -> Iterator[Problem]:
    """Is `bottleneck` made for `width` latent channels? Paths start at the object that holds it."""
    if bottleneck is None or bottleneck.latent_channels in (None, width):
        return
    made_for, key = bottleneck.latent_channels, f"bottleneck.config.{bottleneck.latent_key}"
    message = f"the bottleneck is for {made_for} latent channels ({key}), but latent_dim is {width}"
    yield Problem(("bottleneck", "config", bottleneck.latent_key), message, f"change {key}, or set latent_dim to {made_for}")


def _misfit(side: str, key: str, got: int, wanted: int, reason: str, choice: str = "") -> Iterator[Problem]:
    if got != wanted:
        name = f"{side}.config.{key}"
        fix = f"set {name} to {wanted}" + (f", or {choice}" if choice else "")
        yield Problem((side, "config", key), f"{name} is {got}, but {reason}", fix, got)


def _ratios(body: AutoencoderBody) -> Iterator[Problem]:
    before = body.pretransform.downsampling_ratio if body.pretransform else 1
    for side, component in (("encoder", body.encoder), ("decoder", body.decoder)):
        ratio = component.downsampling_ratio * before
        if ratio != body.downsampling_ratio:
            path = (side, "config", component.ratio_key)
            times = f" times the pretransform's {before} = {ratio}" if body.pretransform else ""
            product = f"the product of {'.'.join(path)} is {component.downsampling_ratio}{times}"
            message = f"{product}, but downsampling_ratio is {body.downsampling_ratio}"
            yield Problem(path, message, f"change {component.ratio_key}, or set downsampling_ratio to {ratio}")
