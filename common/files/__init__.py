"""Files, read by `checkpoint.load` in one direction, each step once and in one place:

    archive.read        bytes: the checksum, the sizes, no code                 -> a dictionary

    a file of ours      checks.fields: types and ranges; packing.unpack: masks and integers -> tensors
    another one         foreign.convert, by originals.py and shapes.py                      -> our names

    checks.tensors      finite values, masks that fit
    checks.compare      names and shapes of the network, built without memory
    checks.images       classes, mean and std
    checks.agree        the network that the command asks for                   -> float32
    checkpoint.to_model                                                         -> the network
"""
