import io
import struct
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, fragment_frame
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from embedstore.errors import MediaError, MissingExtraError
from embedstore.media import DecodeLimits, probe_media, read_clip

EncodeDicom = Callable[..., bytes]


def loop(n_frames: int = 4, height: int = 20, width: int = 30) -> np.ndarray:
    """(T, y, x) uint8 smooth frames, each brighter than the one before."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([(rows * 3 + columns * 2 + 20 * number) % 240 for number in range(n_frames)]).astype(np.uint8)


def colours(n_frames: int = 2, height: int = 16, width: int = 24) -> np.ndarray:
    """(T, y, x, 3) uint8 in vertical bars of red, green, blue and grey, the same but for one row a frame."""
    bars = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)], dtype=np.uint8)
    frames = np.repeat(bars[None], width // 4, axis=1)[:, None].repeat(height, axis=1).repeat(n_frames, axis=0)
    for number, frame in enumerate(frames):
        frame[number] = 200
    return frames


def as_rgb(frames: np.ndarray) -> np.ndarray:
    return np.stack([frames] * 3, axis=-1)


def to_ybr(frames: np.ndarray) -> np.ndarray:
    """Convert RGB to full-range YCbCr (ITU-T T.871)."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return np.clip(np.rint(frames @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)


def size_tags(frames: np.ndarray) -> dict[str, Any]:
    n_samples = 1 if frames.ndim == 3 else 3
    tags = {"Rows": frames.shape[1], "Columns": frames.shape[2], "SamplesPerPixel": n_samples}
    tags |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    return tags | ({"PlanarConfiguration": 0} if n_samples == 3 else {})


def as_jpeg(frames: np.ndarray) -> list[bytes]:
    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
    stored = frames[..., ::-1] if frames.ndim == 4 else frames
    return [cv2.imencode(".jpg", frame, options)[1].tobytes() for frame in stored]


def reason_of(payload: bytes, **limits: int) -> str:
    with pytest.raises(MediaError) as caught:
        read_clip(payload, limits=DecodeLimits(**limits))
    assert "patient 7" not in str(caught.value)
    return caught.value.reason


def pixels_at(payload: bytes) -> int:
    return payload.index(b"\xe0\x7f\x10\x00")


# -- colours and depths -----------------------------------------------------------------------------------------


def test_grey_as_stored_and_inverted(encode_dicom: EncodeDicom) -> None:
    clip = read_clip(encode_dicom(loop()))
    assert np.array_equal(clip.frames, as_rgb(loop()))
    assert (clip.record.n_decoded, clip.record.n_header_frames, clip.record.n_errors) == (4, 4, 0)
    assert np.array_equal(read_clip(encode_dicom(loop(), interpretation="MONOCHROME1")).frames, as_rgb(255 - loop()))


def test_planar_and_interleaved_are_equal(encode_dicom: EncodeDicom) -> None:
    frames = colours()
    interleaved = encode_dicom(frames, interpretation="RGB")
    by_plane = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).tobytes()
    planar = encode_dicom(frames, interpretation="RGB", tags={"PlanarConfiguration": 1, "PixelData": by_plane})
    assert np.array_equal(read_clip(interleaved).frames, frames)
    assert np.array_equal(read_clip(planar).frames, frames)


def test_ybr_becomes_rgb(encode_dicom: EncodeDicom) -> None:
    frames = colours()
    full = read_clip(encode_dicom(to_ybr(frames), interpretation="YBR_FULL")).frames.astype(int)
    assert np.abs(full - frames).max() <= 2
    ybr = to_ybr(frames)
    halved = np.stack([ybr[..., ::2, 0], ybr[..., 1::2, 0], ybr[..., ::2, 1], ybr[..., ::2, 2]], axis=-1)
    payload = encode_dicom(frames, interpretation="YBR_FULL_422", tags={"PixelData": halved.tobytes()})
    assert np.abs(read_clip(payload).frames.astype(int) - frames).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("entry_bits", [8, 16])
