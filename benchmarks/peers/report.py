"""Writes docs/peers.md and its plots from the results so far."""

import argparse
import collections
import pathlib
import statistics

from benchmarks.peers import jobs
from benchmarks.peers.run import RESULTS, known

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
NETS = {
    "resnet": "ResNet of 78,426 parameters, Fashion-MNIST",
    "mobilenet": "MobileNet-like net, Fashion-MNIST",
    "ds_cnn": "DS-CNN, spoken digits, five folds",
}
TEXT = """# Beside other tools

tensorflow-model-optimization 0.8.1, Keras 3.15, qkeras-v3 1.2.1, TFLiteConverter of TensorFlow
2.21, litert-quantizer 0.11, and on TensorFlow 2.15 Sony's model-compression-toolkit 2.6, Intel
Neural Compressor 2.6 and NNCF 2.19, each in an environment of its own. All start from the same
float weights, which each checks.

tfmot and tfcompress are tuned alike, at 90% zeros, on 10,000 images, by 5,000 others: the schedule
of the learning rate (constant, with cosine decay, or with cosine decay from the step at which all
zeros are there) and the share of the steps until then (1/3 or 2/3), and then the rate itself (0.003
or 0.001). tfcompress prunes by `ranking="global"`, which tfmot does not have; other tools have the
settings of tfmot's QAT. The best settings then train for one pass over all 60,000 images (batches
of 64; on spoken digits 20 epochs), and files are judged on the 10,000 test images by
ai-edge-litert. Bytes are those of the file after gzip. "distilled" has the float net as its
teacher. Accuracies are means, with the lowest and the highest of the seeds or folds; no order is
claimed inside of these. Seconds are of training on one thread, with other work on the machine.
Milliseconds are in turns, of one thread, on a processor without instructions for products of bytes,
where XNNPACK is not faster in int8 than in float ([latency](latency.md) has those of one that has).

    python -m benchmarks.peers.environments && python -m benchmarks.peers.run
    python -m benchmarks.peers.report
"""


def spread(values, form):
    """Returns the mean, and the least and the largest value if there are several."""
    if len(values) == 1:
        return form(values[0])
    return f"{form(statistics.mean(values))} ({form(min(values))}-{form(max(values))})"


def latencies(results, net):
    """Returns the milliseconds of the first file of each row, in turns, one thread."""
    found = [r for r in results if r["stage"] == "latency" and r["net"] == net]
    return found[-1]["ms"] if found else {}


def check_weights(rows):
    """Raises an error if runs of one seed started from different float weights."""
    found = {}
    for result in (result for results in rows.values() for result in results):
        if "weights" in result and found.setdefault(result["seed"], result) != result:
            first = found[result["seed"]]
            if first["weights"] != result["weights"]:
                raise ValueError(f"{first['name']} and {result['name']} began with other weights.")


def tables(results):
    """Yields the lines of the tables, and draws the plots."""
    for net, title in NETS.items():
        rows = jobs.rows_of(results, net)
        if not rows:
            yield f"\n## {title}\n\nNot run yet."
            continue
        check_weights(rows)
        times = latencies(results, net)
        yield f"\n## {title}\n"
        done, planned = max(map(len, rows.values())), jobs.SEEDS[jobs.DATA[net]]
        if done < planned:
            yield f"So far {done} of {planned} seeds: no order is claimed yet.\n"
        yield "| | seeds | accuracy | bytes, gzip | bytes | ms | training s |"
        yield "|---" * 7 + "|"
        good = {key: found for key, found in rows.items() if "accuracy" in found[0]}
        for key in sorted(good, key=lambda k: -statistics.mean(r["accuracy"] for r in good[k])):
            found = [r for r in good[key] if "accuracy" in r]
            cells = (
                jobs.label(key),
                str(len(found)),
                spread([r["accuracy"] for r in found], lambda v: f"{v:.2%}"),
                f"{statistics.mean(r['gzip_bytes'] for r in found):,.0f}",
                f"{statistics.mean(r['bytes'] for r in found):,.0f}",
                f"{times[jobs.label(key)]:.3f}" if jobs.label(key) in times else "",
                f"{statistics.mean(r['train_seconds'] for r in found):.0f}",
            )
            yield "| " + " | ".join(cells) + " |"
        for key in rows.keys() - good.keys():
            message = " ".join(rows[key][0].get("error", "").split())[:300].replace("|", "/")
            yield f"| {jobs.label(key)} | | {message} | | | | |"
        if done > 1:
            yield from equal_accuracy(good)
        draw(net, title, good, times)
        yield f"\n![Accuracy over bytes and over latency](peers_{net}.png)"
    yield from steps(results)


