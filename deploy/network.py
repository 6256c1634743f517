"""Load the network and images for the scripts of this folder, by their flags."""
from common import cli, data, models
from common.device import device_of
from common.evaluate import heading
from common.files import checkpoint


def parser(doc):
    """An argument parser with FILE and the flags for loading it."""
    made = cli.parser(doc)
    made.add_argument("file", metavar="FILE", help="checkpoint of any method")
    cli.add_flags(made, train=False, arch=cli.RECORDED)
    return made


def load(args):
    """(checkpoint, network in eval mode on --device); prints what it has and costs."""
    ckpt = checkpoint.load(args.file, models.any_network, args.arch, args.depth, args.image_size, quantized=True)
    model = checkpoint.to_model(ckpt).to(device_of(args.device)).eval()
    print(heading(ckpt, model), flush=True)
    return ckpt, model


def images(args, ckpt, model):
    """(data set, loader of its training images, loader of its test images), normalized as the network expects."""
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    dataset = data.for_network(model, ckpt["path"], **cli.data_flags(args))
    device = next(model.parameters()).device
    return dataset, *(data.Loader(dataset, split, args.test_batch_size, device) for split in ("train", "test"))
