"""The experiment on denoising by one layer: where layers start, its data, its choice of rates."""

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from skimage import io

import denoising
from denoising import LAYERS, filter_layer
from engine import Record, divided_photographs, main, photograph


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_every_layer_starts_as_the_box_filter(layer, fixed, kernel_size):
    picture = photograph("camera", 32)
    model = filter_layer(layer, kernel_size, fixed)
    found = model(torch.from_numpy(picture)[None, None])[0, 0].detach().numpy()
    box = uniform_filter(picture.astype(np.float64), kernel_size, mode="nearest")
    np.testing.assert_allclose(found, box, atol=1e-5)
    assert model.weight.requires_grad != fixed


def test_numbers_of_parameters():
    """The paper's: two numbers for each sample against 5 for each pixel, 3 without omega."""
    for layer, channels in (("standard", 0), ("deformable", 50), ("Riemannian", 3), ("Randers", 5)):
        parameters = sum(each.numel() for each in filter_layer(layer, 5, True).parameters())
        assert parameters == 25 + channels * (25 + 1)


@pytest.mark.parametrize(
    ("files", "validation"),
    [
        (["train/a", "val/b", "train/c", "test/d"], [1, 3]),
        (["DIV2K_train_HR/1", "DIV2K_train_HR/2", "DIV2K_valid_HR/3"], [2]),
        (["JPEGImages/1", "JPEGImages/2", "JPEGImages/3", "JPEGImages/4", "JPEGImages/5"], [4]),
    ],
)
def test_photographs_of_a_folder_are_divided(files, validation, tmp_path):
    """The i-th picture is grey with the value i / 10, whatever its size and channels."""
    for i, name in enumerate(files):
        path = (tmp_path / name).with_suffix(".png")
        path.parent.mkdir(exist_ok=True)
        shape = (20, 30 + i) if i % 2 else (20, 30 + i, 3)
        io.imsave(path, np.full(shape, round(25.5 * i), np.uint8), check_contrast=False)
    (tmp_path / "train.txt").write_text("not a picture")
    parts = divided_photographs(tmp_path, 16)
    found = [[round(10 * float(picture.mean())) for picture in part] for part in parts]
    assert sorted(found[1]) == validation
    assert sorted(found[0]) == [i for i in range(len(files)) if i not in validation]
    assert all(picture.shape == (16, 16) for part in parts for picture in part)


def test_a_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no photographs for training in"):
        divided_photographs(tmp_path, 16)


def test_the_rate_with_the_lowest_training_loss_is_shown():
    def record(sigma, rate, seed, loss, psnr):
        run = {"kernel_size": 5, "sigma": sigma, "kernel": "learned", "layer": "Randers"}
        run |= {"rate": rate, "seed": seed}
        scores = {"last_losses": loss, "psnr": psnr, "ssim": 0.5, "parameters": 10}
        return Record(run, scores, 1.0, "")

    records = [
        record(0.1, 1e-3, 0, 3.0, 20.0), record(0.1, 1e-3, 1, 1.0, 22.0),
        record(0.1, 1e-2, 0, 2.5, 90.0), record(0.1, 1e-2, 1, 2.0, 90.0),
        record(0.3, 1e-3, 0, 5.0, 90.0), record(0.3, 1e-2, 0, 4.0, 15.0),
    ]  # fmt: skip
    table = denoising.Denoising(sigmas=(0.1, 0.3)).table(records)
    row = "| 5 | learned | Randers | 21.00 ± 1.41 | 15.00 | 0.500 | 0.500 | 10 |"
    assert table.splitlines()[2:] == [row]


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys, scores):
    options = ["--quick", "--steps", "3", "--batch", "1", "--layers", "standard", "Riemannian"]
    main(denoising.Denoising, [*options, "--output", str(tmp_path)])
    records = json.loads((tmp_path / "results.json").read_text())
    runs = [(record["run"]["kernel"], record["run"]["layer"]) for record in records]
    assert runs == [
        (kernel, layer) for kernel in ("fixed", "learned") for layer in ("standard", "Riemannian")
    ]
    assert [len(record["losses"]) for record in records] == [0, 3, 3, 3]
    assert [record["scores"]["parameters"] for record in records] == [0, 78, 25, 103]
    # All start as the same filter, and see the same patches and noise.
    first = [record["losses"][0] for record in records[1:]]
    assert first == pytest.approx(3 * first[:1], rel=1e-4)
    assert "| 5 | fixed | Riemannian |" in capsys.readouterr().out
