"""A logger extension as it would be written on the PyPI bindings: it appends each line to the file that BENCH_LOG
names. The benchmarks measure the Rust ones against it."""

import os

import osquery

LOG = open(os.environ["BENCH_LOG"], "ab", buffering=0)


@osquery.register_plugin
class FileLogger(osquery.LoggerPlugin):
    def name(self):
        return "python_logger"

    def log_string(self, value):
        LOG.write(value.encode() + b"\n")
        return osquery.extensions.ttypes.ExtensionStatus(code=0, message="OK")


if __name__ == "__main__":
    osquery.start_extension(name="python_logger", version="1.0.0")
