"""`arclet` as the other side of the comparison."""

import json
import subprocess

# What a row of `arclet bench` says that is kept or known otherwise, or is not measured in turns.
KNOWN = set(
    "name measure device dtype threads batch guidance steps time shift evaluations warm_ups runs p50_ms p90_ms p99_ms min_ms "
    "ms_per_evaluation images_per_s gflops ratio_to_products speedup phases load_ms open_ms weights_mb device_mb "
    "peak_rss_mb binary_mb gate gpu_state".split()
)


class Arclet:
    """One case of `arclet`: images of given noise, and times in turns with another program."""

    def __init__(self, program, case, noise_file, threads):
        """`case`: the attributes model, device, dtype, steps, time, guidance."""
        self.program = program
        self.flags = [
            "--model",
            case.model,
            "--device",
            case.device,
            "--dtype",
            case.dtype,
            "--steps",
            str(case.steps),
            "--time",
            case.time,
            # Theirs are equal steps.
            "--shift",
            "1",
            "--guidance-scale",
            str(case.guidance),
            "--noise",
            str(noise_file),
            "--quiet",
        ]
        if threads:
            self.flags += ["--threads", str(threads)]
        self.batch = case.batch
        self.process = None

    def images(self, file):
        """Draws the images into `file` (.npy) and returns them, not clamped."""
        subprocess.run(
            [
                self.program,
                "sample",
                *self.flags,
                # `bench` takes equal steps of Euler's rule whatever the model asks for.
                "--solver",
                "euler",
                "--no-clamp",
                "--batch",
                str(self.batch),
                "--out",
                str(file),
            ],
            check=True,
        )
        import numpy as np

        return np.load(file)

    def __enter__(self):
        """Loads the model; `about` is the row that `arclet bench` would print, without times."""
        self.process = subprocess.Popen(
            [self.program, "bench", *self.flags, "--batch", str(self.batch), "--follow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._answer()["ready"]
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def extra(self):
        """What `arclet` says of itself beyond what this program knows."""
        return {key: value for key, value in self.about.items() if key not in KNOWN and value is not None}

    def run(self, count):
        """Milliseconds of each of `count` runs."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._answer()["times_ms"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"arclet ended with exit code {self.process.wait()}")
        return json.loads(line)
