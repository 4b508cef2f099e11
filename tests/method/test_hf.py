"""fogzo.hf.Trainer: the library's own loop inside transformers' Trainer, in pieces, resumed and in two processes."""

import pytest
import torch
from helpers.cli import run
from helpers.hf_trainer import arguments, estimator_of, llama, state, text, trainer
from transformers import TrainerCallback, get_scheduler

import fogzo
from fogzo.errors import UserError
from fogzo.estimators import ControlVariate, Phased, SplitFOGZO
from fogzo.hf import Trainer
from fogzo.interchange.compressed import export_compressed

PLAIN = {"train_sampling_strategy": "sequential", "warmup_steps": 2, "max_grad_norm": 0.5}


def batches(size):
    rows = text()
    while True:
        for i in range(0, len(rows), size):
            yield {key: torch.stack([row[key] for row in rows[i : i + size]]) for key in rows[0]}


def own_loop(steps=6, micro_batches=1):
    """What PLAIN asks for, in a loop of one's own."""
    model = llama()
    estimator, parts = estimator_of(model), batches(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=steps)
    seen = []
    for step in range(steps):
        now = [next(parts) for _ in range(micro_batches)]
        items = sum(part["labels"][:, 1:].ne(-100).sum() for part in now)

        def closure(*, backward, now=now, items=items):
            losses = []
            for part in now:
                loss = model(**part, num_items_in_batch=items).loss
                if backward:
                    loss.backward()
                losses.append(loss.detach())
            return losses[0] if len(losses) == 1 else torch.stack(losses).sum(dtype=torch.float64)

        model.train()
        optimizer.zero_grad()
        seen.append(estimator.estimate(closure, step=step))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    return state(model), seen


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_it_computes_the_bits_of_the_librarys_own_loop_and_logs_what_was_seen(micro_batches, tmp_path):
    hf = trainer(tmp_path, gradient_accumulation_steps=micro_batches, **PLAIN)
    hf.train()
    expected, seen = own_loop(micro_batches=micro_batches)
    assert_same(state(hf.model), expected)
    rows = [row for row in hf.state.log_history if "loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row, (first, second) in zip(rows, zip(seen[::2], seen[1::2], strict=True), strict=True):
        assert row["agreement"] == pytest.approx(float(first.agreement + second.agreement) / 2)
        assert row["loss"] == pytest.approx(float(first.loss + second.loss) / 2, rel=1e-4)
        assert row["crossings"] == float(second.crossings)
        assert {"zero_probes", "guide_norm", "beta", "noise_share", "grad_norm"} <= row.keys()


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    pieces, whole = (
        trainer(tmp_path, per_device_train_batch_size=12 // k, gradient_accumulation_steps=k, **PLAIN) for k in (3, 1)
    )
    for one in (pieces, whole):
        one.train()
    for name, value in state(whole.model).items():
        torch.testing.assert_close(pieces.model.state_dict()[name], value, rtol=0, atol=5e-4)  # Adam moved them by 1e-2


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt


def with_history(model):
    return ControlVariate(fogzo.quantized_weights(model), sides="one", seed=3)


@pytest.mark.parametrize("make", [estimator_of, with_history])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_killed_run_goes_on_to_the_same_bits(make, dropout, tmp_path):
    options = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 3, "max_steps": 8}

    def begun(folder, **more):
        return trainer(tmp_path / folder, llama(attention_dropout=dropout), make, **options | more)

    whole = begun("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        begun("killed", callbacks=[Kill()]).train()
    resumed = begun("killed")
    resumed.train(resume_from_checkpoint=True)
    assert_same(state(resumed.model), state(whole.model))
    rows = [row for row in whole.state.log_history if row["step"] >= 6 and "loss" in row]
    assert rows == [row for row in resumed.state.log_history if row["step"] >= 6 and "loss" in row]


def test_two_processes_are_one(tmp_path):
    done = run("tests/helpers/hf_trainer.py", tmp_path, ranks=2, loads=["transformers"])
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_same(first["state"], second["state"])
    whole = trainer(tmp_path / "one", gradient_accumulation_steps=2)
    whole.train()
    for name, value in state(whole.model).items():
        torch.testing.assert_close(first["state"][name], value, rtol=0, atol=5e-4)  # Adam moved them by 1e-2
    mine, its = ([row for row in log if "loss" in row] for log in (first["log"], whole.state.log_history))
    for row, other in zip(mine, its, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["agreement"] == pytest.approx(other["agreement"], rel=1e-2)
    assert (tmp_path / "checkpoint-3" / "fogzo_estimator.pt").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda model: fogzo.StraightThrough(),
        lambda model: fogzo.NSPSA(fogzo.quantized_weights(model), samples=2),
        lambda model: SplitFOGZO(fogzo.quantized_weights(model)),
        lambda model: Phased(fogzo.StraightThrough(), estimator_of(model), switch_step=2),
    ],
    ids=["ste", "nspsa", "split", "phased"],
)
def test_bf16_and_every_kind_of_estimator_train(make, tmp_path):
    hf = trainer(tmp_path, make=make, bf16=True, gradient_accumulation_steps=2)
    dtypes = set()
    hf.model.lm_head.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    before = state(hf.model)
    hf.train()
    assert dtypes == {torch.bfloat16}
    assert all(value.isfinite().all() for value in hf.model.state_dict().values())
    assert any(not torch.equal(before[name], value) for name, value in hf.model.state_dict().items())


def test_a_model_made_by_the_trainer_gets_an_estimator_made_for_it(tmp_path):
    hf = Trainer(
        args=arguments(tmp_path, **PLAIN), model_init=lambda: llama(), train_dataset=text(), estimator=estimator_of
    )
    hf.train()
    assert_same(state(hf.model), own_loop()[0])


def test_learned_steps_get_no_weight_decay(tmp_path):
    hf = trainer(tmp_path, weight_decay=0.1)
    names = hf.get_decay_parameter_names(hf.model)
    assert "model.layers.0.mlp.up_proj.parametrizations.weight.original" in names
    assert not [name for name in names if name.endswith("step")]


def test_a_trained_model_is_exported_as_any_other(tmp_path):
    hf = trainer(tmp_path, gradient_accumulation_steps=2)
    hf.train()
    model, tokens = hf.model.eval(), text()[0]["input_ids"][None]
    fogzo.export(model, tmp_path / "m.safetensors")
    plain = fogzo.load(tmp_path / "m.safetensors", fogzo.bake(llama())).eval()
    assert torch.equal(plain(tokens).logits, model(tokens).logits)
    export_compressed(model, tmp_path / "folder")
    assert (tmp_path / "folder" / "config.json").exists()


def other_optimizer(model):
    return torch.optim.SGD([p for name, p in model.named_parameters() if not name.endswith("step")], lr=0.1), None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: {"estimator": "fogzo"}, "estimator is a str: pass one such as"),
        (lambda model: {"estimator": lambda model: 3}, "estimator made a int"),
        (lambda model: {"model": fogzo.bake(model)}, "has no quantized weights: call fogzo.quantize_model"),
        (lambda model: {"estimator": estimator_of(llama())}, "estimator is of another model than the Trainer's"),
        (
            lambda model: {"estimator": Phased(fogzo.StraightThrough(), estimator_of(llama()), switch_step=2)},
            "of another model",
        ),
        (lambda model: {"model": None, "model_init": lambda: llama()}, "model_init makes another: pass a function"),
        (lambda model: {"optimizers": other_optimizer(model)}, "lacks latent weights or learned steps: build it after"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(change, message, tmp_path):
    model = llama()
    given = {"model": model, "args": arguments(tmp_path), "train_dataset": text(), "estimator": estimator_of(model)}
    with pytest.raises(UserError, match=message):
        Trainer(**given | change(model)).train()


def test_fp16_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"GradScaler .*: pass bf16=True"):
        trainer(tmp_path, fp16=True)


@pytest.mark.parametrize(
    ("other", "make", "message"),
    [
        (llama, with_history, "does not hold what ControlVariate goes on from"),
        (lambda: fogzo.bake(llama()), estimator_of, "not quantized alike"),
        (lambda: llama(fogzo.Sign()), estimator_of, "not quantized alike|its codes are"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(other, make, message, tmp_path):
    from transformers import Trainer as Theirs

    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3}
    Theirs(other(), arguments(tmp_path, **options), train_dataset=text()).train()
    with pytest.raises((UserError, RuntimeError), match=message):
        trainer(tmp_path, make=make, **options | {"max_steps": 6}).train(resume_from_checkpoint=True)
