"""Pictures of latents: what they show, and that two steps of a training can be compared."""

import numpy as np
import pytest
import torch
from PIL import Image

from stable_audio_tools.audio.latent_picture import principal_components, save_latents
from stable_audio_tools.audio.spectrogram import plot_area


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_components_are_the_coordinates_along_the_axes_of_most_variance():
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(8, 8))[0]
    along = torch.randn(3, 200) * torch.tensor([[9.0], [5.0], [2.0]])
    found = principal_components(axes[:, :3] @ along + 4)
    exact = along - along.mean(1, keepdim=True)
    for component, true in zip(found, exact, strict=True):  # sampled directions are nearly independent
        assert abs(torch.corrcoef(torch.stack([component, true]))[0, 1]) > 0.97
    assert found.var(dim=1).diff().lt(0).all() and bool((found.amax(1) >= -found.amin(1)).all())


def test_fewer_channels_than_colours_leave_zeros():
    assert not principal_components(torch.randn(1, 5))[1:].any()
    assert not principal_components(torch.ones(4, 1)).any()


def test_the_sign_of_a_value_is_its_colour_at_its_place_in_time(tmp_path):
    latents = torch.zeros(2, 10)
    latents[0, 5:], latents[1, :5] = 1, -1
    save_latents(latents, tmp_path / "l.png")
    picture = pixels(tmp_path / "l.png")
    left, _, right, _ = plot_area(640, 288)  # the spectrogram's, so that both can be read against each other
    early, late = (int(640 * (left + (right - left) * share)) for share in (0.25, 0.75))
    above, below = 90, 180
    assert picture[above, late, 0] > picture[above, late, 2] and picture[below, early, 2] > picture[below, early, 0]
    assert picture[above, early].max() < 40 and picture[below, late].max() < 40
    assert (picture[25, early] != picture[25, late]).any()


@pytest.mark.parametrize("shape", [(64, 1024), (1, 1), (3, 2)])
def test_any_size_becomes_a_picture_of_the_same_size(tmp_path, shape):
    save_latents(torch.randn(shape, dtype=torch.bfloat16), tmp_path / "l.png")
    with Image.open(tmp_path / "l.png") as image:
        assert image.size == (640, 220) and len(image.info["plot-area"].split()) == 4


def test_broken_latents_are_drawn_and_empty_ones_refused(tmp_path):
    save_latents(torch.tensor([[float("nan"), float("inf"), 1.0]]), tmp_path / "l.png")
    for shape in ((0, 4), (4, 0), (4,)):
        with pytest.raises(ValueError, match=r"expected latents of shape \(C, T\)"):
            save_latents(torch.zeros(shape), tmp_path / "l.png")
