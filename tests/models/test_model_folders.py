"""What a folder says of its model is checked against its files before anything is built."""

import json
import os
from pathlib import Path

import pytest

import rome_lens as rl
from rome_lens.models.loading.folder import check_folder
from tests.tiny import save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny GPT-2 of 3 layers."""
    return save_model(tmp_path / "model", "gpt2")


def test_a_whole_folder_passes(folder):
    check_folder(folder)


@pytest.mark.parametrize(("name", "number"), [("n_layer", 10**7), ("vocab_size", 10**9), ("n_positions", 2**40)])
def test_a_number_that_the_weights_do_not_allow_is_refused(folder, name, number):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: number}))
    with pytest.raises(
        rl.errors.FormatError, match=rf"{name} in .*config.json is {number}, but the 40 tensors .* allow"
    ):
        check_folder(folder)


@pytest.mark.parametrize("content", ["[]", "1", "{", "[" * 100_000, '{"n_layer": ' + "9" * 5000 + "}"])
def test_a_config_that_is_no_object_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(
        rl.errors.FormatError, match="model could not be read as a causal language model .*save_pretrained"
    ):
        check_folder(folder)


def test_a_pipe_a_folder_and_a_link_to_nowhere_are_named(folder):
    """transformers waits for a pipe without end."""
    extra = folder / "generation_config.json"
    for make, kind in [(os.mkfifo, "a pipe"), (os.mkdir, "a folder"), (lambda path: path.symlink_to("gone"), "a link")]:
        extra.unlink(missing_ok=True)
        make(extra)
        with pytest.raises(
            FileNotFoundError, match=rf"generation_config.json, expected a file of a model: it is {kind}"
        ):
            check_folder(folder)
        if extra.is_dir():
            extra.rmdir()


def test_a_file_of_4_gb_is_not_read(folder):
    with (folder / "tokenizer.json").open("r+b") as opened:
        opened.truncate(4 << 30)
    with pytest.raises(rl.errors.FormatError, match="tokenizer.json is 4294967296 bytes long, but at most"):
        check_folder(folder)
