"""Every picture is written, shows something, and survives awkward numbers."""

import os
import subprocess
import sys
from functools import partial

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from hsjax import figures
from hsjax.metrics.topology import READING

FOOTER = "digits, n = 4, seed 0, $a$ and $b$; " + "a long identity of the run " * 12
GENERATOR = np.random.default_rng(0)
AWKWARD = np.array([[np.nan, 0.0, 1.0], [np.inf, 0.0, 0.0], [0.0, 1.0, 0.0]])
LABELS = GENERATOR.integers(0, 10, 500)


def picture(draw, tmp_path, *args, **kwargs):
    """Draw into a new folder; returns the file read back, [H, W, 3]."""
    path = tmp_path / "new" / "figures" / "x.png"
    draw(path, *args, **kwargs)
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]
    image = imread(path)[..., :3]
    assert image.shape[1] == 1200
    return image


def spread(image):
    """How far apart red, green and blue are, [H, W]; np.ptp is ten times slower on a short axis."""
    red, green, blue = np.moveaxis(image, -1, 0)
    highest = np.maximum(np.maximum(red, green), blue)
    return highest - np.minimum(np.minimum(red, green), blue)


def coloured(image):
    """The number of pixels that are neither white, black nor grey."""
    return int((spread(image) > 0.1).sum())


