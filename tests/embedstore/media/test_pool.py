import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from embedstore.errors import EnvironmentFailure, MissingExtraError
from embedstore.media import JobFailure, WorkerPool

TIMEOUT_S = 30.0


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], *, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("n_workers", [0, 2])
def test_results_come_in_the_order_of_the_jobs(n_workers: int, pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.slow_first, n_workers=n_workers, timeout_s=TIMEOUT_S) as pool:
        assert list(pool.imap(range(12), max_in_flight=5)) == list(range(12))
        assert list(pool.imap([], max_in_flight=5)) == []
        assert list(pool.imap([7], max_in_flight=1)) == [7]  # again, with the same workers


def test_work_is_done_elsewhere_and_by_all(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.process_id, n_workers=2, timeout_s=TIMEOUT_S) as pool:
        pids = set(pool.imap([0.01] * 100, max_in_flight=8))
    assert os.getpid() not in pids
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)


def test_arrays_travel_whole_and_can_be_written(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.arrays, n_workers=1, timeout_s=TIMEOUT_S) as pool:
        for n_bytes in (0, 1, 5_000_000):
            (found,) = pool.imap([n_bytes], max_in_flight=1)
            assert np.array_equal(found["frames"], np.arange(n_bytes, dtype=np.uint8))
            assert found["scattered"].tolist() == list(range(0, 20, 2))
            found["frames"][:] = 0


@pytest.mark.parametrize(
    ("how", "reason", "word"),
    [
        ("exit", "decoder-died", "status 7"),
        ("SIGKILL", "decoder-died", "SIGKILL"),
        ("SIGSEGV", "decoder-died", "SIGSEGV"),
        ("SIGABRT", "decoder-died", "SIGABRT"),
        ("media", "too-grey", "the clip is grey"),
        ("storage", "storage", "the disk is full"),
        ("value", "decoder-error", "ValueError: no such value"),
    ],
)
def test_a_bad_job_costs_itself_alone(how: str, reason: str, word: str, pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.misbehave, n_workers=2, timeout_s=TIMEOUT_S) as pool:
        outcomes = list(pool.imap(["a", how, "b", how, how, "c"], max_in_flight=3))
    failures = [outcome for outcome in outcomes if isinstance(outcome, JobFailure)]
    assert [outcome for outcome in outcomes if not isinstance(outcome, JobFailure)] == ["a", "b", "c"]
    assert [isinstance(outcome, JobFailure) for outcome in outcomes] == [False, True, False, True, True, False]
    assert all(failure.reason == reason and word in failure.message for failure in failures)


def test_a_job_that_hangs_is_ended(pool_jobs: ModuleType) -> None:
    began = time.monotonic()
    with WorkerPool(pool_jobs.misbehave, n_workers=1, timeout_s=0.5) as pool:
        outcomes = list(pool.imap(["a", "hang", "b"], max_in_flight=3))
    assert outcomes == ["a", JobFailure("timeout", "decoding took longer than 0.5 s"), "b"]
    assert time.monotonic() - began < 10


def test_time_is_the_workers_not_the_callers(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.double, n_workers=1, timeout_s=0.5) as pool:
        outcomes = pool.imap(range(4), max_in_flight=2)
        assert next(outcomes) == 0
        time.sleep(0.8)  # the caller is busy; the next result has been waiting since long before the limit
        assert list(outcomes) == [2, 4, 6]


def test_memory_is_limited(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.misbehave, n_workers=1, timeout_s=TIMEOUT_S, memory_limit_bytes=3 << 30) as pool:
        outcomes = list(pool.imap(["a", "eat-memory", "b"], max_in_flight=3))
    assert outcomes[::2] == ["a", "b"]
    assert outcomes[1].reason == "out-of-memory"


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_missing_package_stops_everything(n_workers: int, pool_jobs: ModuleType) -> None:
    with (
        WorkerPool(pool_jobs.misbehave, n_workers=n_workers, timeout_s=TIMEOUT_S) as pool,
        pytest.raises(MissingExtraError, match=r"embedstore\[media\]"),
    ):
        list(pool.imap(["missing-extra", "a"], max_in_flight=2))


