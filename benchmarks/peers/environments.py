"""Makes the environments of the peers, from PyPI, with Python 3.11."""

import argparse
import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
OLD = "tensorflow==2.15.1"  # the last that these three accept
PACKAGES = {
    "tfcompress": ["--editable", str(ROOT)],
    "tfmot": ["tensorflow==2.21.*", "tf_keras==2.21.*", "tensorflow-model-optimization==0.8.1"],
    "keras": ["tensorflow==2.21.*", "keras==3.15.*", "litert-quantizer==0.11.*"],
    "qkeras": ["tensorflow==2.21.*", "keras==3.15.*", "qkeras-v3==1.2.1"],
    "mct": ["model-compression-toolkit==2.6.*", OLD],
    "inc": ["neural-compressor==2.6", OLD],
    "nncf": ["nncf==2.19.*", OLD],
}


def python_of(folder, name):
    return folder / "environments" / name / "bin" / "python"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("peers-output"))
    parser.add_argument("names", nargs="*", choices=[*PACKAGES, []], default=list(PACKAGES))
    options = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        parser.error("TensorFlow 2.15 needs Python 3.11: run this with it")
    for name in options.names:
        python = python_of(options.folder, name)
        done = python.parent.parent / "complete"
        if done.exists():
            continue
        print(f"{name}: {' '.join(PACKAGES[name])}", flush=True)
        venv.create(python.parent.parent, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *PACKAGES[name]], check=True)
        done.write_text("")


if __name__ == "__main__":
    main()
