# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of hsjax
#
# hsjax is a JAX library and test bench for the latent spaces of autoencoders, among them latents
# in hyperspherical coordinates. This notebook plays with a trained model and shows why high
# dimensions are sparse. It draws the coordinates on a sphere and trains two models side by side.
# Then it measures the cost and puts the loss into a model of your own.
#
# **What the paper claims.** The paper, [arXiv 2507.15900](https://arxiv.org/abs/2507.15900), is
# also called "Is the sparsity of high dimensional spaces the reason why VAEs are poor generative
# models?". A standard VAE spreads its latents over the equator of a
# high-dimensional sphere. Almost all of the volume is there, and the data fill almost none of it.
# So a latent drawn there decodes to nothing meaningful. Pushing the angles of the latents away from
# the equator gathers them on a small, dense island, and samples drawn on it decode better.
#
# **What our runs found** ([leaderboard](../docs/leaderboard.md),
# [results](../docs/results.md)):
#
# - The island is there. On the digits, a Gaussian fitted to it beats the standard VAE's prior.
# - With the *same* sampler for both models, the paper's compression does not improve the samples.
# - On the small digits used below, differences between models are often noise. This tour shows how
#   things work, not which model wins.
#
# The tour runs from top to bottom in about two minutes on two CPU cores, and uses a GPU or TPU if
# there is one. To edit it, change `notebooks/tour.py`, from which the notebook is made.

# %% [markdown]
# ## 1. Setup
#
# Inside a clone of the repository there is nothing to set. Elsewhere, such as on Colab, fill in one
# of the two variables, `REPOSITORY` or `SOURCE`. Otherwise the parts that need hsjax are skipped.

# %%
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from IPython.display import HTML, Image, Markdown, display

REPOSITORY = ""  # OWNER/NAME on GitHub; this also shows a badge that opens the notebook on Colab
SOURCE = f"https://github.com/{REPOSITORY}" if REPOSITORY else ""  # or a wheel, or a clone
EPOCHS = int(os.environ.get("HSJAX_TOUR_EPOCHS", "100"))  # of the training in part 5
SHORT = EPOCHS < 20  # then the other parts are shortened as well

if REPOSITORY:
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    address = (
        f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/tour.ipynb"
    )
    display(Markdown(f"[![Open in Colab]({badge})]({address})"))


def find_checkout():
    """A clone around this notebook, or the one that SOURCE names."""
    wheel, clone = SOURCE.endswith(".whl"), Path("hsjax-checkout")
    places = [Path(".."), Path("."), clone, *([] if wheel or not SOURCE else [Path(SOURCE)])]
    there = [place.resolve() for place in places if (place / "hsjax" / "coordinates.py").is_file()]
    if not there and SOURCE and not wheel:
        subprocess.run(["git", "clone", "--quiet", "--depth=1", SOURCE, str(clone)], check=True)
        there = [clone.resolve()]
    return there[0] if there else None