def test_a_palette_is_applied(bits: int, entry_bits: int, encode_dicom: EncodeDicom) -> None:
    indices = (loop() % 4).astype(f"u{bits // 8}")
    table = np.array([(0, 0, 0), (255, 0, 0), (10, 200, 30), (255, 255, 255)])
    tags: dict[str, Any] = {}
    for at, name in enumerate(("Red", "Green", "Blue")):
        entries = table[:, at] * 257 if entry_bits == 16 else table[:, at]
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, entry_bits]
        tags[f"{name}PaletteColorLookupTableData"] = entries.astype(f"<u{entry_bits // 8}").tobytes()
    payload = encode_dicom(indices, interpretation="PALETTE COLOR", tags=tags)
    assert np.array_equal(read_clip(payload).frames, table[indices].astype(np.uint8))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_deep_pixels_get_one_scale_for_the_sequence(syntax: str, encode_dicom: EncodeDicom) -> None:
    frames = np.full((2, 20, 30), 1000, dtype=np.uint16)
    frames[1], frames[0, 0, 0], frames[1, 0, 0] = 3000, 200, 4280
    found = read_clip(encode_dicom(frames, syntax=syntax, tags={"BitsStored": 13, "HighBit": 12})).frames
    assert [found[0, 0, 0, 0], found[0, 5, 5, 0], found[1, 5, 5, 0], found[1, 0, 0, 0]] == [0, 50, 175, 255]
    inverted = encode_dicom(frames, syntax=syntax, interpretation="MONOCHROME1")
    assert np.array_equal(read_clip(inverted).frames, 255 - found)


def test_big_endian_bytes_and_few_bits(encode_dicom: EncodeDicom) -> None:
    odd = loop(3, 5, 7)  # an odd number of bytes a frame
    assert np.array_equal(read_clip(encode_dicom(odd, syntax=ExplicitVRBigEndian)).frames, as_rgb(odd))
    swapped = np.frombuffer(odd.tobytes() + b"\0", dtype=np.uint16).byteswap().tobytes()
    as_words = encode_dicom(odd, syntax=ExplicitVRBigEndian).replace(odd.tobytes() + b"\0", swapped)
    at = as_words.index(b"\x7f\xe0\x00\x10")
    as_words = as_words[: at + 4] + b"OW" + as_words[at + 6 :]
    assert np.array_equal(read_clip(as_words).frames, as_rgb(odd))
    few = loop() // 16  # 4 of 8 bits
    assert np.array_equal(read_clip(encode_dicom(few, tags={"BitsStored": 4})).frames, as_rgb(few * 17))


# -- transfer syntaxes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_fragments", [1, 3])
def test_jpeg_baseline(n_fragments: int, encode_dicom: EncodeDicom) -> None:
    frames = np.stack([cv2.GaussianBlur(frame, (5, 5), 2) for frame in colours(3)])
    jpegs = as_jpeg(frames)
    payload = encode_dicom(jpegs, syntax=JPEGBaseline8Bit, interpretation="YBR_FULL_422", tags=size_tags(frames))
    if n_fragments > 1:
        pieces = [piece for jpeg in jpegs for piece in fragment_frame(jpeg, n_fragments)]
        content = encapsulate(pieces, has_bot=False)
        whole = {**size_tags(frames), "NumberOfFrames": 3, "PixelData": content}
        payload = encode_dicom(jpegs, syntax=JPEGBaseline8Bit, interpretation="YBR_FULL_422", tags=whole)
    clip = read_clip(payload)
    by_opencv = np.stack([cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1)[:, :, ::-1] for jpeg in jpegs])
    assert clip.record.n_decoded == 3
    assert np.abs(clip.frames.astype(int) - by_opencv).max() <= 24  # chroma upsampling is the decoder's choice
    assert np.abs(clip.frames.astype(int) - by_opencv).mean() < 2
    assert probe_media(payload).n_frames == 3
    assert probe_media(payload).codec == "JPEGBaseline8Bit"


def test_run_length_encoding(encode_dicom: EncodeDicom) -> None:
    for frames, interpretation in ((loop(), "MONOCHROME2"), (colours(), "RGB")):
        tags = size_tags(frames)
        options = {
            "rows": tags["Rows"],
            "columns": tags["Columns"],
            "samples_per_pixel": tags["SamplesPerPixel"],
            "number_of_frames": 1,
            "bits_allocated": 8,
            "bits_stored": 8,
            "pixel_representation": 0,
            "photometric_interpretation": interpretation,
            "planar_configuration": 0,
        }
        encoded = [RLELosslessEncoder.encode(frame, encoding_plugin="pydicom", **options) for frame in frames]
        payload = encode_dicom(encoded, syntax=RLELossless, interpretation=interpretation, tags=tags)
        expected = as_rgb(frames) if frames.ndim == 3 else frames
        assert np.array_equal(read_clip(payload).frames, expected)