def ink(image):
    """The number of pixels that aren't white."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return int((np.minimum(np.minimum(red, green), blue) < 0.95).sum())


def directions(count):
    points = GENERATOR.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_tile_keeps_every_image_and_the_incomplete_row():
    images = np.arange(1, 6)[:, None, None, None] / 10 * np.ones((5, 2, 3, 1))
    image = figures.tile(images, 3)
    assert image.shape == (2 * 3 - 1, 3 * 4 - 1, 3)
    for i, value in enumerate((0.1, 0.2, 0.3, 0.4, 0.5)):
        y, x = 3 * (i // 3), 4 * (i % 3)
        np.testing.assert_allclose(image[y : y + 2, x : x + 3], value, rtol=1e-6)
    np.testing.assert_array_equal(image[3:, 7:], 1.0)  # no sixth image
    np.testing.assert_array_equal(image[2], 1.0)  # between the rows
    assert figures.tile(images[:2], 8).shape == (2, 8 * 4 - 1, 3)


def test_tile_clips_and_survives_what_is_no_number():
    image = figures.tile(np.array([-1.0, 2.0, np.nan, np.inf]).reshape(4, 1, 1, 1), 4)
    np.testing.assert_array_equal(image[0, ::2, 0], [0.0, 1.0, 0.0, 1.0])


def test_panels_stand_in_rows_of_at_most_four(tmp_path):
    black = {f"new samples (sampler {i})": np.zeros((9, 6, 10, 1 + i % 2 * 2)) for i in range(8)}
    heights = {}
    for count in (4, 5, 8):
        chosen = dict(list(black.items())[:count])
        image = picture(figures.panels, tmp_path / f"{count}", chosen, FOOTER, columns=3)
        dark = image[:, :, 0] < 0.05
        heights[count] = image.shape[0]
        assert dark.mean() > 0.2
    assert heights[8] > 1.4 * heights[4]  # a second row
    assert heights[5] > heights[8]  # of larger panels, three in a row


@pytest.mark.parametrize("labels", [None, LABELS + 10 * (LABELS % 2)])
def test_groups_on_sphere(tmp_path, labels):
    image = picture(figures.groups_on_sphere, tmp_path, directions(500), labels, FOOTER)
    assert coloured(image) > 5000
    halves = image[:, :500], image[:, 550:1080]
    assert all(coloured(half) > 1000 for half in halves)  # points on both sides of the sphere


def test_far_points_are_not_shown_as_near(tmp_path):
    """Two thirds at +z and a third at -z: seen from +z, each in the middle of a view of its own."""
    ends = np.array([[0.0, 0.0, 1.0]] * 20 + [[0.0, 0.0, -1.0]] * 10)
    image = picture(figures.groups_on_sphere, tmp_path, ends, np.array([0] * 20 + [1] * 10), "")
    blue = np.linalg.norm(image - np.array([0x33, 0x22, 0x88]) / 255, axis=-1) < 0.2
    red = np.linalg.norm(image - np.array([0xCC, 0x66, 0x77]) / 255, axis=-1) < 0.2
    blue, red = blue[:, :1080], red[:, :1080]  # the legend is right of it
    assert 50 < blue.sum() < 400
    assert 50 < red.sum() < 400
    assert np.nonzero(blue)[1].max() < 540 < np.nonzero(red)[1].min()


@pytest.mark.parametrize(
    ("points", "labelled"),
    [
        (np.tile([[0.6, 0.0, 0.8]], (12, 1)), False),
        (AWKWARD, True),
        (np.full((3, 3), np.nan), True),
    ],
    ids=["constant", "not finite", "none"],
)
def test_few_or_awkward_points(tmp_path, points, labelled):
    labels = np.arange(len(points)) % 11 if labelled else None
    sphere = picture(figures.groups_on_sphere, tmp_path / "a", points, labels, FOOTER)
    plane = picture(figures.tsne, tmp_path / "b", points[:, :2], labels, FOOTER)
    shown = np.isfinite(points).all()
    for image in (sphere, plane):
        assert ink(image) > 3000
        assert coloured(image) > 20 or not shown


@pytest.mark.parametrize(
    "labels",
    [LABELS * 7, GENERATOR.integers(0, 100, 500)],
    ids=["ten", "hundred"],
)
def test_tsne(tmp_path, labels):
    centres = 9 * GENERATOR.normal(size=(10, 2))
    points = centres[LABELS] + GENERATOR.normal(size=(500, 2))
    image = picture(figures.tsne, tmp_path, points, labels, FOOTER)
    assert coloured(image) > 5000
    assert ink(image[150:-200, 1130:]) > 100  # a legend or a colour bar


@pytest.mark.parametrize("n", [2, 128])
def test_angle_profile(tmp_path, n):
    mean = np.linspace(-0.1, 0.3, n - 1)
    mean[5:8] = np.nan
    image = picture(figures.angle_profile, tmp_path, mean, 0 * mean + 0.1, FOOTER)
    assert coloured(image) > 200
    assert (np.abs(image - 0.87) < 0.02).mean() > 0.03  # the prior's band


def test_bars_of_an_angle_profile_end_where_cosines_do(tmp_path):
    def picture_of(spread):
        return picture(figures.angle_profile, tmp_path, np.array([0.9, -0.9]), spread, FOOTER)

    np.testing.assert_array_equal(picture_of(np.array([5.0, 5.0])), picture_of(np.full(2, 9.0)))


def test_angle_profile_of_what_is_not_finite(tmp_path):
    mean = np.array([0.1, np.nan, np.inf, 0.2])
    assert ink(picture(figures.angle_profile, tmp_path, mean, mean, FOOTER)) > 5000


@pytest.mark.parametrize(
    ("n", "counts"),
    [(2, np.ones(100)), (3, np.zeros(100)), (1000, np.eye(100)[99] * 66)],
    ids=["circle", "empty", "constant"],
)
def test_overlap_histogram(tmp_path, n, counts):
    edges = np.linspace(-1, 1, 101)
    image = picture(figures.overlap_histogram, tmp_path, edges, counts, FOOTER, dimension=n)
    assert ink(image) > 5000
    assert coloured(image) > 500  # at least the key


def test_interpolations_mark_their_ends(tmp_path):
    for rows, columns in ((6, 10), (1, 2)):
        images = GENERATOR.random((rows, columns, 6, 10, 1))
        labels = np.arange(2 * rows).reshape(rows, 2) if rows > 1 else None
        image = picture(figures.interpolations, tmp_path / f"{rows}", images, FOOTER, labels)
        across = np.flatnonzero((spread(image) > 0.3).sum(axis=0) > 100)
        assert across.min() < 200  # a frame at the left
        assert across.max() > 1000  # and at the right
        assert ink(image) > 50_000


@pytest.mark.parametrize("values", [(61, 69), (52, 95), (5, 12), (75, 310), (5, 250), (1e-3, 4e4)])
def test_a_log_scale_has_numbers_to_read_it_by(values):
    axes = Figure().add_subplot(ylim=values)
    figures.log_y(axes, values)
    inside = [y for y in axes.get_yticks() if values[0] <= y <= values[1]]
    assert 2 <= len(inside) <= 9


@pytest.mark.parametrize("count", [1, 2])
def test_roc_curves_reach_where_they_go(tmp_path, count):
    """A perfect score goes along the left and the top, the worst one along the other sides."""
    lines = {"best": ([0, 0, 1], [0, 1, 1]), "worst": ([0, 1, 1], [0, 0, 1])}
    curves = {f"against {'a long path ' * 5}{i}": lines for i in range(count)}
    image = picture(figures.roc, tmp_path, curves, FOOTER)
    for colour in (figures.BLUE, figures.RED):
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        drawn = np.linalg.norm(image - np.array(rgb), axis=-1) < 0.1
        assert drawn.sum(axis=0).max() > 200  # upright
        assert drawn.sum(axis=1).max() > 200 * count  # level


TOPOLOGY = {
    name: {key: {"ratio": 1.2, "ratio_spread": 0.1} for key in READING}
    for name in ("embeddings", "prior")
}


def test_topology(tmp_path):
    image = picture(figures.topology, tmp_path / "a", TOPOLOGY, FOOTER)
    assert coloured(image) > 300
    nothing = {key: {"ratio": None, "ratio_spread": None} for key in READING}
    less = picture(figures.topology, tmp_path / "b", TOPOLOGY | {"prior": nothing}, FOOTER)
    assert 100 < coloured(less) < coloured(image)


def row(epoch, **others):
    terms = {"mean_angles": 2.0, "mean_radius": 1 / epoch, "std_angles": 3.0, "std_radius": 0.0}
    steering = {"beta": 1.0, "learning_rate": 2e-4, "images_per_second": 9.0, "seconds": 1.0}
    values = {"loss": 60 / epoch, "mse": 40 / epoch, "regulariser": 20 / epoch}
    return {"epoch": epoch, "step": 6 * epoch, **values, **terms, **steering, **others}


@pytest.mark.parametrize(
    "rows",
    [
        [row(e) for e in range(1, 41)],
        [row(1)],
        [row(1), row(2, loss=np.nan, mse=np.inf, regulariser=None)],
        [
            {
                k: v
                for k, v in row(e, loss=7.0, regulariser=0.0).items()
                if "_r" not in k and "_a" not in k
            }
            for e in (1, 2)
        ],
    ],
    ids=["many", "one", "not finite", "constant, without terms"],
)
def test_training_curves(tmp_path, rows):
    assert coloured(picture(figures.training_curves, tmp_path, rows, FOOTER)) > 300


def test_a_footer_is_wrapped_not_cut(tmp_path):
    """A longer footer takes more height, leaves the margins white and keeps the panel's size."""
    images = {"x": np.zeros((2, 8, 8, 1))}
    short = picture(figures.panels, tmp_path / "a", images, "short", columns=2)
    long = picture(figures.panels, tmp_path / "b", images, FOOTER, columns=2)
    assert long.shape[0] > short.shape[0] + 30
    foot = long[short.shape[0] - 20 :]
    assert ink(foot) > 1000
    assert ink(foot[:, :20]) == ink(foot[:, -20:]) == 0


