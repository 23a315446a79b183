"""What a result says about where it was measured. Standard library only."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["torch", "numpy", "openvino", "onnxruntime", "onnx", "onnxscript"]


def said(*command):
    """What a command prints, or None where it is missing or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_model():
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def cores():
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version(package):
    """Its version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit():
    """Twelve digits, with `-changed` for a tree with changes."""
    packed = ROOT / "COMMIT"  # in a folder that tools/pack-gpu made
    if packed.is_file():
        return packed.read_text().strip()
    head = said("git", "rev-parse", "--short=12", "HEAD") or "unknown"
    return head + ("-changed" if said("git", "status", "--porcelain", "--untracked-files=no") else "")


def machine(arclet, threads, arguments):
    """`threads` may be None: each program's own choice."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "arclet_sha256": hashlib.sha256(Path(arclet).read_bytes()).hexdigest(),
        "arclet": said(arclet, "--version"),
        **{package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "threads": threads,
        "command": " ".join(["benches/peers/run.py", *arguments]),
    }


def gpu(name, memory, cuda):
    """What else is said of a GPU."""
    query = (
        "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,"
        "temperature.gpu,clocks_throttle_reasons.active"
    )
    smi = said("nvidia-smi", f"--query-gpu={query}", "--format=csv")
    return {"gpu": name, "gpu_memory": memory, "cuda": cuda, "nvidia_smi": smi}
