"""Running an ONNX file in ONNX Runtime or OpenVINO without torch, in this process or in one of its own.

A runtime that crashes takes only its own process with it: `Worker` then raises Failed, with what it said last.
"""
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

PATIENCE = 600                  # seconds until a runtime that says nothing is ended: "crashed (signal 9)"
NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


class Failed(Exception):
    """A runtime's error, in one line."""


def load(runtime, path, threads=1, precision="f32"):
    """A function from images (N, C, H, W) float32 to logits (N, classes), and the shape of one image.

    runtime: onnxruntime or openvino; precision, of OpenVINO for what is not int8: f32 or bf16 (left to itself it takes
    bf16 where the CPU has it).
    """
    if runtime == "onnxruntime":
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0], session.get_inputs()[0].shape[1:]
    import openvino
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads,
                                                           "INFERENCE_PRECISION_HINT": precision})
    request = compiled.create_infer_request()
    shape = [d.get_length() for d in list(compiled.input(0).partial_shape)[1:]]
    return lambda images: request.infer({"images": images})[compiled.output(0)], shape


def milliseconds(run, images, seconds, clock):
    """Mean milliseconds of run(images), repeated until `seconds` have gone by."""
    passes, start = 0, clock()
    while not passes or clock() - start < seconds:
        run(images)
        passes += 1
    return 1000 * (clock() - start) / passes


def clock_for(threads):
    """Processor time with one thread, which other processes do not disturb, else the wall clock."""
    return time.process_time if threads == 1 else time.perf_counter


def serve(runtime, path, threads, precision):
    """The worker's side: answers one line of JSON with another, until its input ends."""
    run, shape = load(runtime, path, threads, precision)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "images" in asked:
            np.save(asked["logits"], run(np.load(asked["images"])))
            print(json.dumps("done"), flush=True)
        else:
            images = np.random.default_rng(0).random((asked["batch"], *shape), dtype=np.float32)
            print(json.dumps(milliseconds(run, images, asked["seconds"], clock_for(threads))), flush=True)


class Worker:
    """A process that runs one file in one runtime. Calling it with images gives logits."""

    def __init__(self, runtime, path, threads=1, precision="f32"):
        root = str(Path(__file__).resolve().parent.parent)
        code = (f"import sys; sys.path.insert(0, {root!r}); from deploy.runtime import serve; "
                f"serve({runtime!r}, {str(path)!r}, {threads}, {precision!r})")
        self.name, self.complaints = NAMES[runtime], tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.complaints, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.answer()

    def answer(self):
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            return self.read()
        finally:
            timer.cancel()

    def read(self):
        while line := self.process.stdout.readline():
            if line.startswith(("{", "[", '"')) or line[0].isdigit():
                return json.loads(line)                      # anything else is a runtime's own message
        status = self.process.wait()
        self.complaints.seek(0)
        said = [line.strip() for line in self.complaints.read().splitlines() if line.strip()]
        raise Failed(f"{self.name} crashed (signal {-status})" if status < 0 else
                     f"{self.name} failed: {said[-1] if said else status}")

    def ask(self, **question):
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass                                             # it has ended; answer() says how
        return self.answer()

    def milliseconds(self, batch, seconds):
        return self.ask(batch=batch, seconds=seconds)

    def __call__(self, images):
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/images.npy", images)
            self.ask(images=f"{folder}/images.npy", logits=f"{folder}/logits.npy")
            return np.load(f"{folder}/logits.npy")

    def close(self):
        with contextlib.suppress(BrokenPipeError):           # a question that a dead process has not read
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.complaints.close()