def packaged(name: str) -> bytes:
    """Return a file of the pydicom packages; pydicom is told to download none."""
    if name == "ybr_color":
        path = pydicom.examples.get_path("ybr_color")
    else:
        pytest.importorskip("data_store")
        path = pydicom.data.get_testdata_file(name, download=False)
    assert path is not None
    with open(path, "rb") as handle:  # noqa: PTH123 - a string, by pydicom
        return handle.read()


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("color-pl.dcm", "color-px.dcm"),
        ("US1_J2KR.dcm", "US1_UNCR.dcm"),
        ("US1_J2KI.dcm", "US1_UNCI.dcm"),
        ("OBXXXX1A_2frame.dcm", "OBXXXX1A_rle_2frame.dcm"),
        ("OBXXXX1A_2frame.dcm", "OBXXXX1A_expb_2frame.dcm"),
        ("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"),
        ("emri_small.dcm", "emri_small_jpeg_ls_lossless.dcm"),
        ("emri_small.dcm", "emri_small_jpeg_2k_lossless.dcm"),
        ("SC_rgb.dcm", "SC_rgb_jpeg_gdcm.dcm"),
        ("SC_rgb_jpeg_dcmd.dcm", "SC_rgb_jpeg.dcm"),  # tags in another encoding than the transfer syntax says
    ],
)
def test_real_twins_decode_equal(name: str, twin: str) -> None:
    one, other = read_clip(packaged(name)), read_clip(packaged(twin))
    assert one.frames.shape == other.frames.shape
    assert np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("JPGLosslessP14SV1_1s_1f_8b.dcm", (1, 768, 1024, 3)),
        ("examples_palette.dcm", (1, 350, 800, 3)),
        ("SC_ybr_full_422_uncompressed.dcm", (1, 100, 100, 3)),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", (1, 100, 100, 3)),
        ("SC_rgb_dcmtk_+eb+cr.dcm", (1, 100, 100, 3)),
    ],
)
def test_real_files_match_pydicom(name: str, shape: tuple[int, ...]) -> None:
    payload = packaged(name)
    frames = read_clip(payload).frames
    assert frames.shape == shape
    record = pydicom.dcmread(io.BytesIO(payload))
    by_pydicom = pydicom.pixels.pixel_array(record)
    if record.PhotometricInterpretation == "PALETTE COLOR":
        by_pydicom = pydicom.pixels.apply_color_lut(by_pydicom, record) >> 8
    if by_pydicom.ndim == 2:
        by_pydicom = as_rgb(by_pydicom)
    assert np.abs(frames[0].astype(int) - by_pydicom).max() <= 1


def test_the_real_four_chamber_clip() -> None:
    payload = packaged("ybr_color")
    probe = probe_media(payload)
    assert (probe.n_frames, probe.height, probe.width) == (30, 240, 320)
    assert probe.fps == pytest.approx(30.0003, abs=1e-4)
    assert (probe.modality, probe.n_regions) == ("2d", 1)
    assert probe.spacing_x_mm == probe.spacing_y_mm == pytest.approx(0.5105, abs=1e-4)
    assert probe.heart_rate_bpm is None  # the tag says 0
    clip = read_clip(payload, select=lambda n_frames: [0, n_frames - 1])
    assert clip.frame_numbers.tolist() == [0, 29]
    sector = clip.frames[0, 100:200, 110:220].astype(int)
    assert (sector.max(axis=-1) - sector.min(axis=-1)).mean() < 8  # grey tissue: YBR was converted
    whole = pydicom.pixels.pixel_array(io.BytesIO(payload), index=29)
    assert np.abs(clip.frames[1].astype(int) - whole).max() <= 1


# -- facts ------------------------------------------------------------------------------------------------------


def region(*, kind: int = 1, content: int = 1, units: int = 3, delta_cm: float = 0.05, side: int = 10) -> Dataset:
    found = Dataset()
    found.RegionSpatialFormat, found.RegionDataType, found.RegionFlags = kind, content, 0
    found.RegionLocationMinX0 = found.RegionLocationMinY0 = 0
    found.RegionLocationMaxX1 = found.RegionLocationMaxY1 = side
    found.PhysicalUnitsXDirection = found.PhysicalUnitsYDirection = units
    found.PhysicalDeltaX, found.PhysicalDeltaY = delta_cm, -delta_cm / 2
    return found


def test_ids_device_and_regions(encode_dicom: EncodeDicom) -> None:
    regions = [region(side=5, delta_cm=0.9), region(side=15), region(side=18, units=0, delta_cm=7.0)]
    tags = {"Manufacturer": "ACME ", "ManufacturerModelName": "", "HeartRate": 61}
    probe = probe_media(encode_dicom(loop(), tags={**tags, "SequenceOfUltrasoundRegions": regions}))
    assert (probe.patient_id, probe.study_id, probe.sop_instance_uid) == ("patient 7", "1.2.3", "1.2.3.4")
    assert (probe.manufacturer, probe.model, probe.heart_rate_bpm) == ("ACME", None, 61.0)
    assert (probe.n_regions, probe.spacing_x_mm, probe.spacing_y_mm) == (3, 0.5, 0.25)
    assert (probe.modality, probe.problem) == ("2d", None)


