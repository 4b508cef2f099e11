"""Other people's networks and your own data, from the command line: what runs, and what is refused in a sentence."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.checks import assert_refused
from helpers.cli import run_script
from helpers.images import cut, write_tree

from fogzo.errors import UserError
from fogzo.models import hf_causal_lm, llama, timm_model
from fogzo.models.libraries import outer_layers
from fogzo.training.reload import evaluate_run, load_run

SMALL = {"layers": 1, "width": 16, "heads": 2, "vocabulary": 2048, "sequence": 128}


@pytest.mark.parametrize(
    ("arch", "ends"),
    [
        ("test_resnet", ["conv1.0", "fc"]),
        ("test_vit", ["patch_embed.proj", "head"]),
        ("deit_tiny_distilled_patch16_224", ["patch_embed.proj", "head", "head_dist"]),
        ("convnext_atto", ["stem.0", "head.fc"]),
    ],
)
def test_a_network_of_timm_is_built_for_the_images_with_its_ends_known(arch, ends):
    model = timm_model(arch=arch, channels=1, classes=7, image_size=64).eval()
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 7)
    assert outer_layers(model) == ends


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arch": "resnet19"}, r"model\.arch=resnet19 is no network of timm .*: did you mean resnet1\d"),
        ({"arch": "perceptron_of_ours"}, r"timm\.list_models"),
        ({"options": {"depths": 3}}, r"model\.arch=test_resnet cannot be built with .*depths"),
        ({"classes": 0}, "classes=0 is not possible"),
    ],
)
def test_what_timm_cannot_build_is_refused(changed, message):
    with pytest.raises(UserError, match=message):
        timm_model(**{"arch": "test_resnet", "channels": 1, "classes": 7, "image_size": 64} | changed)


def test_a_run_takes_images_of_any_number_of_classes_and_comes_back(train, tmp_path):
    write_tree(tmp_path / "pets", ("cat", "dog", "owl"), 6, (40, 50))
    overrides = ["model=timm", "data=imagefolder", "data.image_size=32", "data.workers=0", "batch_size=6", "steps=2"]
    code, out, err = train(*overrides, "data.root=pets", "run_dir=run")
    assert (code, err) == (0, "")
    assert re.search(r"layers: +\d+ quantized: all .* but the first convolution and the head", out)
    config = load_run("run").config
    assert (config.model.classes, config.model.channels, config.model.image_size) == (3, 3, 32)
    summary = json.loads(Path("run/summary.json").read_text())
    assert evaluate_run("run")["accuracy"] == summary["accuracy"]
    (tmp_path / "pets").rename(tmp_path / "animals")
    assert "finished already" in train(*overrides, "data.root=animals", "run_dir=run")[1]  # the content counts
    write_tree(tmp_path / "pets", ("cat", "dog", "owl"), 7, (40, 50))
    assert_refused(train(*overrides, "data.root=pets", "run_dir=run"), "content.data: ")


def without_train(root):
    (root / "train").rename(root / "training")


def without_a_class(root):
    (root / "val" / "dog").rename(root / "val" / "hog")


def emptied(root):
    for file in (root / "train" / "dog").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "overrides", "named"),
    [
        (without_train, "", ["pets/train", "cannot be read", "a folder of images for each class"]),
        (without_a_class, "", ["pets/val", "dog is missing", "hog is not one of them", "data.root=FOLDER"]),
        (emptied, "", ["pets/train/dog holds no images"]),
        (
            lambda root: cut(root / "train/dog/dog_1.JPEG"),
            "",
            ["pets/train/dog/dog_1.JPEG", "cannot be read as an image"],
        ),
        (lambda root: root.rename(root.with_name("away")), "", ["imagefolder is not in pets", "data.root=FOLDER"]),
        (lambda root: None, "model.classes=5", ["data=imagefolder has 2 classes, but the model has 5"]),
        (lambda root: None, "batch_size=99", ["batch_size=99", "12 training examples"]),
        (lambda root: None, "model=llama_mini", ["data=imagefolder holds images"]),
        (lambda root: None, "data=pydocs", ["model.image_size=null", "data=pydocs holds no images"]),
    ],
)
def test_a_folder_that_is_not_as_it_must_be_is_refused_by_its_path(change, overrides, named, train, tmp_path):
    root = write_tree(tmp_path / "pets", ("cat", "dog"), 6, (40, 50))
    change(root)
    base = ["model=timm", "data=imagefolder", "data.root=pets", "data.image_size=32", "data.workers=0", "batch_size=6"]
    kept = [word for word in base if word.partition("=")[0] not in [w.partition("=")[0] for w in overrides.split()]]
    kept = [word for word in kept if "data=pydocs" not in overrides or not word.startswith("data.")]
    assert_refused(train(*kept, *overrides.split()), *named)


@pytest.fixture
def gpt(tmp_path):
    """A folder with a small GPT-NeoX of transformers, and its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("gpt_neox", vocab_size=512, max_position_embeddings=32, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt")
    return tmp_path / "gpt"


def test_a_language_model_trains_from_its_folder_on_a_text_of_ones_own(gpt, train, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(f"the cat sat on mat {i}\n" * 30 for i in range(40)))
    words = ["--name", "mine", "--files", "a.txt", "--tokenizer", "train:300", "--out", "words", "--test-share", "0.2"]
    assert run_script("scripts/prepare_text.py", *words) == 0, capsys.readouterr().err
    capsys.readouterr()
    overrides = ["model=hf_causal_lm", "data=text", "data.root=words", "data.sequence=16", "batch_size=4", "steps=2"]
    code, out, err = train(*overrides, "model.path=gpt", "evaluation_tokens=64", "run_dir=run")
    assert (code, err) == (0, "")
    assert re.search(r"layers: +4 quantized: all .* but the first convolution and the head", out)
    model = load_run("run").model
    before = hf_causal_lm(path=str(gpt))
    moved = [model.get_parameter(name) - value for name, value in before.state_dict().items() if "embed_in" in name]
    assert all(0 < change.abs().max() < 0.1 for change in moved)  # it began from the weights in the folder
    assert "text" in (tmp_path / "run/config.yaml").read_text()
    assert_refused(train(*overrides, "model.path=gpt", "data.sequence=64"), "a sequence of 64", "the model's 32")
    assert_refused(train(*overrides, "model.path=gpt", "data.root=nowhere"), "nowhere", "is not there")


def test_a_folder_without_weights_gives_new_ones_and_with_half_of_them_is_refused(gpt):
    from safetensors.torch import load_file, save_file

    weights = load_file(gpt / "model.safetensors")
    (gpt / "model.safetensors").unlink()
    torch.manual_seed(1)
    first = hf_causal_lm(path=str(gpt)).get_output_embeddings().weight
    assert first.dtype == torch.float32
    assert not torch.equal(first, hf_causal_lm(path=str(gpt)).get_output_embeddings().weight)
    save_file({name: value for name, value in weights.items() if "embed" not in name}, gpt / "model.safetensors")
    with pytest.raises(UserError, match=r"has no weights for \S*embed\S* and \d more: .*init_from="):
        hf_causal_lm(path=str(gpt))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"model\.path=.* holds no config\.json: name a folder"),
        ("{", "is no language model"),
        ('{"model_type": "no_such"}', "is no language model"),
        ('{"model_type": "vit"}', "is no language model"),
        ('{"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}', "is no language model"),
    ],
)
def test_a_folder_of_no_language_model_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        hf_causal_lm(path=str(tmp_path))


def test_the_model_must_be_named_where_there_is_no_default(train):
    assert_refused(train("model=hf_causal_lm"), "model.path=None holds no config.json")


def test_the_ends_of_our_own_networks_are_those_that_their_recipes_leave_out():
    assert outer_layers(llama(**SMALL)) == ["lm_head"]