def test_failures_without_workers(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.misbehave, n_workers=0, timeout_s=TIMEOUT_S) as pool:
        outcomes = list(pool.imap(["a", "media", "value"], max_in_flight=2))
    expected = [JobFailure("too-grey", "the clip is grey"), JobFailure("decoder-error", "ValueError: no such value")]
    assert outcomes == ["a", *expected]


def test_a_result_that_cannot_be_sent_is_a_failure(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.unpicklable, n_workers=1, timeout_s=TIMEOUT_S) as pool:
        (outcome,) = pool.imap([0], max_in_flight=1)
    assert outcome.reason == "decoder-error"


def test_a_job_that_cannot_be_sent_is_the_callers_error(pool_jobs: ModuleType) -> None:
    with (
        WorkerPool(pool_jobs.double, n_workers=1, timeout_s=TIMEOUT_S) as pool,
        pytest.raises((pickle.PicklingError, AttributeError, TypeError)),
    ):
        list(pool.imap([lambda: None], max_in_flight=1))


def test_jobs_are_read_only_as_far_ahead_as_asked(pool_jobs: ModuleType) -> None:
    n_read = 0

    def jobs() -> Iterator[int]:
        nonlocal n_read
        for number in range(50):
            n_read += 1
            yield number

    with WorkerPool(pool_jobs.double, n_workers=2, timeout_s=TIMEOUT_S) as pool:
        for n_yielded, _ in enumerate(pool.imap(jobs(), max_in_flight=4)):
            assert n_read <= n_yielded + 4
    assert n_read == 50


def test_jobs_that_end_in_an_error_pass_it_on(pool_jobs: ModuleType) -> None:
    def jobs() -> Iterator[int]:
        yield 1
        raise OSError("the list of jobs cannot be read")

    with (
        WorkerPool(pool_jobs.double, n_workers=1, timeout_s=TIMEOUT_S) as pool,
        pytest.raises(OSError, match="list of jobs"),
    ):
        list(pool.imap(jobs(), max_in_flight=1))


def test_workers_end_when_the_block_is_left(pool_jobs: ModuleType, tmp_path: Path) -> None:
    marks = [tmp_path / "0", tmp_path / "1"]
    told: list[BaseException] = []

    def consume(pool: WorkerPool[Path, int]) -> None:
        try:
            list(pool.imap([*marks, tmp_path / "2"], max_in_flight=3))
        except EnvironmentFailure as error:
            told.append(error)

    with pytest.raises(KeyError), WorkerPool(pool_jobs.started, n_workers=2, timeout_s=600) as pool:
        consumer = threading.Thread(target=consume, args=(pool,))
        consumer.start()
        assert wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
        raise KeyError
    assert not any(is_running(int(mark.read_text())) for mark in marks)
    consumer.join(5)
    assert not consumer.is_alive()
    assert "closed" in str(told[0])
    assert not [thread for thread in threading.enumerate() if thread.name == "embedstore-decode"]
    with pytest.raises(RuntimeError, match="within"):
        pool.imap([], max_in_flight=1)


def test_a_pool_that_is_closed_under_an_iterator_says_so(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.double, n_workers=1, timeout_s=TIMEOUT_S) as pool:
        outcomes = pool.imap(range(10), max_in_flight=1)
        assert next(outcomes) == 0
    with pytest.raises(RuntimeError, match="closed"):
        next(outcomes)


