import gzip
from collections.abc import Callable

import cv2
import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.media import MEDIA_SUFFIXES, sniff_container, stem_without_media_suffix


def test_content_decides(
    pattern: Callable[..., np.ndarray], encode_video: Callable[..., bytes], encode_dicom: Callable[..., bytes]
) -> None:
    frames = pattern(3, 48, 64)
    volume = nibabel.Nifti1Image(frames[..., 0].T.copy(), np.eye(4)).to_bytes()
    second = nibabel.Nifti2Image(frames[..., 0].T.copy(), np.eye(4)).to_bytes()
    swapped = nibabel.Nifti1Image(frames[..., 0].T.astype(">i2"), np.eye(4), nibabel.Nifti1Header(endianness=">"))
    assert sniff_container(encode_video(frames)) == "avi"
    assert sniff_container(encode_video(frames, container="mp4", codec="mpeg4")) == "mp4"
    assert sniff_container(encode_video(frames, container="mov", codec="mjpeg")) == "mp4"
    assert sniff_container(encode_dicom(frames[..., 0])) == "dicom"
    assert sniff_container(encode_dicom(frames[..., 0])[132:]) == "dicom"
    assert [sniff_container(content) for content in (volume, second, swapped.to_bytes())] == ["nifti"] * 3
    assert sniff_container(gzip.compress(volume)) == "nifti"
    assert sniff_container(cv2.imencode(".png", frames[0])[1].tobytes()) == "png"
    assert sniff_container(cv2.imencode(".jpg", frames[0])[1].tobytes()) == "jpeg"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF",
        b"RIFF\x00\x00\x00\x00WAVEfmt ",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n" * 20,
        b"ffconcat version 1.0\nfile '/etc/passwd'\n" * 20,
        gzip.compress(b"id,ef\n1,55\n" * 100, mtime=0),
        b"\x1f\x8b" + b"\xff" * 100,
        b"\x00\x00\x00\x18ftypheic" + b"\x00" * 400,
        b"id,ef\n1,55\n" * 100,
    ],
)
def test_other_content_is_no_media(content: bytes) -> None:
    assert sniff_container(content) is None


@given(st.binary(max_size=600))
def test_any_bytes_have_an_answer(content: bytes) -> None:
    assert sniff_container(content) in (None, "avi", "mp4", "dicom", "nifti", "png", "jpeg")


@given(st.sampled_from(MEDIA_SUFFIXES), st.from_regex(r"[abc./]*[abc]", fullmatch=True))
def test_a_suffix_goes_in_any_case(suffix: str, stem: str) -> None:
    assert stem_without_media_suffix(stem + suffix) == stem
    assert stem_without_media_suffix(stem + suffix.upper()) == stem


@pytest.mark.parametrize("path", ["a/b", "a.csv", "IM_0001", "a/.avi", ".nii.gz", "a.nii.gz.bak"])
def test_other_names_stay(path: str) -> None:
    assert stem_without_media_suffix(path) == path
