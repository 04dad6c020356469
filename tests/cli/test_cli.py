import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch.nn import functional
from typer.testing import CliRunner

from finslerconv import __version__
from finslerconv.cli import app
from finslerconv.cli._options import MetricOptions
from finslerconv.cli._picture import PictureError, _floats, _reduced, read_picture
from finslerconv.cli.filters import (
    Result,
    ball_filters,
    baselines,
    chosen,
    estimated_noise,
    middle,
    stein_risk,
    with_noise,
)
from finslerconv.geodesics import GridMetric
from finslerconv.metrics import Randers


def step():
    return np.repeat(np.array([0.0, 1.0]), 12)[None].repeat(16, 0)


SMALL = ["--max-size", "40", "--kernel-size", "3"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def psnr_of(output, name):
    (row,) = (line for line in output.splitlines() if name in line)
    return float(re.search(r"(\d+\.\d\d) ", row)[1])


@pytest.mark.slow
def test_denoise_on_the_default_photograph(here):
    """Ellipses beat every box and the Gaussian; those that compare patches beat ellipses."""
    result = run("denoise", "--max-size", 96, "--kernel-size", 5)
    assert result.exit_code == 0, result.output
    names = "best small box", "Gaussian", "non-local means", "box", "isotropic ball"
    small, gaussian, patches, box, isotropic = (psnr_of(result.stdout, f"│ {n} ") for n in names)
    riemannian = psnr_of(result.stdout, "│ Riemannian ball ")
    assert psnr_of(result.stdout, "│ noisy ") == pytest.approx(20, abs=0.2)
    assert riemannian > max(small, gaussian, isotropic) + 0.3
    assert riemannian > box + 2
    assert patches > riemannian
    assert "estimated as 0.10" in result.stdout
    assert "non-local means (best)" in result.stdout
    with Image.open(here / "finslerconv-denoise.png") as figure:
        assert min(figure.size) > 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "sigma", "kernel_size"),
    [("hubble_deep_field", 128, 0.1, 3), ("moon", 96, 0.3, 5), ("clock", 96, 0.1, 3)],
)
def test_balls_are_not_worse_than_the_box_of_the_same_size(name, size, sigma, kernel_size):
    """On pictures and at noises and sizes where no ball was chosen."""
    clean = _reduced(_floats(Image.fromarray(getattr(data, name)())), size)
    noisy = with_noise(clean, sigma, 0)
    noise, image = estimated_noise(noisy), torch.as_tensor(noisy)[None]
    options = chosen(image, noise, kernel_size, MetricOptions.for_noise(noise, kernel_size))
    filters = ball_filters(options.of(image), kernel_size, options.radius)
    box, riemannian = (
        Result.of("", "", filters[i](image)[0].numpy(), clean).psnr
        for i in (0, [f.name for f in filters].index("Riemannian ball"))
    )
    assert riemannian > box + 0.2


def test_options_that_are_given_stay():
    image = torch.rand(1, 1, 20, 20)
    start = MetricOptions.for_noise(0.3, 3, radius=1.1, anisotropy=7.0, tau=0.1, smoothing=1.5)
    assert start == MetricOptions(1.1, 7.0, 0.1, 1.5)
    assert chosen(image, 0.3, 3, start, []) == start
    assert chosen(image, 0.3, 3, start, ["anisotropy"]).radius == 1.1
    assert chosen(image, 0.3, 3, start, ["radius"]).anisotropy == 7.0


