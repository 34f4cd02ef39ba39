"""What microcontrollers and their NPUs make of a file, run on this machine."""
