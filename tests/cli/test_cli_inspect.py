"""The command ``inspect``: models from every source, and every wrong one."""

import argparse
import csv
import json
import math
import re
import sys
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn
from typer.testing import CliRunner

from finslerconv.cli import app
from finslerconv.cli._inspect import for_the_figure
from finslerconv.cli._records import write_csv, write_json
from finslerconv.nn import DeformConv2d, MetricConv2d

SMALL = ["--max-size", "24"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Image.fromarray(data.astronaut()[:80, 180:280]).save("photo.png")
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("network_")]:
        del sys.modules[name]


def run(*arguments):
    return CliRunner().invoke(app, ["inspect", *(str(argument) for argument in arguments)])


def refused(result, message):
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert re.search(message, line), line
    assert result.stdout == ""


def model(channels=3):
    torch.manual_seed(0)
    net = nn.Sequential(
        DeformConv2d(channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        MetricConv2d(4, 4, 3, padding=1),
    )
    for parameter in (*net[0].offset_conv.parameters(), *net[3].head.parameters()):
        nn.init.normal_(parameter, std=0.2)
    return net


def row_of(output, name):
    """Return a row of the first table that has it, its cells one space apart."""
    return rows_of(output, name)[0]


def rows_of(output, name):
    """Return the rows of that name, one for each table."""
    rows = (" ".join(line.split()) for line in output.splitlines())
    return [row for row in rows if row.startswith(f"{name} ")]


@pytest.mark.slow
def test_saved_module_without_trust(here):
    """Modules of PyTorch's and of this library's layers are loaded as weights are."""
    torch.save(model(), "net.pt")
    result = run("net.pt", "photo.png", *SMALL)
    assert result.exit_code == 0, result.output
    assert "deformable 3x3" in row_of(result.stdout, "0")
    assert "metric 3x3" in row_of(result.stdout, "3")
    assert "Wrote finslerconv-inspect.png" in result.stdout
    assert result.stderr.strip() == ""
    with Image.open(here / "finslerconv-inspect.png") as figure:
        assert min(figure.size) > 500


@pytest.mark.slow
def test_numbers_are_those_of_the_layer(here):
    net = model()
    net[3].head.conv.weight.data.zero_()
    net[3].head.conv.bias.data.zero_()
    torch.save(net, "net.pt")
    result = run("net.pt", "photo.png", *SMALL, "--layer", "3", "-o", "a.pdf")
    assert row_of(result.stdout, "3") == "3 metric 3x3 1.00 1.00 (1.00) 0.00 - 0.000 100 % 0 %"
    assert "deformable" not in result.stdout
    assert (here / "a.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_factory_in_the_working_folder(here):
    (here / "network_one.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3, dilation=2), nn.Conv2d(2, 2, 1))\n"
        "ready = make()\n"
    )
    for attribute in ("make", "ready"):
        result = run(f"network_one:{attribute}", "photo.png", *SMALL)
        assert result.exit_code == 0, result.output
        assert "dilated 3x3 2.00" in row_of(result.stdout, "0")
        assert "The model has no adaptive layer" in result.stdout
    assert str(here) not in sys.path


@pytest.mark.slow
def test_names_are_whole_in_a_narrow_terminal(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    block = nn.Sequential(OrderedDict(conv1=DeformConv2d(3, 2, 3, padding=1)))
    torch.save(nn.Sequential(OrderedDict(layer1=nn.Sequential(block))), "net.pt")
    result = run("net.pt", "photo.png", *SMALL)
    assert result.exit_code == 0, result.output
    # The kind takes two lines.
    assert row_of(result.stdout, "layer1.0.conv1").endswith("0.00 - 0.000 100 % 0 %")
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


@pytest.mark.slow
def test_diverged_fits_are_counted(here):
    net = nn.Sequential(DeformConv2d(3, 2, 3, padding=1))
    nn.init.normal_(net[0].offset_conv.weight, std=1.0, generator=torch.Generator().manual_seed(0))
    torch.save(net, "net.pt")
    fits, _, diverged, _ = row_of(run("net.pt", "photo.png", *SMALL).stdout, "0").split()[-4:]
    assert int(diverged) > 5
    assert int(fits) + int(diverged) <= 100


def test_other_objectives(here):
    torch.save(nn.Sequential(nn.Conv2d(3, 2, 3)), "net.pt")
    result = run("net.pt", "photo.png", *SMALL, "--objective", "enclosing")
    assert "standard 3x3 1.41" in row_of(result.stdout, "0")


@pytest.mark.slow
def test_weights(here):
    (here / "network_two.py").write_text(
        "from torch import nn\n"
        "from finslerconv.nn import ShiftedConv2d\n"
        "def make():\n"
        "    return nn.Sequential(ShiftedConv2d(3, 2, 3, padding=1))\n"
    )
    from finslerconv.nn import ShiftedConv2d

    trained = nn.Sequential(ShiftedConv2d(3, 2, 3, padding=1))
    trained[0].offset_conv.bias.data = torch.tensor([0.3, 0.0])
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, "state.pt")
    still = run("network_two:make", "photo.png", *SMALL)
    moved = run("network_two:make", "photo.png", *SMALL, "--weights", "state.pt")
    assert row_of(still.stdout, "0") == "0 shifted 3x3 1.00 1.00 (1.00) 0.00 - 0.000 100 % 0 %"
    # A disc moved by 0.3 of its radius.
    assert "(1.00) 0.30" in row_of(moved.stdout, "0")
    torch.save(nn.Conv2d(3, 2, 3).state_dict(), "plain.pt")
    words = "plain.pt: holds weights but no model, and no deformable layer .* --weights"
    refused(run("plain.pt", "photo.png"), words)
    torch.save(nn.Linear(2, 2).state_dict(), "other.pt")
    refused(
        run("network_two:make", "photo.png", "--weights", "other.pt"),
        "--weights: other.pt: do not fit the model",
    )


FACTORY = (
    "from torch import nn\n"
    "from finslerconv.nn import ShiftedConv2d\n"
    "def make():\n"
    "    return nn.Sequential(ShiftedConv2d(3, 2, 3, padding=1))\n"
)


def shifted(shift):
    from finslerconv.nn import ShiftedConv2d

    net = nn.Sequential(ShiftedConv2d(3, 2, 3, padding=1))
    net[0].offset_conv.bias.data = torch.tensor([shift, 0.0])
    return net


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


STATE = shifted(0.3).state_dict()
OTHER = shifted(0.6).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("held", "said"),
    [
        (STATE, "Weights: weights.pt"),
        (prefixed("module.", STATE), "weights.pt; names without 'module.'"),
        (prefixed("_orig_mod.", STATE), "weights.pt"),
        ({"state_dict": prefixed("model.", STATE)}, "'state_dict' .* without 'model.'"),
        (prefixed("_orig_mod.module.", STATE), "without 'module.'"),
        ({"model": prefixed("module._orig_mod.", STATE)}, "'model' of"),
        ({"model_state_dict": STATE, "optimizer": {"state": {}}}, "'model_state_dict' of"),
        ({"ema": {"module": 1, **prefixed("module.", STATE)}}, "'ema' of"),
        ({"model_ema": {"state_dict": STATE}}, "'model_ema.state_dict' of"),
        ({"state_dict_ema": STATE}, "'state_dict_ema' of"),
        ({"params": STATE, "params_ema": OTHER}, "'params' of .*; not 'params_ema'"),
        ({"params": {"a": torch.ones(2)}, "params_ema": STATE}, "'params_ema' of"),
        # What torch.optim.swa_utils.AveragedModel saves.
        ({"n_averaged": torch.tensor(3), **prefixed("module.", STATE)}, "without 'module.'"),
        # A training module with a loss of its own.
        ({**prefixed("net.", STATE), "loss.a": torch.ones(2)}, "without 'net.'; 1 others left"),
        ({"model": shifted(0.3)}, "'model' of"),
        ({"model": STATE, "args": argparse.Namespace(lr=0.1)}, "'model' of"),
    ],
)  # fmt: skip
def test_checkpoints_of_every_kind(here, held, said):
    torch.save(held, "weights.pt")
    with open("network_five.py", "w") as file:
        file.write(FACTORY)
    result = run("network_five:make", "photo.png", *SMALL, "--weights", "weights.pt")
    assert result.exit_code == 0, result.output
    # A disc moved by 0.3 of its radius.
    assert "(1.00) 0.30" in row_of(result.stdout, "0")
    assert re.search(said, result.stdout)


@pytest.mark.slow
def test_safetensors(here, monkeypatch):
    (here / "network_six.py").write_text(FACTORY)
    arguments = "network_six:make", "photo.png", *SMALL, "--weights", "weights.safetensors"
    (here / "weights.safetensors").write_bytes(b"nothing")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors.torch", None)
        refused(run(*arguments), r"safetensors: is not installed \(pip install safetensors\)")
    safetensors = pytest.importorskip("safetensors.torch")
    refused(run(*arguments), "weights.safetensors: cannot be read as safetensors")
    safetensors.save_file(prefixed("model.", STATE), "weights.safetensors")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "(1.00) 0.30" in row_of(result.stdout, "0")
    bare = run("weights.safetensors")
    assert bare.exit_code == 0, bare.output
    assert "offsets 3x3 1 3 -> 2 0.30" in row_of(bare.stdout, "model.0")


@pytest.mark.slow
def test_trust_is_for_weights_too(here):
    (here / "network_seven.py").write_text(FACTORY)
    torch.save({"state_dict": STATE, "settings": Settings()}, "weights.pt")
    arguments = "network_seven:make", "photo.png", *SMALL, "--weights", "weights.pt"
    refused(run(*arguments), "Settings, .* add --trust")
    result = run(*arguments, "--trust")
    assert result.exit_code == 0, result.output
    assert "(1.00) 0.30" in row_of(result.stdout, "0")


def test_checkpoints_without_fitting_weights(here):
    (here / "network_eight.py").write_text(FACTORY)
    for held, message in (
        (
            {"epoch": 3},
            "expected a state_dict, or a checkpoint that has one under state_dict, model",
        ),
        ([1, 2], "expected a state_dict"),
        ({"model": {"0.weight": torch.ones(2, 3, 3, 3)}}, "do not fit the model .*Missing key"),
        ({"0.weight": torch.ones(5, 3, 3, 3), **STATE, "more": torch.ones(1)}, "Unexpected key"),
    ):
        torch.save(held, "weights.pt")
        refused(
            run("network_eight:make", "photo.png", *SMALL, "--weights", "weights.pt"),
            f"--weights: weights.pt: {message}" if "key" not in message else message,
        )


class Settings:
    """What a training script may pickle beside the weights."""


class Custom(nn.Module):
    """A class that no list of harmless ones has."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x):
        return self.conv(x)


class Bomb:
    """What must not run without trust."""

    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.slow
def test_pickled_code_needs_trust(here):
    torch.save(Custom(), "custom.pt")
    refused(run("custom.pt", "photo.png", *SMALL), r"Custom, .*would run code .* add --trust")
    result = run("custom.pt", "photo.png", *SMALL, "--trust")
    assert result.exit_code == 0, result.output
    assert "warning: --trust: a saved module may run any code" in result.stderr
    torch.save({"model": Custom(), "epoch": 1}, "checkpoint.pt")
    assert run("checkpoint.pt", "photo.png", *SMALL, "--trust").exit_code == 0


def test_nothing_runs_without_trust(here):
    torch.save({"model": Bomb()}, "bomb.pt")
    refused(run("bomb.pt", "photo.png"), "add --trust")
    assert not (here / "exploded").exists()


def test_wrong_models(here):
    (here / "network_three.py").write_text(
        "from torch import nn\n"
        "number = 3\n"
        "def text():\n    return 'net'\n"
        "def broken():\n    raise KeyError('size')\n"
        "def many():\n    return nn.Conv2d(5, 2, 3)\n"
        "def linear():\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))\n"
        "def mismatch():\n    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3))\n"
    )
    (here / "network_four.py").write_text("1 / 0\n")
    (here / "junk.pt").write_bytes(b"no module")
    for name, message in {
        "nothing": "nothing: no such file; expected torchvision:NAME, timm:NAME",
        "missing.pt": "missing.pt: no such file",
        "junk.pt": "junk.pt: is no file that torch.save wrote$",
        "network_none:make": "network_none: cannot be imported",
        "network_four:make": "network_four: cannot be imported .*ZeroDivisionError",
        "network_three:absent": "network_three: has no attribute 'absent'",
        "network_three:number": "expected a module or what makes one",
        "network_three:text": "expected to get an nn.Module, got str",
        "network_three:broken": "network_three:broken: raised KeyError: 'size'",
        "network_three:many": "the model takes 5 channels, a picture has 1 or 3",
        "network_three:linear": "calls no two-dimensional convolution of more than one tap",
        "network_three:mismatch": r"does not run on a picture of 19 x 24 pixels .*layer '1'",
        ":make": ":make: no such file",
    }.items():
        refused(run(name, "photo.png", *SMALL), message)
    assert not list(here.glob("*inspect*"))


def test_wrong_options(here):
    torch.save(model(), "net.pt")
    refused(
        run("net.pt", "photo.png", *SMALL, "--layer", "head*"),
        r"--layer: no layer matches head\*; there are 0, 3",
    )
    refused(run("net.pt", "absent.png"), "absent.png: no such file")
    refused(run("net.pt", "photo.png", "-o", "a.doc"), "--output: expected a file ending in")
    refused(run("net.pt", "photo.png", "--device", "tpu9"), "--device: cannot compute on 'tpu9'")
    refused(run("net.pt", "photo.png", "--weights", "no.pt"), "no.pt: no such file")


def test_torchscript_is_refused(here):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(nn.Conv2d(3, 2, 3), torch.rand(1, 3, 8, 8)), "script.pt")
    refused(run("script.pt", "photo.png"), "TorchScript")


def test_torchvision_and_timm(here):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision: {error}")
    result = run("torchvision:resnet18", "photo.png", *SMALL)
    assert result.exit_code == 0, result.output
    assert "standard 7x7 3.00" in row_of(result.stdout, "conv1")
    assert "layer4.1.conv2" in result.stdout
    assert "The model has no adaptive layer" in result.stdout
    assert "The weights are random ones" in result.stdout
    assert "The figure has 5 of 17 layers" in result.stdout
    refused(run("torchvision:resnet0", "photo.png"), "torchvision has no such model")
    pytest.importorskip("timm")
    assert run("timm:resnet18", "photo.png", *SMALL, "--layer", "layer1.*").exit_code == 0
    refused(run("timm:resnet0", "photo.png"), "timm:resnet0: ")


@pytest.mark.unchecked
def test_layers_of_the_figure_are_spread():
    results = dict.fromkeys("abcdefghijk")
    assert list(for_the_figure(results, 3)) == ["a", "f", "k"]
    assert list(for_the_figure(results, 20)) == list(results)


@pytest.mark.slow
def test_half_precision_and_grey(here):
    torch.save(model(channels=1).double(), "net.pt")
    result = run("net.pt", *SMALL)  # the camera man
    assert result.exit_code == 0, result.output
    assert np.isfinite(float(row_of(result.stdout, "0").split()[3]))


def test_weights_without_a_model(here):
    torch.manual_seed(0)
    state = {
        "layer1.conv2.weight": torch.randn(8, 4, 3, 3),
        "layer1.conv2_offset.weight": torch.zeros(27, 4, 3, 3),
        "layer1.conv2_offset.bias": torch.zeros(27),
        "align.weight": torch.randn(4, 4, 3, 3),
        "align.conv_offset.weight": torch.ones(18, 4, 3, 3),
        "align.conv_offset.bias": torch.tensor([3.0, 4.0]).repeat(9),
    }
    torch.save({"epoch": 3, "state_dict": prefixed("module.", state)}, "bare.pth")
    result = run("bare.pth")
    assert result.exit_code == 0, result.output
    row = row_of(result.stdout, "layer1.conv2")
    assert row == "layer1.conv2 offsets and factors 3x3 1 4 -> 27 0.00 0"
    assert row_of(result.stdout, "align") == "align offsets 3x3 1 4 -> 18 5.00 6"
    assert not (here / "finslerconv-inspect.png").exists()


@pytest.mark.slow
def test_health_of_the_offsets(here):
    net = model()
    with torch.no_grad():
        for parameter in net[0].offset_conv.parameters():
            parameter.zero_()
        net[0].offset_conv.bias += 40
    torch.save(net, "far.pt")
    result = run("far.pt", "photo.png", *SMALL)
    assert result.exit_code == 0, result.output
    first = rows_of(result.stdout, "0")[1]
    assert first.startswith("0 ! 56.57 56.57 100 % 100 % "), first
    assert "0: offsets explode: 100.0% of the samples are far away" in result.stdout


ATTENTION = """
import torch
from torch import nn
from finslerconv.nn import DCNv3, MSDeformAttn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.dcn = nn.Conv2d(3, 8, 4, stride=4), DCNv3(8, group=2)
        self.attention = MSDeformAttn(8, n_levels=1, n_heads=4, n_points=2)

    def forward(self, x):
        x = self.dcn(self.stem(x).permute(0, 2, 3, 1))
        shape = torch.tensor([x.shape[1:3]])
        rows, columns = (torch.arange(n).add(0.5) / n for n in x.shape[1:3])
        points = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        tokens = x.flatten(1, 2)
        return self.attention(tokens, points.view(1, -1, 1, 2), tokens, shape)


def make():
    torch.manual_seed(0)
    return Network()
"""


@pytest.mark.slow
def test_attention_and_dcnv3(here):
    """Group by group and head by head, or together; and as far as the weights alone tell."""
    (here / "network_of_attention.py").write_text(ATTENTION)
    result = run("network_of_attention:make", "photo.png", *SMALL)
    assert result.exit_code == 0, result.output
    assert "dcnv3 3x3, 2 groups 1.00" in row_of(result.stdout, "dcn")
    row = row_of(result.stdout, "attention")
    assert row.startswith("attention attention 2 points, 4 heads -")  # rays imply no metric
    result = run("network_of_attention:make", "photo.png", "--together", *SMALL)
    assert result.exit_code == 0, result.output
    # The four heads' points at 1 and 2 pixels along the axes are on the circle of radius 2.
    row = row_of(result.stdout, "attention")
    assert row.startswith("attention attention 8 points"), row
    module = sys.modules["network_of_attention"]
    torch.save(module.make().state_dict(), "weights.pth")
    result = run("weights.pth")
    assert result.exit_code == 0, result.output
    assert row_of(result.stdout, "dcn").split()[1:5] == ["dcnv3", "-", "-", "8"]
    assert "attention attention - - 8 -> 16 2.00 0" in row_of(result.stdout, "attention")


@pytest.mark.slow
def test_numbers_as_json_and_csv(here):
    torch.save(model(), "net.pt")
    result = run("net.pt", "photo.png", *SMALL, "--json", "net.json", "--csv", "net.csv")
    assert result.exit_code == 0, result.output
    assert "Wrote net.json" in result.stdout
    first, second = json.loads((here / "net.json").read_text())
    assert (first["name"], first["kind"], first["kernel_size"]) == ("0", "deformable", [3, 3])
    assert (second["name"], second["explicit"], second["health"]["complaints"]) == ("3", True, [])
    # The numbers of the table, not rounded.
    shown = row_of(result.stdout, "0").split()
    assert f"{first['summary']['size']:.2f}" == shown[3]
    with (here / "net.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["0", "3"]
    assert float(rows[0]["summary.drift.1"]) == first["summary"]["drift"][1]
    assert rows[0]["kernel_size.0"] == "3"


@pytest.mark.slow
def test_numbers_on_standard_output_stand_alone(here):
    torch.save(model(), "net.pt")
    result = run("net.pt", "photo.png", *SMALL, "--json", "-")
    assert [layer["name"] for layer in json.loads(result.stdout)] == ["0", "3"]
    assert "Offset health" in result.stderr
    torch.save({"align.conv_offset.weight": torch.ones(18, 4, 3, 3)}, "bare.pth")
    result = run("bare.pth", "--csv", "-")
    assert result.stdout.splitlines()[0].startswith("layer,name,kind,kernel_size.0,kernel_size.1")
    refused(run("net.pt", "--json", "-", "--csv", "-"), "--json, --csv: expected one of them as -")
    refused(run("net.pt", "--json", "no/x.json"), "--json: no such directory: no")


def test_numbers_that_do_not_exist_are_null(here):
    write_json(here / "x.json", {"size": math.nan, "drift": (math.inf, 1.0)})
    assert json.loads((here / "x.json").read_text()) == {"size": None, "drift": [None, 1.0]}
    write_csv(here / "x.csv", [{"size": math.nan}, {"size": 2.0, "edges": None}])
    assert (here / "x.csv").read_text().split() == ["size,edges", ",", "2.0,"]
