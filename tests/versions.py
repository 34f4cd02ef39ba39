"""Prints what setup.cfg asks for at its lowest, or the versions that are installed.

python tests/versions.py lowest      # requirements, for pip
python tests/versions.py installed
"""

import configparser
import importlib.metadata
import pathlib
import re
import sys

SETUP = pathlib.Path(__file__).resolve().parent.parent / "setup.cfg"


def requirements():
    """Returns the lowest version of each package, by name."""
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    lines = setup["options"]["install_requires"].split()
    return dict(re.match(r"([\w-]+)>=([\w.]+)", line).groups() for line in lines)


def main():
    """Prints one line for each package."""
    for name, version in requirements().items():
        if sys.argv[1] == "installed":
            version = importlib.metadata.version(name)
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