def test_pixel_spacing_stands_in_for_regions(encode_dicom: EncodeDicom) -> None:
    probe = probe_media(encode_dicom(loop(), tags={"PixelSpacing": [0.4, 0.2]}))  # rows first
    assert (probe.spacing_x_mm, probe.spacing_y_mm, probe.modality) == (0.2, 0.4, None)


@pytest.mark.parametrize(
    ("regions", "modality"),
    [
        ([region(), region(content=2)], "colour"),
        ([region(), region(kind=2)], "mmode"),
        ([region(), region(kind=3, content=4)], "doppler"),
        ([region(kind=0, content=0)], None),
    ],
)
def test_modality(regions: list[Dataset], modality: str | None, encode_dicom: EncodeDicom) -> None:
    assert probe_media(encode_dicom(loop(), tags={"SequenceOfUltrasoundRegions": regions})).modality == modality


@pytest.mark.parametrize(
    ("tags", "fps", "n_gaps"),
    [
        ({"FrameTime": "20.0", "CineRate": 30}, 50.0, 0),
        ({"FrameTime": "0", "CineRate": 30}, 30.0, 0),
        ({"RecommendedDisplayFrameRate": 24}, 24.0, 0),
        ({"FrameTimeVector": [0, 20, 20, 80]}, 25.0, 1),
        ({"FrameTimeVector": [0, 20, 20, 20], "FrameTime": "10", "FrameIncrementPointer": 0x00181065}, 50.0, 0),
        ({"FrameTimeVector": [0, 20, 20, 20], "FrameTime": "10", "FrameIncrementPointer": 0x00181063}, 100.0, 0),
        ({}, None, 0),
    ],
)
def test_frame_rate(tags: dict[str, Any], fps: float | None, n_gaps: int, encode_dicom: EncodeDicom) -> None:
    payload = encode_dicom(loop(), tags=tags)
    assert probe_media(payload).fps == fps
    record = read_clip(payload).record
    assert (record.fps_header, record.n_pts_gaps) == (fps, n_gaps)


# -- bad files --------------------------------------------------------------------------------------------------


def test_without_pixels_the_facts_remain(encode_dicom: EncodeDicom) -> None:
    payload = encode_dicom(None)
    assert reason_of(payload) == "no-pixels"
    probe = probe_media(payload)
    assert (probe.problem_reason, probe.patient_id) == ("no-pixels", "patient 7")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_cut_file_is_truncated(part: float, encode_dicom: EncodeDicom) -> None:
    frames = loop(30)
    jpegs = encode_dicom(as_jpeg(frames), syntax=JPEGBaseline8Bit, tags=size_tags(frames))
    for payload in (encode_dicom(frames), jpegs):
        start = pixels_at(payload)
        cut = payload[: start + int((len(payload) - start) * part)]
        assert reason_of(cut) == "truncated"
        assert probe_media(cut).problem_reason == "truncated"
    assert reason_of(payload[: pixels_at(payload) - 5]) == "truncated"
    skipped = encode_dicom(frames, tags={"ImageComments": "x" * 500})  # a tag that nothing here asks for
    assert reason_of(skipped[: skipped.index(b"x" * 500) + 250]) == "truncated"


def test_one_lost_frame_in_thirty_is_counted(encode_dicom: EncodeDicom) -> None:
    frames = loop(30)
    clip = read_clip(encode_dicom(frames)[:-10])
    assert (clip.record.n_decoded, clip.record.n_header_frames) == (29, 30)
    jpegs = as_jpeg(frames)
    jpegs[7] = jpegs[7][:20] + bytes(len(jpegs[7]) - 20)
    clip = read_clip(encode_dicom(jpegs, syntax=JPEGBaseline8Bit, tags=size_tags(frames)))
    assert (clip.record.n_decoded, clip.record.n_errors) == (29, 1)


def test_frames_that_do_not_decode_are_corrupt(encode_dicom: EncodeDicom) -> None:
    frames = loop(4)
    other_size = as_jpeg(loop(4, 200, 300))  # larger than the tags say, as a decoder would allocate
    assert reason_of(encode_dicom(other_size, syntax=JPEGBaseline8Bit, tags=size_tags(frames))) == "corrupt"
    rubbish = [b"\xff\xd8\xff" + bytes(200)] * 4
    assert reason_of(encode_dicom(rubbish, syntax=JPEGBaseline8Bit, tags=size_tags(frames))) == "corrupt"
    assert reason_of(encode_dicom(as_jpeg(frames), syntax=JPEG2000Lossless, tags=size_tags(frames))) == "corrupt"


