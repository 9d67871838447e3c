"""The options of `train`: defaults, precedence, types, messages, and how fast help comes."""

import argparse
import subprocess
import sys

import pytest

from stable_audio_tools.cli import args as cli_args
from stable_audio_tools.cli.main import COMMANDS, main
from stable_audio_tools.configs.errors import ConfigError


def resolved(*argv):
    parser = argparse.ArgumentParser()
    cli_args.configure(parser)
    return cli_args.resolve(parser.parse_args(argv))


def test_every_option_has_help_and_a_default_of_its_type():
    options = cli_args.read_options()
    assert len(options) == len({option.name for option in options}) > 25
    assert all(option.help for option in options)
    assert {o.name: type(o.default) for o in options if o.name in ("max_steps", "gradient_clip_val", "recover", "name")} == {
        "max_steps": int,
        "gradient_clip_val": float,
        "recover": bool,
        "name": str,
    }


def test_command_line_wins_over_config_file_wins_over_defaults(tmp_path):
    ini = tmp_path / "my.ini"
    ini.write_text("[DEFAULTS]\nbatch_size = 7\nmax_steps = 9\nmodel_config = m.json\n")
    values = resolved("--config-file", str(ini), "--batch-size", "3")
    assert (values["batch_size"], values["max_steps"], values["seed"]) == (3, 9, 42)
    assert values["model_config"] == str(tmp_path / "m.json")


def test_without_a_model_config_the_quickstart_is_trained():
    values = resolved()
    assert values["name"] == "quickstart" and values["model_config"].endswith("text_to_audio.json")
    assert resolved("--model-config", "x.json")["name"] == ""


@pytest.mark.parametrize(
    ("argv", "value"), [(["--recover"], True), (["--recover", "true"], True), (["--recover", "false"], False), ([], False)]
)
def test_a_boolean_is_a_flag_or_takes_a_word(argv, value):
    assert resolved("--model-config", "x.json", *argv)["recover"] is value


def test_every_bad_value_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        resolved(
            "--model-config",
            "x.json",
            "--max-steps",
            "ten",
            "--batch-size",
            "0",
            "--logger",
            "wanb",
            "--recover",
            "maybe",
            "--gradient-clip-val",
            "nan",
        )
    text = str(caught.value)
    for part in (
        "--max-steps: expected a whole number, got 'ten'",
        "--batch-size: expected 1 or more, got 0",
        "--logger: expected one of auto",
        "--recover: expected true or false",
        "--gradient-clip-val: expected a number",
    ):
        assert part in text


def test_an_unknown_key_in_a_config_file_is_named_with_the_nearest(tmp_path):
    ini = tmp_path / "my.ini"
    ini.write_text("[DEFAULTS]\nbatchsize = 7\n")
    with pytest.raises(ConfigError, match=r'my.ini: unknown option .batchsize.\n.*did you mean "batch_size"'):
        resolved("--config-file", str(ini))


@pytest.mark.parametrize("argv", [["--help"], [], ["train", "--help"]])
def test_help_says_what_there_is(argv, capsys):
    if argv[-1:] == ["--help"] and len(argv) == 2:
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 0
    else:
        assert main(argv) == 0
    assert ("--max-steps" if len(argv) == 2 else "train") in capsys.readouterr().out


LIGHTNINGS = ("fit", "validate", "test")  # their flags are those of Lightning's Trainer, read from its code


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in LIGHTNINGS])
def test_help_of_a_command_imports_neither_torch_nor_pydantic(command):
    code = f"""
import sys
from stable_audio_tools.cli.main import main
try:
    main([{command!r}, "--help"])
except SystemExit:
    pass
assert not {{"torch", "pydantic", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_a_mistyped_flag_or_command_gets_the_nearest(capsys):
    assert main(["train", "--max-step", "3"]) == 2
    assert 'did you mean "--max-steps"?' in capsys.readouterr().err
    assert main(["trian"]) == 2
    assert 'did you mean "train"?' in capsys.readouterr().err


def test_weights_may_be_several_files_on_the_command_line_and_in_an_ini_file(tmp_path):
    assert resolved("--model-config", "m.json")["pretrained_ckpt_path"] == ()
    values = resolved("--model-config", "m.json", "--pretrained-ckpt-path", "base.ckpt", "--pretrained-ckpt-path", "lora:0.5")
    assert values["pretrained_ckpt_path"] == ("base.ckpt", "lora:0.5")
    ini = tmp_path / "my.ini"
    ini.write_text("[DEFAULTS]\npretrained_ckpt_path = base.ckpt\n  lora:0.5\n")
    assert resolved("--config-file", str(ini))["pretrained_ckpt_path"] == (f"{tmp_path}/base.ckpt", f"{tmp_path}/lora:0.5")
