import json

import pytest

from embedstore.errors import MediaError
from embedstore.media import DecodeLimits, DecodeRecord


def test_a_record_is_json() -> None:
    record = DecodeRecord(
        container="avi",
        codec="mjpeg",
        n_header_frames=None,
        n_decoded=3,
        fps_header=29.97,
        n_errors=0,
        n_pts_gaps=1,
        height=4,
        width=5,
    )
    assert json.loads(json.dumps(record.to_dict(), allow_nan=False)) == record.to_dict()
    assert record.to_dict()["n_header_frames"] is None


@pytest.mark.parametrize(
    ("limits", "check", "numbers"),
    [
        (DecodeLimits(max_file_bytes=9), "check_file", (10,)),
        (DecodeLimits(max_expanded_bytes=9), "check_expanded", (10,)),
        (DecodeLimits(max_frame_pixels=9), "check_frame", (2, 5)),
        (DecodeLimits(max_total_pixels=29), "check_kept", (3, 2, 5)),
        (DecodeLimits(max_frames=9), "check_count", (10,)),
    ],
)
def test_limits_refuse_one_more_and_allow_what_they_say(
    limits: DecodeLimits, check: str, numbers: tuple[int, ...]
) -> None:
    with pytest.raises(MediaError, match="the limit is") as caught:
        getattr(limits, check)(*numbers)
    assert caught.value.reason == "too-large"
    getattr(limits, check)(*(number if at else number - 1 for at, number in enumerate(numbers)))


def test_an_empty_file_has_its_own_reason() -> None:
    with pytest.raises(MediaError) as caught:
        DecodeLimits().check_file(0)
    assert caught.value.reason == "empty-file"