def test_leaving_early_costs_nothing(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.double, n_workers=2, timeout_s=TIMEOUT_S) as pool:
        for outcome in pool.imap(range(100), max_in_flight=10):
            if outcome == 6:
                break
        assert list(pool.imap([21], max_in_flight=1)) == [42]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import signal
        from pathlib import Path
        import pool_jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit "ignored"
        from embedstore.media import WorkerPool
        marks = [Path(sys.argv[1]) / name for name in "01"]
        with WorkerPool(pool_jobs.started, n_workers=2, timeout_s=600) as pool:
            list(pool.imap(marks, max_in_flight=2))
        """)
    )
    command = [sys.executable, str(script), str(tmp_path)]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    marks = [tmp_path / "0", tmp_path / "1"]
    try:
        assert wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
    finally:
        parent.send_signal(how)
        assert parent.wait(10) == -how
    pids = [int(mark.read_text()) for mark in marks]
    assert wait_until(lambda: not any(is_running(pid) for pid in pids), seconds=5)


def test_a_worker_killed_while_idle_is_replaced(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.process_id, n_workers=1, timeout_s=TIMEOUT_S) as pool:
        (first,) = pool.imap([0], max_in_flight=1)
        os.kill(first, signal.SIGKILL)
        assert wait_until(lambda: not is_running(first))
        (second,) = pool.imap([0], max_in_flight=1)
    assert isinstance(second, int)
    assert second != first


def test_workers_load_only_what_the_function_needs(pool_jobs: ModuleType) -> None:
    with WorkerPool(pool_jobs.loaded_modules, n_workers=1, timeout_s=TIMEOUT_S) as pool:
        (modules,) = pool.imap([0], max_in_flight=1)
    assert "pool_jobs" in modules
    assert not {"torch", "zarr", "pyarrow", "sklearn", "pytest", "av", "cv2", "pydicom"} & set(modules)


def test_workers_use_one_thread_and_are_silent(pool_jobs: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(pool_jobs.thread_settings, n_workers=1, timeout_s=TIMEOUT_S) as pool:
        assert list(pool.imap([0], max_in_flight=1)) == [("1", 1)]
    with WorkerPool(pool_jobs.noisy, n_workers=1, timeout_s=TIMEOUT_S) as pool:
        assert list(pool.imap([3], max_in_flight=1)) == [3]
    assert capfd.readouterr() == ("", "")


def test_a_function_that_workers_cannot_load(pool_jobs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool(pool_jobs.double, n_workers=1, timeout_s=TIMEOUT_S)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(Path(__file__).parent)])
    with pool, pytest.raises(EnvironmentFailure, match=r"cannot load its function \(ModuleNotFoundError"):
        list(pool.imap([1], max_in_flight=1))


def test_misuse_is_refused(pool_jobs: ModuleType) -> None:
    for numbers in ({"n_workers": -1, "timeout_s": 1.0}, {"n_workers": 1, "timeout_s": 0.0}):
        with pytest.raises(ValueError, match="n_workers from 0"):
            WorkerPool(pool_jobs.double, **numbers)
    main_function = type("F", (), {"__module__": "__main__", "__call__": lambda self, job: job})()
    with pytest.raises(ValueError, match="__main__"):
        WorkerPool(partial(main_function), n_workers=1, timeout_s=1.0)
    pool = WorkerPool(pool_jobs.double, n_workers=1, timeout_s=TIMEOUT_S)
    with pytest.raises(RuntimeError, match="with"):
        pool.imap([1], max_in_flight=1)
    with pool:
        with pytest.raises(ValueError, match="max_in_flight"):
            pool.imap([1], max_in_flight=0)
        with pytest.raises(RuntimeError, match="once"):
            pool.__enter__()


def test_clips_through_workers(
    pattern: Callable[..., np.ndarray], encode_video: Callable[..., bytes], tmp_path: Path, pool_jobs: ModuleType
) -> None:
    payload = encode_video(pattern(4, 48, 64))
    contents = [payload, b"", payload[: len(payload) // 3], payload]
    paths = [tmp_path / f"{number}.avi" for number in range(4)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    with WorkerPool(pool_jobs.read_file, n_workers=2, timeout_s=TIMEOUT_S) as pool:
        first, empty, cut, last = pool.imap(paths, max_in_flight=4)
    assert (empty.reason, cut.reason) == ("empty-file", "truncated")
    assert np.array_equal(first.frames, last.frames)
    assert first.frames.shape == (1, 48, 64, 3)
