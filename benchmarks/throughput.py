"""Images a second, in training and evaluation, by batch size and dtype.

    python -m benchmarks.throughput [--quick] [--torch] [--batch=50,200]
        [--dtype=float32,bfloat16] [--out=FILE.json]

The compressed VAE of the CIFAR10 configs, n = 200, on noise images. Training is
a scan of steps on an accelerator and a loop of them on a CPU, as in a run.
Evaluation encodes test images, decodes their μ and rounds, through
`hsjax.inference`, including transfers to the host and back. Compilation comes
before the clock starts. Where a batch takes as long as a smaller one, dispatch
is the limit.

--torch measures benchmarks/torch_vae.py in the same rounds, in turn with ours,
on the same kind of device and with as many threads: the same network and
objective, eagerly. It needs PyTorch. The machine must have nothing else to do:
PyTorch's threads wait for each other after every operation, so a core that is
taken away costs it more than ours.
"""

import itertools
from functools import partial

import jax
import numpy as np

from benchmarks.measure import interleave, numbers, parser, ratio, text, write
from benchmarks.overhead import COUNT, stepper
from configs import cifar_compressed
from hsjax import batches, convolution, devices, inference, training
from hsjax.errors import UserError
from hsjax.terminal import command, tell

LEGEND = """\
Medians over rounds; ratios are the median (quartiles). A batch of training is
one step, a batch of evaluation is encoded, decoded and rounded.
  ours              hsjax, with the images on the device
  streamed          hsjax, with batches that come from the host
  XLA's gradients   hsjax without its own gradient of a convolution, on a CPU
  joint             in PyTorch, encoder and decoder updated together
  two updates       in PyTorch, one after the other, as in the authors' code
  ours / it         how many times as fast ours is
"""

TAKES = "It may take an hour on two cores (--quick: 2 minutes)."
N = 200
SHAPE = (32, 32, 3)
DTYPES = ("float32", "bfloat16")


