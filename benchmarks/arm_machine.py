"""A 64-bit ARM processor, emulated: qemu-user, and Python and libc of Debian for arm64.

Nothing is installed and nobody needs to be root: packages are unpacked into a cache folder
(TFCOMPRESS_ARM, or ~/.cache/tfcompress-arm). qemu is that of the PATH or of TFCOMPRESS_QEMU, if it
is version 10 or newer (7.2 crashes the runtime), else Debian's. Needs Linux with apt-get, dpkg and
pip, and their registries the first time.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

SUITE, PYTHON = "trixie", "3.13"
DEBIAN = (
    f"libc6 libstdc++6 libgcc-s1 python{PYTHON}-minimal libpython{PYTHON}-minimal "
    f"libpython{PYTHON}-stdlib libexpat1 zlib1g libffi8 libbz2-1.0 liblzma5"
).split()
WHEELS = ("ai-edge-litert==2.3.0", "numpy>=2.3,<3")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
CPUS = ("cortex-a53", "cortex-a72", "max")
CHILD = pathlib.Path(__file__).with_name("arm_child.py")


class Missing(RuntimeError):
    """The emulated machine cannot be made here."""


def cache():
    """Returns the folder of what is unpacked."""
    default = pathlib.Path.home() / ".cache" / "tfcompress-arm"
    return pathlib.Path(os.environ.get("TFCOMPRESS_ARM", default))


def is_made():
    """Returns whether the machine is there already."""
    return (cache() / "made").exists()


def run(folder, cpu):
    """Runs the files of a folder on an emulated processor; see `arm_child.py`."""
    root = made()
    command = [qemu(), "-cpu", cpu, "-L", str(root / "root")]
    command += [str(root / "root" / "usr" / "bin" / f"python{PYTHON}"), str(CHILD), str(folder)]
    _run(command, env={"PYTHONPATH": str(root / "site"), "PATH": os.environ["PATH"]})


def qemu():
    """Returns the path of qemu-aarch64 of version 10 or newer."""
    candidates = [os.environ.get("TFCOMPRESS_QEMU"), shutil.which("qemu-aarch64")]
    candidates.append(str(cache() / "host" / "usr" / "bin" / "qemu-aarch64"))
    for path in candidates:
        if path and pathlib.Path(path).exists():
            text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
            if int(re.search(r"version (\d+)", text.stdout)[1]) >= 10:
                return path
    return None


def made():
    """Returns the folder of the machine, unpacked the first time."""
    target = cache()
    if is_made():
        return target
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Missing(f"{tool} is missing: the machine is made of Debian's packages")
    for name in ("root", "host", "site", "wheels", "debs"):
        (target / name).mkdir(parents=True, exist_ok=True)
    packages = [f"{name}:arm64" for name in DEBIAN]
    if qemu() is None:
        packages.append("qemu-user:amd64")
    _download(target, packages)
    for deb in sorted((target / "debs").glob("*.deb")):
        place = "host" if deb.name.startswith("qemu") else "root"
        _run(["dpkg", "-x", str(deb), str(target / place)])
    link = target / "root" / "lib"
    if not link.exists():  # the interpreter of programs is looked for in /lib
        link.symlink_to("usr/lib")
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *platforms]
    pip += ["--only-binary=:all:", "--python-version", PYTHON, "--dest", str(target / "wheels")]
    _run([*pip, *WHEELS])
    for wheel in (target / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(target / "site")
    (target / "made").touch()
    return target


def _download(target, packages):
    """Downloads packages of another suite and architecture with lists of their own."""
    sources = target / "debian.sources"
    sources.write_text(
        f"Types: deb\nURIs: {_mirror()}\nSuites: {SUITE}\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    for name in ("lists/partial", "cache/archives/partial"):
        (target / name).mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": target,
        "Dir::State::lists": target / "lists",
        "Dir::Cache": target / "cache",
        "APT::Architectures::": "arm64",
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    command = ["apt-get", "-q", "-o", "APT::Architectures::=amd64"]
    command += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    _run([*command, "update"])
    _run([*command, "download", *packages], cwd=target / "debs")


def _mirror():
    """Returns the archive of Debian that this machine uses."""
    lists = [pathlib.Path("/etc/apt/sources.list"), *pathlib.Path("/etc/apt").glob("*.d/*")]
    for path in lists:
        if path.is_file():
            for uri in re.findall(r"https?://\S+", path.read_text()):
                if uri.rstrip("/").endswith("/debian"):
                    return uri
    raise Missing("no archive of Debian in /etc/apt")


def _run(command, **options):
    process = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if process.returncode:
        raise Missing(f"{' '.join(command[:4])} ...: {process.stderr.strip()[-500:]}")
