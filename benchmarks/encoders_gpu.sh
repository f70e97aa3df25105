#!/bin/sh
# Every encoder on a GPU machine that has torch, torchvision, timm, pyarrow and scikit-learn but no network.
#
#   sh benchmarks/encoders_gpu.sh fetch WHEELS        where there is a package index: what that machine lacks
#   sh benchmarks/encoders_gpu.sh run WHEELS RESULTS  there, in this folder: at most 8 minutes, two JSON files
set -eu

LACKING="zarr==3.1.6 numcodecs donfig google-crc32c pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-inspection
  av==18.1.0 open_clip_torch==3.3.0 ftfy wcwidth efficientnet_lite_pytorch==0.1.0 psutil threadpoolctl"
BUILT="dinov2 echo-clip panecho echoprime echojepa videomae"

case "${1:-}" in
fetch)
	for package in $LACKING; do
		python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$2" \
			--python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
			--platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "$package"
	done
	;;
run)
	site="$(mktemp -d)"
	python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
	# The package itself, for its entry points.
	python3 -m pip install --quiet --no-index --no-deps --no-compile --no-build-isolation --target "$site" . ||
		echo "the package was not installed: encoders are read from setup.cfg, and nothing is built" >&2
	export PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1
	mkdir -p "$3"
	timeout 300 python3 benchmarks/encoder_speed.py --device cuda --seconds 0.5 --budget 270 --json "$3/encoders_gpu.json" ||
		echo "ended with $?" >&2
	results="$3"
	# shellcheck disable=SC2046 # one word an option
	set -- $(for name in $BUILT; do echo --encoder "$name"; done)
	timeout 170 python3 benchmarks/encoder_speed.py --device cuda --seconds 0.5 --budget 130 --build 256 \
		--scratch /dev/shm --json "$results/encoders_gpu_builds.json" "$@"
	;;
*)
	sed -n '2,5s/^# \{0,1\}//p' "$0"
	exit 2
	;;
esac