@pytest.mark.slow
def test_stein_estimates_the_error_without_the_clean_picture():
    clean = np.repeat(np.linspace(0, 1, 200, dtype=np.float32)[None], 200, 0)[None]
    noisy = torch.as_tensor(with_noise(clean, 0.2, 1))[None]
    for size in (1, 3, 7):

        def box(x, size=size):
            return functional.avg_pool2d(
                functional.pad(x, (size // 2,) * 4, mode="replicate"), size, stride=1
            )

        # The error's own scatter over 40,000 pixels is below a hundredth of the noise's variance.
        truth = float((box(noisy)[0] - torch.as_tensor(clean)).square().mean())
        assert stein_risk(box, noisy, 0.2) == pytest.approx(truth, abs=0.02 * 0.2**2)


@pytest.mark.parametrize("picture", [data.camera, data.astronaut, lambda: data.coins()[:, :200]])
def test_noise_is_estimated(picture):
    clean = _floats(Image.fromarray(picture()))
    for sigma in (0.05, 0.2):
        assert estimated_noise(with_noise(clean, sigma, 0)) == pytest.approx(sigma, rel=0.15)


@pytest.mark.parametrize("channels", [1, 3])
def test_usual_filters_keep_the_picture_in_place(channels):
    """Bright rows above dark ones, in a picture that is not square."""
    clean = np.zeros((channels, 40, 56), np.float32)
    clean[:, :17] = 1
    noisy = with_noise(clean, 0.1, 0)
    results = baselines(noisy, clean, 0.1)
    assert len(results) == 4
    for result in results:
        assert result.picture.shape == clean.shape
        assert result.psnr > Result.of("", "", noisy, clean).psnr + 1


def test_the_box_is_the_best_of_the_small_ones():
    clean = np.full((1, 40, 40), 0.5, np.float32)
    noisy = with_noise(clean, 0.2, 0)
    assert "9 x 9" in baselines(noisy, clean, 0.2)[0].how
    clean[:, :20] = 0  # an edge, which every box blurs
    assert "3 x 3" in baselines(with_noise(clean, 0.02, 0), clean, 0.02)[0].how


@pytest.mark.slow
def test_balls(here):
    result = run("balls", "--max-size", 64, "-o", "balls.pdf", "--colour-by", "none")
    assert result.exit_code == 0, result.output
    assert (here / "balls.pdf").read_bytes().startswith(b"%PDF")
    assert "Wrote balls.pdf" in result.stdout


@pytest.mark.slow
def test_same_seed_same_noise(here):
    first, second, other = (run("denoise", *SMALL, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.strip() == f"finslerconv {__version__}"


def test_help_loads_nothing_heavy():
    code = (
        "import sys, finslerconv.cli;"
        "sys.exit(bool({'torch', 'matplotlib', 'skimage', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# A smooth picture, 24 rows and 36 columns, in every mode.
RAMP = np.add.outer(np.linspace(0, 120, 24), np.linspace(0, 120, 36))


def picture(mode):
    grey = Image.fromarray(RAMP.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((RAMP * 257).astype(np.uint16))
    if mode == "I":
        return Image.fromarray((RAMP * 257).astype(np.int32))
    if mode == "F":
        return Image.fromarray((RAMP / 255).astype(np.float32))
    return grey.convert(mode)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("L", "png"),
        ("L", "jpg"),
        ("RGB", "bmp"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("P", "gif"),
        ("CMYK", "tif"),
        ("I;16", "png"),
        ("I;16", "tif"),
        ("I", "tif"),
        ("F", "tif"),
    ],
)
def test_reads_every_kind_of_file(mode, ending, tmp_path):
    path = tmp_path / f"picture.{ending}"
    picture(mode).save(path)
    pixels = read_picture(path, 512)
    assert pixels.dtype == np.float32
    assert pixels.shape == (1, 24, 36)  # grey, however it is stored
    np.testing.assert_allclose(pixels[0], RAMP / 255, atol=0.02)


def test_black_and_white(tmp_path):
    picture("1").save(tmp_path / "picture.png")
    assert set(np.unique(read_picture(tmp_path / "picture.png", 512))) == {0.0, 1.0}


def test_colour_has_three_channels(tmp_path):
    Image.fromarray(data.astronaut()[:40, :50]).save(tmp_path / "picture.png")
    pixels = read_picture(tmp_path / "picture.png", 512)
    expected = np.moveaxis(data.astronaut()[:40, :50], -1, 0) / 255
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_transparent_is_white(tmp_path):
    rgba = np.zeros((20, 20, 4), np.uint8)
    rgba[:, 10:, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "picture.png")
    pixels = read_picture(tmp_path / "picture.png", 512)
    assert (pixels[0, :, :10] == 1).all()
    assert (pixels[0, :, 10:] == 0).all()


def test_orientation_of_the_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise
    picture("L").save(tmp_path / "picture.png", exif=exif)
    pixels = read_picture(tmp_path / "picture.png", 512)
    np.testing.assert_allclose(pixels[0], np.rot90(RAMP, -1) / 255, atol=0.01)


def test_large_pictures_are_reduced(tmp_path):
    picture("L").resize((360, 240)).save(tmp_path / "picture.png")
    assert read_picture(tmp_path / "picture.png", 60).shape == (1, 40, 60)


def test_floats_beyond_one_are_stretched(tmp_path):
    Image.fromarray((3 * RAMP - 7).astype(np.float32)).save(tmp_path / "picture.tif")
    np.testing.assert_allclose(
        read_picture(tmp_path / "picture.tif", 512)[0], RAMP / RAMP.max(), atol=1e-5
    )


@pytest.mark.parametrize("value", [-3.0, 0.5, 2.5, 3e38])
def test_a_constant_picture_of_floats(value, tmp_path):
    Image.fromarray(np.full((20, 20), value, np.float32)).save(tmp_path / "picture.tif")
    pixels = read_picture(tmp_path / "picture.tif", 512)
    np.testing.assert_array_equal(pixels, np.full((1, 20, 20), 0.5 if value == 0.5 else 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: picture("L"), lambda: Image.new("L", (30, 30), 90)])
def test_commands_on_a_grey_and_on_a_flat_picture(make, here):
    make().save("picture.png")
    assert run("denoise", "picture.png", "--kernel-size", 3).exit_code == 0
    assert run("balls", "picture.png").exit_code == 0


@pytest.mark.slow
def test_denoise_in_colour(here):
    Image.fromarray(data.astronaut()[:64, 200:280]).save("picture.png")
    result = run("denoise", "picture.png", "--add-noise", *SMALL)
    assert result.exit_code == 0, result.output
    assert "non-local means" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_denoise_a_noisy_photograph(channels, here):
    """Nothing is added: the noise is found, removed, and the picture written at full size."""
    clean = data.astronaut()[:150, 150:310].mean(-1, keepdims=True).repeat(channels, -1) / 255
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 0.08, clean.shape), 0, 1)
    Image.fromarray(np.rint(255 * noisy).astype(np.uint8).squeeze()).save("noisy.png")
    result = run("denoise", "noisy.png", "--kernel-size", 7, "--output", "clean.png")
    assert result.exit_code == 0, result.output
    assert re.search(r"Noise of standard deviation 0\.0[78]\d*, estimated", result.stdout)
    assert "Wrote clean.png, 150 x 160" in result.stdout
    with Image.open(here / "clean.png") as written:
        assert written.mode == ("L" if channels == 1 else "RGB")
        filtered = np.asarray(written).reshape(clean.shape) / 255
    # Half of the error goes, and more.
    assert np.mean((filtered - clean) ** 2) < 0.4 * np.mean((noisy - clean) ** 2)
    told = run("denoise", "noisy.png", "--sigma", 0.3, "--kernel-size", 3, "--max-size", 80)
    assert "Noise of standard deviation 0.3, as told" in told.stdout
    assert "Wrote finslerconv-denoised.png, 75 x 80" in told.stdout


def test_large_pictures_are_tried_in_their_middle():
    image = torch.arange(600.0).expand(1, 1, 20, 600)
    assert torch.equal(middle(image, 100)[0, 0, 0], torch.arange(250.0, 350.0))
    assert middle(image).shape == (1, 1, 20, 512)


def test_box_filters_are_those_of_torch():
    image = torch.rand(1, 3, 30, 25)
    metric = MetricOptions().of(image)
    for ball_filter, dilation in zip(ball_filters(metric, 5, 3.2)[:2], (1, 2), strict=True):
        reach = 2 * dilation
        padded = functional.pad(image, (reach,) * 4, mode="replicate")
        weight = torch.full((3, 1, 5, 5), 1 / 25)
        expected = functional.conv2d(padded, weight, dilation=dilation, groups=3)
        torch.testing.assert_close(ball_filter(image), expected, rtol=0, atol=1e-5)


def test_progress_hears_of_every_tap():
    taps = []
    image = torch.rand(1, 1, 20, 20)
    ball_filters(MetricOptions().of(image), 5, 3.2)[-1](image, taps.append)
    assert sum(taps) == 25


def test_equal_weights_keep_a_flat_picture():
    image = torch.full((1, 1, 20, 20), 0.3)
    for ball_filter in ball_filters(MetricOptions().of(image), 5, 3.2):
        torch.testing.assert_close(ball_filter(image), image)


def test_noise_has_the_stated_deviation():
    clean = np.zeros((1, 400, 400), np.float32)
    noisy = with_noise(clean, 0.2, 3)
    assert noisy.std() == pytest.approx(0.2, rel=0.01)
    assert Result.of("", "", noisy, clean).psnr == pytest.approx(-20 * np.log10(0.2), abs=0.1)
    assert Result.of("", "", clean + 1e-6, clean).ssim == pytest.approx(1)


def refused(result, message):
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["denoise", "balls"])
def test_bad_files(command, here):
    refused(run(command, "missing.png"), "missing.png: no such file")
    refused(run(command, "."), "got a directory")
    (here / "text.png").write_text("This is no picture.")
    refused(run(command, "text.png"), "text.png: cannot be read as a picture")
    picture("L").save("whole.png")
    (here / "cut.png").write_bytes((here / "whole.png").read_bytes()[:80])
    refused(run(command, "cut.png"), "cut.png: cannot be read as a picture")
    Image.new("L", (15, 40)).save("small.png")
    refused(run(command, "small.png"), "at least 16 x 16 pixels .* got 40 x 15")
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save("nan.tif")
    refused(run(command, "nan.tif"), "values that are not finite")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["denoise", "--kernel-size", 4], "--kernel-size: expected an odd number, got 4"),
        (["denoise", "a.png", "-o", "a.pdfx"], "--output: expected a picture file such as .png"),
        (["denoise", "a.png", "-o", "no/a.png"], "--output: no such directory: no"),
        (["denoise", "--device", "tpu9"], "--device: cannot compute on 'tpu9'"),
        (["denoise", "--output", "result.doc"], "--output: expected a file ending in one of"),
        (["denoise", "--output", "nowhere/result.png"], "--output: no such directory: nowhere"),
    ],
)
def test_bad_options(arguments, message, here):
    refused(run(*arguments), message)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("denoise", "--sigma", [0, "nan", "inf", 1e30]),
        ("denoise", "--seed", [-1]),
        ("denoise", "--kernel-size", [1, 10**6]),
        ("denoise", "--smoothing", [0, 1e6]),
        ("balls", "--radius", [0, -1, 1e9]),
        ("balls", "--anisotropy", [-1, 1e12, "nan"]),
        ("balls", "--spacing", [0]),
        ("balls", "--scale", [0, "nan", 1e9]),
        ("balls", "--max-size", [8]),
        ("path", "--anisotropy", [1e6]),
        ("path", "--tau", [1, 0.9999999, "nan"]),
        ("inspect", "--max-size", [15]),
    ],
)
def test_options_out_of_their_range(command, option, values, here):
    for value in values:
        result = run(command, *(["net.pt"] if command == "inspect" else []), option, value)
        assert result.exit_code == 2
        assert option in result.stderr
        assert result.stdout == ""
    assert list(here.iterdir()) == []


