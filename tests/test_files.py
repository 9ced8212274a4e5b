from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from s4_fast import files, weights


def test_a_new_file_has_the_permissions_of_the_umask_and_no_company(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "new", "é")
    finally:
        os.umask(before)
    assert (tmp_path / "new").read_bytes() == "é".encode()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["new"]


def test_what_a_link_points_to_stays(tmp_path: Path) -> None:
    precious, link = tmp_path / "precious", tmp_path / "new"
    precious.write_text("precious")
    link.symlink_to(precious)
    files.write(link, b"content")
    assert precious.read_text() == "precious"
    assert link.read_bytes() == b"content" and not link.is_symlink()
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="new exists"):
        files.write(link, b"content", force=False)


def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("precious")

    def interrupted() -> None:
        with files.writing(tmp_path / "old") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "old").read_text() == "precious"
    assert os.listdir(tmp_path) == ["old"]


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    files.write(tmp_path / ("n" * 255), b"content")
    with pytest.raises(OSError, match=f"{'n' * 256}"):
        files.write(tmp_path / ("n" * 256), b"content")


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write(pipe, b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_descriptor_is_written_through(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "redirected", os.O_RDWR | os.O_CREAT)
    files.write(Path(f"/dev/fd/{descriptor}"), b"content")
    os.close(descriptor)
    assert (tmp_path / "redirected").read_bytes() == b"content"


def test_safetensors_of_every_type_layout_and_name_are_read_again(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {str(dtype): torch.ones(3, 2).to(dtype) for dtype in weights._DTYPES}
    tensors |= {"": torch.arange(3.0), '\x00\n"\\é\u202e': torch.tensor(2), "empty": torch.zeros(0, 4)}
    tensors |= {"strided": torch.arange(12.0).view(3, 4).mT[1:], "lazy": torch.tensor([1 + 2j]).conj().imag}
    tensors |= {"tied": tensors[""], "leaf": torch.nn.Parameter(torch.ones(2))}
    weights.write(tmp_path / "w", tensors, {"format": "pt"})
    found = load_file(tmp_path / "w")
    assert found.keys() == tensors.keys()
    for name, t in tensors.items():
        assert found[name].dtype == t.dtype
        assert torch.equal(found[name].to(torch.float64), t.to(torch.float64)), name


@pytest.mark.parametrize(
    ("name", "t", "message"),
    [
        ("__metadata__", torch.ones(1), "__metadata__: safetensors cannot hold a tensor of this name"),
        ("a\ud800", torch.ones(1), "safetensors hold names in UTF-8 alone"),
        ("n" * 100_000_000, torch.ones(1), "and safetensors hold at most 100000000"),
        ("z", torch.ones(1, dtype=torch.complex64), "z: safetensors cannot hold tensors of dtype torch.complex64"),
    ],
    ids=["metadata", "surrogate", "long", "complex"],
)
def test_what_no_reader_would_take_is_refused(name: str, t: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        weights.write(tmp_path / "w", {"fine": torch.ones(1), name: t}, {})
    assert not os.listdir(tmp_path)
