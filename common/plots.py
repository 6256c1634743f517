"""log.csv and curve.png of a training run, and matplotlib without a screen."""
import csv


def write_log(path, rows):
    with open(path, "w", newline="") as file:
        columns = dict.fromkeys(name for row in reversed(rows) for name in row)
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw_curve(path, rows, title):
    plt = pyplot()
    figure, left = plt.subplots(figsize=(7, 4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for name, colour in (("train_loss", "tab:blue"), ("test_loss", "tab:cyan")):
        if name in rows[-1]:
            left.plot(epochs, [row[name] for row in rows], color=colour, label=name.replace("_", " "))
    left.set(xlabel="epoch", ylabel="loss", title=title)
    left.xaxis.get_major_locator().set_params(integer=True)
    right = left.twinx()
    right.plot(epochs, [row["top1"] for row in rows], color="tab:orange", label="test top-1")
    right.set_ylabel("test accuracy (%)")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def pyplot():
    """matplotlib.pyplot, writing to files only; imported late, since it takes a second."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt
