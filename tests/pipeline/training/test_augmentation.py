import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.core import Preprocessing, StageError
from pipeline.data.samples import Batch
from pipeline.recipe import Augmentation
from pipeline.training.augmentation import augmentation


def augmented(config: Augmentation, images: Tensor, preprocessing: Preprocessing | None = None) -> Tensor:
    torch.manual_seed(0)
    return augmentation(config, preprocessing)(Batch((images,), None)).inputs[0]


def noise(count: int = 64, channels: int = 1, size: int = 5) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_augmentation_returns_the_batch_itself_when_nothing_is_asked_for() -> None:
    batch = Batch((noise(),), torch.arange(64))
    assert augmentation(Augmentation())(batch) is batch


def test_augmentation_only_flips_when_asked_to_flip() -> None:
    images = noise()
    flipped = augmented(Augmentation(horizontal_flip=True), images)
    kinds = [torch.equal(f, i) - torch.equal(f, i.flip(-1)) for f, i in zip(flipped, images, strict=True)]
    assert set(kinds) == {1, -1}


def test_augmentation_shifts_to_every_place_when_asked_to_shift() -> None:
    images = noise()
    padded = functional.pad(images, (1, 1, 1, 1))
    places = set()
    for index, image in enumerate(augmented(Augmentation(shift=1), images)):
        windows = {(r, c): padded[index, :, r : r + 5, c : c + 5] for r in range(3) for c in range(3)}
        (place,) = [key for key, window in windows.items() if torch.equal(window, image)]
        places.add(place)
    assert len(places) == 9


def test_augmentation_turns_by_the_asked_angle_at_most_when_asked_to_rotate() -> None:
    images = torch.zeros(200, 1, 41, 41)
    images[:, 0, 20, 36] = 1.0  # 16 pixels to the right of the centre
    turned = augmented(Augmentation(rotation=30), images)[:, 0]
    weight = turned.sum((1, 2))
    axis = torch.arange(41.0) - 20
    across, down = (turned.sum(1) * axis).sum(1) / weight, (turned.sum(2) * axis).sum(1) / weight
    angles = torch.rad2deg(torch.atan2(down, across))
    assert 25 < angles.max() < 31
    assert -31 < angles.min() < -25
    torch.testing.assert_close(torch.hypot(across, down), torch.full((200,), 16.0), atol=0.1, rtol=0)


def test_augmentation_jitters_pixels_between_0_and_1_when_images_are_normalised() -> None:
    pixels = torch.full((256, 1, 4, 4), 0.4)
    pixels[0] = 0.0
    preprocessing = Preprocessing(scale=1 / 255, mean=(0.25,), std=(0.5,))
    back = augmented(Augmentation(color_jitter=0.4), (pixels - 0.25) / 0.5, preprocessing) * 0.5 + 0.25
    torch.testing.assert_close(back[0], torch.zeros(1, 4, 4), atol=1e-6, rtol=0)  # black stays black
    assert back[1:].mean().item() == pytest.approx(0.4, abs=0.03)  # factors around 1
    assert back[1:].std() > 0.05
    assert back.min() >= -1e-6


def test_augmentation_changes_saturation_only_when_there_is_colour() -> None:
    def distance_from_affine(before: Tensor, after: Tensor) -> float:
        """Brightness and contrast map all values of an image by one line; saturation does not."""
        line = torch.stack([before.flatten(), torch.ones(before.numel())], dim=1)
        return float((line @ torch.linalg.lstsq(line, after.flatten()).solution - after.flatten()).abs().max())

    for channels, least, most in ((3, 1e-3, 1.0), (1, 0.0, 1e-5)):
        images = 0.4 + 0.2 * noise(32, channels)
        jittered = augmented(Augmentation(color_jitter=0.2), images)
        distances = [distance_from_affine(*pair) for pair in zip(images, jittered, strict=True)]
        assert least <= sorted(distances)[16] <= most


def test_augmentation_erases_one_rectangle_of_the_asked_share_of_images() -> None:
    erased = augmented(Augmentation(erasing=0.5), torch.ones(400, 1, 16, 16))[:, 0] == 0
    hit = erased.any(2).any(1)
    assert 150 < hit.sum() < 250
    for mask in erased[hit]:
        assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()


def test_augmentation_blends_pairs_and_drops_their_labels_when_mixup_is_on() -> None:
    images = torch.eye(8).view(8, 8, 1, 1)  # one-hot channels: a mixed image tells its parts and their shares
    torch.manual_seed(0)
    mixed, labels = augmentation(Augmentation(mixup=1.0))(Batch((images,), torch.arange(8)))
    assert labels is None
    shares = mixed[0].flatten(1)
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    assert ((shares > 0).sum(1) <= 2).all()
    assert ((shares > 0).sum(1) == 2).sum() > 3
    assert (torch.diagonal(shares) > 0).all()


def test_augmentation_swaps_one_rectangle_and_drops_labels_when_cutmix_is_on() -> None:
    images = torch.arange(1.0, 9.0).view(8, 1, 1, 1).expand(8, 1, 16, 16).clone()
    torch.manual_seed(0)
    mixed, labels = augmentation(Augmentation(cutmix=1.0))(Batch((images,), torch.arange(8)))
    assert labels is None
    for own, image in enumerate(mixed[0][:, 0], start=1):
        assert len(image.unique()) <= 2
        foreign = image != own
        assert foreign.sum() == foreign.any(0).sum() * foreign.any(1).sum()
    assert (mixed[0] != images).any()


def test_augmentation_mixes_the_asked_share_of_batches_when_both_ways_are_on() -> None:
    images = torch.arange(1.0, 5.0).view(4, 1, 1, 1).expand(4, 1, 6, 6).clone()
    augment = augmentation(Augmentation(mixup=0.25, cutmix=0.25))
    torch.manual_seed(0)
    unmixed = 0
    for _ in range(200):
        mixed = augment(Batch((images,), torch.arange(4)))
        unmixed += mixed.labels is not None
        assert mixed.labels is None or torch.equal(mixed.inputs[0], images)
    assert 80 <= unmixed <= 120


def test_augmentation_is_the_same_when_the_seed_is() -> None:
    everything = Augmentation(
        horizontal_flip=True, shift=1, rotation=10, color_jitter=0.2, erasing=0.5, mixup=0.5, cutmix=0.5
    )
    images = noise(channels=3, size=8)
    first, second = augmented(everything, images), augmented(everything, images)
    assert torch.equal(first, second)
    assert first.shape == images.shape


def test_augmentation_leaves_the_images_it_was_given_alone() -> None:
    images = noise(channels=3, size=8)
    copied = images.clone()
    augmented(Augmentation(color_jitter=0.5, erasing=1.0, cutmix=1.0), images)
    assert torch.equal(images, copied)


def test_augmentation_refuses_when_the_input_is_no_image_or_there_are_several_to_mix() -> None:
    with pytest.raises(StageError, match=r"the first input is \[4, 3\]"):
        augmentation(Augmentation(horizontal_flip=True))(Batch((torch.zeros(4, 3),), None))
    two = Batch((torch.zeros(4, 1, 3, 3), torch.zeros(4, 2)), None)
    with pytest.raises(StageError, match="the first input only"):
        augmentation(Augmentation(mixup=1.0))(two)
