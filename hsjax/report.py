"""The numbers of an evaluation as tables that fit the terminal."""

from hsjax import terminal
from hsjax.metrics.latents import GEOMETRY, READING
from hsjax.terminal import fold

_NAMES = {
    "mse_sum": "MSE, sum over an image's values",
    "mse_per_value_x1000": "MSE, 1000 x mean per value",
    "mse_sum_sampled_z": "MSE (sum) of a sampled z",
    "knn_accuracy": "k-NN accuracy",
    "linear_probe_accuracy": "linear probe accuracy",
}
_APART = ("epoch", "test_images", "knn_neighbours", "sample_count", "latent_scale")
_COLUMNS = {
    "to_test": "to test",
    "to_reconstructions": "self",
    "kid": "KID",
    "precision": "prec.",
    "recall": "recall",
    "density": "density",
    "coverage": "cover.",
    "nearest_is_training": "memory",
    "kid_deviation": "",  # left out
}


def table(numbers: dict, name: str) -> str:
    """The contents of metrics.json as text, for a data set of this name."""
    names = dict(_NAMES)
    if k := numbers.get("knn_neighbours"):
        names["knn_accuracy"] += f" (k = {k})"
    rows = []
    for key, value in numbers.items():
        if isinstance(value, int | float) and key not in _APART:
            rows.append((names.get(key, key), value))
        if key == "terms":  # of the regulariser, whose row is above
            rows += [(f"  {name}", term) for name, term in value.items()]
    width = max(len(text) for text, _ in rows)
    lines = [
        fold(
            f"{name}: {numbers['test_images']} {numbers['split']} images, epoch {numbers['epoch']}"
        )
    ]
    lines += [f"  {text:<{width}}  {value:>9.4g}" for text, value in rows]
    if described := numbers.get("latents"):
        lines.append("latents of the test images")
        width = max(map(len, described))
        lines += [
            fold(f"  {k:<{width}}  {v:>9.4g}  {READING[k]}", width + 15)
            for k, v in described.items()
        ]
    if compared := numbers.get("geometry"):
        lines.append("latents of the test images against N(0, I) of the same n")
        width = max(map(len, GEOMETRY))
        lines.append(f"  {'':<{width}}  {'this run':>9}  {'N(0, I)':>9}")
        for k, reading in GEOMETRY.items():
            ours, normal = (row[k] for row in compared.values())
            text = f"  {k:<{width}}  {ours:>9.4g}  {normal:>9.4g}  {reading}"
            lines.append(fold(text, width + 26))
    if found := numbers.get("topology"):
        lines += topology(found)
    if fits := numbers.get("fits"):
        lines.append("trained samplers, measured on held-out latents")
        width = max(map(len, fits))
        for name, report in fits.items():
            said = ", ".join(
                f"{key.replace('_', ' ')} {value:.4g}" for key, value in report.items()
            )
            lines.append(fold(f"  {name:<{width}}  {said}", width + 4))
    for i, about in enumerate(numbers.get("ood", {}).values()):
        lines += outside(about, numbers, explained=i == 0)
    for row in numbers.get("generation", ()):
        lines += generation(row, numbers)
    lines += [fold(f"note: {note}") for note in numbers["notes"]]
    return "\n".join(lines)


def outside(about: dict, numbers: dict, *, explained: bool = True) -> list[str]:
    """Lines for one kind of images out of distribution: how to read the table, then the table."""
    inside = f"{numbers['split']} images"
    lines = [f"out of distribution: {about['images']} images of {about['name']}"]
    if explained:
        lines.append(
            f"  AUROC: how often an ood image scores higher than one of the {inside} "
            "(0.5: chance); "
            f"FPR95 in: share of ood images that pass when 95 % of the {inside} do (in positive); "
            f"FPR95 ood: share of the {inside} refused when 95 % of ood images are (ood positive)"
        )
    scores = {name: row for name, row in about.items() if isinstance(row, dict)}
    width = max(map(len, scores))
    rows = [["", "AUROC", "FPR95 in", "FPR95 ood"]]
    rows += [[name, *(f"{value:.3f}" for value in row.values())] for name, row in scores.items()]
    rows = [[f"  {name:<{width}}", *cells] for name, *cells in rows]
    return [*(fold(line, 4) for line in lines), terminal.table(rows)]


def topology(found: dict[str, dict]) -> list[str]:
    """Lines for the persistent homology of the embeddings and of each sampler's latents."""
    lines = [
        "holes and gaps: persistence divided by that of a Gaussian of the same mean and covariance",
        "  Only this ratio means anything, because in high dimensions even a Gaussian has hundreds "
        "of short loops. A ratio of 1 means no more structure than a Gaussian.",
    ]
    titles = {"h0_total": "H0 total", "h1_longest": "H1 longest", "h1_total": "H1 total"}
    width = max(map(len, found))
    rows = [[f"  {'':<{width}}", *titles.values()]]
    for name, row in found.items():
        compared = ((row[key]["ratio"], row[key]["ratio_spread"]) for key in titles)
        cells = ("-" if a is None else f"{a:.3f} ± {b:.3f}" for a, b in compared)
        rows.append([f"  {name:<{width}}", *cells])
    return [*(fold(line, 2) for line in lines), terminal.table(rows)]


def generation(row: dict, numbers: dict) -> list[str]:
    """Lines for one feature network: numbers to compare its distances with, then a table."""
    about = ", ".join(
        f"{text} {row[key]}" for key, text in (("seed", "seed"), ("steps", "steps")) if key in row
    )
    if row.get("test_accuracy") is not None:
        about += f", test accuracy {row['test_accuracy']:.3f}"
    name = row["distance"]
    lines = [
        f"samples, judged by {name}{f' ({about})' if about else ''}",
        f"  {numbers['sample_count']} samples, fitted to the {numbers['fit_split']} means; "
        f"MSE (sum) {numbers['mse_sum']:.4g}",
    ]
    if "reconstructions_to_test" in row:
        lines += [
            f"  {name} of reconstructions to test images: {row['reconstructions_to_test']:.4g}; "
            "for reference, reconstructions of training images to those of test images: "
            f"{row['train_reconstructions_to_reconstructions']:.4g}",
            f'  columns: {name} of samples to test images and to reconstructions ("self")',
        ]
    if "test_nearest_is_training" in row:
        lines.append(
            "  memory: share of the samples that are nearer to a training image than to any test "
            f"image; of the test images themselves {row['test_nearest_is_training']:.3f}"
        )
    return [*(fold(line, 4) for line in lines), _table(row["samplers"])]


def _table(samplers: dict[str, dict[str, float]]) -> str:
    """A line for each sampler."""
    width = max(map(len, samplers))
    rows = [[f"  {name:<{width}}"] for name in ("", *samplers)]
    for key in next(iter(samplers.values())):
        if title := _COLUMNS.get(key, key):
            values = (f"{row[key]:.4g}" for row in samplers.values())
            for row, cell in zip(rows, (title, *values), strict=True):
                row.append(f"{cell:>6}")
    return terminal.table(rows, gap=" ")
