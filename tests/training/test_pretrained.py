"""Weights to begin from: those of libraries and of our runs are found, what does not fit is said or refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.checks import assert_refused
from safetensors.torch import save_file
from torch import nn

import fogzo
from fogzo.errors import UserError
from fogzo.models import llama, mlp, resnet18
from fogzo.training.pretrained import initialise, read_weights
from fogzo.training.reload import load_run

SMALL = {"layers": 1, "width": 16, "heads": 2, "vocabulary": 64, "sequence": 16}


def torchvision_resnet(path):
    from torchvision import models

    model = models.resnet18(num_classes=5)
    torch.save({"model": {f"module.{name}": value for name, value in model.state_dict().items()}, "epoch": 3}, path)
    return model, resnet18(classes=5)


def timm_resnet(path):
    import timm

    model = timm.create_model("resnet18", num_classes=5)
    save_file(model.state_dict(), path.with_suffix(".safetensors"))
    return model, resnet18(classes=5)


def transformers_llama(path):
    model = llama(**SMALL)
    model.model.save_pretrained(path.parent / "folder")  # without its head: names lack a prefix
    (path.parent / "folder" / "model.safetensors").rename(path.with_suffix(".safetensors"))
    return model, llama(**SMALL)


@pytest.mark.parametrize("library", [torchvision_resnet, timm_resnet, transformers_llama])
def test_weights_of_a_library_are_found_by_name_also_behind_a_wrapper(library, tmp_path):
    source, model = library(tmp_path / "weights.pt")
    (file,) = [path for path in tmp_path.iterdir() if path.is_file()]
    lines = initialise(model, file)
    same = [torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items()]
    head = library is transformers_llama  # which the file has not
    assert same.count(False) == head
    assert lines[0] == f"weights of {file}: {len(same) - head} of {len(same)} tensors taken over"
    assert lines[1:] == ["left at their initial values: lm_head.weight"] * head


def test_a_head_of_another_size_stays_as_it_was_initialised_and_is_named(tmp_path):
    source, model = mlp(784, 10, 7), mlp(784, 10, 10)
    head = model.head.weight.clone()
    torch.save(source.state_dict() | {"extra": torch.ones(3)}, tmp_path / "w.pt")
    assert initialise(model, tmp_path / "w.pt")[1] == (
        "left at their initial values: head.weight (7x10 there, 10x10 here), head.bias (7 there, 10 here); "
        "not used: extra"
    )
    assert torch.equal(model.hidden.weight, source.hidden.weight)
    assert torch.equal(model.head.weight, head)


def test_a_run_begins_from_a_full_precision_run_and_its_scales_are_fitted_to_those_weights(train, tmp_path):
    assert train("quantizer=none", "estimator=ste", "run_dir=twin")[0] == 0
    code, out, err = train("init_from=twin", "optimizer.lr=1e-30", "steps=1", "run_dir=run")
    assert (code, err) == (0, "")
    assert "note:     weights of twin: 4 of 4 tensors taken over" in out
    twin, run = load_run("twin").model, load_run("run").model
    for weight in fogzo.quantized_weights(run):
        plain = twin.get_parameter(weight.name).detach()
        torch.testing.assert_close(weight.latent.detach(), plain)
        torch.testing.assert_close(weight.quantizer.alpha, 2 * plain.std(correction=0))
    again, latents = read_weights(Path("run/model.pt"))  # of a quantized run the latents
    assert again.keys() == twin.state_dict().keys()
    assert latents == {weight.name for weight in fogzo.quantized_weights(run)}


def test_the_content_and_not_the_path_is_part_of_a_runs_identity(train, tmp_path):
    torch.save(mlp().state_dict(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())

    def folder(name):
        code, out, err = train(f"init_from={name}", "steps=1")
        assert code == 0, err
        return re.search(r"result: +(.*)", out)[1], "finished already" in out

    first = folder("a.pt")
    assert folder("b.pt") == (first[0], True)
    torch.save(mlp().state_dict(), tmp_path / "a.pt")
    assert folder("a.pt")[0] != first[0]
    record = (tmp_path / first[0] / "config.yaml").read_text()
    assert re.search(r"content:\n +init_from: [0-9a-f]{64}\n", record)
    assert json.loads((tmp_path / first[0] / "summary.json").read_text())["steps"] == 1
    assert load_run(first[0]).config.init_from == "a.pt"  # which is another file now: it is not read again


def test_a_folder_may_be_one_of_transformers(tmp_path):
    source, model = mlp(), mlp()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    initialise(model, tmp_path)
    assert torch.equal(model.hidden.weight, source.hidden.weight)


class Loud:
    def __reduce__(self):
        return print, ("code was run",)


def broken(path):
    torch.save(mlp().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])


BAD = {  # what is wrong with weights.pt: what the message names
    "missing": (lambda path: None, ["init_from=weights.pt", "is not there"]),
    "a folder without weights": (lambda path: path.mkdir(), ["weights.pt/model.pt", "is not there"]),
    "truncated": (broken, ["weights.pt", "cannot be read as weights"]),
    "empty": (lambda path: path.touch(), ["weights.pt", "cannot be read as weights"]),
    "code": (lambda path: torch.save(Loud(), path), ["weights.pt", "cannot be read as weights"]),
    "a list": (lambda path: torch.save([1, 2], path), ["weights.pt holds no tensors by name"]),
    "another network's": (
        lambda path: torch.save(nn.Linear(3, 2).state_dict(), path),
        ["init_from=weights.pt has nothing of Sequential", "weight, bias", "hidden.weight"],
    ),
    "not finite": (
        lambda path: torch.save({"hidden.weight": torch.full((10, 784), torch.nan)}, path),
        ["hidden.weight", "not finite"],
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_weights_that_do_not_serve_are_refused_in_a_sentence(what, train, tmp_path):
    make, named = BAD[what]
    make(tmp_path / "weights.pt")
    answer = train("init_from=weights.pt")
    assert_refused(answer, *named)
    assert "code was run" not in answer[1]


def test_damaged_safetensors_and_our_exports_are_refused(train, tmp_path):
    model = fogzo.quantize_model(mlp(), fogzo.LSQ(2))
    fogzo.export(model, tmp_path / "codes.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "codes.safetensors").read_bytes()[:99])
    assert_refused(train("init_from=cut.safetensors"), "cut.safetensors cannot be read as weights")
    assert_refused(train("init_from=codes.safetensors"), "holds codes, which fogzo.export wrote")
    with pytest.raises(UserError, match=r"begin_from=x\.pt replaces all"):
        raise UserError(train("init_from=codes.safetensors", "begin_from=x.pt")[2])
