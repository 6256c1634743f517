"""Files, read in one direction, each step once and in one place:

    archive.read        bytes: the checksum, the sizes, no code                 -> a dictionary
    checks.fields       types and ranges
    packing.unpack      masks and integers                                      -> tensors
    foreign.convert     of another repository, by originals.py and shapes.py    -> our names
    checks.compare      names and shapes of the network
    checkpoint.to_model                                                         -> the network
"""