def test_a_picture_is_replaced_whole(tmp_path, monkeypatch):
    """If drawing fails, the picture that was there stays."""
    images = {"x": np.zeros((2, 8, 8, 1))}
    path = tmp_path / "x.png"
    figures.panels(path, images, "before")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            figures.panels(path, images, "after")
    assert path.read_bytes() == before
    figures.panels(path, images, "after")
    assert path.read_bytes() != before


HOSTILE = {
    **{"text.usetex": True, "savefig.dpi": 30, "savefig.bbox": "tight", "axes.facecolor": "black"},
    **{"font.size": 40, "lines.linestyle": "none", "image.cmap": "hot", "path.sketch": (9, 9, 9)},
    **{"figure.dpi": 20, "axes.formatter.use_locale": True, "savefig.transparent": True},
}


@pytest.mark.parametrize(
    ("draw", "arguments"),
    [
        (figures.panels, ({"x": np.full((2, 8, 8, 1), 0.3)}, FOOTER)),
        (figures.interpolations, (np.full((2, 3, 8, 8, 1), 0.3), FOOTER)),
        (figures.groups_on_sphere, (directions(30), LABELS[:30], FOOTER)),
        (figures.tsne, (directions(30)[:, :2], LABELS[:30], FOOTER)),
        (figures.angle_profile, (np.ones(3), np.ones(3), FOOTER)),
        (partial(figures.overlap_histogram, dimension=3), (np.linspace(-1, 1, 5), np.ones(4), "")),
        (figures.roc, ({"a": {"b": ([0.0, 0.5, 1.0], [0.0, 0.9, 1.0])}}, FOOTER)),
        (figures.topology, (TOPOLOGY, FOOTER)),
        (figures.training_curves, ([row(1), row(2)], FOOTER)),
    ],
)
def test_the_users_settings_neither_reach_a_picture_nor_change(tmp_path, draw, arguments):
    draw(tmp_path / "plain.png", *arguments)
    with matplotlib.rc_context(HOSTILE):
        before = dict(matplotlib.rcParams)
        draw(tmp_path / "hostile.png", *arguments)
        assert dict(matplotlib.rcParams) == before
    plain, hostile = (tmp_path / f"{name}.png" for name in ("plain", "hostile"))
    assert plain.read_bytes() == hostile.read_bytes()


@pytest.mark.parametrize(("backend", "kept"), [("Qt4Agg", False), ("svg", True)])
def test_pyplot_is_not_imported_and_its_backend_not_needed(backend, kept):
    """A backend that matplotlib doesn't know is passed over; another one stays for pyplot."""
    code = (
        "import sys, hsjax.tradeoff, matplotlib; assert 'matplotlib.pyplot' not in sys.modules; "
        f"assert (matplotlib.rcParams._get('backend') == '{backend}') == {kept}"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"MPLBACKEND": backend}
    )