EXTREMES = {
    "--radius": (0.1, 100),
    "--anisotropy": (0, 300),
    "--tau": (-0.95, 0.95),
    "--smoothing": (0.3, 100),
}


@pytest.mark.parametrize("make", [lambda: np.random.default_rng(0).random((16, 24)), step])
@pytest.mark.parametrize("bits", range(16))
def test_every_metric_within_the_bounds_is_one(make, bits):
    """Bounds are declared where options are; within them nothing else is refused."""
    values = [ends[bits >> i & 1] for i, ends in enumerate(EXTREMES.values())]
    metric = MetricOptions(*values).of(torch.as_tensor(make(), dtype=torch.float32)[None, None])
    # Looks at every matrix and every drift.
    Randers(metric.M, metric.omega)
    GridMetric(metric.M[0].double(), metric.omega[0].double())


def test_what_the_library_refuses_is_one_line(here, monkeypatch):
    def of(options, image):
        raise ValueError("tau: expected\nanother number")

    monkeypatch.setattr(MetricOptions, "of", of)
    refused(run("balls", "--max-size", 20), "error: tau: expected another number$")


def test_unknown_words_are_refused_with_exit_code_2():
    assert run("balls", "--colour-by", "taste").exit_code == 2
    assert run("denoise", "--sigma", "much").exit_code == 2
    assert run("paint").exit_code == 2


def test_picture_errors_name_the_file(tmp_path):
    with pytest.raises(PictureError, match=r"missing\.png"):
        read_picture(tmp_path / "missing.png", 512)