def load_torch():
    """`benchmarks.torch_vae` set up like JAX, its device, and what to say about it.

    Raises:
      UserError: PyTorch can't be imported, or not on the kind of device that JAX has.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"--torch needs PyTorch, which hsjax does not install: {error}") from error
    from benchmarks import torch_vae

    backend = jax.default_backend()
    if backend not in ("cpu", "gpu") or (backend == "gpu" and not torch.cuda.is_available()):
        raise UserError(
            f"JAX runs on {backend}, which this PyTorch can't: set JAX_PLATFORMS=cpu to compare "
            "on the CPU"
        )
    torch.set_num_threads(devices.cores())
    device = "cpu"
    if backend == "gpu":
        device = "cuda"
        torch.set_float32_matmul_precision("high")  # TF32, which is JAX's default there
        torch.backends.cudnn.benchmark = True  # choose algorithms by timing them, as XLA does
    about = {"version": torch.__version__, "threads": torch.get_num_threads()}
    about["device"] = torch.cuda.get_device_name() if device == "cuda" else device
    return torch_vae, device, about


def config_of(dtype: str, batch: int):
    """The config that is measured."""
    config = cifar_compressed.get_config()
    config.model.latent_dim, config.model.dtype, config.train.batch_size = N, dtype, batch
    return config


def noise_images(count: int) -> np.ndarray:
    """uint8 [count, 32, 32, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def torch_network(torch_vae, device: str, dtype: str):
    """A network of random parameters."""
    model = torch_vae.VAE(SHAPE, N, dtype=getattr(torch_vae.torch, dtype))
    return model.to(device)


def streamer(dtype: str, batch: int, steps: int):
    """As `stepper`, with images that come from the host through `batches.stream`."""
    config, images = config_of(dtype, batch), noise_images(COUNT)
    setup, state = training.create(config, SHAPE, COUNT)
    programs = training.compile_programs(setup, COUNT)
    objective, state = devices.replicate((training.build_objective(config), state))
    order = np.asarray(programs.order(state))
    ahead = batches.stream((images, None), np.tile(order, (10_000 // len(order), 1)))
    step = programs.batch.lower(objective, state, next(ahead)).compile()

    def run():
        nonlocal state
        for _ in range(steps):
            state = step(objective, state, next(ahead))
        return state

    return run


def training_steps(dtype: str, batch: int, rounds: int, steps: int, other=None) -> dict:
    """Seconds a step, [rounds], of each implementation."""
    functions = {"ours": stepper("spherical", N, dtype, batch, steps)[0]}
    functions["ours, streamed"] = streamer(dtype, batch, steps)
    if jax.default_backend() == "cpu":
        with convolution.without_own_derivative():
            functions["ours, XLA's gradients"] = stepper("spherical", N, dtype, batch, steps)[0]
    if other:
        torch_vae, device, _ = other
        config = config_of(dtype, batch)
        objective = torch_vae.tensors(training.build_objective(config), device)
        images = torch_vae.tensors(noise_images(COUNT), device).permute(0, 3, 1, 2).contiguous()
        order = torch_vae.torch.randint(COUNT, (steps, batch), device=device)
        for name, form in (
            ("PyTorch, two updates", torch_vae.two_updates),
            ("PyTorch, joint", torch_vae.joint),
        ):
            network = torch_network(torch_vae, device, dtype)
            step = form(network, objective, config.train.learning_rate)
            functions[name] = torch_vae.trainer(step, images, order, N)
    times = interleave(functions, rounds)
    return {name: row / steps for name, row in times.items()}


def evaluation(dtype: str, batch: int, rounds: int, count: int, other=None) -> dict:
    """Seconds a batch, [rounds], of each implementation."""
    config = config_of(dtype, batch)
    setup, state = training.create(config, SHAPE, COUNT)
    model = inference.build_inference(setup, training.build_objective(config))
    state = devices.replicate(state)
    images = noise_images(count * batch)

    def judge(model, state):
        latent = inference.embed(model, state, images, batch)
        return inference.decode(model, state, latent.mean, batch)

    functions = {"ours": partial(judge, model, state)}
    if other:
        torch_vae, device, _ = other
        network = torch_network(torch_vae, device, dtype)
        functions["PyTorch"] = partial(judge, torch_vae.inference(network, device), None)
    return {name: row / count for name, row in interleave(functions, rounds).items()}


def row_of(task: str, dtype: str, batch: int, times: dict[str, np.ndarray]) -> dict:
    """One row of the table from seconds a batch."""
    medians = {name: float(np.median(row)) for name, row in times.items()}
    return {
        "task": task,
        "dtype": dtype,
        "batch": batch,
        "images_per_second": {name: batch / seconds for name, seconds in medians.items()},
        "milliseconds_per_batch": {name: 1e3 * seconds for name, seconds in medians.items()},
        "ours_over": {k: ratio(row, times["ours"]) for k, row in times.items() if k != "ours"},
    }


def show(row: dict) -> None:
    """Print a row, a line for each implementation."""
    tell(f"{row['task']}, batches of {row['batch']}, {row['dtype']}")
    for name, rate in row["images_per_second"].items():
        over = text(row["ours_over"][name]) if name in row["ours_over"] else ""
        milliseconds = row["milliseconds_per_batch"][name]
        tell(f"  {name:<21}  {rate:>10,.0f}  {milliseconds:>10.2f}  {over}".rstrip())


@command
def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__, "throughput", TAKES, "batches of 50 and 200 alone, in float32")
    flags.add_argument("--torch", action="store_true", help="also measure PyTorch, if installed")
    flags.add_argument(
        "--batch",
        type=numbers,
        default="20,50,100,200,500,1000,2000",
        help="images a batch (%(default)s)",
    )
    flags.add_argument(
        "--dtype",
        choices=(*DTYPES, ",".join(DTYPES)),
        default=",".join(DTYPES),
        metavar="DTYPES",
        help="of the convolutions: one, or both (%(default)s)",
    )
    arguments = flags.parse_args()
    devices.start()
    counts = [50, 200] if arguments.quick else arguments.batch
    dtypes = ["float32"] if arguments.quick else arguments.dtype.split(",")
    accelerator = jax.default_backend() != "cpu"
    rounds = 30 if accelerator else 10 if arguments.quick else 20
    rows = []
    other = load_torch() if arguments.torch else None
    tell(f"{LEGEND}{TAKES}\n")
    about = {"threads": devices.cores(), "devices": jax.device_count()}
    about |= {"torch": other[2]} if other else {}
    tell(f"{'':<23}  {'images/s':>10}  {'ms a batch':>10}  ours / it")
    for dtype, batch in itertools.product(dtypes, counts):
        # On a CPU about 200 images a turn, on an accelerator a long scan.
        steps = 50 if accelerator else max(1, 200 // batch)
        judged = max(1, (10_000 if accelerator else 400) // batch)
        for task, function, length in (
            ("training", training_steps, steps),
            ("evaluation", evaluation, judged),
        ):
            row = row_of(task, dtype, batch, function(dtype, batch, rounds, length, other))
            rows.append(row)
            show(row)
            write(arguments.out, rows, final=False, **about)
    write(arguments.out, rows, **about)


if __name__ == "__main__":
    main()
