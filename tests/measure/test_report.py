import re
import shutil
import subprocess

import pytest

import tfcompress as tfc
from tests import nets
from tfcompress.measure.report import comparison_page, front

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    model = nets.small_residual()
    x = nets.samples_for(model, 64)
    labels = ["<b>cat</b>", "dog & co", "bird"]
    tfc.export_tflite(model, folder / "m.tflite", representative_dataset=x, labels=labels)
    y = model.predict(x, verbose=0).argmax(-1)
    models = {"the <float> model": model, "phone": folder / "m.tflite"}
    return tfc.compare(models, x, y, runs=5)


def test_the_front_is_what_none_beats():
    points = [(1, 10), (2, 30), (3, 20), (4, 40), (4, 35), (2, 5)]
    kept = front(points)
    beaten = [
        any((c <= cost and g >= gain) and (c, g) != (cost, gain) for c, g in points)
        for cost, gain in points
    ]
    assert kept == [0, 1, 3] and [i for i, b in enumerate(beaten) if not b] == kept


def test_the_plot_is_a_picture(comparison, tmp_path):
    comparison.plot(tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    tfc.compare({"float": nets.tiny()}, runs=2).plot(tmp_path / "costs.png")  # without accuracies
    with pytest.raises(FileNotFoundError, match="no folder"):
        comparison.plot(tmp_path / "none" / "pareto.png")


def test_the_page_needs_nothing_beside_it_and_escapes_names(comparison, tmp_path):
    comparison.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text == comparison_page(comparison, comparison.reports, comparison.profiles)
    assert "<script" not in text and "the &lt;float&gt; model" in text
    assert "<b>cat" not in text and "dog &amp; co" in text
    assert not re.search(r"(?:src|href)=\"(?!#)", text)
    assert "CONV_2D" in text and "agreed with its model" in text


def browse(page, tmp_path, width, *more):
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *more]
    command += [f"--window-size={width},900", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(not BROWSER, reason="needs Debian's chromium, which .ci/run installs")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it(comparison, width, tmp_path):
    comparison.to_html(tmp_path / "report.html")
    # The page as it is, and a script that says how wide it came out.
    probe = tmp_path / "probe.html"
    script = "<script>document.title = `${document.documentElement.scrollWidth} in ${innerWidth}`"
    probe.write_text((tmp_path / "report.html").read_text() + script + "</script>")
    done = browse(probe, tmp_path, width, "--dump-dom", "--enable-logging=stderr", "--v=0")
    assert "CONSOLE" not in done.stderr
    page_width, window = map(int, re.search(r"<title>(\d+) in (\d+)", done.stdout).groups())
    assert page_width <= window, "the page scrolls sideways"
    assert done.stdout.count("<svg") == 2 and "phone" in done.stdout
    shot = tmp_path / "shot.png"
    browse(tmp_path / "report.html", tmp_path, width, f"--screenshot={shot}")
    assert shot.stat().st_size > 10_000


def test_histograms_of_models_and_files(tmp_path):
    model = tfc.quantize(tfc.prune(nets.tiny(), 0.5))
    model(nets.samples_for(model, 64), training=True)
    of_model = tfc.histograms(model, bins=16)
    first = of_model.weights[0]
    assert first.name == "first/kernel" and sum(first.counts) == 48 and first.zeros == 0.5
    assert len(first.edges) == 17 and first.levels <= 25
    quantizer = next(r for r in of_model.ranges if r.name == "second")
    path = tfc.export_tflite(model, tmp_path / "m.tflite").path
    of_file = tfc.histograms(path)
    assert sorted(sum(w.counts) for w in of_file.weights) == [24, 48]
    assert {round(w.zeros, 3) for w in of_file.weights} == {0.5}
    twin = next(r for r in of_file.ranges if "second" in r.name)
    scale = (quantizer.maximum - quantizer.minimum) / 255
    assert abs(twin.minimum - quantizer.minimum) < scale
    assert abs(twin.maximum - quantizer.maximum) < scale
    for result in (of_model, of_file, tfc.histograms(nets.tiny())):
        result.plot(tmp_path / "h.png")
        assert (tmp_path / "h.png").stat().st_size > 5000
        assert "zeros" in str(result)
    with pytest.raises(ValueError, match="bins must be"):
        tfc.histograms(model, bins=0)
