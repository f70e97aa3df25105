#!/bin/sh
# The main job, end to end: synthetic hearts and real ultrasound -> manifests -> vectors -> an LVEF probe.
# Run by `make demo`; everything lands in one folder, which may be removed.
set -eu
demo=${1:-demo}
mkdir -p "$demo"
export EMBEDSTORE="$demo/store"

say() { printf '\n== %s\n' "$1"; }
run() { printf '$ %s\n' "$*"; "$@"; }

say "1. Data: 150 synthetic patients, and the real ultrasound files of the pydicom packages"
[ -f "$demo/phantom/clips.csv" ] || run embedstore phantom --out "$demo/phantom" --patients 150 --seed 0
run embedstore manifest make phantom --root "$demo/phantom" -o "$demo/phantom.parquet"
run embedstore manifest make pydicom-us -o "$demo/pydicom-us.parquet"
run embedstore manifest add "$demo/phantom.parquet"
run embedstore manifest add "$demo/pydicom-us.parquet"

say "2. Encode: decode each clip once, two encoders"
run embedstore build --encoder efficientnet-lite0 --encoder pixel-stats
run embedstore ls
run embedstore verify

say "3. Probe LVEF (synthetic): a mean of frames cannot see motion, mean and deviation can"
run evaltools probe --task lvef --dataset phantom --pool clip --pool meanstd --out "$demo/results"

say "Done"
cat <<END
Results and figures: $demo/results/
The store:           $demo/store

On your own clips (AVI, MP4, DICOM, NIfTI, PNG or JPEG below one folder, and a CSV of labels):
  embedstore manifest make folder --root CLIPS --table LABELS.csv -o mine.parquet
  embedstore manifest add mine.parquet && embedstore build --encoder efficientnet-lite0
  evaltools probe --dataset mine --label EF --kind regression --pool meanstd --out results
END