checkout = find_checkout()
if not list(importlib.metadata.distributions(name="hsjax")) and (checkout or SOURCE):
    tpu, gpu = importlib.util.find_spec("libtpu"), shutil.which("nvidia-smi")
    extra = "[tpu]" if tpu else "[cuda]" if gpu else "[train]"
    local = checkout or Path(SOURCE)
    wanted = f"{local}{extra}" if local.exists() else f"hsjax{extra} @ {SOURCE}"
    print("installing", wanted, flush=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", wanted], check=True)
    # Modules that this session has already imported keep their old version.
    for name in ("jax", "matplotlib", "numpy"):
        old = getattr(sys.modules.get(name), "__version__", None)
        if old not in (None, importlib.metadata.version(name)):
            raise SystemExit(f"installed a newer {name}: restart this session and run it again")
    importlib.invalidate_caches()
if checkout:
    sys.path.insert(0, str(checkout))  # for benchmarks, which are not installed

AVAILABLE = importlib.util.find_spec("hsjax") is not None
if AVAILABLE:
    import jax

    device = jax.devices()[0]
    print(f"{len(jax.devices())} x {device.device_kind} ({device.platform}), jax {jax.__version__}")
else:
    print("hsjax is not here: set REPOSITORY or SOURCE above. Until then only part 3 runs.")

# %%
import tempfile
import time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation
from PIL import Image as Picture
from scipy.special import betainc

if AVAILABLE:
    import jax.numpy as jnp
    import optax
    from flax import nnx

    import hsjax
    from hsjax import (
        batches,
        coordinates,
        data,
        evaluation,
        figures,
        inference,
        losses,
        samplers,
        statistics,
        training,
    )
    from hsjax.figures import BLUE, GREEN, HALO, ORANGE, RED

# %% [markdown]
# ## 2. Play with a trained model
#
# `models/` has six small trained models. `hsjax.load` opens one without its training data. The one
# below was trained on MNIST for 30 epochs. Its latents have 128 coordinates and lie on a sphere.


# %%
def show_images(rows, size=(8.0, 3.2)):
    """Rows of images by name, {name: [count, height, width, channels]}."""
    _, axes = plt.subplots(figsize=size, layout="constrained")
    strip = np.concatenate([np.asarray(images) for images in rows.values()])
    columns = len(next(iter(rows.values())))
    axes.imshow(figures.tile(strip, columns=columns))
    height = strip.shape[1] + 1
    axes.set_yticks([height * (i + 0.5) for i in range(len(rows))], list(rows), fontsize=9)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    plt.show()


trained = None
if checkout and AVAILABLE:
    trained = hsjax.load(checkout / "models" / "mnist_spread")
    names = ("prior", "gaussian", "projected_gmm")
    show_images({name: trained.sample(12, sampler=name, seed=1) for name in names})
else:
    print("models/ comes with a clone: this part is left out")

# %% [markdown]
# Each row is a sampler. Training pulls the latents of a VAE towards the prior. The two others are
# fitted to the latents of the training images: one Gaussian, and a mixture of ten Gaussians that is
# projected to the sphere. The mixture is the best here.
#
# The first picture below interpolates between three pairs of new images, along the sphere. In the
# second, each row turns one angle of a single latent, by up to 0.6 rad either way. The first three
# rows turn the angles that vary most among new latents, the last row one of the
# many that hardly vary. The model uses about a fifth of its 128 directions, and the decoder ignores
# the others.

# %%
if trained:
    images = trained.sample(6, sampler="projected_gmm", seed=2)
    ways = trained.interpolate(images[:3], images[3:], steps=12)
    show_images({f"pair {i + 1}": way for i, way in enumerate(ways)})

    radius, angles = coordinates.to_spherical(trained.encode(images[:1]).mean[0])
    _, many = coordinates.to_spherical(trained.sample_latents(500, sampler="projected_gmm"))
    order = np.argsort(-np.std(many, axis=0))
    turned = {}
    for k in (*order[:3], order[-1]):
        steps = jnp.linspace(-0.6, 0.6, 12)[:, None] * (jnp.arange(len(angles)) == k)
        z = coordinates.to_cartesian(jnp.full(12, radius), angles + steps)
        turned[f"φ{k + 1}"] = trained.decode(z)
    show_images(turned)

# %% [markdown]
# ## 3. Why high dimensions are sparse
#
# Three facts about $x \sim N(0, I_n)$, the prior of a VAE:
#
# - Its length is about $\sqrt n$, with a standard deviation near 0.7 at any $n$.
# - Two samples are almost orthogonal, the more so the larger $n$ is.
# - Seen from any pole, the samples lie near the equator. The volume element has the factor
#   $\sin^{n-1-k} \varphi_k$ (`coordinates.log_volume`, the paper's appendix A.3). Up to a constant,
#   this factor is the density of the $k$-th angle. It peaks at $\pi/2$, and $\cos\varphi_k$ has the
#   standard deviation $1/\sqrt{n-k+1}$.

# %%
SIZES = (2, 8, 32, 128, 512)
gaussian = {n: np.random.default_rng(n).normal(size=(5000, n)) for n in SIZES}
lengths_of = {n: np.linalg.norm(x, axis=1) for n, x in gaussian.items()}
unit_of = {n: x / lengths_of[n][:, None] for n, x in gaussian.items()}
cosines_of = {n: np.sum(unit[::2] * unit[1::2], axis=1) for n, unit in unit_of.items()}

figure, ((lengths, overlaps), (first, others)) = plt.subplots(
    2, 2, figsize=(10, 7), layout="constrained"
)
phi = np.linspace(1e-3, np.pi - 1e-3, 500)


def marginal(power):
    """The density of an angle between 0 and π that is proportional to sin^power."""
    density = np.sin(phi) ** power
    return density / np.sum(density * (phi[1] - phi[0]))


def describe(axes, title="", x="", y=""):
    """Title, axis labels, a light grid."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


for i, n in enumerate(SIZES):
    style = {"color": f"C{i}", "label": f"n = {n}"}
    outline = {"histtype": "step", "density": True, "linewidth": 1.5} | style
    lengths.hist(lengths_of[n] / n**0.5, bins=np.linspace(0, 2.5, 126), **outline)
    overlaps.hist(cosines_of[n], bins=np.linspace(-1, 1, 81), **outline)
    if n > 2:  # for n = 2 the only angle is the last one, which covers a full turn
        first.plot(phi, marginal(n - 2), **style)
    if n == 32:  # for one n, a histogram of the samples themselves
        bars = {"bins": 60, "density": True, "color": f"C{i}", "alpha": 0.4}
        first.hist(np.arccos(unit_of[n][:, 0]), **bars, label="n = 32, samples")
for i, k in enumerate((1, 64, 112, 124, 126)):
    others.plot(phi, marginal(127 - k), color=f"C{i}", label=f"k = {k}, power {127 - k}")
describe(lengths, "Length", "‖x‖ / √n", "density")
describe(overlaps, "Almost-orthogonality", "cosine between two samples", "density")
describe(first, "First angle: power n − 2 of the sine", "φ₁, radians", "density")
describe(others, "Angles of n = 128: power n − 1 − k", "φₖ, radians", "density")
for axes in figure.axes:
    axes.legend(fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# So an island covers very little of the sphere. The share within 60° of a pole halves about every
# five dimensions. At $n = 128$ only about one prior sample in a billion falls there.

# %%
print("   n   ‖x‖ / √n         cosine of two samples   area within 60° of a pole")
for n in SIZES:
    length, cosine = lengths_of[n] / n**0.5, cosines_of[n]
    # The cap's share is half of a regularised incomplete beta function of sin² 60°.
    cap = 0.5 * betainc((n - 1) / 2, 0.5, np.sin(np.pi / 3) ** 2)
    print(
        f"{n:4d}   {length.mean():.3f} ± {length.std():.3f}    {cosine.mean():6.3f} ± "
        f"{cosine.std():.3f}         {cap:.2g}"
    )

# %%
if not AVAILABLE:
    raise SystemExit("the rest needs hsjax: set REPOSITORY or SOURCE in part 1")

# %% [markdown]
# ## 4. The coordinates at work
#
# The coordinates are $x_k = r \sin\varphi_1 \cdots \sin\varphi_{k-1} \cos\varphi_k$. At $n = 3$
# they describe a globe with axis 1 as its north pole: $\varphi_1$ is the angle from the pole,
# $\varphi_2$ the longitude. Drag the slider to turn it, or press play. A viewer without scripts
# doesn't show it.

# %%
turn = jnp.linspace(0.0, 2 * jnp.pi, 181)
degrees = jnp.radians(jnp.arange(30.0, 180.0, 30.0))


def on_sphere(*angles):
    """Unit vectors [..., 3] of two arrays of angles that broadcast."""
    angles = jnp.stack(jnp.broadcast_arrays(*angles), axis=-1)
    return np.asarray(coordinates.to_cartesian(jnp.ones(angles.shape[:-1]), angles))


parallels = on_sphere(degrees[:, None], turn)  # lines of one φ₁
meridians = on_sphere(turn[:91], jnp.radians(jnp.arange(-180.0, 180.0, 30.0))[:, None])  # of one φ₂


def draw_sphere(axes, azimuth, points, colours=BLUE, elevation=25.0):
    """The near side of S² as seen from far away, with its lines; axis 1 points up."""
    a, e = np.radians((azimuth, elevation))
    view = np.array([np.sin(e), np.cos(e) * np.cos(a), np.cos(e) * np.sin(a)])
    right = np.array([0.0, -np.sin(a), np.cos(a)])
    screen = np.stack([right, np.cross(view, right)], axis=-1)  # [3, 2]

    for curves, colour in ((parallels, ORANGE), (meridians, GREEN)):
        flat = np.where((curves @ view > 0)[..., None], curves @ screen, np.nan)
        axes.plot(*np.moveaxis(flat, -1, 0).swapaxes(1, 2), color=colour, linewidth=0.7, zorder=1)
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.5"))
    points = np.asarray(points)
    near = points @ view > 0
    shown = colours if isinstance(colours, str) else colours[near]
    axes.scatter(*(points[near] @ screen).T, c=shown, s=9, linewidths=0, zorder=2)
    for k, tip in enumerate(np.eye(3)):
        if tip @ view > -0.1:
            look = {"weight": "bold", "ha": "center", "va": "center", "path_effects": HALO}
            axes.text(*(1.15 * tip @ screen), f"{k + 1}", **look)
    axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
    axes.set_axis_off()


uniform = coordinates.project(jax.random.normal(jax.random.key(0), (600, 3)), 1.0)

globe = plt.figure(figsize=(4.5, 4.7), dpi=70)
plt.close(globe)
axes = globe.add_axes((0, 0, 1, 0.93))


def frame(azimuth):
    """One picture of the globe that turns."""
    axes.clear()
    draw_sphere(axes, azimuth, uniform)
    axes.set_title("orange: one φ₁ each; green: one φ₂ each", fontsize=10)


turning = FuncAnimation(globe, frame, frames=range(0, 360, 180 if SHORT else 30), interval=200)
HTML(turning.to_jshtml())

# %% [markdown]
# Next we push the cosines: 600 points move down the gradient of `losses.spherical_kl`, the
# objective of equation (4), with nothing to resist them. The paper's compression asks for
# $E[\cos\varphi_k] = 1$ and leaves the spread of the cosines open. By default hsjax asks for the
# prior's spread. Both at once are impossible, and the result is a compromise: most points gather,
# and some turn away to keep the spread. The targets of `mnist:spread` are mean *and* spread 0: all
# points then lie at one of the two ends of the last axis. Colours are the longitudes the points
# started from. In a VAE the reconstruction error keeps the points apart.


# %%
def pushed(spec, steps, rate=20.0):
    """The uniform points after some steps of gradient descent on the sphere of radius √3."""

    def loss(x):
        return losses.spherical_kl(x, jnp.ones_like(x), spec).mean_angles

    def body(_, x):
        return coordinates.project(x - rate * jax.grad(loss)(x))

    return jax.jit(lambda x: jax.lax.fori_loop(0, steps, body, x))(coordinates.project(uniform))


paper = losses.paper_spec(3, compression="full")
spread = losses.paper_spec(3, mean_target=0.0, spread_target=0.0)
stages = {
    "uniform": coordinates.project(uniform),
    "towards cos φₖ = 1, on the way": pushed(paper, 60),
    "towards cos φₖ = 1": pushed(paper, 400),
    "mean and spread of cos φₖ to 0": pushed(spread, 100),
}
figure, row = plt.subplots(1, 4, figsize=(12, 3.6), layout="constrained")
hues = plt.get_cmap("hsv")(coordinates.to_spherical(uniform)[1][:, 1] / (2 * np.pi) + 0.5)
hues[:, :3] *= 0.8  # legible on white
for axes, (title, points) in zip(row, stages.items(), strict=True):
    draw_sphere(axes, 50.0, coordinates.project(points, 1.0), hues)
    mean = ", ".join(f"{c:.2f}" for c in coordinates.cosines(points).mean(axis=0))
    axes.set_title(f"{title}\nmean cosines {mean}", fontsize=9)
plt.show()

# %% [markdown]
# Finally, a round trip. The angles come from `atan2`, and the products of sines from sums of
# logarithms. So float32 loses only a few units in the last place at any $n$.

# %%
print("        n   angles   largest error of the round trip, in units of r")
for n in (4, 128, 100_000):  # 4: a 3-sphere
    x = jax.random.normal(jax.random.key(1), (10, n))
    radius, angles = coordinates.to_spherical(x)
    error = jnp.abs(coordinates.to_cartesian(radius, angles) - x) / radius[:, None]
    print(f"{n:>9,}  {angles.shape[-1]:>7,}  {error.max():.1e}")

# %% [markdown]
# ## 5. Train two VAEs side by side
#
# `configs/digits_standard.py` and `configs/digits_compressed.py` train the same small ResNet with
# $n = 32$ on the 8×8 digits of scikit-learn. The first uses the Kullback-Leibler divergence (1),
# the second the objective in hyperspherical coordinates (4) to (8). `hsjax train` does the same and
# keeps checkpoints. Here we call the public functions of `hsjax.training` one by one.
#
# The right panel shows the mean of $\cos\varphi_k$ over the test images: 0 is the equator. The two
# regularisers measure different things, so don't compare their heights.

# %%
digits = data.load("digits")
images = jnp.asarray(digits.train_images)


def prepare(name):
    """A run of configs/NAME.py, not yet started."""
    config = importlib.import_module(f"hsjax.configs.{name}").get_config()
    config.train.epochs = EPOCHS
    config.evaluate.metrics = ("frechet", "knn", "latents")
    if SHORT:
        config.model.stages = (8,)
        config.evaluate.samplers = ("prior", "projected_gaussian")
        config.evaluate.feature_steps = 2
    setup, state = training.create(config, images.shape[1:], len(images))
    objective = training.build_objective(config)
    return SimpleNamespace(
        config=config,
        setup=setup,
        programs=training.compile_programs(setup, len(images)),
        objective=objective,
        model=inference.build_inference(setup, objective),
        state=state,
        rows=[],
    )


def train_an_epoch(run):
    """Train one more epoch, and append its mean terms, by name, as a row."""
    start = time.perf_counter()
    examples = images, None  # the labels are for methods that use them
    run.state = training.train_epoch(
        run.programs, run.objective, run.state, examples, scan=training.runs_scan(run.config)
    )
    row = {name: float(values.mean()) for name, values in run.state.history.items()}
    run.rows.append(row | {"seconds": time.perf_counter() - start})


def draw_curves(panels):
    """The two runs so far."""
    for axes in panels:
        axes.clear()
    for (name, run), colour in zip(runs.items(), (BLUE, RED), strict=True):
        epochs, style = np.arange(1, len(run.rows) + 1), {"color": colour, "label": name}
        panels[0].plot(epochs, [row["mse"] for row in run.rows], **style)
        panels[1].plot(epochs, [row["beta"] * row["regulariser"] for row in run.rows], **style)
        test = inference.embed(run.model, run.state, digits.test_images, 100)
        cosines = coordinates.cosines(test.mean).mean(axis=0)
        panels[2].plot(np.arange(1, len(cosines) + 1), cosines, "o-", markersize=3, **style)
    describe(panels[0], "Reconstruction error, sum over an image", "epoch")
    describe(panels[1], "β × regulariser", "epoch")
    describe(panels[2], f"Angles after epoch {len(run.rows)}", "k", "mean of cos φₖ")
    figures.log_y(panels[0], [row["mse"] for run in runs.values() for row in run.rows])
    panels[2].set_ylim(-1, 1)
    panels[2].legend(fontsize=9, frameon=False)


runs = {name: prepare(f"digits_{name}") for name in ("standard", "compressed")}

# %%
curves, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
plt.close(curves)  # or it would be shown once more at the end
screen, shown = display(curves, display_id=True), time.monotonic()
for epoch in range(1, EPOCHS + 1):
    for run in runs.values():
        train_an_epoch(run)
    if epoch in (1, EPOCHS) or time.monotonic() - shown > 2.0:
        draw_curves(panels)
        screen.update(curves)
        shown = time.monotonic()

for name, run in runs.items():
    run.step = float(np.median([row["seconds"] for row in run.rows])) / run.setup.steps
    print(f"{name}: mse {run.rows[-1]['mse']:.3f}, {1e3 * run.step:.2f} ms a step (median)")

# %% [markdown]
# ## 6. Look at the latents
#
# `evaluation.evaluate` embeds the data, measures the latents, and draws and decodes samples.
# Samplers are fitted to the latent means of the training images. The distance is the Fréchet
# distance between features of a small classifier, for 360 samples of each sampler. It is not an
# FID. With one seed and so few images, small differences mean nothing.

# %%
for run in runs.values():
    parts = run.config, run.setup, run.model, run.state
    run.found = evaluation.evaluate(*parts, digits)

numbers = {name: run.found.numbers for name, run in runs.items()}
print(f"{'':42}" + "".join(f"{name:>12}" for name in runs))
for text, key in (
    ("test MSE (sum), z = μ", "mse_sum"),
    ("test MSE (sum), z sampled", "mse_sum_sampled_z"),
    ("k-NN accuracy of the latents", "knn_accuracy"),
):
    print(f"{text:42}" + "".join(f"{numbers[name][key]:12.3f}" for name in runs))
for text, key in (
    ("mean length of μ", "radius_mean"),
    ("mean cosine between two latents", "overlap_mean"),
    ("effective rank", "effective_rank"),
):
    print(f"{text:42}" + "".join(f"{numbers[name]['latents'][key]:12.3f}" for name in runs))
judged = {name: numbers[name]["generation"][0] for name in runs}
distance = judged["standard"]["distance"]
for key, to in (("to_test", "test images"), ("to_reconstructions", "reconstructions")):
    print(f"{distance} of samples to {to}")
    for sampler in judged["standard"]["samplers"]:
        cells = (f"{judged[name]['samplers'][sampler][key]:12.1f}" for name in runs)
        print(f"  {sampler:40}" + "".join(cells))

# %% [markdown]
# In each pair of pictures below, the standard VAE comes first. The first pair averages the 32
# coordinates in three groups and projects them to S², as in the paper's figure 1b. The latents lie
# all around the sphere, or on an island.

# %%
folder = Path(tempfile.mkdtemp(prefix="hsjax-tour-"))


def show(draw, *arguments, **keywords):
    """A picture of hsjax.figures, which draws to a file; in 64 colours, to keep this file small."""
    draw(folder / "picture.png", *arguments, **keywords)
    Picture.open(folder / "picture.png").convert("RGB").quantize(64).save(folder / "picture.png")
    display(Image((folder / "picture.png").read_bytes(), width=760))


for name, run in runs.items():
    show(figures.groups_on_sphere, run.found.arrays["groups"], digits.test_labels, name)

# %% [markdown]
# Next, the cosines of the angles. The paper's compression asks for 1 everywhere, which is out of
# reach: $\cos\varphi_1 = 1$ leaves nothing for the other coordinates.

# %%
for name, run in runs.items():
    arrays = run.found.arrays
    show(figures.angle_profile, arrays["cosine_mean"], arrays["cosine_spread"], name)

# %% [markdown]
# Next, the cosines between pairs of latents. The standard VAE's have a wider distribution than
# those of uniform directions, because it uses only some of its 32 coordinates (see the effective
# rank above).

# %%
for name, run in runs.items():
    edges, counts = run.found.arrays["overlap_edges"], run.found.arrays["overlap_counts"]
    show(figures.overlap_histogram, edges, counts, name, dimension=run.config.model.latent_dim)

# %% [markdown]
# Next, images from each sampler. A compressed VAE has to be sampled on its island. From the prior
# or the whole sphere its images are far worse than the standard VAE's. The paper compares a
# distribution fitted to the island with the *prior* of the standard VAE. That compares two samplers
# as well as two models. A fitted distribution can help the standard VAE, too: see `projected_gmm`.

# %%
for name, run in runs.items():
    show(figures.panels, run.found.panels, name)

# %% [markdown]
# Finally, sampling and interpolating along the sphere by hand:

# %%
for name, run in runs.items():
    means = inference.embed(run.model, run.state, digits.train_images, 100).mean
    parameters = samplers.projected_gaussian.fit(means)
    z = samplers.projected_gaussian.sample(parameters, jax.random.key(2), 10)
    pairs = ((0, 1), (3, 4), (5, 6))
    path = [samplers.slerp(means[i], means[j], jnp.linspace(0, 1, 10)) for i, j in pairs]
    decoded = inference.decode(run.model, run.state, np.concatenate([z, *path]), 20)
    labels = [f"a {digits.train_labels[i]} to a {digits.train_labels[j]}" for i, j in pairs]
    figure, axes = plt.subplots(figsize=(7, 2.9), layout="constrained")
    axes.imshow(figures.tile(decoded, columns=10))
    axes.set_yticks([4, 13, 22, 31], ["samples", *labels], fontsize=9)
    axes.set_xticks([])
    axes.set_title(name, fontsize=10)
    plt.show()

# %% [markdown]
# ## 7. What the objective costs
#
# We time the value and gradient of the regulariser alone, at batch 200, in three forms:
#
# - the plain divergence (1);
# - the spherical objective as `hsjax.losses` computes it, with a running sum and a derivative in
#   closed form, O(n);
# - the same objective with the $n \times n$ mask that the paper describes, O(n²).
#
# The first two run in turns, so other load on the machine slows both. The mask runs last, because
# its memory use slows what follows. The numbers are medians over rounds.

# %%
BATCH, ROUNDS = 200, 3 if SHORT else 9
if checkout:
    from benchmarks import measure
    from benchmarks.objective import objective


def timed(n, forms):
    """Milliseconds of value and gradient of these forms, run in turns."""
    key = jax.random.key(n)
    mean = jax.random.normal(key, (BATCH, n))
    log_variance = 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (BATCH, n))
    spec = losses.paper_spec(n)

    def call(statistics):
        def spherical(mean, log_variance):
            return objective(statistics, spec, mean, jnp.exp(0.5 * log_variance))

        form = losses.gaussian_kl if statistics is None else spherical
        program = jax.jit(jax.value_and_grad(form, (0, 1))).lower(mean, log_variance).compile()
        return lambda: program(mean, log_variance)

    calls = {name: call(statistics) for name, statistics in forms.items()}
    seconds = measure.interleave(calls, ROUNDS, calls=4)
    return {name: 1e3 * float(np.median(row)) for name, row in seconds.items()}


def compare_costs(sizes):
    """Print and draw the times at these n."""
    in_turns = {"plain KLD": None, "spherical, O(n)": statistics.coordinate_moments}
    times = {n: timed(n, in_turns) for n in sizes}
    for n in sizes:
        times[n] |= timed(n, {"spherical, n × n mask": measure.masked_statistics})
    print(f"{'n':>4}" + "".join(f"{name + ', ms':>27}" for name in times[sizes[0]]))
    for n, row in times.items():
        print(f"{n:>4}" + "".join(f"{value:>27.3f}" for value in row.values()))
    step = 1e3 * runs["standard"].step
    print(f"a whole training step of part 5 (n = 32, batch 100): {step:.2f} ms")

    _, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, colour in zip(times[sizes[0]], (BLUE, RED, ORANGE), strict=True):
        axes.plot(sizes, [times[n][name] for n in sizes], "o-", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, sizes)
    axes.set_yscale("log")
    describe(axes, f"Value and gradient, batch {BATCH}", "n", "milliseconds")
    axes.legend(fontsize=9, frameon=False)
    plt.show()


if checkout:
    compare_costs((32, 64) if SHORT else (32, 64, 128, 256))
else:
    print("benchmarks/ comes with a clone: this part is left out")

# %% [markdown]
# What counts is the extra time over the plain divergence, compared with a whole training step. That
# step grows with the network and the images. On an accelerator, most of a short time goes into
# starting a program, so it hardly grows with $n$. `python -m benchmarks.overhead` measures the
# overhead of a real training step against $n$; [docs/performance.md](../docs/performance.md) has a
# table.

# %% [markdown]
# ## 8. Drop the loss into a model of your own
#
# This takes three lines of hsjax, marked below: project $z$ before the decoder, compute the terms,
# add them up. The first example is a plain VAE in Flax NNX. Its encoder and its decoder have one
# hidden layer each.

# %%
N = 16
x_train = batches.prepare(images).reshape(len(images), -1)  # [1437, 64] in [0, 1]


class MLP(nnx.Module):
    """A VAE with one hidden layer each in the encoder and the decoder."""

    def __init__(self, pixels, n, hidden=128, *, rngs):
        self.inwards = nnx.Linear(pixels, hidden, rngs=rngs)
        self.latent = nnx.Linear(hidden, 2 * n, rngs=rngs)
        self.outwards = nnx.Linear(n, hidden, rngs=rngs)
        self.pixels = nnx.Linear(hidden, pixels, rngs=rngs)

    def __call__(self, x, key):
        """[batch, pixels] -> μ [batch, n], σ [batch, n] and reconstructions [batch, pixels]."""
        mean, log_variance = jnp.split(self.latent(nnx.relu(self.inwards(x))), 2, axis=-1)
        std = jnp.exp(0.5 * log_variance)
        z = mean + std * jax.random.normal(key, mean.shape)
        z = coordinates.project(z)  # hsjax
        return mean, std, nnx.sigmoid(self.pixels(nnx.relu(self.outwards(z))))


spec = losses.paper_spec(N, compression="full", angle_gain=1.0)


@nnx.jit
def nnx_step(model, optimizer, x, key):
    """One step of Adam; returns the terms of the loss."""

    def loss_of(model):
        mean, std, output = model(x, key)
        mse = losses.squared_error(x, output)
        terms = losses.spherical_kl(mean, std, spec)  # hsjax
        loss = mse + losses.total(terms, spec)  # hsjax
        return loss, {"loss": loss, "mse": mse, **terms._asdict()}

    gradients, terms = nnx.grad(loss_of, has_aux=True)(model)
    optimizer.update(model, gradients)
    return terms


def told(epoch, terms):
    """The terms of a step as a line."""
    values = "  ".join(f"{name} {float(value):.3f}" for name, value in terms.items())
    print(f"epoch {epoch:>2}  {values}")


model = MLP(x_train.shape[1], N, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)
key, last = jax.random.key(0), min(EPOCHS, 30)
for epoch in range(1, last + 1):
    order_key, noise_key = jax.random.split(jax.random.fold_in(key, epoch))
    for index, rows in enumerate(batches.epoch_order(order_key, len(x_train), 100)):
        terms = nnx_step(model, optimizer, x_train[rows], jax.random.fold_in(noise_key, index))
    if epoch in (1, 2, 5, 10, 20, last):
        told(epoch, terms)

# %% [markdown]
# The second example uses JAX alone: the parameters are a dictionary of arrays, and an epoch is one
# `lax.scan`. Its targets are those of `mnist:spread`: mean and spread of the cosines are 0. A
# `Spec` is a pytree and an argument of the jitted function, so a new target needs no compilation.


# %%
def initial(key, pixels, n, hidden=128):
    """Weights and biases by name."""
    sizes = {"in": (pixels, hidden), "latent": (hidden, 2 * n), "out": (n, hidden)}
    sizes["pixels"] = (hidden, pixels)
    keys = jax.random.split(key, len(sizes))
    return {
        name: (jax.random.normal(k, (a, b)) / a**0.5, jnp.zeros(b))
        for k, (name, (a, b)) in zip(keys, sizes.items(), strict=True)
    }


def loss_of(params, spec, x, key):
    """The loss of a batch [batch, pixels], and its terms."""

    def layer(name, y):
        weights, bias = params[name]
        return y @ weights + bias

    mean, log_variance = jnp.split(layer("latent", jax.nn.relu(layer("in", x))), 2, axis=-1)
    std = jnp.exp(0.5 * log_variance)
    z = coordinates.project(mean + std * jax.random.normal(key, mean.shape))  # hsjax
    output = jax.nn.sigmoid(layer("pixels", jax.nn.relu(layer("out", z))))
    mse = losses.squared_error(x, output)
    terms = losses.spherical_kl(mean, std, spec)  # hsjax
    loss = mse + losses.total(terms, spec)  # hsjax
    return loss, {"loss": loss, "mse": mse, **terms._asdict()}


adam = optax.adam(2e-3)


@jax.jit
def jax_epoch(params, state, spec, key):
    """All batches of an epoch; returns the terms of its last step."""
    order_key, noise_key = jax.random.split(key)
    order = batches.epoch_order(order_key, len(x_train), 100)

    def step(carry, batch):
        params, state = carry
        rows, key = batch
        gradients, terms = jax.grad(loss_of, has_aux=True)(params, spec, x_train[rows], key)
        updates, state = adam.update(gradients, state)
        return (optax.apply_updates(params, updates), state), terms

    keys = jax.random.split(noise_key, len(order))
    (params, state), terms = jax.lax.scan(step, (params, state), (order, keys))
    return params, state, jax.tree.map(lambda values: values[-1], terms)


params = initial(jax.random.key(1), x_train.shape[1], N)
state = adam.init(params)
spread = losses.paper_spec(N, mean_target=0.0, spread_target=0.0, angle_gain=3.0)
for epoch in range(1, last + 1):
    params, state, terms = jax_epoch(params, state, spread, jax.random.fold_in(key, epoch))
    if epoch in (1, 2, 5, 10, 20, last):
        told(epoch, terms)

# %% [markdown]
# ## 9. Where to go next
#
# - A whole run, with checkpoints, TensorBoard files and the pictures above:
#   `hsjax train --config=digits_compressed`. Other data and methods: [train, judge,
#   compare](../docs/training.md).
# - Which latent space to use: the [leaderboard](../docs/leaderboard.md). Whether the paper's claims
#   hold: [results](../docs/results.md).
# - What it costs on your accelerator: `python -m benchmarks.overhead`, and
#   [docs/performance.md](../docs/performance.md).
# - Every field of a config: `hsjax fields`.
# - The code, mathematics first: [coordinates.py](../hsjax/coordinates.py), then
#   [losses.py](../hsjax/losses.py), [models.py](../hsjax/models.py) and
#   [training.py](../hsjax/training.py).
