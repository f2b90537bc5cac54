"""Every field of a run, with its meaning, unit and source. The other configs change a few.

Sections and numbers in brackets are those of the paper (hsjax/methods/spherical.py names it).
A field is set on the command line with its dotted name: --config.model.latent_dim=64
"""

from ml_collections import ConfigDict

from hsjax import settings
from hsjax.config import method_fields


def get_config(name: str = "standard") -> ConfigDict:
    return settings.apply(fields(name), name, {})


def fields(name: str) -> ConfigDict:
    """All fields of a config with the method of this setting, for data to change."""
    config = ConfigDict()
    config.seed = 0  # of initial parameters, data order, flips, noise and samples

    config.data = data = ConfigDict()
    # "digits" (bundled), a path to an .npz, a path with a slash at its end to a folder of images,
    # or the name of a tensorflow-datasets image set. For files in a folder, EXIF orientation is
    # applied and transparency becomes white.
    data.name = "digits"
    # Where tensorflow-datasets finds or prepares sets; "" is its own default.
    data.dir = ""
    data.flip = False  # flip each training image left-right with probability 1/2
    # For folders and tensorflow-datasets sets: the middle square of `crop` pixels (0: the largest)
    # is scaled to `size` pixels (0: not at all).
    data.size = 0
    data.crop = 0  # see data.size
    # If an image can't be read: "refuse" the set, or "skip" the image.
    data.corrupt = "refuse"
    # For a folder without train and test in it: the share of its images used for testing.
    data.test_share = 0.1
    # Classes, by label, that a run never sees: they are left out of the training and test images.
    # Only the metric ood uses their images, to find out how well they are detected.
    data.leave_out = ()
    # Share of the training images held out for choosing settings: see evaluate.split.
    data.validation_share = 0.0
    # Share of a device's memory that training images may take. A larger set is streamed from the
    # host, which changes no number. 0 streams any set.
    data.device_share = 0.25

    config.model = model = ConfigDict()
    model.latent_dim = 128  # n, the number of latent coordinates
    model.stages = (16, 32, 64)  # channels after each halving of the image
    model.dtype = "float32"  # of the convolutions: float32 or bfloat16
    # Of the weights: "lecun_normal" or "pytorch", the default of the authors' framework.
    model.initialisation = "lecun_normal"
    model.project = False  # rescale z to ‖z‖ = √n before decoding (below equation 8)

    # The latent-space method and its own fields: hsjax/methods/ has a file for each method, which
    # explains them. Choose the method with the config: --config=mnist:rae.
    config.method = method_fields(settings.find(name).method)

    config.loss = loss = ConfigDict()
    loss.beta = 1.0  # gain β of the regulariser (2)(6)
    # Growth of β: "none"; "sqrt" (√(epoch/length)); or, with epochs e counted from 0, "published"
    # (√e + 1) and "published_drop" (the same, but 1 after e = length).
    loss.annealing = "none"
    loss.annealing_epochs = 100  # length of the growth (section 4.1)
    # β is 1 in the first epoch, and then multiplied by its MSE / regulariser (published code).
    loss.relative_beta = False

    config.train = train = ConfigDict()
    train.epochs = 300  # (section 4.1)
    train.batch_size = 200  # images (section 3)
    train.learning_rate = 2e-4  # of Adam (published code)
    train.adam_eps = 1e-8  # of Adam; the published code's, in units of our loss, is 1e-5
    # Of the learning rate: "step", by decay_epochs and decay_factor; "cosine", to 0 at the last
    # step, so that a finished run can't be continued for more epochs; or "constant".
    train.schedule = "step"
    train.warmup_epochs = 0.0  # during which the learning rate grows linearly from 0
    train.decay_epochs = (280,)  # epochs after which the learning rate decays
    train.decay_factor = 0.5  # the learning rate is multiplied by it after each of decay_epochs
    train.gradient_clip = 0.0  # global gradient norm above which gradients are scaled; 0 is off
    train.weight_decay = 0.0  # AdamW's, for the kernels only; 0 is off
    # Decay of moving averages of the weights and of BatchNorm's statistics, such as 0.999; 0 is
    # off. The averages are judged; training does not use them.
    train.ema = 0.0
    train.checkpoint_every = 10  # epochs
    train.checkpoints_kept = 3  # the newest ones
    # Also keep the checkpoint with the lowest "mse" or "loss" on the images of
    # data.validation_share, or "none". See evaluate.checkpoint.
    train.keep_best = "none"
    # One program per epoch ("scan", GPU and TPU) or per step ("steps", CPU); "auto" chooses.
    train.loop = "auto"
    # When the loss stops being finite, find the operation that made the first such number; costs a
    # copy of the state per epoch and changes no number.
    train.debug_nans = False

    config.log = log = ConfigDict()
    # Where scalars and pictures go besides metrics.jsonl: "tensorboard", "wandb" (Weights & Biases,
    # in a clone, pip install '.[wandb]'; WANDB_MODE=offline works) or "none".
    log.writer = "tensorboard"

    config.sample = sample = ConfigDict()
    # Where new latents come from: "own" is the method's prior; docs/methods.md lists the others.
    sample.sampler = "own"
    sample.fit_split = "train"  # split whose embeddings samplers are fitted to: train or test
    sample.count = 10_000  # samples per sampler, or the number of test images if that is smaller
    # Training steps of the samplers that are networks (two_stage, ncp, flow, codes), with 200
    # latents each (codes: 64).
    sample.fit_steps = 4000
    sample.steps = 4  # decodings by the sampler own of sphere_encoder, with noise in between

    # What a trained run is judged by. These and the sample fields may change without a new run.
    config.evaluate = evaluate = ConfigDict()
    # The images a run is judged on: "test", the test split, or "validation", those of
    # data.validation_share. Tables of numbers then call these images "test".
    evaluate.split = "test"
    evaluate.checkpoint = "newest"  # which one is judged: "newest" or "best", see train.keep_best
    # Factor on every latent before it is decoded, after any projection. Above 1 the images gain
    # contrast, so compare models only if both may use it (docs/studies.md).
    evaluate.latent_scale = 1.0
    # All samplers that are compared, besides sample.sampler.
    evaluate.samplers = (
        "own",
        "prior",
        "uniform_sphere",
        "vmf",
        "gaussian",
        "gmm",
        "projected_gaussian",
        "projected_gmm",
        "angles",
    )
    # Statistics of BatchNorm: "running", those of training, or "batch", those of each judged batch
    # of train.batch_size images (as in the published numbers).
    evaluate.batch_norm = "running"
    # frechet, kid, prdc and memorisation compare images by a feature network; the others are of
    # latents. There is also "ood": how well latents and errors detect images out of distribution
    # (of data.leave_out, evaluate.ood_data, or each of both). Two more are of latents: "geometry",
    # compared with N(0, I); "topology", holes, which needs gudhi.
    evaluate.metrics = (
        "frechet",
        "kid",
        "prdc",
        "memorisation",
        "knn",
        "probe",
        "latents",
        "tsne",
    )
    # A set, named as in data.name, whose test images are out of distribution (training images if
    # evaluate.split is "validation"). It is read from data.dir and scaled as the run's own set;
    # smaller images are centred on black.
    evaluate.ood_data = ""
    # Feature network: "classifier", trained once on the train split and kept in the user's cache
    # (a set without labels, or of one class, gets "random" instead); "random", the same layers
    # with random weights; "inception", the one of the FID, from the file below; "none".
    evaluate.features = "classifier"
    evaluate.feature_seeds = (0,)  # one network per seed, trained or random
    evaluate.feature_steps = 500  # training steps of a classifier, of 128 images each
    # For inception, the path of pt_inception-2015-12-05-6726825d.pth, downloaded from
    # https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights
    evaluate.inception_weights = ""
    evaluate.neighbours = 5  # k of the k-NN accuracy

    return config
