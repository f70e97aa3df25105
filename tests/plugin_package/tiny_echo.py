import numpy as np

from embedstore import Encoded, EncoderCard, FrameSampling, Variant


def shrink(frames, *, n_missing=0):
    rows, columns = (np.arange(64) * side // 64 for side in frames.shape[1:3])
    return frames[:, rows][:, :, columns]


class TinyEcho:
    input_shape, input_dtype, preprocess = (64, 64, 3), "uint8", staticmethod(shrink)

    def __init__(self, request):
        from torch import load, nn

        self.spec = request.spec
        self.network = nn.Sequential(nn.Conv2d(3, 32, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        self.network.load_state_dict(load(request.weights, weights_only=True))

    def encode(self, batch):
        from torch import from_numpy, no_grad

        with no_grad():
            return Encoded(self.network(from_numpy(batch).movedim(-1, 1) / 255).numpy())


SHAPE = {"unit": "frame", "clip_dim": 32, "frame_dim": 32, "input_size": (3, 64, 64)}
WORDS = {"name": "tiny-echo", "summary": "One layer of filters.", "licence": "MIT", "loader": "tiny_echo:TinyEcho"}
PIXELS = {"preprocessing": {"nearest": 64}, "variants": {"published": Variant(FrameSampling("uniform:16"))}}
CARD = EncoderCard(**SHAPE, **WORDS, **PIXELS, weights_url="https://example.org/tiny_echo.pt")
