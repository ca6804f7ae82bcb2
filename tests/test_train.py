"""The training loop end to end: it learns, resumes bit for bit, survives kills and damage, and says what is wrong."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.analysis import command as analyze
from em3_jax.analysis import spaces
from em3_jax.config import parse, schema
from em3_jax.core.errors import UserError
from em3_jax.export import command as export
from em3_jax.export import vectors
from em3_jax.training import checkpoint, experiment, rundir
from em3_jax.training.run import Run
from tests.conftest import ROOT, user_error
from tests.small_runs import STEPS, arguments, check_same_run, final_state, records, small, small_config

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(80)]


@pytest.fixture(scope="module")
def finished(planted, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    result = train.train(small(planted), directory)
    assert result["step"] == STEPS
    return directory


@pytest.fixture
def copy_of_finished(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_the_loss_falls_and_validation_is_logged(finished):
    lines = records(finished)
    losses = [line["train/ranking_loss"] for line in lines if "train/ranking_loss" in line]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    evaluated = [line["step"] for line in lines if "valid/auc" in line]
    assert evaluated == [6, 12, 18, 24]
    names = {"train/loss", "train/cic_loss", "train/cic_accuracy", "train/gradient_norm"}
    assert names <= set(lines[0])
    for name in ("train/id_attention_entropy", "train/content_attention_entropy"):
        assert 0 < lines[0][name] <= lines[0][f"{name}_uniform"] * (1 + 1e-6)
    assert list((finished / "tensorboard").iterdir())


@pytest.fixture(scope="module")
def killed(planted, tmp_path_factory) -> Path:
    """A run that kill -9 ended at three random steps, and that then went on to its end."""
    directory = tmp_path_factory.mktemp("runs") / "killed"
    log = directory / "metrics.jsonl"
    for target in sorted(random.Random(0).sample(range(2, STEPS - 1), 3)):
        with subprocess.Popen(arguments(planted, directory), cwd=ROOT, stdout=subprocess.DEVNULL) as run:
            while run.poll() is None and not (log.exists() and _last_step(log) >= target):
                time.sleep(0.002)
            run.kill()
        assert run.returncode == -signal.SIGKILL
    subprocess.run(arguments(planted, directory), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return directory


def _last_step(log: Path) -> int:
    lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
    return json.loads(lines[-1])["step"] if lines else 0


def test_a_run_killed_three_times_ends_bit_identical(planted, finished, killed):
    check_same_run(planted, finished, killed)


def test_no_steps_a_dispatch_are_refused(planted, tmp_path):
    with pytest.raises(UserError, match=r"config\.train\.steps_per_dispatch=0: give a whole number of 1 or more"):
        train.train(small(planted, train__steps_per_dispatch=0), tmp_path)


def test_without_log_lines_evaluations_alone_are_logged(planted, finished, tmp_path):
    train.train(small(planted, train__log_every=0), tmp_path / "run")
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == [6, 12, 18, 24]
    assert [line for line in lines if "valid/auc" in line] == [
        line for line in records(finished) if "valid/auc" in line
    ]


def test_runs_with_kept_programs_are_those_without(planted, finished, tmp_path):
    """Two at once fill the user's cache; a third, told of the same folder, compiles nothing; and all end with the same bits."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    commands = [arguments(planted, tmp_path / name) for name in ("one", "other", "third")]
    options = {"cwd": ROOT, "env": kept | {"XDG_CACHE_HOME": str(tmp_path)}, "stdout": subprocess.DEVNULL}
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) for command in commands[:2]]
    assert [run.communicate()[1] for run in both] == ["", ""]
    programs = {path: path.stat().st_size for path in tmp_path.glob("em3_jax/compiled/*/*-cache")}
    assert any(path.name.startswith("jit_step") for path in programs)
    folder = tmp_path / "em3_jax" / "compiled"
    subprocess.run(
        [*commands[2], f"--config.train.compilation_cache={folder}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    assert {path: path.stat().st_size for path in folder.glob("*/*-cache")} == programs
    for name in ("one", "other", "third"):
        check_same_run(planted, finished, tmp_path / name)


def test_resuming_a_finished_run_changes_nothing(planted, copy_of_finished):
    before = records(copy_of_finished)
    assert train.train(small(planted), copy_of_finished)["step"] == STEPS
    assert records(copy_of_finished) == before


def test_a_run_of_a_version_with_fewer_settings_goes_on(planted, copy_of_finished):
    """A setting that a run.json lacks has the schema's default, and all that have it can be left out."""
    record = json.loads((copy_of_finished / "run.json").read_text())
    defaults = json.loads(json.dumps(parse.plain(schema.Ranking())))

    def without(given: dict, known: dict) -> dict:
        nested = {k: without(v, known[k]) if isinstance(v, dict) else v for k, v in given.items()}
        return {k: v for k, v in nested.items() if v != known[k] and v != {}}

    record["config"] = without(record["config"], defaults)
    assert "mesh" not in record["config"] and "precision" not in record["config"]["model"]
    (copy_of_finished / "run.json").write_text(json.dumps(record))
    assert train.train(small(planted), copy_of_finished)["step"] == STEPS


def test_a_run_that_cannot_start_from_another_leaves_no_folder(planted, finished, tmp_path):
    """Else the next try would meet a run of another config."""
    missing = user_error(train.train, small(planted, train__init_from=str(tmp_path / "none")), tmp_path / "run")
    assert missing.startswith(f"{tmp_path / 'none'}") and not (tmp_path / "run").exists()
    changes = {"train__init_from": str(finished), "model__cic__width": 5}
    other = user_error(train.train, small(planted, **changes), tmp_path / "run")
    assert "both runs need the same model" in other and not (tmp_path / "run").exists()


def test_longer_training_goes_on_from_the_last_step(planted, finished, copy_of_finished):
    epochs = 2 * STEPS * 128 / len(planted.split_rows("train"))
    assert train.train(small(planted, train__epochs=epochs), copy_of_finished)["step"] == 2 * STEPS
    lines = records(copy_of_finished)
    assert lines[: len(records(finished))] == records(finished)
    assert [line["step"] for line in lines if "valid/auc" in line] == [6, 12, 18, 24, 30, 36, 42, 48]


def _state_files(directory: Path, step: int) -> list[Path]:
    folder = directory / "checkpoints" / "latest" / str(step) / "state"
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1)


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(planted, finished, copy_of_finished, tmp_path):
    template = jax.eval_shape(experiment.build(small_config(planted).to_dict()).program.init)
    expected = final_state(planted, finished)
    fell_back = []
    for path in _state_files(copy_of_finished, STEPS):
        copy = Path(shutil.copytree(finished, tmp_path / "cut", dirs_exist_ok=True))
        cut = copy / path.relative_to(copy_of_finished)
        os.truncate(cut, cut.stat().st_size // 2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state, _ = checkpoint.Checkpoints(copy).restore_latest(template)
        messages = [str(w.message) for w in caught if "unreadable" in str(w.message)]
        if messages:
            assert int(state.step) == STEPS - 6
            assert len(messages) == 1 and str(copy / "checkpoints" / "latest" / str(STEPS)) in messages[0]
            fell_back.append(cut)
        else:  # a file that says nothing about the state, such as an empty marker of success
            got = {name: np.asarray(leaf) for name, leaf in checkpoint._flat(state).items()}
            assert all(got[name].tobytes() == value.tobytes() for name, value in expected.items()), path.name
        shutil.rmtree(copy)
    data = [path for path in fell_back if path.parent.name == "d"]
    assert data, "no file with the numbers was among those whose damage was seen"


def test_a_half_written_checkpoint_is_not_taken_for_one(planted, finished, copy_of_finished):
    latest = copy_of_finished / "checkpoints" / "latest"
    shutil.rmtree(latest / str(STEPS) / "state")
    with pytest.warns(UserWarning, match=f"latest/{STEPS} is unreadable"):
        train.train(small(planted), copy_of_finished)
    assert final_state(planted, finished).keys() == final_state(planted, copy_of_finished).keys()
    assert records(finished) == records(copy_of_finished)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_leaves_with_a_message(planted, tmp_path, name):
    directory = tmp_path / "run"
    command = [*arguments(planted, directory), "--config.train.epochs=1000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None and not (directory / "metrics.jsonl").exists():
            time.sleep(0.01)
        time.sleep(0.5)
        run.send_signal(getattr(signal, name))
        output, _ = run.communicate(timeout=600)
    assert run.returncode == 128 + getattr(signal, name)
    assert f"{name}: saved step" in output and "run the same command again" in output
    saved = checkpoint.Checkpoints(directory).steps("latest")
    assert f"saved step {saved[-1]:,} " in output


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(planted, copy_of_finished, tmp_path):
    config = small_config(planted, train__epochs=1000.0, optim__learning_rate=1e30)
    with pytest.raises(UserError, match=r"non-finite between steps \d+ and \d+: .*loss.*no checkpoint yet"):
        train.train(config.to_dict(), tmp_path / "fresh")
    record = json.loads((copy_of_finished / "run.json").read_text())
    record["config"]["optim"] |= {"learning_rate": 1e30}
    (copy_of_finished / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"non-finite between steps .*loss.*checkpoint of step {STEPS} is kept"):
        train.train(config.to_dict(), copy_of_finished)
    assert checkpoint.Checkpoints(copy_of_finished).steps("latest")[-1] == STEPS


def test_no_room_for_a_checkpoint_is_one_line_and_keeps_the_previous(planted, copy_of_finished, monkeypatch):
    epochs = 2 * STEPS * 128 / len(planted.split_rows("train"))
    usage = shutil.disk_usage(copy_of_finished)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=f"could not save step 30 .*no disk space.*step {STEPS} is kept"):
        train.train(small(planted, train__epochs=epochs), copy_of_finished)
    monkeypatch.undo()
    assert train.train(small(planted, train__epochs=epochs), copy_of_finished)["step"] == 2 * STEPS


def test_a_write_that_fails_halfway_is_one_line_and_keeps_the_previous(planted, copy_of_finished):
    epochs = 2 * STEPS * 128 / len(planted.split_rows("train"))

    largest = (copy_of_finished / "run.json").stat().st_size + 500  # it has to be written, and no checkpoint fits

    def forbid_larger_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    (copy_of_finished / "metrics.jsonl").write_text("")
    shutil.rmtree(copy_of_finished / "tensorboard")
    run = subprocess.run(
        [*arguments(planted, copy_of_finished), f"--config.train.epochs={epochs}", "--config.train.log_every=100"],
        cwd=ROOT, preexec_fn=forbid_larger_files, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert "could not save" in run.stderr.splitlines()[-1] and f"step {STEPS} is kept" in run.stderr
    assert "Traceback" not in run.stderr
    assert train.train(small(planted), copy_of_finished)["step"] == STEPS


def test_early_stopping_counts_evaluations_without_a_better_one(planted, tmp_path):
    config = small_config(planted, train__epochs=1000.0, train__patience=2, optim__learning_rate=0.0)
    config.train.plateau_factor = 0.5
    config.tables.learning_rate = 0.0  # nothing changes, so nothing gets better
    result = train.train(config.to_dict(), tmp_path / "run")
    assert (result["stopped_by"], result["best_step"], result["step"]) == ("patience", 6, 18)
    assert train.train(config.to_dict(), tmp_path / "run")["step"] == 18
    parts = experiment.build(config.to_dict())
    notes = checkpoint.Checkpoints(tmp_path / "run").restore(jax.eval_shape(parts.program.init), 18)[1]
    assert notes["plateaus"] == 2  # as many factors on the rates of the steps that would follow


def test_features_on_the_host_train_like_features_on_the_device(planted, finished, tmp_path):
    train.train(small(planted, data__placement="host"), tmp_path / "host")
    for got, expected in zip(records(tmp_path / "host"), records(finished), strict=True):
        assert got == pytest.approx(expected, rel=2e-3, abs=2e-3, nan_ok=True)


def test_evaluation_prints_the_validation_numbers_of_training_exactly(finished):
    for step in (STEPS, None):
        result = evaluation.evaluate(finished, "valid", step)
        logged = next(line for line in records(finished) if line["step"] == result["step"] and "valid/auc" in line)
        of_rows = {name: value for name, value in result["slices"]["all"].items() if not name.endswith("_se")}
        assert {f"valid/{name}": value for name, value in of_rows.items()} == {
            name: value for name, value in logged.items() if name.startswith("valid/")
        }


def test_the_best_checkpoint_is_the_best_of_the_log(finished):
    evaluated = {line["step"]: line["valid/auc"] for line in records(finished) if "valid/auc" in line}
    assert evaluation.evaluate(finished, "test")["step"] == max(evaluated, key=evaluated.get)


def test_a_workdir_of_another_config_or_dataset_is_refused(planted, finished, tmp_path):
    with pytest.raises(
        UserError, match=r"belongs to another config \(config.model.backbone_settings.dropout: 0.4 -> 0.5\)"
    ):
        changed = small_config(planted)
        changed.model.backbone_settings.dropout = 0.5
        train.train(changed.to_dict(), finished)
    other = Path(shutil.copytree(planted.root, tmp_path / "other"))
    meta = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(meta | {"data_hash": "0" * 64}))
    with pytest.raises(UserError, match="belongs to another dataset"):
        train.train(small(planted, data__root=str(other)), finished)
    with pytest.raises(UserError, match="belongs to another dataset"):
        evaluation.evaluate(finished, "test", data_root=str(other))


def test_a_dataset_that_was_moved_is_asked_for_with_data(planted, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    record["config"]["data"]["root"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(record))
    for command in (
        lambda: evaluation.evaluate(run, "test"),
        lambda: vectors.export_vectors(run, "v"),
        lambda: export.export(run, tmp_path / "store", export.Settings()),
        lambda: spaces.read(run, run),
    ):
        message = user_error(command)
        assert message.startswith(f"{tmp_path / 'gone'}: no such folder") and "--data" in message
    for root in (planted.root, str(planted.root)):  # the commands have a path
        assert Run.open(run, root).experiment.work.dataset.root == planted.root


@pytest.mark.parametrize("command", ["eval", "vectors", "export", "analyze"])
def test_data_on_the_command_line_is_the_dataset_of_the_run(command, planted, finished, tmp_path, monkeypatch):
    module = {"eval": evaluation, "vectors": vectors, "export": export, "analyze": analyze}[command]
    gone = Path(shutil.copytree(finished, tmp_path / "run"))
    record = json.loads((gone / "run.json").read_text())
    record["config"]["data"]["root"] = str(tmp_path / "gone")
    (gone / "run.json").write_text(json.dumps(record))
    asked = ["--workdir", str(gone), "--data", str(planted.root)]
    asked += {"vectors": ["--name", "v"], "export": ["--out", str(tmp_path / "s")]}.get(command, [])
    asked += ["--baseline", str(gone), "--out", str(tmp_path / "a")] if command == "analyze" else []
    monkeypatch.setattr(sys, "argv", [command, *asked])
    built = []

    def build(config, *_, **__):  # what comes after the dataset is opened is tested elsewhere
        built.append(parse.checked(config)["data"]["root"])
        raise UserError("enough")

    monkeypatch.setattr(experiment, "build", build)
    assert user_error(module.main) == "enough" and built == [str(planted.root)]


def test_a_checkpoint_of_another_model_is_refused(planted, finished):
    config = small_config(planted)
    config.model.backbone_settings.hidden = (17,)
    parts = experiment.build(config.to_dict())
    with pytest.raises(UserError, match=r"checkpoint of another model: .*dnn.*float32\[16.*float32\[17"):
        checkpoint.Checkpoints(finished).restore(jax.eval_shape(parts.program.init))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["train.py", "--config=configs/em3_synthetic.py", "--config.model.dropuot=0.1", "--workdir=x"],
            "config.model.dropuot",
        ),
        (["train.py", "--config=configs/nothing.py", "--workdir=x"], "configs/nothing.py"),
        (
            ["train.py", "--config=configs/em3_synthetic.py", "--config.train.epochs=nan", "--workdir=x"],
            "a number above 0",
        ),
        (["train.py", "--config=configs/em3_synthetic.py", "--workdir"], "--workdir: expected one argument"),
        (["train.py", "--config=configs/em3_synthetic.py"], "--workdir"),
        (["train.py", "--config=configs/em3_synthetic.py", "--config.data.root=nowhere", "--workdir=x"], "nowhere"),
        (["eval.py", "--workdir=nowhere"], "nowhere"),
        (["-m", "em3_jax.compare", "a=nowhere"], "nowhere"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(command, message, tmp_path):
    command = [sys.executable, *command]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1 and run.stderr.startswith("error: ")
    assert message in run.stderr


def test_run_json_names_config_data_and_versions(finished):
    record = rundir.read(finished)
    assert record["config"]["data"]["batch_size"] == 128
    assert len(record["data_hash"]) == 64
    assert record["packages"]["jax"] == jax.__version__