def test_frame_counts_are_found_not_believed(encode_dicom: EncodeDicom) -> None:
    frames = loop(4)
    for payload in (
        encode_dicom(frames, tags={"NumberOfFrames": 2}),
        encode_dicom(as_jpeg(frames), syntax=JPEGBaseline8Bit, tags={**size_tags(frames), "NumberOfFrames": 2}),
    ):
        assert probe_media(payload).n_frames == 4
        clip = read_clip(payload)
        assert (clip.record.n_decoded, clip.record.n_header_frames) == (4, 2)
    assert reason_of(encode_dicom(frames, tags={"NumberOfFrames": 999_999})) == "truncated"


@pytest.mark.parametrize("syntax", [MPEG4HP41, DeflatedExplicitVRLittleEndian, JPEGExtended12Bit])
def test_transfer_syntaxes_that_are_not_read(syntax: str, encode_dicom: EncodeDicom) -> None:
    if syntax == DeflatedExplicitVRLittleEndian:
        payload = encode_dicom(loop())
        record = pydicom.dcmread(io.BytesIO(payload))
        record.file_meta.TransferSyntaxUID = syntax
        sink = io.BytesIO()
        record.save_as(sink)
        payload = sink.getvalue()
    else:
        tags = {**size_tags(loop()), "BitsAllocated": 16, "BitsStored": 12}
        payload = encode_dicom([b"\0" * 100], syntax=syntax, tags=tags)
    assert reason_of(payload) == "unsupported"


def test_colours_that_are_not_read(encode_dicom: EncodeDicom) -> None:
    assert reason_of(encode_dicom(loop(), interpretation="HSV")) == "unsupported"
    assert reason_of(encode_dicom(loop(), interpretation="RGB")) == "corrupt"  # one sample a pixel


def test_absurd_sizes_are_refused_before_decoding(encode_dicom: EncodeDicom) -> None:
    assert reason_of(encode_dicom(loop(), tags={"Rows": 65535, "Columns": 65535})) == "too-large"
    assert reason_of(encode_dicom(loop(), tags={"Rows": 0})) == "corrupt"
    assert reason_of(encode_dicom(loop()), max_frames=3) == "too-large"


def test_a_directory_is_no_clip(encode_dicom: EncodeDicom) -> None:
    payload = encode_dicom(None)
    record = pydicom.dcmread(io.BytesIO(payload))
    record.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    sink = io.BytesIO()
    record.save_as(sink)
    assert reason_of(sink.getvalue()) == "not-media"


def test_without_preamble_and_meta(encode_dicom: EncodeDicom) -> None:
    record = pydicom.dcmread(io.BytesIO(encode_dicom(loop())))
    for implicit in (True, False):
        sink = io.BytesIO()
        bare = Dataset(record)
        pydicom.dcmwrite(sink, bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert sink.getvalue()[:2] == b"\x08\x00"
        assert np.array_equal(read_clip(sink.getvalue()).frames, as_rgb(loop()))
        encoding = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        assert probe_media(sink.getvalue()).codec == encoding.keyword


def test_damaged_tags_say_nothing_of_the_patient(encode_dicom: EncodeDicom) -> None:
    payload = encode_dicom(loop())
    for at in range(132, pixels_at(payload)):
        changed = bytearray(payload)
        changed[at] ^= 0xB5
        probe = probe_media(bytes(changed))
        assert "patient 7" not in (probe.problem or "")


def test_damage_makes_no_noise(encode_dicom: EncodeDicom, capfd: pytest.CaptureFixture[str]) -> None:
    payload = encode_dicom(loop(), tags={"FrameTime": "20"}).replace(b"DS\x02\x0020", b"DS\x02\x00xy")
    assert probe_media(payload).fps is None
    short = payload[: pixels_at(payload)] + payload[pixels_at(payload) :].replace(struct.pack("<I", 2400), b"\0" * 4)
    reason_of(short)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("module", "distribution"), [("pydicom", "pydicom"), ("gdcm", "python-gdcm")])
def test_a_missing_package_is_named(
    module: str, distribution: str, encode_dicom: EncodeDicom, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = encode_dicom(as_jpeg(loop()), syntax=JPEGBaseline8Bit, tags=size_tags(loop()))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{distribution}.*embedstore\[media\]"):
        read_clip(payload)
