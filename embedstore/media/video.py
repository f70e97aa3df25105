"""AVI and MP4 through PyAV: frames are counted by decoding, and what the decoder calls damaged is counted too."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from embedstore.errors import MediaError
from embedstore.media.clip import MIN_DECODED_RATIO, DecodeLimits, MediaProbe
from embedstore.media.containers import Layout, walk_avi, walk_mp4
from embedstore.media.source import Frame, Tally, load_decoder, plausible_fps, with_frame_count

__all__ = ["VideoSource", "probe_video"]

# The one demuxer a container may use. FFmpeg's others (playlists, concat, image sequences) open further files.
_DEMUXERS = {"avi": ("avi", "avi"), "mp4": ("mov", "mov,mp4,m4a,3gp,3g2,mj2")}
# Codecs whose strict mode finds damage that the tolerant one hides, while every frame stands alone, so that a frame
# which strict decoding refuses can be had from a tolerant decoder.
_STRICT_FIRST = ("mjpeg",)
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: the cover of a sound file


def _pyav() -> Any:
    return load_decoder("av", "av", what="reading AVI and MP4")


class VideoSource:
    """An AVI or MP4 file in memory.

    Parameters
    ----------
    payload : bytes
    container : {"avi", "mp4"}
        As found by `embedstore.media.sniff.sniff_container`.
    limits : DecodeLimits

    Attributes
    ----------
    n_found : int
        Packets that hold a frame to show.

    Raises
    ------
    MediaError
        ``corrupt``, ``truncated``, ``no-video-stream``, ``unsupported`` (no decoder) or ``too-large``.
    """

    def __init__(self, payload: bytes, *, container: str, limits: DecodeLimits) -> None:
        self.container = container
        self._payload = payload
        self._limits = limits
        self._layout: Layout = walk_avi(payload) if container == "avi" else walk_mp4(payload)
        self.is_cut = self._layout.is_cut
        if self._layout.frame_size is not None:
            limits.check_frame(*self._layout.frame_size)
        if self.is_cut and self._layout.is_fragmented:
            raise self._refusal("the mp4 file is cut in a fragment, and does not say how many should follow")
        self.n_found = 0
        with self._opened() as (media, stream):
            context = stream.codec_context
            self.codec = str(context.name)
            self.n_header_frames: int | None = stream.frames or None
            self.fps = plausible_fps(_rate(stream))
            self._size = (int(context.height), int(context.width))
            limits.check_frame(*self._size)
            # The sample table of an MP4 and the idx1 chunk of an AVI list the frames, dropped ones with size 0.
            self._n_indexed = sum(entry.size > 0 and not entry.is_discard for entry in stream.index_entries)
            for packet in self._packets(media, stream, Tally()):
                self.n_found += not packet.is_discard
                limits.check_count(self.n_found)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        av = _pyav()
        demuxer, whitelist = _DEMUXERS[self.container]
        max_pixels = {"max_pixels": str(self._limits.max_frame_pixels)}
        try:
            media = av.open(
                io.BytesIO(self._payload),
                format=demuxer,
                options={"format_whitelist": whitelist, "protocol_whitelist": "none", **max_pixels},
                metadata_errors="ignore",
            )
        except av.error.FFmpegError as error:
            raise self._refusal(f"the {self.container} file cannot be opened ({error.strerror})") from error
        with closing(media):
            streams = [stream for stream in media.streams.video if not stream.disposition & _ATTACHED_PICTURE]
            if not len(media.streams):
                raise self._refusal(f"the {self.container} file holds no stream of any kind")
            if not streams:
                raise MediaError(f"the {self.container} file has no video stream", reason="no-video-stream")
            stream = streams[0]
            if stream.codec_context is None and self.is_cut:
                raise self._refusal("the video's header is not whole")
            if stream.codec_context is None:
                raise MediaError("the video's codec has no decoder here", reason="unsupported")
            stream.thread_count = 1
            stream.codec_context.options = max_pixels
            yield media, stream

    def _refusal(self, sentence: str) -> MediaError:
        if self.is_cut:
            present, declared = len(self._payload), self._layout.declared_bytes
            return MediaError(
                f"{sentence}: it ends after {present:,} of at least {declared:,} bytes", reason="truncated"
            )
        return MediaError(sentence, reason="corrupt")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self._size

    @property
    def n_held(self) -> int:
        """Packets that are there or, where the file lists more or was cut, that should be there."""
        held: int = max(self.n_found, self._n_indexed)
        if self.is_cut:
            by_bytes = round(self.n_found * self._layout.declared_bytes / len(self._payload))
            held = max(held, self.n_header_frames or by_bytes, 1)
        return held

    def _packets(self, media: Any, stream: Any, tally: Tally) -> Iterator[Any]:
        """Yield packets that hold something to decode; empty ones stand for dropped frames or the end."""
        av = _pyav()
        packets = media.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, ValueError):  # ValueError: a negative size from a damaged box
                tally.n_errors += 1
                break
            if packet is None:
                break
            if packet.size:
                yield packet

    def frames(self, tally: Tally) -> Iterator[Callable[[], Frame]]:
        """Decode all frames; see `embedstore.media.source.FrameSource.frames`.

        Raises
        ------
        MediaError
            ``unsupported`` where the frame size changes on the way.
        """
        with self._opened() as (media, stream):
            decoder = _PacketDecoder(stream, tally)
            reformatter = _pyav().video.reformatter.VideoReformatter()
            first_size: tuple[int, int] | None = None
            n_pictures = n_resized = 0
            for packet in chain(self._packets(media, stream, tally), [None]):
                for picture in decoder.decode(packet):
                    size = (int(picture.height), int(picture.width))
                    first_size = first_size or size
                    n_pictures += 1
                    if size != first_size:
                        # One damaged header makes one odd frame, which is lost; many are how the video is.
                        n_resized += 1
                        tally.n_errors += 1
                        continue
                    self._size = size
                    if picture.pts is not None:
                        tally.times.append(float(picture.pts))
                    yield partial(_to_rgb, picture, reformatter)
            if n_resized > n_pictures * (1 - MIN_DECODED_RATIO):
                raise MediaError(
                    f"the frame size changes in the video ({n_resized} of {n_pictures} frames differ from the first)",
                    reason="unsupported",
                )


class _PacketDecoder:
    """Turns packets into pictures, and counts those that are lost or damaged."""

    def __init__(self, stream: Any, tally: Tally) -> None:
        self._av = _pyav()
        self._tally = tally
        self._strict = stream.codec_context
        self._tolerant: Any = None
        if self._strict.name in _STRICT_FIRST:
            options = dict(self._strict.options)
            self._strict.options = {**options, "err_detect": "explode"}
            self._tolerant = self._av.CodecContext.create(self._strict.name, "r")
            self._tolerant.thread_count = 1
            self._tolerant.options = options
            self._tolerant.extradata = self._strict.extradata

    def decode(self, packet: Any | None) -> list[Any]:
        """Return the pictures that this packet completes; None drains those that the decoder holds back."""
        pictures = self._attempt(self._strict, packet)
        if pictures is None:
            self._tally.n_errors += 1
            if packet is None or self._tolerant is None:
                return []
            return self._attempt(self._tolerant, packet) or []
        n_damaged = sum(bool(picture.is_corrupt) for picture in pictures)
        self._tally.n_damaged += n_damaged
        self._tally.n_errors += n_damaged
        return pictures

    def _attempt(self, context: Any, packet: Any | None) -> list[Any] | None:
        try:
            return list(context.decode(packet))
        except (self._av.error.FFmpegError, ValueError):  # ValueError: PyAV's ArgumentError is one
            return None


def _to_rgb(picture: Any, reformatter: Any) -> Frame:
    # swscale's defaults, without further flags: bit for bit what OpenCV's VideoCapture gives, from which published
    # encoders were trained.
    return np.asarray(reformatter.reformat(picture, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8)


def _rate(stream: Any) -> float | None:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and rate > 0:
            return float(rate)
    return None


def probe_video(payload: bytes, *, container: str, limits: DecodeLimits) -> MediaProbe:
    """Count packets without decoding them.

    Raises
    ------
    MediaError
        As `VideoSource`.
    """
    source = VideoSource(payload, container=container, limits=limits)
    height, width = source.size
    probe = MediaProbe(
        container=container,
        codec=source.codec,
        n_header_frames=source.n_header_frames,
        fps=source.fps,
        height=height,
        width=width,
    )
    return with_frame_count(probe, source)
