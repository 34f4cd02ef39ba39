"""`python -m tfcompress` is the command line."""

from tfcompress.cli import main

main(prog_name="tfcompress")
