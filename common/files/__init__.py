"""Files, read in one direction, each step once and in one place:

    archive.read        bytes: the checksum, the sizes, no code                 -> a dictionary
    checks.fields       types and ranges
    packing.unpack      masks and integers of our own files                     -> tensors
    foreign.convert     or another repository's, by originals.py and shapes.py  -> our names
    checks.tensors      finite values, masks that fit
    checks.compare      names and shapes of the network, built without memory
    checks.agree        the network that the command asks for
    checkpoint.to_model                                                         -> the network
"""
