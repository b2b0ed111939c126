"""What a GGUF header counts has to fit into the file, before any reader builds it."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

import rome_lens as rl
from rome_lens.models.loading.gguf_header import check_gguf
from tests.torture import times


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small GGUF file, as llama.cpp's own writer makes it."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(1 << 17)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    for name in ("token_embd.weight", "blk.0.ffn_down.weight"):
        writer.add_tensor(name, np.ones((3, 7), np.float32))
    writer.add_tensor("output.weight", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def check(content: bytes, folder: Path) -> None:
    path = folder / "damaged.gguf"
    path.write_bytes(content)
    check_gguf(path)


def after(content: bytes, name: bytes, value: bytes, *, skip: int = 0) -> bytes:
    """The file with other bytes some way after a name in its header."""
    at = content.index(name) + len(name) + skip
    return content[:at] + value + content[at + len(value) :]


def test_a_whole_file_passes(whole, tmp_path):
    check(whole, tmp_path)


LARGE = struct.pack("<Q", 1 << 40)


@pytest.mark.parametrize(
    ("name", "value", "skip", "says"),
    [
        (b"GGUF", struct.pack("<I", 7), 0, "its version is 7"),
        (b"GGUF", LARGE, 4, "at most|tensors"),
        (b"GGUF", LARGE, 12, "would have 1099511627776 settings"),
        (b"tokenizer.ggml.tokens", LARGE, 8, "would have 1099511627776 entries of tokenizer.ggml.tokens"),
        (b"tokenizer.ggml.scores", LARGE, 8, "would have 1099511627776 entries of tokenizer.ggml.scores"),
        (b"tokenizer.ggml.scores", struct.pack("<I", 77), 0, "unknown type 77"),
        (b"llama.block_count", struct.pack("<I", 10**7), 4, "block_count is 10000000, but its 3 tensors"),
        (b"llama.context_length", struct.pack("<I", 1 << 31), 4, "context_length is 2147483648"),
        (b"token_embd.weight", struct.pack("<I", 2**31), 0, "2147483648 dimensions, expected 1 to 4"),
        (b"token_embd.weight", LARGE, 4, "larger than the file"),
        (b"token_embd.weight", bytes(8), 4, r"shape \[0, 3\]"),
        (b"token_embd.weight", struct.pack("<I", 99), 20, "unknown type 99"),
        (b"blk.0.ffn_down.weight", LARGE, 24, "begins at byte 1099511627776 of the tensors, expected 96"),
        (b"output.weight", struct.pack("<Q", 33), 4, "whole blocks of 32"),
        (b"llama.block_count", struct.pack("<I", 12), 0, "expected here|unknown type|not UTF-8|would have"),
    ],
)
def test_what_does_not_fit_into_the_file_is_refused(whole, tmp_path, name, value, skip, says):
    with pytest.raises(rl.errors.FormatError, match=rf"(?s)damaged.*({says}).*Fetch it again"):
        check(after(whole, name, value, skip=skip), tmp_path)


def test_arrays_in_arrays_without_end_are_refused(whole, tmp_path):
    nested = struct.pack("<IQ", 9, 1) * 5000
    with pytest.raises(rl.errors.FormatError, match="arrays in arrays"):
        check(after(whole, b"tokenizer.ggml.tokens", nested, skip=4), tmp_path)


@pytest.mark.torture
def test_a_damaged_header_passes_or_is_refused(whole, tmp_path):
    """Flipped bits, and files that end early: never another exception; an early end never passes."""
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(count := times(300, 5000)):
        content = bytearray(whole)
        content[random.integers(len(content))] ^= 1 << int(random.integers(8))
        # The last 31 bytes may be padding.
        for damaged, may_pass in ((bytes(content), True), (whole[: random.integers(len(whole) - 31)], False)):
            try:
                check(damaged, tmp_path)
                assert may_pass
            except rl.errors.FormatError:
                refused += 1
    print(f"{2 * count} damaged GGUF headers: {refused} refused, 0 foreign exceptions")