def equal_accuracy(rows):
    """Yields a table: for each row of tfmot, the smallest file of ours that is as accurate.

    As accurate: the mean is not lower by more than the larger spread of both.
    """
    points = {}
    for key, found in rows.items():
        accuracies = [r["accuracy"] for r in found if "accuracy" in r]
        size = statistics.mean(r["gzip_bytes"] for r in found if "accuracy" in r)
        spread = max(accuracies) - min(accuracies)
        points[key] = statistics.mean(accuracies), spread, size
    ours = {key: point for key, point in points.items() if key[0] == "tfcompress"}
    yield "\nThe smallest file of tfcompress that is as accurate within the spread:\n"
    yield "| tfmot | accuracy | bytes, gzip | tfcompress | accuracy | bytes, gzip | times smaller |"
    yield "|---" * 7 + "|"
    for key, (accuracy, spread, size) in sorted(points.items(), key=lambda item: -item[1][0]):
        if key[0] != "tfmot":
            continue
        equal = {k: p for k, p in ours.items() if p[0] >= accuracy - max(spread, p[1])}
        cells = [jobs.label(key), f"{accuracy:.2%}", f"{size:,.0f}"]
        if equal:
            best = min(equal, key=lambda k: equal[k][2])
            theirs, _, least = equal[best]
            cells += [jobs.label(best), f"{theirs:.2%}", f"{least:,.0f}", f"{size / least:.2f}"]
        else:
            cells += ["none", "", "", ""]
        yield "| " + " | ".join(cells) + " |"


def steps(results):
    """Yields the table of training steps, as ratios to the float step of the same process."""
    ratios = collections.defaultdict(list)
    for result in results:
        for name, milliseconds in result.get("step_ms", {}).items():
            key = result["net"], result["peer"], name
            ratios[key].append(milliseconds / result["step_ms"]["float"])
    if ratios:
        yield "\n## Training step, as a ratio to float\n"
        yield "| network | | | median | lowest-highest |\n|---|---|---|---|---|"
    for (net, peer, name), found in sorted(ratios.items()):
        if name != "float":
            middle = statistics.median(found)
            yield f"| {net} | {peer} | {name} | {middle:.2f}x | {min(found):.2f}-{max(found):.2f} |"


def draw(net, title, rows, times):
    """Draws accuracy over gzip bytes and over latency."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    peers = list(dict.fromkeys(key[0] for key in rows))
    for index, peer in enumerate(peers):
        points = [
            (
                statistics.mean(r["gzip_bytes"] for r in found) / 1000,
                times.get(jobs.label(key)),
                found,
            )
            for key, found in rows.items()
            if key[0] == peer
        ]
        for axis, position in zip(axes, (0, 1), strict=True):
            chosen = [p for p in points if p[position] is not None]
            axis.plot(
                [p[position] for p in chosen],
                [100 * statistics.mean(r["accuracy"] for r in p[2]) for p in chosen],
                "o^sDvP*"[index % 7],
                label=peer,
            )
    axes[0].set_xscale("log")
    axes[0].set_xlabel("kilobytes after gzip")
    axes[0].set_ylabel("accuracy, %")
    axes[1].set_xlabel("ms, one thread")
    axes[1].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(DOCS / f"peers_{net}.png", dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    lines = tables(known(parser.parse_args().results))
    (DOCS / "peers.md").write_text(TEXT + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
