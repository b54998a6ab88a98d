"""The `pfcluster` command: parsing with one-sentence errors, dispatch, help, version and shell completion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro

from pfcluster.cli.commands import COMMANDS, SLURM_COMMANDS
from pfcluster.cli.main import BROKEN_PIPE, load_command, main
from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.launch.command_line import is_help, join_quoted, parse, parse_known
from pfcluster.launch.options import ClusterOptions, InlineCluster
from pfcluster.launch.overrides import apply_overrides, override_value
from pfcluster.launch.training_options import STUDIES, TRAINING, parse_training
from tests.tiny import LAUNCH, OPTIONS


@dataclass(frozen=True, kw_only=True)
class Example:
    """An example."""

    folder: tyro.conf.Positional[Path]
    mode: Literal["fast", "slow"] = "fast"
    count: int = 1
    seeds: tuple[int, ...] = (0,)
    cluster: InlineCluster = field(default_factory=ClusterOptions)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"--count must be at least 1, got {self.count}")


def test_parse_reads_positional_nested_and_repeated_values():
    example = parse(Example, ["runs", "--seeds", "1", "2", "--nodes", "3", "--mode=slow"])
    assert (example.folder, example.mode, example.seeds, example.cluster.nodes) == (Path("runs"), "slow", (1, 2), 3)


@pytest.mark.parametrize("build", [["--build", "--size 112 --align none"], ["--build=--size 112 --align none"]])
def test_quoted_options_are_the_value_of_an_option(build):
    options = parse_training("pipeline", [*build, "--optim.lr", "1e-3"])
    assert options.build == ("--size", "112", "--align", "none")
    assert options.overrides == ("--optim.lr", "1e-3")


@pytest.mark.parametrize("option", ["--no-detect", "--align=none"])
def test_a_single_quoted_option_is_the_value_of_build(option):
    options = parse_training("pipeline", ["--build", option, "--optim.lr", "1e-3"])
    assert (options.build, options.overrides) == ((option,), ("--optim.lr", "1e-3"))
    assert is_help(join_quoted(["--build", "--help"]))


def test_parse_known_returns_the_other_arguments_in_order():
    words = ["runs", "--optim.betas", "0.9", "0.95", "--count", "2", "--data.shards=x"]
    example, rest = parse_known(Example, words)
    assert example.count == 2
    assert rest == ["--optim.betas", "0.9", "0.95", "--data.shards=x"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs", "--cuont", "2"], "no option --cuont; did you mean --count"),
        (["runs", "--node", "2"], "no option --node; did you mean --nodes"),
        (["runs", "--zzz"], "no option --zzz; `pfcluster --help` lists the options"),
        (["runs", "more"], "unexpected argument 'more'"),
        (["runs", "--count", "two"], "--count: invalid literal for int() with base 10: 'two'"),
        (["runs", "--count"], "'--count'. Expected 1 value"),
        (["runs", "--mode", "quick"], "invalid choice 'quick' for argument '--mode'. Expected one of ('fast', 'slow')"),
        (["runs", "--count", "0"], "--count must be at least 1, got 0"),
        ([], "missing: FOLDER; `pfcluster --help` lists the options"),
    ],
)
@pytest.mark.parametrize("columns", ["60", "200"])
def test_errors_are_one_sentence_without_tyros_box(monkeypatch, words, message, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(ConfigError) as raised:
        parse(Example, words)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not set(str(raised.value)) & set("│╭╮╰╯─")
    assert "helptext" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.depht", "6"], "no option --model.depht; did you mean --model.depth"),
        (["--model.heads", "7"], "must be a multiple of model.heads = 7"),
        (["--engine.backend", "zero4"], "invalid choice 'zero4' for argument '--engine.backend'"),
        (["--checkpoint.asynchronous", "False"], "unexpected argument 'False': a switch takes no value: write --sec"),
    ],
)
def test_errors_of_overrides_name_field_and_value(words, message):
    with pytest.raises(ConfigError) as raised:
        apply_overrides(presets.recipe("demo")["mae"], words)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune", "--seed", "3"], "--seed would have no effect: runs take their seeds from --seeds; leave it out"),
        (["pretrain", "--objective=finetune"], "--objective would have no effect: the command says what is trained"),
        (["study", "--name", "mine"], "--name would have no effect: the runs of a study are named after"),
        (["sweep", "--seed", "3"], "--seed would have no effect: runs take their seeds from --seeds"),
        (["sweep", "--evaluate.final_split", "test"], "--evaluate.final-split would have no effect: no trial"),
        (["reproduce", "--miniature", "--evaluate.n-probe-images=9"], "--evaluate.n-probe-images would have no effect"),
        (["reproduce", "--miniature", "--data.shards", "x"], "--data.shards would have no effect: each dataset is a"),
    ],
)
def test_fields_that_a_command_sets_itself_are_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--executor", "local", "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_overrides_change_a_config():
    config = presets.recipe("demo")["mae"]
    assert apply_overrides(config, []) == config
    changed = apply_overrides(config, ["--optim.lr", "0.5", "--data.shards=faces"])
    assert (changed.optim.lr, changed.data.shards) == (0.5, "faces")
    assert override_value(["--data.shards", "a", "--epochs", "2", "--data.shards=b"], "--data.shards") == "b"
    assert override_value(["--epochs", "2"], "--data.shards") is None


def test_study_without_data_takes_the_demo_preset():
    local = ["--executor", "local"]
    assert parse_training("pipeline", local).preset == "demo"
    options = parse_training("pipeline", [*local, "--data.shards", "faces", "--seeds", "3"])
    assert (options.preset, options.seeds, options.max_parallel) == ("small", (3,), 1)
    assert options.overrides == ("--data.shards", "faces")
    assert options.command_line == "pfcluster pipeline --executor local --data.shards faces --seeds 3"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_can_be_loaded_and_has_help(command, capsys):
    assert callable(load_command(command))
    assert main([command, "--help"]) == 0
    assert f"usage: pfcluster {command}" in capsys.readouterr().out


def test_help_of_a_preset_shows_its_values(capsys):
    assert main(["pretrain", "--preset", "vit-b", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "dimension, D. (default: 768)" in words


def test_help_lists_every_command_and_config_field(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(command in output for command in COMMANDS)
    assert {*STUDIES, *TRAINING, *SLURM_COMMANDS} <= set(COMMANDS)
    assert main([]) == 2
    capsys.readouterr()
    assert main(["pretrain", "--help"]) == 0
    output = capsys.readouterr().out
    for option in ("--max-parallel", "--nodes", "--model.depth", "--data.synthetic.train", "--pf-mag.r1"):
        assert option in output
    assert "--optim.lr" in output
    assert RunConfig().objective in output


def test_a_command_does_not_wait_for_the_ranks_of_another_program(tmp_path):
    variables = os.environ | {"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    words = ["finetune", "--preset", "demo", *OPTIONS, "--max-steps", "1", "--executor", "local", "--output", tmp_path]
    done = subprocess.run([*LAUNCH, *words], env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, "WORLD_SIZE=4 in the environment is ignored" in done.stderr) == (0, True)
    assert (tmp_path / "scratch/seed-0/result.json").exists()


@pytest.mark.parametrize("command", ["evaluate", "build", "costs"])
def test_commands_that_do_not_train_refuse_ray(command, capsys):
    assert main([command, "--executor", "ray"]) == 2
    assert f"--executor ray runs only commands that train, not {command}" in capsys.readouterr().err


def test_unknown_command_names_a_similar_one(capsys):
    assert main(["pretrian"]) == 2
    assert "no command 'pretrian'; did you mean pretrain?" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pfcluster 0.")


def test_bash_completion_is_valid_and_knows_all_commands(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "--optim.lr" in script
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    path = tmp_path / "pfcluster"
    path.write_text(script)
    subprocess.run([bash, "-n", str(path)], check=True)


def test_a_closed_pipe_ends_a_command_without_a_traceback():
    command = [sys.executable, "-m", "pfcluster", "costs", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (BROKEN_PIPE, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", ""], "the argument after predict is empty"),
        (["build", "--input", "", "--output", "out"], "the argument after --input is empty"),
    ],
)
def test_empty_arguments_are_refused(words, message, capsys):
    """They would name the current folder; an unset shell variable in quotes gives one."""
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["costs", "doctor"])
def test_a_json_file_that_cannot_be_written_is_named_before_the_measurement(command, tmp_path, capsys):
    assert main([command, "--json", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert f"--json {tmp_path} is a folder; pass the path of a file in it" in output.err
    assert not output.out
